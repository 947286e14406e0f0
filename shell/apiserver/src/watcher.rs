//! One watch: what the pipeline granted, pumped from the store.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use knarr_mvcc::Revision;
use knarr_registry::{Seen, Snapshot, WatchSpec, WatchStart};
use knarr_store::{Store, Watch, WatchError};
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use crate::server::now;

/// How often a quiet watcher hears how far it has come.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// A watch that names no end gets one; clients begin again where they were.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(45 * 60);

/// Why a watch is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatcherEnd {
    /// Its time is up, or the server goes down.
    Done,
    /// Its cursor lies before what the history still holds: list again.
    Expired {
        /// The revision it had come to.
        after: Revision,
        /// The oldest revision there is.
        oldest: Revision,
    },
}

/// What comes next on a watch.
#[derive(Clone, Debug)]
pub enum Next {
    /// Something happened.
    Seen(Seen),
    /// All that happened up to here has been told; `initial` closes the initial objects.
    Bookmark(Revision, bool),
}

/// A watch in progress.
pub struct Watcher {
    spec: WatchSpec,
    store: Store,
    watch: Option<Watch>,
    queue: VecDeque<Next>,
    end: Instant,
    bookmark: Instant,
}

impl Watcher {
    pub(crate) fn new(store: Store, spec: WatchSpec) -> Self {
        let timeout = spec.timeout.map_or(DEFAULT_TIMEOUT, Duration::from_secs);
        let now = Instant::now();
        let (queue, watch) = (VecDeque::new(), None);
        Self { spec, store, watch, queue, end: now + timeout, bookmark: now + BOOKMARK_EVERY }
    }

    /// What was granted.
    pub fn spec(&self) -> &WatchSpec {
        &self.spec
    }

    /// What comes next; waits for it. Cancel safe.
    ///
    /// # Errors
    /// [`WatcherEnd`] when the watch is over.
    pub async fn next(&mut self) -> Result<Next, WatcherEnd> {
        loop {
            if let Some(next) = self.queue.pop_front() {
                return Ok(next);
            }
            if self.watch.is_none() {
                self.begin();
                continue;
            }
            self.fill().await?;
        }
    }

    /// What is ready without waiting, after [`Watcher::next`] gave something.
    pub fn ready(&mut self) -> Option<Next> {
        self.queue.pop_front()
    }

    fn begin(&mut self) {
        let after = match self.spec.start {
            WatchStart::After(revision) => revision,
            WatchStart::Initial => {
                let (seen, revision) = self.store.read(|keyspace, revision| {
                    (self.spec.initial(Snapshot::new(keyspace, revision)), revision)
                });
                self.queue.extend(seen.into_iter().map(Next::Seen));
                if self.spec.mark_initial {
                    self.queue.push_back(Next::Bookmark(revision, true));
                }
                revision
            }
        };
        self.watch = Some(self.store.watch(self.spec.range.clone(), after));
    }

    async fn fill(&mut self) -> Result<(), WatcherEnd> {
        let watch = self.watch.as_mut().expect("the watch has begun");
        let wake = if self.spec.bookmarks { self.bookmark.min(self.end) } else { self.end };
        tokio::select! {
            batch = watch.next() => {
                let after = watch.progress();
                let batch = batch.map_err(|error| over(error, after))?;
                let seen = batch.events.iter().filter_map(|event| self.spec.see(event));
                self.queue.extend(seen.map(Next::Seen));
                Ok(())
            }
            () = sleep_until(wake) => {
                if Instant::now() >= self.end {
                    return Err(WatcherEnd::Done);
                }
                self.bookmark = Instant::now() + BOOKMARK_EVERY;
                self.queue.push_back(Next::Bookmark(watch.progress(), false));
                Ok(())
            }
        }
    }

    /// What comes next, as it goes over the wire.
    pub(crate) fn encode(&self, next: &Next, out: &mut Vec<Bytes>) {
        match next {
            Next::Seen(seen) => self.spec.encode(seen, now(), out),
            Next::Bookmark(at, initial) => self.spec.bookmark(*at, *initial, out),
        }
    }
}

fn over(error: WatchError, after: Revision) -> WatcherEnd {
    match error {
        WatchError::Compacted(compacted) => WatcherEnd::Expired { after, oldest: compacted.oldest },
        WatchError::Past(error) => {
            warn!(%error, "a watch ends where history cannot be read");
            WatcherEnd::Expired { after, oldest: after }
        }
        WatchError::Closed => WatcherEnd::Done,
    }
}
