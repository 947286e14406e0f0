//! What is special about some kinds: fields the server fills in, rules their objects follow.
//!
//! A kind without a row here is served by the engine alone.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;

use bytes::Bytes;
use knarr_api::{Cause, Kind, Status};
use serde_json::{Value, json};

use crate::call::World;
use crate::claims::Claims;
use crate::object::{set, text};

mod access;
mod cluster;
mod config;
mod container;
mod crd;
mod networking;
mod part;
mod pod;
mod pod_spec;
mod service;
mod volume;
mod words;
mod workload;

use part::Part;

pub(crate) use crd::kinds_of as kinds_of_crd;

/// Whether PUT makes an object that is not there.
pub(crate) fn creates_on_update(kind: &Kind) -> bool {
    matches!(
        (kind.group.as_str(), kind.plural.as_str()),
        ("", "endpoints" | "events" | "limitranges" | "resourcequotas" | "services")
            | ("coordination.k8s.io", "leases")
            | ("events.k8s.io", "events")
    )
}

/// Fills in what the server decides for this kind; `live` is the object before an update.
pub(crate) fn prepare(world: &World<'_>, kind: &Kind, tree: &mut Value, live: Option<&Value>) {
    match (kind.group.as_str(), kind.plural.as_str(), live) {
        ("", "pods", None) => pod::prepare(tree),
        ("", "namespaces", live) => namespace(tree, live),
        ("", "services", live) => service::prepare(tree, live),
        ("", "secrets", _) => secret(tree),
        ("", "persistentvolumes" | "persistentvolumeclaims", None) => {
            set(tree, &["status", "phase"], "Pending".into());
        }
        ("apiextensions.k8s.io", "customresourcedefinitions", live) => {
            crd::prepare(tree, live, world.now);
        }
        _ => {}
    }
}

/// Fills in what is given out of a pool, and says what the write takes from it and gives back.
pub(crate) fn allocate(
    world: &World<'_>,
    kind: &Kind,
    tree: &mut Value,
    live: Option<&Value>,
) -> Result<Claims, Status> {
    if live.is_some_and(|live| live["spec"] == tree["spec"]) {
        return Ok(Claims::default());
    }
    match (kind.group.as_str(), kind.plural.as_str()) {
        ("", "services") => service::allocate(world, kind, tree, live),
        _ => Ok(Claims::default()),
    }
}

/// Keys that stand for what an object holds and that no controller makes anew.
pub(crate) fn port_claims(kind: &Kind, tree: &Value) -> Vec<(String, Bytes)> {
    match (kind.group.as_str(), kind.plural.as_str()) {
        ("", "services") => service::port_claims(tree),
        _ => Vec::new(),
    }
}

/// What an object that goes gives back.
pub(crate) fn release(world: &World<'_>, kind: &Kind, tree: &Value) -> Result<Claims, Status> {
    match (kind.group.as_str(), kind.plural.as_str()) {
        ("", "services") => service::release(world, tree),
        _ => Ok(Claims::default()),
    }
}

/// Everything that is wrong with an object of this kind, metadata aside.
pub(crate) fn validate(kind: &Kind, tree: &Value, live: Option<&Value>) -> Vec<Cause> {
    let mut causes = Vec::new();
    let out = &mut causes;
    match (kind.group.as_str(), kind.plural.as_str()) {
        // Only the status changed: what was right is right.
        _ if live
            .is_some_and(|live| tree.get("spec").is_some() && live["spec"] == tree["spec"]) => {}
        ("", "pods") => pod::validate(tree, live, out),
        ("", "nodes") => cluster::node(tree, live, out),
        ("certificates.k8s.io", "certificatesigningrequests") => {
            cluster::certificate_request(tree, out);
        }
        ("apiextensions.k8s.io", "customresourcedefinitions") => {
            cluster::definition(tree, live, out);
        }
        ("", "configmaps") => config::config_map(tree, live, out),
        ("", "secrets") => config::secret(tree, live, out),
        ("", "services") => service::service(tree, live, out),
        ("", "endpoints") => networking::endpoints(tree, out),
        ("discovery.k8s.io", "endpointslices") => networking::endpoint_slice(tree, live, out),
        ("networking.k8s.io", "networkpolicies") => networking::network_policy(tree, out),
        ("networking.k8s.io", "servicecidrs") => networking::service_cidr(tree, live, out),
        ("networking.k8s.io", "ipaddresses") => networking::ip_address(tree, live, out),
        ("apps", "deployments") => workload::deployment(tree, live, out),
        ("apps", "replicasets") => workload::replica_set(tree, live, out),
        ("apps", "statefulsets" | "daemonsets") | ("batch", "jobs") => {
            workload::pod_template(&Part::root(tree).get("spec").get("template"), out);
        }
        ("coordination.k8s.io", "leases") => service::lease(tree, out),
        ("rbac.authorization.k8s.io", "roles" | "clusterroles") => {
            access::role(tree, kind.namespaced(), out);
        }
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings") => {
            access::binding(tree, live, kind.namespaced(), out);
        }
        ("scheduling.k8s.io", "priorityclasses") => access::priority_class(tree, live, out),
        _ => {}
    }
    causes
}

fn namespace(tree: &mut Value, live: Option<&Value>) {
    let name = text(tree, "/metadata/name").to_owned();
    set(tree, &["metadata", "labels", "kubernetes.io/metadata.name"], name.into());
    if live.is_none() {
        set(tree, &["spec", "finalizers"], json!(["kubernetes"]));
        set(tree, &["status", "phase"], "Active".into());
    }
}

/// `stringData` is a convenience for writers: it becomes `data`.
fn secret(tree: &mut Value) {
    use base64::Engine;
    let Some(plain) = crate::object::remove(tree, &["stringData"]) else { return };
    for (key, value) in plain.as_object().into_iter().flatten() {
        let encoded = base64::engine::general_purpose::STANDARD
            .encode(value.as_str().unwrap_or_default().as_bytes());
        set(tree, &["data", key], encoded.into());
    }
}
