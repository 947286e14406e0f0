//! A few facts beside the keys: users, roles, what a cluster was told once. They have a version of
//! their own instead of revisions, nobody watches them, and they are not compacted.
//!
//! A change names the version it was judged by, so that the rules about what may follow what need
//! not be here; and so can any command ([`crate::Command::Under`]): who is allowed something is
//! decided before the log, and holds only if it still does at the command's place in the log.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::Bound;

use bytes::Bytes;

use crate::command::Refusal;

/// The facts, by key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    version: u64,
    entries: BTreeMap<Bytes, Bytes>,
}

/// A change of some facts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The version it was judged by.
    pub expect: u64,
    /// New values; `None` removes.
    pub entries: Vec<(Bytes, Option<Bytes>)>,
}

impl Settings {
    /// How often they were changed.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The value of a key.
    pub fn get(&self, key: &[u8]) -> Option<&Bytes> {
        self.entries.get(key)
    }

    /// The facts whose keys begin with `prefix`, in key order.
    pub fn iter<'a>(&'a self, prefix: &'a [u8]) -> impl Iterator<Item = (&'a Bytes, &'a Bytes)> {
        let bounds = (Bound::Included(prefix), Bound::Unbounded);
        let from = self.entries.range::<[u8], _>(bounds);
        from.take_while(move |(key, _)| key.starts_with(prefix))
    }

    pub(crate) fn restore(&mut self, version: u64) {
        self.version = version;
    }

    pub(crate) fn insert(&mut self, key: Bytes, value: Bytes) {
        self.entries.insert(key, value);
    }

    pub(crate) fn expect(&self, version: u64) -> Result<(), Refusal> {
        let same = version == self.version;
        same.then_some(()).ok_or(Refusal::SettingsChanged(self.version))
    }

    pub(crate) fn apply(&mut self, change: &Change) -> Result<u64, Refusal> {
        self.expect(change.expect)?;
        self.version += 1;
        for (key, value) in &change.entries {
            match value {
                Some(value) => self.entries.insert(key.clone(), value.clone()),
                None => self.entries.remove(key),
            };
        }
        Ok(self.version)
    }
}
