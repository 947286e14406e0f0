//! The Service proxy of a node: watches in, packet rules out.
//!
//! One [`run`] keeps the node's table as `core/netplan` plans it. What has come in together is
//! committed together; nothing is committed before everything there is has been told once. When the
//! proxy ends, the rules stay: packets go on without it.

mod pages;
mod pump;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use knarr_api::ip::Cidr;
use knarr_client::Client;
use knarr_driver::{Scope, reflect};
use knarr_netplan::{NodeTable, Services};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;

pub use knarr_net::NetfilterError;
pub use pump::Proxy;

/// Watch items waiting for the proxy.
const MAX_ITEMS: usize = 1024;

/// What a proxy is told.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// The node it is on.
    pub node_name: String,
    /// What tells its table from others' on the machine.
    pub instance: String,
    /// Where Pods get their addresses from.
    pub cluster_cidrs: Vec<Cidr>,
    /// Which of the node's addresses have node ports; empty for all.
    pub node_port_addresses: Vec<Cidr>,
    /// Where to say whether it works; `None` for nowhere.
    pub healthz: Option<SocketAddr>,
    /// Where to show metrics; `None` for nowhere.
    pub metrics: Option<SocketAddr>,
}

/// Why there is no proxy.
#[derive(Debug)]
pub enum ProxyError {
    /// Netfilter cannot be used.
    Netfilter(NetfilterError),
    /// An address for health or metrics cannot be had.
    Bind(SocketAddr, std::io::Error),
}

impl std::error::Error for ProxyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Netfilter(error) => Some(error),
            Self::Bind(_, error) => Some(error),
        }
    }
}

impl fmt::Display for ProxyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Netfilter(error) => write!(f, "the proxy needs nftables: {error}"),
            Self::Bind(address, error) => write!(f, "cannot listen on {address}: {error}"),
        }
    }
}

/// Waits until everybody is to finish.
async fn drained(drain: &mut watch::Receiver<bool>) {
    drain.wait_for(|drain| *drain).await.ok();
}

/// Runs a node's proxy until `drain` says so.
///
/// # Errors
/// [`ProxyError`], at the start only.
pub async fn run(
    config: ProxyConfig,
    client: Client,
    mut drain: watch::Receiver<bool>,
) -> Result<(), ProxyError> {
    let mut proxy = Proxy::open(&config).map_err(ProxyError::Netfilter)?;
    let mut pages = JoinSet::new();
    let told = proxy.told();
    for (address, path) in [(config.healthz, pages::HEALTHZ), (config.metrics, pages::METRICS)] {
        let Some(address) = address else { continue };
        let bind = |error| ProxyError::Bind(address, error);
        let listener = tokio::net::TcpListener::bind(address).await.map_err(bind)?;
        pages.spawn(pages::serve(listener, pages::Subject::Proxy(path, told.clone())));
    }
    let (send, mut items) = mpsc::channel(MAX_ITEMS);
    let mut reflectors = JoinSet::new();
    for resource in [Services::SERVICES, Services::SLICES, NodeTable::NODES] {
        let restart = Arc::new(Notify::new());
        reflectors.spawn(reflect(client.clone(), Scope::all(resource), restart, send.clone()));
    }
    loop {
        let again = proxy.retry_at();
        let retry = async {
            match again {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some((resource, change)) = items.recv() => {
                proxy.take(resource, &change);
                while let Ok((resource, change)) = items.try_recv() {
                    proxy.take(resource, &change);
                }
                proxy.commit().await;
            }
            () = retry => proxy.commit().await,
            () = drained(&mut drain) => return Ok(()),
        }
    }
}
