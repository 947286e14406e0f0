//! The older OpenAPI document as protobuf, in which kubectl asks for it: a message whose fields are
//! the keys of the JSON, with maps as lists of names and values, and anything free as YAML.

use alloc::string::ToString;
use alloc::vec::Vec;

use serde_json::Value;

use super::wire::{put_bytes, put_message};

/// Writes a document that [`crate::openapi_v2`] made.
pub fn openapi_v2_protobuf(document: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    let text = |path: &str| document.pointer(path).and_then(Value::as_str).unwrap_or_default();
    put_bytes(&mut out, 1, text("/swagger").as_bytes());
    put_message(&mut out, 2, |out| {
        put_bytes(out, 1, text("/info/title").as_bytes());
        put_bytes(out, 2, text("/info/version").as_bytes());
    });
    put_message(&mut out, 9, |out| put_named(out, &document["definitions"]));
    out
}

/// Schemas by their names.
fn put_named(out: &mut Vec<u8>, schemas: &Value) {
    for (name, schema) in schemas.as_object().into_iter().flatten() {
        put_message(out, 1, |out| {
            put_bytes(out, 1, name.as_bytes());
            put_message(out, 2, |out| put_schema(out, schema));
        });
    }
}

fn put_schema(out: &mut Vec<u8>, schema: &Value) {
    for (key, value) in schema.as_object().into_iter().flatten() {
        match (key.as_str(), value) {
            ("$ref", Value::String(text)) => put_bytes(out, 1, text.as_bytes()),
            ("format", Value::String(text)) => put_bytes(out, 2, text.as_bytes()),
            ("description", Value::String(text)) => put_bytes(out, 4, text.as_bytes()),
            ("default", value) => put_message(out, 5, |out| put_any(out, value)),
            ("required", Value::Array(names)) => {
                let names = names.iter().filter_map(Value::as_str);
                names.for_each(|name| put_bytes(out, 19, name.as_bytes()));
            }
            ("additionalProperties", schema) => {
                put_message(out, 21, |out| put_message(out, 1, |out| put_schema(out, schema)));
            }
            ("type", Value::String(text)) => {
                put_message(out, 22, |out| put_bytes(out, 1, text.as_bytes()));
            }
            ("items", schema) => {
                put_message(out, 23, |out| put_message(out, 1, |out| put_schema(out, schema)));
            }
            ("properties", schemas) => put_message(out, 25, |out| put_named(out, schemas)),
            (name, value) if name.starts_with("x-") => put_message(out, 31, |out| {
                put_bytes(out, 1, name.as_bytes());
                put_message(out, 2, |out| put_any(out, value));
            }),
            // Nothing else is in our tables.
            _ => {}
        }
    }
}

/// A value as YAML, of which JSON is a part.
fn put_any(out: &mut Vec<u8>, value: &Value) {
    put_bytes(out, 2, value.to_string().as_bytes());
}
