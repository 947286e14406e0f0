//! Whether a concurrent history can be true: is there an order of its calls, each somewhere between
//! its beginning and its end, in which the naive model gives exactly these answers and tells the
//! watchers exactly this? (Wing and Gong's search, with Lowe's memory of what was tried.)
//!
//! Revisions make it cheap. A write that was answered says where it belongs, so there is nothing to
//! guess but which of the calls that nobody heard of again did happen, and when; and of each
//! revision the watchers say what it changed.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use knarr_store::mvcc::*;

use crate::naive::{Model, within};
use crate::room;

/// A history that is true is explained much sooner; the search for one that is not could go on for
/// ever.
const MOST_TRIED: usize = 20_000;

/// A time that never comes.
pub const FOREVER: u64 = u64::MAX;

/// A call, or something a client learned.
#[derive(Clone, Debug)]
pub struct Call {
    /// When it began.
    pub called: u64,
    /// When it ended; of a write that was never answered, when it could no longer happen.
    pub until: u64,
    pub what: What,
}

#[derive(Clone, Debug)]
pub enum What {
    /// A command and what it answered; `None` is unknown: it may have happened or not.
    Write(Command, Option<Outcome>),
    /// A query, its answer, and the revision the store said it was at.
    Read(Query, Result<RangeResult, ReadError>, Revision),
    /// What a range was at a revision, whatever was compacted since.
    Old(KeyRange, Revision, Vec<KeyValue>),
    /// There is no telling any more what was before the second: the first was asked for.
    Lost(Revision, Revision),
    /// The store may have compacted by itself, when the revision was so much further on.
    Auto(Revision, Option<u64>),
    /// The leases there are, with their times to live.
    Leases(Vec<(LeaseId, i64)>),
    /// A lease was or was not there to be kept alive.
    Alive(LeaseId, bool),
    /// Watchers were told everything up to here.
    Saw(Revision),
    /// What comes after the first was compacted away; the second can still be read.
    Gone(Revision, Revision),
    /// A command found no room in so many bytes, beside the state and what came from a revision on.
    NoRoom(Command, usize, Revision),
}

/// What the watcher of a range was told.
#[derive(Clone, Debug)]
pub struct Told {
    pub range: KeyRange,
    /// It began to watch after this revision.
    pub after: Revision,
    pub events: Vec<Event>,
    /// It was told that it has been told everything up to here.
    pub upto: Revision,
}

impl Told {
    pub fn new(range: KeyRange, after: Revision) -> Self {
        Self { range, after, events: Vec::new(), upto: after }
    }

    /// Takes the next batch: everything after what came before, in order, and no less than it says.
    pub fn batch(&mut self, batch: EventBatch) -> Result<(), String> {
        for event in batch.events {
            let newest = self.events.last().map_or(self.after, |event| event.revision);
            if event.revision <= self.upto || event.revision < newest {
                return Err(format!("told again, late or in two pieces: {event:?}"));
            }
            if event.revision > batch.next {
                return Err(format!("told ahead of {:?}: {event:?}", batch.next));
            }
            self.events.push(event);
        }
        self.progress(batch.next)
    }

    pub fn progress(&mut self, upto: Revision) -> Result<(), String> {
        if upto < self.upto {
            return Err(format!("progress went back from {:?} to {upto:?}", self.upto));
        }
        self.upto = upto;
        Ok(())
    }

    /// Whether these are the changes of a revision, as far as it was told of it.
    fn agrees(&self, revision: Revision, events: &[Event]) -> bool {
        let told = self.events.iter().filter(|event| event.revision == revision);
        revision <= self.after
            || revision > self.upto
            || events.iter().filter(|event| self.range.contains(&event.key)).eq(told)
    }
}

/// How strict a history is about compaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Past {
    /// Only what was compacted is gone.
    Kept,
    /// What memory has let go is on disk. Only transactions look no further than memory.
    OnDisk,
    /// More may be gone.
    Short,
}

/// Finds an order; what everything came to in the end.
pub fn check(calls: &[Call], told: &[Told], past: Past) -> Result<Model, String> {
    let done = vec![false; calls.len()];
    let tried = HashSet::new();
    let best = (0, String::new());
    let mut search = Search { calls, told, past, model: Model::new(), done, begun: 0, tried, best };
    if search.go() { Ok(search.model) } else { Err(search.best.1) }
}

struct Search<'a> {
    calls: &'a [Call],
    told: &'a [Told],
    past: Past,
    model: Model,
    done: Vec<bool>,
    /// All that is in the order so far was in time for a call that began here.
    begun: u64,
    tried: HashSet<(Vec<bool>, u64)>,
    /// The most calls that could be put in order, and what was in the way then.
    best: (usize, String),
}

/// What taking a call as the next comes to.
enum Step {
    /// It cannot be the next.
    No,
    /// It can, and nothing is different after it.
    Idle,
    /// It can, and the model has moved.
    Moved,
}

impl Search<'_> {
    fn go(&mut self) -> bool {
        let (done, begun) = (self.done.clone(), self.begun);
        if self.settle() && (self.finished() || self.branch()) {
            return true;
        }
        (self.done, self.begun) = (done, begun);
        false
    }

    /// Takes everything that changes nothing and fits here: to wait with it gains nothing, unless
    /// a doubtful call cannot come after it. False when something has come too late.
    fn settle(&mut self) -> bool {
        let horizon = self.horizon();
        for at in 0..self.calls.len() {
            if self.open(at, horizon) && self.must(at) && !self.closes(at) && self.idle(at) {
                self.put(at);
                return self.settle();
            }
        }
        let late = self.late();
        if let Some(late) = late {
            self.stuck(late);
        }
        late.is_none()
    }

    /// Tries each call that may come next: first those that say that they belong here.
    fn branch(&mut self) -> bool {
        let tried = (self.done.clone(), self.fingerprint());
        if self.tried.len() == MOST_TRIED || !self.tried.insert(tried) {
            return false;
        }
        let horizon = self.horizon();
        let (certain, doubtful): (Vec<usize>, Vec<usize>) = (0..self.calls.len())
            .filter(|&at| self.open(at, horizon))
            .partition(|&at| self.must(at));
        for at in certain.iter().copied().chain(doubtful) {
            let (mark, begun) = (self.model.mark(), self.begun);
            let step = self.take(at);
            if matches!(step, Step::Moved) || matches!(step, Step::Idle) && self.must(at) {
                self.put(at);
                if self.go() {
                    return true;
                }
                self.done[at] = false;
                self.begun = begun;
                self.model.rewind(&mark);
            }
        }
        if let Some(&first) = certain.first() {
            self.stuck(first);
        }
        false
    }

    /// Whether a call may come next and changes nothing.
    fn idle(&mut self, at: usize) -> bool {
        let mark = self.model.mark();
        match self.take(at) {
            Step::Idle => true,
            Step::Moved => {
                self.model.rewind(&mark);
                false
            }
            Step::No => false,
        }
    }

    fn put(&mut self, at: usize) {
        self.done[at] = true;
        self.begun = self.begun.max(self.calls[at].called);
    }

    fn finished(&self) -> bool {
        (0..self.calls.len()).all(|at| self.done[at] || !self.must(at))
    }

    /// Whether a call is known to have happened.
    fn must(&self, at: usize) -> bool {
        !matches!(self.calls[at].what, What::Write(_, None) | What::Auto(..))
    }

    /// Before this every call that comes next must have begun.
    fn horizon(&self) -> u64 {
        let waiting = (0..self.calls.len()).filter(|&at| !self.done[at] && self.must(at));
        waiting.map(|at| self.calls[at].until).min().unwrap_or(FOREVER)
    }

    fn open(&self, at: usize, horizon: u64) -> bool {
        let call = &self.calls[at];
        !self.done[at] && call.called < horizon && call.until > self.begun
    }

    /// Whether after this call one is too late of which nobody knows whether it happened.
    fn closes(&self, at: usize) -> bool {
        let called = self.calls[at].called;
        let mut calls = self.calls.iter().enumerate();
        calls.any(|(other, call)| {
            call.until <= called && self.open(other, FOREVER) && !self.must(other)
        })
    }

    /// A call that should have come before, because it says at which revision.
    fn late(&self) -> Option<usize> {
        let (now, _) = self.model.now();
        let passed = |what: &What| match what {
            What::Write(_, Some(Ok(Answer::Txn(response)))) => response.revision < now,
            What::Write(_, Some(Ok(Answer::Compact(at) | Answer::LeaseRevoke(at)))) => *at < now,
            What::Read(_, _, at) => *at < now,
            _ => false,
        };
        let late = |at: &usize| !self.done[*at] && passed(&self.calls[*at].what);
        (0..self.calls.len()).find(late)
    }

    /// Takes a call as the next, if its answer is right here.
    fn take(&mut self, at: usize) -> Step {
        let (now, _) = self.model.now();
        let aside = &self.model.aside;
        let fits = match &self.calls[at].what {
            What::Write(command, outcome) => return self.write(command, outcome.as_ref()),
            What::Auto(revision, kept) => {
                let due = kept.is_none_or(|kept| revision.0 + kept == now.0);
                let compact = Command::Compact { revision: *revision };
                return if due { self.write(&compact, None) } else { Step::No };
            }
            What::Old(range, at, kvs) => *at <= now && within(self.model.at(*at), range) == *kvs,
            What::Lost(at, oldest) => {
                self.past == Past::Short && at < oldest && *oldest <= now.next()
            }
            What::Read(query, answer, revision) => *revision == now && self.reads(query, answer),
            What::Leases(leases) => leases.iter().copied().eq(aside.leases.clone()),
            What::Alive(id, alive) => aside.leases.contains_key(id) == *alive,
            What::Saw(revision) => *revision <= now,
            What::NoRoom(command, budget, floor) => {
                !room::fits(&self.model, command, *budget, *floor)
            }
            What::Gone(after, oldest) => {
                after.0 + 1 < oldest.0
                    && match self.past {
                        Past::Kept | Past::OnDisk => *oldest == aside.compacted,
                        Past::Short => *oldest >= aside.compacted && *oldest <= now.next(),
                    }
            }
        };
        if fits { Step::Idle } else { Step::No }
    }

    fn reads(&self, query: &Query, answer: &Result<RangeResult, ReadError>) -> bool {
        match (answer, self.past) {
            (Err(ReadError::Compacted(oldest)), Past::Short) => {
                query.at < *oldest && *oldest >= self.model.aside.compacted
            }
            _ => *answer == self.model.query(query),
        }
    }

    fn write(&mut self, command: &Command, outcome: Option<&Outcome>) -> Step {
        let mark = self.model.mark();
        let (now, _) = self.model.now();
        if let Some(Ok(Answer::Txn(response))) = outcome
            && response.revision.0.saturating_sub(now.0) > 1
        {
            return Step::No;
        }
        let right = outcome.is_none_or(|outcome| self.right(command, outcome));
        if outcome.is_none() {
            let _ = self.model.apply(command);
        }
        let moved = self.model.mark() != mark;
        match right && self.seen(now) {
            true if moved => Step::Moved,
            true => Step::Idle,
            false => {
                self.model.rewind(&mark);
                Step::No
            }
        }
    }

    /// Whether a command answers this; a read of a forgotten revision may be refused when memory
    /// was short.
    fn right(&mut self, command: &Command, outcome: &Outcome) -> bool {
        match outcome {
            Err(Refusal::Compacted(oldest)) if self.past != Past::Kept => {
                *oldest >= self.model.aside.compacted
            }
            _ => self.model.apply(command) == *outcome,
        }
    }

    /// Whether those who watch were told of what came after a revision.
    fn seen(&self, before: Revision) -> bool {
        let (now, _) = self.model.now();
        let first = self.model.events.partition_point(|event| event.revision <= before);
        now == before || self.told.iter().all(|told| told.agrees(now, &self.model.events[first..]))
    }

    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        let (now, state) = self.model.now();
        (now, format!("{:?}", self.model.aside)).hash(&mut hasher);
        self.model.events.iter().for_each(|event| event.weight().hash(&mut hasher));
        for kv in state.values() {
            (&kv.key, &kv.value, kv.mod_revision, kv.create_revision, kv.version, kv.lease)
                .hash(&mut hasher);
        }
        hasher.finish()
    }

    fn stuck(&mut self, at: usize) {
        let done = self.done.iter().filter(|done| **done).count();
        if done >= self.best.0 {
            let (call, (now, state)) = (&self.calls[at], self.model.now());
            let state: Vec<_> = state.values().map(|kv| (&kv.key, kv.mod_revision)).collect();
            let aside = &self.model.aside;
            self.best = (
                done,
                format!(
                    "after {done} calls, at {now:?}, {aside:?}, {state:?}: no place for {call:?}"
                ),
            );
        }
    }
}
