//! A Deployment and its ReplicaSets, read once, and the arithmetic on them.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use knarr_reconcile::{Ctx, Event, EventKind, Plan, Row, Write};
use serde_json::Value;

use crate::finder::{REPLICA_SETS, int, text};

pub(super) const HASH: &str = "pod-template-hash";
pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
pub(super) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
pub(super) const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// Upstream's "no limit".
const NEVER: i64 = i32::MAX as i64;

pub(super) struct Deployment<'a> {
    pub(super) row: &'a Row,
    pub(super) ctx: &'a Ctx<'a>,
    pub(super) tree: Value,
    pub(super) replicas: i64,
    /// RollingUpdate; otherwise Recreate.
    pub(super) rolling: bool,
    pub(super) surge: i64,
    pub(super) unavailable: i64,
    pub(super) min_ready: i64,
    pub(super) deadline: Option<i64>,
    pub(super) history: Option<i64>,
    pub(super) paused: bool,
}

impl<'a> Deployment<'a> {
    pub(super) fn read(row: &'a Row, ctx: &'a Ctx<'a>) -> Self {
        let tree = row.tree();
        let replicas = int(&tree, "/spec/replicas").unwrap_or(1);
        let rolling = text(&tree, "/spec/strategy/type") != "Recreate";
        let bound = |field: &str, round: Round| {
            let bound = &tree["spec"]["strategy"]["rollingUpdate"][field];
            if rolling { scaled(bound, replicas, round) } else { 0 }
        };
        let surge = bound("maxSurge", Round::Up);
        let unavailable = match bound("maxUnavailable", Round::Down) {
            // Both zero would never move; validation refuses it, but percents round to it.
            0 if rolling && surge == 0 => 1,
            number => number,
        };
        let limited = |number: &i64| *number != NEVER;
        Self {
            row,
            ctx,
            replicas,
            rolling,
            surge,
            unavailable: unavailable.min(replicas),
            min_ready: int(&tree, "/spec/minReadySeconds").unwrap_or(0),
            deadline: int(&tree, "/spec/progressDeadlineSeconds").filter(limited),
            history: int(&tree, "/spec/revisionHistoryLimit").filter(limited),
            paused: tree["spec"]["paused"] == true,
            tree,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.row.key.name
    }

    pub(super) fn event(&self, kind: EventKind, reason: &'static str, message: String) -> Event {
        Event::about(self.row, "apps/v1", "Deployment", kind, reason, message)
    }

    /// What its status counts.
    pub(super) fn status(&self, field: &str) -> i64 {
        self.tree["status"][field].as_i64().unwrap_or(0)
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Round {
    Up,
    Down,
}

/// A number, or a percentage of `total`.
fn scaled(bound: &Value, total: i64, round: Round) -> i64 {
    let percent = bound.as_str().and_then(|text| text.strip_suffix('%')?.parse::<i64>().ok());
    match percent {
        Some(percent) if round == Round::Up => (percent * total + 99) / 100,
        Some(percent) => percent * total / 100,
        None => bound.as_i64().unwrap_or(0),
    }
}

/// A ReplicaSet; changes are made to the tree and written once at the end.
pub(super) struct Set<'a> {
    pub(super) row: &'a Row,
    pub(super) tree: Value,
    pub(super) replicas: i64,
    pub(super) changed: bool,
}

impl<'a> Set<'a> {
    fn read(row: &'a Row) -> Self {
        let tree = row.tree();
        let replicas = int(&tree, "/spec/replicas").unwrap_or(1);
        Self { row, tree, replicas, changed: false }
    }

    pub(super) fn name(&self) -> &str {
        &self.row.key.name
    }

    pub(super) fn status(&self, field: &str) -> i64 {
        self.tree["status"][field].as_i64().unwrap_or(0)
    }

    pub(super) fn available(&self) -> i64 {
        self.status("availableReplicas")
    }

    pub(super) fn annotation(&self, key: &str) -> Option<&str> {
        self.tree["metadata"]["annotations"][key].as_str()
    }

    pub(super) fn number(&self, key: &str) -> Option<i64> {
        self.annotation(key)?.parse::<u32>().ok().map(i64::from).filter(|n| *n <= NEVER)
    }

    pub(super) fn annotate(&mut self, key: &str, value: &str) {
        if self.annotation(key) != Some(value) {
            self.tree["metadata"]["annotations"][key] = value.into();
            self.changed = true;
        }
    }

    /// Its revision; 0 when it has none or a bad one.
    pub(super) fn revision(&self) -> i64 {
        self.annotation(REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    fn age(&self) -> (&str, &str) {
        (&self.row.facts.creation_timestamp, self.name())
    }
}

/// A Deployment's ReplicaSets at one moment.
pub(super) struct Rollout<'a> {
    pub(super) deployment: Deployment<'a>,
    /// The reference that makes the Deployment the controller of a ReplicaSet.
    pub(super) owner: Value,
    /// The one that has the Deployment's template.
    pub(super) new: Option<Set<'a>>,
    /// The others, the oldest first.
    pub(super) old: Vec<Set<'a>>,
    pub(super) events: Vec<Event>,
}

impl<'a> Rollout<'a> {
    pub(super) fn new(deployment: Deployment<'a>, rows: Vec<&'a Row>, owner: Value) -> Self {
        let mut old: Vec<Set<'a>> = rows.into_iter().map(Set::read).collect();
        old.sort_by(|a, b| a.age().cmp(&b.age()));
        let template = plain(&deployment.tree["spec"]["template"]);
        let new = old.iter().position(|set| plain(&set.tree["spec"]["template"]) == template);
        let new = new.map(|at| old.remove(at));
        Self { deployment, owner, new, old, events: Vec::new() }
    }

    pub(super) fn sets(&self) -> impl Iterator<Item = &Set<'a>> {
        self.old.iter().chain(&self.new)
    }

    pub(super) fn sum(&self, what: impl Fn(&Set<'a>) -> i64) -> i64 {
        self.sets().map(what).sum()
    }

    /// How many Pods all sets together are to have.
    pub(super) fn total(&self) -> i64 {
        self.sum(|set| set.replicas)
    }

    pub(super) fn status_sum(&self, field: &str) -> i64 {
        self.sum(|set| set.status(field))
    }

    /// Whether the status says that all Pods are new and available, and none is left over.
    pub(super) fn complete(&self, status: &Value) -> bool {
        let count = |field: &str| status[field].as_i64().unwrap_or(0);
        let all = self.deployment.replicas;
        count("updatedReplicas") == all
            && count("replicas") == all
            && count("availableReplicas") == all
            && count("observedGeneration")
                >= int(&self.deployment.tree, "/metadata/generation").unwrap_or(0)
    }

    /// Gives a set a size, and notes the Deployment's size on it.
    pub(super) fn resize(
        deployment: &Deployment<'_>,
        events: &mut Vec<Event>,
        set: &mut Set<'a>,
        to: i64,
    ) {
        let from = set.replicas;
        if from != to {
            let way = if from < to { "up" } else { "down" };
            let name = set.name();
            let message = format!("Scaled {way} replica set {name} from {from} to {to}");
            events.push(deployment.event(EventKind::Normal, "ScalingReplicaSet", message));
            set.tree["spec"]["replicas"] = to.into();
            (set.replicas, set.changed) = (to, true);
        }
        set.annotate(DESIRED, &deployment.replicas.to_string());
        set.annotate(MAX, &(deployment.replicas + deployment.surge).to_string());
    }

    /// Writes what was changed, if anything was.
    pub(super) fn changes(&mut self) -> Option<Plan> {
        let changed = self.sets().filter(|set| set.changed);
        let writes: Vec<Write> = changed
            .map(|set| Write::put_exact(REPLICA_SETS, set.row, "", set.tree.clone()))
            .collect();
        let events = core::mem::take(&mut self.events);
        (!writes.is_empty()).then(|| Plan { events, ..Plan::writes(writes) })
    }
}

/// A Pod template without the label that tells the sets apart.
fn plain(template: &Value) -> Value {
    let mut template = template.clone();
    if let Some(labels) = template.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
        labels.remove(HASH);
    }
    template
}
