//! Keeps the Services that containers are told of, and who is served by them.

use std::sync::Arc;
use std::time::Duration;

use knarr_api::Resource;
use knarr_driver::{Scope, reflect};
use knarr_podlife::Served;
use knarr_podlife::services::{Services, UNREAD};
use knarr_reconcile::Change;
use knarr_typed::Pod;
use serde_json::Value;
use tokio::sync::mpsc;
use tracing::warn;

use std::collections::BTreeMap;

use crate::agent::Node;
use crate::now;

const SERVICES: Resource = Resource::new("v1", "services");
const SLICES: Resource = Resource::new("discovery.k8s.io/v1", "endpointslices");
const MAX_ITEMS: usize = 256;
/// How long a Pod waits for the first list.
const PATIENCE: Duration = Duration::from_secs(2);

/// Follows Services and their endpoints for as long as the node runs.
pub(crate) async fn follow(node: Arc<Node>) {
    let (send, mut items) = mpsc::channel(MAX_ITEMS);
    let watch =
        |resource| reflect(node.client.clone(), Scope::all(resource), Arc::default(), send.clone());
    let (services, slices) = (watch(SERVICES), watch(SLICES));
    let taking = async {
        while let Some((resource, change)) = items.recv().await {
            match resource {
                SLICES => node.served.send_modify(|served| serve(served, &change)),
                _ => node.services.send_modify(|services| take(services, &change)),
            }
        }
    };
    tokio::join!(services, slices, taking);
}

fn serve(served: &mut Served, change: &Change) {
    let taken = match change {
        Change::Put(bytes, _) => served.put(bytes, now()),
        Change::Deleted(bytes, _) => served.remove(bytes, now()),
        Change::Restarted => {
            served.restarted();
            Ok(())
        }
        Change::Synced(_) => {
            served.synced(now());
            Ok(())
        }
    };
    if let Err(error) = taken {
        warn!(%error, "an EndpointSlice that cannot be read");
    }
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
