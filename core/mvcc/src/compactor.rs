//! When to compact without being told, as etcd does: by age or by number of revisions.

use alloc::collections::VecDeque;

use crate::model::Revision;

/// What is kept when nobody compacts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AutoCompaction {
    /// Everything; the budgets aside.
    #[default]
    Off,
    /// What is younger than so many milliseconds.
    Periodic(u64),
    /// So many revisions.
    Revisions(u64),
}

const HOUR: u64 = 3_600_000;
/// How often the number of revisions is looked at.
const REVISION_INTERVAL: u64 = 300_000;
/// A period is sampled this many times (an hour of it, when it is longer).
const SAMPLES: u64 = 10;

/// The decision, driven by a clock in milliseconds.
#[derive(Clone, Debug)]
pub struct Compactor {
    mode: AutoCompaction,
    /// Revisions at the samples, oldest first; of a period's length.
    samples: VecDeque<Revision>,
    next: u64,
    /// From when on the next compaction is due.
    due: u64,
    last: Revision,
}

impl Compactor {
    /// Begins to count at `now`.
    pub fn new(mode: AutoCompaction, now: u64, revision: Revision) -> Self {
        let due = if let AutoCompaction::Periodic(period) = mode {
            now.saturating_add(period)
        } else {
            0
        };
        let samples = VecDeque::from([revision]);
        let mut new = Self { mode, samples, next: 0, due, last: Revision(0) };
        new.next = now.saturating_add(new.interval());
        new
    }

    fn interval(&self) -> u64 {
        match self.mode {
            AutoCompaction::Off => u64::MAX,
            AutoCompaction::Periodic(period) => (period.min(HOUR) / SAMPLES).max(1),
            AutoCompaction::Revisions(_) => REVISION_INTERVAL,
        }
    }

    /// When to ask again.
    pub fn deadline(&self) -> Option<u64> {
        (self.mode != AutoCompaction::Off).then_some(self.next)
    }

    /// Which revision to compact at, if any. Whether it could be done is told to
    /// [`Compactor::done`]; otherwise it is wanted again next time.
    pub fn tick(&mut self, now: u64, revision: Revision) -> Option<Revision> {
        if self.mode == AutoCompaction::Off || now < self.next {
            return None;
        }
        self.next = now.saturating_add(self.interval());
        let wanted = match self.mode {
            AutoCompaction::Off => return None,
            AutoCompaction::Revisions(keep) => Revision(revision.0.saturating_sub(keep)),
            AutoCompaction::Periodic(period) => self.sample(period, now, revision)?,
        };
        (wanted > Revision(0) && wanted != self.last).then_some(wanted)
    }

    /// The revision of a period ago, when it is time for it.
    fn sample(&mut self, period: u64, now: u64, revision: Revision) -> Option<Revision> {
        let oldest = self.samples.front().copied();
        self.samples.push_back(revision);
        if self.samples.len() as u64 > period / self.interval() + 1 {
            self.samples.pop_front();
        }
        oldest.filter(|_| now >= self.due)
    }

    /// The compaction that was wanted is done, or was by somebody else.
    pub fn done(&mut self, now: u64, at: Revision) {
        self.last = at;
        if let AutoCompaction::Periodic(period) = self.mode {
            self.due = now.saturating_add(period.min(HOUR));
        }
    }
}
