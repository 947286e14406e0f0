//! The status: counts, whether there are Pods enough, and whether the rollout gets on.

use alloc::format;
use alloc::vec::Vec;
use core::time::Duration;

use jiff::SignedDuration;
use knarr_reconcile::{Plan, Write};
use serde_json::{Value, json};

use super::model::Rollout;
use super::rollout::failure;
use crate::conditions;
use crate::finder::{DEPLOYMENTS, count, int, text, time};

const PROGRESSING: &str = "Progressing";
const DONE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";

impl Rollout<'_> {
    /// Whether pausing or resuming is to be noted: time while paused is no lack of progress.
    pub(super) fn paused_condition(&self) -> Option<Plan> {
        self.deployment.deadline?;
        let mut all = self.conditions();
        let reason = conditions::find(&all, PROGRESSING).map(|c| text(c, "/reason"));
        let (reason, message) = match (reason, self.deployment.paused) {
            (Some(TIMED_OUT), _) => return None,
            (Some("DeploymentPaused"), false) => ("DeploymentResumed", "Deployment is resumed"),
            (Some("DeploymentPaused"), true) | (_, false) => return None,
            (_, true) => ("DeploymentPaused", "Deployment is paused"),
        };
        let ctx = self.deployment.ctx;
        conditions::set(&mut all, conditions::new(ctx, PROGRESSING, "Unknown", reason, message));
        self.write_conditions(all)
    }

    /// The counts as upstream has them: zeros are left out.
    fn counts(&self) -> Value {
        let available = self.status_sum("availableReplicas");
        let unavailable = (self.total() - available).max(0);
        let updated = self.new.as_ref().map_or(0, |set| set.status("replicas"));
        json!({
            "observedGeneration":
                count(int(&self.deployment.tree, "/metadata/generation").unwrap_or(0)),
            "replicas": count(self.status_sum("replicas")),
            "updatedReplicas": count(updated),
            "readyReplicas": count(self.status_sum("readyReplicas")),
            "availableReplicas": count(available),
            "unavailableReplicas": count(unavailable),
            "terminatingReplicas": self.terminating(),
        })
    }

    /// Pods on their way out; unknown as long as a set does not say.
    fn terminating(&self) -> Value {
        let unsaid = |set: &super::model::Set<'_>| {
            set.tree["status"]["terminatingReplicas"].is_null()
                && set.status("observedGeneration") != 0
        };
        match self.sets().any(unsaid) {
            true => Value::Null,
            false => self.status_sum("terminatingReplicas").into(),
        }
    }

    fn availability(&self, all: &mut Vec<Value>) {
        let enough = self.deployment.replicas - self.deployment.unavailable;
        let (status, reason, message) = match self.status_sum("availableReplicas") >= enough {
            true => ("True", "MinimumReplicasAvailable", "Deployment has minimum availability."),
            false => (
                "False",
                "MinimumReplicasUnavailable",
                "Deployment does not have minimum availability.",
            ),
        };
        let ctx = self.deployment.ctx;
        conditions::set(all, conditions::new(ctx, "Available", status, reason, message));
    }

    /// The status without a judgement of progress (paused, scaling, on its way out).
    pub(super) fn plain_status(&self) -> Plan {
        let mut all = self.conditions();
        self.availability(&mut all);
        self.write(self.counts(), all)
    }

    fn write(&self, mut status: Value, all: Vec<Value>) -> Plan {
        status["conditions"] = all.into();
        let write = Write::status(DEPLOYMENTS, self.deployment.row, &status);
        Plan::writes(write.into_iter().collect())
    }

    /// The status with a judgement of progress.
    pub(super) fn rollout_status(&self) -> Plan {
        let counts = self.counts();
        let mut all = self.conditions();
        self.availability(&mut all);
        if self.deployment.deadline.is_none() {
            conditions::remove(&mut all, PROGRESSING);
        } else if !self.completed_before(&counts) {
            self.judge(&counts, &mut all);
        }
        match self.new.iter().chain(&self.old).find_map(failure) {
            Some(mut failure) => {
                failure["lastUpdateTime"] = failure["lastTransitionTime"].clone();
                conditions::set(&mut all, failure);
            }
            None => conditions::remove(&mut all, "ReplicaFailure"),
        }
        let complete = self.complete(&counts);
        let plan = self.write(counts, all);
        match self.deadline_in().filter(|_| !complete) {
            Some(wait) => plan.again_after(wait),
            None => plan,
        }
    }

    /// Whether the rollout was found complete already and nothing old is there.
    fn completed_before(&self, counts: &Value) -> bool {
        let conditions = self.conditions();
        let done = conditions::find(&conditions, PROGRESSING).is_some_and(|c| c["reason"] == DONE);
        done && counts["replicas"] == counts["updatedReplicas"]
    }

    fn judge(&self, counts: &Value, all: &mut Vec<Value>) {
        let ctx = self.deployment.ctx;
        let subject = match &self.new {
            Some(set) => format!("ReplicaSet \"{}\"", set.name()),
            None => format!("Deployment \"{}\"", self.deployment.name()),
        };
        let condition = |status, reason, message: &str| {
            conditions::new(ctx, PROGRESSING, status, reason, &format!("{subject} {message}"))
        };
        if self.complete(counts) {
            conditions::set(all, condition("True", DONE, "has successfully progressed."));
        } else if self.progressed(counts) {
            let mut new = condition("True", "ReplicaSetUpdated", "is progressing.");
            // Progress is news even when it was made before: the clock starts again.
            if let Some(old) = conditions::find(all, PROGRESSING)
                && old["status"] == "True"
            {
                new["lastTransitionTime"] = old["lastTransitionTime"].clone();
            }
            conditions::remove(all, PROGRESSING);
            all.push(new);
        } else if self.timed_out(all) {
            conditions::set(all, condition("False", TIMED_OUT, "has timed out progressing."));
        }
    }

    /// Whether there are more new, fewer old, more ready or more available Pods than before.
    fn progressed(&self, counts: &Value) -> bool {
        let before = |field: &str| self.deployment.status(field);
        let after = |field: &str| counts[field].as_i64().unwrap_or(0);
        let more = |field: &str| after(field) > before(field);
        more("updatedReplicas")
            || more("readyReplicas")
            || more("availableReplicas")
            || after("replicas") - after("updatedReplicas")
                < before("replicas") - before("updatedReplicas")
    }

    fn timed_out(&self, all: &[Value]) -> bool {
        let reason = conditions::find(all, PROGRESSING).map(|c| text(c, "/reason"));
        match reason {
            // What is done, or late already, cannot get late.
            None | Some(DONE | TIMED_OUT) => false,
            Some(_) => self.left(all).is_some_and(|left| left.is_negative()),
        }
    }

    /// How long until the rollout counts as stuck.
    fn left(&self, all: &[Value]) -> Option<SignedDuration> {
        let since = time(text(conditions::find(all, PROGRESSING)?, "/lastUpdateTime"))?;
        let deadline = SignedDuration::from_secs(self.deployment.deadline?);
        Some(since.saturating_add(deadline).ok()?.duration_since(self.deployment.ctx.now))
    }

    /// When to look whether the rollout is stuck.
    fn deadline_in(&self) -> Option<Duration> {
        let all = self.conditions();
        let condition = conditions::find(&all, PROGRESSING)?;
        if condition["reason"] == TIMED_OUT {
            return None;
        }
        let left = self.left(&all)?.max(SignedDuration::ZERO);
        Duration::try_from(left).ok().map(|left| left + Duration::from_secs(1))
    }
}
