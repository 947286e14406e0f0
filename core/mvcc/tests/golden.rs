//! Golden scripts: lines that begin with `> ` are commands, the lines below them the answers.
//!
//! `KNARR_BLESS=1` writes the answers anew. Ranges: `k`, `a..c`, `a..`, `p*`, `*`.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::fmt::Write as _;
use std::path::Path;

use knarr_mvcc::*;

mod script;
use script::*;

struct Script {
    keyspace: Keyspace,
    index: u64,
    compactor: Compactor,
}

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
    let compactor = Compactor::new(AutoCompaction::Off, 0, Revision(0));
    let mut script = Script { keyspace: Keyspace::new(), index: 0, compactor };
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
        let mut words = words(line);
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
            "forget" => {
                let more = self.keyspace.forget(number(line, 1) as usize, number(line, 2) as usize);
                let (floor, held) = (self.keyspace.floor().0, self.keyspace.held_keys());
                format!(
                    "floor {floor}, {held} keys held{}\n",
                    if more { ", more to go" } else { "" }
                )
            }
            "hold" => {
                self.keyspace.hold(Revision(number(line, 1)));
                String::new()
            }
            "time" => self.apply(Command::Time { wall_ms: number(line, 1) }),
            "time-of" => {
                format!("{:?}\n", self.keyspace.marks().time_of(Revision(number(line, 1))))
            }
            "before" => format!("{:?}\n", self.keyspace.marks().before(number(line, 1))),
            "held" => {
                let marks: Vec<_> =
                    self.keyspace.marks().iter().map(|m| (m.revision.0, m.wall_ms)).collect();
                format!("{marks:?}\n")
            }
            "auto" => self.auto(line),
            "tick" => self.tick(line),
            "admit" => self.admit(&mut words),
            "restart" => self.restart(),
            other => panic!("unknown command {other}"),
        }
    }

    fn apply(&mut self, command: Command) -> String {
        self.index += 1;
        assert_eq!(Command::decode(&command.encode()).as_ref(), Ok(&command));
        match self.keyspace.apply(self.index, &command) {
            Ok(Answer::Txn(response)) => show_txn(&response),
            Ok(answer) => format!("{answer:?}\n"),
            Err(refusal) => format!("refused: {refusal}\n"),
        }
    }

    fn txn(&mut self, words: &mut Words<'_>) -> String {
        let txn = txn(words);
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
            Ok(found) => show_found(&found),
            Err(error) => format!("error: {error}\n"),
        }
    }

    /// `auto off|periodic MS|revisions N`: begins to count at 0.
    fn auto(&mut self, line: &str) -> String {
        let mode = match line.split_whitespace().nth(1).unwrap() {
            "periodic" => AutoCompaction::Periodic(number(line, 2)),
            "revisions" => AutoCompaction::Revisions(number(line, 2)),
            _ => AutoCompaction::Off,
        };
        self.compactor = Compactor::new(mode, 0, self.keyspace.revision());
        format!("next {:?}\n", self.compactor.deadline())
    }

    /// `tick NOW [REVISION [fails]]`
    fn tick(&mut self, line: &str) -> String {
        let (now, revision) = (number(line, 1), Revision(number(line, 2)));
        let wanted = self.compactor.tick(now, revision);
        if let Some(at) = wanted.filter(|_| !line.ends_with("fails")) {
            self.compactor.done(now, at);
        }
        format!("compact {:?}, next {:?}\n", wanted.map(|at| at.0), self.compactor.deadline())
    }

    /// `admit BUDGET OPERATION`: judged with bytes beyond those held.
    fn admit(&mut self, words: &mut Words<'_>) -> String {
        let room: usize = words.nth(1).unwrap().parse().unwrap();
        let txn = match op(words) {
            Op::Txn(txn) => txn,
            other => Txn { success: vec![other], ..Txn::default() },
        };
        let mut pending = 0;
        let budget = self.keyspace.held_bytes() + room;
        let fits = self.keyspace.admits(&Command::Txn(txn), budget, &mut pending);
        format!("{}\n", if fits { "fits" } else { "no space" })
    }

    fn events(&self, line: &str) -> String {
        let range = range(line.split_whitespace().nth(1).unwrap());
        let after = Revision(option(line, "after").unwrap_or(0));
        let upto = Revision(option(line, "upto").unwrap_or(u64::MAX));
        let budget = option(line, "budget").unwrap_or(u64::MAX) as usize;
        match self.keyspace.events(&range, after, upto, budget) {
            Ok(batch) => {
                let mut out = format!("next {}\n", batch.next.0);
                batch.events.iter().for_each(|event| out.push_str(&show_event(event)));
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
