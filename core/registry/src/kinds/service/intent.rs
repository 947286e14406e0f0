//! What the writer of a Service meant: fields that hang together, or that the server filled in and
//! the writer did not send back, are brought in line before anything is judged.

use alloc::borrow::ToOwned;
use alloc::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::object::{remove, set, text};

/// Whether a Service of this type has cluster IPs.
pub(super) fn needs_cluster_ip(service: &Value) -> bool {
    text(service, "/spec/type") != "ExternalName"
}

/// Whether one that looks for traffic on the nodes' ports.
pub(super) fn needs_node_ports(service: &Value) -> bool {
    matches!(text(service, "/spec/type"), "NodePort" | "LoadBalancer")
}

/// Whether a load balancer asks its nodes for their health.
pub(super) fn needs_health_port(service: &Value) -> bool {
    text(service, "/spec/type") == "LoadBalancer"
        && text(service, "/spec/externalTrafficPolicy") == "Local"
}

/// Whether it is there for clients outside the cluster.
pub(super) fn is_external(service: &Value) -> bool {
    let addresses = service["spec"]["externalIPs"].as_array();
    needs_node_ports(service)
        || text(service, "/spec/type") == "ClusterIP" && addresses.is_some_and(|l| !l.is_empty())
}

/// Headless: its name stands for its Pods.
pub(super) fn is_headless(service: &Value) -> bool {
    service["spec"]["clusterIPs"].as_array().is_some_and(|ips| ips == &[json!("None")])
}

fn is_blank(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_i64() == Some(0),
        other => other.is_null(),
    }
}

fn same(a: &Value, b: &Value, field: &str) -> bool {
    let (a, b) = (&a["spec"][field], &b["spec"][field]);
    a == b || is_blank(a) && is_blank(b)
}

/// A new Service: who names one address means the list of it.
pub(super) fn create(service: &mut Value) {
    let single = text(service, "/spec/clusterIP").to_owned();
    if !single.is_empty() && is_blank(&service["spec"]["clusterIPs"]) {
        set(service, &["spec", "clusterIPs"], json!([single]));
    }
}

/// A changed Service.
pub(super) fn update(service: &mut Value, live: &Value) {
    keep_allocated(service, live);
    align_addresses(service, live);
    drop_what_the_type_has_not(service, live);
}

/// What the server gave stays, when the writer does not mention it.
fn keep_allocated(service: &mut Value, live: &Value) {
    let keep = |service: &mut Value, field: &str| {
        if is_blank(&service["spec"][field]) && !is_blank(&live["spec"][field]) {
            service["spec"][field] = live["spec"][field].clone();
        }
    };
    if needs_cluster_ip(live) && needs_cluster_ip(service) {
        keep(service, "clusterIP");
        keep(service, "clusterIPs");
    }
    if needs_node_ports(live) && needs_node_ports(service) && allocates(live) && allocates(service)
    {
        keep_node_ports(service, live);
    }
    if needs_health_port(live) && needs_health_port(service) {
        keep(service, "healthCheckNodePort");
    }
}

/// Whether ports that were not asked for are given.
pub(super) fn allocates(service: &Value) -> bool {
    text(service, "/spec/type") == "NodePort"
        || service["spec"]["allocateLoadBalancerNodePorts"].as_bool() != Some(false)
}

/// The node ports that a Service names.
pub(super) fn node_ports(service: &Value) -> BTreeSet<u16> {
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let numbers = ports.filter_map(|port| port["nodePort"].as_u64());
    numbers.filter_map(|number| u16::try_from(number).ok()).filter(|number| *number != 0).collect()
}

fn keep_node_ports(service: &mut Value, live: &Value) {
    let (old, new) = (node_ports(live), node_ports(service));
    let kept: BTreeSet<u64> = old.intersection(&new).map(|port| u64::from(*port)).collect();
    let of_live = live["spec"]["ports"].as_array().into_iter().flatten();
    let by_name: BTreeMap<&str, u64> = of_live
        .map(|port| (text(port, "/name"), port["nodePort"].as_u64().unwrap_or_default()))
        .collect();
    let ports = service["spec"]["ports"].as_array_mut().into_iter().flatten();
    for port in ports.filter(|port| port["nodePort"].as_u64().unwrap_or_default() == 0) {
        let known = by_name.get(text(port, "/name")).copied().unwrap_or_default();
        if known != 0 && !kept.contains(&known) {
            port["nodePort"] = known.into();
        }
    }
}

/// Old clients know `clusterIP` only: the list follows it.
fn align_addresses(service: &mut Value, live: &Value) {
    let (old, new) = (text(live, "/spec/clusterIP"), text(service, "/spec/clusterIP").to_owned());
    if old == new {
        if is_blank(&service["spec"]["clusterIPs"]) && !is_blank(&live["spec"]["clusterIPs"]) {
            service["spec"]["clusterIPs"] = live["spec"]["clusterIPs"].clone();
        }
    } else if same(service, live, "clusterIPs") {
        match new.as_str() {
            "" => drop(remove(service, &["spec", "clusterIPs"])),
            _ => set(service, &["spec", "clusterIPs"], json!([new])),
        }
    }
}

/// Fields that the old type had, the new one has not, and the writer did not touch.
fn drop_what_the_type_has_not(service: &mut Value, live: &Value) {
    let untouched = |service: &mut Value, fields: &[&str]| {
        if fields.iter().all(|field| same(service, live, field)) {
            fields.iter().for_each(|field| drop(remove(service, &["spec", field])));
        }
    };
    if needs_cluster_ip(live) && !needs_cluster_ip(service) {
        untouched(service, &["clusterIP", "clusterIPs"]);
        untouched(service, &["ipFamilies"]);
        untouched(service, &["ipFamilyPolicy"]);
    }
    if needs_health_port(live) && !needs_health_port(service) {
        untouched(service, &["healthCheckNodePort"]);
    }
    let balances = |service: &Value| text(service, "/spec/type") == "LoadBalancer";
    if balances(live) && !balances(service) {
        untouched(service, &["allocateLoadBalancerNodePorts"]);
        untouched(service, &["loadBalancerClass"]);
    }
    if is_external(live) && !is_external(service) {
        untouched(service, &["externalTrafficPolicy"]);
    }
    if needs_node_ports(live)
        && !needs_node_ports(service)
        && node_ports(live).is_superset(&node_ports(service))
    {
        let ports = service["spec"]["ports"].as_array_mut().into_iter().flatten();
        ports.for_each(|port| drop(remove(port, &["nodePort"])));
    }
    if !balances(service) && !is_blank(&service["status"]["loadBalancer"]) {
        set(service, &["status", "loadBalancer"], json!({}));
    }
}
