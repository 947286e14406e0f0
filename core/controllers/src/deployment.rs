//! Deployments: ReplicaSets come and go so that Pods follow the template.
//!
//! A run does the first thing that is to be done (claim, record revisions, scale, create) and
//! nothing else; the engine runs the key again on a view that shows it. Only when nothing is left
//! to do is the status written. So no step ever sees half of another.

mod model;
mod progress;
mod revision;
mod rollout;

use alloc::vec::Vec;

use knarr_api::{LabelSelector, ObjectKey};
use knarr_reconcile::{Controller, Ctx, EventKind, Key, Plan, Row, View, Wake, Watch, Write};
use serde_json::json;

use crate::claim::{Owner, finished};
use crate::finder::{DEPLOYMENTS, PODS, REPLICA_SETS, int, text};
use model::{Deployment, Rollout};

/// The row.
pub fn controller() -> Controller {
    Controller {
        name: "deployment-controller",
        user: "system:serviceaccount:kube-system:deployment-controller",
        watches: Vec::from([
            Watch { resource: DEPLOYMENTS, wake: Wake::Itself },
            Watch { resource: REPLICA_SETS, wake: Wake::With(|view, _, row| of_set(view, row)) },
            Watch { resource: PODS, wake: Wake::With(|view, _, row| of_pod(view, row)) },
        ]),
        reconcile,
    }
}

/// Whom a ReplicaSet concerns: its Deployment, or whichever might adopt it.
fn of_set(view: &View, set: &Row) -> Vec<Key> {
    if set.facts.controller().is_some() {
        return Wake::Controller(DEPLOYMENTS, "Deployment").keys(view, REPLICA_SETS, set);
    }
    let all = view.in_namespace(DEPLOYMENTS, &set.key.namespace);
    let selects = |row: &&Row| {
        LabelSelector::from_object(&row.tree()["spec"]["selector"])
            .is_some_and(|s| !s.is_empty() && s.matches_map(&set.facts.labels))
    };
    let keys = all.filter(selects);
    keys.map(|row| Key { resource: DEPLOYMENTS, object: row.key.clone() }).collect()
}

/// A Deployment that recreates waits for old Pods to go; no other looks at Pods.
fn of_pod(view: &View, pod: &Row) -> Vec<Key> {
    let gone = view.get(PODS, &pod.key).is_none_or(|live| live.facts.uid != pod.facts.uid);
    let Some(owner) = pod.facts.controller().filter(|owner| owner.kind == "ReplicaSet") else {
        return Vec::new();
    };
    if !gone && !finished(&pod.tree()) {
        return Vec::new();
    }
    let set = view.get(REPLICA_SETS, &ObjectKey::new(&*pod.key.namespace, &*owner.name));
    let mut keys = set.map(|set| of_set(view, set)).unwrap_or_default();
    keys.retain(|key| {
        let row = view.get(DEPLOYMENTS, &key.object);
        row.is_some_and(|row| text(&row.tree(), "/spec/strategy/type") == "Recreate")
    });
    keys
}

fn reconcile(view: &View, key: &Key, ctx: &Ctx<'_>) -> Plan {
    let Some(row) = view.get(DEPLOYMENTS, &key.object) else { return Plan::none() };
    let deployment = Deployment::read(row, ctx);
    let Some(selector) = LabelSelector::from_object(&deployment.tree["spec"]["selector"]) else {
        return Plan::none();
    };
    if selector.is_empty() {
        return selects_all(&deployment);
    }
    let owner = Owner { row, api_version: "apps/v1", kind: "Deployment", selector: &selector };
    let (rows, claims) = owner.claim(view, REPLICA_SETS, |_| false);
    if !claims.is_empty() {
        return Plan::writes(claims);
    }
    let mut rollout = Rollout::new(deployment, rows, owner.reference());
    if row.facts.deleting() {
        return rollout.plain_status();
    }
    if let Some(plan) = rollout.paused_condition().or_else(|| rollout.record_revision()) {
        return plan;
    }
    if rollout.deployment.paused || rollout.is_scaling_event() {
        return rollout.scale();
    }
    match rollout.deployment.rolling {
        true => rollout.roll(view),
        false => rollout.recreate(view),
    }
}

/// A Deployment of everything would fight all others; validation refuses new ones.
fn selects_all(deployment: &Deployment<'_>) -> Plan {
    let generation = int(&deployment.tree, "/metadata/generation");
    let status = json!({"observedGeneration": generation});
    let Some(write) = Write::status(DEPLOYMENTS, deployment.row, &status) else {
        return Plan::none();
    };
    let message = "This deployment is selecting all pods. A non-empty selector is required.";
    let event = deployment.event(EventKind::Warning, "SelectingAll", message.into());
    Plan::writes([write].into()).with_event(event)
}
