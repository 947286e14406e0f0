//! The scheduler: one row of the ring with one key, which places every waiting Pod in one pass.
//!
//! Within a pass each placement is assumed when the next is decided; between passes the own-writes
//! gate makes sure that the view shows them all. Nothing is polled: a Pod that fits nowhere is
//! looked at again when a Pod or a node changes, and is told about again only when the reason
//! changed.
#![no_std]

extern crate alloc;

mod filter;
mod node;
mod score;

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cmp::Reverse;

use knarr_api::{ObjectKey, Resource};
use knarr_reconcile::{
    Controller, Ctx, Event, EventKind, Key, Load, Patch, Plan, Row, View, Wake, Watch, Write,
};
use serde_json::{Value, json};

use filter::Misfit;
use node::NodeState;

const PODS: Resource = Resource::new("v1", "pods");
const NODES: Resource = Resource::new("v1", "nodes");
const NAME: &str = "default-scheduler";
/// How many Pods are placed in one pass: the next pass sees what came of them.
const MAX_BINDS: usize = 256;

/// The row.
pub fn controller() -> Controller {
    Controller {
        name: NAME,
        user: "system:kube-scheduler",
        watches: Vec::from([
            Watch { resource: PODS, wake: Wake::Everything(PODS) },
            Watch { resource: NODES, wake: Wake::Everything(PODS) },
        ]),
        reconcile: |view, _, ctx| schedule(view, ctx),
    }
}

/// A Pod that waits for a node.
struct Waiting<'a> {
    row: &'a Row,
    tree: Value,
    load: &'a Load,
}

impl<'a> Waiting<'a> {
    fn read(row: &'a Row) -> Option<Self> {
        let load = row.facts.load.as_deref()?;
        if row.facts.deleting() || load.finished || !row.facts.node.is_empty() {
            return None;
        }
        Some(Self { row, tree: row.tree(), load })
    }

    /// Whether it is this scheduler's to place now.
    fn ours(&self) -> bool {
        let spec = &self.tree["spec"];
        let gates = spec["schedulingGates"].as_array();
        spec["schedulerName"].as_str().unwrap_or(NAME) == NAME && gates.is_none_or(Vec::is_empty)
    }
}

fn schedule(view: &View, ctx: &Ctx<'_>) -> Plan {
    let rows = view.on_node(PODS, "").filter_map(Waiting::read);
    let mut waiting: Vec<Waiting<'_>> = rows.filter(Waiting::ours).collect();
    if waiting.is_empty() {
        return Plan::none();
    }
    waiting.sort_by_cached_key(|pod| {
        let facts = &pod.row.facts;
        (Reverse(pod.load.priority), facts.creation_timestamp.clone(), pod.row.key.clone())
    });
    let mut nodes = NodeState::all(view);
    // Upstream counts a cluster without nodes as its own error.
    let reason = if nodes.is_empty() { "SchedulerError" } else { "Unschedulable" };
    let (mut writes, mut plan, mut binds) = (Vec::new(), Plan::none(), 0);
    for pod in &waiting {
        if binds == MAX_BINDS {
            break;
        }
        match place(pod, &nodes, ctx.seed.wrapping_add(binds as u64)) {
            Ok(at) => {
                binds += 1;
                nodes[at].take(pod.load);
                writes.push(bind(pod.row, nodes[at].name()));
                plan.events.push(assigned(pod.row, nodes[at].name()));
            }
            Err(message) => {
                if let Some(write) = unschedulable(pod, reason, &message, ctx) {
                    writes.push(write);
                    plan.events.push(event(
                        pod.row,
                        EventKind::Warning,
                        "FailedScheduling",
                        message,
                    ));
                }
            }
        }
    }
    plan.then(writes)
}

/// The best node for a Pod, or why there is none.
fn place(pod: &Waiting<'_>, nodes: &[NodeState<'_>], seed: u64) -> Result<usize, String> {
    let wish = filter::Wish::read(&pod.tree);
    let verdicts: Vec<Vec<Misfit>> =
        nodes.iter().map(|node| filter::misfits(&wish, pod.load, node)).collect();
    let fitting: Vec<usize> = (0..nodes.len()).filter(|at| verdicts[*at].is_empty()).collect();
    if fitting.is_empty() {
        return Err(no_fit(&verdicts));
    }
    let candidates: Vec<&NodeState<'_>> = fitting.iter().map(|at| &nodes[*at]).collect();
    let scores = score::scores(&wish, pod.load, &candidates);
    let best = scores.iter().copied().max().unwrap_or(0);
    let best: Vec<usize> =
        fitting.into_iter().zip(scores).filter(|(_, s)| *s == best).map(|(at, _)| at).collect();
    Ok(best[(seed % best.len() as u64) as usize])
}

/// Upstream's sentence about a Pod that fits nowhere.
fn no_fit(verdicts: &[Vec<Misfit>]) -> String {
    if verdicts.is_empty() {
        return "no nodes available to schedule pods".into();
    }
    let all = verdicts.iter().flatten().map(|misfit| misfit.reason.clone());
    // No victims are chosen yet: who could be helped by preemption is told that none was found.
    let preemption = verdicts.iter().map(|misfits| {
        String::from(match misfits.iter().any(|misfit| misfit.unresolvable) {
            true => "Preemption is not helpful for scheduling",
            false => "No preemption victims found for incoming pod",
        })
    });
    let nodes = verdicts.len();
    format!(
        "{} no new claims to deallocate, preemption: {}",
        histogram(nodes, all),
        histogram(nodes, preemption)
    )
}

fn histogram(nodes: usize, reasons: impl Iterator<Item = String>) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    reasons.for_each(|reason| *counts.entry(reason).or_default() += 1);
    let mut parts: Vec<String> =
        counts.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    parts.sort();
    format!("0/{nodes} nodes are available: {}.", parts.join(", "))
}

fn bind(pod: &Row, node: &str) -> Write {
    let metadata = json!({"name": pod.key.name, "namespace": pod.key.namespace,
        "uid": pod.facts.uid});
    let body = json!({"apiVersion": "v1", "kind": "Binding", "metadata": metadata,
        "target": {"apiVersion": "v1", "kind": "Node", "name": node}});
    Write::Post { resource: PODS, object: pod.key.clone(), subresource: "binding", body }
}

fn assigned(pod: &Row, node: &str) -> Event {
    let message = format!("Successfully assigned {} to {node}", pod.key);
    event(pod, EventKind::Normal, "Scheduled", message)
}

fn event(pod: &Row, kind: EventKind, reason: &'static str, message: String) -> Event {
    Event::about(pod, "v1", "Pod", kind, reason, message)
}

/// Notes on the Pod why it waits; `None` when it says so already.
fn unschedulable(pod: &Waiting<'_>, reason: &str, message: &str, ctx: &Ctx<'_>) -> Option<Write> {
    let conditions = pod.tree["status"]["conditions"].as_array();
    let old = conditions.into_iter().flatten().find(|c| c["type"] == "PodScheduled");
    let waits = old.filter(|c| c["status"] == "False");
    if waits.is_some_and(|c| c["reason"] == reason && c["message"] == message) {
        return None;
    }
    let now = Value::from(ctx.now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    let since = waits.map_or(now, |c| c["lastTransitionTime"].clone());
    let mut condition = json!({"type": "PodScheduled", "status": "False", "lastProbeTime": null,
        "lastTransitionTime": since, "reason": reason, "message": message});
    if let Some(generation) = pod.tree["metadata"]["generation"].as_i64() {
        condition["observedGeneration"] = generation.into();
    }
    let body =
        json!({"metadata": {"uid": pod.row.facts.uid}, "status": {"conditions": [condition]}});
    let (object, kind) = (pod.row.key.clone(), Patch::Strategic);
    Some(Write::Patch { resource: PODS, object, subresource: "status", kind, body })
}

/// Why a Pod fits a node or not: every node with its reasons, none where it fits.
pub fn explain(view: &View, pod: &ObjectKey) -> Vec<(String, Vec<String>)> {
    let Some(pod) = view.get(PODS, pod).and_then(Waiting::read) else { return Vec::new() };
    let wish = filter::Wish::read(&pod.tree);
    let nodes = NodeState::all(view);
    let told = nodes.iter().map(|node| {
        let misfits = filter::misfits(&wish, pod.load, node);
        (node.name().into(), misfits.into_iter().map(|misfit| misfit.reason).collect())
    });
    told.collect()
}

/// The key of a pass (for people and tests).
pub fn key() -> Key {
    Key { resource: PODS, object: ObjectKey::default() }
}
