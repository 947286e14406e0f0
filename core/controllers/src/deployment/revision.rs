//! Revisions: each template that was rolled out has a number, and a ReplicaSet named by its hash.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use knarr_api::ObjectKey;
use knarr_reconcile::{EventKind, Plan, View, Write};
use serde_json::{Value, json};

use super::model::{DESIRED, HASH, MAX, REVISION, Rollout, Set};
use crate::conditions;
use crate::finder::{DEPLOYMENTS, REPLICA_SETS, items, safe_encode};

const HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// How long the list of former revisions may get, in characters.
const MAX_HISTORY: usize = 2000;
/// Annotations of a Deployment that are its own.
const OWN: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];

impl Rollout<'_> {
    fn next_revision(&self) -> i64 {
        self.old.iter().map(Set::revision).max().unwrap_or(0) + 1
    }

    /// The Deployment's annotations that its sets get too.
    fn passed_on(&self) -> Vec<(String, String)> {
        let annotations = self.deployment.tree["metadata"]["annotations"].as_object();
        let passed = annotations.into_iter().flatten().filter(|(key, _)| !OWN.contains(&&***key));
        passed.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
    }

    /// Brings the new set's annotations and the Deployment's revision up to date.
    pub(super) fn record_revision(&mut self) -> Option<Plan> {
        let (next, passed) = (self.next_revision(), self.passed_on());
        let set = self.new.as_mut()?;
        for (key, value) in &passed {
            set.annotate(key, value);
        }
        renumber(set, next);
        let min_ready = self.deployment.min_ready;
        if set.tree["spec"]["minReadySeconds"].as_i64().unwrap_or(0) != min_ready {
            set.tree["spec"]["minReadySeconds"] = min_ready.into();
            set.changed = true;
        }
        let revision = set.annotation(REVISION).unwrap_or_default().to_owned();
        let message = format!("Found new replica set \"{}\"", set.name());
        if let Some(plan) = self.changes() {
            return Some(plan);
        }
        let mut tree = self.deployment.tree.clone();
        if tree["metadata"]["annotations"][REVISION] != revision.as_str() {
            tree["metadata"]["annotations"][REVISION] = revision.into();
            let write = Write::put_exact(DEPLOYMENTS, self.deployment.row, "", tree);
            return Some(Plan::writes([write].into()));
        }
        let mut conditions = self.conditions();
        if self.deployment.deadline.is_none()
            || conditions::find(&conditions, "Progressing").is_some()
        {
            return None;
        }
        let ctx = self.deployment.ctx;
        conditions.push(conditions::new(
            ctx,
            "Progressing",
            "True",
            "FoundNewReplicaSet",
            &message,
        ));
        self.write_conditions(conditions)
    }

    pub(super) fn conditions(&self) -> Vec<Value> {
        items(&self.deployment.tree, "/status/conditions").cloned().collect()
    }

    pub(super) fn write_conditions(&self, conditions: Vec<Value>) -> Option<Plan> {
        let status = json!({"conditions": conditions});
        let write = Write::status(DEPLOYMENTS, self.deployment.row, &status);
        write.map(|write| Plan::writes([write].into()))
    }

    /// Makes the set for a template that has none yet.
    pub(super) fn create(&self, view: &View) -> Plan {
        let deployment = &self.deployment;
        let template = &deployment.tree["spec"]["template"];
        let collisions = deployment.tree["status"]["collisionCount"].as_i64();
        let hash = hash(template, collisions);
        let longest = 253 - 1 - hash.len();
        let base = deployment.name();
        let name = format!("{}-{hash}", &base[..base.len().min(longest)]);
        let namespace = deployment.row.key.namespace.clone();
        if view.get(REPLICA_SETS, &ObjectKey::new(&*namespace, &*name)).is_some() {
            // Another template has this hash: count on, and the next hash will differ.
            let status = json!({"collisionCount": collisions.unwrap_or(0) + 1});
            let write = Write::status(DEPLOYMENTS, deployment.row, &status);
            return Plan::writes(write.into_iter().collect());
        }
        let replicas = self.new_size(0);
        let object = self.new_set(&name, &hash, replicas);
        let failure = format!("Failed to create new replica set \"{name}\": ");
        let create = [Write::Create { resource: REPLICA_SETS, namespace, object }].into();
        let mut plan = match deployment.ctx.refused {
            Some(why) => {
                let why = format!("{failure}{why}");
                let said = self.progressing("False", "ReplicaSetCreateError", &why);
                Plan::none().then(said).then(create)
            }
            None => {
                let made = format!("Created new replica set \"{name}\"");
                let said = self.progressing("True", "NewReplicaSetCreated", &made);
                Plan::none().then(create).then(said)
            }
        };
        plan.on_refusal =
            Some(deployment.event(EventKind::Warning, "ReplicaSetCreateError", failure));
        if replicas > 0 {
            let message = format!("Scaled up replica set {name} from 0 to {replicas}");
            let event = deployment.event(EventKind::Normal, "ScalingReplicaSet", message);
            plan = plan.with_event(event);
        }
        plan
    }

    fn progressing(&self, status: &str, reason: &str, message: &str) -> Vec<Write> {
        if self.deployment.deadline.is_none() {
            return Vec::new();
        }
        let mut all = self.conditions();
        let condition =
            conditions::new(self.deployment.ctx, "Progressing", status, reason, message);
        conditions::set(&mut all, condition);
        let status = json!({"conditions": all});
        Write::status(DEPLOYMENTS, self.deployment.row, &status).into_iter().collect()
    }

    fn new_set(&self, name: &str, hash: &str, replicas: i64) -> Value {
        let deployment = &self.deployment;
        let mut template = deployment.tree["spec"]["template"].clone();
        template["metadata"]["labels"][HASH] = hash.into();
        let mut selector = deployment.tree["spec"]["selector"].clone();
        selector["matchLabels"][HASH] = hash.into();
        let mut annotations = json!({
            REVISION: self.next_revision().to_string(),
            DESIRED: deployment.replicas.to_string(),
            MAX: (deployment.replicas + deployment.surge).to_string(),
        });
        for (key, value) in self.passed_on() {
            annotations[key] = value.into();
        }
        let metadata = json!({"name": name, "namespace": deployment.row.key.namespace,
            "labels": template["metadata"]["labels"], "annotations": annotations,
            "ownerReferences": [self.owner]});
        let mut spec = json!({"replicas": replicas, "selector": selector, "template": template});
        if deployment.min_ready > 0 {
            spec["minReadySeconds"] = deployment.min_ready.into();
        }
        json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": metadata, "spec": spec})
    }
}

/// Gives a set the newest revision, and remembers the one it had: it was rolled back to.
fn renumber(set: &mut Set<'_>, next: i64) {
    let old = set.annotation(REVISION).unwrap_or_default().to_owned();
    let number = if old.is_empty() { Some(0) } else { old.parse::<i64>().ok() };
    if number.is_none_or(|number| number >= next) {
        return;
    }
    set.annotate(REVISION, &next.to_string());
    if old.is_empty() {
        return;
    }
    let history = set.annotation(HISTORY).unwrap_or_default().to_owned();
    let mut revisions: Vec<&str> = history.split(',').filter(|entry| !entry.is_empty()).collect();
    revisions.push(&old);
    let mut joined = revisions.join(",");
    while joined.len() > MAX_HISTORY && revisions.len() > 1 {
        revisions.remove(0);
        joined = revisions.join(",");
    }
    set.annotate(HISTORY, &joined);
}

/// A name for a template: FNV-1a of its JSON and of how often that name was taken already.
fn hash(template: &Value, collisions: Option<i64>) -> String {
    let mut text = template.to_string();
    if let Some(collisions) = collisions {
        text.push_str(&collisions.to_string());
    }
    let step = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    safe_encode(text.bytes().fold(0x811C_9DC5, step))
}
