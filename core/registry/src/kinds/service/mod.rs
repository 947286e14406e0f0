//! Services and Leases.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::vec::Vec;

use knarr_api::ip::{Cidr, Family};
use knarr_api::{Cause, ip, names};
use serde_json::Value;

use super::part::Part;
use super::words;

mod allocation;
mod families;
mod intent;

pub(super) use allocation::{allocate, port_claims, release};

const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
const BALANCER_ONLY: &str = "may only be used when `type` is 'LoadBalancer'";

/// Brings what hangs together in line.
pub(super) fn prepare(tree: &mut Value, live: Option<&Value>) {
    match live {
        Some(live) => intent::update(tree, live),
        None => intent::create(tree),
    }
    if !intent::needs_cluster_ip(tree) {
        crate::object::remove(tree, &["spec", "internalTrafficPolicy"]);
    }
}

pub(super) fn service(tree: &Value, live: Option<&Value>, out: &mut Vec<Cause>) {
    let spec = Part::root(tree).get("spec");
    let (kind, ports) = (spec.get("type"), spec.get("ports"));
    if let Some(live) = live {
        unchanged(tree, live, out);
    }
    let headless = intent::is_headless(tree);
    if ports.is_empty() && !headless && kind.text() != "ExternalName" {
        ports.required("", out);
    }
    by_type(&spec, headless, out);
    let several = ports.items().count() > 1;
    let mut taken = BTreeSet::new();
    ports.items().for_each(|port| service_port(&port, several, &mut taken, out));
    spec.get("selector").labels(out);
    affinity(&spec, out);
    out.extend(addresses_wrong(tree));
    spec.get("externalIPs")
        .items()
        .for_each(|address| super::networking::endpoint_address(&address, out));
    kind.one_of(&["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"], out);
    node_ports(kind.text(), &ports, out);
    balancer(&spec, out);
    policies(tree, &spec, out);
}

/// What one type may not have.
fn by_type(spec: &Part<'_>, headless: bool, out: &mut Vec<Cause>) {
    match spec.get("type").text() {
        word @ ("LoadBalancer" | "NodePort") if headless => {
            let why = format!("may not be set to 'None' for {word} services");
            let first = spec.get("clusterIPs").items().next();
            first.into_iter().for_each(|first| first.invalid(&why, out));
        }
        "ExternalName" => {
            for field in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                let field = spec.get(field);
                if !field.is_empty() {
                    field.forbidden("may not be set for ExternalName services", out);
                }
            }
            let name = spec.get("externalName");
            match name.text().trim_end_matches('.') {
                "" => name.required("", out),
                bare => {
                    if let Err(why) = names::dns1123_subdomain(bare) {
                        name.invalid(&why, out);
                    }
                }
            }
        }
        _ => {}
    }
}

fn affinity(spec: &Part<'_>, out: &mut Vec<Cause>) {
    let config = spec.get("sessionAffinityConfig");
    spec.get("sessionAffinity").one_of(&["ClientIP", "None"], out);
    match spec.get("sessionAffinity").text() {
        "None" if config.is_set() => {
            config.forbidden("must not be set when session affinity is None", out);
        }
        "ClientIP" => {
            let timeout = config.get("clientIP").get("timeoutSeconds");
            let seconds = timeout.int().unwrap_or_default();
            if !(1..=86_400).contains(&seconds) {
                timeout.invalid("must be greater than 0 and less than 86400", out);
            }
        }
        _ => {}
    }
}

/// Everything that is wrong with cluster IPs, families and their policy.
fn addresses_wrong(tree: &Value) -> Vec<Cause> {
    let (spec, mut causes) = (Part::root(tree).get("spec"), Vec::new());
    let out = &mut causes;
    if spec.get("type").text() == "ExternalName" {
        return causes;
    }
    let (single, list) = (spec.get("clusterIP"), spec.get("clusterIPs"));
    let first = list.items().next().map(|first| first.text()).unwrap_or_default();
    match (single.text(), first) {
        ("", "") => {}
        ("", _) => list.invalid("must be empty when `clusterIP` is not specified", out),
        (_, "") => list.required("", out),
        (single, first) if single != first => {
            list.invalid("first value must match `clusterIP`", out);
        }
        _ => {}
    }
    let mut seen = BTreeSet::new();
    for family in spec.get("ipFamilies").items() {
        if Family::parse(family.text()).is_none() {
            family.not_supported(&["IPv4", "IPv6"], out);
        }
        if !seen.insert(family.text()) {
            family.duplicate(family.value, out);
        }
    }
    let policy = spec.get("ipFamilyPolicy");
    let policies = ["PreferDualStack", "RequireDualStack", "SingleStack"];
    if policy.is_set() && !policies.contains(&policy.text()) {
        policy.not_supported(&policies, out);
    }
    cluster_ips(&spec, out);
    causes
}

fn cluster_ips(spec: &Part<'_>, out: &mut Vec<Cause>) {
    let (list, before) = (spec.get("clusterIPs"), out.len());
    let count = list.items().count();
    let families = spec.get("ipFamilies").texts();
    let mut found = Vec::new();
    for (at, address) in list.items().enumerate() {
        match (at, address.text()) {
            (0, "None") if count > 1 => {
                list.invalid("'None' must be the first and only value", out);
            }
            (0, "None") => return,
            (_, text) => match ip::parse(text) {
                Ok(parsed) => found.push((address, Family::of(parsed))),
                Err(why) => address.invalid(&why, out),
            },
        }
    }
    if count > 2 {
        list.invalid("may only hold up to 2 values", out);
    }
    if out.len() > before {
        return;
    }
    if let [(_, a), (_, b)] = &found[..]
        && a == b
    {
        list.invalid("may specify no more than one IP for each IP family", out);
    }
    for (at, ((address, family), wanted)) in found.iter().zip(&families).enumerate() {
        if Family::parse(wanted).is_some_and(|wanted| wanted != *family) {
            let why = format!("expected an {wanted} value as indicated by `ipFamilies[{at}]`");
            address.invalid(&why, out);
        }
    }
}

/// What only a load balancer has.
fn balancer(spec: &Part<'_>, out: &mut Vec<Cause>) {
    let balances = spec.get("type").text() == "LoadBalancer";
    let ranges = spec.get("loadBalancerSourceRanges");
    if !ranges.is_empty() && !balances {
        ranges.forbidden(BALANCER_ONLY, out);
    }
    for range in ranges.items() {
        if let Err(why) = range.text().trim().parse::<Cidr>() {
            range.invalid(&format!("{why}"), out);
        }
    }
    for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
        let field = spec.get(field);
        if field.is_set() && !balances {
            field.forbidden(BALANCER_ONLY, out);
        }
    }
    if balances {
        spec.get("loadBalancerClass").if_set_follows(names::qualified_name, out);
    }
}

fn policies(tree: &Value, spec: &Part<'_>, out: &mut Vec<Cause>) {
    let (external, internal) =
        (spec.get("externalTrafficPolicy"), spec.get("internalTrafficPolicy"));
    if intent::is_external(tree) {
        external.one_of(&["Cluster", "Local"], out);
    } else if !external.is_empty() {
        external.invalid("may only be set for externally-accessible services", out);
    }
    let health = spec.get("healthCheckNodePort");
    let port = health.int().unwrap_or_default();
    if intent::needs_health_port(tree) {
        match port {
            0 => health.required("", out),
            _ => health.within(1, 65_535, out),
        }
    } else if port != 0 {
        let why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is \
                   'Local'";
        health.invalid(why, out);
    }
    let typed = ["ClusterIP", "LoadBalancer", "NodePort"].contains(&spec.get("type").text());
    if internal.is_set() || typed {
        internal.one_of(&["Cluster", "Local"], out);
    }
    let distribution = spec.get("trafficDistribution");
    let known = ["PreferClose", "PreferSameZone", "PreferSameNode"];
    if distribution.is_set() && !known.contains(&distribution.text()) {
        distribution.not_supported(&known, out);
    }
}

/// What may not change between two versions of one Service.
fn unchanged(tree: &Value, live: &Value, out: &mut Vec<Cause>) {
    let root = Part::root(tree).get("spec");
    let names = |service: &Value| service["spec"]["type"] == "ExternalName";
    if !names(tree) && !names(live) {
        let headless = (intent::is_headless(tree), intent::is_headless(live));
        if headless != (true, true) {
            frozen(&root, live, "clusterIPs", "primary clusterIP can not be unset", out);
        }
        if headless == (false, false) {
            frozen(&root, live, "ipFamilies", "primary ipFamily can not be unset", out);
        }
    }
    let balances = |service: &Value| service["spec"]["type"] == "LoadBalancer";
    let class = root.get("loadBalancerClass");
    if balances(tree) && balances(live) && *class.value != live["spec"]["loadBalancerClass"] {
        class.invalid("may not change once set", out);
    }
    let health = root.get("healthCheckNodePort");
    if intent::needs_health_port(tree)
        && intent::needs_health_port(live)
        && *health.value != live["spec"]["healthCheckNodePort"]
    {
        health.forbidden("field is immutable", out);
    }
}

/// A list of one or two: the second may come and go, what stays stays the same.
fn frozen(spec: &Part<'_>, live: &Value, field: &str, unset: &str, out: &mut Vec<Cause>) {
    let list = spec.get(field);
    let old = crate::object::strings(live, &format!("/spec/{field}"));
    let new = list.texts();
    if new.is_empty() && !old.is_empty() {
        let first = Part::root(spec.value).get("spec").get(field).path();
        out.push(Cause::invalid(format!("{first}[0]"), list.value, unset));
    }
    for (item, old) in list.items().zip(&old) {
        if item.text() != old {
            item.invalid_as(list.value, "may not change once set", out);
        }
    }
    if new.len() == 1 && old.len() == 2 && spec.get("ipFamilyPolicy").text() != "SingleStack" {
        let what = if field == "clusterIPs" { "clusterIP" } else { "ipFamily" };
        let why = format!("must be set to 'SingleStack' when releasing the secondary {what}");
        spec.get("ipFamilyPolicy").invalid(&why, out);
    }
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
