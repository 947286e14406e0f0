//! Services and Leases.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use knarr_api::{Cause, names};
use serde_json::Value;

use super::part::Part;
use super::words;

const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];

pub(super) fn service(tree: &Value, out: &mut Vec<Cause>) {
    let spec = Part::root(tree).get("spec");
    let (kind, ports) = (spec.get("type"), spec.get("ports"));
    let headless = spec.get("clusterIP").text() == "None";
    if ports.is_empty() && !headless && kind.text() != "ExternalName" {
        ports.required("", out);
    }
    if kind.text() == "ExternalName" {
        let name = spec.get("externalName");
        match name.text().trim_end_matches('.') {
            "" => name.required("", out),
            _ => name.follows(names::dns1123_subdomain, out),
        }
    }
    let several = ports.items().count() > 1;
    let mut taken = BTreeSet::new();
    ports.items().for_each(|port| service_port(&port, several, &mut taken, out));
    spec.get("selector").labels(out);
    spec.get("sessionAffinity").one_of(&["ClientIP", "None"], out);
    if spec.get("sessionAffinity").text() == "None" && spec.get("sessionAffinityConfig").is_set() {
        let why = "must not be set when session affinity is None";
        spec.get("sessionAffinityConfig").forbidden(why, out);
    }
    kind.one_of(&["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"], out);
    node_ports(kind.text(), &ports, out);
}

fn service_port<'v>(
    port: &Part<'v>,
    several: bool,
    taken: &mut BTreeSet<&'v str>,
    out: &mut Vec<Cause>,
) {
    let name = port.get("name");
    if several || !name.is_empty() {
        name.must_follow(names::dns1123_label, out);
        if !name.is_empty() && !taken.insert(name.text()) {
            name.duplicate(name.value, out);
        }
    }
    port.get("port").within(1, 65_535, out);
    port.get("protocol").one_of(&PROTOCOLS, out);
    words::port(&port.get("targetPort"), out);
    port.get("appProtocol").if_set_follows(names::qualified_name, out);
}

/// Only what is seen from outside has node ports, and each once.
fn node_ports(kind: &str, ports: &Part<'_>, out: &mut Vec<Cause>) {
    let mut taken = BTreeSet::new();
    let mut pairs = BTreeSet::new();
    for port in ports.items() {
        let (node, protocol) = (port.get("nodePort"), port.get("protocol").text());
        let number = node.int().unwrap_or_default();
        if number != 0 && kind == "ClusterIP" {
            node.forbidden("may not be used when `type` is 'ClusterIP'", out);
        } else if number != 0 && !taken.insert((protocol, number)) {
            node.duplicate(node.value, out);
        }
        if !pairs.insert((protocol, port.get("port").int())) {
            let key = serde_json::json!({"protocol": protocol, "port": port.get("port").int()});
            port.duplicate(&key, out);
        }
    }
}

pub(super) fn lease(tree: &Value, out: &mut Vec<Cause>) {
    let spec = Part::root(tree).get("spec");
    let (duration, transitions) = (spec.get("leaseDurationSeconds"), spec.get("leaseTransitions"));
    if duration.int().is_some_and(|seconds| seconds <= 0) {
        duration.invalid("must be greater than 0", out);
    }
    transitions.nonnegative(out);
    if !spec.get("preferredHolder").is_empty() && spec.get("strategy").is_empty() {
        let why = "may only be specified if `strategy` is defined";
        spec.get("preferredHolder").forbidden(why, out);
    }
}
