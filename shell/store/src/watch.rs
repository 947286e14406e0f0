//! A watch is a cursor over the history: it holds no events and cannot fall behind, only off.

use knarr_mvcc::{EventBatch, KeyRange, Revision};
use tokio::sync::watch;

use crate::error::WatchError;
use crate::store::Store;

/// The changes of a range, in order, without gaps.
#[derive(Debug)]
pub struct Watch {
    store: Store,
    range: KeyRange,
    cursor: Revision,
    durable: watch::Receiver<Revision>,
}

impl Watch {
    pub(crate) fn new(store: Store, range: KeyRange, after: Revision) -> Self {
        let durable = store.subscribe();
        Self { store, range, cursor: after, durable }
    }

    /// The next changes; waits until there are some. Never splits a revision. Cancel safe: a
    /// dropped call loses nothing.
    ///
    /// # Errors
    /// [`WatchError`]; the watch is over then.
    pub async fn next(&mut self) -> Result<EventBatch, WatchError> {
        loop {
            let durable = *self.durable.borrow_and_update();
            while self.cursor < durable {
                let batch = self.store.events(&self.range, self.cursor, durable)?;
                self.cursor = batch.next;
                if !batch.events.is_empty() {
                    return Ok(batch);
                }
            }
            self.durable.changed().await.map_err(|_| WatchError::Closed)?;
        }
    }

    /// Every change up to this revision, inclusive, has been handed out (a bookmark).
    pub fn progress(&self) -> Revision {
        self.cursor
    }
}
