//! The control plane: store, API server, controllers, scheduler.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use knarr_api::ip::Cidr;
use knarr_apiserver::{Server, ServerConfig};
use knarr_client::Client;
use knarr_driver::Lease;
use knarr_pki::{Authority, Clients, Identity, Kubeconfig, Signed, Usage};
use knarr_registry::{Config, User};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::info;

use crate::cluster::Facts;
use crate::flags::{ControllerFlags, ServerFlags};
use crate::process::{Drain, Fatal};
use crate::ranges::Ranges;
use crate::token::JoinToken;
use crate::{backend, cluster, etcd, lifecycle, paths, rings};

/// What `/version` calls us.
pub(crate) const VERSION: &str = concat!("v1.36.2+knarr", env!("CARGO_PKG_VERSION"));

/// A control plane that serves.
pub(crate) struct ControlPlane {
    pub(crate) server: Arc<Server>,
    pub(crate) authority: Arc<Authority>,
    pub(crate) kubeconfig: PathBuf,
    pub(crate) url: String,
    pub(crate) token: JoinToken,
    pub(crate) cluster_cidrs: Vec<Cidr>,
    tasks: JoinSet<()>,
}

/// What a control plane is told by the nodes beside it.
#[derive(Debug, Default)]
pub(crate) struct Beside {
    /// More addresses to listen on.
    pub(crate) addresses: Vec<IpAddr>,
    /// The domain of cluster names, where it is not the usual one.
    pub(crate) domain: Option<String>,
}

impl ControlPlane {
    /// Opens the state and begins to serve.
    pub(crate) async fn start(
        flags: &ServerFlags,
        beside: &Beside,
        drain: Drain,
    ) -> Result<Self, Fatal> {
        let (listeners, port) = listen(flags, beside).await?;
        let advertise = flags.advertise_address.unwrap_or_else(|| own_address(flags.bind_address));
        let url = format!("https://{}", SocketAddr::new(advertise, port));
        let ranges = Ranges::check(flags, advertise)?;
        let store = backend::open(&flags.data_dir, &flags.backend, &flags.keep).await?;
        lifecycle::write_pid(&flags.data_dir)?;
        let dir = paths::pki(&flags.data_dir);
        let authority = Arc::new(Authority::load_or_create(&dir)?);
        let node_client = client_certificate(&authority, &dir, "kube-apiserver-kubelet-client")?;
        let pipeline = Config {
            version: VERSION.to_owned(),
            issuer: "https://kubernetes.default.svc.cluster.local".to_owned(),
            advertise: SocketAddr::new(advertise, port).to_string(),
            service_cidrs: ranges.services.clone(),
            node_ports: flags.service_node_port_range.clone(),
        };
        let server = Server::new(store, &authority, ServerConfig { pipeline, node_client })?;
        let identity = serving_identity(flags, (advertise, beside), &ranges);
        let mut signed = authority.issue_to(&dir, "apiserver", &identity, Usage::Server)?;
        // The CA goes along, so that a node which joins can recognise it by its hash.
        signed.certificate.push_str(authority.certificate());
        let tls = knarr_pki::server_config(&signed, Clients::MayShow(authority.certificate()))?;
        let (_, tls) = watch::channel(tls);
        let mut tasks = JoinSet::new();
        for listener in listeners {
            let serve =
                knarr_apiserver::serve(server.clone(), listener, tls.clone(), drain.clone());
            tasks.spawn(serve);
        }
        let face = etcd::serve_beside(&flags.etcd, &flags.data_dir, server.store(), drain.clone());
        let mut faces = face.await?;
        tasks.spawn(async move { while faces.join_next().await.is_some() {} });
        server.bootstrap().await?;
        if server.store().is_shared() {
            tasks.spawn(server.clone().stay_announced(drain.clone()));
        }
        let facts = Facts {
            cluster_cidrs: ranges.pods.clone(),
            service_cidrs: ranges.services.clone(),
            domain: beside.domain.clone().unwrap_or(cluster::DOMAIN.to_owned()),
        };
        let user = User::new("system:apiserver", &["system:masters"]);
        facts.publish(&Client::in_process(server.clone(), user)).await?;
        let token =
            JoinToken::load_or_create(&paths::token(&flags.data_dir), authority.certificate())?;
        server.create(&token.secret()).await;
        let kubeconfig =
            flags.kubeconfig.clone().unwrap_or_else(|| paths::kubeconfig(&flags.data_dir));
        write_kubeconfigs(&authority, &url, flags, &kubeconfig)?;
        info!(url, "API server ready");
        let cluster_cidrs = ranges.pods;
        Ok(Self { server, authority, kubeconfig, url, token, cluster_cidrs, tasks })
    }

    /// Starts controllers and scheduler in this process. The lease's holder is this data
    /// directory, so that the next start need not wait for the last one's lease to end; with an
    /// etcd that others use too it is this process.
    pub(crate) fn start_rings(&mut self, flags: &ControllerFlags, drain: &Drain) {
        let identity = self.server.store().identity();
        let holder = format!("knarr_{:016x}_{:x}", identity.cluster, identity.member);
        let config = rings::config(&self.authority, &self.cluster_cidrs, flags);
        let (server, authority) = (self.server.clone(), self.authority.clone());
        let client = Client::in_process(server.clone(), rings::user(rings::MANAGER));
        let lease = Lease { name: "kube-controller-manager", holder: holder.clone() };
        let ring = move || rings::manager_in_process(&server, authority.clone(), config.clone());
        self.tasks.spawn(rings::run_leading(client, lease, drain.clone(), ring));
        let server = self.server.clone();
        let client = Client::in_process(server.clone(), rings::user(rings::SCHEDULER));
        let lease = Lease { name: "kube-scheduler", holder };
        let ring = move || rings::scheduler_in_process(&server);
        self.tasks.spawn(rings::run_leading(client, lease, drain.clone(), ring));
    }

    /// Waits until serving has ended, then closes the store.
    pub(crate) async fn finish(mut self) {
        while self.tasks.join_next().await.is_some() {}
        self.server.store().close().await;
    }
}

/// Runs a control plane until it is told to go down.
pub(crate) async fn run(flags: ServerFlags, drain: Drain) -> Result<(), Fatal> {
    let mut plane = ControlPlane::start(&flags, &Beside::default(), drain.clone()).await?;
    plane.start_rings(&flags.controllers, &drain);
    ready(&plane);
    plane.finish().await;
    Ok(())
}

/// Runs store and API server alone.
pub(crate) async fn run_alone(flags: ServerFlags, drain: Drain) -> Result<(), Fatal> {
    let plane = ControlPlane::start(&flags, &Beside::default(), drain).await?;
    ready(&plane);
    plane.finish().await;
    Ok(())
}

fn ready(plane: &ControlPlane) {
    println!("Ready: {}\nkubeconfig: {}", plane.url, plane.kubeconfig.display());
}

fn client_certificate(authority: &Authority, dir: &Path, user: &str) -> Result<Signed, Fatal> {
    let identity = Identity { name: user.to_owned(), ..Identity::default() };
    let file = user.rsplit(':').next().unwrap_or(user);
    Ok(authority.issue_to(dir, file, &identity, Usage::Client)?)
}

/// Listens at the address of the flags and, unless that is every address, at those beside.
async fn listen(flags: &ServerFlags, beside: &Beside) -> Result<(Vec<TcpListener>, u16), Fatal> {
    let bind = async |ip: IpAddr, port: u16| {
        let address = SocketAddr::new(ip, port);
        TcpListener::bind(address).await.map_err(|error| port_taken(address, &error))
    };
    let first = bind(flags.bind_address, flags.secure_port).await?;
    let port = first.local_addr()?.port();
    let mut listeners = vec![first];
    if !flags.bind_address.is_unspecified() {
        for address in beside.addresses.iter().filter(|ip| **ip != flags.bind_address) {
            listeners.push(bind(*address, port).await?);
        }
    }
    Ok((listeners, port))
}

fn port_taken(address: SocketAddr, error: &std::io::Error) -> Fatal {
    Fatal(match error.kind() {
        std::io::ErrorKind::AddrInUse => format!(
            "{address} is taken by another process: stop it, or choose another --secure-port"
        ),
        _ => format!("cannot listen on {address}: {error}"),
    })
}

/// The address that leads to this machine: the bound one, or that of the default route.
pub(crate) fn own_address(bound: IpAddr) -> IpAddr {
    if !bound.is_unspecified() {
        return bound;
    }
    let any = IpAddr::from([0, 0, 0, 0]);
    route_source(bound).or_else(|_| route_source(any)).unwrap_or(IpAddr::from([127, 0, 0, 1]))
}

/// The address with which this machine speaks to others of a family.
fn route_source(any: IpAddr) -> std::io::Result<IpAddr> {
    // Connecting a datagram socket sends nothing; it only asks the kernel for a route.
    let somewhere = if any.is_ipv4() { "192.0.2.1:9" } else { "[2001:db8::1]:9" };
    let socket = std::net::UdpSocket::bind((any, 0))?;
    socket.connect(somewhere)?;
    Ok(socket.local_addr()?.ip())
}

fn serving_identity(
    flags: &ServerFlags,
    (advertise, beside): (IpAddr, &Beside),
    ranges: &Ranges,
) -> Identity {
    let mut dns: Vec<String> =
        ["kubernetes", "kubernetes.default", "kubernetes.default.svc"].map(str::to_owned).to_vec();
    dns.push("kubernetes.default.svc.cluster.local".to_owned());
    dns.push("localhost".to_owned());
    let mut addresses = vec![IpAddr::from([127, 0, 0, 1]), advertise];
    addresses.extend(&beside.addresses);
    addresses.extend(ranges.services.iter().filter_map(|range| range.nth(1)));
    for san in &flags.tls_san {
        match san.parse() {
            Ok(address) => addresses.push(address),
            Err(_) => dns.push(san.clone()),
        }
    }
    Identity { name: "kube-apiserver".to_owned(), dns, addresses, ..Identity::default() }
}

/// Writes the kubeconfigs of the administrator and of components in processes of their own.
fn write_kubeconfigs(
    authority: &Authority,
    url: &str,
    flags: &ServerFlags,
    admin: &Path,
) -> Result<(), Fatal> {
    let pki = paths::pki(&flags.data_dir);
    let write = |path: &Path, user: &str, client: Signed| {
        let config = Kubeconfig {
            server: url.to_owned(),
            ca: authority.certificate().to_owned(),
            client: Some(client),
            token: None,
        };
        knarr_pki::write_private(path, config.render(user).as_bytes())
            .map_err(|error| Fatal(format!("cannot write {}: {error}", path.display())))
    };
    for (file, user) in [("controller-manager", rings::MANAGER), ("scheduler", rings::SCHEDULER)] {
        let client = client_certificate(authority, &pki, user)?;
        write(&flags.data_dir.join(format!("{file}.kubeconfig")), user, client)?;
    }
    let identity = Identity {
        name: "kubernetes-admin".to_owned(),
        groups: vec!["system:masters".to_owned()],
        ..Identity::default()
    };
    write(admin, &identity.name, authority.issue_to(&pki, "admin", &identity, Usage::Client)?)
}
