//! A whole state of upstream's API server made one of ours: the newest version of every object, at
//! the revision it had. Older versions stay behind, so every watcher starts anew.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use bytes::Bytes;
use knarr_api::Catalog;
use knarr_mvcc::{Item, KeyRange, KeyValue, Keyspace, LeaseId, Meta, Revision, Version};
use knarr_schema::Schema;

use crate::stored::{Stored, canonical, note_of_a_server};

/// Where objects lie here.
const REGISTRY: &str = "/registry/";

/// The taking over of a state.
pub struct Takeover {
    catalog: Catalog,
    schema: Schema,
    /// Where upstream's objects lie.
    prefix: String,
    kept: BTreeMap<Bytes, KeyValue>,
    claims: BTreeMap<String, Bytes>,
    report: Report,
}

/// What became of a state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Objects by kind.
    pub kinds: BTreeMap<String, Tally>,
    /// Keys that have no place here, by what they are.
    pub left_out: BTreeMap<&'static str, usize>,
    /// Keys whose values cannot be read here, and why.
    pub unreadable: Vec<(String, String)>,
    /// Objects that lie at another key now: the old and the new one.
    pub moved: Vec<(String, String)>,
}

/// How many objects of a kind there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Made canonical.
    pub converted: usize,
    /// Canonical already.
    pub passed: usize,
}

impl Takeover {
    /// Begins; `prefix` is upstream's `--etcd-prefix`.
    pub fn new(schema: Schema, prefix: &str) -> Self {
        Self {
            catalog: Catalog::builtin(),
            schema,
            prefix: prefix.trim_end_matches('/').to_string() + "/",
            kept: BTreeMap::new(),
            claims: BTreeMap::new(),
            report: Report::default(),
        }
    }

    /// Takes one key.
    pub fn take(&mut self, kv: &KeyValue) {
        let name = String::from_utf8_lossy(&kv.key);
        let Some(rest) = name.strip_prefix(&self.prefix) else {
            return self.leave_out("keys outside of the prefix");
        };
        let key = REGISTRY.to_string() + rest;
        if let Some(what) = note_of_a_server(&key) {
            return self.leave_out(what);
        }
        match canonical(&self.catalog, &self.schema, &key, &kv.value) {
            Ok(stored) => self.keep(kv, &key, stored),
            Err(why) => {
                let stays = KeyValue { key: key.into(), ..kv.clone() };
                self.report.unreadable.push((name.into_owned(), why.to_string()));
                self.kept.insert(stays.key.clone(), stays);
            }
        }
    }

    fn leave_out(&mut self, what: &'static str) {
        *self.report.left_out.entry(what).or_default() += 1;
    }

    fn keep(&mut self, kv: &KeyValue, key: &str, stored: Stored) {
        let tally = self.report.kinds.entry(stored.kind).or_default();
        match stored.value == kv.value {
            true => tally.passed += 1,
            false => tally.converted += 1,
        }
        if stored.key != key {
            self.report.moved.push((key.to_string(), stored.key.clone()));
        }
        self.claims.extend(stored.claims);
        let key = Bytes::from(stored.key);
        self.kept.insert(key.clone(), KeyValue { key, value: stored.value, ..kv.clone() });
    }

    /// What became of it so far.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// The items of the new state; `from` is the old one.
    pub fn items(self, from: &Keyspace) -> Vec<Item> {
        let mut revision = from.revision();
        let mut base = self.kept;
        for (key, value) in self.claims {
            revision.0 += 1;
            let key = Bytes::from(key);
            base.insert(key.clone(), claim(key, value, revision));
        }
        let meta = Meta { index: 1, revision, compacted: revision, floor: revision };
        let used: BTreeSet<LeaseId> = base.values().map(|kv| kv.lease).collect();
        let leases = from.leases().filter(|lease| used.contains(&lease.id));
        let leases = leases.map(|l| Item::Lease { id: l.id, ttl_secs: l.ttl_secs });
        let base = base.values().map(|kv| Item::Base(Version::of(kv)));
        core::iter::once(Item::Meta(meta)).chain(leases).chain(base).collect()
    }
}

/// Every key of a state as it is now.
pub fn everything(state: &Keyspace) -> impl Iterator<Item = KeyValue> + use<'_> {
    let all = KeyRange::prefix(Bytes::new());
    state.iter(&all, Revision(0)).into_iter().flatten()
}

fn claim(key: Bytes, value: Bytes, revision: Revision) -> KeyValue {
    KeyValue {
        key,
        value,
        create_revision: revision,
        mod_revision: revision,
        version: 1,
        lease: LeaseId(0),
    }
}
