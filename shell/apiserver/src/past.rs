//! What the pipeline asks about the past, answered by the store.

use jiff::Timestamp;
use knarr_mvcc::KeyRange;
use knarr_registry::{Moment, PastRange, PastRefusal};
use knarr_store::{Past, PastError, Store};

/// Reads a range as it was; what was compacted away too, if `compacted` says so.
pub(crate) async fn read(
    store: &Store,
    range: KeyRange,
    at: Moment,
    compacted: bool,
) -> Result<PastRange, PastRefusal> {
    let oldest = store.read(|keyspace, _| keyspace.compacted());
    let found = store.aside(move |past| {
        let at = match at {
            Moment::Revision(revision) => revision,
            Moment::Time(time) => past.before(millis(time))?,
        };
        if at < oldest && !compacted {
            return Err(PastError::Compacted(oldest));
        }
        state(past, &range, at)
    });
    found.await.map_err(|error| match error {
        PastError::Gone { .. } | PastError::Compacted(_) => PastRefusal::Gone(error.to_string()),
        PastError::Future(newest) => PastRefusal::Future(newest),
        error => PastRefusal::Failed(error.to_string()),
    })
}

fn state(past: &Past, range: &KeyRange, at: knarr_mvcc::Revision) -> Result<PastRange, PastError> {
    let state = past.state(range, at)?;
    let time = state.wall_ms.and_then(|ms| i64::try_from(ms).ok());
    let time = time.and_then(|ms| Timestamp::from_millisecond(ms).ok());
    Ok(PastRange { revision: state.revision, time, kvs: state.kvs })
}

/// Milliseconds since 1970; before that was nothing.
fn millis(time: Timestamp) -> u64 {
    u64::try_from(time.as_millisecond()).unwrap_or(0)
}
