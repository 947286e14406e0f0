//! A node during a pass: what it has, and what is taken of it.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use knarr_api::quantity::Quantity;
use knarr_reconcile::{Amounts, HostPort, Load, Row, View, add};
use serde_json::Value;

use crate::{NODES, PODS};

/// A mark that keeps Pods off.
pub(crate) struct Taint {
    pub(crate) key: String,
    pub(crate) value: String,
    pub(crate) effect: String,
}

pub(crate) struct NodeState<'a> {
    row: &'a Row,
    pub(crate) unschedulable: bool,
    pub(crate) taints: Vec<Taint>,
    pub(crate) allocatable: Amounts,
    pub(crate) requested: Amounts,
    /// As `requested`, with defaults for containers that do not say.
    pub(crate) assumed: Amounts,
    pub(crate) pods: i64,
    pub(crate) ports: Vec<HostPort>,
}

impl<'a> NodeState<'a> {
    /// Every node with the Pods it has.
    pub(crate) fn all(view: &'a View) -> Vec<Self> {
        view.all(NODES).map(|row| Self::read(view, row)).collect()
    }

    fn read(view: &View, row: &'a Row) -> Self {
        let tree = row.tree();
        let taints = tree["spec"]["taints"].as_array();
        let mut node = Self {
            row,
            unschedulable: tree["spec"]["unschedulable"] == true,
            taints: taints.into_iter().flatten().map(taint).collect(),
            allocatable: amounts(&tree["status"]["allocatable"]),
            requested: Amounts::new(),
            assumed: Amounts::new(),
            pods: 0,
            ports: Vec::new(),
        };
        let loads = view.on_node(PODS, &row.key.name).filter_map(|pod| pod.facts.load.as_deref());
        loads.filter(|load| !load.finished).for_each(|load| node.take(load));
        node
    }

    pub(crate) fn name(&self) -> &str {
        &self.row.key.name
    }

    pub(crate) fn labels(&self) -> &BTreeMap<String, String> {
        &self.row.facts.labels
    }

    /// Gives a Pod its place here.
    pub(crate) fn take(&mut self, load: &Load) {
        add(&mut self.requested, &load.requests);
        add(&mut self.assumed, &load.assumed);
        self.ports.extend(load.ports.iter().cloned());
        self.pods += 1;
    }

    pub(crate) fn has(&self, resource: &str) -> i64 {
        self.allocatable.get(resource).copied().unwrap_or(0)
    }
}

fn taint(tree: &Value) -> Taint {
    let word = |key: &str| tree[key].as_str().unwrap_or_default().into();
    Taint { key: word("key"), value: word("value"), effect: word("effect") }
}

fn amounts(tree: &Value) -> Amounts {
    let parsed = tree.as_object().into_iter().flatten().filter_map(|(name, text)| {
        let quantity: Quantity = text.as_str()?.parse().ok()?;
        let amount = if name == "cpu" { quantity.milli_value() } else { quantity.value() };
        Some((name.clone(), amount))
    });
    parsed.collect()
}
