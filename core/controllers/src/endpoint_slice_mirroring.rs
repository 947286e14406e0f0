//! Endpoints that people write for Services without a selector, mirrored into EndpointSlices
//! (KEP-752).

use alloc::vec::Vec;
use core::net::IpAddr;

use knarr_api::ip::Family;
use knarr_reconcile::{Controller, Ctx, Key, Plan, Row, View, Wake, Watch, Write};
use serde_json::{Value, json};

use crate::finder::{ENDPOINT_SLICES, ENDPOINTS, SERVICES, items, text};
use crate::slices::{Group, Owned, reconcile as settle};

const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const ELECTION: &str = "control-plane.alpha.kubernetes.io/leader";
/// So many addresses of a subset are mirrored (`--mirroring-max-endpoints-per-subset`).
const MAX_MIRRORED: usize = 1000;

/// The row. Its keys are Endpoints.
pub fn controller() -> Controller {
    let same_name =
        Wake::With(|_, _, row| Vec::from([Key { resource: ENDPOINTS, object: row.key.clone() }]));
    Controller {
        name: "endpointslice-mirroring-controller",
        user: "system:serviceaccount:kube-system:endpointslicemirroring-controller",
        watches: Vec::from([
            Watch { resource: ENDPOINTS, wake: Wake::Itself },
            Watch { resource: SERVICES, wake: same_name },
            Watch { resource: ENDPOINT_SLICES, wake: Wake::Controller(ENDPOINTS, "Endpoints") },
        ]),
        reconcile,
    }
}

fn reconcile(view: &View, key: &Key, ctx: &Ctx<'_>) -> Plan {
    // Slices of Endpoints that are gone go with them: they own them.
    let Some(row) = view.get(ENDPOINTS, &key.object) else { return Plan::none() };
    let existing: Vec<&Row> = view.controlled_by(ENDPOINT_SLICES, &row.facts.uid).collect();
    let tree = row.tree();
    let service = view.get(SERVICES, &key.object);
    let wanted = service.is_some_and(|service| service.facts.selector.is_none())
        && row.facts.labels.get(SKIP).is_none_or(|skip| skip != "true")
        && tree["metadata"]["annotations"].get(ELECTION).is_none();
    if !wanted {
        let gone = existing.iter().map(|row| Write::delete(ENDPOINT_SLICES, row));
        return Plan::writes(gone.collect());
    }
    let mut labels = json!(row.facts.labels);
    labels["kubernetes.io/service-name"] = row.key.name.as_str().into();
    labels["endpointslice.kubernetes.io/managed-by"] = MANAGER.into();
    let mut annotations = tree["metadata"]["annotations"].clone();
    if let Some(annotations) = annotations.as_object_mut() {
        annotations.remove("endpoints.kubernetes.io/last-change-trigger-time");
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
    let seed = ctx.seed;
    let owned =
        Owned { owner: row, resource: ENDPOINTS, kind: "Endpoints", labels, annotations, seed };
    settle(&owned, &[], &existing, groups(&tree))
}

fn groups(endpoints: &Value) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for subset in items(endpoints, "/subsets") {
        let ports: Value = items(subset, "/ports").map(port).collect();
        let ready = items(subset, "/addresses").map(|address| (address, true));
        let others = items(subset, "/notReadyAddresses").map(|address| (address, false));
        for (address, ready) in ready.chain(others).take(MAX_MIRRORED) {
            let Ok(ip) = text(address, "/ip").parse::<IpAddr>() else { continue };
            let (family, endpoint) = (Family::of(ip), endpoint(address, ip, ready));
            let same = |group: &&mut Group| group.family == family && group.ports == ports;
            match groups.iter_mut().find(same) {
                Some(group) => group.endpoints.push(endpoint),
                None => groups.push(Group {
                    family,
                    ports: ports.clone(),
                    endpoints: Vec::from([endpoint]),
                }),
            }
        }
    }
    groups
}

fn port(port: &Value) -> Value {
    let mut port = port.clone();
    if port["name"].is_null() {
        port["name"] = "".into();
    }
    port
}

fn endpoint(address: &Value, ip: IpAddr, ready: bool) -> Value {
    use alloc::string::ToString;
    let mut endpoint = json!({"addresses": [ip.to_string()], "conditions": {"ready": ready}});
    for field in ["targetRef", "nodeName", "hostname"] {
        if !address[field].is_null() && address[field] != "" {
            endpoint[field] = address[field].clone();
        }
    }
    endpoint
}
