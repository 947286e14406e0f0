//! What packet rules and routes need to know about the cluster's nodes.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::IpAddr;

use knarr_api::Resource;
use knarr_api::ip::Cidr;
use knarr_reconcile::Change;
use serde::Deserialize;

use crate::choose::Place;
use crate::rules::Nodes;

const ZONE: &str = "topology.kubernetes.io/zone";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    zone: String,
    addresses: BTreeSet<IpAddr>,
    /// In the order that the node names them.
    pub(crate) internal: Vec<IpAddr>,
    pub(crate) pod_cidrs: Vec<Cidr>,
}

/// The nodes, by name.
#[derive(Clone, Debug, Default)]
pub struct NodeTable {
    nodes: BTreeMap<String, Node>,
    stale: BTreeSet<String>,
    synced: bool,
}

#[derive(Deserialize)]
struct RawNode {
    metadata: RawMetadata,
    #[serde(default)]
    spec: RawSpec,
    #[serde(default)]
    status: RawStatus,
}

#[derive(Deserialize)]
struct RawMetadata {
    name: String,
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Default, Deserialize)]
struct RawSpec {
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
struct RawStatus {
    addresses: Option<Vec<RawAddress>>,
}

#[derive(Deserialize)]
struct RawAddress {
    #[serde(default, rename = "type")]
    kind: String,
    address: String,
}

fn decode(bytes: &[u8]) -> Result<(String, Node), serde_json::Error> {
    let RawNode { metadata, spec, status } = serde_json::from_slice(bytes)?;
    let addresses = status.addresses.unwrap_or_default();
    let internal = addresses.iter().filter(|raw| raw.kind == "InternalIP");
    let internal = internal.filter_map(|raw| raw.address.parse().ok()).collect();
    let pod_cidrs = spec.pod_cidrs.unwrap_or_default();
    let pod_cidrs = pod_cidrs.iter().filter_map(|range| range.parse().ok()).collect();
    let zone = metadata.labels.and_then(|mut labels| labels.remove(ZONE)).unwrap_or_default();
    // Host names among them are no addresses.
    let addresses = addresses.iter().filter_map(|raw| raw.address.parse().ok()).collect();
    Ok((metadata.name, Node { zone, addresses, internal, pod_cidrs }))
}

impl NodeTable {
    /// Nodes, as [`NodeTable::apply`] takes them.
    pub const NODES: Resource = Resource::new("v1", "nodes");

    /// Takes a watch item in; whether something that counts is different now.
    ///
    /// # Errors
    /// When an object is no Node.
    pub fn apply(&mut self, change: &Change) -> Result<bool, serde_json::Error> {
        Ok(match change {
            Change::Restarted => {
                self.stale = self.nodes.keys().cloned().collect();
                false
            }
            Change::Put(bytes, _) => {
                let (name, node) = decode(bytes)?;
                self.stale.remove(&name);
                let old = self.nodes.insert(name.clone(), node);
                old.as_ref() != self.nodes.get(&name)
            }
            Change::Deleted(bytes, _) => self.nodes.remove(&decode(bytes)?.0).is_some(),
            Change::Synced(_) => {
                self.synced = true;
                let stale = core::mem::take(&mut self.stale);
                stale.iter().fold(false, |any, name| self.nodes.remove(name).is_some() | any)
            }
        })
    }

    /// Whether everything there is has been told once.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(name, node)| (name.as_str(), node))
    }

    /// The nodes as one of them sees them.
    pub fn seen_from(&self, name: &str) -> Nodes {
        let own = self.nodes.get(name);
        let zone = own.map(|node| node.zone.clone()).unwrap_or_default();
        Nodes {
            place: Place { node: name.to_string(), zone },
            own: own.map(|node| node.addresses.clone()).unwrap_or_default(),
            all: self.nodes.values().flat_map(|node| node.addresses.iter().copied()).collect(),
        }
    }
}
