//! The keyspace as etcd describes it and nobody would build it: every state it ever had, kept
//! whole. What is true here is true because it is simple. For the tests of every crate.
#![allow(dead_code, reason = "no test needs all of it")]
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::collections::BTreeMap;

use bytes::Bytes;
use knarr_mvcc::*;

/// The key-values at one revision.
pub type State = BTreeMap<Bytes, KeyValue>;

/// Every state by revision, every change, and what is beside the keys.
#[derive(Clone)]
pub struct Model {
    states: Vec<(Revision, State)>,
    pub events: Vec<Event>,
    pub aside: Aside,
}

/// What a command may change without a new revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aside {
    pub compacted: Revision,
    /// Times to live in seconds.
    pub leases: BTreeMap<LeaseId, i64>,
    settings: (u64, BTreeMap<Bytes, Bytes>),
}

/// Where a model can go back to.
#[derive(Clone, PartialEq, Eq)]
pub struct Mark {
    states: usize,
    events: usize,
    aside: Aside,
}

impl Model {
    pub fn new() -> Self {
        let settings = (0, BTreeMap::new());
        let aside = Aside { compacted: Revision(0), leases: BTreeMap::new(), settings };
        Self { states: vec![(Revision(1), State::new())], events: vec![], aside }
    }

    pub fn now(&self) -> (Revision, &State) {
        let (revision, state) = self.states.last().unwrap();
        (*revision, state)
    }

    pub fn at(&self, at: Revision) -> &State {
        &self.states.iter().rev().find(|(revision, _)| *revision <= at).unwrap().1
    }

    pub fn mark(&self) -> Mark {
        let (states, events) = (self.states.len(), self.events.len());
        Mark { states, events, aside: self.aside.clone() }
    }

    pub fn rewind(&mut self, mark: &Mark) {
        self.states.truncate(mark.states);
        self.events.truncate(mark.events);
        self.aside = mark.aside.clone();
    }

    pub fn apply(&mut self, command: &Command) -> Outcome {
        command.check()?;
        let (revision, _) = self.now();
        match command {
            Command::Txn(txn) => self.txn(txn).map(Answer::Txn),
            Command::Compact { revision: at } if *at <= self.aside.compacted => {
                Err(Refusal::Compacted(self.aside.compacted))
            }
            Command::Compact { revision: at } if *at > revision => {
                Err(Refusal::FutureRevision(revision))
            }
            Command::Compact { revision: at } => {
                self.aside.compacted = *at;
                Ok(Answer::Compact(revision))
            }
            Command::LeaseGrant { id, .. } if self.aside.leases.contains_key(id) => {
                Err(Refusal::LeaseExists)
            }
            Command::LeaseGrant { id, ttl_secs, .. } => {
                let (id, ttl_secs) = (*id, (*ttl_secs).max(1));
                self.aside.leases.insert(id, ttl_secs);
                Ok(Answer::LeaseGrant { id, ttl_secs })
            }
            Command::LeaseRevoke { id } => self.revoke(*id),
            Command::Settings(change) => {
                self.under(change.expect)?;
                self.aside.settings.0 += 1;
                for (key, value) in change.entries.clone() {
                    match value {
                        Some(value) => self.aside.settings.1.insert(key, value),
                        None => self.aside.settings.1.remove(&key),
                    };
                }
                Ok(Answer::Settings(self.aside.settings.0))
            }
            Command::Under { settings, command } => {
                self.under(*settings)?;
                self.apply(command)
            }
            Command::Time { .. } => Ok(Answer::Time),
        }
    }

    fn under(&self, version: u64) -> Result<(), Refusal> {
        let now = self.aside.settings.0;
        if version == now { Ok(()) } else { Err(Refusal::SettingsChanged(now)) }
    }

    /// A lease's keys are those whose newest version names it.
    fn revoke(&mut self, id: LeaseId) -> Outcome {
        self.aside.leases.remove(&id).ok_or(Refusal::LeaseNotFound)?;
        let keys = self.now().1.values().filter(|kv| kv.lease == id).map(|kv| kv.key.clone());
        let delete = |key| Op::Delete { range: KeyRange::single(key) };
        let txn = Txn { success: keys.map(delete).collect(), ..Txn::default() };
        self.txn(&txn).map(|done| Answer::LeaseRevoke(done.revision))
    }

    fn txn(&mut self, txn: &Txn) -> Result<TxnResponse, Refusal> {
        let (revision, before) = self.now();
        let next = Revision(revision.0 + 1);
        let mut run =
            Run { model: self, before: before.clone(), now: before.clone(), events: vec![], next };
        run.refuse(txn)?;
        let mut response = run.txn(txn);
        let Run { now, events, .. } = run;
        let made = if events.is_empty() { revision } else { next };
        if made == next {
            self.states.push((next, now));
            self.events.extend(events);
        }
        fix(&mut response, made);
        Ok(response)
    }

    /// What reading a revision answers.
    pub fn query(&self, query: &Query) -> Result<RangeResult, ReadError> {
        let (now, _) = self.now();
        match query.at {
            Revision(0) => Ok(answer(query, self.at(now))),
            at if at > now => Err(ReadError::FutureRevision(now)),
            at if at < self.aside.compacted => Err(ReadError::Compacted(self.aside.compacted)),
            at => Ok(answer(query, self.at(at))),
        }
    }
}

fn fix(response: &mut TxnResponse, revision: Revision) {
    response.revision = revision;
    for nested in &mut response.responses {
        if let OpResponse::Txn(nested) = nested {
            fix(nested, revision);
        }
    }
}

struct Run<'a> {
    model: &'a Model,
    before: State,
    now: State,
    events: Vec<Event>,
    next: Revision,
}

impl Run<'_> {
    fn branch<'t>(&self, txn: &'t Txn) -> (bool, &'t [Op]) {
        let succeeded = txn.compare.iter().all(|compare| self.holds(compare));
        (succeeded, if succeeded { &txn.success } else { &txn.failure })
    }

    /// The first operation on the way that cannot be done refuses all.
    fn refuse(&self, txn: &Txn) -> Result<(), Refusal> {
        for op in self.branch(txn).1 {
            match op {
                Op::Put { lease, .. } if *lease != LeaseId(0) => {
                    let found = self.model.aside.leases.contains_key(lease);
                    found.then_some(()).ok_or(Refusal::LeaseNotFound)?;
                }
                Op::Range(query) => self.model.query(query).map(drop)?,
                Op::Txn(nested) => self.refuse(nested)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn txn(&mut self, txn: &Txn) -> TxnResponse {
        let (succeeded, ops) = self.branch(txn);
        let responses = ops.iter().map(|op| self.op(op)).collect();
        TxnResponse { revision: self.next, succeeded, responses }
    }

    fn holds(&self, compare: &Compare) -> bool {
        let missing = KeyValue {
            key: Bytes::new(),
            value: Bytes::new(),
            create_revision: Revision(0),
            mod_revision: Revision(0),
            version: 0,
            lease: LeaseId(0),
        };
        let found: Vec<&KeyValue> =
            self.before.values().filter(|kv| compare.range.contains(&kv.key)).collect();
        if found.is_empty() {
            let value = matches!(compare.target, CompareTarget::Value(_));
            return !value && judge(compare, &missing);
        }
        found.into_iter().all(|kv| judge(compare, kv))
    }

    fn op(&mut self, op: &Op) -> OpResponse {
        match op {
            Op::Put { key, value, lease } => {
                let old = self.now.get(key).cloned();
                let kv = KeyValue {
                    key: key.clone(),
                    value: value.clone(),
                    create_revision: old.as_ref().map_or(self.next, |kv| kv.create_revision),
                    mod_revision: self.next,
                    version: old.as_ref().map_or(0, |kv| kv.version) + 1,
                    lease: *lease,
                };
                self.change(key, Some(kv));
                OpResponse::Put(old.as_ref().map(Version::of))
            }
            Op::Amend { .. } => unreachable!("amendments are tested by script"),
            Op::Delete { range } => {
                let gone = within(&self.now, range);
                gone.iter().for_each(|kv| self.change(&kv.key, None));
                OpResponse::Delete(gone.iter().map(Version::of).collect())
            }
            Op::Range(query) if query.at == Revision(0) => {
                OpResponse::Range(answer(query, &self.now))
            }
            Op::Range(query) => OpResponse::Range(answer(query, self.model.at(query.at))),
            Op::Txn(txn) => OpResponse::Txn(self.txn(txn)),
        }
    }

    fn change(&mut self, key: &Bytes, new: Option<KeyValue>) {
        match &new {
            Some(kv) => self.now.insert(key.clone(), kv.clone()),
            None => self.now.remove(key),
        };
        // A revision is one step: what was before it, not what was within it.
        let old = self.before.get(key).cloned();
        self.events.push(Event { revision: self.next, key: key.clone(), new, old });
    }
}

/// What of a state is in a range.
pub fn within(state: &State, range: &KeyRange) -> Vec<KeyValue> {
    state.values().filter(|kv| range.contains(&kv.key)).cloned().collect()
}

fn answer(query: &Query, state: &State) -> RangeResult {
    let all = within(state, &query.range);
    let count = all.len();
    let fits =
        |(from, to): (Revision, Revision), at: Revision| from <= at && (to.0 == 0 || at <= to);
    let mut kvs: Vec<KeyValue> = all
        .into_iter()
        .filter(|kv| fits(query.modified, kv.mod_revision))
        .filter(|kv| fits(query.created, kv.create_revision))
        .collect();
    if let Some(order) = query.order {
        let key = |kv: &KeyValue| match order.by {
            OrderBy::Key => (0, kv.key.clone()),
            OrderBy::Version => (kv.version, Bytes::new()),
            OrderBy::Create => (kv.create_revision.0, Bytes::new()),
            OrderBy::Mod => (kv.mod_revision.0, Bytes::new()),
            OrderBy::Value => (0, kv.value.clone()),
        };
        match order.descending {
            true => kvs.sort_by_key(|kv| std::cmp::Reverse(key(kv))),
            false => kvs.sort_by_key(key),
        }
    }
    let limit = if query.limit == 0 { usize::MAX } else { query.limit };
    let more = query.part != Part::Count && kvs.len() > limit;
    kvs.truncate(limit);
    match query.part {
        Part::Whole => {}
        Part::Keys => kvs.iter_mut().for_each(|kv| kv.value = Bytes::new()),
        Part::Count => kvs.clear(),
    }
    RangeResult { kvs, count, more }
}

fn judge(compare: &Compare, kv: &KeyValue) -> bool {
    let ordering = match &compare.target {
        CompareTarget::Version(n) => kv.version.cmp(n),
        CompareTarget::Create(at) => kv.create_revision.cmp(at),
        CompareTarget::Mod(at) => kv.mod_revision.cmp(at),
        CompareTarget::Value(value) => kv.value.cmp(value),
        CompareTarget::Lease(id) => kv.lease.cmp(id),
    };
    match compare.op {
        CompareOp::Equal => ordering.is_eq(),
        CompareOp::NotEqual => ordering.is_ne(),
        CompareOp::Greater => ordering.is_gt(),
        CompareOp::Less => ordering.is_lt(),
    }
}
