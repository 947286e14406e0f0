//! Clients that write, read and watch at once, on a store without threads whose disk and clock
//! misbehave by seed; and a checker that decides whether what they were told can be true. Seeds
//! differ in what they are short of: history that memory or only the disk keeps, or nobody; memory
//! that refuses writes; and stores that compact by themselves.
//!
//! * `run` – one run; `traffic` – what its clients ask for; `check` – the checker; `bad` –
//!   histories that the checker must refuse; `naive` – the model it believes; `room` – what that
//!   weighs.
//!
//! A failing seed says how to run it alone, and then shows its history: `KNARR_SEED=n`.
//! `KNARR_SEEDS=n` runs more of them.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

mod bad;
mod check;
#[path = "../../../../core/mvcc/tests/naive/mod.rs"]
mod naive;
mod room;
mod run;
mod traffic;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use knarr_store::sim::Fault;
use run::{Run, Seen};

const SEEDS: u64 = 4000;

/// Runs one seed; a failure says how to see it again.
fn seed(seed: u64) -> (u64, Seen) {
    let run = || Run::new(seed, Fault::None).play();
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        eprintln!(
            "replay with: KNARR_SEED={seed} cargo nextest run -p knarr-store --test linearizable \
             every_history_has_an_order"
        );
        resume_unwind(panic)
    })
}

fn from_env(name: &str) -> Option<u64> {
    Some(std::env::var(name).ok()?.parse().expect("a number"))
}

#[test]
fn every_history_has_an_order() {
    if let Some(only) = from_env("KNARR_SEED") {
        eprintln!("{:?}", seed(only));
        return;
    }
    let mut total = Seen::default();
    for number in 0..from_env("KNARR_SEEDS").unwrap_or(SEEDS) {
        let (_, mut seen) = seed(number);
        total.all().into_iter().zip(seen.all()).for_each(|(total, seen)| *total += *seen);
    }
    eprintln!("{total:?}");
    assert!(total.all().iter().all(|count| **count > 20), "the runs are too tame: {total:?}");
}

#[test]
fn the_same_seed_gives_the_same_history() {
    for number in 0..50 {
        assert_eq!(seed(number).0, seed(number).0, "seed {number}");
    }
    assert_ne!(seed(0).0, seed(1).0);
}

/// The runs themselves: on a disk whose syncs do nothing they must fail.
#[test]
fn a_disk_that_lies_is_found_out() {
    let found = (0..20).filter(|&number| {
        catch_unwind(AssertUnwindSafe(|| Run::new(number, Fault::SyncLies).play())).is_err()
    });
    let found = found.count();
    assert!(found >= 12, "only {found} of 20 runs noticed");
}
