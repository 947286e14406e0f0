//! Golden scripts: lines that begin with `> ` are commands, the lines below them the answers.
//!
//! `KNARR_BLESS=1` writes the answers anew. Ranges: `k`, `a..c`, `a..`, `p*`, `*`.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::fmt::Write as _;
use std::path::Path;

use bytes::Bytes;
use knarr_mvcc::*;

struct Script {
    keyspace: Keyspace,
    index: u64,
}

type Words<'a> = std::iter::Peekable<std::vec::IntoIter<&'a str>>;

#[test]
fn golden_scripts() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut ran = 0;
    for entry in std::fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let actual = play(&text);
        ran += 1;
        if std::env::var_os("KNARR_BLESS").is_some() {
            std::fs::write(&path, &actual).unwrap();
            continue;
        }
        assert_eq!(text, actual, "{} (KNARR_BLESS=1 rewrites it)", path.display());
    }
    assert!(ran > 0, "no scripts in {}", dir.display());
}

/// The script with fresh answers; comments and blank lines stay.
fn play(text: &str) -> String {
    let mut script = Script { keyspace: Keyspace::new(), index: 0 };
    let mut out = String::new();
    for line in text.lines() {
        if let Some(command) = line.strip_prefix("> ") {
            writeln!(out, "{line}").unwrap();
            out.push_str(&script.run(command));
        } else if line.is_empty() || line.starts_with('#') {
            writeln!(out, "{line}").unwrap();
        }
    }
    out
}

impl Script {
    fn run(&mut self, line: &str) -> String {
        let mut words = line.split_whitespace().collect::<Vec<_>>().into_iter().peekable();
        match *words.peek().unwrap() {
            "put" | "amend" | "del" | "txn" => self.txn(&mut words),
            "compact" => {
                let revision = Revision(number(line, 1));
                self.apply(Command::Compact { revision })
            }
            "grant" => {
                let (id, ttl, now) = (number(line, 1), number(line, 2), number(line, 3));
                let (id, ttl_secs) = (LeaseId(id as i64), ttl as i64);
                self.apply(Command::LeaseGrant { id, ttl_secs, now })
            }
            "revoke" => self.apply(Command::LeaseRevoke { id: LeaseId(number(line, 1) as i64) }),
            "keepalive" => {
                let id = LeaseId(number(line, 1) as i64);
                format!("ttl {:?}\n", self.keyspace.keep_alive(id, number(line, 2)))
            }
            "expired" => {
                let next = self.keyspace.next_expiry();
                format!("{:?}, next {next:?}\n", self.keyspace.expired(number(line, 1)))
            }
            "get" => self.get(&mut words),
            "settings" => self.settings(line),
            "under" => self.under(&mut words),
            "events" => self.events(line),
            "trim" => {
                self.keyspace.trim(number(line, 1) as usize);
                format!("oldest readable {}\n", self.keyspace.oldest_readable().0)
            }
            "restart" => self.restart(),
            other => panic!("unknown command {other}"),
        }
    }

    fn apply(&mut self, command: Command) -> String {
        self.index += 1;
        assert_eq!(Command::decode(&command.encode()).as_ref(), Ok(&command));
        match self.keyspace.apply(self.index, &command) {
            Ok(Answer::Txn(response)) => {
                let mut out = String::new();
                show_txn(&mut out, &response, 0);
                out
            }
            Ok(answer) => format!("{answer:?}\n"),
            Err(refusal) => format!("refused: {refusal}\n"),
        }
    }

    fn txn(&mut self, words: &mut Words<'_>) -> String {
        let txn = match op(words) {
            Op::Txn(txn) => txn,
            other => Txn { success: vec![other], ..Txn::default() },
        };
        assert_eq!(words.next(), None, "words left over");
        self.apply(Command::Txn(txn))
    }

    /// `settings VERSION KEY=VALUE KEY= …`: a change; without a version: what they are.
    fn settings(&mut self, line: &str) -> String {
        let mut words = line.split_whitespace().skip(1);
        let Some(expect) = words.next() else {
            let settings = self.keyspace.settings();
            let entries = settings.iter(b"").map(|(k, v)| format!("  {k:?}={v:?}\n"));
            return format!("version {}\n{}", settings.version(), entries.collect::<String>());
        };
        let entry = |word: &str| {
            let (key, value) = word.split_once('=').unwrap();
            (bytes(key), (!value.is_empty()).then(|| bytes(value)))
        };
        let entries = words.map(entry).collect();
        self.apply(Command::Settings(Change { expect: expect.parse().unwrap(), entries }))
    }

    /// `under VERSION OPERATION`
    fn under(&mut self, words: &mut Words<'_>) -> String {
        let settings = words.nth(1).unwrap().parse().unwrap();
        let txn = Txn { success: vec![op(words)], ..Txn::default() };
        let command = Box::new(Command::Txn(txn));
        self.apply(Command::Under { settings, command })
    }

    fn get(&self, words: &mut Words<'_>) -> String {
        let Op::Range(query) = op(words) else { panic!("not a read") };
        assert_eq!(words.next(), None, "words left over");
        match self.keyspace.query(&query) {
            Ok(found) => {
                let more = if found.more { ", more" } else { "" };
                let mut out = format!("count {}{more}\n", found.count);
                found.kvs.iter().for_each(|kv| writeln!(out, "  {}", show(kv)).unwrap());
                out
            }
            Err(error) => format!("error: {error}\n"),
        }
    }

    fn events(&self, line: &str) -> String {
        let range = range(line.split_whitespace().nth(1).unwrap());
        let after = Revision(option(line, "after").unwrap_or(0));
        let upto = Revision(option(line, "upto").unwrap_or(u64::MAX));
        let budget = option(line, "budget").unwrap_or(u64::MAX) as usize;
        match self.keyspace.events(&range, after, upto, budget) {
            Ok(batch) => {
                let mut out = format!("next {}\n", batch.next.0);
                for event in &batch.events {
                    let new = event.new.as_ref().map_or("deleted".into(), show);
                    let old = event.old.as_ref().map_or("nothing".into(), show);
                    let key = String::from_utf8_lossy(&event.key);
                    writeln!(out, "  @{} {key}: {new} <- {old}", event.revision.0).unwrap();
                }
                out
            }
            Err(error) => format!("error: {error}\n"),
        }
    }

    /// Through a snapshot and its bytes; what can be seen must not change.
    fn restart(&mut self) -> String {
        let mut restore = Restore::new();
        for item in self.keyspace.snapshot() {
            let item = Item::decode(&item.encode()).unwrap();
            restore.push(item).unwrap();
        }
        self.keyspace = restore.finish().unwrap();
        format!("revision {}, index {}\n", self.keyspace.revision().0, self.keyspace.index())
    }
}

fn number(line: &str, at: usize) -> u64 {
    line.split_whitespace().nth(at).unwrap().parse().unwrap()
}

fn option(line: &str, name: &str) -> Option<u64> {
    let prefix = format!("{name}=");
    line.split_whitespace().find_map(|word| word.strip_prefix(&prefix)?.parse().ok())
}

fn bytes(word: &str) -> Bytes {
    if word == "\"\"" { Bytes::new() } else { Bytes::from(word.to_owned()) }
}

fn range(word: &str) -> KeyRange {
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

fn op(words: &mut Words<'_>) -> Op {
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

fn show(kv: &KeyValue) -> String {
    let (key, value) = (String::from_utf8_lossy(&kv.key), String::from_utf8_lossy(&kv.value));
    let lease = if kv.lease.0 == 0 { String::new() } else { format!(" lease {}", kv.lease.0) };
    format!(
        "{key}={value} (create {} mod {} version {}{lease})",
        kv.create_revision.0, kv.mod_revision.0, kv.version
    )
}

fn show_txn(out: &mut String, response: &TxnResponse, depth: usize) {
    let pad = "  ".repeat(depth);
    let branch = if response.succeeded { "success" } else { "failure" };
    writeln!(out, "{pad}revision {}, {branch}", response.revision.0).unwrap();
    for answer in &response.responses {
        let (name, kvs): (_, &[KeyValue]) = match answer {
            OpResponse::Put(old) => ("put, was", old.as_slice()),
            OpResponse::Delete(kvs) => ("deleted", kvs),
            OpResponse::Range(found) => ("read", &found.kvs),
            OpResponse::Txn(nested) => {
                show_txn(out, nested, depth + 1);
                continue;
            }
        };
        let kvs: Vec<String> = kvs.iter().map(show).collect();
        let kvs = if kvs.is_empty() { "nothing".into() } else { kvs.join(", ") };
        writeln!(out, "{pad}  {name} {kvs}").unwrap();
    }
}
