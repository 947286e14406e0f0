//! OpenAPI v3 documents made from the table, per group and version.
use crate::table::Schema;
use alloc::string::String;
use alloc::vec::Vec;
use serde_json::Value;

/// Whether objects of a kind live in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Scope {
    Cluster,
    Namespaced,
}

/// One served kind as the document needs it.
#[derive(Clone, Debug)]
pub struct ApiKind {
    /// `Deployment`
    pub kind: String,
    /// `deployments`
    pub plural: String,
    /// Cluster or namespace.
    pub scope: Scope,
    /// `create`, `get`, `list`, `update`, `patch`, `delete`, `deletecollection`, `watch`.
    pub verbs: Vec<String>,
    /// (name, group, version, kind, verbs) of each subresource.
    pub subresources: Vec<ApiSubresource>,
}

/// One subresource of an [`ApiKind`], such as `status` or `scale`.
#[derive(Clone, Debug)]
pub struct ApiSubresource {
    /// `status`, `scale`, `eviction`, …
    pub name: String,
    /// Group, version and kind of its body.
    pub gvk: (String, String, String),
    /// Verbs it serves.
    pub verbs: Vec<String>,
}

impl Schema {
    /// The document served at `/openapi/v3/{api/v1|apis/GROUP/VERSION}`.
    pub fn openapi_v3(&self, _group: &str, _version: &str, _kinds: &[ApiKind]) -> Value {
        Value::Null
    }
}
