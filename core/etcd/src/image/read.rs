//! A file of etcd's read back, one that knarr wrote or any other.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;

use bytes::Bytes;
use knarr_mvcc::{Item, KeyValue, Meta, Revision};
use prost::Message;

use super::{FINISHED, INDEX, KEY, LEASE, META, SCHEDULED, TOMBSTONE};
use crate::bolt::{Bucket, Database, Element, Fault};
use crate::message::{Lease, Version};

/// Why a file is no state of etcd's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadError {
    /// It is no database, or a damaged one.
    File(Fault),
    /// This bucket is missing.
    Missing(&'static str),
    /// An entry of this bucket has no meaning.
    Entry(&'static str),
    /// Buckets share their entries.
    Twice,
}

/// The key of a version: its revision, and whether it is a deletion.
struct VersionKey {
    revision: Revision,
    deleted: bool,
}

/// Reads a file without its sha256, as the items of a snapshot. Every value is copied, none keeps
/// the file alive. Who the members of its cluster were is left behind.
///
/// # Errors
/// [`ReadError`]; no input panics.
pub fn read(file: &[u8]) -> Result<Vec<Item>, ReadError> {
    let root = Database::open(file)?.root();
    let bucket = |name: &'static str| root.bucket(name.as_bytes())?.ok_or(ReadError::Missing(name));
    let (mut meta, keys) = (numbers(bucket(META)?)?, bucket(KEY)?);
    let (base, changes) = versions(keys, meta.compacted)?;
    let newest = changes.last().map_or(Revision(1), |(revision, _)| *revision);
    meta.revision = newest.max(meta.compacted);
    let leases = root.bucket(LEASE.as_bytes())?.map(leases).transpose()?.unwrap_or_default();
    let mut items = Vec::from([Item::Meta(meta)]);
    items.extend(leases);
    items.extend(settings(root, file.len())?);
    items.extend(base);
    items.extend(changes.into_iter().map(|(_, item)| item));
    Ok(items)
}

/// The numbers, but for the newest revision.
fn numbers(bucket: Bucket<'_>) -> Result<Meta, ReadError> {
    let mut meta = Meta::default();
    for pair in bucket.pairs() {
        let (key, value) = pair?;
        if key == INDEX.as_bytes() {
            let index = value.first_chunk().ok_or(ReadError::Entry(META))?;
            meta.index = u64::from_be_bytes(*index);
        }
        // A compaction that was under way is etcd's to finish at its next start; here it is done.
        if key == FINISHED.as_bytes() || key == SCHEDULED.as_bytes() {
            let key = VersionKey::parse(value).ok_or(ReadError::Entry(META))?;
            meta.compacted = meta.compacted.max(key.revision);
        }
    }
    meta.floor = meta.compacted;
    Ok(meta)
}

/// What was there at the compaction by key, and what changed since.
fn versions(
    bucket: Bucket<'_>,
    compacted: Revision,
) -> Result<(impl Iterator<Item = Item>, Vec<(Revision, Item)>), ReadError> {
    let mut base = BTreeMap::new();
    let mut changes = Vec::new();
    for pair in bucket.pairs() {
        let (key, value) = pair?;
        let at = VersionKey::parse(key).ok_or(ReadError::Entry(KEY))?;
        let version = Version::decode(value).map_err(|_| ReadError::Entry(KEY))?;
        let (key, new) = (version.key.clone(), (!at.deleted).then(|| KeyValue::from(version)));
        if new.as_ref().is_some_and(|kv| kv.mod_revision != at.revision) {
            return Err(ReadError::Entry(KEY));
        }
        if at.revision > compacted {
            let revision = at.revision;
            changes.push((revision, Item::Change { revision, key, new }));
        } else if let Some(kv) = new {
            base.insert(key, Item::Base(knarr_mvcc::Version::of(&kv)));
        } else {
            base.remove(&key);
        }
    }
    Ok((base.into_values(), changes))
}

fn leases(bucket: Bucket<'_>) -> Result<Vec<Item>, ReadError> {
    let read = |pair: Result<(&[u8], &[u8]), Fault>| {
        let lease = Lease::decode(pair?.1).map_err(|_| ReadError::Entry(LEASE))?;
        Ok(lease.into())
    };
    bucket.pairs().map(read).collect()
}

/// Whether a bucket holds settings: what is neither the keyspace nor about a cluster's members.
pub(super) fn is_setting(bucket: &[u8]) -> bool {
    let other = [KEY, META, LEASE, "alarm", "cluster", "members", "members_removed"];
    !other.iter().any(|other| other.as_bytes() == bucket)
}

/// Settings, which together are not longer than `room`, as each bucket is by itself.
fn settings(root: Bucket<'_>, mut room: usize) -> Result<Vec<Item>, ReadError> {
    let mut settings = Vec::new();
    for element in root.elements() {
        let Element::Bucket(name, bucket) = element? else { continue };
        for pair in bucket.pairs().filter(|_| is_setting(name)) {
            let (key, value) = pair?;
            let rest = room.checked_sub(key.len() + value.len());
            room = rest.ok_or(ReadError::Twice)?;
            let key = [name, b"/", key].concat().into();
            settings.push(Item::Setting { key, value: Bytes::copy_from_slice(value) });
        }
    }
    if !settings.is_empty() {
        settings.insert(0, Item::Settings { version: 1 });
    }
    Ok(settings)
}

impl VersionKey {
    /// Eight bytes of revision, `_`, eight bytes of the place in it, and a mark of deletions.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let (revision, rest) = bytes.split_first_chunk()?;
        let revision = u64::from_be_bytes(*revision);
        let (place, mark) = rest.strip_prefix(b"_")?.split_first_chunk::<8>()?;
        let signed = i64::try_from(revision).is_ok() && place[0] < 0x80;
        let deleted = match mark {
            [] => false,
            [TOMBSTONE] => true,
            _ => return None,
        };
        signed.then_some(Self { revision: Revision(revision), deleted })
    }
}

impl From<Fault> for ReadError {
    fn from(fault: Fault) -> Self {
        Self::File(fault)
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(fault) => write!(f, "the database is damaged: {fault}"),
            Self::Missing(bucket) => write!(f, "this is no state of etcd: no bucket {bucket}"),
            Self::Entry(bucket) => write!(f, "an entry of the bucket {bucket} has no meaning"),
            Self::Twice => f.write_str("the database is damaged: buckets share their entries"),
        }
    }
}

impl core::error::Error for ReadError {}
