//! Admission: the plugins that a default server has on, each a function on the tree.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;

use knarr_api::{GroupResource, Kind, ObjectKey, Reason, Status};
use knarr_mvcc::KeyRange;
use serde_json::{Value, json};

use crate::auth::node_of;
use crate::call::World;
use crate::lens::Lens;
use crate::meta::generated_name;
use crate::object::{set, text};
use crate::request::User;
use crate::write::Write;

/// Namespaces that may not be deleted.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];
const TOKEN_MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const TOKEN_SECONDS: i64 = 3607;

fn core<'a>(world: &World<'a>, resource: &str) -> Option<&'a Kind> {
    world.catalog().preferred(GroupResource { group: "", resource }).map(|kind| &**kind)
}

fn find(world: &World<'_>, resource: &str, namespace: &str, name: &str) -> Option<Value> {
    world.snapshot.tree(core(world, resource)?, &ObjectKey::new(namespace, name))
}

/// The key of a namespace, to guard creations inside it.
pub(crate) fn namespace_key(world: &World<'_>, namespace: &str) -> Option<KeyRange> {
    let key = core(world, "namespaces")?.key(&ObjectKey::new("", namespace));
    Some(KeyRange::single(key.into_bytes()))
}

/// The namespace is not there.
pub(crate) fn namespace_missing(namespace: &str) -> Status {
    Status::not_found(GroupResource { group: "", resource: "namespaces" }, namespace)
}

/// What happens to a new object.
pub(crate) fn create(world: &World<'_>, write: &Write, tree: &mut Value) -> Result<(), Status> {
    namespace_lifecycle(world, write, tree)?;
    node_restriction(write, tree)?;
    match (write.kind.group.as_str(), write.kind.plural.as_str()) {
        ("", "pods") => {
            service_account(world, write, tree)?;
            default_tolerations(tree);
            priority(world, write, tree)
        }
        ("certificates.k8s.io", "certificatesigningrequests") => {
            requestor(write, tree);
            Ok(())
        }
        ("", "nodes") => {
            taint_new_node(tree);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// What happens to a changed object.
pub(crate) fn update(
    _: &World<'_>,
    write: &Write,
    tree: &mut Value,
    live: &Value,
) -> Result<(), Status> {
    node_restriction(write, tree)?;
    if node_of(&write.user).is_some() && write.lens == Lens::Object && write.kind.plural == "nodes"
    {
        let taints = |tree: &Value| tree.pointer("/spec/taints").cloned();
        if taints(tree) != taints(live) {
            return Err(forbidden(write, live, "is not allowed to modify taints"));
        }
    }
    Ok(())
}

/// What is asked before an object is deleted.
pub(crate) fn delete(_: &World<'_>, write: &Write, target: &ObjectKey) -> Result<(), Status> {
    let kind = &write.kind;
    if kind.plural == "namespaces" && kind.group.is_empty() && IMMORTAL.contains(&&*target.name) {
        let why = "this namespace may not be deleted";
        return Err(Status::forbidden(kind.group_resource(), &target.name, why));
    }
    Ok(())
}

fn forbidden(write: &Write, tree: &Value, why: &str) -> Status {
    let name = text(tree, "/metadata/name");
    Status::forbidden(write.kind.group_resource(), name, why)
}

/// NamespaceLifecycle: nothing is made in a namespace that is not there or on its way out.
fn namespace_lifecycle(world: &World<'_>, write: &Write, tree: &Value) -> Result<(), Status> {
    if !write.kind.namespaced() {
        return Ok(());
    }
    let name = text(tree, "/metadata/namespace");
    let namespace = find(world, "namespaces", "", name).ok_or_else(|| namespace_missing(name))?;
    if text(&namespace, "/status/phase") != "Terminating" {
        return Ok(());
    }
    let why =
        format!("unable to create new content in namespace {name} because it is being terminated");
    let mut status = forbidden(write, tree, &why);
    if let Some(details) = &mut status.details {
        details["causes"] = json!([{"reason": "NamespaceTerminating", "field": "metadata.namespace",
            "message": format!("namespace {name} is being terminated")}]);
    }
    Err(status)
}

/// NodeRestriction: a node writes only about itself and its own Pods.
fn node_restriction(write: &Write, tree: &Value) -> Result<(), Status> {
    let Some(node) = node_of(&write.user) else { return Ok(()) };
    let name = text(tree, "/metadata/name");
    let own = match (write.kind.group.as_str(), write.kind.plural.as_str()) {
        ("", "nodes") | ("storage.k8s.io", "csinodes") => name == node,
        ("", "pods") => text(tree, "/spec/nodeName") == node,
        ("coordination.k8s.io", "leases") => {
            text(tree, "/metadata/namespace") == "kube-node-lease" && name == node
        }
        _ => true,
    };
    if own {
        return Ok(());
    }
    let what = &write.kind.plural;
    Err(forbidden(write, tree, &format!("node {node:?} is not allowed to modify {what} {name:?}")))
}

/// ServiceAccount: every Pod runs as one, and finds its token where clients look for it.
fn service_account(world: &World<'_>, write: &Write, pod: &mut Value) -> Result<(), Status> {
    if pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_string() {
        return Ok(());
    }
    if text(pod, "/spec/serviceAccountName").is_empty() {
        set(pod, &["spec", "serviceAccountName"], "default".into());
    }
    let name = text(pod, "/spec/serviceAccountName").to_owned();
    set(pod, &["spec", "serviceAccount"], name.as_str().into());
    let namespace = text(pod, "/metadata/namespace").to_owned();
    let Some(account) = find(world, "serviceaccounts", &namespace, &name) else {
        let why = format!(
            "error looking up service account {namespace}/{name}: serviceaccount {name:?} not found"
        );
        return Err(forbidden(write, pod, &why));
    };
    if pod["spec"].get("imagePullSecrets").is_none_or(|list| list == &json!([]))
        && let Some(secrets) = account.get("imagePullSecrets")
    {
        set(pod, &["spec", "imagePullSecrets"], secrets.clone());
    }
    let wanted = pod["spec"]["automountServiceAccountToken"]
        .as_bool()
        .or(account["automountServiceAccountToken"].as_bool())
        .unwrap_or(true);
    if wanted {
        mount_token(pod, world.seed);
    }
    Ok(())
}

fn mount_token(pod: &mut Value, seed: u128) {
    let volume = generated_name("kube-api-access-", seed >> 8);
    let mut used = false;
    for list in ["initContainers", "containers"] {
        let containers = pod["spec"].get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let mounts = container["volumeMounts"].as_array().cloned().unwrap_or_default();
            if mounts.iter().any(|mount| mount["mountPath"] == TOKEN_MOUNT) {
                continue;
            }
            let own = json!({"name": volume, "readOnly": true, "mountPath": TOKEN_MOUNT});
            container["volumeMounts"] = mounts.into_iter().chain([own]).collect();
            used = true;
        }
    }
    if !used {
        return;
    }
    let field = json!({"path": "namespace",
        "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}});
    let sources = json!([
        {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [field]}},
    ]);
    let own = json!({"name": volume, "projected": {"sources": sources, "defaultMode": 420}});
    let volumes = pod["spec"]["volumes"].as_array().cloned().unwrap_or_default();
    pod["spec"]["volumes"] = volumes.into_iter().chain([own]).collect();
}

/// DefaultTolerationSeconds: a Pod outlives its node's silence by five minutes.
fn default_tolerations(pod: &mut Value) {
    let mut tolerations = pod["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let covered = tolerations.iter().any(|toleration| {
            let effect = text(toleration, "/effect");
            let covers_key = matches!(text(toleration, "/key"), k if k == key || k.is_empty());
            covers_key && matches!(effect, "NoExecute" | "")
        });
        if !covered {
            tolerations.push(json!({"key": key, "operator": "Exists", "effect": "NoExecute",
                "tolerationSeconds": 300}));
        }
    }
    pod["spec"]["tolerations"] = tolerations.into();
}

/// Priority: the class becomes a number.
fn priority(world: &World<'_>, write: &Write, pod: &mut Value) -> Result<(), Status> {
    let group = "scheduling.k8s.io";
    let kind = world.catalog().preferred(GroupResource { group, resource: "priorityclasses" });
    let Some(kind) = kind else { return Ok(()) };
    let name = text(pod, "/spec/priorityClassName").to_owned();
    let class = if name.is_empty() {
        let all = world.snapshot.prefix(&kind.prefix());
        let trees = all.iter().filter_map(|kv| crate::object::tree(&kv.value).ok());
        trees.into_iter().find(|class| class["globalDefault"] == true)
    } else {
        let class = world.snapshot.tree(kind, &ObjectKey::new("", &name));
        let why = format!("no PriorityClass with name {name} was found");
        Some(class.ok_or_else(|| forbidden(write, pod, &why))?)
    };
    let class = class.unwrap_or_else(|| json!({"value": 0}));
    let policy = match text(&class, "/preemptionPolicy") {
        "" => "PreemptLowerPriority",
        policy => policy,
    };
    set(pod, &["spec", "priority"], class["value"].clone());
    set(pod, &["spec", "preemptionPolicy"], policy.into());
    let named: String = text(&class, "/metadata/name").to_owned();
    if !named.is_empty() {
        set(pod, &["spec", "priorityClassName"], named.into());
    }
    Ok(())
}

/// A certificate request says who made it, and only the server writes that.
fn requestor(write: &Write, request: &mut Value) {
    let User { name, uid, groups, extra } = &write.user;
    set(request, &["spec", "username"], name.as_str().into());
    set(request, &["spec", "uid"], uid.as_str().into());
    set(request, &["spec", "groups"], json!(groups));
    set(request, &["spec", "extra"], json!(extra));
}

/// TaintNodesByCondition: a new node takes no Pods before it is ready.
fn taint_new_node(node: &mut Value) {
    let taint = json!({"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"});
    let mut taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
    if !taints.iter().any(|t| t["key"] == taint["key"] && t["effect"] == taint["effect"]) {
        taints.push(taint);
    }
    set(node, &["spec", "taints"], taints.into());
}

/// The refusal that an eviction gets while a budget forbids it.
pub(crate) fn too_many_disruptions(pod: &str) -> Status {
    let text = format!("Cannot evict pod {pod:?} as it would violate the pod's disruption budget.");
    Status::new(Reason::TooManyRequests, text)
}
