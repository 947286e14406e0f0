//! How long a container that ended waits before it is started again: 0, 10 s, 20 s, … 5 min.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeMap;
use alloc::string::String;

use jiff::{SignedDuration, Timestamp};
use knarr_oci::cri::ContainerStatus;

const FIRST_SECONDS: i64 = 10;
const MAX_SECONDS: i64 = 300;
/// A container that ran this long begins with a clean record.
const FORGIVEN_AFTER_SECONDS: i64 = 2 * MAX_SECONDS;
const NANOS: i64 = 1_000_000_000;

/// How often each container of a Pod has ended quickly. Soft state: lost, it is guessed from the
/// restart count.
#[derive(Clone, Debug, Default)]
pub struct Backoffs {
    records: BTreeMap<String, Record>,
    told: BTreeMap<String, u32>,
    waits: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug)]
struct Record {
    attempt: u32,
    level: u32,
}

impl Backoffs {
    /// Whether people have not yet been told that a container waits after this run.
    pub(crate) fn first_wait(&mut self, name: &str, ended: &ContainerStatus) -> bool {
        let attempt = ended.metadata.attempt;
        self.told.insert(name.to_owned(), attempt) != Some(attempt)
    }

    /// Whether people have not yet been told that a container waits for this.
    pub(crate) fn first_telling(&mut self, name: &str, telling: &str) -> bool {
        self.waits.insert(name.to_owned(), telling.to_owned()).as_deref() != Some(telling)
    }

    /// When a container that ended may start again, and how long it waits for that in seconds.
    pub(crate) fn next_start(&mut self, name: &str, ended: &ContainerStatus) -> (Timestamp, i64) {
        let attempt = ended.metadata.attempt;
        let ran = (ended.finished_at - ended.started_at) / NANOS;
        let forgiven = ran >= FORGIVEN_AFTER_SECONDS;
        let level = match self.records.get(name) {
            _ if forgiven => 0,
            Some(record) if record.attempt == attempt => record.level,
            Some(record) => record.level + 1,
            None => attempt,
        };
        self.records.insert(name.to_owned(), Record { attempt, level });
        let wait = match level {
            0 => 0,
            level => (FIRST_SECONDS << (level - 1).min(10)).min(MAX_SECONDS),
        };
        let ended = Timestamp::from_nanosecond(i128::from(ended.finished_at)).unwrap_or_default();
        let at = ended.saturating_add(SignedDuration::from_secs(wait)).unwrap_or(ended);
        (at, wait)
    }
}

/// When an image may be pulled again that could not be pulled `times` in a row: 10, 20, … 300 s.
pub(crate) fn pull_again_at(failed: Timestamp, times: u32) -> Timestamp {
    let wait = (FIRST_SECONDS << times.saturating_sub(1).min(10)).min(MAX_SECONDS);
    failed.saturating_add(SignedDuration::from_secs(wait)).unwrap_or(failed)
}

/// How long a step that failed `times` in a row waits: 1, 2, 4, … 300 seconds.
pub(crate) fn retry_at(failed: Timestamp, times: u32) -> Timestamp {
    let wait = (1_i64 << times.saturating_sub(1).min(10)).min(MAX_SECONDS);
    failed.saturating_add(SignedDuration::from_secs(wait)).unwrap_or(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(attempt: u32, ran_seconds: i64) -> ContainerStatus {
        let mut status = ContainerStatus { finished_at: ran_seconds * NANOS, ..Default::default() };
        status.metadata.attempt = attempt;
        status
    }

    #[test]
    fn waits_double_and_are_forgiven_after_a_long_run() {
        let mut backoffs = Backoffs::default();
        let mut wait = |attempt, ran| backoffs.next_start("a", &ended(attempt, ran)).1;
        assert_eq!(wait(0, 1), 0, "the first restart is at once");
        assert_eq!(wait(0, 1), 0, "asking twice changes nothing");
        assert_eq!([wait(1, 1), wait(2, 1), wait(3, 1)], [10, 20, 40]);
        assert_eq!([wait(4, 1), wait(5, 1), wait(6, 1), wait(7, 1)], [80, 160, 300, 300]);
        assert_eq!(wait(8, 700), 0, "a long run clears the record");
        assert_eq!(wait(9, 1), 10);
    }

    #[test]
    fn a_lost_record_is_guessed_from_the_restart_count() {
        assert_eq!(Backoffs::default().next_start("a", &ended(2, 1)).1, 20);
    }
}
