//! The way to other nodes' Pods: Nodes in, routes out, as `core/netplan` plans them.
//!
//! When this ends the routes stay: packets go on without it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use knarr_client::Client;
use knarr_driver::{Scope, reflect};
use knarr_net::{NetError, Network};
use knarr_netplan::{NodeTable, Unrouted};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

/// Watch items waiting.
const MAX_ITEMS: usize = 256;
/// After routes could not be changed.
const RETRY: Duration = Duration::from_secs(1);

/// What a node's routes are told.
#[derive(Clone, Debug)]
pub struct RoutesConfig {
    /// The node it is on.
    pub node_name: String,
    /// What tells its routes from others' on the machine.
    pub instance: String,
}

/// The routes of a node, without their watch.
struct Routes {
    config: RoutesConfig,
    network: Network,
    nodes: NodeTable,
    unrouted: BTreeSet<Unrouted>,
    /// Whether the kernel has the routes as they are.
    done: bool,
}

/// Waits until everybody is to finish.
async fn drained(drain: &mut watch::Receiver<bool>) {
    drain.wait_for(|drain| *drain).await.ok();
}

/// Keeps a node's routes until `drain` says so.
///
/// # Errors
/// [`NetError`], at the start only.
pub async fn run(
    config: RoutesConfig,
    client: Client,
    mut drain: watch::Receiver<bool>,
) -> Result<(), NetError> {
    let (send, mut items) = mpsc::channel(MAX_ITEMS);
    let mut reflectors = JoinSet::new();
    reflectors.spawn(reflect(client, Scope::all(NodeTable::NODES), Arc::default(), send));
    let mut routes = Routes {
        config,
        network: Network::open()?,
        nodes: NodeTable::default(),
        unrouted: BTreeSet::new(),
        done: false,
    };
    loop {
        let waits = routes.nodes.is_synced() && !routes.done;
        tokio::select! {
            Some((_, change)) = items.recv() => {
                match routes.nodes.apply(&change) {
                    Ok(any) => routes.done &= !any,
                    Err(error) => warn!(%error, "a Node cannot be read and is left out"),
                }
                if items.is_empty() {
                    routes.commit().await;
                }
            }
            () = tokio::time::sleep(RETRY), if waits => routes.commit().await,
            () = drained(&mut drain) => return Ok(()),
        }
    }
}

impl Routes {
    /// Carries out what has come in, once everything there is has been told.
    async fn commit(&mut self) {
        if self.done || !self.nodes.is_synced() {
            return;
        }
        match self.sync().await {
            Ok(()) => self.done = true,
            Err(error) => warn!(%error, "routes to other nodes could not be changed"),
        }
    }

    async fn sync(&mut self) -> Result<(), NetError> {
        let links = self.network.neighbourhoods().await?;
        let plan = self.nodes.routes(&self.config.node_name, &links);
        for unrouted in plan.unrouted.difference(&self.unrouted) {
            warn!("no route to {unrouted}");
        }
        self.unrouted = plan.unrouted;
        let done = self.network.set_pod_routes(&self.config.instance, &plan.routes).await?;
        if done.added + done.removed > 0 {
            info!(added = done.added, removed = done.removed, "routes to other nodes' Pods");
        }
        Ok(())
    }
}
