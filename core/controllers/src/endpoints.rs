//! Endpoints: the older form of EndpointSlices, one object a Service, at most 1,000 addresses.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use knarr_api::ip::Family;
use knarr_reconcile::{Controller, Ctx, Key, Plan, Row, View, Wake, Watch, Write};
use serde_json::{Value, json};

use crate::finder::{ENDPOINTS, PODS, SERVICES, items, text};
use crate::selected::{Backend, backends, endpoint_port, is_headless, services_of};

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";
const HEADLESS: &str = "service.kubernetes.io/headless";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const MAX_ADDRESSES: usize = 1000;

/// The row. Its keys are Services.
pub fn controller() -> Controller {
    Controller {
        name: "endpoints-controller",
        user: "system:serviceaccount:kube-system:endpoint-controller",
        watches: Vec::from([
            Watch { resource: SERVICES, wake: Wake::Itself },
            Watch { resource: PODS, wake: Wake::With(|view, _, pod| services_of(view, pod)) },
            Watch { resource: ENDPOINTS, wake: Wake::With(|view, _, row| of_service(view, row)) },
        ]),
        reconcile,
    }
}

/// Endpoints that people write for themselves are none of our business.
fn of_service(view: &View, row: &Row) -> Vec<Key> {
    let service = view.get(SERVICES, &row.key);
    let ours = row.facts.labels.get(MANAGED_BY).is_some_and(|by| by == MANAGER);
    let key = Key { resource: SERVICES, object: row.key.clone() };
    (ours || service.is_some()).then_some(key).into_iter().collect()
}

fn reconcile(view: &View, key: &Key, _: &Ctx<'_>) -> Plan {
    let existing = view.get(ENDPOINTS, &key.object);
    let Some(row) = view.get(SERVICES, &key.object) else {
        let Some(existing) = existing else { return Plan::none() };
        let absent =
            Write::Absent { resource: SERVICES, object: key.object.clone(), uid: String::new() };
        let gone = Plan::writes([absent].into());
        return gone.then([Write::delete(ENDPOINTS, existing)].into());
    };
    let service = row.tree();
    if row.facts.selector.is_none() || text(&service, "/spec/type") == "ExternalName" {
        return Plan::none();
    }
    let mut subsets = subsets(view, row, &service);
    let cut = truncate(&mut subsets);
    let mut labels = json!(row.facts.labels);
    labels.as_object_mut().map(|labels| labels.remove(HEADLESS));
    if is_headless(&service) {
        labels[HEADLESS] = "".into();
    }
    labels[MANAGED_BY] = MANAGER.into();
    let mut tree = existing.map(Row::tree).unwrap_or_else(|| {
        json!({
        "apiVersion": "v1", "kind": "Endpoints", "metadata": {
        "name": row.key.name, "namespace": row.key.namespace}})
    });
    let before = tree.clone();
    tree["metadata"]["labels"] = labels;
    match cut {
        true => tree["metadata"]["annotations"][OVER_CAPACITY] = "truncated".into(),
        false => {
            let annotations = tree["metadata"].get_mut("annotations");
            annotations.and_then(Value::as_object_mut).map(|map| map.remove(OVER_CAPACITY));
        }
    }
    match subsets.is_empty() {
        true => drop(tree.as_object_mut().map(|tree| tree.remove("subsets"))),
        false => tree["subsets"] = subsets.into(),
    }
    match existing {
        Some(_) if tree == before => Plan::none(),
        Some(existing) => Plan::writes([Write::put_exact(ENDPOINTS, existing, "", tree)].into()),
        None if row.facts.deleting() => Plan::none(),
        None => Plan::writes(
            [Write::Create {
                resource: ENDPOINTS,
                namespace: row.key.namespace.clone(),
                object: tree,
            }]
            .into(),
        ),
    }
}

/// Addresses by the ports they serve, ready and not.
#[derive(Default)]
struct Subset {
    ports: Vec<Value>,
    ready: BTreeMap<String, Value>,
    others: BTreeMap<String, Value>,
}

fn subsets(view: &View, row: &Row, service: &Value) -> Vec<Value> {
    let published = service["spec"]["publishNotReadyAddresses"] == true;
    let mut subsets: BTreeMap<String, Subset> = BTreeMap::new();
    for pod in backends(view, row).filter(|pod| published || !pod.terminating()) {
        let Some(address) = own_family(service, &pod) else { continue };
        let ports: Vec<Value> = items(service, "/spec/ports")
            .filter_map(|port| Some(bare(endpoint_port(port, pod.port(port)?))))
            .collect();
        if ports.is_empty() && items(service, "/spec/ports").next().is_some() {
            continue;
        }
        let shown = shown(row, &pod, &address);
        let subset = subsets.entry(Value::from(ports.clone()).to_string()).or_default();
        subset.ports = ports;
        match published || pod.ready() {
            true => subset.ready.insert(address, shown),
            false => subset.others.insert(address, shown),
        };
    }
    subsets.into_values().map(Subset::object).collect()
}

impl Subset {
    fn object(self) -> Value {
        let mut object = json!({});
        let lists = [
            ("addresses", self.ready.into_values().collect::<Vec<_>>()),
            ("notReadyAddresses", self.others.into_values().collect()),
            ("ports", self.ports),
        ];
        for (field, list) in lists {
            if !list.is_empty() {
                object[field] = list.into();
            }
        }
        object
    }
}

/// Endpoints know one family: that of the Service's first address.
fn own_family(service: &Value, pod: &Backend<'_>) -> Option<String> {
    let first = items(service, "/spec/ipFamilies").next().and_then(Value::as_str);
    let family = first.and_then(Family::parse).unwrap_or(Family::V4);
    pod.of_family(family).into_iter().next()
}

/// A port without a name has none here.
fn bare(mut port: Value) -> Value {
    if port["name"] == "" {
        port.as_object_mut().map(|port| port.remove("name"));
    }
    port
}

fn shown(service: &Row, pod: &Backend<'_>, address: &str) -> Value {
    let mut shown = json!({"ip": address, "targetRef": pod.target()});
    if !pod.node().is_empty() {
        shown["nodeName"] = pod.node().into();
    }
    if let Some(name) = pod.hostname(service) {
        shown["hostname"] = name.into();
    }
    shown
}

fn list<'a>(subset: &'a mut Value, field: &str) -> Option<&'a mut Vec<Value>> {
    subset.get_mut(field)?.as_array_mut()
}

/// Cuts what is too much, those not ready first.
fn truncate(subsets: &mut [Value]) -> bool {
    let mut room = MAX_ADDRESSES;
    let mut cut = false;
    for field in ["addresses", "notReadyAddresses"] {
        for list in subsets.iter_mut().filter_map(|subset| list(subset, field)) {
            cut |= list.len() > room;
            list.truncate(room);
            room -= list.len();
        }
    }
    cut
}
