//! Which way Pods of other nodes are: each node's Pod ranges by way of its InternalIP (host-gw).
//!
//! That works where the other node is a neighbour on a link of this one; who is not is named, since
//! packets to its Pods would need a tunnel, which is not there yet.

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;

use knarr_api::ip::{Cidr, Family};

use crate::nodes::NodeTable;

/// A range of Pod addresses, and the neighbour that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodRoute {
    /// The Pods' addresses.
    pub pods: Cidr,
    /// The node that has them.
    pub via: IpAddr,
}

impl fmt::Display for PodRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} via {}", self.pods, self.via)
    }
}

/// A range that no route leads to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unrouted {
    /// The node.
    pub node: String,
    /// Its Pods' addresses.
    pub pods: Cidr,
    /// Why.
    pub why: NoRoute,
}

/// Why there is no route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NoRoute {
    /// The node has no InternalIP of the family.
    NoAddress,
    /// Its address is on no link of this node.
    NotNeighbour(IpAddr),
}

impl fmt::Display for Unrouted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, pods, why } = self;
        match why {
            NoRoute::NoAddress => {
                write!(f, "Pods {pods} of node {node}: it has no InternalIP of their IP family")
            }
            NoRoute::NotNeighbour(address) => write!(
                f,
                "Pods {pods} of node {node}: its address {address} is on no link of this node, and \
                 a tunnel (VXLAN) is not there yet"
            ),
        }
    }
}

/// The routes of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoutePlan {
    /// What is to be there, and nothing else.
    pub routes: BTreeSet<PodRoute>,
    /// What cannot be.
    pub unrouted: BTreeSet<Unrouted>,
}

impl NodeTable {
    /// The routes of the node called `own`, whose links lead to the ranges `links`.
    pub fn routes(&self, own: &str, links: &[Cidr]) -> RoutePlan {
        let mut plan = RoutePlan::default();
        // Two nodes that claim one range are not both right: the first by name has it.
        let mut taken: Vec<Cidr> = Vec::new();
        for (name, node) in self.iter() {
            for pods in &node.pod_cidrs {
                if taken.contains(pods) {
                    continue;
                }
                taken.push(*pods);
                // Who has not said yet where it is will do so in a moment.
                if name == own || node.internal.is_empty() {
                    continue;
                }
                match gateway(&node.internal, *pods, links) {
                    Ok(via) => drop(plan.routes.insert(PodRoute { pods: *pods, via })),
                    Err(why) => {
                        let node = String::from(name);
                        plan.unrouted.insert(Unrouted { node, pods: *pods, why });
                    }
                }
            }
        }
        plan
    }
}

/// The first of a node's addresses that is a neighbour, of the Pods' family.
fn gateway(internal: &[IpAddr], pods: Cidr, links: &[Cidr]) -> Result<IpAddr, NoRoute> {
    let mut same = internal.iter().filter(|address| Family::of(**address) == pods.family());
    let near = |address: &&IpAddr| links.iter().any(|link| link.contains(**address));
    match same.clone().find(near) {
        Some(address) => Ok(*address),
        None => Err(same.next().map_or(NoRoute::NoAddress, |far| NoRoute::NotNeighbour(*far))),
    }
}
