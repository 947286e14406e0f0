//! Which Pods go first when there are too many: those whose loss costs least.

use alloc::string::String;
use alloc::vec::Vec;
use core::cmp::Reverse;

use jiff::Timestamp;
use serde_json::Value;

use super::Pod;
use crate::finder::{int, items, text, time};

/// The `surplus` Pods to delete. `nodes` are those of all Pods with the same purpose: Pods that
/// share a node with many of them go first.
pub(super) fn first_to_go<'a, 'b>(
    pods: Vec<&'a Pod<'b>>,
    nodes: &[&str],
    now: Timestamp,
    surplus: usize,
) -> Vec<&'a Pod<'b>> {
    if surplus >= pods.len() {
        return pods;
    }
    let crowd = |node: &str| nodes.iter().filter(|other| **other == node).count();
    let mut ranked = pods;
    ranked.sort_by_cached_key(|pod| rank(pod, crowd(&pod.row.facts.node), now));
    ranked.truncate(surplus);
    ranked
}

/// Unassigned; pending; not ready; cheap; crowded; ready for a short time; often restarted; young.
type Rank = (bool, u8, bool, i64, Reverse<usize>, i64, Reverse<(i64, i64)>, i64, String);

fn rank(pod: &Pod<'_>, crowd: usize, now: Timestamp) -> Rank {
    let tree = &pod.tree;
    let phase = match text(tree, "/status/phase") {
        "Unknown" => 1,
        "Running" => 2,
        _ => 0,
    };
    let cost = tree["metadata"]["annotations"]["controller.kubernetes.io/pod-deletion-cost"]
        .as_str()
        .and_then(|cost| cost.parse::<i32>().ok());
    let ready = pod.ready();
    (
        !pod.row.facts.node.is_empty(),
        phase,
        ready.is_some(),
        cost.unwrap_or(0).into(),
        Reverse(crowd),
        ready.map_or(0, |ready| age(text(ready, "/lastTransitionTime"), now)),
        Reverse(restarts(tree)),
        age(&pod.row.facts.creation_timestamp, now),
        pod.row.facts.uid.clone(),
    )
}

/// How long ago something was, to the nearest power of two: Pods of about the same age are equal,
/// so that not always the youngest goes. Upstream lets the uid decide as soon as two ages are
/// about equal; that is no order when some are exactly equal, so here the uid comes last.
fn age(text: &str, now: Timestamp) -> i64 {
    match time(text).map(|at| now.duration_since(at).as_nanos()) {
        None => -2,
        Some(nanos) if nanos <= 0 => -1,
        Some(nanos) => nanos.ilog2().into(),
    }
}

/// The most restarts of a container, and of a sidecar.
fn restarts(tree: &Value) -> (i64, i64) {
    let most = |list: &str, counts: &dyn Fn(&Value) -> bool| {
        let statuses = items(tree, list).filter(|status| counts(status));
        statuses.filter_map(|status| int(status, "/restartCount")).max().unwrap_or(0)
    };
    let sidecar = |status: &Value| {
        items(tree, "/spec/initContainers")
            .any(|c| c["name"] == status["name"] && c["restartPolicy"] == "Always")
    };
    (most("/status/containerStatuses", &|_| true), most("/status/initContainerStatuses", &sidecar))
}
