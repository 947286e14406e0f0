//! ReplicaSets and ReplicationControllers: so many Pods of one template.
//!
//! One engine for both kinds; a `Form` says where they differ. Pods are created in a slow start
//! (stages of 1, 2, 4, …), so that a template which is always refused costs one request.

mod ranking;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use jiff::SignedDuration;
use knarr_api::{LabelSelector, Resource};
use knarr_reconcile::{
    Controller, Ctx, Event, EventKind, Key, Plan, Row, View, Wake, Watch, Write,
};
use serde_json::{Value, json};

use crate::claim::{Owner, finished};
use crate::finder::{
    PODS, REPLICA_SETS, REPLICATION_CONTROLLERS, count, int, items, stamp, suffix, text, time,
};

/// At most so many Pods are created or deleted at a time.
const BURST: usize = 500;

/// Where the two kinds differ.
struct Form {
    resource: Resource,
    kind: &'static str,
    selector: fn(&Value) -> Option<LabelSelector>,
}

const REPLICA_SET: Form = Form {
    resource: REPLICA_SETS,
    kind: "ReplicaSet",
    selector: |tree| LabelSelector::from_object(&tree["spec"]["selector"]),
};

const REPLICATION_CONTROLLER: Form = Form {
    resource: REPLICATION_CONTROLLERS,
    kind: "ReplicationController",
    selector: |tree| Some(LabelSelector::from_map(&tree["spec"]["selector"])),
};

/// The row for ReplicaSets.
pub fn controller() -> Controller {
    Controller {
        name: "replicaset-controller",
        user: "system:serviceaccount:kube-system:replicaset-controller",
        watches: Vec::from([
            Watch { resource: REPLICA_SETS, wake: Wake::Itself },
            Watch {
                resource: PODS,
                wake: Wake::With(|view, _, pod| keys_of_pod(&REPLICA_SET, view, pod)),
            },
        ]),
        reconcile: |view, key, ctx| reconcile(&REPLICA_SET, view, key, ctx),
    }
}

/// The row for ReplicationControllers.
pub fn replication_controller() -> Controller {
    Controller {
        name: "replication-controller",
        user: "system:serviceaccount:kube-system:replication-controller",
        watches: Vec::from([
            Watch { resource: REPLICATION_CONTROLLERS, wake: Wake::Itself },
            Watch {
                resource: PODS,
                wake: Wake::With(|view, _, pod| keys_of_pod(&REPLICATION_CONTROLLER, view, pod)),
            },
        ]),
        reconcile: |view, key, ctx| reconcile(&REPLICATION_CONTROLLER, view, key, ctx),
    }
}

/// Whom a Pod concerns: its controller, or whoever might adopt it.
fn keys_of_pod(form: &Form, view: &View, pod: &Row) -> Vec<Key> {
    if pod.facts.controller().is_some() {
        return Wake::Controller(form.resource, form.kind).keys(view, PODS, pod);
    }
    let all = view.in_namespace(form.resource, &pod.key.namespace);
    let selects = |row: &&Row| {
        (form.selector)(&row.tree())
            .is_some_and(|s| !s.is_empty() && s.matches_map(&pod.facts.labels))
    };
    let keys = all.filter(selects);
    keys.map(|row| Key { resource: form.resource, object: row.key.clone() }).collect()
}

/// A Pod as this controller sees it.
struct Pod<'a> {
    row: &'a Row,
    tree: Value,
}

impl Pod<'_> {
    fn active(&self) -> bool {
        !finished(&self.tree) && !self.row.facts.deleting()
    }

    fn terminating(&self) -> bool {
        !finished(&self.tree) && self.row.facts.deleting()
    }

    /// Since when it is ready.
    fn ready(&self) -> Option<&Value> {
        let mut conditions = items(&self.tree, "/status/conditions");
        conditions.find(|c| c["type"] == "Ready" && c["status"] == "True")
    }

    /// How long it must stay ready until it counts as available; `None` when it is not ready.
    fn available_in(&self, min_ready: i64, ctx: &Ctx<'_>) -> Option<SignedDuration> {
        let ready = self.ready()?;
        if min_ready == 0 {
            return Some(SignedDuration::ZERO);
        }
        let since = time(text(ready, "/lastTransitionTime"))?;
        let at = since.saturating_add(SignedDuration::from_secs(min_ready)).ok()?;
        Some(at.duration_since(ctx.now).max(SignedDuration::ZERO))
    }
}

fn reconcile(form: &Form, view: &View, key: &Key, ctx: &Ctx<'_>) -> Plan {
    let Some(row) = view.get(form.resource, &key.object) else { return Plan::none() };
    let tree = row.tree();
    let Some(selector) = (form.selector)(&tree) else { return Plan::none() };
    let api_version = form.resource.api_version;
    let owner = Owner { row, api_version, kind: form.kind, selector: &selector };
    let (rows, claims) = owner.claim(view, PODS, |pod| finished(&pod.tree()));
    let pods: Vec<Pod<'_>> = rows.into_iter().map(|row| Pod { row, tree: row.tree() }).collect();
    if !claims.is_empty() {
        return Plan::writes(claims);
    }
    let set = Set { form, row, tree, owner, pods, view, ctx };
    let status = set.status();
    let missing = int(&set.tree, "/spec/replicas").unwrap_or(1) - set.active().count() as i64;
    if row.facts.deleting() || missing == 0 {
        return set.later(Plan::writes(status.into_iter().collect()));
    }
    // What a refused plan left to say is said before it is tried again.
    let said =
        Plan::writes(if ctx.refused.is_some() { status } else { None }.into_iter().collect());
    match usize::try_from(missing) {
        Ok(missing) => set.create(said, missing.min(BURST)),
        Err(_) => set.delete(said, (missing.unsigned_abs() as usize).min(BURST)),
    }
}

/// One ReplicaSet at one moment.
struct Set<'a> {
    form: &'a Form,
    row: &'a Row,
    tree: Value,
    owner: Owner<'a>,
    pods: Vec<Pod<'a>>,
    view: &'a View,
    ctx: &'a Ctx<'a>,
}

impl Set<'_> {
    fn active(&self) -> impl Iterator<Item = &Pod<'_>> {
        self.pods.iter().filter(|pod| pod.active())
    }

    fn min_ready(&self) -> i64 {
        int(&self.tree, "/spec/minReadySeconds").unwrap_or(0)
    }

    fn event(&self, kind: EventKind, reason: &'static str, message: String) -> Event {
        let api_version = self.form.resource.api_version;
        Event::about(self.row, api_version, self.form.kind, kind, reason, message)
    }

    fn create(&self, mut plan: Plan, mut missing: usize) -> Plan {
        let template = &self.tree["spec"]["template"];
        let mut batch = 1;
        let mut made = 0;
        while missing > 0 {
            let writes: Vec<Write> = (0..batch.min(missing))
                .map(|_| {
                    let name = self.pod_name(made);
                    made += 1;
                    plan.events.push(self.event(
                        EventKind::Normal,
                        "SuccessfulCreate",
                        format!("Created pod: {name}"),
                    ));
                    self.pod(template, name)
                })
                .collect();
            missing -= writes.len();
            batch *= 2;
            plan = plan.then(writes);
        }
        let refusal = self.event(EventKind::Warning, "FailedCreate", "Error creating: ".into());
        plan.on_refusal = Some(refusal);
        plan
    }

    /// The prefix as upstream forms it, then five letters that depend on the seed.
    fn pod_name(&self, at: u64) -> String {
        let letters = suffix(self.ctx.seed.wrapping_add(at));
        let prefix = self.prefix();
        format!("{}{letters}", &prefix[..prefix.len().min(58)])
    }

    fn prefix(&self) -> String {
        // A longer prefix would not be a valid label, and upstream falls back to the bare name.
        format!("{}-", self.row.key.name)
    }

    fn pod(&self, template: &Value, name: String) -> Write {
        let namespace = self.row.key.namespace.clone();
        let mut metadata = json!({"name": name, "generateName": self.prefix(),
            "namespace": namespace, "ownerReferences": [self.owner.reference()]});
        for part in ["labels", "annotations", "finalizers"] {
            if let Some(value) = template["metadata"].get(part) {
                metadata[part] = value.clone();
            }
        }
        let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata,
            "spec": template["spec"]});
        Write::Create { resource: PODS, namespace, object }
    }

    fn delete(&self, mut plan: Plan, surplus: usize) -> Plan {
        let active: Vec<&Pod<'_>> = self.active().collect();
        let mut writes = Vec::new();
        for pod in ranking::first_to_go(active, &self.siblings(), self.ctx.now, surplus) {
            let message = format!("Deleted pod: {}", pod.row.key.name);
            plan.events.push(self.event(EventKind::Normal, "SuccessfulDelete", message));
            writes.push(Write::delete(PODS, pod.row));
        }
        let refusal = self.event(EventKind::Warning, "FailedDelete", "Error deleting: ".into());
        plan.on_refusal = Some(refusal);
        plan.then(writes)
    }

    /// The nodes of all active Pods of the sets that have the same controller.
    fn siblings(&self) -> Vec<&str> {
        let Some(controller) = self.row.facts.controller() else {
            return self.active().map(|pod| pod.row.facts.node.as_str()).collect();
        };
        let sets = self.view.controlled_by(self.form.resource, &controller.uid);
        let pods = sets.flat_map(|set| self.view.controlled_by(PODS, &set.facts.uid));
        let active = pods.filter(|row| !row.facts.deleting() && !finished(&row.tree()));
        active.map(|row| row.facts.node.as_str()).collect()
    }

    /// The write that brings the status up to date, if it is not.
    fn status(&self) -> Option<Write> {
        let labels = LabelSelector::from_map(&self.tree["spec"]["template"]["metadata"]["labels"]);
        let labeled = self.active().filter(|pod| labels.matches_map(&pod.row.facts.labels));
        let ready = self.active().filter(|pod| pod.ready().is_some());
        let now = Some(SignedDuration::ZERO);
        let available =
            self.active().filter(|pod| pod.available_in(self.min_ready(), self.ctx) == now);
        let terminating = self.pods.iter().filter(|pod| pod.terminating()).count();
        let mut status = json!({
            "replicas": self.active().count(),
            "fullyLabeledReplicas": count(labeled.count() as i64),
            "readyReplicas": count(ready.count() as i64),
            "availableReplicas": count(available.count() as i64),
            "observedGeneration": count(int(&self.tree, "/metadata/generation").unwrap_or(0)),
            "conditions": self.conditions(),
        });
        // ReplicationControllers do not count them (as upstream).
        if self.form.kind == "ReplicaSet" {
            status["terminatingReplicas"] = terminating.into();
        }
        Write::status(self.form.resource, self.row, &status)
    }

    /// ReplicaFailure is there as long as Pods cannot be created or deleted.
    fn conditions(&self) -> Value {
        const FAILURE: &str = "ReplicaFailure";
        let old: Vec<Value> = items(&self.tree, "/status/conditions").cloned().collect();
        let missing = int(&self.tree, "/spec/replicas").unwrap_or(1) - self.active().count() as i64;
        let mut new: Vec<Value> = old.iter().filter(|c| c["type"] != FAILURE).cloned().collect();
        if let Some(why) = self.ctx.refused
            && missing != 0
        {
            let failing = old.iter().find(|condition| condition["type"] == FAILURE);
            let reason = if missing > 0 { "FailedCreate" } else { "FailedDelete" };
            new.push(failing.cloned().unwrap_or_else(|| {
                json!({"type": FAILURE, "status": "True", "lastTransitionTime": stamp(self.ctx),
                    "reason": reason, "message": why})
            }));
        }
        if new.is_empty() { Value::Null } else { new.into() }
    }

    /// Looks again when the next Pod will have been ready for long enough.
    fn later(&self, plan: Plan) -> Plan {
        let waits = self.active().filter_map(|pod| pod.available_in(self.min_ready(), self.ctx));
        let next = waits.filter(SignedDuration::is_positive).min();
        match next.and_then(|wait| Duration::try_from(wait).ok()) {
            Some(wait) => plan.again_after(wait),
            None => plan,
        }
    }
}
