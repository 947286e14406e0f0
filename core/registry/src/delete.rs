//! Deletes: at once, gracefully, or when the last finalizer is gone.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use jiff::{SignedDuration, Timestamp};
use knarr_api::{Cause, GroupResource, Kind, Status};
use serde_json::Value;

use crate::meta::seconds;
use crate::object::{set, strings, text};
use crate::request::RequestInfo;

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// What becomes of the objects owned by a deleted one (metav1.DeletionPropagation).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Propagation {
    Orphan,
    Background,
    Foreground,
}

/// metav1.DeleteOptions, from body and query.
#[derive(Clone, Debug, Default)]
pub(crate) struct DeleteOptions {
    grace: Option<i64>,
    propagation: Option<Propagation>,
    uid: Option<String>,
    revision: Option<String>,
    pub(crate) dry_run: bool,
}

impl DeleteOptions {
    pub(crate) fn parse(body: &[u8], info: &RequestInfo) -> Result<Self, Status> {
        let tree: Value = match body {
            [] => Value::Null,
            body => {
                serde_json::from_slice(body).map_err(|e| Status::bad_request(format!("{e}")))?
            }
        };
        let queried = |key: &str| Some(info.query.get(key)).filter(|value| !value.is_empty());
        let grace = match queried("gracePeriodSeconds") {
            Some(text) => Some(text.parse().map_err(|_| {
                Status::bad_request(format!("invalid gracePeriodSeconds {text:?}"))
            })?),
            None => tree["gracePeriodSeconds"].as_i64(),
        };
        let policy = queried("propagationPolicy").or(tree["propagationPolicy"].as_str());
        let orphan = tree["orphanDependents"].as_bool();
        if let Some((policy, _)) = policy.zip(orphan) {
            let why = "orphanDependents and deletionPropagation cannot be both set";
            return Err(refused(Cause::invalid("propagationPolicy", &policy.into(), why)));
        }
        let propagation = match (policy, orphan) {
            (Some("Orphan"), _) | (None, Some(true)) => Some(Propagation::Orphan),
            (Some("Background"), _) | (None, Some(false)) => Some(Propagation::Background),
            (Some("Foreground"), _) => Some(Propagation::Foreground),
            (None, None) => None,
            (Some(other), _) => {
                let allowed = ["Foreground", "Background", "Orphan", "nil"];
                let cause = Cause::not_supported("propagationPolicy", &other.into(), &allowed);
                return Err(refused(cause));
            }
        };
        let precondition = |key: &str| tree["preconditions"][key].as_str().map(str::to_owned);
        Ok(Self {
            grace,
            propagation,
            uid: precondition("uid"),
            revision: precondition("resourceVersion"),
            dry_run: strings(&tree, "/dryRun").iter().any(|word| word == "All"),
        })
    }
}

fn refused(cause: Cause) -> Status {
    Status::invalid_options("DeleteOptions.meta.k8s.io", &[cause])
}

/// What a delete makes of an object.
pub(crate) enum Fate {
    /// It is removed now.
    Gone,
    /// It stays, marked, until its finalizers or its node are done.
    Marked(Value),
}

/// Compares what the deleter expects with the object as it is.
pub(crate) fn check_preconditions(
    kind: &Kind,
    live: &Value,
    options: &DeleteOptions,
) -> Result<(), Status> {
    let checks = [
        ("UID", &options.uid, "/metadata/uid", "deleted and then recreated"),
        ("ResourceVersion", &options.revision, "/metadata/resourceVersion", "modified"),
    ];
    for (what, wanted, field, fear) in checks {
        let found = text(live, field);
        if let Some(wanted) = wanted.as_ref().filter(|wanted| *wanted != found) {
            let why = format!(
                "the {what} in the precondition ({wanted}) does not match the {what} in record \
                 ({found}). The object might have been {fear}"
            );
            let resource = GroupResource { group: &kind.group, resource: &kind.kind };
            return Err(Status::conflict(resource, text(live, "/metadata/name"), &why));
        }
    }
    Ok(())
}

/// Decides whether a delete removes an object or marks it.
pub(crate) fn fate(kind: &Kind, live: &Value, options: &DeleteOptions, now: Timestamp) -> Fate {
    let mut tree = live.clone();
    set_finalizers(&mut tree, wanted_finalizers(live, options));
    let marked = !text(live, "/metadata/deletionTimestamp").is_empty();
    let grace = grace(kind, live, options);
    let held = !strings(&tree, "/metadata/finalizers").is_empty()
        || !strings(&tree, "/spec/finalizers").is_empty() && kind.plural == "namespaces";
    if !held && grace == 0 {
        return Fate::Gone;
    }
    let shorter = tree["metadata"]["deletionGracePeriodSeconds"].as_i64().is_none_or(|g| grace < g);
    if !marked || shorter {
        let at = now.saturating_add(SignedDuration::from_secs(grace)).unwrap_or(now);
        set(&mut tree, &["metadata", "deletionTimestamp"], seconds(at).into());
        set(&mut tree, &["metadata", "deletionGracePeriodSeconds"], grace.into());
        if !marked && let Some(generation) = tree["metadata"]["generation"].as_i64() {
            set(&mut tree, &["metadata", "generation"], (generation + 1).into());
        }
    }
    if kind.plural == "namespaces" && kind.group.is_empty() {
        set(&mut tree, &["status", "phase"], "Terminating".into());
    }
    Fate::Marked(tree)
}

/// How long the object's keeper may take, in seconds. Only Pods that a node runs have a keeper.
fn grace(kind: &Kind, live: &Value, options: &DeleteOptions) -> i64 {
    if kind.plural != "pods" || !kind.group.is_empty() {
        return 0;
    }
    let ended = matches!(text(live, "/status/phase"), "Succeeded" | "Failed");
    if text(live, "/spec/nodeName").is_empty() || ended {
        return 0;
    }
    let own = live.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_i64);
    let wanted = options.grace.or(own).unwrap_or(30);
    // A negative period means "at once, but let the node know".
    if wanted < 0 { 1 } else { wanted }
}

/// The finalizers that propagation adds or takes away.
fn wanted_finalizers(live: &Value, options: &DeleteOptions) -> Vec<String> {
    let mut finalizers = strings(live, "/metadata/finalizers");
    if let Some(propagation) = options.propagation {
        finalizers.retain(|finalizer| finalizer != ORPHAN && finalizer != FOREGROUND);
        match propagation {
            Propagation::Orphan => finalizers.push(ORPHAN.to_owned()),
            Propagation::Foreground => finalizers.push(FOREGROUND.to_owned()),
            Propagation::Background => {}
        }
    }
    finalizers
}

fn set_finalizers(tree: &mut Value, finalizers: Vec<String>) {
    if finalizers.is_empty() {
        crate::object::remove(tree, &["metadata", "finalizers"]);
    } else {
        set(tree, &["metadata", "finalizers"], finalizers.into());
    }
}

/// Whether an object that is being deleted has nothing left to wait for.
pub(crate) fn finished(kind: &Kind, tree: &Value) -> bool {
    let waiting = !strings(tree, "/metadata/finalizers").is_empty()
        || kind.plural == "namespaces" && !strings(tree, "/spec/finalizers").is_empty();
    let grace = tree.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64);
    !text(tree, "/metadata/deletionTimestamp").is_empty() && !waiting && grace.unwrap_or(0) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use knarr_api::Catalog;
    use serde_json::json;

    fn fate_of(kind: &str, live: Value, options: &DeleteOptions) -> Option<Value> {
        let catalog = Catalog::builtin();
        let kind = catalog.kind("v1", kind).expect("served");
        match fate(kind, &live, options, Timestamp::UNIX_EPOCH) {
            Fate::Gone => None,
            Fate::Marked(tree) => Some(tree),
        }
    }

    #[test]
    fn only_running_pods_are_given_time() {
        let running = json!({"metadata": {}, "spec": {"nodeName": "n"}});
        let marked = fate_of("Pod", running.clone(), &DeleteOptions::default()).expect("marked");
        assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
        assert_eq!(marked["metadata"]["deletionTimestamp"], "1970-01-01T00:00:30Z");
        let force = DeleteOptions { grace: Some(0), ..DeleteOptions::default() };
        assert!(fate_of("Pod", running, &force).is_none());
        let pending = json!({"metadata": {}, "spec": {}});
        assert!(fate_of("Pod", pending, &DeleteOptions::default()).is_none());
        assert!(fate_of("ConfigMap", json!({"metadata": {}}), &DeleteOptions::default()).is_none());
    }

    #[test]
    fn finalizers_hold_an_object() {
        let held = json!({"metadata": {"finalizers": ["a/b"]}});
        let marked = fate_of("ConfigMap", held, &DeleteOptions::default()).expect("marked");
        assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 0);
        let foreground = DeleteOptions {
            propagation: Some(Propagation::Foreground),
            ..DeleteOptions::default()
        };
        let marked = fate_of("ConfigMap", json!({"metadata": {}}), &foreground).expect("marked");
        assert_eq!(marked["metadata"]["finalizers"], json!([FOREGROUND]));
    }
}
