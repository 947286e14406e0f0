//! The whole state as a stream of items, for checkpoints and for members that lag behind.
//!
//! The order is: one [`Item::Meta`], leases, settings, marks, the keys as they stood at the
//! history's floor, and every change since. So the history survives a restart, and each value is
//! written once.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use core::fmt;

use bytes::Bytes;

use crate::history::History;
use crate::keyspace::{Keyspace, ReadError};
use crate::lease::Lease;
use crate::model::{Event, KeyRange, KeyValue, LeaseId, Revision};
use crate::time::Mark;
use crate::version::Version;

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
    Base(Version),
    /// A change after the floor, in order of revision.
    Change {
        /// When.
        revision: Revision,
        /// Which key.
        key: Bytes,
        /// The new version; `None` when deleted.
        new: Option<KeyValue>,
    },
    /// When revisions were made.
    Mark(Mark),
    /// A change with what it replaced: archives of the past consist of these and of marks. In a
    /// snapshot the version before is there already.
    Past(Event),
}

/// How far a snapshot has come that is taken in pieces, while the state goes on.
#[derive(Clone, Debug)]
pub struct Walk {
    meta: Meta,
    stage: Stage,
}

#[derive(Clone, Debug)]
enum Stage {
    /// What has to be of one moment, and is small.
    Head(Vec<Item>),
    /// The keys after this one.
    Base(Option<Bytes>),
    /// The changes after this revision.
    Changes(Revision),
}

/// How many keys a piece of a snapshot looks at.
const PIECE_KEYS: usize = 1024;
/// What the changes of a piece weigh.
const PIECE_BYTES: usize = 256 << 10;

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
        let mut walk = self.walk(self.floor());
        core::iter::from_fn(move || self.walk_on(&mut walk)).flatten()
    }

    /// Begins a snapshot that is taken in pieces, with `budget` bytes of history and what must not
    /// be forgotten yet. The history is held where that begins until [`Keyspace::end_walk`].
    pub fn begin_walk(&mut self, budget: usize) -> Walk {
        let walk = self.walk(self.history.floor_within(budget));
        self.history.enter(walk.meta.floor);
        walk
    }

    /// Nothing is held for this snapshot any more.
    pub fn end_walk(&mut self, walk: &Walk) {
        self.history.leave(walk.meta.floor);
    }

    /// The numbers of the state.
    pub(crate) fn meta(&self) -> Meta {
        let (index, revision) = (self.index, self.revision);
        Meta { index, revision, compacted: self.compacted, floor: self.floor() }
    }

    fn walk(&self, floor: Revision) -> Walk {
        let meta = Meta { floor, ..self.meta() };
        let leases = self.leases().map(|l| Item::Lease { id: l.id, ttl_secs: l.ttl_secs });
        let version = self.settings.version();
        let settings = self
            .settings
            .iter(&[])
            .map(|(key, value)| Item::Setting { key: key.clone(), value: value.clone() });
        let settings =
            (version > 0).then_some(Item::Settings { version }).into_iter().chain(settings);
        let marks = self.marks.iter().map(Item::Mark);
        let head = core::iter::once(Item::Meta(meta)).chain(leases).chain(settings).chain(marks);
        Walk { meta, stage: Stage::Head(head.collect()) }
    }

    /// The next piece of a snapshot, as of the moment it began; `None` after the last.
    ///
    /// # Panics
    /// When the history was not held, as after [`Keyspace::end_walk`].
    pub fn walk_on(&self, walk: &mut Walk) -> Option<Vec<Item>> {
        match &mut walk.stage {
            Stage::Head(head) => {
                let head = core::mem::take(head);
                walk.stage = Stage::Base(None);
                Some(head)
            }
            Stage::Base(after) => {
                let (found, last) = self.part(after.as_ref(), walk.meta.floor, PIECE_KEYS);
                walk.stage = last.map_or(Stage::Changes(walk.meta.floor), |k| Stage::Base(Some(k)));
                Some(found.into_iter().map(Item::Base).collect())
            }
            Stage::Changes(after) if *after >= walk.meta.revision => None,
            Stage::Changes(after) => {
                let all = KeyRange::prefix(Bytes::new());
                let batch = self.held(&all, *after, walk.meta.revision, PIECE_BYTES);
                let batch = batch.expect("the history is held");
                *after = batch.next;
                let change =
                    |e: Event| Item::Change { revision: e.revision, key: e.key, new: e.new };
                Some(batch.events.into_iter().map(change).collect())
            }
        }
    }
}

impl Meta {
    /// The revision that a read at `at` (0: the newest) shows.
    ///
    /// # Errors
    /// [`ReadError`] when it is not held.
    pub fn resolve(&self, at: Revision) -> Result<Revision, ReadError> {
        let oldest = self.compacted.max(self.floor);
        match at {
            Revision(0) => Ok(self.revision),
            at if at > self.revision => Err(ReadError::FutureRevision(self.revision)),
            at if at < oldest => Err(ReadError::Compacted(oldest)),
            at => Ok(at),
        }
    }
}

impl Walk {
    /// The numbers of the state it shows.
    pub fn meta(&self) -> Meta {
        self.meta
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
            Item::Past(_) => return Err(RestoreError::Order),
            Item::Mark(mark) => state.marks.push(mark),
            Item::Lease { id, ttl_secs } => {
                state.leases.insert(Lease { id, ttl_secs, deadline: 0, keys: BTreeSet::new() });
            }
            Item::Settings { version } => state.settings.restore(version),
            Item::Setting { key, value } => state.settings.insert(key, value),
            Item::Base(version) => {
                require(version.revision() <= meta.floor && version.is_live())?;
                state.begin_with(version);
            }
            Item::Change { revision, key, new } => {
                let newest = state.history.newest().max(Revision(meta.floor.0 + 1));
                require(revision >= newest && revision <= meta.revision)?;
                let fits =
                    |kv: &KeyValue| kv.key == key && kv.mod_revision == revision && kv.version > 0;
                require(new.as_ref().is_none_or(fits))?;
                let gone = || Version::gone(revision, &key);
                let new = new.as_ref().map_or_else(gone, Version::of);
                state.write(&key, |_| new);
            }
        }
        Ok(())
    }

    /// The numbers that came first.
    pub fn meta(&self) -> Option<Meta> {
        self.state.as_ref().map(|(meta, _)| *meta)
    }

    /// Bytes the state weighs so far.
    pub fn held_bytes(&self) -> usize {
        self.state.as_ref().map_or(0, |(_, state)| state.held_bytes())
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
