//! Trees that fit the types of the table, grown from random choices.
#![allow(dead_code, reason = "each test uses a part")]

use knarr_schema::{Schema, Shape, TypeId};
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use std::sync::LazyLock;

pub static SCHEMA: LazyLock<Schema> = LazyLock::new(Schema::builtin);

pub fn every_kind() -> Vec<TypeId> {
    SCHEMA.type_ids().filter(|id| SCHEMA.get(*id).gvk.is_some()).collect()
}

/// A tree that fits a shape, grown from a list of choices.
fn grow(shape: &Shape, depth: usize, choices: &mut dyn Iterator<Item = u8>) -> Value {
    let choice = choices.next().unwrap_or(0);
    match shape {
        Shape::String => json!(["", "a", "RollingUpdate", "é\n\"<"][usize::from(choice % 4)]),
        Shape::Bool => json!(choice.is_multiple_of(2)),
        Shape::Int32 | Shape::Int64 | Shape::Float64 => json!(i32::from(choice) - 3),
        Shape::Bytes => json!(["", "aGk="][usize::from(choice % 2)]),
        Shape::Quantity => json!(["0", "1000m", "1.5Gi", "100u"][usize::from(choice % 4)]),
        Shape::IntOrString if choice.is_multiple_of(2) => json!(choice),
        Shape::IntOrString => json!("25%"),
        Shape::Time => json!("2024-05-06T07:08:09+02:00"),
        Shape::MicroTime => json!("2024-05-06T07:08:09.123456Z"),
        Shape::Json(_) => json!({"z": [choice, null], "a": {}}),
        Shape::SchemaOrBool(_) | Shape::SchemaOrArray(_) | Shape::SchemaOrStrings(_) => {
            json!({"type": "string"})
        }
        Shape::List(element) => {
            (0..choice % 3).map(|_| grow(element, depth, choices)).collect::<Vec<_>>().into()
        }
        Shape::Map(element) => {
            let entry = |i| (format!("k{i}"), grow(element, depth, choices));
            Value::Object((0..choice % 3).map(entry).collect())
        }
        Shape::Ref(id) => {
            let mut out = Map::new();
            for field in &SCHEMA.get(*id).fields {
                if depth > 0 && choices.next().is_some_and(|c| c % 3 == 0) {
                    out.insert(field.name.to_string(), grow(&field.shape, depth - 1, choices));
                }
            }
            Value::Object(out)
        }
    }
}

pub fn object() -> impl Strategy<Value = (TypeId, Value)> {
    let mut kinds = every_kind();
    kinds.retain(|id| SCHEMA.get(*id).field("metadata").is_some());
    let choices = proptest::collection::vec(any::<u8>(), 0..400);
    (0..kinds.len(), choices).prop_map(move |(kind, choices)| {
        let mut choices = choices.into_iter();
        (kinds[kind], grow(&Shape::Ref(kinds[kind]), 9, &mut choices))
    })
}
