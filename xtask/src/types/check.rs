//! Compares the table with an OpenAPI v2 document: two sources of the same facts should agree.
use super::resolve::{Expr, FieldRow, Row};
use super::{array, openapi_package, text};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// One line per disagreement, then a count.
pub(crate) fn compare(rows: &[Row], swagger: &Value) -> String {
    let mut out = String::new();
    let mut count = 0;
    let by_name: BTreeMap<String, &Row> = rows
        .iter()
        .map(|row| (format!("{}.{}", openapi_package(&row.name.path), row.name.name), row))
        .collect();
    let empty = serde_json::Map::new();
    let definitions = swagger["definitions"].as_object().unwrap_or(&empty);
    let mut say = |line: String| {
        count += 1;
        let _ = writeln!(out, "{line}");
    };
    for (name, definition) in definitions {
        match by_name.get(name) {
            Some(row) => compare_type(name, row, definition, &mut say),
            None if definition["properties"].is_object() && !name.ends_with("List") => {
                say(format!("{name}: only in OpenAPI"));
            }
            None => {}
        }
    }
    for name in by_name.keys().filter(|name| !definitions.contains_key(*name)) {
        say(format!("{name}: only in the table"));
    }
    let _ = writeln!(out, "{count} disagreements");
    out
}

fn compare_type(name: &str, row: &Row, definition: &Value, say: &mut impl FnMut(String)) {
    let empty = serde_json::Map::new();
    let properties = definition["properties"].as_object().unwrap_or(&empty);
    let atomic = definition["x-kubernetes-map-type"] == "atomic";
    if atomic != row.atomic {
        say(format!("{name}: atomic is {} here, {atomic} in OpenAPI", row.atomic));
    }
    for field in &row.fields {
        match properties.get(&field.name) {
            Some(property) => compare_field(name, field, property, definition, say),
            None => say(format!("{name}.{}: only in the table", field.name)),
        }
    }
    for property in properties.keys() {
        if !row.fields.iter().any(|f| f.name == *property) {
            say(format!("{name}.{property}: only in OpenAPI"));
        }
    }
}

fn compare_field(
    name: &str,
    field: &FieldRow,
    property: &Value,
    definition: &Value,
    say: &mut impl FnMut(String),
) {
    let attr = |key: &str| {
        field.attrs.iter().find(|(k, _)| *k == key).map_or(String::new(), |(_, v)| v.clone())
    };
    let keys: Vec<&str> = array(&property["x-kubernetes-list-map-keys"]).iter().map(text).collect();
    let required = array(&definition["required"]).iter().any(|r| r == field.name.as_str());
    let has = |key| field.attrs.iter().any(|(k, _)| *k == key);
    let is_required = has("req") || matches!(field.presence, '!' | '~') && !has("opt");
    let facts = [
        ("type", expr_text(&field.expr), property_text(property)),
        ("list", attr("list"), text(&property["x-kubernetes-list-type"]).to_owned()),
        ("keys", attr("keys"), keys.join(",")),
        ("merge", attr("merge"), text(&property["x-kubernetes-patch-merge-key"]).to_owned()),
        ("patch", attr("patch"), text(&property["x-kubernetes-patch-strategy"]).to_owned()),
        ("required", is_required.to_string(), required.to_string()),
    ];
    for (fact, ours, theirs) in facts {
        if ours != theirs {
            say(format!("{name}.{}: {fact} is {ours:?} here, {theirs:?} in OpenAPI", field.name));
        }
    }
}

fn expr_text(expr: &Expr) -> String {
    match expr {
        Expr::List(inner) => format!("[]{}", expr_text(inner)),
        Expr::Map(inner) => format!("{{}}{}", expr_text(inner)),
        Expr::Ref(name) => format!("{}.{}", openapi_package(&name.path), name.name),
        Expr::Scalar(scalar) => (*scalar).to_owned(),
    }
}

fn property_text(property: &Value) -> String {
    if let Some(reference) = property["$ref"].as_str() {
        return scalar_of(reference.trim_start_matches("#/definitions/"));
    }
    match (text(&property["type"]), text(&property["format"])) {
        ("array", _) => format!("[]{}", property_text(&property["items"])),
        ("object", _) if property["additionalProperties"].is_object() => {
            format!("{{}}{}", property_text(&property["additionalProperties"]))
        }
        ("string", "byte") => "bytes".into(),
        ("integer", format) => format.into(),
        ("number", _) => "float64".into(),
        ("boolean", _) => "bool".into(),
        ("string", "") => "string".into(),
        (other, format) => format!("{other}/{format}"),
    }
}

fn scalar_of(name: &str) -> String {
    match name.rsplit('.').next().unwrap_or_default() {
        "Quantity" => "quantity",
        "IntOrString" => "intorstring",
        "Time" => "time",
        "MicroTime" => "microtime",
        "FieldsV1" => "fields",
        "RawExtension" => "raw",
        "JSON" => "json",
        "JSONSchemaPropsOrArray" => "schemaorarray",
        "JSONSchemaPropsOrBool" => "schemaorbool",
        "JSONSchemaPropsOrStringArray" => "schemaorstrings",
        _ => return name.to_owned(),
    }
    .to_owned()
}
