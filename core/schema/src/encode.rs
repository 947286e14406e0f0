//! Canonical bytes: `{"kind":…,"apiVersion":…,"metadata":{…},…`, without resourceVersion.
//!
//! Readers get head, `"resourceVersion":"N"` and tail copied in one go, so nothing on the way out
//! ever parses. Keys below the top are sorted: equal trees have equal bytes.
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde_json::{Map, Value};

const METADATA: &[u8] = b",\"metadata\":{";

/// Canonical JSON of an object: kind, apiVersion, metadata first, other keys sorted; its
/// `metadata.resourceVersion` is left out, `kind` and `apiVersion` of the tree are ignored.
/// An object always gets a `metadata`, empty if the tree has none.
pub fn encode(kind: &str, api_version: &str, tree: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    out.extend_from_slice(b"{\"kind\":");
    write(&mut out, &Value::from(kind));
    out.extend_from_slice(b",\"apiVersion\":");
    write(&mut out, &Value::from(api_version));
    out.extend_from_slice(METADATA);
    let metadata = tree.get("metadata").and_then(Value::as_object);
    write_entries(&mut out, metadata, &["resourceVersion"]);
    out.push(b'}');
    let start = out.len();
    write_entries(&mut out, tree.as_object(), &["kind", "apiVersion", "metadata"]);
    if out.len() > start {
        out.insert(start, b',');
    }
    out.push(b'}');
    out
}

/// The entries with a comma between them, but for those named in `without`.
fn write_entries(out: &mut Vec<u8>, entries: Option<&Map<String, Value>>, without: &[&str]) {
    let mut first = true;
    for (key, value) in entries.into_iter().flatten() {
        if without.contains(&key.as_str()) {
            continue;
        }
        if !core::mem::take(&mut first) {
            out.push(b',');
        }
        write(out, &Value::from(key.as_str()));
        out.push(b':');
        write(out, value);
    }
}

fn write(out: &mut Vec<u8>, value: &Value) {
    out.extend_from_slice(value.to_string().as_bytes());
}

/// Where the resourceVersion belongs in canonical bytes: right after `"metadata":{`.
/// `None` if these are not canonical bytes. Reads only the first few dozen bytes.
pub fn resource_version_offset(canonical: &[u8]) -> Option<usize> {
    let rest = canonical.strip_prefix(b"{\"kind\":\"")?;
    let kind = rest.iter().position(|b| *b == b'"')? + 1;
    let rest = rest[kind..].strip_prefix(b",\"apiVersion\":\"")?;
    let version = rest.iter().position(|b| *b == b'"')? + 1;
    let rest = rest[version..].strip_prefix(METADATA)?;
    Some(canonical.len() - rest.len())
}

/// What goes in at [`resource_version_offset`]: `"resourceVersion":"N"`, with a comma when more
/// metadata follows.
pub fn resource_version_text(canonical: &[u8], offset: usize, revision: u64) -> Vec<u8> {
    let comma = if canonical.get(offset) == Some(&b'}') { "" } else { "," };
    format!("\"resourceVersion\":\"{revision}\"{comma}").into_bytes()
}

/// Canonical bytes with a resourceVersion: the object as sent to clients.
pub fn with_resource_version(canonical: &[u8], offset: usize, revision: u64) -> Vec<u8> {
    let text = resource_version_text(canonical, offset, revision);
    [&canonical[..offset], &text, &canonical[offset..]].concat()
}
