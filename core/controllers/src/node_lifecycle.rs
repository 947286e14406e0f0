//! What a node says about itself becomes taints; a node that says nothing any more is not ready.

use alloc::format;
use alloc::vec::Vec;
use core::time::Duration;

use jiff::SignedDuration;
use knarr_api::{ObjectKey, Resource};
use knarr_reconcile::{
    Controller, Ctx, Event, EventKind, Key, Patch, Plan, Row, View, Wake, Watch, Write,
};
use serde_json::{Value, json};

use crate::finder::{items, stamp, text, time};
use crate::node_ipam::NODES;

const LEASES: Resource = Resource::new("coordination.k8s.io/v1", "leases");
const LEASE_NAMESPACE: &str = "kube-node-lease";
/// How long a node may be silent (upstream's default).
const GRACE: SignedDuration = SignedDuration::from_secs(50);

/// Which status of which condition puts which taint on a node.
const TAINTS: [(&str, &str, &str); 6] = [
    ("Ready", "False", "node.kubernetes.io/not-ready"),
    ("Ready", "Unknown", "node.kubernetes.io/unreachable"),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
];
const CORDONED: &str = "node.kubernetes.io/unschedulable";

/// The row.
pub fn controller() -> Controller {
    Controller {
        name: "node-lifecycle-controller",
        user: "system:serviceaccount:kube-system:node-controller",
        watches: Vec::from([
            Watch { resource: NODES, wake: Wake::Itself },
            Watch {
                resource: LEASES,
                wake: Wake::With(|_, _, row| match row.key.namespace.as_str() {
                    LEASE_NAMESPACE => {
                        let object = ObjectKey::new("", row.key.name.as_str());
                        Vec::from([Key { resource: NODES, object }])
                    }
                    _ => Vec::new(),
                }),
            },
        ]),
        reconcile,
    }
}

fn reconcile(view: &View, key: &Key, ctx: &Ctx<'_>) -> Plan {
    let Some(row) = view.get(NODES, &key.object) else { return Plan::none() };
    let tree = row.tree();
    let left = silent_in(view, row, &tree, ctx);
    if !left.is_positive()
        && let Some(plan) = declare_unknown(row, &tree, ctx)
    {
        return plan;
    }
    let old: Vec<Value> = items(&tree, "/spec/taints").cloned().collect();
    let new = taints(&tree, &old, ctx);
    let mut plan = Plan::none();
    if new != old {
        let list = if new.is_empty() { Value::Null } else { new.into() };
        let write = Write::patch_exact(NODES, row, json!({"spec": {"taints": list}}));
        plan = plan.then([write].into());
    }
    match Duration::try_from(left) {
        Ok(left) if !left.is_zero() => plan.again_after(left),
        _ => plan,
    }
}

/// How long until the node has been silent for too long. Its lease tells, or else its status, or
/// else its age; and nobody listened before the controllers began.
fn silent_in(view: &View, row: &Row, tree: &Value, ctx: &Ctx<'_>) -> SignedDuration {
    let lease = view.get(LEASES, &ObjectKey::new(LEASE_NAMESPACE, row.key.name.as_str()));
    let renewed = lease.and_then(|lease| time(text(&lease.tree(), "/spec/renewTime")));
    let beats = items(tree, "/status/conditions");
    let beat = beats.filter_map(|condition| time(text(condition, "/lastHeartbeatTime"))).max();
    let heard = renewed.max(beat).or_else(|| time(&row.facts.creation_timestamp));
    let grace = ctx.config.node_monitor_grace_period;
    let grace = grace.and_then(|grace| grace.try_into().ok()).unwrap_or(GRACE);
    let until = heard.and_then(|heard| heard.max(ctx.since).saturating_add(grace).ok());
    until.map_or(grace, |until| until.duration_since(ctx.now))
}

/// Says of a silent node that nothing is known of it; `None` when that is said already.
fn declare_unknown(row: &Row, tree: &Value, ctx: &Ctx<'_>) -> Option<Plan> {
    let unknown = |kind: &str| {
        let old = items(tree, "/status/conditions").find(|condition| condition["type"] == kind);
        let (reason, message) = match old {
            Some(old) if old["status"] == "Unknown" => return None,
            Some(_) => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
            None => ("NodeStatusNeverUpdated", "Kubelet never posted node status."),
        };
        let created = Value::from(row.facts.creation_timestamp.as_str());
        let beat = old.map_or(created, |old| old["lastHeartbeatTime"].clone());
        Some(json!({"type": kind, "status": "Unknown", "reason": reason, "message": message,
            "lastHeartbeatTime": beat, "lastTransitionTime": stamp(ctx)}))
    };
    let kinds = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
    let conditions: Vec<Value> = kinds.into_iter().filter_map(unknown).collect();
    if conditions.is_empty() {
        return None;
    }
    let ready =
        items(tree, "/status/conditions").any(|c| c["type"] == "Ready" && c["status"] == "True");
    let body = json!({"metadata": {"uid": row.facts.uid}, "status": {"conditions": conditions}});
    let (object, kind) = (row.key.clone(), Patch::Strategic);
    let write = Write::Patch { resource: NODES, object, subresource: "status", kind, body };
    let plan = Plan::writes([write].into());
    if !ready {
        return Some(plan);
    }
    let message = format!("Node {} status is now: NodeNotReady", row.key.name);
    let kind = EventKind::Normal;
    Some(plan.with_event(Event::about(row, "v1", "Node", kind, "NodeNotReady", message)))
}

/// The taints a node is to have: those of its conditions, and all others it has.
fn taints(tree: &Value, old: &[Value], ctx: &Ctx<'_>) -> Vec<Value> {
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    let holds = |kind: &str, status: &str| {
        items(tree, "/status/conditions").any(|c| c["type"] == kind && c["status"] == status)
    };
    for (kind, _, key) in TAINTS.into_iter().filter(|(kind, status, _)| holds(kind, status)) {
        wanted.push((key, "NoSchedule"));
        if kind == "Ready" {
            wanted.push((key, "NoExecute"));
        }
    }
    if tree["spec"]["unschedulable"] == true {
        wanted.push((CORDONED, "NoSchedule"));
    }
    let is = |taint: &Value, (key, effect): (&str, &str)| {
        taint["key"] == key && taint["effect"] == effect
    };
    let ours = |taint: &Value| {
        let key = text(taint, "/key");
        let noschedule = taint["effect"] == "NoSchedule"
            && (key == CORDONED || TAINTS.iter().any(|(_, _, ours)| *ours == key));
        let noexecute =
            taint["effect"] == "NoExecute" && TAINTS[..2].iter().any(|(_, _, ours)| *ours == key);
        noschedule || noexecute
    };
    let mut new: Vec<Value> = old
        .iter()
        .filter(|taint| !ours(taint) || wanted.iter().any(|wanted| is(taint, *wanted)))
        .cloned()
        .collect();
    for (key, effect) in wanted {
        if !new.iter().any(|taint| is(taint, (key, effect))) {
            new.push(json!({"key": key, "effect": effect, "timeAdded": stamp(ctx)}));
        }
    }
    new
}
