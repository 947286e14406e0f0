//! The Pods behind a Service, and the Services in front of a Pod.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::IpAddr;

use knarr_api::ip::Family;
use knarr_reconcile::{Key, Row, View};
use serde_json::{Value, json};

use crate::claim::finished;
use crate::finder::{PODS, SERVICES, items, text};

fn selects(service: &Row, pod: &Row) -> bool {
    let labels = &pod.facts.labels;
    let selector = service.facts.selector.as_ref().filter(|selector| !selector.is_empty());
    selector.is_some_and(|s| s.iter().all(|(key, value)| labels.get(key) == Some(value)))
}

/// The Services that select a Pod.
pub(crate) fn services_of(view: &View, pod: &Row) -> Vec<Key> {
    let services = view.in_namespace(SERVICES, &pod.key.namespace);
    let of_pod = services.filter(|service| selects(service, pod));
    of_pod.map(|row| Key { resource: SERVICES, object: row.key.clone() }).collect()
}

/// A Pod as an endpoint.
pub(crate) struct Backend<'a> {
    pub(crate) row: &'a Row,
    pub(crate) tree: Value,
}

/// The Pods that a Service selects, that have an address and have not ended.
pub(crate) fn backends<'a>(view: &'a View, service: &'a Row) -> impl Iterator<Item = Backend<'a>> {
    let pods = view.in_namespace(PODS, &service.key.namespace);
    let pods = pods.filter(|pod| selects(service, pod));
    pods.map(|row| Backend { row, tree: row.tree() })
        .filter(|pod| !finished(&pod.tree) && pod.addresses().next().is_some())
}

impl Backend<'_> {
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        items(&self.tree, "/status/podIPs").filter_map(|ip| text(ip, "/ip").parse().ok())
    }

    /// Its addresses of one family, as text.
    pub(crate) fn of_family(&self, family: Family) -> Vec<String> {
        use alloc::string::ToString;
        let of_family = self.addresses().filter(|address| Family::of(*address) == family);
        of_family.map(|address| address.to_string()).collect()
    }

    pub(crate) fn ready(&self) -> bool {
        items(&self.tree, "/status/conditions")
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    }

    pub(crate) fn terminating(&self) -> bool {
        self.row.facts.deleting()
    }

    /// ObjectReference to it.
    pub(crate) fn target(&self) -> Value {
        let key = &self.row.key;
        json!({"kind": "Pod", "namespace": key.namespace, "name": key.name,
            "uid": self.row.facts.uid})
    }

    pub(crate) fn node(&self) -> &str {
        &self.row.facts.node
    }

    /// Its name below the Service's, if it asked for one.
    pub(crate) fn hostname(&self, service: &Row) -> Option<&str> {
        let named = text(&self.tree, "/spec/subdomain") == service.key.name;
        Some(text(&self.tree, "/spec/hostname")).filter(|name| named && !name.is_empty())
    }

    /// The number of the port that a port of the Service leads to.
    pub(crate) fn port(&self, service_port: &Value) -> Option<i64> {
        let target = &service_port["targetPort"];
        let Some(name) = target.as_str() else {
            return target.as_i64().or(service_port["port"].as_i64());
        };
        let sidecars = items(&self.tree, "/spec/initContainers")
            .filter(|container| container["restartPolicy"] == "Always");
        let containers = items(&self.tree, "/spec/containers").chain(sidecars);
        let mut ports = containers.flat_map(|container| items(container, "/ports"));
        let found = ports.find(|port| {
            port["name"] == name && word(port, "protocol") == word(service_port, "protocol")
        });
        found.and_then(|port| port["containerPort"].as_i64())
    }
}

fn word<'a>(port: &'a Value, field: &str) -> &'a str {
    port[field].as_str().unwrap_or("TCP")
}

/// Whether a Service has no address of its own.
pub(crate) fn is_headless(service: &Value) -> bool {
    matches!(text(service, "/spec/clusterIP"), "" | "None")
}

/// A port of a Service as one of an endpoint.
pub(crate) fn endpoint_port(service_port: &Value, number: i64) -> Value {
    let mut port = json!({"name": service_port["name"].as_str().unwrap_or_default(),
        "port": number, "protocol": word(service_port, "protocol")});
    if let Some(protocol) = service_port["appProtocol"].as_str() {
        port["appProtocol"] = protocol.to_owned().into();
    }
    port
}
