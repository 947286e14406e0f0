//! Objects go when their owners are gone; owners wait for, or let go of, what depends on them.
//!
//! A key is an object. What depends on it finds its own keys woken; whether an owner is really gone
//! is asked of the server in a stage before the deletion, because the watch of the owner's kind may
//! lag behind that of the dependent's. Owners of kinds that are not watched are left alone.

use alloc::string::String;
use alloc::vec::Vec;

use knarr_api::{ObjectKey, Resource};
use knarr_reconcile::{Controller, Ctx, Key, KindRow, Owner, Plan, Row, View, Wake, Watch, Write};
use serde_json::{Value, json};

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";
/// Keys of this resource name an owner as its dependents do: `apiVersion kind name`.
const OWNERS: Resource = Resource::new("", "owners");

/// The row; `resources` are all that can be watched and deleted.
pub fn controller(resources: &[Resource]) -> Controller {
    Controller {
        name: "garbage-collector-controller",
        user: "system:serviceaccount:kube-system:generic-garbage-collector",
        watches: resources
            .iter()
            .map(|resource| Watch { resource: *resource, wake: Wake::With(concerned) })
            .collect(),
        reconcile,
    }
}

/// Whom a change concerns: the object, its owners if they may be waiting for it, and what depends
/// on it if it goes.
fn concerned(view: &View, resource: Resource, row: &Row) -> Vec<Key> {
    let mut keys = Vec::new();
    let live = view.get(resource, &row.key).filter(|live| live.facts.uid == row.facts.uid);
    if !row.facts.owner_references.is_empty() || !row.facts.finalizers.is_empty() {
        keys.push(Key { resource, object: row.key.clone() });
    }
    for owner in &row.facts.owner_references {
        let name = [&*owner.api_version, &*owner.kind, &*owner.name].join(" ");
        let object = ObjectKey::new(row.key.namespace.as_str(), name);
        keys.push(Key { resource: OWNERS, object });
    }
    if live.is_none_or(|live| live.facts.deleting()) {
        let dependents = view.dependents(&row.facts.uid);
        keys.extend(dependents.map(|(resource, row)| Key { resource, object: row.key.clone() }));
    }
    keys
}

fn reconcile(view: &View, key: &Key, ctx: &Ctx<'_>) -> Plan {
    let (resource, row) = match key.resource == OWNERS {
        true => {
            let mut words = key.object.name.splitn(3, ' ');
            let mut word = || String::from(words.next().unwrap_or_default());
            let (api_version, kind, name) = (word(), word(), word());
            let owner = Owner { api_version, kind, name, ..Owner::default() };
            let Some((resource, object)) = place(&owner, &key.object.namespace, ctx) else {
                return Plan::none();
            };
            (resource, view.get(resource, &object))
        }
        false => (key.resource, view.get(key.resource, &key.object)),
    };
    let Some(row) = row else { return Plan::none() };
    let has = |finalizer: &str| row.facts.finalizers.iter().any(|f| f == finalizer);
    match row.facts.deleting() {
        true if has(ORPHAN) => orphan(view, resource, row),
        true if has(FOREGROUND) => wait_for_dependents(view, resource, row),
        true => Plan::none(),
        false if key.resource == OWNERS => Plan::none(),
        false => follow_owners(view, resource, row, ctx),
    }
}

/// Where an owner is; `None` for kinds that nobody here knows.
fn place(owner: &Owner, namespace: &str, ctx: &Ctx<'_>) -> Option<(Resource, ObjectKey)> {
    let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
    let same = |kind: &&KindRow| kind.kind == owner.kind && kind.resource.group() == group;
    let kind = ctx.config.kinds.iter().find(same)?;
    // A cluster-wide object cannot be owned by one in a namespace: nobody knows which.
    let namespace = match kind.namespaced {
        true if namespace.is_empty() => return None,
        true => namespace,
        false => "",
    };
    Some((kind.resource, ObjectKey::new(namespace, owner.name.as_str())))
}

/// What an object's owners are up to.
#[derive(Clone, Copy, PartialEq)]
enum State {
    /// There, or not to be known.
    Solid,
    /// Waiting for its dependents to go.
    Waiting,
    /// Not there.
    Gone,
}

fn state(view: &View, row: &Row, owner: &Owner, ctx: &Ctx<'_>) -> State {
    let Some((resource, key)) = place(owner, &row.key.namespace, ctx) else {
        return State::Solid;
    };
    if !view.watches(resource) {
        return State::Solid;
    }
    match view.get(resource, &key).filter(|live| live.facts.uid == owner.uid) {
        None => State::Gone,
        Some(live) => {
            let waits = live.facts.finalizers.iter().any(|finalizer| finalizer == FOREGROUND);
            if live.facts.deleting() && waits { State::Waiting } else { State::Solid }
        }
    }
}

/// Deletes an object none of whose owners stays; frees it of owners that go if another stays.
fn follow_owners(view: &View, resource: Resource, row: &Row, ctx: &Ctx<'_>) -> Plan {
    let owners = &row.facts.owner_references;
    let states: Vec<State> = owners.iter().map(|owner| state(view, row, owner, ctx)).collect();
    let any = |wanted: State| states.contains(&wanted);
    if owners.is_empty() || states.iter().all(|state| *state == State::Solid) {
        return Plan::none();
    }
    let gone = owners.iter().zip(&states).filter(|(_, state)| **state == State::Gone);
    let certain = gone.filter_map(|(owner, _)| {
        let (resource, object) = place(owner, &row.key.namespace, ctx)?;
        Some(Write::Absent { resource, object, uid: owner.uid.clone() })
    });
    let plan = Plan::writes(certain.collect());
    if any(State::Solid) {
        let solid = |at: usize| states[at] == State::Solid;
        return plan.then([keep_owners(resource, row, |at, _| solid(at))].into());
    }
    let has = |finalizer: &str| row.facts.finalizers.iter().any(|f| f == finalizer);
    let depended_on = view.dependents(&row.facts.uid).next().is_some();
    let policy = match any(State::Waiting) {
        true if depended_on => "Foreground",
        _ if has(ORPHAN) => "Orphan",
        _ if has(FOREGROUND) => "Foreground",
        _ => "Background",
    };
    plan.then([delete(resource, row, policy)].into())
}

/// Deletes the version the view shows: somebody may just have given it another owner.
fn delete(resource: Resource, row: &Row, policy: &str) -> Write {
    let version = alloc::format!("{}", row.revision);
    let preconditions = json!({"uid": row.facts.uid, "resourceVersion": version});
    let options = json!({"preconditions": preconditions, "propagationPolicy": policy});
    Write::Delete { resource, object: row.key.clone(), options }
}

/// Keeps only some of the owner references.
fn keep_owners(resource: Resource, row: &Row, keep: impl Fn(usize, &Owner) -> bool) -> Write {
    let tree = row.tree();
    let all = tree["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default();
    let kept = all.into_iter().zip(row.facts.owner_references.iter().enumerate());
    let kept: Vec<Value> =
        kept.filter(|(_, (at, owner))| keep(*at, owner)).map(|(tree, _)| tree).collect();
    let list = if kept.is_empty() { Value::Null } else { kept.into() };
    Write::patch_exact(resource, row, json!({"metadata": {"ownerReferences": list}}))
}

/// Lets go of what depends on the object, then of the object.
fn orphan(view: &View, resource: Resource, row: &Row) -> Plan {
    let dependents = view.dependents(&row.facts.uid);
    let writes = dependents.map(|(resource, dependent)| {
        keep_owners(resource, dependent, |_, owner| owner.uid != row.facts.uid)
    });
    let writes: Vec<Write> = writes.collect();
    match writes.is_empty() {
        true => Plan::writes([drop_finalizer(resource, row, ORPHAN)].into()),
        false => Plan::writes(writes),
    }
}

/// Lets the object go once nothing is left that holds it.
fn wait_for_dependents(view: &View, resource: Resource, row: &Row) -> Plan {
    let holds = |dependent: &Row| {
        let owners = &dependent.facts.owner_references;
        owners.iter().any(|owner| owner.uid == row.facts.uid && owner.block_owner_deletion)
    };
    match view.dependents(&row.facts.uid).any(|(_, dependent)| holds(dependent)) {
        true => Plan::none(),
        false => Plan::writes([drop_finalizer(resource, row, FOREGROUND)].into()),
    }
}

fn drop_finalizer(resource: Resource, row: &Row, finalizer: &str) -> Write {
    let kept: Vec<&String> = row.facts.finalizers.iter().filter(|f| *f != finalizer).collect();
    let list = if kept.is_empty() { Value::Null } else { json!(kept) };
    Write::patch_exact(resource, row, json!({"metadata": {"finalizers": list}}))
}
