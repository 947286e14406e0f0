//! Which node is best: upstream's score plugins with their weights.

use alloc::vec::Vec;

use knarr_reconcile::{Amounts, Load};

use crate::filter::Wish;
use crate::node::NodeState;

const MAX: i64 = 100;
/// What is compared, each as much as the other.
const COMPARED: [&str; 2] = ["cpu", "memory"];

/// The score of each node.
pub(crate) fn scores(wish: &Wish, load: &Load, nodes: &[&NodeState<'_>]) -> Vec<i64> {
    let preferences: Vec<i64> = nodes.iter().map(|node| wish.preference(node)).collect();
    let avoided: Vec<i64> = nodes.iter().map(|node| dislikes(wish, node)).collect();
    let (preferred, most) = (highest(&preferences), highest(&avoided));
    let one = |(at, node): (usize, &&NodeState<'_>)| {
        let affinity = if preferred == 0 { 0 } else { MAX * preferences[at] / preferred };
        let taints = if most == 0 { MAX } else { MAX - MAX * avoided[at] / most };
        least_allocated(load, node) + balance(load, node) + 2 * affinity + 3 * taints
    };
    nodes.iter().enumerate().map(one).collect()
}

fn highest(numbers: &[i64]) -> i64 {
    numbers.iter().copied().max().unwrap_or(0)
}

/// How many soft taints of the node the Pod does not put up with.
fn dislikes(wish: &Wish, node: &NodeState<'_>) -> i64 {
    let soft = node.taints.iter().filter(|taint| taint.effect == "PreferNoSchedule");
    soft.filter(|taint| !wish.tolerates(taint)).count() as i64
}

/// Free room is good.
fn least_allocated(load: &Load, node: &NodeState<'_>) -> i64 {
    let shares = COMPARED.iter().filter(|name| node.has(name) > 0).map(|name| {
        let (has, used) = (node.has(name), of(&node.assumed, name) + of(&load.assumed, name));
        if used > has { 0 } else { (has - used) * MAX / has }
    });
    let (sum, count) = shares.fold((0, 0), |(sum, count), share| (sum + share, count + 1));
    if count == 0 { 0 } else { sum / count }
}

/// Using as much of the one as of the other is good. A Pod that asks for nothing changes nothing.
fn balance(load: &Load, node: &NodeState<'_>) -> i64 {
    if COMPARED.iter().all(|name| of(&load.requests, name) == 0) {
        return 0;
    }
    let evenness = |extra: &Amounts| {
        let fraction = |name: &&str| {
            let used = of(&node.requested, name) + of(extra, name);
            (used as f64 / node.has(name) as f64).min(1.0)
        };
        let known = COMPARED.iter().filter(|name| node.has(name) > 0);
        let fractions: Vec<f64> = known.map(fraction).collect();
        let spread = match fractions.as_slice() {
            [a, b] => ((a - b) / 2.0).abs(),
            _ => 0.0,
        };
        ((1.0 - spread) * MAX as f64) as i64
    };
    MAX / 2 + (MAX / 2 + evenness(&load.requests) - evenness(&Amounts::new())) / 2
}

fn of(amounts: &Amounts, name: &str) -> i64 {
    amounts.get(name).copied().unwrap_or(0)
}
