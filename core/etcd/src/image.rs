//! What etcd keeps in its database, and how that is the items of a snapshot of ours.
//!
//! The bucket `key` holds every version of every key since the last compaction, by revision and
//! place in it; `meta` the numbers, `lease` the leases. A setting of ours is a pair of the bucket
//! that its name begins with, as [`crate::auth`] has it.
//!
//! What etcd can read back begins with one number, its compaction, where we have two (see
//! [`Keyspace::oldest_readable`](knarr_mvcc::Keyspace::oldest_readable)): the higher one is
//! written, and what is read has both there. A watcher that wants more starts anew.

mod read;

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use bytes::Bytes;
use knarr_mvcc::{Item, KeyValue, Meta, Revision};
use prost::Message;

use crate::bolt::{Source, Writer};
use crate::crc::Crc32c;
use crate::message::{Lease, Version};

pub use read::{ReadError, read};

const KEY: &str = "key";
const META: &str = "meta";
const LEASE: &str = "lease";
/// The buckets of every file, beside that of the keys.
const BUCKETS: [&str; 9] = [
    "alarm",
    "auth",
    "authRoles",
    "authUsers",
    "cluster",
    LEASE,
    "members",
    "members_removed",
    META,
];

const SCHEDULED: &str = "scheduledCompactRev";
const FINISHED: &str = "finishedCompactRev";
const INDEX: &str = "consistent_index";
const TERM: &str = "term";

/// Ends the key of a deletion.
const TOMBSTONE: u8 = b't';
/// Length of a version's key without that.
const VERSION_KEY: usize = 17;

/// A state as etcd keeps it. It shares the values it was made of.
#[derive(Debug)]
pub struct Image {
    /// The last compaction, as etcd means it.
    compacted: Revision,
    versions: Versions,
    /// The other buckets.
    buckets: BTreeMap<Bytes, BTreeMap<Bytes, Bytes>>,
}

/// The bucket `key`.
#[derive(Debug, Default)]
struct Versions(Vec<Entry>);

/// A change: its revision, the place in it, and what it was.
#[derive(Debug)]
struct Entry {
    revision: Revision,
    place: u64,
    deleted: bool,
    version: Version,
}

impl Image {
    /// Makes a state of the items of a snapshot.
    pub fn new(items: impl IntoIterator<Item = Item>) -> Self {
        let names = BUCKETS.into_iter().map(|name| (name.into(), BTreeMap::new()));
        let mut image = Self {
            compacted: Revision(0),
            versions: Versions::default(),
            buckets: names.collect(),
        };
        let mut base = BTreeMap::new();
        for item in items {
            match item {
                Item::Meta(meta) => image.numbers(meta),
                Item::Lease { id, ttl_secs } => {
                    let lease = Lease { id: id.0, ttl_secs }.encode_to_vec();
                    image.put(LEASE.into(), Bytes::copy_from_slice(&id.0.to_be_bytes()), lease);
                }
                // What is for our own use, and what no snapshot has.
                Item::Settings { .. } | Item::Mark(_) | Item::Past(_) => {}
                Item::Setting { key, value } => image.setting(&key, &value),
                Item::Base(version) => {
                    let kv = version.kv();
                    base.insert(kv.key.clone(), kv);
                }
                Item::Change { revision, key, new } if revision <= image.compacted => {
                    base.remove(&key);
                    base.extend(new.map(|kv| (key, kv)));
                }
                Item::Change { revision, key, new } => {
                    image.versions.0.push(Entry::new(revision, key, new));
                }
            }
        }
        image.versions.begin_with(base.into_values());
        image
    }

    /// The last compaction, as etcd means it: the oldest revision that can be read.
    pub fn compacted(&self) -> Revision {
        self.compacted
    }

    /// The state as a file.
    pub fn file(self) -> Writer {
        let others = self.buckets.into_iter().map(|(name, pairs)| {
            let pairs: Vec<_> = pairs.into_iter().collect();
            (name, Box::new(pairs) as Box<dyn Source>)
        });
        let versions: Box<dyn Source> = Box::new(self.versions);
        Writer::new(others.chain([(KEY.into(), versions)]))
    }

    /// etcd's `HashKV` at a revision that can be read: the sum of all versions since the
    /// compaction, and of those before it that are still the newest of their keys.
    ///
    /// It is etcd's number where the history is whole: of what lies before the compaction, we do
    /// not know the place that several changes of one revision had among them.
    pub fn hash_kv(&self, at: Revision) -> u32 {
        let entries = &self.versions.0;
        let seen = &entries[..entries.partition_point(|entry| entry.revision <= at)];
        let recent = |entry: &&Entry| entry.revision > self.compacted;
        let changed: BTreeSet<&Bytes> =
            seen.iter().filter(recent).map(|entry| &entry.version.key).collect();
        let kept = |entry: &&Entry| recent(entry) || !changed.contains(&entry.version.key);
        // When no key is left, etcd forgets to leave the old versions out.
        let emptied = !alive(seen);
        let mut sum = Crc32c::new();
        sum.update(KEY.as_bytes());
        let mut bytes = Vec::new();
        for entry in seen.iter().filter(|entry| emptied || kept(entry)) {
            bytes.clear();
            entry.put_key(&mut bytes);
            entry.put_value(&mut bytes);
            sum.update(&bytes);
        }
        sum.finish()
    }

    fn put(&mut self, bucket: Bytes, key: Bytes, value: impl Into<Bytes>) {
        self.buckets.entry(bucket).or_default().insert(key, value.into());
    }

    fn numbers(&mut self, meta: Meta) {
        self.compacted = meta.compacted.max(meta.floor);
        self.put(META.into(), INDEX.into(), meta.index.to_be_bytes().to_vec());
        self.put(META.into(), TERM.into(), 1_u64.to_be_bytes().to_vec());
        if self.compacted > Revision(0) {
            let mut revision = Vec::new();
            put_revision(&mut revision, self.compacted, 0);
            self.put(META.into(), SCHEDULED.into(), revision.clone());
            self.put(META.into(), FINISHED.into(), revision);
        }
    }

    /// A setting without a bucket's name in front is none that etcd could have.
    fn setting(&mut self, key: &Bytes, value: &Bytes) {
        let Some(at) = key.iter().position(|byte| *byte == b'/') else { return };
        let bucket = key.slice(..at);
        if read::is_setting(&bucket) {
            self.put(bucket, key.slice(at + 1..), value.clone());
        }
    }
}

/// Whether any key is there after these changes.
fn alive(entries: &[Entry]) -> bool {
    let mut later = BTreeSet::new();
    entries.iter().rev().any(|entry| later.insert(&entry.version.key) && !entry.deleted)
}

impl Versions {
    /// Puts what was there at the compaction before what came after, and numbers the places.
    fn begin_with(&mut self, base: impl Iterator<Item = KeyValue>) {
        let entry = |kv: KeyValue| Entry::new(kv.mod_revision, Bytes::new(), Some(kv));
        let mut base: Vec<Entry> = base.map(entry).collect();
        base.sort_by_key(|entry| entry.revision);
        self.0.splice(..0, base);
        let (mut revision, mut place) = (Revision(0), 0);
        for entry in &mut self.0 {
            place = if entry.revision == revision { place + 1 } else { 0 };
            revision = entry.revision;
            entry.place = place;
        }
    }
}

impl Source for Versions {
    fn count(&self) -> usize {
        self.0.len()
    }

    fn sizes(&self, at: usize) -> (usize, usize) {
        let entry = &self.0[at];
        (VERSION_KEY + usize::from(entry.deleted), entry.version.encoded_len())
    }

    fn key(&self, at: usize, out: &mut Vec<u8>) {
        self.0[at].put_key(out);
    }

    fn value(&self, at: usize, out: &mut Vec<u8>) {
        self.0[at].put_value(out);
    }
}

impl Entry {
    fn new(revision: Revision, key: Bytes, new: Option<KeyValue>) -> Self {
        let deleted = new.is_none();
        let version = new.map_or_else(|| Version::deleted(key), Version::from);
        Self { revision, place: 0, deleted, version }
    }

    fn put_key(&self, out: &mut Vec<u8>) {
        put_revision(out, self.revision, self.place);
        if self.deleted {
            out.push(TOMBSTONE);
        }
    }

    fn put_value(&self, out: &mut Vec<u8>) {
        // A vector has room for everything.
        let _ = self.version.encode(out);
    }
}

fn put_revision(out: &mut Vec<u8>, revision: Revision, place: u64) {
    out.extend(revision.0.to_be_bytes());
    out.push(b'_');
    out.extend(place.to_be_bytes());
}
