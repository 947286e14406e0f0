//! What the pipeline keeps derived from the keyspace: RBAC ready to be asked, the Catalog with
//! custom kinds. A view is a cursor over the history, so it is as fresh as the snapshot it is
//! advanced to: a binding just acknowledged counts in the next request.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use bytes::Bytes;
use knarr_api::{Catalog, GroupResource, Kind};
use knarr_mvcc::{KeyRange, Revision};
use knarr_schema::Schema;
use serde_json::Value;

use crate::kinds::kinds_of_crd;
use crate::object::{Snapshot, key_of, tree};
use crate::rbac::Rbac;

const RBAC_GROUP: &str = "rbac.authorization.k8s.io";
const DEFINITIONS: GroupResource<'_> =
    GroupResource { group: "apiextensions.k8s.io", resource: "customresourcedefinitions" };
const RBAC_KINDS: [&str; 4] = ["roles", "clusterroles", "rolebindings", "clusterrolebindings"];

/// Derived state at one revision.
#[derive(Clone)]
pub struct Views {
    revision: Revision,
    watched: Vec<Arc<Kind>>,
    builtin: Arc<Catalog>,
    builtin_schema: Arc<Schema>,
    definitions: BTreeMap<String, Value>,
    /// Built-in and custom kinds.
    pub catalog: Arc<Catalog>,
    /// The types behind them.
    pub schema: Arc<Schema>,
    pub(crate) rbac: Arc<Rbac>,
}

impl Views {
    /// Views of an empty keyspace.
    pub fn new(schema: Schema) -> Self {
        let catalog = Arc::new(Catalog::builtin());
        let rbac = RBAC_KINDS.map(|resource| GroupResource { group: RBAC_GROUP, resource });
        let rows = rbac.into_iter().chain([DEFINITIONS]);
        let watched = rows.filter_map(|resource| catalog.preferred(resource).cloned()).collect();
        let schema = Arc::new(schema);
        Self {
            revision: Revision(0),
            watched,
            builtin: catalog.clone(),
            builtin_schema: schema.clone(),
            definitions: BTreeMap::new(),
            catalog,
            schema,
            rbac: Arc::default(),
        }
    }

    /// The revision these views show.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Brings the views to the snapshot's revision; reads everything anew when the history in
    /// between is gone.
    pub fn advance(&mut self, snapshot: Snapshot<'_>) {
        for kind in self.watched.clone() {
            match self.changes(snapshot, &kind) {
                Some(changes) => {
                    for (key, value) in changes {
                        self.put(&kind, &key, value);
                    }
                }
                None => self.reload(snapshot, &kind),
            }
        }
        self.revision = snapshot.revision();
    }

    /// What changed since this view's revision; `None` when that is no longer known.
    fn changes(&self, snapshot: Snapshot<'_>, kind: &Kind) -> Option<Vec<(Bytes, Option<Bytes>)>> {
        if self.revision == Revision(0) {
            return None;
        }
        let range = KeyRange::prefix(kind.prefix().into_bytes());
        let upto = snapshot.revision();
        let batch = snapshot.keyspace().events(&range, self.revision, upto, usize::MAX).ok()?;
        Some(batch.events.into_iter().map(|e| (e.key, e.new.map(|kv| kv.value))).collect())
    }

    fn reload(&mut self, snapshot: Snapshot<'_>, kind: &Kind) {
        if self.revision != Revision(0) {
            // Deleted objects leave no trace here, so begin from nothing.
            let mut fresh = Self { revision: Revision(0), ..self.clone() };
            fresh.rbac = Arc::default();
            fresh.definitions.clear();
            fresh.declare();
            fresh.advance(snapshot);
            *self = fresh;
            return;
        }
        for kv in snapshot.prefix(&kind.prefix()) {
            self.put(kind, &kv.key, Some(kv.value));
        }
    }

    fn put(&mut self, kind: &Kind, key: &[u8], value: Option<Bytes>) {
        let object = key_of(kind, key);
        let tree = value.and_then(|bytes| tree(&bytes).ok());
        if kind.group_resource() == DEFINITIONS {
            match tree {
                Some(tree) => drop(self.definitions.insert(object.name, tree)),
                None => drop(self.definitions.remove(&object.name)),
            }
            self.declare();
            return;
        }
        let key = (object.namespace, object.name);
        Arc::make_mut(&mut self.rbac).put(&kind.plural, key, tree.as_ref());
    }

    /// Makes the Catalog anew from the built-in kinds and the definitions there are.
    fn declare(&mut self) {
        let declared: Vec<(Kind, Value)> =
            self.definitions.values().flat_map(kinds_of_crd).collect();
        let schema = (*self.builtin_schema).clone();
        self.schema = Arc::new(declared.iter().fold(schema, |schema, (kind, described)| {
            schema.with_custom(&kind.group, &kind.version, &kind.kind, described)
        }));
        let kinds = declared.into_iter().map(|(kind, _)| kind);
        self.catalog = Arc::new((*self.builtin).clone().with(kinds));
    }
}
