//! A resource at one version: what a client or a controller asks the API for.

use alloc::format;
use alloc::string::String;
use core::fmt;

use crate::ObjectKey;

/// A collection of objects. Names are static: those of kinds declared at run time are interned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Resource {
    /// `v1` or `apps/v1`.
    pub api_version: &'static str,
    /// Plural name.
    pub plural: &'static str,
}

impl Resource {
    /// A resource by `apiVersion` and plural name.
    pub const fn new(api_version: &'static str, plural: &'static str) -> Self {
        Self { api_version, plural }
    }

    /// The API group, empty for the core group.
    pub fn group(&self) -> &'static str {
        self.api_version.split_once('/').map_or("", |(group, _)| group)
    }

    /// The path of the collection (all namespaces when `namespace` is empty).
    pub fn path(&self, namespace: &str) -> String {
        let root = if self.api_version.contains('/') { "apis" } else { "api" };
        let Self { api_version, plural } = self;
        match namespace {
            "" => format!("/{root}/{api_version}/{plural}"),
            namespace => format!("/{root}/{api_version}/namespaces/{namespace}/{plural}"),
        }
    }

    /// The path of one object, or of a part of it when `subresource` is not empty.
    pub fn object_path(&self, object: &ObjectKey, subresource: &str) -> String {
        let path = format!("{}/{}", self.path(&object.namespace), escape(&object.name));
        if subresource.is_empty() { path } else { format!("{path}/{subresource}") }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.group() {
            "" => f.write_str(self.plural),
            group => write!(f, "{}.{group}", self.plural),
        }
    }
}

/// Percent-encodes what may not stand in a path segment (RBAC names have colons, which may).
fn escape(name: &str) -> String {
    let plain = |c: u8| c.is_ascii_alphanumeric() || b"-._~:@!$&'()*+,;=".contains(&c);
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        if plain(byte) {
            out.push(byte as char);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
