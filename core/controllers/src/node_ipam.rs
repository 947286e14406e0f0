//! Each node gets its own range of Pod addresses: the lowest free /24 (or /64) of the cluster's.
//!
//! One key for all nodes: no two runs can give away the same range.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::IpAddr;

use knarr_api::Resource;
use knarr_reconcile::{Controller, Ctx, Event, EventKind, Key, Plan, View, Wake, Watch, Write};
use serde_json::{Value, json};

use crate::finder::items;

pub(crate) const NODES: Resource = Resource::new("v1", "nodes");

/// The row.
pub fn controller() -> Controller {
    Controller {
        name: "node-ipam-controller",
        user: "system:serviceaccount:kube-system:node-controller",
        watches: Vec::from([Watch { resource: NODES, wake: Wake::Everything(NODES) }]),
        reconcile,
    }
}

fn reconcile(view: &View, _: &Key, ctx: &Ctx<'_>) -> Plan {
    let cidrs: Vec<Cidr> = ctx.config.cluster_cidrs.iter().filter_map(|t| Cidr::parse(t)).collect();
    let nodes: Vec<_> = view.all(NODES).map(|row| (row, row.tree())).collect();
    let mut used: BTreeSet<String> = BTreeSet::new();
    let mut bare = Vec::new();
    for (row, tree) in &nodes {
        let before = used.len();
        let given = items(tree, "/spec/podCIDRs").chain(tree.pointer("/spec/podCIDR"));
        used.extend(given.filter_map(Value::as_str).filter(|s| !s.is_empty()).map(String::from));
        if used.len() == before && !row.facts.deleting() {
            bare.push(*row);
        }
    }
    let (mut plan, mut writes) = (Plan::none(), Vec::new());
    for row in bare {
        let given: Vec<String> = cidrs.iter().filter_map(|cidr| cidr.first_free(&used)).collect();
        if given.is_empty() {
            continue;
        }
        if given.len() < cidrs.len() {
            let message = format!("Node {} status is now: CIDRNotAvailable", row.key.name);
            let kind = EventKind::Normal;
            let event = Event::about(row, "v1", "Node", kind, "CIDRNotAvailable", message);
            plan = plan.with_event(event);
        }
        used.extend(given.iter().cloned());
        let spec = json!({"podCIDR": given[0], "podCIDRs": given});
        writes.push(Write::patch_exact(NODES, row, json!({"spec": spec})));
    }
    plan.then(writes)
}

/// A range to give parts of.
struct Cidr {
    /// Of the family's width; the host part is zero.
    first: u128,
    length: u32,
    width: u32,
    /// Length of a part.
    part: u32,
}

impl Cidr {
    fn parse(text: &str) -> Option<Self> {
        let (address, length) = text.split_once('/')?;
        let length: u32 = length.parse().ok()?;
        let (bits, width, part) = match address.parse().ok()? {
            IpAddr::V4(v4) => (u128::from(u32::from(v4)), 32, 24),
            IpAddr::V6(v6) => (u128::from(v6), 128, 64),
        };
        let host = width - length.min(width);
        let first = bits.checked_shr(host).unwrap_or(0).checked_shl(host).unwrap_or(0);
        (length <= part).then_some(Self { first, length, width, part })
    }

    fn first_free(&self, used: &BTreeSet<String>) -> Option<String> {
        let parts = 1_u64.checked_shl(self.part - self.length).unwrap_or(u64::MAX);
        let mut all = (0..parts).map(|at| self.part_at(at));
        all.find(|part| !used.contains(part))
    }

    fn part_at(&self, at: u64) -> String {
        let bits = self.first | u128::from(at) << (self.width - self.part);
        let address = match self.width {
            32 => IpAddr::V4((bits as u32).into()),
            _ => IpAddr::V6(bits.into()),
        };
        format!("{address}/{}", self.part)
    }
}
