//! EndpointSlices: which Pods are behind a Service, and in what state (KEP-752, KEP-1672).

use alloc::string::ToString;
use alloc::vec::Vec;

use knarr_api::ObjectKey;
use knarr_api::ip::Family;
use knarr_reconcile::{Controller, Ctx, Key, Plan, Row, View, Wake, Watch};
use serde_json::{Value, json};

use crate::finder::{ENDPOINT_SLICES, PODS, SERVICES, items, text};
use crate::node_ipam::NODES;
use crate::selected::{Backend, backends, endpoint_port, is_headless, services_of};
use crate::slices::{Group, Owned, reconcile as settle};

const MANAGER: &str = "endpointslice-controller.k8s.io";
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const HEADLESS: &str = "service.kubernetes.io/headless";
const ZONE: &str = "topology.kubernetes.io/zone";

/// The row.
pub fn controller() -> Controller {
    Controller {
        name: "endpointslice-controller",
        user: "system:serviceaccount:kube-system:endpointslice-controller",
        watches: Vec::from([
            Watch { resource: SERVICES, wake: Wake::Itself },
            Watch { resource: PODS, wake: Wake::With(|view, _, pod| services_of(view, pod)) },
            Watch { resource: ENDPOINT_SLICES, wake: Wake::Controller(SERVICES, "Service") },
            Watch { resource: NODES, wake: Wake::With(|view, _, node| on_node(view, node)) },
        ]),
        reconcile,
    }
}

/// A node that comes, or changes its zone, concerns the Services of its Pods.
fn on_node(view: &View, node: &Row) -> Vec<Key> {
    let pods = view.on_node(PODS, &node.key.name);
    let mut keys: Vec<Key> = pods.flat_map(|pod| services_of(view, pod)).collect();
    keys.sort();
    keys.dedup();
    keys
}

fn reconcile(view: &View, key: &Key, ctx: &Ctx<'_>) -> Plan {
    let Some(row) = view.get(SERVICES, &key.object) else { return Plan::none() };
    let service = row.tree();
    if row.facts.selector.is_none() || text(&service, "/spec/type") == "ExternalName" {
        return Plan::none();
    }
    let families: Vec<Family> = items(&service, "/spec/ipFamilies")
        .filter_map(|family| Family::parse(family.as_str()?))
        .collect();
    let mut groups: Vec<Group> = Vec::new();
    for pod in backends(view, row) {
        let node = view.get(NODES, &ObjectKey::new("", pod.node()));
        if node.is_none() && service["spec"]["publishNotReadyAddresses"] != true {
            continue;
        }
        let ports = ports(&service, &pod);
        for family in &families {
            let addresses = pod.of_family(*family);
            if addresses.is_empty() {
                continue;
            }
            let endpoint = endpoint(&service, row, &pod, node, addresses);
            let same = |group: &&mut Group| group.family == *family && group.ports == ports;
            match groups.iter_mut().find(same) {
                Some(group) => group.endpoints.push(endpoint),
                None => groups.push(Group {
                    family: *family,
                    ports: ports.clone(),
                    endpoints: Vec::from([endpoint]),
                }),
            }
        }
    }
    let existing: Vec<&Row> = view.controlled_by(ENDPOINT_SLICES, &row.facts.uid).collect();
    let labels = labels(&service, row);
    let owned = Owned {
        owner: row,
        resource: SERVICES,
        kind: "Service",
        labels,
        annotations: Value::Null,
        seed: ctx.seed,
    };
    settle(&owned, &families, &existing, groups)
}

fn ports(service: &Value, pod: &Backend<'_>) -> Value {
    let ports = items(service, "/spec/ports");
    ports.filter_map(|port| Some(endpoint_port(port, pod.port(port)?))).collect()
}

/// The Service's labels, and those that say whose the slice is.
fn labels(service: &Value, row: &Row) -> Value {
    let mut labels = json!(row.facts.labels);
    for reserved in [SERVICE_NAME, MANAGED_BY, HEADLESS] {
        labels.as_object_mut().map(|labels| labels.remove(reserved));
    }
    if is_headless(service) {
        labels[HEADLESS] = "".into();
    }
    labels[SERVICE_NAME] = row.key.name.as_str().into();
    labels[MANAGED_BY] = MANAGER.into();
    labels
}

fn endpoint(
    service: &Value,
    row: &Row,
    pod: &Backend<'_>,
    node: Option<&Row>,
    addresses: Vec<alloc::string::String>,
) -> Value {
    let (serving, terminating) = (pod.ready(), pod.terminating());
    let published = service["spec"]["publishNotReadyAddresses"] == true;
    let ready = published || serving && !terminating;
    let mut endpoint = json!({
        "addresses": addresses,
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
        "targetRef": pod.target(),
    });
    if !pod.node().is_empty() {
        endpoint["nodeName"] = pod.node().into();
    }
    let zone = node.and_then(|node| node.facts.labels.get(ZONE)).filter(|zone| !zone.is_empty());
    if let Some(zone) = zone {
        endpoint["zone"] = zone.as_str().into();
    }
    if let Some(name) = pod.hostname(row) {
        endpoint["hostname"] = name.into();
    }
    if ready && let Some(hints) = hints(service, pod, zone.map(ToString::to_string)) {
        endpoint["hints"] = hints;
    }
    endpoint
}

/// Who should prefer this endpoint (`trafficDistribution`, KEP-4444, KEP-3015).
fn hints(service: &Value, pod: &Backend<'_>, zone: Option<alloc::string::String>) -> Option<Value> {
    let wish = text(service, "/spec/trafficDistribution");
    let by_node = wish == "PreferSameNode" && !pod.node().is_empty();
    let by_zone = matches!(wish, "PreferClose" | "PreferSameZone" | "PreferSameNode");
    let mut hints = json!({});
    if let Some(zone) = zone.filter(|_| by_zone) {
        hints["forZones"] = json!([{"name": zone}]);
    }
    if by_node {
        hints["forNodes"] = json!([{"name": pod.node()}]);
    }
    (hints != json!({})).then_some(hints)
}
