//! A watch is a cursor over the history: it holds no events and cannot fall behind, only off.
//!
//! It is not woken by every change either: the hub knows which ranges are watched, and rings the
//! bells of those that a change touches. So a thousand watchers of a thousand keys cost one wake-up
//! per change, and a watcher that nothing touched stands where the store stands.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use knarr_mvcc::{EventBatch, KeyRange, Keyspace, RangeEnd, Revision};
use tokio::sync::Notify;

use crate::error::WatchError;
use crate::store::Store;

/// Tells whoever holds it which of their watches have news. One bell may serve many watches.
#[derive(Debug, Default)]
pub struct Bell {
    rung: Mutex<Rung>,
    notify: Notify,
}

#[derive(Debug, Default)]
struct Rung {
    /// The first touching revision since the watch last looked, by the watch's token.
    first: BTreeMap<u64, Revision>,
    closed: bool,
}

impl Bell {
    /// Waits until a watch has news, or the store is closed; the tokens of those that have.
    /// They stay rung until they are read.
    pub async fn wait(&self) -> Vec<u64> {
        loop {
            let notified = self.notify.notified();
            {
                let rung = lock(&self.rung);
                if rung.closed || !rung.first.is_empty() {
                    return rung.first.keys().copied().collect();
                }
            }
            notified.await;
        }
    }

    fn ring(&self, token: u64, revision: Revision) {
        lock(&self.rung).first.entry(token).or_insert(revision);
        self.notify.notify_one();
    }

    fn close(&self) {
        lock(&self.rung).closed = true;
        self.notify.notify_one();
    }
}

/// Who watches what.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    watched: Mutex<Watched>,
    /// Everything up to this revision has rung.
    published: AtomicU64,
    /// The version of the settings that was published.
    settings: AtomicU64,
}

#[derive(Debug, Default)]
struct Watched {
    /// Watches of one key.
    keys: HashMap<Bytes, Vec<Listener>>,
    /// Watches of more: equal ranges once, by their start.
    ranges: BTreeMap<(Bytes, Option<Bytes>), Vec<Listener>>,
    /// The watches are over.
    closed: bool,
}

#[derive(Debug)]
struct Listener {
    bell: Arc<Bell>,
    token: u64,
}

impl Listener {
    fn ring(&self, revision: Revision) {
        self.bell.ring(self.token, revision);
    }

    fn is(&self, bell: &Arc<Bell>, token: u64) -> bool {
        self.token == token && Arc::ptr_eq(&self.bell, bell)
    }
}

impl Hub {
    fn join(&self, range: &KeyRange, bell: &Arc<Bell>, token: u64) {
        let mut watched = lock(&self.watched);
        if watched.closed {
            bell.close();
        }
        let listener = Listener { bell: bell.clone(), token };
        match ends(range) {
            None => watched.keys.entry(range.start.clone()).or_default().push(listener),
            Some(end) => {
                watched.ranges.entry((range.start.clone(), end)).or_default().push(listener);
            }
        }
    }

    fn leave(&self, range: &KeyRange, bell: &Arc<Bell>, token: u64) {
        let watched = &mut *lock(&self.watched);
        let without = |listeners: &mut Vec<Listener>| {
            listeners.retain(|listener| !listener.is(bell, token));
            listeners.is_empty()
        };
        match ends(range) {
            None => {
                if watched.keys.get_mut(&range.start).is_some_and(without) {
                    watched.keys.remove(&range.start);
                }
            }
            Some(end) => {
                let range = (range.start.clone(), end);
                if watched.ranges.get_mut(&range).is_some_and(without) {
                    watched.ranges.remove(&range);
                }
            }
        }
    }

    /// Rings for every change of a keyspace that has not rung yet.
    pub(crate) fn publish(&self, keyspace: &Keyspace) {
        let after = self.published();
        let watched = lock(&self.watched);
        match keyspace.touched(after) {
            Ok(touched) => touched.for_each(|(revision, key)| watched.ring(revision, key)),
            // Forgotten already: whoever watches has to find out for themselves.
            Err(_) => watched.all().for_each(|listener| listener.ring(after.next())),
        }
        self.settings.store(keyspace.settings().version(), Ordering::Release);
        self.published.store(keyspace.revision().0, Ordering::Release);
    }

    pub(crate) fn settings(&self) -> u64 {
        self.settings.load(Ordering::Acquire)
    }

    fn published(&self) -> Revision {
        Revision(self.published.load(Ordering::Acquire))
    }

    pub(crate) fn watchers(&self) -> usize {
        lock(&self.watched).all().count()
    }

    /// Ends all watches.
    pub(crate) fn close(&self) {
        let mut watched = lock(&self.watched);
        watched.closed = true;
        watched.all().for_each(|listener| listener.bell.close());
    }
}

impl Watched {
    fn all(&self) -> impl Iterator<Item = &Listener> {
        self.keys.values().chain(self.ranges.values()).flatten()
    }

    fn ring(&self, revision: Revision, key: &[u8]) {
        let alone = self.keys.get(key).into_iter().flatten();
        let among = self.ranges.iter().take_while(|((start, _), _)| &start[..] <= key);
        let among = among.filter(|((_, end), _)| end.as_ref().is_none_or(|end| key < end));
        let among = among.flat_map(|(_, listeners)| listeners);
        alone.chain(among).for_each(|listener| listener.ring(revision));
    }
}

/// Where a range of more than one key ends; `Some(None)` is "never".
fn ends(range: &KeyRange) -> Option<Option<Bytes>> {
    match &range.end {
        RangeEnd::Single => None,
        RangeEnd::Before(end) => Some(Some(end.clone())),
        RangeEnd::Unbounded => Some(None),
    }
}

/// The changes of a range, in order, without gaps.
#[derive(Debug)]
pub struct Watch {
    store: Store,
    range: KeyRange,
    cursor: Revision,
    /// Everything up to the cursor has been handed out, and what touches the range later rings.
    level: bool,
    bell: Arc<Bell>,
    token: u64,
}

impl Watch {
    pub(crate) fn new(
        store: Store,
        range: KeyRange,
        after: Revision,
        bell: Arc<Bell>,
        token: u64,
    ) -> Self {
        store.hub().join(&range, &bell, token);
        Self { store, range, cursor: after, level: false, bell, token }
    }

    /// The next changes; waits until there are some. Never splits a revision. Cancel safe: a
    /// dropped call loses nothing. Not for watches that share a bell.
    ///
    /// # Errors
    /// [`WatchError`]; the watch is over then.
    pub async fn next(&mut self) -> Result<EventBatch, WatchError> {
        loop {
            if let Some(batch) = self.try_next().await? {
                return Ok(batch);
            }
            self.bell.wait().await;
        }
    }

    /// The next changes, if there are some; waits only for the disk, where what is older lies.
    /// Never splits a revision. Cancel safe.
    ///
    /// # Errors
    /// [`WatchError`]; the watch is over then.
    pub async fn try_next(&mut self) -> Result<Option<EventBatch>, WatchError> {
        // Read before the bell: all that touches the range up to here has rung.
        let published = self.store.hub().published();
        {
            let mut rung = lock(&self.bell.rung);
            match rung.first.remove(&self.token) {
                // Nothing before it touched the range: there is no need to look there.
                Some(first) if self.level => self.cursor = self.cursor.max(first.previous()),
                Some(_) => {}
                None if rung.closed => return Err(WatchError::Closed),
                None if self.level => {
                    self.cursor = self.cursor.max(published);
                    return Ok(None);
                }
                None => {}
            }
        }
        self.level = false;
        let newest = self.store.read(|_, revision| revision);
        while self.cursor < newest {
            let batch = match self.store.events(&self.range, self.cursor, newest).await {
                // With the store its files are closed: what they hold is not gone.
                Err(_) if lock(&self.bell.rung).closed => return Err(WatchError::Closed),
                batch => batch?,
            };
            self.cursor = batch.next;
            if !batch.events.is_empty() {
                return Ok(Some(batch));
            }
        }
        self.level = true;
        Ok(None)
    }

    /// Every change up to this revision, inclusive, has been handed out (a bookmark).
    pub fn progress(&self) -> Revision {
        let published = self.store.hub().published();
        let rung = lock(&self.bell.rung).first.get(&self.token).copied();
        match rung {
            _ if !self.level => self.cursor,
            Some(first) => self.cursor.max(first.previous()),
            None => self.cursor.max(published),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.store.hub().leave(&self.range, &self.bell, self.token);
        lock(&self.bell.rung).first.remove(&self.token);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
