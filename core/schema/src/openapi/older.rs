//! The older form of the document, `/openapi/v2`: one for all groups. kubectl checks with it what
//! the server cannot check as a whole, such as a `v1 List`; for that it reads the types, so
//! operations are left out.

use alloc::format;
use alloc::string::String;

use serde_json::{Map, Value, json};

/// Makes a document in the older form of the components of one in the newer form.
pub fn openapi_v2(document: &Value) -> Value {
    let components = document.pointer("/components/schemas").and_then(Value::as_object);
    let definitions =
        components.into_iter().flatten().map(|(name, schema)| (name.clone(), older(schema)));
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": "unversioned"},
        "paths": {},
        "definitions": definitions.collect::<Map<String, Value>>(),
    })
}

/// One schema: a reference stands beside what is said of it, and of two types the one in which all
/// values can be written counts.
fn older(schema: &Value) -> Value {
    let Value::Object(fields) = schema else { return schema.clone() };
    let mut out = Map::new();
    for (key, value) in fields {
        match key.as_str() {
            "$ref" => drop(out.insert(key.clone(), reference(value))),
            "allOf" => {
                let only = value.get(0).and_then(|only| only.get("$ref"));
                out.extend(only.map(|only| ("$ref".into(), reference(only))));
            }
            "oneOf" => drop(out.insert("type".into(), "string".into())),
            "items" | "additionalProperties" => drop(out.insert(key.clone(), older(value))),
            "properties" => {
                let properties = value.as_object().into_iter().flatten();
                let properties = properties.map(|(name, schema)| (name.clone(), older(schema)));
                out.insert(key.clone(), properties.collect::<Map<String, Value>>().into());
            }
            _ => drop(out.insert(key.clone(), value.clone())),
        }
    }
    out.into()
}

fn reference(value: &Value) -> Value {
    let name = value.as_str().unwrap_or_default();
    let name = name.strip_prefix("#/components/schemas/").unwrap_or(name);
    format!("#/definitions/{name}").into()
}
