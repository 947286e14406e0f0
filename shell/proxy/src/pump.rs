//! What has come in, into the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use knarr_api::Resource;
use knarr_net::{Conntrack, NetfilterError, Table};
use knarr_netplan::{Config, Key, LocalEndpoints, NodeTable, Protocol, Rules, Services, stale};
use knarr_reconcile::Change;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tracing::{info, warn};

use crate::ProxyConfig;
use crate::pages::{self, Told};

/// After a failed commit.
const RETRY: Duration = Duration::from_secs(1);

/// A port where a load balancer asks for a Service's local endpoints.
struct HealthPort {
    send: watch::Sender<LocalEndpoints>,
    server: AbortHandle,
}

impl Drop for HealthPort {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// A node's proxy, without its watches.
pub struct Proxy {
    node: String,
    services: Services,
    nodes: NodeTable,
    rules: Rules,
    table: Table,
    conntrack: Conntrack,
    changed: BTreeSet<Key>,
    nodes_changed: bool,
    /// Whether the kernel has the rules as they are.
    loaded: bool,
    retry: Option<tokio::time::Instant>,
    health: BTreeMap<u16, HealthPort>,
    health_ports: BTreeMap<Key, u16>,
    told: Arc<Told>,
}

impl Proxy {
    /// A proxy in the calling thread's network namespace; nothing is changed yet.
    ///
    /// # Errors
    /// Where netfilter cannot be used.
    pub fn open(config: &ProxyConfig) -> Result<Self, NetfilterError> {
        Ok(Self {
            node: config.node_name.clone(),
            services: Services::default(),
            nodes: NodeTable::default(),
            rules: Rules::new(Config {
                cluster_cidrs: config.cluster_cidrs.clone(),
                node_port_addresses: config.node_port_addresses.clone(),
            }),
            table: Table::open(&config.instance)?,
            conntrack: Conntrack::open()?,
            changed: BTreeSet::new(),
            nodes_changed: false,
            loaded: false,
            retry: None,
            health: BTreeMap::new(),
            health_ports: BTreeMap::new(),
            told: Arc::default(),
        })
    }

    /// What it tells about itself.
    pub(crate) fn told(&self) -> Arc<Told> {
        self.told.clone()
    }

    /// When to commit again although nothing comes in.
    pub(crate) fn retry_at(&self) -> Option<tokio::time::Instant> {
        self.retry
    }

    /// Takes a watch item in.
    pub fn take(&mut self, resource: Resource, change: &Change) {
        let taken = match resource {
            NodeTable::NODES => self.nodes.apply(change).map(|any| self.nodes_changed |= any),
            _ => {
                self.told.count_change(resource == Services::SERVICES);
                self.services.apply(resource, change).map(|keys| self.changed.extend(keys))
            }
        };
        if let Err(error) = taken {
            warn!(%resource, %error, "an object cannot be read and is left out");
        }
    }

    /// Commits what has come in, once everything there is has been told.
    pub async fn commit(&mut self) {
        if !self.services.is_synced() || !self.nodes.is_synced() {
            return;
        }
        let began = Instant::now();
        match self.sync() {
            Ok(false) => {}
            Ok(true) => {
                self.told.synced(began.elapsed());
                let changed = std::mem::take(&mut self.changed);
                self.forget_flows(&changed);
                self.tell_balancers(&changed).await;
            }
            Err(error) => {
                warn!(%error, "packet rules could not be changed; they will be loaded anew");
                self.told.failed();
                self.loaded = false;
                self.retry = Some(tokio::time::Instant::now() + RETRY);
            }
        }
    }

    /// Plans and carries out; whether there was something to do.
    fn sync(&mut self) -> Result<bool, NetfilterError> {
        if self.loaded && self.changed.is_empty() && !self.nodes_changed {
            return Ok(false);
        }
        let nodes =
            std::mem::take(&mut self.nodes_changed).then(|| self.nodes.seen_from(&self.node));
        if !self.loaded {
            self.rules.learn(nodes, &self.services, &self.changed);
            self.table.replace(&self.rules.everything())?;
            info!(services = self.services.iter().count(), "packet rules are loaded");
            self.loaded = true;
            self.retry = None;
            return Ok(true);
        }
        if let Some(nodes) = nodes {
            self.table.change(&self.rules.set_nodes(nodes, &self.services))?;
        }
        self.table.change(&self.rules.plan(&self.services, &self.changed))?;
        Ok(true)
    }

    /// Forgets UDP flows that lead nowhere.
    fn forget_flows(&mut self, changed: &BTreeSet<Key>) {
        let udp = |key: &&Key| {
            let ports = self.services.get(key).into_iter().flat_map(|service| &service.ports);
            ports.into_iter().any(|port| port.protocol == Protocol::Udp)
        };
        let changed: Vec<&Key> = changed.iter().filter(udp).collect();
        if changed.is_empty() {
            return;
        }
        let forgotten = self.conntrack.flows().and_then(|flows| {
            let stale = stale(&self.services, changed, flows);
            stale.iter().try_for_each(|flow| self.conntrack.forget(flow))
        });
        if let Err(error) = forgotten {
            warn!(%error, "tracked UDP flows could not be cleaned");
        }
    }

    /// Keeps a port open for every Service whose load balancer asks, with a fresh answer.
    async fn tell_balancers(&mut self, changed: &BTreeSet<Key>) {
        for key in changed {
            let now = LocalEndpoints::of(&self.services, key, &self.node);
            let port = now.as_ref().map(|(port, _)| *port);
            if let Some(old) = self.health_ports.remove(key).filter(|old| Some(*old) != port) {
                self.health.remove(&old);
            }
            let Some((port, local)) = now else { continue };
            self.health_ports.insert(key.clone(), port);
            match self.health.get(&port) {
                Some(open) => drop(open.send.send_replace(local)),
                None => self.open_health(port, local).await,
            }
        }
    }

    async fn open_health(&mut self, port: u16, local: LocalEndpoints) {
        let all = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let listener = match TcpListener::bind(all).await {
            // A machine may be without IPv6.
            Err(_) => TcpListener::bind(("0.0.0.0", port)).await,
            bound => bound,
        };
        match listener {
            Ok(listener) => {
                let (send, receive) = watch::channel(local);
                let server = pages::serve(listener, pages::Subject::Service(receive));
                let server = tokio::spawn(server).abort_handle();
                self.health.insert(port, HealthPort { send, server });
            }
            Err(error) => warn!(port, %error, "a health check port could not be opened"),
        }
    }
}
