//! Which endpoints of a Service's port this node may choose: readiness, termination (KEP-1669),
//! traffic policies, topology hints.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::IpAddr;

use crate::model::{Endpoint, Policy, Service, ServicePort};

/// An endpoint's address and port.
pub(crate) type Backend = (IpAddr, u16);

/// Where this proxy is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The node's name.
    pub node: String,
    /// Its zone, empty when unknown.
    pub zone: String,
}

/// What can be chosen for a port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Choice {
    /// With policy Cluster.
    pub cluster: Vec<Backend>,
    /// With policy Local.
    pub local: Vec<Backend>,
    /// Whether there is anybody anywhere who would answer.
    pub anybody: bool,
}

/// Whether a port is reachable by more than its cluster address.
pub(crate) fn is_external(service: &Service, port: &ServicePort) -> bool {
    port.node_port != 0 || !service.ingress_ips.is_empty() || !service.external_ips.is_empty()
}

type Found<'a> = BTreeMap<Backend, &'a Endpoint>;

fn filter(found: &Found<'_>, keep: impl Fn(&Endpoint) -> bool) -> Vec<Backend> {
    found.iter().filter(|(_, endpoint)| keep(endpoint)).map(|(at, _)| *at).collect()
}

fn is_last_resort(endpoint: &Endpoint) -> bool {
    !endpoint.ready && endpoint.serving && endpoint.terminating
}

/// Ready ones that hints leave to this place; hints count only if all ready ones have them and one
/// is for here.
fn hinted(found: &Found<'_>, place: &Place) -> Vec<Backend> {
    let ready = || found.values().filter(|endpoint| endpoint.ready);
    let for_node = |e: &Endpoint| e.for_nodes.contains(&place.node);
    let for_zone = |e: &Endpoint| e.for_zones.contains(&place.zone);
    if ready().all(|e| !e.for_nodes.is_empty()) && ready().any(|e| for_node(e)) {
        filter(found, |e| e.ready && for_node(e))
    } else if ready().all(|e| !e.for_zones.is_empty()) && ready().any(|e| for_zone(e)) {
        filter(found, |e| e.ready && for_zone(e))
    } else {
        filter(found, |e| e.ready)
    }
}

/// What may be chosen for a port.
pub(crate) fn choose(
    service: &Service,
    port: &ServicePort,
    found: &Found<'_>,
    place: &Place,
) -> Choice {
    let or_last_resort = |first: Vec<Backend>, here: &dyn Fn(&Endpoint) -> bool| {
        if first.is_empty() { filter(found, |e| is_last_resort(e) && here(e)) } else { first }
    };
    let internal_local = service.internal_policy == Policy::Local;
    let external = is_external(service, port);
    let mut choice = Choice::default();
    if !internal_local || external {
        choice.cluster = or_last_resort(hinted(found, place), &|_| true);
    }
    if internal_local || (service.external_policy == Policy::Local && external) {
        let here = |e: &Endpoint| !place.node.is_empty() && e.node_name == place.node;
        choice.local = or_last_resort(filter(found, |e| e.ready && here(e)), &here);
        choice.anybody = found.values().any(|e| e.ready || is_last_resort(e));
    }
    choice.anybody |= !choice.cluster.is_empty();
    choice
}
