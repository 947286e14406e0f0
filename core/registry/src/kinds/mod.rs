//! What is special about some kinds: fields the server fills in, rules their objects follow.
//!
//! A kind without a row here is served by the engine alone.

use alloc::borrow::ToOwned;
use alloc::vec::Vec;

use knarr_api::{Cause, Kind};
use serde_json::{Value, json};

use crate::call::World;
use crate::object::{set, text};

mod crd;
mod pod;

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

/// Everything that is wrong with an object of this kind, metadata aside.
pub(crate) fn validate(kind: &Kind, tree: &Value, live: Option<&Value>) -> Vec<Cause> {
    match (kind.group.as_str(), kind.plural.as_str()) {
        ("", "pods") => pod::validate(tree, live),
        _ => Vec::new(),
    }
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
