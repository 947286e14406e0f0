//! The engine's promises: the own-writes gate, back-off, timers.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use jiff::{SignedDuration, Timestamp};
use knarr_api::{ObjectKey, Resource};
use knarr_reconcile::{
    Change, Config, Controller, Ctx, Engine, Job, Key, Outcome, Plan, View, Wake, Watch, Write,
    Written,
};
use serde_json::json;

const THINGS: Resource = Resource::new("v1", "configmaps");

/// A row that counts up to three, one write at a time, in a label.
fn counter() -> Controller {
    fn reconcile(view: &View, key: &Key, ctx: &Ctx<'_>) -> Plan {
        let Some(row) = view.get(THINGS, &key.object) else { return Plan::none() };
        let at: u64 = row.facts.labels["n"].parse().unwrap();
        match (at, ctx.refused) {
            (_, Some("never")) => Plan::none().again_after(core::time::Duration::from_secs(60)),
            (3, _) => Plan::none(),
            (at, _) => {
                let body = json!({"metadata": {"labels": {"n": (at + 1).to_string()}}});
                Plan::writes(vec![Write::patch_exact(THINGS, row, body)])
            }
        }
    }
    let watches = vec![Watch { resource: THINGS, wake: Wake::Itself }];
    Controller { name: "counter", user: "x", watches, reconcile }
}

fn thing(n: u64, revision: u64) -> Change {
    let tree = json!({"metadata": {"name": "a", "namespace": "x", "uid": "u",
        "labels": {"n": n.to_string()}}});
    Change::Put(serde_json::to_vec(&tree).unwrap().into(), revision)
}

fn now() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

fn started() -> Engine {
    let mut engine = Engine::new(vec![counter()], Config::default());
    engine.handle(THINGS, &thing(0, 5));
    assert!(engine.poll(now(), 0).is_none(), "nothing runs before the view is synced");
    engine.handle(THINGS, &Change::Synced(5));
    engine
}

fn next(engine: &mut Engine) -> Option<Job> {
    engine.poll(now(), 0)
}

#[test]
fn a_key_never_runs_on_a_view_older_than_its_writes() {
    let mut engine = started();
    let job = next(&mut engine).unwrap();
    engine.finish(&job, Outcome::Done(vec![Written::At(THINGS, 7)]), now());
    assert!(next(&mut engine).is_none());
    // Somebody else's change is not enough, even to the same object.
    engine.handle(THINGS, &thing(0, 6));
    assert!(next(&mut engine).is_none());
    engine.handle(THINGS, &thing(1, 7));
    assert!(next(&mut engine).is_some());
}

#[test]
fn the_gate_holds_while_a_watch_begins_anew() {
    let mut engine = started();
    let job = next(&mut engine).unwrap();
    engine.handle(THINGS, &Change::Restarted);
    engine.finish(&job, Outcome::Done(vec![Written::At(THINGS, 9)]), now());
    engine.handle(THINGS, &thing(0, 5));
    engine.handle(THINGS, &Change::Synced(8));
    assert!(next(&mut engine).is_none(), "the list was older than the write");
    engine.handle(THINGS, &thing(1, 9));
    assert!(next(&mut engine).is_some());
}

#[test]
fn a_deleted_object_is_waited_for_by_uid() {
    let mut engine = started();
    let job = next(&mut engine).unwrap();
    let gone = Written::Gone(THINGS, ObjectKey::new("x", "a"), "u".into());
    engine.finish(&job, Outcome::Done(vec![gone]), now());
    engine.handle(THINGS, &thing(2, 6));
    assert!(next(&mut engine).is_none());
    let Change::Put(bytes, _) = thing(2, 6) else { unreachable!() };
    engine.handle(THINGS, &Change::Deleted(bytes, 7));
    engine.handle(THINGS, &thing(0, 8));
    assert!(next(&mut engine).is_some());
}

#[test]
fn a_running_key_does_not_run_twice() {
    let mut engine = started();
    let job = next(&mut engine).unwrap();
    engine.handle(THINGS, &thing(1, 6));
    assert!(next(&mut engine).is_none());
    engine.finish(&job, Outcome::Done(vec![]), now());
    assert!(next(&mut engine).is_some(), "what came meanwhile is looked at");
}

#[test]
fn a_refused_plan_waits_and_is_told_why() {
    let mut engine = started();
    let job = next(&mut engine).unwrap();
    engine.finish(&job, Outcome::Failed(vec![], Some("never".into())), now());
    engine.handle(THINGS, &thing(0, 6));
    assert!(next(&mut engine).is_none(), "a wake does not shorten the wait");
    let later = engine.deadline().unwrap();
    assert_eq!(later.duration_since(now()), SignedDuration::from_millis(5));
    assert!(engine.poll(later, 0).is_none());
    let timer = engine.deadline().unwrap();
    assert_eq!(timer.duration_since(later), SignedDuration::from_secs(60));
}

#[test]
fn failures_wait_twice_as_long_each_time() {
    let mut engine = started();
    let mut at = now();
    for wait in [5, 10, 20, 40] {
        let job = engine.poll(at, 0).unwrap();
        engine.finish(&job, Outcome::Failed(vec![], None), at);
        let next = engine.deadline().unwrap();
        assert_eq!(next.duration_since(at), SignedDuration::from_millis(wait));
        at = next;
    }
}

#[test]
fn indexes_follow_their_objects() {
    let put = |owners: serde_json::Value, revision| {
        let tree = json!({"metadata": {"name": "p", "namespace": "x", "uid": "p",
            "ownerReferences": owners}});
        Change::Put(serde_json::to_vec(&tree).unwrap().into(), revision)
    };
    let mut view = View::new([THINGS]);
    view.apply(THINGS, &put(json!([]), 1));
    assert_eq!(view.orphans(THINGS, "x").count(), 1);
    assert_eq!(view.orphans(THINGS, "w").count(), 0);
    let owner = json!([{"uid": "o", "controller": true}, {"uid": "q"}]);
    view.apply(THINGS, &put(owner, 2));
    assert_eq!(view.orphans(THINGS, "x").count(), 0);
    assert_eq!(view.controlled_by(THINGS, "o").count(), 1);
    assert_eq!(view.dependents("q").count(), 1);
    view.apply(THINGS, &Change::Restarted);
    view.apply(THINGS, &Change::Synced(3));
    assert_eq!(view.dependents("q").count() + view.controlled_by(THINGS, "o").count(), 0);
}
