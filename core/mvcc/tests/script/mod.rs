//! The language of golden scripts, in words of etcd: operations are read, answers are shown.
//! Shared with the contract suite of the store, which runs such scripts on real etcds.
#![allow(dead_code, reason = "each of the tests uses its part")]

use std::fmt::Write as _;

use bytes::Bytes;
use knarr_mvcc::*;

/// What is left of a line.
pub type Words<'a> = std::iter::Peekable<std::vec::IntoIter<&'a str>>;

/// The words of a line.
pub fn words(line: &str) -> Words<'_> {
    line.split_whitespace().collect::<Vec<_>>().into_iter().peekable()
}

/// A transaction; any other operation is one of its own.
pub fn txn(words: &mut Words<'_>) -> Txn {
    match op(words) {
        Op::Txn(txn) => txn,
        other => Txn { success: vec![other], ..Txn::default() },
    }
}

/// A word as bytes; `""` is none.
pub fn bytes(word: &str) -> Bytes {
    if word == "\"\"" { Bytes::new() } else { Bytes::from(word.to_owned()) }
}

/// `k`, `a..c`, `a..`, `p*`, `*`.
pub fn range(word: &str) -> KeyRange {
    if let Some(prefix) = word.strip_suffix('*') {
        return KeyRange::prefix(bytes(prefix));
    }
    match word.split_once("..") {
        None => KeyRange::single(bytes(word)),
        Some((start, "")) => KeyRange { start: bytes(start), end: RangeEnd::Unbounded },
        Some((start, end)) => KeyRange { start: bytes(start), end: RangeEnd::Before(bytes(end)) },
    }
}

fn option_word(words: &mut Words<'_>, name: &str) -> Option<u64> {
    let value = words.peek()?.strip_prefix(name)?.strip_prefix('=')?.parse().ok();
    words.next();
    value
}

/// One operation: `put`, `amend`, `del`, `get`, `txn`.
pub fn op(words: &mut Words<'_>) -> Op {
    match words.next().unwrap() {
        "put" => {
            let (key, value) = (bytes(words.next().unwrap()), bytes(words.next().unwrap()));
            let lease = LeaseId(option_word(words, "lease").unwrap_or(0) as i64);
            Op::Put { key, value, lease }
        }
        "del" => Op::Delete { range: range(words.next().unwrap()) },
        "get" => {
            let mut query = Query::of(range(words.next().unwrap()));
            while words.peek().is_some_and(|word| word.contains('=')) {
                refine(&mut query, words.next().unwrap());
            }
            Op::Range(query)
        }
        "amend" => Op::Amend {
            key: bytes(words.next().unwrap()),
            value: words.next_if(|word| *word != "keep").map(bytes).or_else(|| {
                words.next();
                None
            }),
            lease: option_word(words, "lease").map(|id| LeaseId(id as i64)),
        },
        "txn" => Op::Txn(Txn {
            compare: list(words, compare),
            success: list(words, op),
            failure: list(words, op),
        }),
        other => panic!("unknown operation {other}"),
    }
}

/// `limit=2`, `rev=7`, `mod=3..5`, `order=-value` (descending), `part=keys`.
fn refine(query: &mut Query, word: &str) {
    let (name, value) = word.split_once('=').unwrap();
    let bounds = || {
        let (from, to) = value.split_once("..").unwrap();
        [from, to].map(|word| Revision(word.parse().unwrap_or(0))).into()
    };
    match name {
        "limit" => query.limit = value.parse().unwrap(),
        "rev" => query.at = Revision(value.parse().unwrap()),
        "mod" => query.modified = bounds(),
        "create" => query.created = bounds(),
        "part" => query.part = if value == "keys" { Part::Keys } else { Part::Count },
        "order" => {
            let by = match value.trim_start_matches('-') {
                "key" => OrderBy::Key,
                "version" => OrderBy::Version,
                "create" => OrderBy::Create,
                "mod" => OrderBy::Mod,
                "value" => OrderBy::Value,
                other => panic!("unknown order {other}"),
            };
            query.order = Some(Order { by, descending: value.starts_with('-') });
        }
        other => panic!("unknown option {other}"),
    }
}

/// `[ one ; two ]`; a list that is not there is empty.
fn list<T>(words: &mut Words<'_>, read: fn(&mut Words<'_>) -> T) -> Vec<T> {
    let mut list = Vec::new();
    if words.next_if_eq(&"[").is_none() {
        return list;
    }
    while words.next_if_eq(&"]").is_none() {
        words.next_if_eq(&";");
        list.push(read(words));
    }
    list
}

fn compare(words: &mut Words<'_>) -> Compare {
    let (what, range) = (words.next().unwrap(), range(words.next().unwrap()));
    let op = match words.next().unwrap() {
        "=" => CompareOp::Equal,
        "!=" => CompareOp::NotEqual,
        ">" => CompareOp::Greater,
        "<" => CompareOp::Less,
        other => panic!("unknown comparison {other}"),
    };
    let word = words.next().unwrap();
    let n = || word.parse().unwrap();
    let target = match what {
        "version" => CompareTarget::Version(n()),
        "create" => CompareTarget::Create(Revision(n())),
        "mod" => CompareTarget::Mod(Revision(n())),
        "value" => CompareTarget::Value(bytes(word)),
        "lease" => CompareTarget::Lease(LeaseId(n() as i64)),
        other => panic!("unknown target {other}"),
    };
    Compare { range, op, target }
}

/// A key-value.
pub fn show(kv: &KeyValue) -> String {
    let (key, value) = (String::from_utf8_lossy(&kv.key), String::from_utf8_lossy(&kv.value));
    let lease = if kv.lease.0 == 0 { String::new() } else { format!(" lease {}", kv.lease.0) };
    format!(
        "{key}={value} (create {} mod {} version {}{lease})",
        kv.create_revision.0, kv.mod_revision.0, kv.version
    )
}

fn write_txn(out: &mut String, response: &TxnResponse, depth: usize) {
    let pad = "  ".repeat(depth);
    let branch = if response.succeeded { "success" } else { "failure" };
    writeln!(out, "{pad}revision {}, {branch}", response.revision.0).unwrap();
    for answer in &response.responses {
        let (name, kvs): (_, Vec<KeyValue>) = match answer {
            OpResponse::Put(old) => ("put, was", old.iter().map(Version::kv).collect()),
            OpResponse::Delete(gone) => ("deleted", gone.iter().map(Version::kv).collect()),
            OpResponse::Range(found) => ("read", found.kvs.clone()),
            OpResponse::Txn(nested) => {
                write_txn(out, nested, depth + 1);
                continue;
            }
        };
        let kvs: Vec<String> = kvs.iter().map(show).collect();
        let kvs = if kvs.is_empty() { "nothing".into() } else { kvs.join(", ") };
        writeln!(out, "{pad}  {name} {kvs}").unwrap();
    }
}

/// The answer to a transaction.
pub fn show_txn(response: &TxnResponse) -> String {
    let mut out = String::new();
    write_txn(&mut out, response, 0);
    out
}

/// The answer to a read.
pub fn show_found(found: &RangeResult) -> String {
    let more = if found.more { ", more" } else { "" };
    let mut out = format!("count {}{more}\n", found.count);
    found.kvs.iter().for_each(|kv| writeln!(out, "  {}", show(kv)).unwrap());
    out
}

/// An event of a watch.
pub fn show_event(event: &Event) -> String {
    let new = event.new.as_ref().map_or("deleted".into(), show);
    let old = event.old.as_ref().map_or("nothing".into(), show);
    let key = String::from_utf8_lossy(&event.key);
    format!("  @{} {key}: {new} <- {old}\n", event.revision.0)
}
