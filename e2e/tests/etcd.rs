//! One format of backup: what etcd saves is read here, and what is written here etcd goes on from.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::fs;
use std::process::Command;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use knarr_e2e::{Machine, Outcome, Running, alone};
use knarr_pki::{Authority, Identity, Usage};
use knarr_schema::{Envelope, Schema};
use knarr_store::etcd::Image;
use knarr_store::mvcc::{
    Command as Entry, Item, KeyRange, Keyspace, LeaseId, Op, Restore, Revision, Txn,
};
use knarr_store::{EtcdSnapshot, HashCheck, read_etcd_snapshot};
use serde_json::{Value, json};

fn etcd(machine: &Machine, dir: &str) -> Running {
    etcd_at(machine, dir, "http://127.0.0.1:2379", "")
}

fn etcd_at(machine: &Machine, dir: &str, url: &str, flags: &str) -> Running {
    let mut command = Command::new("etcd");
    command.arg("--data-dir").arg(machine.path(dir));
    command.args(["--listen-client-urls", url, "--advertise-client-urls", url]);
    command.args(["--listen-peer-urls", "http://127.0.0.1:2380"]);
    command.args(flags.split_whitespace());
    let etcd = Running::start("etcd", &mut command);
    etcd.line("that it serves", |line| line.contains("ready to serve"));
    etcd
}

#[track_caller]
fn etcdctl(args: &str) -> String {
    etcdctl_fed(args, b"")
}

/// Runs etcdctl, `''` being the empty argument; what `txn` and `put` read comes from a file.
#[track_caller]
fn etcdctl_fed(args: &str, input: &[u8]) -> String {
    let stdin = tempfile::NamedTempFile::new().unwrap();
    fs::write(stdin.path(), input).unwrap();
    let mut command = Command::new("etcdctl");
    let args = args.split_whitespace().map(|arg| if arg == "''" { "" } else { arg });
    command.env("ETCDCTL_API", "3").args(args);
    command.stdin(fs::File::open(stdin.path()).unwrap());
    Outcome::of(&mut command).success()
}

#[track_caller]
fn answer(args: &str) -> Value {
    serde_json::from_str(&etcdctl(&format!("{args} -w json"))).unwrap()
}

fn restored(items: impl IntoIterator<Item = Item>) -> Keyspace {
    let mut restore = Restore::new();
    items.into_iter().for_each(|item| restore.push(item).unwrap());
    restore.finish().unwrap()
}

/// All key-values at a revision, as etcdctl would tell them.
fn told(keyspace: &Keyspace, at: u64) -> Value {
    let text = |bytes: &Bytes| json!(BASE64_STANDARD.encode(bytes));
    let all = keyspace.range(&KeyRange::prefix(""), Revision(at), 0).unwrap();
    let kvs = all.kvs.iter().map(|kv| {
        let mut told = json!({
            "key": text(&kv.key),
            "create_revision": kv.create_revision.0,
            "mod_revision": kv.mod_revision.0,
            "version": kv.version,
        });
        if !kv.value.is_empty() {
            told["value"] = text(&kv.value);
        }
        if kv.lease != LeaseId(0) {
            told["lease"] = json!(kv.lease.0);
        }
        told
    });
    kvs.collect()
}

/// The running etcd and a state of ours say the same, at every revision and in sum.
#[track_caller]
fn agree(keyspace: &Keyspace) {
    let newest = answer("get x");
    assert_eq!(newest["header"]["revision"], json!(keyspace.revision().0));
    let image = Image::new(keyspace.snapshot());
    let oldest = keyspace.oldest_readable().0.max(1);
    for at in (oldest..=keyspace.revision().0).rev().take(60) {
        let theirs = answer(&format!("get '' --prefix --rev={at}"));
        assert_eq!(theirs.get("kvs").unwrap_or(&json!([])), &told(keyspace, at), "at {at}");
        if at > oldest {
            let hash = answer(&format!("endpoint hashkv --rev={at}"));
            assert_eq!(hash[0]["HashKV"]["hash"], json!(image.hash_kv(Revision(at))), "at {at}");
        }
    }
    let theirs = answer("lease list");
    let theirs: Vec<i64> = theirs["leases"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|lease| lease["id"].as_i64().unwrap())
        .collect();
    let mut theirs = theirs;
    theirs.sort_unstable();
    assert_eq!(theirs, keyspace.leases().map(|lease| lease.id.0).collect::<Vec<_>>());
}

#[test]
fn what_etcd_saves_is_read() {
    alone(|machine| {
        let running = etcd(machine, "etcd");
        etcdctl("put a 1");
        etcdctl("put a 2");
        etcdctl("put b 1");
        let lease = etcdctl("lease grant 500");
        let lease = lease.split_whitespace().nth(1).unwrap();
        etcdctl(&format!("put c leased --lease={lease}"));
        etcdctl_fed("txn", b"\nput x 1\nput y 2\nput z 3\n\n\n");
        etcdctl("del b");
        etcdctl("del a");
        etcdctl("compact 7");
        etcdctl("put a again");
        etcdctl_fed("txn", b"\nput z 4\ndel c\nput b 5\n\n\n");
        etcdctl(&format!("put e leased --lease={lease}"));
        etcdctl("role add reader");
        etcdctl("role grant-permission reader read a b");
        etcdctl("user add alice:secret");
        etcdctl("user grant-role alice reader");
        (0..30).for_each(|number| drop(etcdctl(&format!("put many-{} {number}", number % 9))));
        let file = machine.path("saved");
        etcdctl(&format!("snapshot save {}", file.display()));
        let items = read_etcd_snapshot(&fs::read(&file).unwrap(), HashCheck::Required).unwrap();
        let keyspace = restored(items);
        assert_eq!(keyspace.compacted(), Revision(7));
        agree(&keyspace);
        // And etcd goes on from what was read, with the same users.
        let users = || ["user get alice", "role get reader"].map(etcdctl);
        let before = users();
        drop(running);
        restore(machine, &keyspace, "again");
        let _etcd = etcd(machine, "again");
        agree(&keyspace);
        assert_eq!(users(), before);
    });
}

/// Lets etcdctl make a data directory of a state of ours.
fn restore(machine: &Machine, keyspace: &Keyspace, dir: &str) {
    let file: Vec<Bytes> = EtcdSnapshot::new(keyspace.snapshot()).collect();
    let path = machine.path("ours");
    fs::write(&path, file.concat()).unwrap();
    // bbolt's own check of all pages is part of this.
    let status = answer(&format!("snapshot status {}", path.display()));
    assert_eq!(status["revision"], json!(keyspace.revision().0));
    let dir = machine.path(dir);
    etcdctl(&format!("snapshot restore {} --data-dir={}", path.display(), dir.display()));
}

/// More than one page of everything: branches, values over several pages, empty values.
fn history() -> Keyspace {
    let mut keyspace = Keyspace::new();
    let mut commands = vec![
        Entry::LeaseGrant { id: LeaseId(77), ttl_secs: 600, now: 0 },
        Entry::LeaseGrant { id: LeaseId(78), ttl_secs: 600, now: 0 },
    ];
    for number in 0..6000_u64 {
        let size = if number % 1000 == 7 { 100_000 } else { number % 90 };
        let put = |key: String| Op::Put {
            key: key.into(),
            value: vec![b'v'; size as usize].into(),
            lease: LeaseId(if number % 50 == 0 { 77 } else { 0 }),
        };
        let success = match number % 10 {
            3 => vec![Op::Delete { range: KeyRange::prefix(format!("key-{}", number % 400)) }],
            4 => vec![put(format!("z-{number}")), put(format!("key-{}", number % 700))],
            _ => vec![put(format!("key-{}", number % 900))],
        };
        commands.push(Entry::Txn(Txn { success, ..Txn::default() }));
    }
    commands.push(Entry::Compact { revision: Revision(4500) });
    for (index, command) in (1..).zip(&commands) {
        keyspace.apply(index, command).unwrap();
    }
    keyspace
}

#[test]
fn etcd_goes_on_from_what_is_written_here() {
    alone(|machine| {
        let keyspace = history();
        restore(machine, &keyspace, "etcd");
        let etcd = etcd(machine, "etcd");
        agree(&keyspace);
        let compacted = Outcome::of(Command::new("etcdctl").env("ETCDCTL_API", "3").args([
            "get",
            "x",
            "--rev=4499",
        ]));
        assert!(compacted.failure().contains("required revision has been compacted"));
        // Its pages are taken apart again.
        etcdctl("put more x");
        etcdctl("del --prefix key-");
        etcdctl(&format!("compact {}", keyspace.revision().0 + 2));
        etcdctl("defrag");
        drop(etcd);
        let _etcd = self::etcd(machine, "etcd");
        assert_eq!(answer("get more")["count"], json!(1));
        assert_eq!(answer("get --prefix key-").get("count"), None);
    });
}

#[test]
fn etcd_goes_on_from_what_knarr_etcd_saved() {
    alone(|machine| {
        let url = "http://127.0.0.1:2379";
        let line = format!("etcd @data --listen-client-urls {url} --advertise-client-urls {url}");
        let knarr = machine.start(&line);
        knarr.line("that it serves", |line| line.starts_with("Ready"));
        for number in 0..40 {
            etcdctl(&format!("put key-{} {number}", number % 7));
        }
        etcdctl_fed("txn", b"\nput z 1\ndel key-3\nput b 5\n\n\n");
        etcdctl("compact 20");
        let sums = || -> Vec<Value> {
            let sum =
                |at| answer(&format!("endpoint hashkv --rev={at}"))[0]["HashKV"]["hash"].clone();
            (21..=42).map(sum).collect()
        };
        let (kvs, ours) = (answer("get '' --prefix")["kvs"].clone(), sums());
        let file = machine.path("saved").display().to_string();
        etcdctl(&format!("snapshot save {file}"));
        drop(knarr);
        let dir = machine.path("etcd");
        etcdctl(&format!("snapshot restore {file} --data-dir={}", dir.display()));
        let etcd = etcd(machine, "etcd");
        assert_eq!(answer("get '' --prefix")["kvs"], kvs);
        assert_eq!(sums(), ours);
        drop(etcd);
        let migrated = etcdctl(&format!("migrate --data-dir={}", dir.display()));
        assert!(migrated.contains("finished transforming keys"), "{migrated}");
        // And knarr goes on from it as well.
        machine.knarr(&format!("store restore {file} --data-dir @again")).success();
        let knarr = machine.start(&line.replace("@data", "--data-dir @again"));
        knarr.line("that it serves", |line| line.starts_with("Ready"));
        assert_eq!(answer("get '' --prefix")["kvs"], kvs);
        assert_eq!(sums(), ours);
    });
}

/// A value as upstream's API server writes it.
fn protobuf(schema: &Schema, object: &Value) -> Vec<u8> {
    let word = |field: &str| object[field].as_str().unwrap();
    let (api_version, kind) = (word("apiVersion"), word("kind"));
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let id = schema.kind_type(group, version, kind).unwrap();
    let raw = schema.encode_protobuf(id, object);
    Envelope { api_version, kind, raw: &raw }.wrap()
}

/// What upstream's API server would have in its etcd.
fn upstream() -> Vec<(&'static str, Value)> {
    let meta = |name: &str| {
        let uid = format!("00000000-0000-4000-8000-{:012}", name.len());
        json!({"name": name, "namespace": "shop", "uid": uid, "generation": 1,
            "creationTimestamp": "2024-01-02T03:04:05Z"})
    };
    let pod = json!({"containers": [{"name": "c", "image": "example.com/i:1",
        "resources": {"limits": {"memory": "64Mi"}}}]});
    let boats = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    vec![
        (
            "namespaces/shop",
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"},
                "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}}),
        ),
        (
            "configmaps/shop/config",
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta("config"),
                "data": {"greeting": "Grüße"}, "binaryData": {"raw": "AAEC/w=="}}),
        ),
        (
            "secrets/shop/key",
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": meta("key"),
                "type": "Opaque", "data": {"password": "c2VjcmV0"}}),
        ),
        (
            "services/specs/shop/front",
            json!({"apiVersion": "v1", "kind": "Service", "metadata": meta("front"), "spec": {
                "type": "NodePort", "clusterIP": "10.43.0.77", "clusterIPs": ["10.43.0.77"],
                "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
                "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80, "nodePort": 30123}]}}),
        ),
        (
            "leases/shop/lead",
            json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": meta("lead"), "spec": {"holderIdentity": "someone",
                "renewTime": "2024-01-02T03:04:05.000006Z"}}),
        ),
        (
            "pods/shop/worker",
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta("worker"), "spec": pod}),
        ),
        (
            "apiextensions.k8s.io/customresourcedefinitions/boats.example.com",
            json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
                "metadata": {"name": "boats.example.com"}, "spec": {"group": "example.com",
                "scope": "Namespaced", "names": {"plural": "boats", "singular": "boat",
                "kind": "Boat", "listKind": "BoatList"}, "versions": [{"name": "v1",
                "served": true, "storage": true, "schema": {"openAPIV3Schema": boats}}]}}),
        ),
        (
            "masterleases/192.0.2.7",
            json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {},
                "subsets": [{"addresses": [{"ip": "192.0.2.7"}]}]}),
        ),
    ]
}

#[test]
fn the_cluster_in_a_running_etcd_is_taken_over() {
    alone(|machine| {
        let pki = machine.path("pki");
        let authority = Authority::load_or_create(&pki).unwrap();
        let who = |name: &str| Identity {
            name: name.to_owned(),
            addresses: vec![[127, 0, 0, 1].into()],
            ..Identity::default()
        };
        authority.issue_to(&pki, "server", &who("etcd"), Usage::Server).unwrap();
        authority.issue_to(&pki, "client", &who("apiserver"), Usage::Client).unwrap();
        let path = |name: &str| pki.join(name).display().to_string();
        let [ca, cert, key] = ["ca.crt", "client.crt", "client.key"].map(path);
        let url = "https://127.0.0.1:2379";
        let flags = format!(
            "--cert-file {} --key-file {} --trusted-ca-file {ca} --client-cert-auth",
            path("server.crt"),
            path("server.key")
        );
        let running = etcd_at(machine, "etcd", url, &flags);
        let tls = format!("--cacert {ca} --cert {cert} --key {key}");
        let put = |key: &str, value: &[u8]| {
            etcdctl_fed(&format!("--endpoints {url} {tls} put /registry/{key}"), value)
        };
        let schema = Schema::builtin();
        for (key, object) in upstream() {
            put(key, &protobuf(&schema, &object));
        }
        let boat = json!({"apiVersion": "example.com/v1", "kind": "Boat",
            "metadata": {"name": "knarr", "namespace": "shop"}, "spec": {"oars": 8}});
        put("example.com/boats/shop/knarr", boat.to_string().as_bytes());
        put("secrets/shop/hidden", b"k8s:enc:aescbc:v1:key1:????");

        let import = format!("store import @data --endpoints http://127.0.0.1:1,{url} {tls}");
        let refused = machine.knarr(&import);
        let hidden = "/registry/secrets/shop/hidden: encrypted (aescbc)";
        assert!(refused.out.contains(hidden), "{refused}");
        assert!(refused.failure().contains("1 values cannot be read here"));
        etcdctl(&format!("--endpoints {url} {tls} del /registry/secrets/shop/hidden"));
        machine.knarr(&format!("{import} --dry-run")).success();
        assert!(!machine.path("data").exists(), "nothing was to be written");
        let told = machine.knarr(&import).success();
        assert!(told.contains("left out: 1 of addresses of API servers"), "{told}");
        assert!(machine.knarr(&import).failure().contains("there is a store already"));
        drop(running);

        let server = machine.start("server @data @kubeconfig --bind-address 127.0.0.1");
        server.line("ready", |line| line.starts_with("Ready"));
        let config = machine.json("-n shop get configmap config");
        assert_eq!(config["data"]["greeting"], "Grüße");
        assert_eq!(config["binaryData"]["raw"], "AAEC/w==");
        assert_eq!(config["metadata"]["resourceVersion"], "3");
        assert_eq!(config["metadata"]["uid"], "00000000-0000-4000-8000-000000000006");
        assert_eq!(machine.value("-n shop secret/key", ".data.password"), "c2VjcmV0");
        assert_eq!(
            machine.value("-n shop lease/lead", ".spec.renewTime"),
            "2024-01-02T03:04:05.000006Z"
        );
        assert_eq!(machine.value("-n shop boat/knarr", ".spec.oars"), "8");
        assert_eq!(machine.value("-n shop service/front", ".spec.clusterIP"), "10.43.0.77");
        // The address and the port are taken: the one by the controller, the other by the import.
        machine.wait("ipaddress/10.43.0.77", "create");
        let taken = machine.try_kubectl("create service nodeport other --tcp=80 --node-port=30123");
        assert!(taken.failure().contains("provided port is already allocated"));
        machine.kubectl("-n shop patch configmap config -p {\"data\":{\"more\":\"x\"}}");
        machine.kubectl("delete namespace shop --wait=false");
        machine.wait("namespace/shop", "delete");
    });
}
