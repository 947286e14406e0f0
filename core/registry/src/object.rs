//! The keyspace read as objects.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use bytes::Bytes;
use knarr_api::{Kind, ObjectKey, Status};
use knarr_mvcc::{KeyRange, KeyValue, Keyspace, Revision};
use serde_json::Value;

use crate::convert::served;

/// The keyspace as of one durable revision.
#[derive(Clone, Copy)]
pub struct Snapshot<'a> {
    keyspace: &'a Keyspace,
    revision: Revision,
}

impl<'a> Snapshot<'a> {
    /// The keyspace at `revision`, which must be durable.
    pub fn new(keyspace: &'a Keyspace, revision: Revision) -> Self {
        Self { keyspace, revision }
    }

    /// The revision it shows.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The keyspace itself, for reads at other revisions.
    pub(crate) fn keyspace(&self) -> &'a Keyspace {
        self.keyspace
    }

    /// One object.
    pub fn get(&self, kind: &Kind, object: &ObjectKey) -> Option<KeyValue> {
        self.key(&kind.key(object))
    }

    /// One key.
    pub(crate) fn key(&self, key: &str) -> Option<KeyValue> {
        let range = KeyRange::single(Bytes::copy_from_slice(key.as_bytes()));
        self.range(&range).pop()
    }

    /// Every object below a key prefix.
    pub fn prefix(&self, prefix: &str) -> Vec<KeyValue> {
        self.range(&KeyRange::prefix(Bytes::copy_from_slice(prefix.as_bytes())))
    }

    fn range(&self, range: &KeyRange) -> Vec<KeyValue> {
        let found = self.keyspace.range(range, self.revision, 0);
        found.map(|result| result.kvs).unwrap_or_default()
    }

    /// One object as a tree.
    pub(crate) fn tree(&self, kind: &Kind, object: &ObjectKey) -> Option<Value> {
        tree(&self.get(kind, object)?.value).ok()
    }
}

/// Reads stored bytes as a tree.
pub(crate) fn tree(bytes: &[u8]) -> Result<Value, Status> {
    serde_json::from_slice(bytes).map_err(Status::internal)
}

/// Stored bytes as a tree that carries its resourceVersion, as clients see it.
pub(crate) fn tree_at(kind: &Kind, kv: &KeyValue) -> Result<Value, Status> {
    let mut tree = tree(&served(kind, &kv.value))?;
    set_revision(&mut tree, kv.mod_revision);
    Ok(tree)
}

pub(crate) fn set_revision(tree: &mut Value, revision: Revision) {
    if let Some(metadata) = tree.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("resourceVersion".to_owned(), Value::String(revision.0.to_string()));
    }
}

/// Stored bytes as they are sent: head, resourceVersion, tail; the bytes are shared, not copied.
pub fn pieces(value: &Bytes, revision: Revision, out: &mut Vec<Bytes>) {
    let Some(at) = knarr_schema::resource_version_offset(value) else {
        out.push(value.clone());
        return;
    };
    let comma = if value.get(at) == Some(&b'}') { "" } else { "," };
    out.push(value.slice(..at));
    out.push(format!("\"resourceVersion\":\"{revision}\"{comma}", revision = revision.0).into());
    out.push(value.slice(at..));
}

/// A string field, empty when absent.
pub(crate) fn text<'a>(tree: &'a Value, pointer: &str) -> &'a str {
    tree.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The object behind a storage key: what follows the kind's prefix.
pub(crate) fn key_of(kind: &Kind, key: &[u8]) -> ObjectKey {
    let key = core::str::from_utf8(key).unwrap_or_default();
    let rest = key.strip_prefix(&kind.prefix()).unwrap_or(key);
    match rest.split_once('/') {
        Some((namespace, name)) if kind.namespaced() => ObjectKey::new(namespace, name),
        _ => ObjectKey::new("", rest),
    }
}

/// Sets a string at a path of object keys, making the objects on the way.
pub(crate) fn set(tree: &mut Value, path: &[&str], value: Value) {
    let [path @ .., last] = path else { return };
    let mut at = tree;
    for step in path {
        if !at.get(*step).is_some_and(Value::is_object) {
            at[*step] = Value::Object(serde_json::Map::new());
        }
        at = &mut at[*step];
    }
    at[*last] = value;
}

/// Removes what stands at a path of object keys.
pub(crate) fn remove(tree: &mut Value, path: &[&str]) -> Option<Value> {
    let [path @ .., last] = path else { return None };
    let parent = path.iter().try_fold(tree, |at, step| at.get_mut(*step))?;
    parent.as_object_mut()?.remove(*last)
}

/// Names of a list of strings at a pointer.
pub(crate) fn strings(tree: &Value, pointer: &str) -> Vec<String> {
    let list = tree.pointer(pointer).and_then(Value::as_array).into_iter().flatten();
    list.filter_map(Value::as_str).map(str::to_owned).collect()
}
