//! Object metadata: what the server fills in, what may never change, what is wrong with it.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use jiff::Timestamp;
use knarr_api::{Cause, Kind, ObjectKey, Reason, Status, names};
use serde_json::{Value, json};

use crate::object::{remove, set, text};

const MAX_ANNOTATIONS: usize = 256 * 1024;
const SUFFIX_LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// Kinds whose spec changes are counted in `metadata.generation`.
const COUNTED: &[&str] = &[
    "pods",
    "replicationcontrollers",
    "daemonsets",
    "deployments",
    "replicasets",
    "statefulsets",
    "jobs",
    "cronjobs",
    "ingresses",
    "ingressclasses",
    "networkpolicies",
    "poddisruptionbudgets",
    "customresourcedefinitions",
    "flowschemas",
    "prioritylevelconfigurations",
    "mutatingadmissionpolicies",
    "mutatingadmissionpolicybindings",
    "validatingadmissionpolicies",
    "validatingadmissionpolicybindings",
    "mutatingwebhookconfigurations",
    "validatingwebhookconfigurations",
    "deviceclasses",
    "endpointslices",
    "runtimeclasses",
];

fn counts_generations(kind: &Kind) -> bool {
    kind.custom || COUNTED.contains(&kind.plural.as_str())
}

/// RFC 3339 in whole seconds, as metav1.Time goes over the wire.
pub(crate) fn seconds(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A random (version 4) uid.
pub(crate) fn uid(seed: u128) -> String {
    let bits = (seed & !(0xf << 76) & !(0x3 << 62)) | 0x4 << 76 | 0x2 << 62;
    let hex = format!("{bits:032x}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

/// Five random letters after `prefix`, which is cut so that the name stays a label.
pub(crate) fn generated_name(prefix: &str, seed: u128) -> String {
    let mut name = prefix[..prefix.len().min(58)].to_owned();
    let mut rest = seed;
    for _ in 0..5 {
        name.push(SUFFIX_LETTERS[(rest % SUFFIX_LETTERS.len() as u128) as usize] as char);
        rest /= SUFFIX_LETTERS.len() as u128;
    }
    name
}

/// Fills in what the server decides at creation.
pub(crate) fn prepare_create(
    kind: &Kind,
    tree: &mut Value,
    namespace: &str,
    now: Timestamp,
    seed: u128,
) {
    let name = text(tree, "/metadata/name");
    let prefix = text(tree, "/metadata/generateName");
    if name.is_empty() && !prefix.is_empty() {
        let name = generated_name(prefix, seed >> 64);
        set(tree, &["metadata", "name"], name.into());
    }
    for key in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "resourceVersion"] {
        remove(tree, &["metadata", key]);
    }
    if kind.namespaced() {
        set(tree, &["metadata", "namespace"], namespace.into());
    } else {
        remove(tree, &["metadata", "namespace"]);
    }
    set(tree, &["metadata", "uid"], uid(seed).into());
    set(tree, &["metadata", "creationTimestamp"], seconds(now).into());
    match counts_generations(kind) {
        true => set(tree, &["metadata", "generation"], 1.into()),
        false => drop(remove(tree, &["metadata", "generation"])),
    }
    if kind.has_status() {
        tree.as_object_mut().map(|object| object.remove("status"));
    }
}

/// Keeps what never changes, counts the generation when anything but metadata and status did.
pub(crate) fn prepare_update(kind: &Kind, tree: &mut Value, live: &Value) {
    for key in [
        "namespace",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "uid",
        "generateName",
    ] {
        match live["metadata"].get(key) {
            Some(value) => set(tree, &["metadata", key], value.clone()),
            None => drop(remove(tree, &["metadata", key])),
        }
    }
    remove(tree, &["metadata", "resourceVersion"]);
    remove(tree, &["metadata", "selfLink"]);
    if counts_generations(kind) && desired(tree) != desired(live) {
        let generation = live.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or(0);
        set(tree, &["metadata", "generation"], (generation + 1).into());
    }
}

/// The object without what the system reports about it.
fn desired(tree: &Value) -> Vec<(&String, &Value)> {
    let parts = tree.as_object().into_iter().flatten();
    parts
        .filter(|(key, _)| !["metadata", "status", "kind", "apiVersion"].contains(&key.as_str()))
        .collect()
}

/// Checks that what was sent is meant for the object in the URL.
pub(crate) fn check_target(
    kind: &Kind,
    tree: &mut Value,
    target: &ObjectKey,
) -> Result<(), Status> {
    let (namespace, name) = (text(tree, "/metadata/namespace"), text(tree, "/metadata/name"));
    if kind.namespaced() && !namespace.is_empty() && namespace != target.namespace {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    if !target.name.is_empty() && name != target.name && !name.is_empty() {
        return Err(Status::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            target.name
        )));
    }
    if !target.name.is_empty() && name.is_empty() {
        set(tree, &["metadata", "name"], target.name.as_str().into());
    }
    Ok(())
}

/// Compares what a writer expects (`resourceVersion`, `uid`) with the object as it is.
pub(crate) fn check_expectations(kind: &Kind, sent: &Value, live: &Value) -> Result<(), Status> {
    let name = text(live, "/metadata/name");
    let conflict = |why: &str| Status::conflict(kind.group_resource(), name, why);
    let wanted = text(sent, "/metadata/resourceVersion");
    if !wanted.is_empty() && wanted != "0" && wanted != text(live, "/metadata/resourceVersion") {
        return Err(conflict(
            "the object has been modified; please apply your changes to the latest version and try \
             again",
        ));
    }
    let (wanted, uid) = (text(sent, "/metadata/uid"), text(live, "/metadata/uid"));
    if !wanted.is_empty() && wanted != uid {
        return Err(conflict(&format!(
            "Precondition failed: UID in precondition: {wanted}, UID in object meta: {uid}"
        )));
    }
    Ok(())
}

/// Which rule an object's name has to follow.
fn name_rule(kind: &Kind) -> fn(&str) -> names::Verdict {
    match kind.plural.as_str() {
        "namespaces" => names::dns1123_label,
        "services" => names::dns1035_label,
        "ipaddresses" => |name| knarr_api::ip::parse(name).map(|_| ()),
        "roles" | "clusterroles" | "rolebindings" | "clusterrolebindings" => names::path_segment,
        "certificatesigningrequests" | "apiservices" | "customresourcedefinitions" => {
            names::dns1123_subdomain
        }
        _ => names::dns1123_subdomain,
    }
}

/// Everything that is wrong with the metadata of a new object.
pub(crate) fn validate(kind: &Kind, tree: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let name = text(tree, "/metadata/name");
    if name.is_empty() {
        causes.push(Cause::required("metadata.name", "name or generateName is required"));
    } else if let Err(why) = name_rule(kind)(name) {
        causes.push(Cause::invalid("metadata.name", &tree["metadata"]["name"], &why));
    }
    if kind.namespaced() && text(tree, "/metadata/namespace").is_empty() {
        causes.push(Cause::required("metadata.namespace", ""));
    }
    validate_words(&tree["metadata"], "metadata", &mut causes);
    validate_owners(&tree["metadata"], &mut causes);
    for (at, finalizer) in
        tree["metadata"]["finalizers"].as_array().into_iter().flatten().enumerate()
    {
        if let Err(why) = names::qualified_name(finalizer.as_str().unwrap_or_default()) {
            causes.push(Cause::invalid(format!("metadata.finalizers[{at}]"), finalizer, &why));
        }
    }
    causes
}

/// Labels and annotations, of an object or of a template.
pub(crate) fn validate_words(metadata: &Value, at: &str, causes: &mut Vec<Cause>) {
    for (key, value) in metadata["labels"].as_object().into_iter().flatten() {
        if let Err(why) = names::qualified_name(key) {
            causes.push(Cause::invalid(format!("{at}.labels"), &json!(key), &why));
        }
        if let Err(why) = names::label_value(value.as_str().unwrap_or_default()) {
            causes.push(Cause::invalid(format!("{at}.labels"), value, &why));
        }
    }
    let mut size = 0;
    for (key, value) in metadata["annotations"].as_object().into_iter().flatten() {
        size += key.len() + value.as_str().map_or(0, str::len);
        if let Err(why) = names::qualified_name(&key.to_ascii_lowercase()) {
            causes.push(Cause::invalid(format!("{at}.annotations"), &json!(key), &why));
        }
    }
    if size > MAX_ANNOTATIONS {
        causes.push(Cause::too_long(format!("{at}.annotations"), MAX_ANNOTATIONS));
    }
}

fn validate_owners(metadata: &Value, causes: &mut Vec<Cause>) {
    let mut controllers = 0;
    for (at, owner) in metadata["ownerReferences"].as_array().into_iter().flatten().enumerate() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if text(owner, &format!("/{field}")).is_empty() {
                let path = format!("metadata.ownerReferences[{at}].{field}");
                causes.push(Cause::invalid(path, &json!(""), "must not be empty"));
            }
        }
        controllers += usize::from(owner["controller"] == true);
    }
    if controllers > 1 {
        causes.push(Cause::invalid(
            "metadata.ownerReferences",
            &metadata["ownerReferences"],
            "Only one reference can have Controller set to true",
        ));
    }
}

/// What an update may not do to metadata.
pub(crate) fn validate_update(tree: &Value, live: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let names = |tree: &Value| crate::object::strings(tree, "/metadata/finalizers");
    if !text(live, "/metadata/deletionTimestamp").is_empty() {
        let old = names(live);
        let added: Vec<String> = names(tree).into_iter().filter(|f| !old.contains(f)).collect();
        if !added.is_empty() {
            causes.push(Cause::forbidden(
                "metadata.finalizers",
                &format!(
                    "no new finalizers can be added if the object is being deleted, found new \
                     finalizers []string{{{}}}",
                    added.iter().map(|f| format!("{f:?}")).collect::<Vec<_>>().join(", ")
                ),
            ));
        }
    }
    causes
}

/// The generated name was taken each time.
pub(crate) fn name_exhausted(kind: &Kind, prefix: &str) -> Status {
    let resource = kind.group_resource();
    let mut status = Status::new(
        Reason::AlreadyExists,
        format!(
            "{resource} {prefix:?} already exists, the server was not able to generate \
             a unique name for the object"
        ),
    );
    status.details = Some(json!({"name": prefix, "kind": kind.plural, "retryAfterSeconds": 1}));
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uids_are_version_four() {
        let uid = uid(u128::MAX);
        assert_eq!(uid.len(), 36);
        assert_eq!((&uid[14..15], &uid[19..20]), ("4", "b"));
        assert_ne!(super::uid(1), super::uid(2));
    }

    #[test]
    fn generation_counts_changes_of_the_wish_only() {
        let catalog = knarr_api::Catalog::builtin();
        let kind = catalog.kind("apps/v1", "Deployment").expect("served");
        let live = json!({"metadata": {"name": "a", "generation": 4}, "spec": {"replicas": 1}});
        let mut same = json!({"metadata": {"name": "a", "labels": {"a": "b"}},
            "spec": {"replicas": 1}, "status": {"replicas": 1}});
        prepare_update(kind, &mut same, &live);
        assert_eq!(same["metadata"]["generation"], 4);
        let mut other = json!({"metadata": {"name": "a"}, "spec": {"replicas": 2}});
        prepare_update(kind, &mut other, &live);
        assert_eq!(other["metadata"]["generation"], 5);
    }
}
