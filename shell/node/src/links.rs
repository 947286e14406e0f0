//! Keeps the Services that containers are told of.

use std::sync::Arc;
use std::time::Duration;

use knarr_api::Resource;
use knarr_driver::{Scope, reflect};
use knarr_podlife::services::{Services, UNREAD};
use knarr_reconcile::Change;
use knarr_typed::Pod;
use serde_json::Value;
use tokio::sync::mpsc;
use tracing::warn;

use std::collections::BTreeMap;

use crate::agent::Node;

const SERVICES: Resource = Resource::new("v1", "services");
const MAX_ITEMS: usize = 256;
/// How long a Pod waits for the first list.
const PATIENCE: Duration = Duration::from_secs(2);

/// Follows the Services for as long as the node runs.
pub(crate) async fn follow(node: Arc<Node>) {
    let (send, mut items) = mpsc::channel(MAX_ITEMS);
    let watching = reflect(node.client.clone(), Scope::all(SERVICES), Arc::default(), send);
    let taking = async {
        while let Some((_, change)) = items.recv().await {
            node.services.send_modify(|services| take(services, &change));
        }
    };
    tokio::join!(watching, taking);
}

fn take(services: &mut Services, change: &Change) {
    let read = |bytes: &[u8]| {
        let object = serde_json::from_slice::<Value>(bytes);
        object.inspect_err(|error| warn!(%error, "a Service that cannot be read")).ok()
    };
    match change {
        Change::Put(bytes, _) => read(bytes).into_iter().for_each(|object| services.put(&object)),
        Change::Deleted(bytes, _) => {
            read(bytes).into_iter().for_each(|object| services.remove(&object));
        }
        Change::Restarted => services.restarted(),
        Change::Synced(_) => services.synced(),
    }
}

/// The variables of Services for a Pod, once they are known.
pub(crate) async fn variables(
    node: &Node,
    pod: &Pod,
) -> Result<BTreeMap<String, String>, &'static str> {
    let mut services = node.services.subscribe();
    let known = tokio::time::timeout(PATIENCE, services.wait_for(Services::is_synced)).await;
    known.ok().and_then(Result::ok).map(|services| services.variables(pod)).ok_or(UNREAD)
}
