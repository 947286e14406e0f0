//! A namespace on its way out: its content goes first (Pods before all else), then it.
//!
//! The view may lag behind: the last stage before the end asks the server whether anything is left.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use knarr_api::Resource;
use knarr_reconcile::{Controller, Ctx, Key, Plan, Row, View, Wake, Watch, Write};
use serde_json::{Value, json};

use crate::finder::{NAMESPACES, PODS, items, stamp};
use crate::service_account::namespace_of;

const FINALIZER: &str = "kubernetes";

/// The row; `resources` are all namespaced ones that can be watched and deleted.
pub fn controller(resources: &[Resource]) -> Controller {
    let content = resources.iter().filter(|resource| **resource != NAMESPACES);
    let content = content.map(|resource| Watch {
        resource: *resource,
        wake: Wake::With(|view, _, row| {
            let key = namespace_of(row);
            let leaving = view.get(NAMESPACES, &key.object).is_some_and(|ns| ns.facts.deleting());
            if leaving { Vec::from([key]) } else { Vec::new() }
        }),
    });
    let mut watches = Vec::from([Watch { resource: NAMESPACES, wake: Wake::Itself }]);
    watches.extend(content);
    Controller {
        name: "namespace-controller",
        user: "system:serviceaccount:kube-system:namespace-controller",
        watches,
        reconcile,
    }
}

fn reconcile(view: &View, key: &Key, ctx: &Ctx<'_>) -> Plan {
    let Some(row) = view.get(NAMESPACES, &key.object) else { return Plan::none() };
    if !row.facts.deleting() {
        return Plan::none();
    }
    let name = &row.key.name;
    let resources: Vec<Resource> = ctx
        .config
        .kinds
        .iter()
        .filter(|kind| kind.namespaced && view.watches(kind.resource))
        .map(|kind| kind.resource)
        .collect();
    let left: Vec<(Resource, &Row)> = resources
        .iter()
        .flat_map(|resource| view.in_namespace(*resource, name).map(|row| (*resource, row)))
        .collect();
    if left.is_empty() {
        return finalize(row, &resources);
    }
    // Network policies and the like outlive the Pods that they protect.
    let pods_left = left.iter().any(|(resource, _)| *resource == PODS);
    let turn = |resource: Resource| !pods_left || resource == PODS;
    let doomed = left.iter().filter(|(resource, row)| turn(*resource) && !row.facts.deleting());
    let writes = doomed.map(|(resource, row)| Write::delete(*resource, row)).collect();
    let status =
        Write::status(NAMESPACES, row, &json!({"conditions": conditions(row, &left, ctx)}));
    Plan::writes(status.into_iter().collect()).then(writes)
}

/// Lets the namespace go, once the server has nothing in it either.
fn finalize(row: &Row, resources: &[Resource]) -> Plan {
    let mut tree = row.tree();
    let mine = |finalizer: &Value| finalizer == FINALIZER;
    let all: Vec<Value> = items(&tree, "/spec/finalizers").cloned().collect();
    if !all.iter().any(mine) {
        return Plan::none();
    }
    tree["spec"]["finalizers"] = all.into_iter().filter(|f| !mine(f)).collect();
    let namespace = &row.key.name;
    let empty =
        |resource: &Resource| Write::Empty { resource: *resource, namespace: namespace.clone() };
    Plan::writes(resources.iter().map(empty).collect())
        .then([Write::put_exact(NAMESPACES, row, "finalize", tree)].into())
}

/// What keeps the namespace, as upstream words it.
fn conditions(row: &Row, left: &[(Resource, &Row)], ctx: &Ctx<'_>) -> Vec<Value> {
    let (mut by_resource, mut by_finalizer) = (BTreeMap::new(), BTreeMap::new());
    for (resource, row) in left {
        let name = format!("{}.{}", resource.plural, resource.group());
        *by_resource.entry(name).or_insert(0) += 1;
        for finalizer in &row.facts.finalizers {
            *by_finalizer.entry(finalizer.as_str()).or_insert(0) += 1;
        }
    }
    let list = |parts: Vec<String>| parts.join(", ");
    let resources =
        list(by_resource.iter().map(|(r, n)| format!("{r} has {n} resource instances")).collect());
    let finalizers =
        list(by_finalizer.iter().map(|(f, n)| format!("{f} in {n} resource instances")).collect());
    let fine = [
        (
            "NamespaceDeletionDiscoveryFailure",
            "ResourcesDiscovered",
            "All resources successfully discovered",
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed",
        ),
        (
            "NamespaceDeletionContentFailure",
            "ContentDeleted",
            "All content successfully deleted, may be waiting on finalization",
        ),
    ];
    let mut all: Vec<Value> =
        fine.iter().map(|(kind, reason, text)| condition(kind, false, reason, text)).collect();
    all.push(condition(
        "NamespaceContentRemaining",
        true,
        "SomeResourcesRemain",
        &format!("Some resources are remaining: {resources}"),
    ));
    all.push(match finalizers.is_empty() {
        true => condition(
            "NamespaceFinalizersRemaining",
            false,
            "ContentHasNoFinalizers",
            "All content-preserving finalizers finished",
        ),
        false => condition(
            "NamespaceFinalizersRemaining",
            true,
            "SomeFinalizersRemain",
            &format!("Some content in the namespace has finalizers remaining: {finalizers}"),
        ),
    });
    let tree = row.tree();
    for condition in &mut all {
        let mut old = items(&tree, "/status/conditions");
        let old = old
            .find(|old| old["type"] == condition["type"] && old["status"] == condition["status"]);
        condition["lastTransitionTime"] =
            old.map_or_else(|| stamp(ctx).into(), |old| old["lastTransitionTime"].clone());
    }
    all
}

fn condition(kind: &str, holds: bool, reason: &str, message: &str) -> Value {
    let status = if holds { "True" } else { "False" };
    json!({"type": kind, "status": status, "reason": reason, "message": message})
}
