//! What controllers see: the objects, by reference to their bytes, with a compact row of facts.
//!
//! Indexed by namespace, controller, node: no reconcile walks all objects of a kind.

use alloc::borrow::ToOwned;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use bytes::Bytes;
use knarr_api::{ObjectKey, Resource};
use serde::Deserialize;
use serde_json::Value;

use crate::load::Load;

const PODS: Resource = Resource::new("v1", "pods");
const SERVICES: Resource = Resource::new("v1", "services");

/// An owner reference.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Owner {
    /// `apps/v1`.
    pub api_version: String,
    /// `ReplicaSet`.
    pub kind: String,
    /// Name.
    pub name: String,
    /// Uid.
    pub uid: String,
    /// Whether it is the controller.
    pub controller: bool,
    /// Whether it waits for this object before it goes (foreground deletion).
    pub block_owner_deletion: bool,
}

/// What is read of an object when it comes in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Facts {
    /// Uid.
    pub uid: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Owners.
    pub owner_references: Vec<Owner>,
    /// Finalizers.
    pub finalizers: Vec<String>,
    /// When it was made, RFC 3339.
    pub creation_timestamp: String,
    /// When it is to be gone, if it is on its way out.
    pub deletion_timestamp: Option<String>,
    /// `spec.nodeName` of a Pod, empty when there is none.
    #[serde(skip)]
    pub node: String,
    /// What it asks of a node, if it is a Pod.
    #[serde(skip)]
    pub load: Option<Arc<Load>>,
    /// The Pods that a Service selects; `None` when it has no selector.
    #[serde(skip)]
    pub selector: Option<BTreeMap<String, String>>,
}

impl Facts {
    /// The owner that manages this object.
    pub fn controller(&self) -> Option<&Owner> {
        self.owner_references.iter().find(|owner| owner.controller)
    }

    /// Whether it is on its way out.
    pub fn deleting(&self) -> bool {
        self.deletion_timestamp.is_some()
    }
}

/// One object.
#[derive(Clone, Debug)]
pub struct Row {
    /// Which.
    pub key: ObjectKey,
    /// Its JSON; the resourceVersion may be missing from it.
    pub bytes: Bytes,
    /// The revision it is from.
    pub revision: u64,
    /// What was read of it.
    pub facts: Facts,
}

impl Row {
    /// The object as a tree; null when it does not parse.
    pub fn tree(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_default()
    }
}

#[derive(Deserialize)]
struct Head {
    metadata: Meta,
    #[serde(default)]
    spec: Spec,
}

#[derive(Deserialize)]
struct Meta {
    #[serde(default)]
    namespace: String,
    name: String,
    #[serde(flatten)]
    facts: Facts,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    node_name: Option<Value>,
    selector: Option<Value>,
}

/// Reads an object into a row; `None` when it is no object.
fn read(resource: Resource, bytes: &Bytes, revision: u64) -> Option<Row> {
    let Head { metadata, spec } = serde_json::from_slice(bytes).ok()?;
    let Meta { namespace, name, mut facts } = metadata;
    facts.node =
        spec.node_name.and_then(|node| node.as_str().map(str::to_owned)).unwrap_or_default();
    if resource == SERVICES {
        facts.selector = spec.selector.and_then(|map| serde_json::from_value(map).ok());
    }
    if resource == PODS {
        facts.load = Load::read(bytes).map(Arc::new);
    }
    Some(Row { key: ObjectKey { namespace, name }, bytes: bytes.clone(), revision, facts })
}

/// What happened on a watch.
#[derive(Clone, Debug)]
pub enum Change {
    /// The watch begins (again): what is not told until [`Change::Synced`] is gone.
    Restarted,
    /// An object is there, in this version.
    Put(Bytes, u64),
    /// An object is gone; its last version.
    Deleted(Bytes, u64),
    /// Everything up to this revision has been told.
    Synced(u64),
}

#[derive(Clone, Debug, Default)]
struct Table {
    rows: BTreeMap<ObjectKey, Row>,
    /// Under the empty uid: those without a controller.
    by_controller: BTreeMap<String, BTreeSet<ObjectKey>>,
    by_owner: BTreeMap<String, BTreeSet<ObjectKey>>,
    by_node: BTreeMap<String, BTreeSet<ObjectKey>>,
    revision: u64,
    synced: bool,
    stale: BTreeSet<ObjectKey>,
}

impl Table {
    fn put(&mut self, row: Row) -> Option<Row> {
        let old = self.remove(&row.key);
        let owner = row.facts.controller().map(|owner| owner.uid.clone()).unwrap_or_default();
        self.by_controller.entry(owner).or_default().insert(row.key.clone());
        for owner in &row.facts.owner_references {
            self.by_owner.entry(owner.uid.clone()).or_default().insert(row.key.clone());
        }
        self.by_node.entry(row.facts.node.clone()).or_default().insert(row.key.clone());
        self.stale.remove(&row.key);
        self.revision = self.revision.max(row.revision);
        self.rows.insert(row.key.clone(), row);
        old
    }

    fn remove(&mut self, key: &ObjectKey) -> Option<Row> {
        let old = self.rows.remove(key)?;
        let forget = |index: &mut BTreeMap<String, BTreeSet<ObjectKey>>, word: &str| {
            if let Some(set) = index.get_mut(word) {
                set.remove(key);
                if set.is_empty() {
                    index.remove(word);
                }
            }
        };
        forget(&mut self.by_controller, old.facts.controller().map_or("", |owner| &owner.uid));
        for owner in &old.facts.owner_references {
            forget(&mut self.by_owner, &owner.uid);
        }
        forget(&mut self.by_node, &old.facts.node);
        Some(old)
    }
}

/// The objects of every watched resource.
#[derive(Clone, Debug, Default)]
pub struct View {
    tables: BTreeMap<Resource, Table>,
}

impl View {
    /// A view of nothing, which knows that it watches these resources.
    pub fn new(resources: impl IntoIterator<Item = Resource>) -> Self {
        Self { tables: resources.into_iter().map(|r| (r, Table::default())).collect() }
    }

    /// One object.
    pub fn get(&self, resource: Resource, object: &ObjectKey) -> Option<&Row> {
        self.tables.get(&resource)?.rows.get(object)
    }

    /// The objects of a resource, in order of namespace and name.
    pub fn all(&self, resource: Resource) -> impl Iterator<Item = &Row> {
        self.tables.get(&resource).into_iter().flat_map(|table| table.rows.values())
    }

    /// The objects of one namespace.
    pub fn in_namespace<'a>(
        &'a self,
        resource: Resource,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a Row> {
        let first = ObjectKey::new(namespace, "");
        let table = self.tables.get(&resource).into_iter();
        let rows = table.flat_map(move |table| table.rows.range(first.clone()..));
        rows.take_while(move |(key, _)| key.namespace == namespace).map(|(_, row)| row)
    }

    /// The objects whose controller has this uid.
    pub fn controlled_by(&self, resource: Resource, uid: &str) -> impl Iterator<Item = &Row> {
        let table = self.tables.get(&resource);
        table.into_iter().flat_map(move |table| rows(table, table.by_controller.get(uid)))
    }

    /// The objects of one namespace that have no controller.
    pub fn orphans<'a>(
        &'a self,
        resource: Resource,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a Row> {
        let table = self.tables.get(&resource);
        let orphans = table.and_then(|table| Some((table, table.by_controller.get("")?)));
        orphans.into_iter().flat_map(move |(table, keys)| {
            let keys = keys.range(ObjectKey::new(namespace, "")..);
            let keys = keys.take_while(move |key| key.namespace == namespace);
            keys.filter_map(|key| table.rows.get(key))
        })
    }

    /// The objects of every kind that name an owner with this uid.
    pub fn dependents(&self, uid: &str) -> impl Iterator<Item = (Resource, &Row)> {
        self.tables.iter().flat_map(move |(resource, table)| {
            rows(table, table.by_owner.get(uid)).map(|row| (*resource, row))
        })
    }

    /// The resources that are watched.
    pub fn resources(&self) -> impl Iterator<Item = Resource> {
        self.tables.keys().copied()
    }

    /// Whether a resource is watched.
    pub fn watches(&self, resource: Resource) -> bool {
        self.tables.contains_key(&resource)
    }

    /// The objects on this node; those on none when it is empty.
    pub fn on_node(&self, resource: Resource, node: &str) -> impl Iterator<Item = &Row> {
        let table = self.tables.get(&resource);
        table.into_iter().flat_map(move |table| rows(table, table.by_node.get(node)))
    }

    /// How far the view of a resource has come.
    pub fn revision(&self, resource: Resource) -> u64 {
        self.tables.get(&resource).map_or(0, |table| table.revision)
    }

    /// Whether everything that was there at the beginning has been told.
    pub fn synced(&self, resource: Resource) -> bool {
        self.tables.get(&resource).is_some_and(|table| table.synced)
    }

    /// Takes up a change; gives the versions (before, after) of every object it touches.
    pub fn apply(
        &mut self,
        resource: Resource,
        change: &Change,
    ) -> Vec<(Option<Row>, Option<Row>)> {
        let table = self.tables.entry(resource).or_default();
        match change {
            Change::Restarted => {
                table.stale = table.rows.keys().cloned().collect();
                table.synced = false;
                Vec::new()
            }
            Change::Put(bytes, revision) => match read(resource, bytes, *revision) {
                Some(row) => [(table.put(row.clone()), Some(row))].into(),
                None => Vec::new(),
            },
            Change::Deleted(bytes, revision) => {
                table.revision = table.revision.max(*revision);
                let row = read(resource, bytes, *revision);
                let old = row.and_then(|row| table.remove(&row.key));
                old.map(|old| (Some(old), None)).into_iter().collect()
            }
            Change::Synced(revision) => {
                table.revision = table.revision.max(*revision);
                table.synced = true;
                let stale = core::mem::take(&mut table.stale);
                let gone = stale.iter().filter_map(|key| table.remove(key));
                gone.map(|old| (Some(old), None)).collect()
            }
        }
    }
}

fn rows<'a>(
    table: &'a Table,
    keys: Option<&'a BTreeSet<ObjectKey>>,
) -> impl Iterator<Item = &'a Row> {
    keys.into_iter().flatten().filter_map(|key| table.rows.get(key))
}
