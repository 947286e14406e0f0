//! The whole state as a stream of items, for checkpoints and for members that lag behind.
//!
//! The order is: one [`Item::Meta`], leases, settings, the keys as they stood at the history's
//! floor, and every change since. So the history survives a restart, and each value is written
//! once.

use alloc::collections::BTreeSet;
use core::fmt;

use bytes::Bytes;

use crate::history::History;
use crate::keyspace::Keyspace;
use crate::lease::Lease;
use crate::model::{KeyRange, KeyValue, LeaseId, Revision};

/// The numbers of a state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Index of the last applied log entry.
    pub index: u64,
    /// The newest revision.
    pub revision: Revision,
    /// The last compaction.
    pub compacted: Revision,
    /// The history holds every change above it.
    pub floor: Revision,
}

/// One piece of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// The numbers; first.
    Meta(Meta),
    /// A lease without its keys (they follow from the key-values).
    Lease {
        /// Its id.
        id: LeaseId,
        /// Its time to live in seconds.
        ttl_secs: i64,
    },
    /// How often the settings were changed.
    Settings {
        /// Their version.
        version: u64,
    },
    /// One of the settings.
    Setting {
        /// Its key.
        key: Bytes,
        /// Its value.
        value: Bytes,
    },
    /// A key as it stood at the floor, in key order.
    Base(KeyValue),
    /// A change after the floor, in order of revision.
    Change {
        /// When.
        revision: Revision,
        /// Which key.
        key: Bytes,
        /// The new version; `None` when deleted.
        new: Option<KeyValue>,
    },
}

/// Rebuilds a state out of items.
#[derive(Debug, Default)]
pub struct Restore {
    state: Option<(Meta, Keyspace)>,
}

/// The items do not form a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestoreError {
    /// The first item is not the numbers, or they come twice.
    Meta,
    /// A key-value contradicts the numbers or the order.
    Order,
}

impl Keyspace {
    /// The state as items. Cheap handles only: values are shared, not copied.
    pub fn snapshot(&self) -> impl Iterator<Item = Item> + '_ {
        let floor = self.history.floor();
        let meta =
            Meta { index: self.index, revision: self.revision, compacted: self.compacted, floor };
        let leases = self.leases().map(|l| Item::Lease { id: l.id, ttl_secs: l.ttl_secs });
        let version = self.settings.version();
        let settings = self
            .settings
            .iter(&[])
            .map(|(key, value)| Item::Setting { key: key.clone(), value: value.clone() });
        let settings =
            (version > 0).then_some(Item::Settings { version }).into_iter().chain(settings);
        let base = self.at_floor(floor).map(|kv| Item::Base(kv.clone()));
        let changes = self.history.iter().map(|e| Item::Change {
            revision: e.revision,
            key: e.key.clone(),
            new: e.new.clone(),
        });
        core::iter::once(Item::Meta(meta)).chain(leases).chain(settings).chain(base).chain(changes)
    }

    fn at_floor(&self, floor: Revision) -> impl Iterator<Item = &KeyValue> {
        let all = KeyRange::prefix(Bytes::new());
        self.versions_at(&all, floor)
    }
}

impl Restore {
    /// Starts with nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next item.
    ///
    /// # Errors
    /// [`RestoreError`] when it cannot come here.
    pub fn push(&mut self, item: Item) -> Result<(), RestoreError> {
        if let Item::Meta(meta) = item {
            return self.begin(meta);
        }
        let (meta, state) = self.state.as_mut().ok_or(RestoreError::Meta)?;
        match item {
            Item::Meta(_) => return Err(RestoreError::Meta),
            Item::Lease { id, ttl_secs } => {
                state.leases.insert(Lease { id, ttl_secs, deadline: 0, keys: BTreeSet::new() });
            }
            Item::Settings { version } => state.settings.restore(version),
            Item::Setting { key, value } => state.settings.insert(key, value),
            Item::Base(kv) => {
                require(kv.mod_revision <= meta.floor)?;
                state.begin_with(kv);
            }
            Item::Change { revision, key, new } => {
                let newest = state.history.newest().max(Revision(meta.floor.0 + 1));
                require(revision >= newest && revision <= meta.revision)?;
                require(
                    new.as_ref().is_none_or(|kv| kv.key == key && kv.mod_revision == revision),
                )?;
                state.write(revision, key, |_| new);
            }
        }
        Ok(())
    }

    /// The state, once every item has been taken. Its leases have no deadline yet: the pump calls
    /// [`Keyspace::renew_all`].
    ///
    /// # Errors
    /// [`RestoreError::Meta`] when there was no item.
    pub fn finish(self) -> Result<Keyspace, RestoreError> {
        self.state.map(|(_, state)| state).ok_or(RestoreError::Meta)
    }

    fn begin(&mut self, meta: Meta) -> Result<(), RestoreError> {
        if self.state.is_some() {
            return Err(RestoreError::Meta);
        }
        require(meta.floor <= meta.revision && meta.compacted <= meta.revision)?;
        let state = Keyspace {
            index: meta.index,
            revision: meta.revision,
            compacted: meta.compacted,
            history: History::starting_at(meta.floor),
            ..Keyspace::new()
        };
        self.state = Some((meta, state));
        Ok(())
    }
}

fn require(holds: bool) -> Result<(), RestoreError> {
    if holds { Ok(()) } else { Err(RestoreError::Order) }
}

impl fmt::Display for RestoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Meta => "the snapshot does not begin with its numbers",
            Self::Order => "the snapshot contradicts itself",
        })
    }
}

impl core::error::Error for RestoreError {}
