//! Which set gets how many Pods: rolling, recreating, and scaling in the middle of either.

use alloc::vec::Vec;

use knarr_reconcile::{Plan, View, Write};
use serde_json::Value;

use super::model::{DESIRED, MAX, Rollout, Set};
use crate::claim::finished;
use crate::finder::{PODS, REPLICA_SETS, int};

impl<'a> Rollout<'a> {
    /// Old Pods give way to new ones step by step.
    pub(super) fn roll(mut self, view: &View) -> Plan {
        let Some(new) = &self.new else { return self.create(view) };
        let size = match new.replicas {
            size if size >= self.deployment.replicas => self.deployment.replicas,
            size => self.new_size(size),
        };
        self.resize_new(size);
        if let Some(plan) = self.changes() {
            return plan;
        }
        self.shrink_old();
        self.changes().unwrap_or_else(|| self.finish())
    }

    /// All old Pods go before the first new one comes.
    pub(super) fn recreate(mut self, view: &View) -> Plan {
        for at in 0..self.old.len() {
            if self.old[at].replicas > 0 {
                self.resize_old(at, 0);
            }
        }
        if let Some(plan) = self.changes() {
            return plan;
        }
        if self.old_pods_run(view) {
            return self.rollout_status();
        }
        if self.new.is_none() {
            return self.create(view);
        }
        self.resize_new(self.deployment.replicas);
        self.changes().unwrap_or_else(|| self.finish())
    }

    fn old_pods_run(&self, view: &View) -> bool {
        let counted = self.old.iter().any(|set| set.status("replicas") > 0);
        let mut pods = self.old.iter().flat_map(|set| view.controlled_by(PODS, &set.row.facts.uid));
        counted || pods.any(|pod| !finished(&pod.tree()))
    }

    /// How large a new set of this size may get.
    pub(super) fn new_size(&self, size: i64) -> i64 {
        let deployment = &self.deployment;
        if !deployment.rolling {
            return deployment.replicas;
        }
        let room = deployment.replicas + deployment.surge - self.total();
        size + room.min(deployment.replicas - size).max(0)
    }

    /// A set that has the size already keeps the annotations it has.
    fn resize_new(&mut self, to: i64) {
        if let Some(set) = self.new.as_mut().filter(|set| set.replicas != to) {
            Self::resize(&self.deployment, &mut self.events, set, to);
        }
    }

    fn resize_old(&mut self, at: usize, to: i64) {
        Self::resize(&self.deployment, &mut self.events, &mut self.old[at], to);
    }

    /// Takes Pods from old sets: the broken ones first, then as many as new ones make up for.
    fn shrink_old(&mut self) {
        let min_available = self.deployment.replicas - self.deployment.unavailable;
        let unavailable = self.new.as_ref().map_or(0, |set| set.replicas - set.available());
        let mut broken = self.total() - min_available - unavailable;
        if broken <= 0 {
            return;
        }
        for at in 0..self.old.len() {
            let set = &self.old[at];
            let less = broken.min(set.replicas - set.available());
            if set.replicas > 0 && less > 0 {
                self.resize_old(at, self.old[at].replicas - less);
                broken -= less;
            }
        }
        let mut spare = self.sum(Set::available) - min_available;
        for at in 0..self.old.len() {
            let less = spare.min(self.old[at].replicas);
            if less > 0 {
                self.resize_old(at, self.old[at].replicas - less);
                spare -= less;
            }
        }
    }

    /// The end of a step: old sets are forgotten once the rollout is complete.
    fn finish(self) -> Plan {
        let mut plan = self.rollout_status();
        if self.complete(&self.deployment.tree["status"]) {
            plan = plan.then(self.cleanup());
        }
        plan
    }

    /// Deletes the oldest sets beyond the history limit.
    pub(super) fn cleanup(&self) -> Vec<Write> {
        let Some(limit) = self.deployment.history else { return Vec::new() };
        let mut alive: Vec<&Set<'_>> =
            self.old.iter().filter(|set| !set.row.facts.deleting()).collect();
        alive.sort_by_key(|set| set.revision());
        let surplus = alive.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        let generation = |set: &Set<'_>, at| int(&set.tree, at).unwrap_or(0);
        let idle = |set: &&&Set<'_>| {
            set.replicas == 0
                && set.status("replicas") == 0
                && generation(set, "/metadata/generation")
                    <= generation(set, "/status/observedGeneration")
        };
        let idle = alive.iter().take(surplus).filter(idle);
        idle.map(|set| Write::delete(REPLICA_SETS, set.row)).collect()
    }

    /// Whether somebody changed the Deployment's size since its sets were last given theirs.
    pub(super) fn is_scaling_event(&self) -> bool {
        let mut active = self.sets().filter(|set| set.replicas > 0);
        active.any(|set| {
            set.number(DESIRED).is_some_and(|desired| desired != self.deployment.replicas)
        })
    }

    /// Scales without rolling on.
    pub(super) fn scale(mut self) -> Plan {
        self.distribute();
        if let Some(plan) = self.changes() {
            return plan;
        }
        let plan = self.plain_status();
        if self.deployment.paused { plan.then(self.cleanup()) } else { plan }
    }

    fn distribute(&mut self) {
        let size = self.deployment.replicas;
        let active = self.sets().filter(|set| set.replicas > 0).count();
        if active <= 1 {
            // The only active set, or else the newest.
            let old = self.old.iter().position(|set| set.replicas > 0);
            match old.or(if self.new.is_none() { self.old.len().checked_sub(1) } else { None }) {
                Some(at) if self.old[at].replicas != size => self.resize_old(at, size),
                Some(_) => {}
                None => self.resize_new(size),
            }
        } else if self.saturated() {
            for at in 0..self.old.len() {
                if self.old[at].replicas > 0 {
                    self.resize_old(at, 0);
                }
            }
        } else if self.deployment.rolling {
            self.distribute_in_proportion();
        }
    }

    /// Whether the new set has all Pods there shall be, and knows it.
    fn saturated(&self) -> bool {
        let size = self.deployment.replicas;
        self.new.as_ref().is_some_and(|set| {
            set.replicas == size && set.number(DESIRED) == Some(size) && set.available() == size
        })
    }

    /// Large sets get (or lose) more than small ones; what is left over goes to the largest.
    fn distribute_in_proportion(&mut self) {
        let deployment = &self.deployment;
        let allowed = match deployment.replicas {
            0 => 0,
            size => size + deployment.surge,
        };
        let to_add = allowed - self.total();
        let mut sets: Vec<&mut Set<'a>> =
            self.old.iter_mut().chain(&mut self.new).filter(|set| set.replicas > 0).collect();
        sets.sort_by(|a, b| {
            let age =
                |set: &Set<'_>| (set.row.facts.creation_timestamp.clone(), set.row.key.clone());
            let by_age = age(a).cmp(&age(b));
            let by_size = b.replicas.cmp(&a.replicas);
            by_size.then(if to_add > 0 { by_age.reverse() } else { by_age })
        });
        let mut added = 0;
        let mut sizes = Vec::new();
        for set in &sets {
            let (fraction, left) = (fraction(set, deployment), to_add - added);
            let share = match to_add {
                0 => 0,
                1.. => fraction.min(left),
                _ => fraction.max(left),
            };
            added += share;
            sizes.push(set.replicas + share);
        }
        if let Some(first) = sizes.first_mut() {
            *first = (*first + to_add - added).max(0);
        }
        for (set, size) in sets.into_iter().zip(sizes) {
            Self::resize(&self.deployment, &mut self.events, set, size);
        }
    }
}

/// By how much a set would change if all kept their share of the whole.
fn fraction(set: &Set<'_>, deployment: &super::Deployment<'_>) -> i64 {
    if deployment.replicas == 0 {
        return -set.replicas;
    }
    let whole = deployment.replicas + deployment.surge;
    let before = set.number(MAX).filter(|max| *max > 0).unwrap_or(deployment.status("replicas"));
    if before == 0 {
        return 0;
    }
    // Rounded to the nearest.
    (2 * set.replicas * whole + before) / (2 * before) - set.replicas
}

/// The condition by which a set says that Pods are refused.
pub(super) fn failure(set: &Set<'_>) -> Option<Value> {
    let mut conditions = crate::finder::items(&set.tree, "/status/conditions");
    conditions.find(|condition| condition["type"] == "ReplicaFailure").cloned()
}
