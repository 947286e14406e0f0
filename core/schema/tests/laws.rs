//! Laws: the table is consistent with itself, decoding and encoding reach a fixpoint, patches
//! never panic, the OpenAPI documents refer to nothing they lack.
#![allow(clippy::unwrap_used)]

mod grow;

use grow::{SCHEMA, every_kind, object};
use knarr_schema::{
    ApiKind, ListKind, Presence, Scope, Shape, encode, json_patch, merge_patch,
    resource_version_offset, with_resource_version,
};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeSet;

fn inner(shape: &Shape) -> &Shape {
    match shape {
        Shape::List(inner) | Shape::Map(inner) => self::inner(inner),
        other => other,
    }
}

#[test]
fn names_and_ids_agree() {
    for id in SCHEMA.type_ids() {
        let def = SCHEMA.get(id);
        assert_eq!(SCHEMA.type_id(&def.name), Some(id));
        if let Some((group, version)) = &def.gvk {
            assert_eq!(SCHEMA.kind_type(group, version, def.short_name()), Some(id));
        }
        assert!(def.fields.is_sorted_by(|a, b| a.name < b.name), "{}: fields twice", def.name);
        for field in &def.fields {
            assert!(def.field(&field.name).is_some_and(|found| std::ptr::eq(found, field)));
        }
    }
}

#[test]
fn protobuf_numbers_are_unique_within_a_type() {
    for id in SCHEMA.type_ids() {
        let def = SCHEMA.get(id);
        let mut seen = BTreeSet::new();
        for field in def.fields.iter().filter(|f| f.proto[0] != 0) {
            assert!(seen.insert(field.proto), "{}.{}", def.name, field.name);
        }
    }
}

#[test]
fn keys_name_fields_of_the_elements() {
    for id in SCHEMA.type_ids() {
        for field in &SCHEMA.get(id).fields {
            let merge_key = field.merge_key().filter(|_| matches!(field.shape, Shape::List(_)));
            let keys: Vec<&str> = match field.list() {
                ListKind::Map(keys) => keys.iter().map(AsRef::as_ref).collect(),
                _ => vec![],
            };
            for key in keys.into_iter().chain(merge_key) {
                let Shape::Ref(element) = inner(&field.shape) else {
                    panic!("{}.{} is merged by {key}", SCHEMA.get(id).name, field.name)
                };
                assert!(SCHEMA.get(*element).field(key).is_some(), "{}: {key}", field.name);
            }
        }
    }
}

#[test]
fn kinds_have_metadata_or_are_options() {
    for id in every_kind() {
        let def = SCHEMA.get(id);
        let named = def.field("kind").is_some() && def.field("apiVersion").is_some();
        assert!(named, "{} has no type meta", def.name);
    }
    let pod = SCHEMA.kind_type("", "v1", "Pod").unwrap();
    let metadata = SCHEMA.get(pod).field("metadata").unwrap();
    assert_eq!((metadata.presence, metadata.proto), (Presence::OmitEmpty, [1, 0, 0]));
}

#[test]
fn openapi_refers_to_nothing_it_lacks() {
    let sub = |name: &str, gvk: (&str, &str, &str)| knarr_schema::ApiSubresource {
        name: name.into(),
        gvk: (gvk.0.into(), gvk.1.into(), gvk.2.into()),
        verbs: vec!["get".into(), "update".into(), "patch".into()],
    };
    let verbs = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
    let kind = ApiKind {
        kind: "Deployment".into(),
        plural: "deployments".into(),
        scope: Scope::Namespaced,
        verbs: verbs.map(String::from).into(),
        subresources: vec![
            sub("scale", ("autoscaling", "v1", "Scale")),
            sub("status", ("apps", "v1", "Deployment")),
        ],
    };
    let doc = SCHEMA.openapi_v3("apps", "v1", &[kind]);
    let text = doc.to_string();
    for part in text.split("#/components/schemas/").skip(1) {
        let name = part.split('"').next().unwrap();
        assert!(doc["components"]["schemas"].get(name).is_some(), "{name} is missing");
    }
    let path = "/apis/apps/v1/namespaces/{namespace}/deployments/{name}";
    let patch = &doc["paths"][path]["patch"];
    let names = patch["parameters"].as_array().unwrap().iter().map(|p| &p["name"]);
    assert_eq!(names.collect::<Vec<_>>(), ["dryRun", "fieldManager", "fieldValidation", "force"]);
    assert_eq!(patch["operationId"], "patchAppsV1NamespacedDeployment");
    assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Deployment");
    let media = "application/strategic-merge-patch+json";
    assert!(patch["requestBody"]["content"].get(media).is_some());
    let everywhere = &doc["paths"]["/apis/apps/v1/deployments"]["get"]["operationId"];
    assert_eq!(everywhere, "listAppsV1DeploymentForAllNamespaces");
    assert!(doc["paths"].get(format!("{path}/scale")).is_some());
    let spec = &doc["components"]["schemas"]["io.k8s.api.apps.v1.DeploymentSpec"];
    assert_eq!(spec["required"], json!(["selector", "template"]));
    let containers =
        &doc["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
    assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i8>().prop_map(Value::from),
        "[a-c]".prop_map(Value::from),
        Just(json!("delete")),
        Just(json!("replace")),
    ];
    let key = prop_oneof![
        Just("name"),
        Just("metadata"),
        Just("spec"),
        Just("containers"),
        Just("finalizers"),
        Just("volumes"),
        Just("$patch"),
        Just("$retainKeys"),
        Just("$setElementOrder/containers"),
        Just("$setElementOrder/finalizers"),
        Just("$deleteFromPrimitiveList/finalizers"),
    ];
    leaf.prop_recursive(5, 40, 4, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(key.clone().prop_map(String::from), inner, 0..5)
                .prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

fn operation() -> impl Strategy<Value = Value> {
    let op = prop_oneof!["add", "remove", "replace", "move", "copy", "test", "zap"];
    let path = "(/(name|spec|0|1|-|-1|a~1b)){0,3}";
    (op, path, path, any_json()).prop_map(
        |(op, path, from, value)| json!({"op": op, "path": path, "from": from, "value": value}),
    )
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 512,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// decode → default → normalize → encode, then decode → normalize → encode: the same bytes.
    #[test]
    fn stored_bytes_are_a_fixpoint((id, tree) in object()) {
        let mut tree = SCHEMA.decode_value(id, &tree).unwrap().tree;
        SCHEMA.default(id, &mut tree);
        SCHEMA.normalize(id, &mut tree);
        let bytes = encode("K", "g/v1", &tree);
        let again = SCHEMA.decode(id, &bytes).unwrap();
        prop_assert!(again.issues.is_empty(), "{:?}", again.issues);
        let mut tree = again.tree;
        SCHEMA.normalize(id, &mut tree);
        prop_assert_eq!(
            String::from_utf8(encode("K", "g/v1", &tree)).unwrap(),
            String::from_utf8(bytes).unwrap()
        );
    }

    /// Defaulting what is defaulted changes nothing.
    #[test]
    fn defaults_are_idempotent((id, tree) in object()) {
        let mut once = SCHEMA.decode_value(id, &tree).unwrap().tree;
        SCHEMA.default(id, &mut once);
        let mut twice = once.clone();
        SCHEMA.default(id, &mut twice);
        prop_assert_eq!(once, twice);
    }

    /// Bytes and trees decode alike.
    #[test]
    fn bytes_and_trees_decode_alike((id, tree) in object()) {
        let by_bytes = SCHEMA.decode(id, tree.to_string().as_bytes()).unwrap();
        let by_tree = SCHEMA.decode_value(id, &tree).unwrap();
        prop_assert_eq!(by_bytes.tree, by_tree.tree);
    }

    /// The resourceVersion goes in without parsing and comes out by parsing.
    #[test]
    fn resource_versions_are_spliced((_, tree) in object(), revision in any::<u64>()) {
        let bytes = encode("Kind", "group/v1", &tree);
        let offset = resource_version_offset(&bytes).unwrap();
        let sent: Value =
            serde_json::from_slice(&with_resource_version(&bytes, offset, revision)).unwrap();
        prop_assert_eq!(&sent["metadata"]["resourceVersion"], &json!(revision.to_string()));
        let without: Value = serde_json::from_slice(&bytes).unwrap();
        prop_assert!(without["metadata"].get("resourceVersion").is_none());
    }

    #[test]
    fn decoding_anything_is_an_answer(tree in any_json(), bytes in any::<Vec<u8>>()) {
        let pod = SCHEMA.kind_type("", "v1", "Pod").unwrap();
        let _ = SCHEMA.decode_value(pod, &tree);
        let _ = SCHEMA.decode(pod, &bytes);
        let mut tree = tree;
        SCHEMA.default(pod, &mut tree);
        SCHEMA.normalize(pod, &mut tree);
    }

    #[test]
    fn patches_are_an_answer(doc in any_json(), patch in any_json()) {
        let pod = SCHEMA.kind_type("", "v1", "Pod").unwrap();
        let _ = SCHEMA.strategic_merge(pod, doc.clone(), patch.clone());
        let mut merged = doc;
        let _ = merge_patch(&mut merged, patch);
    }

    /// A merge patch applied twice is applied once.
    #[test]
    fn merge_patches_are_idempotent(doc in any_json(), patch in any_json()) {
        let mut once = doc;
        if merge_patch(&mut once, patch.clone()).is_ok() {
            let mut twice = once.clone();
            merge_patch(&mut twice, patch).unwrap();
            prop_assert_eq!(once, twice);
        }
    }

    #[test]
    fn json_patches_are_an_answer(
        doc in any_json(),
        patch in proptest::collection::vec(operation(), 0..6),
    ) {
        let _ = json_patch(&doc, &Value::from(patch));
    }
}

#[test]
fn json_patches_have_limits() {
    let operation = json!({"op": "test", "path": "/a", "value": 1});
    let patch = |n| Value::from(vec![operation.clone(); n]);
    assert!(json_patch(&json!({"a": 1}), &patch(10_000)).is_ok());
    let error = json_patch(&json!({"a": 1}), &patch(10_001)).unwrap_err();
    let text = "The allowed maximum operations in a JSON patch is 10000, got 10001";
    assert_eq!(error, knarr_schema::PatchError::TooLarge(text.into()));
    let copy = json!({"op": "copy", "from": "", "path": "/b"});
    assert!(json_patch(&json!({"a": 1}), &json!([copy])).is_err());
    let copies = vec![json!({"op": "copy", "from": "/a", "path": "/a/-"}); 40];
    let doc = json!({"a": ["x".repeat(100_000)]});
    let error = json_patch(&doc, &Value::from(copies)).unwrap_err().to_string();
    assert!(error.starts_with("Unable to complete the copy"), "{error}");
}

#[test]
fn json_patches_do_not_nest_without_end() {
    let doc = (0..100).fold(json!({}), |inner, _| json!({"a": inner}));
    let mut patch = vec![json!({"op": "copy", "from": "/a", "path": "/b"})];
    for length in 1..=6 {
        let path = "/a".repeat(100 * length) + "/a";
        patch.push(json!({"op": "copy", "from": "/b", "path": path}));
    }
    assert!(json_patch(&doc, &Value::from(&patch[..4])).is_ok());
    let error = json_patch(&doc, &Value::from(patch)).unwrap_err().to_string();
    assert_eq!(error, "exceeded max depth");
    let shallow = vec![json!({"op": "add", "path": "/x/y/z", "value": 1}); 10_000];
    assert!(json_patch(&json!({"x": {"y": {}}}), &Value::from(shallow)).is_ok());
}
