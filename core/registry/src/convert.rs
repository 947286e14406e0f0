//! Kinds with two faces: stored in one form, served in another group or version, too.
//!
//! The stored form of Event is core/v1, that of HorizontalPodAutoscaler autoscaling/v2. Every other
//! kind is stored as it is served and never comes here.

use alloc::borrow::ToOwned;
use alloc::string::String;

use bytes::Bytes;
use knarr_api::Kind;
use serde_json::{Value, json};

use crate::object::{remove, set, tree};

/// A served form that is not the stored one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Face {
    Event,
    Autoscaler,
}

/// Fields of events.k8s.io/v1 and what they are called in core/v1.
const EVENT_FIELDS: [(&str, &str); 7] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];
const PERCENTAGE: &str = "targetCPUUtilizationPercentage";
const CURRENT: &str = "currentCPUUtilizationPercentage";

impl Face {
    fn of(kind: &Kind) -> Option<Self> {
        match (kind.group.as_str(), kind.version.as_str(), kind.plural.as_str()) {
            ("events.k8s.io", "v1", "events") => Some(Self::Event),
            ("autoscaling", "v1", "horizontalpodautoscalers") => Some(Self::Autoscaler),
            _ => None,
        }
    }
}

/// `apiVersion` of the form in which objects of this kind are stored.
pub(crate) fn stored_version(kind: &Kind) -> String {
    match Face::of(kind) {
        Some(Face::Event) => "v1".to_owned(),
        Some(Face::Autoscaler) => "autoscaling/v2".to_owned(),
        None => kind.api_version(),
    }
}

/// Turns an object as it is served into the form that is stored.
pub(crate) fn to_stored(kind: &Kind, tree: &mut Value) {
    match Face::of(kind) {
        Some(Face::Event) => rename(tree, EVENT_FIELDS.iter().copied()),
        Some(Face::Autoscaler) => {
            let target = remove(tree, &["spec", PERCENTAGE]);
            if let Some(percent) = target.filter(|percent| !percent.is_null()) {
                let target = json!({"type": "Utilization", "averageUtilization": percent});
                let cpu =
                    json!({"type": "Resource", "resource": {"name": "cpu", "target": target}});
                set(tree, &["spec", "metrics"], json!([cpu]));
            }
            remove(tree, &["status", CURRENT]);
        }
        None => {}
    }
}

fn to_served(face: Face, tree: &mut Value) {
    match face {
        Face::Event => rename(tree, EVENT_FIELDS.iter().map(|(served, stored)| (*stored, *served))),
        Face::Autoscaler => {
            let metrics = remove(tree, &["spec", "metrics"]).unwrap_or_default();
            let metrics = metrics.as_array().into_iter().flatten();
            let cpu = metrics.filter(|metric| metric["resource"]["name"] == "cpu");
            let percent =
                cpu.filter_map(|cpu| cpu.pointer("/resource/target/averageUtilization")).next();
            if let Some(percent) = percent {
                set(tree, &["spec", PERCENTAGE], percent.clone());
            }
            for field in
                [&["spec", "behavior"], &["status", "currentMetrics"], &["status", "conditions"]]
            {
                remove(tree, field);
            }
        }
    }
}

fn rename<'a>(tree: &mut Value, fields: impl Iterator<Item = (&'a str, &'a str)>) {
    let Some(object) = tree.as_object_mut() else { return };
    for (from, to) in fields {
        if let Some(value) = object.remove(from) {
            object.insert(to.to_owned(), value);
        }
    }
}

/// Stored bytes in the form that this kind is served in; the same bytes for nearly every kind.
pub(crate) fn served(kind: &Kind, value: &Bytes) -> Bytes {
    let Some(face) = Face::of(kind) else { return value.clone() };
    let Ok(mut object) = tree(value) else { return value.clone() };
    to_served(face, &mut object);
    knarr_schema::encode(&kind.kind, &kind.api_version(), &object).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use knarr_api::Catalog;

    #[test]
    fn both_faces_of_an_object_say_the_same() {
        let catalog = Catalog::builtin();
        let cases = [
            (
                "events.k8s.io/v1",
                "Event",
                json!({"metadata": {"name": "e"}, "note": "n",
                "regarding": {"name": "p"}, "reportingController": "c", "deprecatedCount": 3}),
            ),
            (
                "autoscaling/v1",
                "HorizontalPodAutoscaler",
                json!({"metadata": {"name": "h"},
                "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 50}}),
            ),
        ];
        for (api_version, name, object) in cases {
            let kind = catalog.kind(api_version, name).expect("served");
            let mut stored = object.clone();
            to_stored(kind, &mut stored);
            assert_ne!(stored, object);
            let bytes = knarr_schema::encode(name, &stored_version(kind), &stored).into();
            let shown = tree(&served(kind, &bytes)).expect("an object");
            assert_eq!((&shown["apiVersion"], &shown["kind"]), (&json!(api_version), &json!(name)));
            for (key, value) in object.as_object().expect("an object") {
                assert_eq!(&shown[key], value, "{key}");
            }
        }
    }
}
