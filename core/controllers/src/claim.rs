//! Adoption and release: a controller owns what its selector matches, and nothing else.
//!
//! Claims are a stage of their own: when there are any, the controller acts on the next view,
//! which shows them.

use alloc::vec::Vec;

use knarr_api::{LabelSelector, Resource};
use knarr_reconcile::{Patch, Row, View, Write};
use serde_json::{Value, json};

use crate::finder::text;

/// Who claims.
pub(crate) struct Owner<'a> {
    pub(crate) row: &'a Row,
    pub(crate) api_version: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) selector: &'a LabelSelector,
}

impl Owner<'_> {
    /// The reference that makes it the controller of something.
    pub(crate) fn reference(&self) -> Value {
        json!({"apiVersion": self.api_version, "kind": self.kind, "name": self.row.key.name,
            "uid": self.row.facts.uid, "controller": true, "blockOwnerDeletion": true})
    }

    fn adopt(&self, resource: Resource, row: &Row) -> Write {
        references(resource, row, self.reference())
    }

    fn release(&self, resource: Resource, row: &Row) -> Write {
        references(resource, row, json!({"$patch": "delete", "uid": self.row.facts.uid}))
    }

    /// The objects it controls, and the writes that adopt and release others. What is finished or
    /// on its way out (`settled`) is neither adopted nor released.
    pub(crate) fn claim<'v>(
        &self,
        view: &'v View,
        resource: Resource,
        settled: impl Fn(&Row) -> bool,
    ) -> (Vec<&'v Row>, Vec<Write>) {
        let (mut claimed, mut writes) = (Vec::new(), Vec::new());
        for row in view.controlled_by(resource, &self.row.facts.uid) {
            if self.selector.matches_map(&row.facts.labels) {
                claimed.push(row);
            } else if !self.row.facts.deleting() && !settled(row) {
                writes.push(self.release(resource, row));
            }
        }
        if !self.row.facts.deleting() {
            let orphans = view.orphans(resource, &self.row.key.namespace);
            let wanted = orphans.filter(|row| {
                self.selector.matches_map(&row.facts.labels)
                    && !row.facts.deleting()
                    && !settled(row)
            });
            writes.extend(wanted.map(|row| self.adopt(resource, row)));
        }
        (claimed, writes)
    }
}

fn references(resource: Resource, row: &Row, reference: Value) -> Write {
    let metadata = json!({"uid": row.facts.uid, "ownerReferences": [reference]});
    let (object, body) = (row.key.clone(), json!({"metadata": metadata}));
    Write::Patch { resource, object, subresource: "", kind: Patch::Strategic, body }
}

/// Whether a Pod neither runs nor will run.
pub(crate) fn finished(pod: &Value) -> bool {
    matches!(text(pod, "/status/phase"), "Succeeded" | "Failed")
}
