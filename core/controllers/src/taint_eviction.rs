//! Pods leave nodes whose NoExecute taints they do not tolerate, or only for a time.

use alloc::format;
use alloc::vec::Vec;
use core::time::Duration;

use jiff::{SignedDuration, Timestamp};
use knarr_api::ObjectKey;
use knarr_reconcile::{
    Controller, Ctx, Event, EventKind, Key, Patch, Plan, Row, View, Wake, Watch, Write,
};
use serde_json::{Value, json};

use crate::finder::{PODS, int, items, stamp, text, time};
use crate::node_ipam::NODES;

/// The row.
pub fn controller() -> Controller {
    Controller {
        name: "taint-eviction-controller",
        user: "system:serviceaccount:kube-system:node-controller",
        watches: Vec::from([
            Watch { resource: PODS, wake: Wake::Itself },
            Watch { resource: NODES, wake: Wake::With(|view, _, row| on(view, row)) },
        ]),
        reconcile,
    }
}

/// The Pods of a node, if it has a taint that may drive them off.
fn on(view: &View, node: &Row) -> Vec<Key> {
    if driving(&node.tree()).next().is_none() {
        return Vec::new();
    }
    let pods = view.on_node(PODS, &node.key.name);
    pods.map(|pod| Key { resource: PODS, object: pod.key.clone() }).collect()
}

fn driving(node: &Value) -> impl Iterator<Item = &Value> {
    items(node, "/spec/taints").filter(|taint| taint["effect"] == "NoExecute")
}

fn reconcile(view: &View, key: &Key, ctx: &Ctx<'_>) -> Plan {
    let Some(row) = view.get(PODS, &key.object) else { return Plan::none() };
    if row.facts.node.is_empty() || row.facts.deleting() {
        return Plan::none();
    }
    let Some(node) = view.get(NODES, &ObjectKey::new("", row.facts.node.as_str())) else {
        return Plan::none();
    };
    let (pod, node) = (row.tree(), node.tree());
    let ends = driving(&node).filter_map(|taint| leaves_at(&pod, taint, ctx));
    let Some(at) = ends.min() else { return Plan::none() };
    match Duration::try_from(at.duration_since(ctx.now)) {
        Ok(wait) if !wait.is_zero() => Plan::none().again_after(wait),
        _ => evict(row, &pod, ctx),
    }
}

/// When a Pod must leave because of a taint; `None`: never.
fn leaves_at(pod: &Value, taint: &Value, ctx: &Ctx<'_>) -> Option<Timestamp> {
    let added = time(text(taint, "/timeAdded")).unwrap_or(ctx.now);
    let mut patience = None;
    let mut tolerated = false;
    for toleration in items(pod, "/spec/tolerations").filter(|t| tolerates(t, taint)) {
        tolerated = true;
        let seconds = int(toleration, "/tolerationSeconds").map(|seconds| seconds.max(0));
        patience = [patience, seconds].into_iter().flatten().min();
    }
    match (tolerated, patience) {
        (false, _) => Some(ctx.now),
        (true, None) => None,
        (true, Some(seconds)) => added.saturating_add(SignedDuration::from_secs(seconds)).ok(),
    }
}

fn tolerates(toleration: &Value, taint: &Value) -> bool {
    let word = |key| text(toleration, key);
    let effect = word("/effect");
    let key = word("/key");
    (effect.is_empty() || effect == "NoExecute")
        && (key.is_empty() || taint["key"] == key)
        && (toleration["operator"] == "Exists"
            || (!key.is_empty() && word("/value") == text(taint, "/value")))
}

fn evict(row: &Row, pod: &Value, ctx: &Ctx<'_>) -> Plan {
    let message = format!("Marking for deletion Pod {}", row.key);
    let kind = EventKind::Normal;
    let event = Event::about(row, "v1", "Pod", kind, "TaintManagerEviction", message);
    let text = "Taint manager: deleting due to NoExecute taint";
    let marked = disruption(row, pod, "DeletionByTaintManager", text, ctx);
    let delete = Write::delete(PODS, row);
    Plan::writes([marked].into()).then([delete].into()).with_event(event)
}

/// Says on a Pod why it is being deleted.
pub(crate) fn disruption(
    row: &Row,
    pod: &Value,
    reason: &str,
    message: &str,
    ctx: &Ctx<'_>,
) -> Write {
    let mut condition = json!({"type": "DisruptionTarget", "status": "True", "reason": reason,
        "message": message, "lastTransitionTime": stamp(ctx)});
    if let Some(generation) = int(pod, "/metadata/generation") {
        condition["observedGeneration"] = generation.into();
    }
    let body = json!({"metadata": {"uid": row.facts.uid}, "status": {"conditions": [condition]}});
    let (object, kind) = (row.key.clone(), Patch::Strategic);
    Write::Patch { resource: PODS, object, subresource: "status", kind, body }
}
