//! Laws of types declared at run time: any schema makes a type, its objects reach a fixpoint.
#![allow(clippy::unwrap_used)]

mod grow;

use grow::SCHEMA;
use knarr_schema::{Schema, TypeId, encode};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

fn declared(described: &Value) -> (Schema, TypeId) {
    let schema = SCHEMA.clone().with_custom("example.com", "v1", "Widget", described);
    let id = schema.kind_type("example.com", "v1", "Widget").unwrap();
    (schema, id)
}

/// Schemas, most of them sane.
fn described() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!({"type": "string", "default": "x"})),
        Just(json!({"type": "integer", "default": 3})),
        Just(json!({"type": "number"})),
        Just(json!({"type": "boolean", "nullable": true})),
        Just(json!({"x-kubernetes-int-or-string": true})),
        Just(json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})),
        Just(json!({"type": "object", "x-kubernetes-embedded-resource": true})),
        Just(json!({"type": 5, "properties": [], "default": null})),
        Just(Value::Null),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let fields = proptest::collection::btree_map("[a-d]", inner.clone(), 0..4);
        prop_oneof![
            inner.clone().prop_map(|items| json!({"type": "array", "items": items})),
            inner.prop_map(|values| json!({"type": "object", "additionalProperties": values})),
            (fields, any::<bool>()).prop_map(|(fields, open)| json!({"type": "object",
                "properties": fields, "x-kubernetes-preserve-unknown-fields": open})),
        ]
    })
}

fn tree() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        "[a-c]?".prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 30, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map("[a-d]", inner, 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 128,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn stored_bytes_are_a_fixpoint(described in described(), tree in tree()) {
        let (schema, id) = declared(&described);
        let Ok(decoded) = schema.decode_value(id, &tree) else { return Ok(()) };
        let mut tree = decoded.tree;
        schema.default(id, &mut tree);
        schema.normalize(id, &mut tree);
        let bytes = encode("Widget", "example.com/v1", &tree);
        let again = schema.decode(id, &bytes).unwrap();
        prop_assert!(again.issues.is_empty(), "{:?}", again.issues);
        let mut tree = again.tree;
        schema.default(id, &mut tree);
        schema.normalize(id, &mut tree);
        prop_assert_eq!(encode("Widget", "example.com/v1", &tree), bytes);
    }
}

#[test]
fn no_definition_changes_a_built_in_kind() {
    let pod = SCHEMA.kind_type("", "v1", "Pod");
    let meta = "io.k8s.apimachinery.pkg.apis.meta";
    let (one, two) = (json!({}), json!({"type": "object"}));
    let schema = SCHEMA.clone().with_custom("", "v1", "Pod", &one);
    let schema = schema.with_custom(meta, "v1", "ObjectMeta", &two);
    assert_eq!(schema.kind_type("", "v1", "Pod"), pod);
    let name = format!("{meta}.v1.ObjectMeta");
    assert_eq!(schema.type_id(&name), SCHEMA.type_id(&name));
}

/// What lies deeper than fifty properties is kept as it is.
#[test]
fn schemas_do_not_nest_without_end() {
    let nested = |open: &str, inner: &str, close: &str, times| {
        format!("{}{inner}{}", open.repeat(times), close.repeat(times))
    };
    let open = r#"{"type": "object", "properties": {"a": "#;
    let described = nested(open, "{}", "}}", 60);
    let described = serde_json::from_str(&described).unwrap();
    let (schema, id) = declared(&described);
    let tree = nested(r#"{"a": "#, r#"{"z": 1}"#, "}", 55);
    let decoded = schema.decode(id, tree.as_bytes()).unwrap();
    assert!(decoded.issues.is_empty());
    let shallow = nested(r#"{"a": "#, r#"{"z": 1}"#, "}", 20);
    assert_eq!(schema.decode(id, shallow.as_bytes()).unwrap().issues.len(), 1);
}
