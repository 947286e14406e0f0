//! JSON and protobuf are two forms of one message; and whatever comes, the face lives on and says
//! what is wrong.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http_body_util::Full;
use hyper::Request;
use knarr_etcd::FaceConfig;
use knarr_etcdpb::etcdserverpb as pb;
use knarr_store::{Store, StoreConfig};
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message as _;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tonic::Code;
use tonic::transport::Channel;

use crate::served::{ByHand, Client, Served, quick};

/// One face for all cases, which has to survive them.
static FACE: LazyLock<(Runtime, Served, KvClient<Channel>)> = LazyLock::new(|| {
    let runtime = Runtime::new().unwrap();
    let (served, kv) = runtime.block_on(async {
        let served = Served::new(&Store::in_memory(), quick(), None).await;
        let channel = Channel::from_shared(format!("http://{}", served.address)).unwrap();
        let channel = channel.connect().await.unwrap();
        (served, KvClient::new(channel))
    });
    (runtime, served, kv)
});

const PATHS: [&str; 8] = [
    "kv/range",
    "kv/put",
    "kv/txn",
    "kv/deleterange",
    "lease/keepalive",
    "auth/user/add",
    "cluster/member/update",
    "nothing",
];

/// JSON that is nearly what a path takes: known names, and whatever as their values.
fn nearly() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        Just("key"),
        Just("value"),
        Just("range_end"),
        Just("rangeEnd"),
        Just("lease"),
        Just("limit"),
        Just("sort_order"),
        Just("success"),
        Just("compare"),
        Just("request_put"),
        Just("request_txn"),
        Just("target"),
        Just("ID"),
        Just("prev_kv"),
        Just("options"),
        Just("peerURLs"),
    ];
    let scalar = prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(|b| json!(b)),
        any::<i64>().prop_map(|n| json!(n)),
        any::<u64>().prop_map(|n| json!(n.to_string())),
        any::<f64>().prop_map(|n| json!(n)),
        "[A-Za-z0-9+/=_-]{0,12}".prop_map(|s| json!(s)),
        any::<String>().prop_map(|s| json!(s)),
        Just(json!("VALUE")),
        Just(json!("DESCEND")),
    ];
    let value = scalar.prop_recursive(5, 30, 4, move |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(|all| json!(all)),
            vec((name.clone(), inner), 0..4).prop_map(|all| Value::Object(
                all.into_iter().map(|(k, v)| (k.into(), v)).collect()
            )),
        ]
    });
    value.prop_map(|value| value.to_string())
}

/// What may come over the wire.
fn body() -> impl Strategy<Value = Vec<u8>> {
    let cut = |(text, at): (String, prop::sample::Index)| {
        let mut bytes = text.into_bytes();
        let len = at.index(bytes.len() + 1);
        bytes.truncate(len);
        bytes
    };
    prop_oneof![
        3 => nearly().prop_map(String::into_bytes),
        1 => (nearly(), any::<prop::sample::Index>()).prop_map(cut),
        1 => vec(any::<u8>(), 0..60),
        1 => (0..400_usize).prop_map(|n| [&b"{\"success\":["[..], &b"[".repeat(n)].concat()),
        1 => (0..200_usize).prop_map(|n| nested(n).into_bytes()),
    ]
}

/// A transaction in transactions.
fn nested(depth: usize) -> String {
    let open = r#"{"success":[{"request_txn":"#.repeat(depth);
    format!("{open}{{}}{}", "}]}".repeat(depth))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn nothing_that_is_sent_ends_it(path in prop::sample::select(&PATHS[..]), body in body()) {
        let (runtime, served, _) = &*FACE;
        let (code, text) = runtime.block_on(async {
            let mut answer = served.client().post(path, body).await.unwrap();
            (answer.code, answer.rest().await)
        });
        // Refused clearly, or done; never its own fault.
        prop_assert!(matches!(code, 200 | 400 | 404 | 501) , "{code} {text}");
        if code == 400 {
            let told: Value = serde_json::from_str(&text).unwrap();
            prop_assert!(!told["message"].as_str().unwrap().is_empty(), "{text}");
        }
    }

    #[test]
    fn what_is_put_by_one_is_read_by_the_other(
        key in vec(any::<u8>(), 1..40), value in vec(any::<u8>(), 0..200), json_first: bool,
    ) {
        let (runtime, served, kv) = &*FACE;
        let (client, mut kv) = (served.client(), kv.clone());
        let b64 = |bytes: &[u8]| json!(BASE64_STANDARD.encode(bytes));
        let (by_json, by_grpc) = runtime.block_on(async {
            if json_first {
                let put = json!({"key": b64(&key), "value": b64(&value)});
                assert_eq!(client.ask("kv/put", &put).await.0, 200);
            } else {
                let (key, value) = (key.clone().into(), value.clone().into());
                kv.put(pb::PutRequest { key, value, ..Default::default() }).await.unwrap();
            }
            let (_, by_json) = client.ask("kv/range", &json!({"key": b64(&key)})).await;
            let range = pb::RangeRequest { key: key.clone().into(), ..Default::default() };
            (by_json, kv.range(range).await.unwrap().into_inner())
        });
        let (said, kv) = (&by_json["kvs"][0], &by_grpc.kvs[0]);
        prop_assert_eq!((&kv.key[..], &kv.value[..]), (&key[..], &value[..]));
        prop_assert_eq!(&said["key"], &b64(&key));
        prop_assert_eq!(said.get("value").cloned().unwrap_or(json!("")), b64(&value));
        for (name, number) in [
            ("create_revision", kv.create_revision),
            ("mod_revision", kv.mod_revision),
            ("version", kv.version),
        ] {
            prop_assert_eq!(&said[name], &json!(number.to_string()));
        }
        prop_assert_eq!(&by_json["count"], "1");
    }
}

#[tokio::test]
async fn transactions_are_nested_so_deep_and_no_deeper() {
    let served = Served::new(&Store::in_memory(), quick(), None).await;
    let ask = async |depth| {
        let mut answer = served.client().post("kv/txn", nested(depth)).await.unwrap();
        (answer.code, answer.rest().await)
    };
    assert_eq!(ask(10).await.0, 200);
    for depth in [20, 60, 100, 5_000] {
        let (code, text) = ask(depth).await;
        assert!(
            code == 400 && text.contains("deep") || text.contains("recursion"),
            "{depth}: {text}"
        );
    }
}

/// Also where many messages may come: what never ends is not kept.
#[tokio::test]
async fn no_message_is_longer_than_a_request() {
    let config = FaceConfig { max_request_bytes: 500, ..quick() };
    let served = Served::new(&Store::in_memory(), config, None).await;
    for path in ["lease/keepalive", "kv/put"] {
        let body = format!("{}{{\"key\":\"{}", "\n".repeat(2_000), "a".repeat(2_000));
        let mut answer = served.client().post(path, body).await.unwrap();
        let text = answer.rest().await;
        assert!(text.contains("too large"), "{path}: {text}");
    }
    let many = r#"{"ID":"1"}"#.repeat(200);
    let mut answer = served.client().post("lease/keepalive", many).await.unwrap();
    assert_eq!(answer.rest().await.lines().count(), 200, "together they may be longer");
    // By gRPC there is half a megabyte of room for what is around the request.
    let channel = Channel::from_shared(format!("http://{}", served.address)).unwrap();
    let mut kv = KvClient::new(channel.connect().await.unwrap());
    let mut put = async |len| {
        let put =
            pb::PutRequest { key: "a".into(), value: vec![0; len].into(), ..Default::default() };
        kv.put(put).await.map(drop).map_err(|status| status.code())
    };
    assert_eq!(put(512 << 10).await, Ok(()));
    assert_eq!(put((512 << 10) + 500).await, Err(Code::OutOfRange));
}

#[tokio::test]
async fn only_posts_are_calls() {
    let served = Served::new(&Store::in_memory(), quick(), None).await;
    let send = async |method: &str, path: &str| {
        let request = Request::builder().method(method).uri(path).header("host", "etcd");
        let request = request.body(Full::default()).unwrap();
        let mut answer = served.client().send(request).await.unwrap();
        (answer.code, answer.rest().await)
    };
    assert_eq!(send("GET", "/v3/kv/range").await.0, 405);
    assert_eq!(send("PUT", "/v3/kv/range").await.0, 405);
    assert_eq!(send("GET", "/v3/nothing").await, (404, "Not Found\n".into()));
    assert_eq!(send("GET", "/nothing").await, (404, "404 page not found\n".into()));
    assert_eq!(send("GET", "/health").await, (200, r#"{"health":"true","reason":""}"#.into()));
    assert_eq!(send("GET", "/readyz").await, (200, "ok\n".into()));
    assert!(send("GET", "/livez?verbose").await.1.ends_with("[+]serializable_read ok\nok\n"));
    assert!(send("GET", "/version").await.1.contains(r#""etcdserver":"3."#));
    // What was called is counted, by its code.
    let client: Client = served.client();
    client.ask("kv/range", &json!({"key": "YQ=="})).await;
    client.ask("kv/range", &json!({})).await;
    let (_, metrics) = send("GET", "/metrics").await;
    let range = r#"{grpc_service="etcdserverpb.KV",grpc_method="Range",grpc_type="unary""#;
    for row in [
        format!("grpc_server_started_total{range}}} 2\n"),
        format!("grpc_server_handled_total{range},grpc_code=\"OK\"}} 1\n"),
        format!("grpc_server_handled_total{range},grpc_code=\"InvalidArgument\"}} 1\n"),
    ] {
        assert!(metrics.contains(&row), "{row} in {metrics}");
    }
}

/// What a path answers that nothing was sent to.
async fn get(served: &Served, path: &str) -> (u16, String) {
    let request = Request::get(path).header("host", "etcd").body(Full::default()).unwrap();
    let mut answer = served.client().send(request).await.unwrap();
    (answer.code, answer.rest().await)
}

#[tokio::test]
async fn without_a_gateway_there_are_pages_and_calls() {
    let config = FaceConfig { gateway: false, ..quick() };
    let served = Served::new(&Store::in_memory(), config, None).await;
    for path in ["kv/range", "watch", "nothing"] {
        let mut answer = served.client().post(path, "{}").await.unwrap();
        assert_eq!((answer.code, answer.rest().await), (404, "404 page not found\n".into()));
    }
    for path in ["/health", "/version", "/metrics"] {
        assert_eq!(get(&served, path).await.0, 200, "{path}");
    }
    let channel = Channel::from_shared(format!("http://{}", served.address)).unwrap();
    let mut kv = KvClient::new(channel.connect().await.unwrap());
    kv.put(pb::PutRequest { key: "a".into(), ..Default::default() }).await.unwrap();
}

/// The value of a row of the metrics.
async fn metric(served: &Served, row: &str) -> f64 {
    let (_, text) = get(served, "/metrics").await;
    let value = text.lines().find_map(|line| line.strip_prefix(row)).expect(row);
    value.trim().parse().unwrap()
}

#[tokio::test]
async fn json_is_counted_as_the_messages_that_it_is() {
    let served = Served::new(&Store::in_memory(), quick(), None).await;
    let way = |way: &str| format!("etcd_network_client_grpc_{way}_bytes_total");
    let bytes =
        async || (metric(&served, &way("received")).await, metric(&served, &way("sent")).await);
    let messages = async |way: &str, method: &str, kind: &str| {
        let labels = format!(r#"{{{method},grpc_type="{kind}"}}"#);
        metric(&served, &format!("grpc_server_msg_{way}_total{labels}")).await
    };
    let client = served.client();
    client.ask("kv/range", &json!({"key": "YQ=="})).await;
    let range = pb::RangeRequest { key: "a".into(), ..Default::default() };
    let channel = Channel::from_shared(format!("http://{}", served.address)).unwrap();
    let mut kv = KvClient::new(channel.connect().await.unwrap());
    let answer = kv.range(range.clone()).await.unwrap().into_inner();
    // Once as JSON and once by gRPC.
    let (received, sent) = (range.encoded_len() as f64 * 2.0, answer.encoded_len() as f64 * 2.0);
    assert_eq!(bytes().await, (received, sent));
    let mut answer = client.post("lease/keepalive", r#"{"ID":"1"}{"ID":"2"}{"IX"}"#).await.unwrap();
    answer.rest().await;
    let alive = pb::LeaseKeepAliveRequest { id: 1 }.encoded_len() as f64;
    let (now_received, now_sent) = bytes().await;
    assert_eq!(now_received, received + 2.0 * alive);
    assert!(now_sent > sent);
    let method = r#"grpc_service="etcdserverpb.Lease",grpc_method="LeaseKeepAlive""#;
    for way in ["received", "sent"] {
        assert_eq!(messages(way, method, "bidi_stream").await, 2.0, "{way}");
    }
}

/// How long calls take is measured on demand: that of a stream until it ends.
#[tokio::test]
async fn calls_are_timed_where_that_is_asked_for() {
    let served = Served::new(&Store::in_memory(), quick(), None).await;
    assert!(!get(&served, "/metrics").await.1.contains("handling_seconds"));
    let (store, config) = (Store::in_memory(), FaceConfig { timed: true, ..quick() });
    let served = Served::new(&store, config, None).await;
    let timed = async |what: &str, method: &str| {
        let row =
            format!("grpc_server_handling_seconds_{what}{{grpc_service=\"etcdserverpb.{method}");
        metric(&served, &row).await
    };
    let range = r#"KV",grpc_method="Range",grpc_type="unary"}"#;
    let grant = r#"Lease",grpc_method="LeaseGrant",grpc_type="unary"}"#;
    let watch = r#"Watch",grpc_method="Watch",grpc_type="bidi_stream"}"#;
    let channel = Channel::from_shared(format!("http://{}", served.address)).unwrap();
    let channel = channel.connect().await.unwrap();
    let mut kv = KvClient::new(channel.clone());
    kv.range(pb::RangeRequest { key: "a".into(), ..Default::default() }).await.unwrap();
    assert_eq!(
        kv.range(pb::RangeRequest::default()).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    assert_eq!(timed("count", range).await, 2.0);
    assert!(timed("sum", range).await > 0.0);
    assert_eq!(timed("bucket", &range.replace('}', ",le=\"+Inf\"}")).await, 2.0);
    let mut lease = LeaseClient::new(channel);
    let refused = lease.lease_grant(pb::LeaseGrantRequest { ttl: i64::MAX, id: 0 }).await;
    assert_eq!(refused.unwrap_err().code(), Code::OutOfRange);
    assert_eq!(timed("count", grant).await, 1.0);

    let create = json!({"create_request": {"key": "YQ=="}}).to_string();
    let mut watched = served.client().post("watch", create).await.unwrap();
    assert!(watched.line().await.unwrap().contains("created"));
    assert_eq!(timed("count", watch).await, 0.0);
    store.close().await;
    watched.rest().await;
    assert_eq!(timed("count", watch).await, 1.0);
}

#[tokio::test]
async fn a_full_store_is_not_healthy() {
    let config = StoreConfig { memory_bytes: 10, ..StoreConfig::default() };
    let mut hand = ByHand::new(config);
    let served = Served::new(&hand.store, quick(), None).await;
    let health = async || get(&served, "/health").await;
    assert_eq!(health().await.0, 200);
    let client = served.client();
    assert_eq!(hand.until(client.ask("kv/put", &json!({"key": "YQ=="}))).await.0, 429);
    assert_eq!(health().await, (503, r#"{"health":"false","reason":"ALARM NOSPACE"}"#.into()));
}

/// And it is again by itself: nobody writes to a store that is said to be full.
#[tokio::test]
async fn a_store_on_a_full_disk_is_not_healthy() {
    let mut hand = ByHand::new(StoreConfig { segment_bytes: 64 << 10, ..StoreConfig::default() });
    let served = Served::new(&hand.store, quick(), None).await;
    let codes = async |paths: [&str; 3]| {
        let mut codes = Vec::new();
        for path in paths {
            codes.push(get(&served, path).await.0);
        }
        codes
    };
    let told = ["/health", "/readyz", "/readyz/disk_room"];
    assert_eq!(codes(told).await, [200; 3]);
    hand.disk.set_capacity(hand.disk.used());
    let put = json!({"key": "YQ==", "value": BASE64_STANDARD.encode([0; 4_000])});
    while hand.until(served.client().ask("kv/put", &put)).await.0 == 200 {}
    assert_eq!(codes(told).await, [503; 3]);
    assert_eq!(
        served.client().ask("maintenance/alarm", &json!({})).await.1["alarms"][0]["alarm"],
        "NOSPACE"
    );
    let excluded = ["/health?exclude=NOSPACE", "/readyz?exclude=disk_room", "/livez"];
    assert_eq!(codes(excluded).await, [200; 3]);
    // A look that is in vain; then there is room, and nobody has looked yet; then somebody has.
    for (capacity, millis, code) in [(0, 7_000, 503), (u64::MAX, 4_999, 503), (u64::MAX, 1, 200)] {
        hand.disk.set_capacity(capacity);
        hand.clock.advance(millis);
        hand.settle();
        assert_eq!(codes(told).await, [code; 3]);
    }
}

/// Who has said everything may go on listening.
#[tokio::test]
async fn a_watch_goes_on_when_its_request_has_ended() {
    let store = Store::in_memory();
    let served = Served::new(&store, quick(), None).await;
    let body = json!({"create_request": {"key": "YQ=="}}).to_string();
    let mut watched = served.client().post("watch", body).await.unwrap();
    assert!(watched.line().await.unwrap().contains("created"));
    for _ in 0..2 {
        served.client().ask("kv/put", &json!({"key": "YQ=="})).await;
        assert!(watched.line().await.unwrap().contains("events"));
    }
    // And ends with the store.
    store.close().await;
    assert_eq!(watched.line().await, None);
}
