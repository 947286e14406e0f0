//! Laws of the protobuf codec: what is written is read back, nothing makes it panic.
#![allow(clippy::unwrap_used)]

mod grow;

use grow::{SCHEMA, object};
use knarr_schema::{Envelope, ProtobufError, Shape, TypeId};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

fn kind(group: &str, version: &str, kind: &str) -> TypeId {
    SCHEMA.kind_type(group, version, kind).unwrap()
}

fn there_and_back(id: TypeId, tree: &Value) -> Value {
    let mut back = SCHEMA.decode_protobuf(id, &SCHEMA.encode_protobuf(id, tree)).unwrap();
    SCHEMA.normalize(id, &mut back);
    back
}

/// Protobuf cannot tell an empty list or map from none, and has kind and apiVersion elsewhere.
fn blurred(id: TypeId, mut tree: Value) -> Value {
    lose(&Shape::Ref(id), &mut tree);
    blur(&mut tree);
    tree
}

fn lose(shape: &Shape, tree: &mut Value) {
    match (shape, tree) {
        (Shape::Ref(id), Value::Object(entries)) => {
            let def = SCHEMA.get(*id);
            entries.retain(|key, _| def.field(key).unwrap().proto[0] != 0);
            for (key, value) in entries {
                lose(&def.field(key).unwrap().shape, value);
            }
        }
        (Shape::Map(_), tree) if tree.as_object().is_some_and(Map::is_empty) => *tree = Value::Null,
        (Shape::List(element), Value::Array(items)) => {
            items.iter_mut().for_each(|item| lose(element, item));
        }
        _ => {}
    }
}

fn blur(tree: &mut Value) {
    match tree {
        Value::Array(items) if items.is_empty() => *tree = Value::Null,
        Value::Array(items) => items.iter_mut().for_each(blur),
        Value::Object(entries) => {
            entries.values_mut().for_each(blur);
            entries.retain(|_, value| !value.is_null());
        }
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 512,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn what_is_written_is_read_back((id, tree) in object()) {
        let mut tree = SCHEMA.decode_value(id, &tree).unwrap().tree;
        SCHEMA.normalize(id, &mut tree);
        let once = there_and_back(id, &tree);
        prop_assert_eq!(blurred(id, once.clone()), blurred(id, tree));
        prop_assert_eq!(there_and_back(id, &once), once);
    }

    #[test]
    fn any_bytes_are_an_answer((id, tree) in object(), at in any::<usize>(), to in any::<u8>()) {
        let mut bytes = SCHEMA.encode_protobuf(id, &tree);
        if !bytes.is_empty() {
            let at = at % bytes.len();
            bytes[at] = to;
            let _ = SCHEMA.decode_protobuf(id, &bytes);
            let _ = SCHEMA.decode_protobuf(id, &bytes[..at]);
        }
    }

    #[test]
    fn garbage_is_an_answer(bytes in any::<Vec<u8>>()) {
        let _ = SCHEMA.decode_protobuf(kind("", "v1", "Pod"), &bytes);
        let _ = SCHEMA.protobuf_to_json(&[b"k8s\0".as_slice(), &bytes].concat());
    }

    #[test]
    fn envelopes_open(kind in "[A-Za-z]{0,9}", api_version in ".*", raw in any::<Vec<u8>>()) {
        let envelope = Envelope { api_version: &api_version, kind: &kind, raw: &raw };
        let wrapped = envelope.wrap();
        prop_assert_eq!(Envelope::unwrap(&wrapped).unwrap(), envelope);
    }
}

/// Every message that a client sends beside the kinds themselves.
#[test]
fn requests_become_json() {
    for (api_version, name, body) in [
        (
            "apps/v1",
            "DeleteOptions",
            json!({"gracePeriodSeconds": 0, "dryRun": ["All"],
            "preconditions": {"uid": "u"}, "propagationPolicy": "Foreground"}),
        ),
        ("policy/v1", "Eviction", json!({"metadata": {"name": "p"}, "deleteOptions": {}})),
        ("v1", "Binding", json!({"metadata": {"name": "p"}, "target": {"name": "n"}})),
        ("autoscaling/v1", "Scale", json!({"spec": {"replicas": -3}})),
        (
            "authentication.k8s.io/v1",
            "TokenRequest",
            json!({"spec": {"audiences": ["a"],
            "expirationSeconds": 600}}),
        ),
        (
            "v1",
            "Status",
            json!({"status": "Failure", "code": 404, "details": {"causes": [
            {"field": "f"}]}}),
        ),
        (
            "authorization.k8s.io/v1",
            "SubjectAccessReview",
            json!({"spec": {"user": "u",
            "extra": {"a": ["b", "c"], "d": []}}}),
        ),
        ("v1", "Secret", json!({"data": {"a": "aGk=", "b": ""}, "immutable": false})),
        (
            "v1",
            "Pod",
            json!({"spec": {"containers": [{"name": "c", "livenessProbe": {"httpGet":
            {"port": "http"}}, "resources": {"limits": {"cpu": "500m"}}}],
            "securityContext": {"supplementalGroups": [0, 5]}},
            "metadata": {"creationTimestamp": "2024-05-06T07:08:09Z"}}),
        ),
    ] {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let id = SCHEMA
            .kind_type(group, version, name)
            .unwrap_or_else(|| kind("meta.k8s.io", "v1", name));
        let raw = SCHEMA.encode_protobuf(id, &body);
        let bytes = Envelope { api_version, kind: name, raw: &raw }.wrap();
        let json: Value =
            serde_json::from_slice(&SCHEMA.protobuf_to_json(&bytes).unwrap()).unwrap();
        assert_eq!((&json["apiVersion"], &json["kind"]), (&api_version.into(), &name.into()));
        assert!(SCHEMA.decode(id, json.to_string().as_bytes()).unwrap().issues.is_empty());
        assert_eq!(blurred(id, json), blurred(id, body), "{name}");
    }
}

#[test]
fn what_is_not_protobuf_is_refused() {
    let config_map = kind("", "v1", "ConfigMap");
    let error = |bytes: &[u8]| SCHEMA.decode_protobuf(config_map, bytes).unwrap_err();
    assert_eq!(error(&[0x0a]), ProtobufError::Truncated);
    assert_eq!(error(&[0x0a, 5, 1]), ProtobufError::Truncated);
    assert_eq!(error(&[0x08, 1]), ProtobufError::WireType(0));
    assert_eq!(error(&[0x0f]), ProtobufError::WireType(7));
    assert_eq!(error(&[0x00]), ProtobufError::Tag);
    assert_eq!(error(&[0x0c]), ProtobufError::Tag);
    assert_eq!(error(&[0xff; 11]), ProtobufError::Overflow);
    assert_eq!(error(&[0x0a, 3, 0x0a, 1, 0xff]), ProtobufError::Utf8);
    let refused = |bytes: &[u8]| SCHEMA.protobuf_to_json(bytes).unwrap_err();
    assert!(refused(b"{}").starts_with("provided data does not appear"));
    let unknown = Envelope { api_version: "v1", kind: "Foo", raw: b"" }.wrap();
    assert_eq!(refused(&unknown), "no kind \"Foo\" is registered for version \"v1\"");
}

/// Unknown fields of every wire type are skipped, groups too; packed and unpacked are the same.
#[test]
fn what_is_unknown_is_skipped() {
    let scale = kind("autoscaling", "v1", "Scale");
    let unknown = [0xf8, 7, 1, 0xf9, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0xfa, 7, 1, 0, 0xfd, 7, 0, 0, 0, 0];
    let group = [0xfb, 7, 8, 1, 0xfc, 7];
    let replicas = [0x12, 2, 8, 3];
    let bytes = [&unknown[..], &group, &replicas].concat();
    let tree = SCHEMA.decode_protobuf(scale, &bytes).unwrap();
    assert_eq!(tree, json!({"spec": {"replicas": 3}}));

    let context = SCHEMA.type_id("io.k8s.api.core.v1.PodSecurityContext").unwrap();
    let wanted = json!({"supplementalGroups": [1, 2, 3]});
    let mixed = SCHEMA.decode_protobuf(context, &[0x20, 1, 0x22, 2, 2, 3]).unwrap();
    assert_eq!(mixed, wanted);
    assert_eq!(SCHEMA.encode_protobuf(context, &wanted)[..6], [0x20, 1, 0x20, 2, 0x20, 3]);
}

/// A message that comes twice is merged, a scalar replaced.
#[test]
fn what_comes_twice_is_merged() {
    let scale = kind("autoscaling", "v1", "Scale");
    let encode = |tree: Value| SCHEMA.encode_protobuf(scale, &tree);
    let first = encode(json!({"metadata": {"name": "a", "labels": {"k": "v"}}}));
    let second = encode(json!({"metadata": {"name": "b"}, "spec": {"replicas": 3}}));
    let tree = SCHEMA.decode_protobuf(scale, &[first, second].concat()).unwrap();
    let metadata = json!({"name": "b", "labels": {"k": "v"}});
    assert_eq!(tree, json!({"metadata": metadata, "spec": {"replicas": 3}}));
}

#[test]
fn a_schema_or_something_else() {
    let props = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";
    let props = SCHEMA.type_id(props).unwrap();
    for tree in [
        json!({"additionalProperties": true}),
        json!({"additionalProperties": false}),
        json!({"additionalProperties": {"type": "x"}}),
        json!({"items": {"type": "x"}, "dependencies": {"a": ["b"], "c": {"type": "x"}}}),
        json!({"items": [{"type": "x"}, {}], "enum": [1, "a", {"b": [null]}]}),
    ] {
        assert_eq!(there_and_back(props, &tree), tree);
    }
    let bytes = SCHEMA.encode_protobuf(props, &json!({"additionalItems": {"type": "x"}}));
    let allowed = [0x8a, 2, 35, 0x08, 1, 0x12, 31];
    assert!(bytes.windows(allowed.len()).any(|part| part == allowed), "{bytes:?}");
}

#[test]
fn messages_do_not_nest_without_end() {
    let props = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";
    let props = SCHEMA.type_id(props).unwrap();
    let nest = |depth| (0..depth).fold(json!({"type": "x"}), |inner, _| json!({"not": inner}));
    assert_eq!(there_and_back(props, &nest(90)), nest(90));
    let bytes = SCHEMA.encode_protobuf(props, &nest(120));
    assert_eq!(SCHEMA.decode_protobuf(props, &bytes).unwrap_err(), ProtobufError::Depth);
}

#[test]
fn lists_hold_encoded_items() {
    let config_map = kind("", "v1", "ConfigMap");
    let items = ["a", "b"]
        .map(|name| SCHEMA.encode_protobuf(config_map, &json!({"metadata": {"name": name}})));
    let list = SCHEMA.encode_protobuf_list(&json!({"resourceVersion": "7"}), &items);
    let metadata = [0x0a, 7, 0x0a, 0, 0x12, 1, b'7', 0x1a, 0];
    assert_eq!(list[..metadata.len()], metadata);
    assert_eq!(list[metadata.len()..][..2], [0x12, items[0].len() as u8]);
}

/// An object may stand as protobuf where any JSON may.
#[test]
fn embedded_objects_are_read() {
    let revision = kind("apps", "v1", "ControllerRevision");
    let scale = SCHEMA.encode_protobuf(kind("autoscaling", "v1", "Scale"), &json!({}));
    let inner = Envelope { api_version: "autoscaling/v1", kind: "Scale", raw: &scale }.wrap();
    let raw = [&[0x0a, inner.len() as u8][..], &inner].concat();
    let bytes = [&[0x12, raw.len() as u8][..], &raw].concat();
    let tree = SCHEMA.decode_protobuf(revision, &bytes).unwrap();
    assert_eq!(tree["data"], json!({"apiVersion": "autoscaling/v1", "kind": "Scale"}));
}
