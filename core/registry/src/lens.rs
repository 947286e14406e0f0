//! Subresources that are a part of an object: what they show of it and what they may change.

use alloc::borrow::ToOwned;
use alloc::string::String;

use knarr_api::Kind;
use serde_json::{Map, Value, json};

use crate::object::{set, text};

/// Which part of an object a write may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lens {
    /// The object itself; its status, where it has a status endpoint, stays.
    Object,
    /// Everything, status included: only for writes that the server itself makes.
    Whole,
    /// `status` and metadata.
    Status,
    /// `spec.replicas`, shown as an autoscaling/v1 Scale.
    Scale,
    /// `spec.finalizers` of a Namespace.
    Finalize,
    /// `status.conditions` of a CertificateSigningRequest.
    Approval,
    /// `spec.ephemeralContainers` of a Pod.
    EphemeralContainers,
    /// `spec.containers[*].resources` of a Pod.
    Resize,
}

impl Lens {
    /// The lens of a subresource of `kind`; `None` when it is not part of the object.
    pub(crate) fn of(kind: &Kind, subresource: &str) -> Option<Self> {
        let lens = match subresource {
            "" => return Some(Self::Object),
            "status" => Self::Status,
            "scale" => Self::Scale,
            "finalize" => Self::Finalize,
            "approval" => Self::Approval,
            "ephemeralcontainers" => Self::EphemeralContainers,
            "resize" => Self::Resize,
            _ => return None,
        };
        kind.subresource(subresource).map(|_| lens)
    }

    /// Whether it shows another kind than the object's own.
    pub(crate) fn projects(self) -> bool {
        self == Self::Scale
    }

    /// `apiVersion` and kind of what it shows.
    pub(crate) fn shows(self, kind: &Kind) -> (String, String) {
        match self {
            Self::Scale => ("autoscaling/v1".to_owned(), "Scale".to_owned()),
            _ => (kind.api_version(), kind.kind.clone()),
        }
    }

    /// What it shows of an object.
    pub(crate) fn read(self, object: &Value) -> Value {
        if self != Self::Scale {
            return object.clone();
        }
        let mut metadata = Map::new();
        for key in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
            if let Some(value) = object["metadata"].get(key) {
                metadata.insert(key.to_owned(), value.clone());
            }
        }
        let count = |pointer: &str| object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
        json!({
            "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata,
            "spec": {"replicas": count("/spec/replicas")},
            "status": {"replicas": count("/status/replicas"), "selector": selector_text(object)},
        })
    }

    /// The object with what was `sent` through this lens.
    pub(crate) fn write(self, kind: &Kind, live: &Value, mut sent: Value) -> Value {
        let take = |path: &[&str]| {
            let mut object = live.clone();
            let pointer = path.iter().fold(String::new(), |p, step| p + "/" + step);
            set(&mut object, path, sent.pointer(&pointer).cloned().unwrap_or_default());
            object
        };
        match self {
            Self::Object => {
                if kind.has_status() {
                    copy(live, &mut sent, "status");
                }
                sent
            }
            Self::Whole => sent,
            Self::Status => {
                let mut object = live.clone();
                copy(&sent, &mut object, "status");
                copy(&sent, &mut object, "metadata");
                object
            }
            Self::Scale => take(&["spec", "replicas"]),
            Self::Finalize => take(&["spec", "finalizers"]),
            Self::Approval => take(&["status", "conditions"]),
            Self::EphemeralContainers => take(&["spec", "ephemeralContainers"]),
            Self::Resize => resized(live, &sent),
        }
    }
}

/// Makes `to[key]` what `from[key]` is, absent included.
fn copy(from: &Value, to: &mut Value, key: &str) {
    match from.get(key) {
        Some(value) => to[key] = value.clone(),
        None => drop(to.as_object_mut().and_then(|object| object.remove(key))),
    }
}

fn resized(live: &Value, sent: &Value) -> Value {
    let mut object = live.clone();
    let containers = object.pointer_mut("/spec/containers").and_then(Value::as_array_mut);
    for container in containers.into_iter().flatten() {
        let sent = sent.pointer("/spec/containers").and_then(Value::as_array);
        let same = |other: &&Value| text(other, "/name") == text(container, "/name");
        if let Some(sent) = sent.into_iter().flatten().find(same) {
            container["resources"] = sent["resources"].clone();
        }
    }
    object
}

/// `spec.selector` in the form of a query, for autoscalers.
fn selector_text(object: &Value) -> String {
    let selector = &object["spec"]["selector"];
    let labels = selector.get("matchLabels").unwrap_or(selector);
    let pairs = labels.as_object().into_iter().flatten();
    let pairs = pairs.filter_map(|(k, v)| Some(alloc::format!("{k}={}", v.as_str()?)));
    pairs.collect::<alloc::vec::Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use knarr_api::Catalog;

    #[test]
    fn a_lens_changes_only_its_part() {
        let catalog = Catalog::builtin();
        let kind = catalog.kind("apps/v1", "Deployment").expect("served");
        let live = json!({"metadata": {"name": "a"}, "spec": {"replicas": 1, "paused": true},
            "status": {"replicas": 1}});
        let sent = json!({"metadata": {"name": "a", "labels": {"x": "y"}}, "spec": {"replicas": 3},
            "status": {"replicas": 9}});
        let by = |lens: Lens| lens.write(kind, &live, sent.clone());
        assert_eq!(by(Lens::Object)["status"]["replicas"], 1);
        assert_eq!(by(Lens::Object)["spec"], json!({"replicas": 3}));
        assert_eq!(by(Lens::Status)["spec"], live["spec"]);
        assert_eq!(by(Lens::Status)["status"]["replicas"], 9);
        assert_eq!(by(Lens::Scale)["spec"], json!({"replicas": 3, "paused": true}));
        assert_eq!(by(Lens::Scale)["metadata"], live["metadata"]);
    }
}
