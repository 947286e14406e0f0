//! The DNS of a node: the cluster's names from memory, the rest from the node's own resolvers.
//!
//! It answers at the cluster's DNS address on every node, which is an address of the node itself:
//! no packet to it is translated, and no question leaves the node for a name of the cluster.

mod forward;
mod resolvers;
mod server;
mod tcp;

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use knarr_api::Resource;
use knarr_api::ip::Cidr;
use knarr_client::Client;
use knarr_dns_zone::{Clients, Zone};
use knarr_driver::{Scope, reflect};
use knarr_net::{NetError, Network};
use knarr_netplan::Services;
use knarr_reconcile::Change;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

pub use forward::Forwarder;
pub use resolvers::{Resolvers, StubDomain};
pub use server::{Answerer, Counters, serve};

/// Watch items waiting for the zone.
const MAX_ITEMS: usize = 1024;
const PODS: Resource = Resource::new("v1", "pods");

/// What a node's DNS is told.
#[derive(Clone, Debug)]
pub struct DnsConfig {
    /// Where it answers: the cluster IPs of the Service `kube-dns`.
    pub addresses: Vec<IpAddr>,
    /// The port there.
    pub port: u16,
    /// The link that holds the addresses; none when they are there already.
    pub link: Option<String>,
    /// The cluster's domain.
    pub domain: String,
    /// The cluster's own addresses: their reverse names are answered here.
    pub ranges: Vec<Cidr>,
    /// Where the node's own resolvers are named (`resolv.conf`).
    pub resolv_conf: PathBuf,
    /// Domains that other servers know.
    pub stub_domains: Vec<StubDomain>,
    /// The node whose Pods' search paths are walked for them; empty for none.
    pub node: String,
}

/// Why a node's DNS cannot work.
#[derive(Debug)]
pub enum DnsError {
    /// Its address cannot be had.
    Link(NetError),
    /// It cannot listen there.
    Listen(IpAddr, u16, std::io::Error),
}

impl std::error::Error for DnsError {}

impl fmt::Display for DnsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(error) => write!(f, "the cluster's DNS address: {error}"),
            Self::Listen(address, port, error) => write!(
                f,
                "cannot answer DNS at {address} port {port}: {error} (is another cluster with the \
                 same --service-cluster-ip-range on this machine?)"
            ),
        }
    }
}

/// What is known, shared by all that answer.
#[derive(Debug)]
pub struct Known {
    /// The cluster's names.
    pub zone: Zone,
    /// This node's Pods.
    pub clients: Clients,
}

/// Runs a node's DNS until `drain` says so.
///
/// # Errors
/// [`DnsError`] when it cannot begin.
pub async fn run(
    config: DnsConfig,
    client: Client,
    mut drain: watch::Receiver<bool>,
) -> Result<(), DnsError> {
    let zone = Zone::new(&config.domain, config.ranges.clone());
    let known = Arc::new(RwLock::new(Known { zone, clients: Clients::default() }));
    let (send, items) = mpsc::channel(MAX_ITEMS);
    let mut tasks = JoinSet::new();
    for resource in [Services::SERVICES, Services::SLICES] {
        let scope = Scope::all(resource);
        tasks.spawn(reflect(client.clone(), scope, Arc::default(), send.clone()));
    }
    if !config.node.is_empty() {
        let fields = format!("spec.nodeName%3D{}", config.node);
        let scope = Scope { resource: PODS, fields };
        tasks.spawn(reflect(client.clone(), scope, Arc::default(), send));
    }
    let (synced, mut ready) = watch::channel(false);
    tasks.spawn(learn(known.clone(), items, synced));
    tokio::select! {
        // Nobody is told "no such name" because it has not been heard of yet.
        _ = ready.wait_for(|ready| *ready) => {}
        _ = drain.wait_for(|drain| *drain) => return Ok(()),
    }
    if let Some(link) = &config.link {
        let network = Network::open().map_err(DnsError::Link)?;
        network.anchor(link, &config.addresses).await.map_err(DnsError::Link)?;
    }
    let resolvers = Resolvers::new(&config);
    let answerer = Arc::new(Answerer::new(known, Forwarder::new(resolvers)));
    for address in &config.addresses {
        serve(&answerer, (*address, config.port).into(), &mut tasks)
            .map_err(|error| DnsError::Listen(*address, config.port, error))?;
    }
    info!(addresses = ?config.addresses, "DNS answers");
    drain.wait_for(|drain| *drain).await.ok();
    Ok(())
}

/// Brings what is known up to date.
async fn learn(
    known: Arc<RwLock<Known>>,
    mut items: mpsc::Receiver<(Resource, Change)>,
    synced: watch::Sender<bool>,
) {
    while let Some((resource, change)) = items.recv().await {
        let mut known = known.write().unwrap_or_else(PoisonError::into_inner);
        let applied = match resource {
            PODS => known.clients.apply(&change),
            resource => known.zone.apply(resource, &change),
        };
        if let Err(error) = applied {
            warn!(%resource, %error, "an object that DNS cannot read");
        }
        if known.zone.is_synced() && !*synced.borrow() {
            synced.send_replace(true);
        }
    }
}
