//! The keyspace against a naive model that keeps every state it ever had, and the codec against
//! itself and against garbage.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::collections::BTreeMap;

use bytes::Bytes;
use knarr_mvcc::*;
use proptest::collection::vec;
use proptest::prelude::*;

type State = BTreeMap<Bytes, KeyValue>;

/// Every state by revision, and every change.
struct Model {
    states: Vec<(Revision, State)>,
    events: Vec<Event>,
    compacted: Revision,
}

impl Model {
    fn now(&self) -> (Revision, &State) {
        let (revision, state) = self.states.last().unwrap();
        (*revision, state)
    }

    fn at(&self, at: Revision) -> &State {
        &self.states.iter().rev().find(|(revision, _)| *revision <= at).unwrap().1
    }

    fn txn(&mut self, txn: &Txn) -> Result<TxnResponse, Refusal> {
        let (revision, before) = self.now();
        let next = Revision(revision.0 + 1);
        let mut run = Run { before: before.clone(), now: before.clone(), events: vec![], next };
        let mut response = run.txn(txn);
        let made = if run.events.is_empty() { revision } else { next };
        if made == next {
            self.states.push((next, run.now));
            self.events.extend(run.events);
        }
        fix(&mut response, made);
        Ok(response)
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

struct Run {
    before: State,
    now: State,
    events: Vec<Event>,
    next: Revision,
}

impl Run {
    fn txn(&mut self, txn: &Txn) -> TxnResponse {
        let succeeded = txn.compare.iter().all(|compare| self.holds(compare));
        let ops = if succeeded { &txn.success } else { &txn.failure };
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
                OpResponse::Put(old)
            }
            Op::Amend { .. } => unreachable!("amendments are tested by script"),
            Op::Delete { range } => {
                let gone = self.read(range);
                gone.iter().for_each(|kv| self.change(&kv.key, None));
                OpResponse::Delete(gone)
            }
            Op::Range(query) => OpResponse::Range(self.query(query)),
            Op::Txn(txn) => OpResponse::Txn(self.txn(txn)),
        }
    }

    fn read(&self, range: &KeyRange) -> Vec<KeyValue> {
        self.now.values().filter(|kv| range.contains(&kv.key)).cloned().collect()
    }

    fn query(&self, query: &Query) -> RangeResult {
        let all = self.read(&query.range);
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

fn key() -> impl Strategy<Value = Bytes> {
    "[abc]{1,2}".prop_map(Bytes::from)
}

fn range() -> impl Strategy<Value = KeyRange> {
    prop_oneof![
        key().prop_map(KeyRange::single),
        (key(), key()).prop_map(|(start, end)| KeyRange { start, end: RangeEnd::Before(end) }),
        key().prop_map(|start| KeyRange { start, end: RangeEnd::Unbounded }),
        "[abc]{0,1}".prop_map(KeyRange::prefix),
    ]
}

fn target() -> impl Strategy<Value = CompareTarget> {
    prop_oneof![
        (0..4u64).prop_map(CompareTarget::Version),
        (0..9u64).prop_map(|at| CompareTarget::Create(Revision(at))),
        (0..9u64).prop_map(|at| CompareTarget::Mod(Revision(at))),
        "[xy]{0,1}".prop_map(|value| CompareTarget::Value(value.into())),
        (-1..2i64).prop_map(|id| CompareTarget::Lease(LeaseId(id))),
    ]
}

fn compare() -> impl Strategy<Value = Compare> {
    let op = prop_oneof![
        Just(CompareOp::Equal),
        Just(CompareOp::NotEqual),
        Just(CompareOp::Greater),
        Just(CompareOp::Less),
    ];
    (range(), op, target()).prop_map(|(range, op, target)| Compare { range, op, target })
}

fn query() -> impl Strategy<Value = Query> {
    let by = prop_oneof![
        Just(OrderBy::Key),
        Just(OrderBy::Version),
        Just(OrderBy::Create),
        Just(OrderBy::Mod),
        Just(OrderBy::Value),
    ];
    let order = proptest::option::of(
        (by, any::<bool>()).prop_map(|(by, descending)| Order { by, descending }),
    );
    let bounds = || (0..6u64, 0..6u64).prop_map(|(from, to)| (Revision(from), Revision(to)));
    let bounds = || prop_oneof![2 => Just((Revision(0), Revision(0))), 1 => bounds()];
    let part = prop_oneof![3 => Just(Part::Whole), 1 => Just(Part::Keys), 1 => Just(Part::Count)];
    (range(), 0..3usize, order, bounds(), bounds(), part).prop_map(
        |(range, limit, order, modified, created, part)| Query {
            limit,
            order,
            modified,
            created,
            part,
            ..Query::of(range)
        },
    )
}

/// Leases in transactions are tested by script; unknown ones would refuse nearly all of these.
fn txn() -> impl Strategy<Value = Txn> {
    let leaf = prop_oneof![
        3 => (key(), "[xy]{0,2}").prop_map(|(key, value)| {
            Op::Put { key, value: value.into(), lease: LeaseId(0) }
        }),
        1 => range().prop_map(|range| Op::Delete { range }),
        1 => query().prop_map(Op::Range),
    ];
    let op = leaf.prop_recursive(3, 12, 3, |op| {
        (vec(compare(), 0..2), vec(op.clone(), 0..3), vec(op, 0..3))
            .prop_map(|(compare, success, failure)| Op::Txn(Txn { compare, success, failure }))
    });
    (vec(compare(), 0..2), vec(op.clone(), 0..4), vec(op, 0..2))
        .prop_map(|(compare, success, failure)| Txn { compare, success, failure })
}

#[derive(Clone, Debug)]
enum Step {
    Txn(Txn),
    Compact(u64),
    Trim(usize),
    Forget(usize, usize),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => txn().prop_map(Step::Txn),
        1 => (0..20u64).prop_map(Step::Compact),
        1 => (0..4000usize).prop_map(Step::Trim),
        1 => (0..4000usize, 0..5usize).prop_map(|(budget, limit)| Step::Forget(budget, limit)),
        1 => Just(Step::Restart),
    ]
}

fn restart(keyspace: &Keyspace) -> Keyspace {
    let mut restore = Restore::new();
    for item in keyspace.snapshot() {
        restore.push(Item::decode(&item.encode()).unwrap()).unwrap();
    }
    restore.finish().unwrap()
}

fn same(keyspace: &Keyspace, model: &Model) {
    let all = KeyRange::prefix("");
    let (newest, _) = model.now();
    assert_eq!(keyspace.revision(), newest);
    let oldest = keyspace.oldest_readable();
    assert!(oldest >= model.compacted);
    for at in oldest.0.max(1)..=newest.0 {
        let expected: Vec<KeyValue> = model.at(Revision(at)).values().cloned().collect();
        let found = keyspace.range(&all, Revision(at), 0).unwrap();
        assert_eq!(found.kvs, expected, "at {at}");
    }
    if oldest.0 > 1 {
        let error = keyspace.range(&all, Revision(oldest.0 - 1), 0);
        assert_eq!(error, Err(ReadError::Compacted(oldest)));
    }
    for at in oldest.0.max(1)..newest.0 {
        let mut undo = Undo::new(all.clone());
        let since = keyspace.events(&all, Revision(at), newest, usize::MAX).unwrap();
        since.events.into_iter().for_each(|event| undo.push(event));
        let expected: Vec<KeyValue> = model.at(Revision(at)).values().cloned().collect();
        assert_eq!(undo.finish(keyspace.range(&all, newest, 0).unwrap().kvs), expected, "at {at}");
    }
    let mut cursor = oldest;
    let mut seen = Vec::new();
    while cursor < newest {
        let batch = keyspace.events(&all, cursor, newest, 300).unwrap();
        assert!(batch.next > cursor, "a batch makes progress");
        cursor = batch.next;
        seen.extend(batch.events);
    }
    let expected: Vec<Event> =
        model.events.iter().filter(|event| event.revision > oldest).cloned().collect();
    assert_eq!(seen, expected);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 250, failure_persistence: None, ..Default::default()
    })]

    #[test]
    fn the_keyspace_is_the_model(steps in vec(step(), 1..25)) {
        let states = vec![(Revision(1), State::new())];
        let mut model = Model { states, events: vec![], compacted: Revision(0) };
        let mut keyspace = Keyspace::new();
        for (index, step) in (1..).zip(steps) {
            match step {
                Step::Txn(txn) => {
                    match keyspace.apply(index, &Command::Txn(txn.clone())) {
                        Ok(answer) => prop_assert_eq!(Ok(answer), model.txn(&txn).map(Answer::Txn)),
                        Err(refusal) => prop_assert_eq!(refusal, Refusal::DuplicateKey),
                    }
                }
                Step::Compact(at) => {
                    let revision = Revision(at);
                    let valid = revision > model.compacted && revision <= model.now().0;
                    let outcome = keyspace.apply(index, &Command::Compact { revision });
                    prop_assert_eq!(outcome.is_ok(), valid);
                    model.compacted = if valid { revision } else { model.compacted };
                }
                Step::Trim(budget) => {
                    keyspace.trim(budget);
                    prop_assert!(keyspace.history_bytes() <= budget);
                }
                Step::Forget(budget, limit) => {
                    let before = keyspace.history_bytes();
                    let more = keyspace.forget(budget, limit);
                    prop_assert!(more || keyspace.history_bytes() <= budget);
                    prop_assert!(limit == 0 || !more || keyspace.history_bytes() < before);
                }
                Step::Restart => keyspace = restart(&keyspace),
            }
            same(&keyspace, &model);
        }
    }

    #[test]
    fn commands_survive_their_bytes(txn in txn(), id: i64, ttl_secs: i64, now: u64, at: u64) {
        let commands = [
            Command::Txn(txn),
            Command::Compact { revision: Revision(at) },
            Command::LeaseGrant { id: LeaseId(id), ttl_secs, now },
            Command::LeaseRevoke { id: LeaseId(id) },
            Command::Settings(Change {
                expect: now,
                entries: vec![("a".into(), None), ("b".into(), Some("c".into()))],
            }),
            Command::Under {
                settings: at,
                command: Box::new(Command::LeaseRevoke { id: LeaseId(id) }),
            },
            Command::Time { wall_ms: now },
        ];
        for command in commands {
            let bytes = command.encode();
            prop_assert_eq!(Command::decode(&bytes), Ok(command));
            for cut in 0..bytes.len() {
                prop_assert!(Command::decode(&bytes[..cut]).is_err());
            }
            let longer = [&bytes[..], &[0]].concat();
            prop_assert_eq!(Command::decode(&longer), Err(CodecError::Trailing));
        }
    }

    #[test]
    fn changed_bytes_never_panic(txn in txn(), at: prop::sample::Index, byte: u8) {
        let mut bytes = Command::Txn(txn).encode();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(command) = Command::decode(&bytes) {
            prop_assert!(Command::decode(&command.encode()).is_ok());
            let _ = Keyspace::new().apply(1, &command);
        }
    }

    #[test]
    fn garbage_never_panics(mut bytes in vec(any::<u8>(), 0..200)) {
        let _ = Command::decode(&bytes);
        bytes.insert(0, 1);
        let _ = Command::decode(&bytes);
        let _ = Item::decode(&bytes);
    }
}

#[test]
fn nesting_has_a_limit() {
    let nest = |depth| {
        (1..depth)
            .fold(Txn::default(), |txn, _| Txn { success: vec![Op::Txn(txn)], ..Txn::default() })
    };
    let deepest = Command::Txn(nest(MAX_TXN_DEPTH));
    assert_eq!(deepest.check(), Ok(()));
    assert_eq!(Command::decode(&deepest.encode()), Ok(deepest));
    let deeper = Command::Txn(nest(MAX_TXN_DEPTH + 1));
    assert_eq!(deeper.check(), Err(Refusal::TooDeep));
    assert_eq!(Command::decode(&deeper.encode()), Err(CodecError::TooDeep));
}
