//! `knarr etcd`: the store alone, for everybody who speaks to etcd; and the same face beside an API
//! server, where it is asked for.

use std::fmt;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use knarr_etcd::{
    ETCD_VERSION, Face, FaceConfig, Listener, TlsFiles, TlsKeeper, TokenKind, serve, serve_pages,
};
use knarr_pki::{Authority, Identity, Usage};
use knarr_store::{RealDisk, Store, StoreConfig, SystemClock};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;
use tracing::info;

use crate::flags::duration;
use crate::paths;
use crate::process::{Drain, Fatal};

mod flags;
mod idle;
mod sources;

pub(crate) use flags::{EtcdBesideFlags, EtcdFlags};
use flags::{EtcdLimits, EtcdTlsFlags, Measured};
pub(crate) use sources::CommandLine;

/// A URL that clients dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ClientUrl {
    /// `http://HOST:PORT`, or `https://HOST:PORT`.
    Tcp { secure: bool, host: String, port: u16 },
    /// `unix://PATH`.
    Unix(PathBuf),
}

impl FromStr for ClientUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no URL such as http://127.0.0.1:2379");
        let (scheme, rest) = text.split_once("://").ok_or_else(bad)?;
        let secure = match scheme {
            "unix" if !rest.is_empty() => return Ok(Self::Unix(rest.into())),
            "http" => false,
            "https" => true,
            _ => return Err(bad()),
        };
        let (host, port) = rest.trim_end_matches('/').rsplit_once(':').ok_or_else(bad)?;
        let port = port.parse().map_err(|_| bad())?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() || host.contains('/') {
            Err(bad())
        } else {
            Ok(Self::Tcp { secure, host, port })
        }
    }
}

impl fmt::Display for ClientUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp { secure, host, port } => {
                let scheme = if *secure { "https" } else { "http" };
                match host.contains(':') {
                    true => write!(f, "{scheme}://[{host}]:{port}"),
                    false => write!(f, "{scheme}://{host}:{port}"),
                }
            }
        }
    }
}

/// Runs the store alone until it is told to go down.
pub(crate) async fn run(flags: EtcdFlags, drain: Drain) -> Result<(), Fatal> {
    if flags.version {
        println!("etcd Version: {ETCD_VERSION}\nknarr Version: {}", env!("CARGO_PKG_VERSION"));
        return Ok(());
    }
    flags.check()?;
    flags.idle.tell();
    let data = flags.data()?;
    let store = open_store(&flags, &data)?;
    let tls = flags.tls.keeper(&data)?;
    let config = FaceConfig {
        name: flags.name.clone(),
        peer_urls: flags.initial_advertise_peer_urls.clone(),
        client_urls: urls(&flags),
        max_txn_ops: flags.limits.max_txn_ops,
        max_request_bytes: flags.limits.max_request_bytes,
        protected: None,
        tokens: flags.limits.tokens()?,
        bcrypt_cost: flags.limits.bcrypt_cost,
        progress_interval: flags.limits.watch_progress_notify_interval,
        keepalive: flags.connections.keepalive(),
        max_streams: flags.connections.max_streams(),
        gateway: flags.connections.enable_grpc_gateway,
        timed: flags.metrics == Measured::Extensive,
    };
    let face = Face::new(store.clone(), config)?;
    let pages = listen(&flags.listen_metrics_urls, tls.as_ref()).await?;
    let urls = [&flags.listen_client_urls[..], &flags.listen_client_http_urls].concat();
    let mut served = listen_and_serve(face.clone(), &urls, tls, drain.clone()).await?;
    for listener in pages {
        served.spawn(serve_pages(face.clone(), listener, drain.clone()));
    }
    println!("Ready: {}", list(&flags.listen_client_urls));
    served.join_all().await;
    store.close().await;
    Ok(())
}

/// Serves the store of an API server, where that is asked for.
pub(crate) async fn serve_beside(
    flags: &EtcdBesideFlags,
    data: &Path,
    store: &Store,
    drain: Drain,
) -> Result<JoinSet<()>, Fatal> {
    let urls = &flags.etcd_listen_client_urls;
    if urls.is_empty() {
        return Ok(JoinSet::new());
    }
    if let Some(open) = urls.iter().find(|url| matches!(url, ClientUrl::Tcp { secure: false, .. }))
    {
        return Err(Fatal(format!(
            "--etcd-listen-client-urls {open}: every Secret of the cluster could be read there by \
             anybody who can connect; use https:// or unix://"
        )));
    }
    let hosts = urls.iter().filter_map(|url| match url {
        ClientUrl::Tcp { host, .. } => Some(host.as_str()),
        ClientUrl::Unix(_) => None,
    });
    let dir = paths::pki(data).join("etcd");
    let files =
        TlsFiles { client_ca: Some(dir.join("ca.crt")), ..certificates(&dir, "server", hosts)? };
    let config = FaceConfig {
        name: "knarr".to_owned(),
        client_urls: urls.iter().map(ClientUrl::to_string).collect(),
        protected: (!flags.unsafe_registry_writes).then(|| "/registry/".into()),
        ..FaceConfig::default()
    };
    let face = Face::new(store.clone(), config)?;
    listen_and_serve(face, urls, Some(Arc::new(TlsKeeper::open(files)?)), drain).await
}

fn urls(flags: &EtcdFlags) -> Vec<String> {
    let told = match flags.advertise_client_urls.is_empty() {
        true => &flags.listen_client_urls,
        false => &flags.advertise_client_urls,
    };
    told.iter().map(ClientUrl::to_string).collect()
}

fn list(urls: &[ClientUrl]) -> String {
    urls.iter().map(ClientUrl::to_string).collect::<Vec<_>>().join(",")
}

fn open_store(flags: &EtcdFlags, data: &Path) -> Result<Store, Fatal> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(|error| Fatal(format!("no randomness: {error}")))?;
    let (cluster, member) = random.split_at(8);
    let id = |half: &[u8]| u64::from_le_bytes(half.try_into().expect("eight bytes"));
    let config = StoreConfig {
        identity: knarr_store::Identity { cluster: id(cluster), member: id(member) },
        command_bytes: flags.limits.max_request_bytes,
        senders_commit: true,
        ..StoreConfig::default()
    };
    let config = flags.keep.over(config).map_err(Fatal)?;
    let unusable = |error| Fatal(format!("cannot use --data-dir {}: {error}", data.display()));
    let disk = RealDisk::open(paths::store(data)).map_err(unusable)?;
    Store::open(Arc::new(disk), Arc::new(SystemClock::default()), config).map_err(unusable)
}

/// Listens at every URL before it serves at any.
pub(crate) async fn listen_and_serve(
    face: Arc<Face>,
    urls: &[ClientUrl],
    tls: Option<Arc<TlsKeeper>>,
    drain: Drain,
) -> Result<JoinSet<()>, Fatal> {
    let mut served = JoinSet::new();
    for listener in listen(urls, tls.as_ref()).await? {
        served.spawn(serve(face.clone(), listener, drain.clone()));
    }
    info!(urls = list(urls), "etcd's API is served");
    Ok(served)
}

async fn listen(urls: &[ClientUrl], tls: Option<&Arc<TlsKeeper>>) -> Result<Vec<Listener>, Fatal> {
    let mut listeners = Vec::new();
    for url in urls {
        listeners.extend(url.listen(tls).await?);
    }
    Ok(listeners)
}

impl ClientUrl {
    async fn listen(&self, tls: Option<&Arc<TlsKeeper>>) -> Result<Vec<Listener>, Fatal> {
        let failed = |error| Fatal(format!("cannot listen on {self}: {error}"));
        match self {
            Self::Unix(path) => Ok(vec![listen_unix(path).map_err(failed)?]),
            Self::Tcp { secure, host, port } => {
                let tls = match (secure, tls) {
                    (true, None) => {
                        return Err(Fatal(format!(
                            "{self} needs a certificate: name one by --cert-file and --key-file, \
                             or have one made by --auto-tls"
                        )));
                    }
                    (true, Some(tls)) => Some(tls.clone()),
                    (false, _) => None,
                };
                let addresses = tokio::net::lookup_host((&host[..], *port)).await;
                let mut listeners = Vec::new();
                for address in addresses.map_err(failed)? {
                    match TcpListener::bind(address).await {
                        Ok(listener) => listeners.push(Listener::Tcp(listener, tls.clone())),
                        // A name may have addresses of a family that is switched off here.
                        Err(error) if unknown_here(&error) => {
                            info!(%address, %error, "not listened on");
                        }
                        Err(error) => return Err(failed(error)),
                    }
                }
                if listeners.is_empty() {
                    return Err(Fatal(format!("{self} has no address of this machine")));
                }
                Ok(listeners)
            }
        }
    }
}

fn unknown_here(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::AddrNotAvailable
}

/// A socket for its owner only; what is left of a process that is gone is replaced.
fn listen_unix(path: &Path) -> std::io::Result<Listener> {
    if std::os::unix::net::UnixStream::connect(path).is_err() {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(Listener::Unix(listener))
}

impl EtcdTlsFlags {
    fn keeper(&self, data: &Path) -> Result<Option<Arc<TlsKeeper>>, Fatal> {
        let files = match (&self.cert_file, &self.key_file) {
            (Some(certificate), Some(key)) => TlsFiles {
                certificate: certificate.clone(),
                key: key.clone(),
                client_ca: self.trusted_ca_file.clone(),
            },
            _ if self.auto_tls => certificates(&data.join("fixtures/client"), "cert", [])?,
            _ => return Ok(None),
        };
        Ok(Some(Arc::new(TlsKeeper::open(files)?)))
    }
}

/// An authority in a folder, a server's certificate for this machine's own names and those of
/// `hosts`, and one for a client, all made where they are missing.
fn certificates<'a>(
    dir: &Path,
    name: &str,
    hosts: impl IntoIterator<Item = &'a str>,
) -> Result<TlsFiles, Fatal> {
    let authority = Authority::load_or_create(dir)?;
    let mut addresses =
        vec![IpAddr::from([127, 0, 0, 1]), IpAddr::from(std::net::Ipv6Addr::LOCALHOST)];
    let mut dns = vec!["localhost".to_owned()];
    for host in hosts {
        match host.parse() {
            Ok(address) => addresses.push(address),
            Err(_) => dns.push(host.to_owned()),
        }
    }
    let server = Identity { name: "etcd".to_owned(), dns, addresses, ..Identity::default() };
    authority.issue_to(dir, name, &server, Usage::Server)?;
    let client = Identity { name: "root".to_owned(), ..Identity::default() };
    authority.issue_to(dir, "client", &client, Usage::Client)?;
    let file = |kind: &str| dir.join(format!("{name}.{kind}"));
    Ok(TlsFiles { certificate: file("crt"), key: file("key"), client_ca: None })
}

impl EtcdLimits {
    fn tokens(&self) -> Result<TokenKind, Fatal> {
        let mut words = self.auth_token.split(',');
        match words.next() {
            Some("simple") => {
                Ok(TokenKind::Simple { ttl: Duration::from_secs(self.auth_token_ttl) })
            }
            Some("jwt") => jwt(words).map_err(|why| Fatal(format!("--auth-token: {why}"))),
            _ => {
                Err(Fatal(format!("--auth-token: {:?} is neither simple nor jwt", self.auth_token)))
            }
        }
    }
}

fn jwt<'a>(words: impl Iterator<Item = &'a str>) -> Result<TokenKind, String> {
    let (mut algorithm, mut public, mut private) = (None, None, None);
    let mut ttl = Duration::from_mins(5);
    for word in words {
        let (name, value) = word.split_once('=').ok_or_else(|| format!("{word:?} has no value"))?;
        match name {
            "sign-method" => {
                algorithm = Some(
                    value
                        .parse()
                        .map_err(|_| format!("sign-method {value:?} is not known here"))?,
                )
            }
            "pub-key" => public = Some(PathBuf::from(value)),
            "priv-key" => private = Some(PathBuf::from(value)),
            "ttl" => ttl = duration(value)?,
            _ => {
                return Err(format!(
                    "{name:?} is not known; there are sign-method, pub-key, priv-key, ttl"
                ));
            }
        }
    }
    let algorithm = algorithm.ok_or("jwt needs a sign-method, such as RS256")?;
    let public = public.or_else(|| private.clone()).ok_or("jwt needs a pub-key or priv-key")?;
    Ok(TokenKind::Jwt { algorithm, public, private, ttl })
}

impl EtcdFlags {
    /// Refuses what a group of one must not be told.
    fn check(&self) -> Result<(), Fatal> {
        if self.initial_cluster.len() > 1 {
            return Err(Fatal(
                "--initial-cluster names several members, but this store is a group of one: \
                 consensus between members is not there yet"
                    .to_owned(),
            ));
        }
        if let Some(member) = self.initial_cluster.first()
            && member.split_once('=').is_none_or(|(member, _)| member != self.name)
        {
            return Err(Fatal(format!(
                "--initial-cluster {member:?} does not name {:?}",
                self.name
            )));
        }
        Ok(())
    }

    fn data(&self) -> Result<PathBuf, Fatal> {
        let data = self.data_dir.clone().unwrap_or_else(|| format!("{}.etcd", self.name).into());
        let theirs = data.join("member/snap/db");
        match theirs.exists() {
            false => Ok(data),
            true => Err(Fatal(format!(
                "--data-dir {} has the data of an etcd, which would not be seen: take it over with \
                 `knarr store restore {} --skip-hash-check --data-dir NEW`, and name NEW here",
                data.display(),
                theirs.display()
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_written() {
        for text in ["http://127.0.0.1:2379", "https://[::1]:1", "unix:///run/x.sock"] {
            assert_eq!(text.parse::<ClientUrl>().map(|url| url.to_string()), Ok(text.to_owned()));
        }
        for text in
            ["", "127.0.0.1:2379", "ftp://a:1", "http://a", "http://:1", "http://a:b", "unix://"]
        {
            assert!(text.parse::<ClientUrl>().is_err(), "{text}");
        }
    }

    #[test]
    fn token_kinds_are_read() {
        let limits = |auth_token: &str| EtcdLimits {
            max_txn_ops: 1,
            max_request_bytes: 1,
            auth_token: auth_token.to_owned(),
            auth_token_ttl: 7,
            bcrypt_cost: 4,
            watch_progress_notify_interval: Duration::from_secs(1),
        };
        let simple = limits("simple").tokens();
        assert!(matches!(simple, Ok(TokenKind::Simple { ttl }) if ttl.as_secs() == 7));
        let jwt = limits("jwt,sign-method=ES256,priv-key=/k,ttl=1m").tokens();
        assert!(matches!(jwt, Ok(TokenKind::Jwt { ttl, .. }) if ttl.as_secs() == 60));
        for bad in
            ["", "other", "jwt", "jwt,sign-method=X,pub-key=/k", "jwt,sign-method=RS256", "jwt,a=b"]
        {
            assert!(limits(bad).tokens().is_err(), "{bad}");
        }
    }
}
