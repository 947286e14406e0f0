//! What upstream's API server stores becomes what is stored here.
#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "scripts need more of it")]
mod world;

use bytes::Bytes;
use knarr_api::Catalog;
use knarr_mvcc::{Item, KeyRange, KeyValue, Keyspace, LeaseId, Restore, Revision, Version};
use knarr_registry::{Takeover, Tally, Unreadable, canonical, everything};
use knarr_schema::{Envelope, Schema};
use serde_json::{Value, json};
use world::Cluster;

/// A value as upstream writes it.
fn protobuf(schema: &Schema, object: &Value) -> Bytes {
    let word = |field: &str| object[field].as_str().unwrap();
    let (api_version, kind) = (word("apiVersion"), word("kind"));
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let id = schema.kind_type(group, version, kind).unwrap();
    let raw = schema.encode_protobuf(id, object);
    Envelope { api_version, kind, raw: &raw }.wrap().into()
}

fn objects() -> Vec<Value> {
    let pod = json!({"containers": [{"name": "c", "image": "i", "env": [{"name": "A"}],
        "resources": {"limits": {"cpu": "1500m", "memory": "1Gi"}},
        "livenessProbe": {"httpGet": {"port": "web", "path": "/"}}}]});
    let meta = |name: &str| json!({"name": name, "namespace": "default"});
    vec![
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta("p"), "spec": pod}),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta("c"),
            "data": {"a": "ü", "b": ""}, "binaryData": {"c": "AAEC"}}),
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": meta("s"),
            "stringData": {"password": "x"}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": meta("np"),
            "spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30123}]}}),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta("d"), "spec":
            {"selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": pod}}}),
        json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
            "metadata": meta("h"), "spec": {"maxReplicas": 3, "scaleTargetRef":
            {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}}}),
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta("l"),
            "spec": {"holderIdentity": "me", "renewTime": "2024-01-02T03:04:05.000006Z"}}),
        json!({"apiVersion": "v1", "kind": "Event", "metadata": meta("e"), "reason": "R",
            "type": "Normal", "involvedObject": {"kind": "Pod", "namespace": "default"}}),
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}}),
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": meta("i"),
            "spec": {"defaultBackend": {"service": {"name": "np", "port": {"number": 80}}}}}),
        json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": "boats.example.com"}, "spec": {"group": "example.com",
            "scope": "Namespaced", "names": {"plural": "boats", "kind": "Boat"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema":
            {"openAPIV3Schema":
                {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]}}),
    ]
}

/// Everything that is stored after requests made it.
fn stored() -> Vec<KeyValue> {
    let mut cluster = Cluster::new();
    objects().iter().for_each(|object| cluster.create(object));
    everything(&cluster.keyspace).collect()
}

#[test]
fn protobuf_becomes_what_a_request_had_made_of_it() {
    let (catalog, schema) = (Catalog::builtin(), Schema::builtin());
    let mut kinds = std::collections::BTreeSet::new();
    for kv in stored() {
        let key = std::str::from_utf8(&kv.key).unwrap();
        let Ok(object) = serde_json::from_slice::<Value>(&kv.value) else {
            assert!(key.starts_with("/registry/ranges/"), "{key}");
            continue;
        };
        let upstream = protobuf(&schema, &object);
        for value in [&upstream, &kv.value, &object.to_string().into()] {
            let made = canonical(&catalog, &schema, key, value).unwrap();
            assert_eq!(made.key, key);
            assert_eq!(made.value, kv.value, "{key}");
            kinds.insert(made.kind);
        }
    }
    assert!(kinds.len() >= 15, "{kinds:?}");
}

#[test]
fn an_older_stored_version_is_read_as_todays() {
    let (catalog, schema) = (Catalog::builtin(), Schema::builtin());
    let read = |object: Value| {
        let made = canonical(&catalog, &schema, "/registry/x/y", object.to_string().as_bytes());
        let made = made.unwrap();
        (made.key, serde_json::from_slice::<Value>(&made.value).unwrap())
    };
    let (key, autoscaler) = read(json!({"apiVersion": "autoscaling/v1",
        "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h", "namespace": "a"},
        "spec": {"maxReplicas": 2, "targetCPUUtilizationPercentage": 50,
            "scaleTargetRef": {"kind": "Deployment", "name": "d"}}}));
    assert_eq!(key, "/registry/horizontalpodautoscalers/a/h");
    assert_eq!(autoscaler["apiVersion"], "autoscaling/v2");
    assert_eq!(autoscaler["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 50);
    let (key, address) = read(json!({"apiVersion": "networking.k8s.io/v1beta1",
        "kind": "IPAddress", "metadata": {"name": "10.96.0.1", "resourceVersion": "7"},
        "spec": {"parentRef": {"resource": "services", "namespace": "a", "name": "s"}}}));
    assert_eq!(key, "/registry/ipaddresses/10.96.0.1");
    assert_eq!(address["apiVersion"], "networking.k8s.io/v1");
    assert!(address["metadata"].get("resourceVersion").is_none());
    // What the older server did not know has today's default.
    let (_, service) = read(json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "s", "namespace": "a"}, "spec": {"ports": [{"port": 1}]}}));
    assert_eq!(service["spec"]["sessionAffinity"], "None");
}

#[test]
fn what_cannot_be_read_says_why() {
    let (catalog, schema) = (Catalog::builtin(), Schema::builtin());
    let read = |key: &str, value: &[u8]| canonical(&catalog, &schema, key, value).unwrap_err();
    let encrypted = read("/registry/secrets/a/b", b"k8s:enc:aescbc:v1:key1:\x01\x02");
    assert_eq!(encrypted, Unreadable::Encrypted("aescbc".to_owned()));
    for value in [&b""[..], b"\x00\x01", b"text", b"{}", b"k8s\0", b"k8s\0\x0a\xff"] {
        assert_eq!(read("/registry/pods/a/b", value), Unreadable::NoObject);
    }
    let old = json!({"apiVersion": "policy/v1beta1", "kind": "PodSecurityPolicy"}).to_string();
    let unserved = "PodSecurityPolicy in version policy/v1beta1 is not served here";
    assert_eq!(read("/registry/podsecuritypolicy/x", old.as_bytes()).to_string(), unserved);
    // Only where definitions' objects lie is an unknown kind one of theirs.
    let boat = json!({"apiVersion": "example.com/v1", "kind": "Boat"}).to_string();
    assert!(matches!(read("/registry/pods/a/b", boat.as_bytes()), Unreadable::Kind(..)));
    let nameless = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {}}).to_string();
    assert_eq!(read("/registry/pods/a/b", nameless.as_bytes()).to_string(), "it has no name");
    let wrong = json!({"apiVersion": "v1", "kind": "Pod", "metadata": 1}).to_string();
    assert!(matches!(read("/registry/pods/a/b", wrong.as_bytes()), Unreadable::Malformed(_)));
}

fn keyspace(kvs: Vec<KeyValue>) -> Keyspace {
    let revision = kvs.iter().map(|kv| kv.mod_revision).max().unwrap();
    let meta = knarr_mvcc::Meta { index: 9, revision, compacted: Revision(0), floor: revision };
    let leases = [LeaseId(5), LeaseId(6)].map(|id| Item::Lease { id, ttl_secs: 60 });
    let base = kvs.iter().map(|kv| Item::Base(Version::of(kv)));
    restored([Item::Meta(meta)].into_iter().chain(leases).chain(base))
}

fn restored(items: impl IntoIterator<Item = Item>) -> Keyspace {
    let mut restore = Restore::new();
    items.into_iter().for_each(|item| restore.push(item).unwrap());
    restore.finish().unwrap()
}

#[test]
fn a_whole_state_is_taken_over() {
    let schema = Schema::builtin();
    let mut at = 10;
    let mut kv = |key: &str, value: Bytes, lease: i64| {
        at += 1;
        KeyValue {
            key: Bytes::from(key.to_owned()),
            value,
            create_revision: Revision(at - 5),
            mod_revision: Revision(at),
            version: 3,
            lease: LeaseId(lease),
        }
    };
    let service = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "s", "namespace": "a"},
        "spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]}});
    let event = json!({"apiVersion": "v1", "kind": "Event",
        "metadata": {"name": "e", "namespace": "a"}, "involvedObject": {}});
    let boat = json!({"kind": "Boat", "apiVersion": "example.com/v1", "metadata": {"name": "b"}});
    let before = keyspace(vec![
        kv("/k/services/specs/a/s", protobuf(&schema, &service), 0),
        kv("/k/events/a/old", protobuf(&schema, &event), 5),
        kv("/k/example.com/boats/a/b", boat.to_string().into(), 0),
        kv("/k/ranges/servicenodeports", protobuf(&schema, &service), 0),
        kv("/k/masterleases/192.0.2.1", "k8s\0".into(), 6),
        kv("/k/secrets/a/x", "k8s:enc:kms:v2:k:…".into(), 0),
        kv("compact_rev_key", "7".into(), 0),
    ]);
    let mut takeover = Takeover::new(schema, "/k");
    everything(&before).for_each(|kv| takeover.take(&kv));
    let report = takeover.report().clone();
    let after = restored(takeover.items(&before));

    let left_out: usize = report.left_out.values().sum();
    assert_eq!(left_out, 3, "{:?}", report.left_out);
    assert_eq!(report.kinds["Service"], Tally { converted: 1, passed: 0 });
    assert_eq!(report.kinds["Boat.example.com"], Tally { converted: 1, passed: 0 });
    let moved = ("/registry/events/a/old".to_owned(), "/registry/events/a/e".to_owned());
    assert_eq!(report.moved, [moved]);
    let unreadable = ("/k/secrets/a/x".to_owned(), "encrypted (kms)".to_owned());
    assert_eq!(report.unreadable, [unreadable]);

    let kept: Vec<Bytes> = everything(&after).map(|kv| kv.key).collect();
    assert_eq!(
        kept,
        [
            "/registry/events/a/e",
            "/registry/example.com/boats/a/b",
            "/registry/ranges/servicenodeports/30080",
            "/registry/secrets/a/x",
            "/registry/services/specs/a/s",
        ]
    );
    let range = KeyRange::prefix("/registry/services/");
    let now = after.range(&range, Revision(0), 0).unwrap().kvs.remove(0);
    assert_eq!(
        (now.create_revision, now.mod_revision, now.version),
        (Revision(6), Revision(11), 3)
    );
    assert!(now.value.starts_with(b"{\"kind\":\"Service\",\"apiVersion\":\"v1\",\"metadata\":{"));
    let port = after.get(b"/registry/ranges/servicenodeports/30080", Revision(0)).unwrap().unwrap();
    assert_eq!((&port.value[..], port.mod_revision), (&b"a/s"[..], Revision(18)));
    assert_eq!(after.revision(), Revision(18));
    assert_eq!(after.oldest_readable(), Revision(18));
    let leases: Vec<LeaseId> = after.leases().map(|lease| lease.id).collect();
    assert_eq!(leases, [LeaseId(5)], "a lease of nothing is not carried along");
}
