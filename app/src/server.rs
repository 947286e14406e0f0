//! The control plane: store, API server, controllers, scheduler.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use knarr_apiserver::{Server, ServerConfig};
use knarr_pki::{Authority, Identity, Kubeconfig, Usage};
use knarr_registry::Config;
use knarr_store::{OpenError, RealDisk, Store, StoreConfig, SystemClock};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tracing::info;

use crate::flags::ServerFlags;
use crate::paths;
use crate::process::{Drain, Fatal};

/// What `/version` calls us.
pub(crate) const VERSION: &str = concat!("v1.36.2+knarr", env!("CARGO_PKG_VERSION"));

/// A control plane that serves.
pub(crate) struct ControlPlane {
    pub(crate) server: Arc<Server>,
    pub(crate) authority: Arc<Authority>,
    pub(crate) kubeconfig: PathBuf,
    pub(crate) url: String,
    serving: tokio::task::JoinHandle<()>,
}

impl ControlPlane {
    /// Opens the state and begins to serve.
    pub(crate) async fn start(flags: &ServerFlags, drain: Drain) -> Result<Self, Fatal> {
        let address = SocketAddr::new(flags.bind_address, flags.secure_port);
        let listener =
            TcpListener::bind(address).await.map_err(|error| port_taken(address, &error))?;
        let port = listener.local_addr()?.port();
        let advertise = flags.advertise_address.unwrap_or_else(|| own_address(flags.bind_address));
        let url = format!("https://{}", SocketAddr::new(advertise, port));
        let store = open_store(&flags.data_dir)?;
        let dir = paths::pki(&flags.data_dir);
        let authority = Arc::new(Authority::load_or_create(&dir)?);
        let node_client = authority.issue_to(
            &dir,
            "apiserver-kubelet-client",
            &Identity { name: "kube-apiserver-kubelet-client".to_owned(), ..Identity::default() },
            Usage::Client,
        )?;
        let pipeline = Config {
            version: VERSION.to_owned(),
            issuer: "https://kubernetes.default.svc.cluster.local".to_owned(),
            advertise: SocketAddr::new(advertise, port).to_string(),
        };
        let server = Server::new(store, &authority, ServerConfig { pipeline, node_client })?;
        let identity = serving_identity(flags, advertise);
        let signed = authority.issue_to(&dir, "apiserver", &identity, Usage::Server)?;
        let tls = knarr_pki::server_config(&signed, authority.certificate())?;
        let (_, tls) = watch::channel(tls);
        let serving = tokio::spawn(knarr_apiserver::serve(server.clone(), listener, tls, drain));
        server.bootstrap().await?;
        let kubeconfig =
            flags.kubeconfig.clone().unwrap_or_else(|| paths::kubeconfig(&flags.data_dir));
        write_admin_kubeconfig(&authority, &url, &kubeconfig)?;
        info!(url, "API server ready");
        Ok(Self { server, authority, kubeconfig, url, serving })
    }

    /// Waits until serving has ended, then closes the store.
    pub(crate) async fn finish(self) {
        self.serving.await.ok();
        self.server.store().clone().close().await;
    }
}

/// Runs a control plane until it is told to go down.
pub(crate) async fn run(flags: ServerFlags, drain: Drain) -> Result<(), Fatal> {
    let plane = ControlPlane::start(&flags, drain).await?;
    info!(kubeconfig = %plane.kubeconfig.display(), "control plane ready");
    plane.finish().await;
    Ok(())
}

fn port_taken(address: SocketAddr, error: &std::io::Error) -> Fatal {
    Fatal(match error.kind() {
        std::io::ErrorKind::AddrInUse => format!(
            "{address} is taken by another process: stop it, or choose another --secure-port"
        ),
        _ => format!("cannot listen on {address}: {error}"),
    })
}

fn open_store(data: &Path) -> Result<Store, Fatal> {
    let refused = |error: OpenError| match error {
        OpenError::Locked { pid, .. } => Fatal(format!(
            "another knarr{} is running on {}: stop it, or use another --data-dir",
            pid.map_or(String::new(), |pid| format!(" (process {pid})")),
            data.display()
        )),
        error => Fatal(format!("cannot use --data-dir {}: {error}", data.display())),
    };
    let disk = RealDisk::open(paths::store(data)).map_err(refused)?;
    let clock = Arc::new(SystemClock::default());
    Store::open(Arc::new(disk), clock, StoreConfig::default()).map_err(refused)
}

/// The address that leads to this machine: the bound one, or that of the default route.
fn own_address(bound: IpAddr) -> IpAddr {
    if !bound.is_unspecified() {
        return bound;
    }
    // Connecting a datagram socket sends nothing; it only asks the kernel for a route.
    let route = std::net::UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    });
    route.map_or(IpAddr::from([127, 0, 0, 1]), |address| address.ip())
}

fn serving_identity(flags: &ServerFlags, advertise: IpAddr) -> Identity {
    let mut dns: Vec<String> =
        ["kubernetes", "kubernetes.default", "kubernetes.default.svc"].map(str::to_owned).to_vec();
    dns.push("kubernetes.default.svc.cluster.local".to_owned());
    dns.push("localhost".to_owned());
    let mut addresses = vec![IpAddr::from([127, 0, 0, 1]), advertise];
    for san in &flags.tls_san {
        match san.parse() {
            Ok(address) => addresses.push(address),
            Err(_) => dns.push(san.clone()),
        }
    }
    Identity { name: "kube-apiserver".to_owned(), dns, addresses, ..Identity::default() }
}

fn write_admin_kubeconfig(authority: &Authority, url: &str, path: &Path) -> Result<(), Fatal> {
    let admin = Identity {
        name: "kubernetes-admin".to_owned(),
        groups: vec!["system:masters".to_owned()],
        ..Identity::default()
    };
    let client = authority.issue(&admin, Usage::Client)?;
    let config = Kubeconfig {
        server: url.to_owned(),
        ca: authority.certificate().to_owned(),
        client: Some(client),
        token: None,
    };
    knarr_pki::write_private(path, config.render(&admin.name).as_bytes())
        .map_err(|error| Fatal(format!("cannot write {}: {error}", path.display())))
}
