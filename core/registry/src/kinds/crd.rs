//! CustomResourceDefinitions: kinds declared at run time become rows of the Catalog.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use jiff::Timestamp;
use knarr_api::{Kind, Scope, Subresource};
use serde_json::{Value, json};

use crate::meta::seconds;
use crate::object::{strings, text};

const ALL: &str = "delete,deletecollection,get,list,patch,create,update,watch";

/// Names are accepted and served at once: there is one catalog and nobody to race with.
pub(super) fn prepare(crd: &mut Value, live: Option<&Value>, now: Timestamp) {
    let names = &mut crd["spec"]["names"];
    let kind = text(names, "/kind").to_owned();
    if text(names, "/singular").is_empty() {
        names["singular"] = kind.to_lowercase().into();
    }
    if text(names, "/listKind").is_empty() {
        names["listKind"] = format!("{kind}List").into();
    }
    let accepted = names.clone();
    let storage = versions(crd).find(|version| version["storage"] == true);
    let storage = storage.map(|version| text(version, "/name").to_owned()).unwrap_or_default();
    let mut stored = live.map(|live| strings(live, "/status/storedVersions")).unwrap_or_default();
    if !stored.contains(&storage) {
        stored.push(storage);
    }
    let old = live.map(|live| live["status"]["conditions"].clone());
    let fresh = || {
        let condition = |kind: &str, reason: &str, message: &str| {
            json!({"type": kind, "status": "True", "lastTransitionTime": seconds(now),
                "reason": reason, "message": message})
        };
        json!([
            condition("NamesAccepted", "NoConflicts", "no conflicts found"),
            condition(
                "Established",
                "InitialNamesAccepted",
                "the initial names have been accepted"
            )
        ])
    };
    let conditions = old.filter(Value::is_array).unwrap_or_else(fresh);
    crd["status"] =
        json!({"conditions": conditions, "acceptedNames": accepted, "storedVersions": stored});
}

fn versions(crd: &Value) -> impl Iterator<Item = &Value> {
    crd["spec"]["versions"].as_array().into_iter().flatten()
}

/// The rows that a definition adds to the Catalog, each with the schema of its version.
pub(crate) fn kinds_of(crd: &Value) -> Vec<(Kind, Value)> {
    let served = versions(crd).filter(|version| version["served"] == true);
    served.map(|version| (kind_of(crd, version), schema_of(version))).collect()
}

fn schema_of(version: &Value) -> Value {
    version.pointer("/schema/openAPIV3Schema").cloned().unwrap_or_default()
}

fn kind_of(crd: &Value, version: &Value) -> Kind {
    let names = &crd["spec"]["names"];
    let group = text(crd, "/spec/group").to_owned();
    let name = text(version, "/name").to_owned();
    let kind = text(names, "/kind").to_owned();
    let api_version = format!("{group}/{name}");
    let verbs = |list: &str| list.split(',').map(str::to_owned).collect::<Vec<String>>();
    let sub = |name: &str, api_version: &str, kind: &str| Subresource {
        name: name.to_owned(),
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        verbs: verbs("get,patch,update"),
    };
    let mut subresources = Vec::new();
    if version["subresources"]["status"].is_object() {
        subresources.push(sub("status", &api_version, &kind));
    }
    if version["subresources"]["scale"].is_object() {
        subresources.push(sub("scale", "autoscaling/v1", "Scale"));
    }
    Kind {
        type_name: format!("{group}.{name}.{kind}"),
        plural: text(names, "/plural").to_owned(),
        singular: text(names, "/singular").to_owned(),
        scope: match text(crd, "/spec/scope") {
            "Cluster" => Scope::Cluster,
            _ => Scope::Namespaced,
        },
        verbs: verbs(ALL),
        short_names: strings(names, "/shortNames"),
        categories: strings(names, "/categories"),
        selectable: selectable(version),
        subresources,
        version: name,
        group,
        kind,
        custom: true,
    }
}

fn selectable(version: &Value) -> Vec<String> {
    let fields = version["selectableFields"].as_array().into_iter().flatten();
    fields.map(|field| text(field, "/jsonPath").trim_start_matches('.').to_owned()).collect()
}
