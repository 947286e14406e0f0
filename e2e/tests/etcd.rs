//! One format of backup: what etcd saves is read here, and what is written here etcd goes on from.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::fs;
use std::process::Command;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use knarr_e2e::{Machine, Outcome, Running, alone};
use knarr_store::etcd::Image;
use knarr_store::mvcc::{
    Command as Entry, Item, KeyRange, Keyspace, LeaseId, Op, Restore, Revision, Txn,
};
use knarr_store::{EtcdSnapshot, HashCheck, read_etcd_snapshot};
use serde_json::{Value, json};

fn etcd(machine: &Machine, dir: &str) -> Running {
    let mut command = Command::new("etcd");
    command.arg("--data-dir").arg(machine.path(dir));
    command.args(["--listen-client-urls", "http://127.0.0.1:2379"]);
    command.args(["--advertise-client-urls", "http://127.0.0.1:2379"]);
    command.args(["--listen-peer-urls", "http://127.0.0.1:2380"]);
    let etcd = Running::start("etcd", &mut command);
    etcd.line("that it serves", |line| line.contains("ready to serve"));
    etcd
}

#[track_caller]
fn etcdctl(args: &str) -> String {
    etcdctl_fed(args, "")
}

/// Runs etcdctl, `''` being the empty argument; what `txn` reads comes from a file.
#[track_caller]
fn etcdctl_fed(args: &str, input: &str) -> String {
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
        let _etcd = etcd(machine, "etcd");
        etcdctl("put a 1");
        etcdctl("put a 2");
        etcdctl("put b 1");
        let lease = etcdctl("lease grant 500");
        let lease = lease.split_whitespace().nth(1).unwrap();
        etcdctl(&format!("put c leased --lease={lease}"));
        etcdctl_fed("txn", "\nput x 1\nput y 2\nput z 3\n\n\n");
        etcdctl("del b");
        etcdctl("del a");
        etcdctl("compact 7");
        etcdctl("put a again");
        etcdctl_fed("txn", "\nput z 4\ndel c\nput b 5\n\n\n");
        etcdctl(&format!("put e leased --lease={lease}"));
        (0..30).for_each(|number| drop(etcdctl(&format!("put many-{} {number}", number % 9))));
        let file = machine.path("saved");
        etcdctl(&format!("snapshot save {}", file.display()));
        let items = read_etcd_snapshot(&fs::read(&file).unwrap(), HashCheck::Required).unwrap();
        let keyspace = restored(items);
        assert_eq!(keyspace.compacted(), Revision(7));
        agree(&keyspace);
    });
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
        let file: Vec<Bytes> = EtcdSnapshot::new(keyspace.snapshot().collect()).collect();
        let path = machine.path("ours");
        fs::write(&path, file.concat()).unwrap();
        // bbolt's own check of all pages is part of this.
        let status = answer(&format!("snapshot status {}", path.display()));
        assert_eq!(status["revision"], json!(keyspace.revision().0));
        let dir = machine.path("etcd");
        etcdctl(&format!("snapshot restore {} --data-dir={}", path.display(), dir.display()));
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
