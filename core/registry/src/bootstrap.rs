//! The objects that every cluster starts with: system namespaces, RBAC, priority classes, the
//! Services of the API server and of DNS.
//!
//! They are reconciled at every start, as upstream does: missing ones are made, others are left to
//! the administrator who changed them.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};

use knarr_api::ip::{Class, Family};
use serde_json::{Value, json};

use crate::call::Config;

const RBAC: &str = include_str!("../data/rbac.txt");
const API: &str = "rbac.authorization.k8s.io";

/// Every bootstrap object, with `apiVersion` and `kind`, in the order of creation.
pub fn objects(config: &Config) -> Vec<Value> {
    let mut objects = Vec::new();
    for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        objects.push(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
    }
    for (name, value, about) in [
        ("system-cluster-critical", 2_000_000_000, "cluster"),
        ("system-node-critical", 2_000_001_000, "node"),
    ] {
        objects.push(json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "value": value,
            "metadata": {"name": name},
            "description": format!("Used for system critical pods that must {}", match about {
                "node" => "not be moved from their current node.",
                _ => "run in the cluster, but can be moved to another node if necessary.",
            }),
        }));
    }
    objects.extend(rbac());
    objects.extend(services(config));
    objects
}

/// Where the cluster's DNS answers, in each of its families: the tenth address of the range.
pub fn dns_addresses(config: &Config) -> Vec<IpAddr> {
    config.service_cidrs.iter().filter_map(|range| range.nth(10)).collect()
}

/// The cluster's own Services and the range they are from. The first address is the API server's.
/// Those of DNS are answered on every node itself, so its Service is none of kube-proxy's business.
fn services(config: &Config) -> Vec<Value> {
    let Some(first) = config.service_cidrs.first().and_then(|range| range.nth(1)) else {
        return Vec::new();
    };
    let cidrs: Vec<String> = config.service_cidrs.iter().map(ToString::to_string).collect();
    let dns: Vec<String> = dns_addresses(config).iter().map(ToString::to_string).collect();
    let policy = if dns.len() > 1 { "RequireDualStack" } else { "SingleStack" };
    let secure = config.advertise.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
    let secure: u16 = secure.unwrap_or(6443);
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    let dns_labels = json!({"k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS",
        "kubernetes.io/cluster-service": "true",
        "service.kubernetes.io/service-proxy-name": "knarr"});
    let mut https = port("https", "TCP", 443);
    https["targetPort"] = secure.into();
    [
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
            "metadata": {"name": "kubernetes"}, "spec": {"cidrs": cidrs}}),
        json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "kubernetes", "namespace": "default", "labels": labels},
            "spec": {"clusterIP": first.to_string(), "ports": [https]}}),
        json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": dns_labels},
            "spec": {"clusterIP": dns[0], "clusterIPs": dns, "ipFamilyPolicy": policy, "ports": [
                port("dns", "UDP", 53), port("dns-tcp", "TCP", 53)]}}),
    ]
    .into()
}

fn port(name: &str, protocol: &str, number: u16) -> Value {
    json!({"name": name, "protocol": protocol, "port": number})
}

/// The addresses behind the Service `kubernetes`, as Endpoints and as an EndpointSlice: they follow
/// the servers that there are, so they are put, not only made. Those of the own family count.
pub fn api_server_endpoints(config: &Config, servers: &BTreeSet<IpAddr>) -> Vec<Value> {
    let Ok(own) = config.advertise.parse::<SocketAddr>() else { return Vec::new() };
    let family = Family::of(own.ip());
    // A server on loopback is for this machine alone: no Pod reaches it.
    let reached =
        |ip: &&IpAddr| Family::of(**ip) == family && Class::of(**ip).no_endpoint().is_none();
    let addresses: Vec<String> = servers.iter().filter(reached).map(IpAddr::to_string).collect();
    if addresses.is_empty() {
        return Vec::new();
    }
    let (family, port) = (family.word(), own.port());
    let subset: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
    let ready = |ip| json!({"addresses": [ip], "conditions": {"ready": true}});
    let ready: Vec<Value> = addresses.iter().map(ready).collect();
    let port = json!([{"name": "https", "protocol": "TCP", "port": port}]);
    let metadata = |labels| json!({"name": "kubernetes", "namespace": "default", "labels": labels});
    let unmirrored = json!({"endpointslice.kubernetes.io/skip-mirror": "true"});
    let of_service = json!({"kubernetes.io/service-name": "kubernetes"});
    [
        json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": metadata(unmirrored),
            "subsets": [{"addresses": subset, "ports": port}]}),
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": metadata(of_service), "addressType": family, "ports": port,
            "endpoints": ready}),
    ]
    .into()
}

/// The RBAC objects of the table.
fn rbac() -> Vec<Value> {
    let mut objects: Vec<Value> = Vec::new();
    for line in RBAC.lines().filter(|line| !line.starts_with('#')) {
        match line.strip_prefix("  ") {
            Some(line) => {
                let owner = objects.last_mut().expect("a rule follows its role");
                owner["rules"].as_array_mut().expect("roles have rules").push(rule(line));
            }
            None => objects.push(object(line)),
        }
    }
    fill_aggregated(&mut objects);
    objects
}

fn rule(line: &str) -> Value {
    let list = |word: &str| -> Vec<String> {
        word.split(',').map(|w| if w == "core" { String::new() } else { w.to_owned() }).collect()
    };
    let words: Vec<&str> = line.split(' ').collect();
    match words[..] {
        [verbs, "URL", paths] => json!({"verbs": list(verbs), "nonResourceURLs": list(paths)}),
        [verbs, groups, resources] => {
            json!({"verbs": list(verbs), "apiGroups": list(groups), "resources": list(resources)})
        }
        [verbs, groups, resources, names] => json!({"verbs": list(verbs),
            "apiGroups": list(groups), "resources": list(resources), "resourceNames": list(names)}),
        _ => panic!("a rule of rbac.txt has three or four words: {line}"),
    }
}

fn object(line: &str) -> Value {
    let words: Vec<&str> = line.split(' ').collect();
    let (kind, namespace, words) = match words[..] {
        ["clusterrole", ref rest @ ..] => ("ClusterRole", None, rest),
        ["clusterrolebinding", ref rest @ ..] => ("ClusterRoleBinding", None, rest),
        ["role", namespace, ref rest @ ..] => ("Role", Some(namespace), rest),
        ["rolebinding", namespace, ref rest @ ..] => ("RoleBinding", Some(namespace), rest),
        _ => panic!("rbac.txt does not know {line}"),
    };
    let mut object = json!({
        "apiVersion": format!("{API}/v1"), "kind": kind,
        "metadata": {
            "name": words[0],
            "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
            "annotations": {format!("{API}/autoupdate"): "true"},
        },
    });
    if let Some(namespace) = namespace {
        object["metadata"]["namespace"] = namespace.into();
    }
    if kind.ends_with("Binding") {
        let (role_kind, role) = words[1].split_once('/').unwrap_or(("ClusterRole", words[1]));
        object["roleRef"] = json!({"apiGroup": API, "kind": role_kind, "name": role});
        object["subjects"] = words[2..].iter().map(|word| subject(word)).collect();
        return object;
    }
    object["rules"] = json!([]);
    for word in &words[1..] {
        match word.split_at(1) {
            ("+", label) => object["metadata"]["labels"][format!("{API}/{label}")] = "true".into(),
            (_, label) => {
                let selector = json!({"matchLabels": {format!("{API}/{label}"): "true"}});
                object["aggregationRule"] = json!({"clusterRoleSelectors": [selector]});
            }
        }
    }
    object
}

fn subject(word: &str) -> Value {
    let (kind, name) = word.split_once(':').expect("Kind:name");
    match (kind, name.split_once('/')) {
        ("ServiceAccount", Some((namespace, name))) => {
            json!({"kind": kind, "namespace": namespace, "name": name})
        }
        _ => json!({"apiGroup": API, "kind": kind, "name": name}),
    }
}

/// Fills the rules of aggregated roles from the roles they select, innermost first, so that they
/// work before the aggregation controller has looked at them.
fn fill_aggregated(objects: &mut [Value]) {
    let selected = |role: &Value| -> Option<String> {
        let labels = role.pointer("/aggregationRule/clusterRoleSelectors/0/matchLabels")?;
        labels.as_object()?.keys().next().cloned()
    };
    for name in ["view", "edit", "admin"] {
        let is =
            |object: &Value| object["kind"] == "ClusterRole" && object["metadata"]["name"] == name;
        let Some(at) = objects.iter().position(is) else { continue };
        let Some(label) = selected(&objects[at]) else { continue };
        let parts = objects.iter().filter(|o| o["metadata"]["labels"].get(&label).is_some());
        let rules = parts.flat_map(|o| o["rules"].as_array().cloned().unwrap_or_default());
        objects[at]["rules"] = rules.collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aggregated_roles_hold_the_rules_of_their_parts() {
        let objects = rbac();
        let find = |name: &str| {
            objects.iter().find(|o| o["metadata"]["name"] == name).expect("in the table")
        };
        let count = |name: &str| find(name)["rules"].as_array().expect("rules").len();
        assert!(count("view") > 5);
        assert!(count("edit") > count("view"));
        assert!(count("admin") > count("edit"));
        assert_eq!(find("cluster-admin")["rules"][0]["verbs"], json!(["*"]));
        let binding = objects.iter().find(|o| o["kind"] == "RoleBinding").expect("in the table");
        assert_eq!(binding["roleRef"]["kind"], "Role");
        assert_eq!(binding["subjects"][0]["namespace"], "kube-system");
    }
}
