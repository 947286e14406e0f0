//! EndpointSlices of one owner: the fewest writes from those there are to those there should be
//! (KEP-752).
//!
//! An endpoint stays in the slice it is in; new ones fill a slice that changes anyway, then one
//! with room, then new slices. A slice that nobody needs is turned into one that is wanted.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use knarr_api::Resource;
use knarr_api::ip::Family;
use knarr_reconcile::{Plan, Row, Write};
use serde_json::{Value, json};

use crate::finder::{ENDPOINT_SLICES, items, suffix, text};

/// So many endpoints a slice holds (`--max-endpoints-per-slice`).
const MAX_ENDPOINTS: usize = 100;

/// Endpoints of one family that share their ports.
pub(crate) struct Group {
    pub(crate) family: Family,
    pub(crate) ports: Value,
    pub(crate) endpoints: Vec<Value>,
}

/// Whose slices these are.
pub(crate) struct Owned<'a> {
    pub(crate) owner: &'a Row,
    pub(crate) resource: Resource,
    pub(crate) kind: &'static str,
    pub(crate) labels: Value,
    pub(crate) annotations: Value,
    /// For the names of new slices.
    pub(crate) seed: u64,
}

/// A slice on its way to what it should be.
struct Draft<'a> {
    row: Option<&'a Row>,
    family: String,
    ports: Value,
    endpoints: Vec<Value>,
    changed: bool,
}

impl Draft<'_> {
    fn room(&self) -> usize {
        MAX_ENDPOINTS.saturating_sub(self.endpoints.len())
    }
}

/// What tells an endpoint from others: its address and what is behind it.
fn identity(endpoint: &Value) -> String {
    format!("{} {}", endpoint["addresses"], text(endpoint, "/targetRef/uid"))
}

/// The writes that make `existing` into `wanted`. Every family among `families` keeps a slice, be
/// it an empty one.
pub(crate) fn reconcile(
    owned: &Owned<'_>,
    families: &[Family],
    existing: &[&Row],
    mut wanted: Vec<Group>,
) -> Plan {
    wanted.retain(|group| !group.endpoints.is_empty());
    for family in families {
        if !wanted.iter().any(|group| group.family == *family) {
            wanted.push(Group { family: *family, ports: json!([]), endpoints: Vec::new() });
        }
    }
    let mut drafts: Vec<Draft<'_>> = existing.iter().map(|row| draft(row)).collect();
    let mut kept = Vec::new();
    for group in wanted {
        let fits =
            |draft: &Draft<'_>| draft.family == group.family.word() && draft.ports == group.ports;
        let own: Vec<usize> = (0..drafts.len()).filter(|at| fits(&drafts[*at])).collect();
        let own: Vec<Draft<'_>> = own.into_iter().rev().map(|at| drafts.remove(at)).collect();
        let (used, free) = pour(own, group);
        kept.extend(used);
        drafts.extend(free);
    }
    reuse(&mut kept, &mut drafts);
    writes(owned, kept, &drafts)
}

fn draft(row: &Row) -> Draft<'_> {
    let tree = row.tree();
    Draft {
        family: text(&tree, "/addressType").to_string(),
        ports: match &tree["ports"] {
            Value::Null => json!([]),
            ports => ports.clone(),
        },
        endpoints: items(&tree, "/endpoints").cloned().collect(),
        row: Some(row),
        changed: false,
    }
}

/// Brings a group's endpoints into its slices; gives those in use and those that are free now.
fn pour<'a>(mut own: Vec<Draft<'a>>, group: Group) -> (Vec<Draft<'a>>, Vec<Draft<'a>>) {
    let empty = group.endpoints.is_empty();
    let mut rest: BTreeMap<String, Value> =
        group.endpoints.into_iter().map(|endpoint| (identity(&endpoint), endpoint)).collect();
    for draft in &mut own {
        let before = core::mem::take(&mut draft.endpoints);
        draft.endpoints =
            before.iter().filter_map(|endpoint| rest.remove(&identity(endpoint))).collect();
        draft.changed = draft.endpoints != before;
    }
    let mut rest: Vec<Value> = rest.into_values().collect();
    let (mut used, mut free): (Vec<_>, Vec<_>) =
        own.into_iter().partition(|draft| !draft.endpoints.is_empty());
    for changing in [true, false] {
        // One that is written anyway; else the fullest that takes all of the rest.
        let mut candidates: Vec<&mut Draft<'_>> = used
            .iter_mut()
            .filter(|draft| draft.changed == changing)
            .filter(|draft| if changing { draft.room() > 0 } else { draft.room() >= rest.len() })
            .collect();
        candidates.sort_by_key(|draft| draft.room());
        for draft in candidates {
            if rest.is_empty() {
                break;
            }
            draft.endpoints.extend(rest.drain(..rest.len().min(draft.room())));
            draft.changed = true;
        }
    }
    let fresh = |endpoints: Vec<Value>| Draft {
        row: None,
        family: group.family.word().into(),
        ports: group.ports.clone(),
        endpoints,
        changed: true,
    };
    while !rest.is_empty() {
        used.push(fresh(rest.drain(..rest.len().min(MAX_ENDPOINTS)).collect()));
    }
    if empty {
        // The one empty slice that says: there is a Service here, and nobody behind it.
        used.push(free.pop().unwrap_or_else(|| fresh(Vec::new())));
    }
    (used, free)
}

/// Turns what is to go into what is to come.
fn reuse<'a>(kept: &mut [Draft<'a>], free: &mut Vec<Draft<'a>>) {
    for new in kept.iter_mut().filter(|draft| draft.row.is_none()) {
        if let Some(at) = free.iter().position(|old| old.family == new.family) {
            new.row = free.remove(at).row;
        }
    }
}

fn writes(owned: &Owned<'_>, kept: Vec<Draft<'_>>, free: &[Draft<'_>]) -> Plan {
    let namespace = &owned.owner.key.namespace;
    let mut puts = Vec::new();
    for draft in kept {
        match draft.row {
            None if owned.owner.facts.deleting() => {}
            None => puts.push(Write::Create {
                resource: ENDPOINT_SLICES,
                namespace: namespace.clone(),
                object: fresh(owned, &draft, puts.len()),
            }),
            Some(row) => {
                let mut tree = row.tree();
                let labelled = tree["metadata"]["labels"] == owned.labels;
                if draft.changed || !labelled {
                    tree["metadata"]["labels"] = owned.labels.clone();
                    tree["ports"] = draft.ports;
                    tree["endpoints"] = draft.endpoints.into();
                    puts.push(Write::put_exact(ENDPOINT_SLICES, row, "", tree));
                }
            }
        }
    }
    let gone = free.iter().filter_map(|draft| draft.row);
    let gone = gone.map(|row| Write::delete(ENDPOINT_SLICES, row)).collect();
    Plan::writes(puts).then(gone)
}

fn fresh(owned: &Owned<'_>, draft: &Draft<'_>, at: usize) -> Value {
    let owner = &owned.owner;
    let prefix = format!("{}-", owner.key.name);
    let prefix = if prefix.len() > 248 { owner.key.name.clone() } else { prefix };
    let name = format!("{prefix}{}", suffix(owned.seed.wrapping_add(at as u64)));
    let mut object = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"generateName": prefix, "name": name, "namespace": owner.key.namespace,
            "labels": owned.labels, "ownerReferences": [{
                "apiVersion": owned.resource.api_version, "kind": owned.kind,
                "name": owner.key.name, "uid": owner.facts.uid,
                "controller": true, "blockOwnerDeletion": true}]},
        "addressType": draft.family, "ports": draft.ports, "endpoints": draft.endpoints,
    });
    if owned.annotations.as_object().is_some_and(|annotations| !annotations.is_empty()) {
        object["metadata"]["annotations"] = owned.annotations.clone();
    }
    object
}
