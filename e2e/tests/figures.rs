//! How fast and how small: prints figures, asserts nothing. Run by hand on a release build, see
//! `docs/benchmarks.md`.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::fs;
use std::time::{Duration, Instant};

use knarr_e2e::{Machine, Snapshot, alone};

mod manifests;
use manifests::nginx;

/// Proportional set size of all knarr processes, in KiB, and their number.
fn memory() -> (u64, usize) {
    let ours = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let program = line.split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(program).contains("knarr")
    };
    let this = i32::try_from(std::process::id()).unwrap();
    let pss = |pid: i32| {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        let line = text.lines().find(|line| line.starts_with("Pss:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    let pids = Snapshot::pids().into_iter().filter(|pid| *pid != this).filter(ours);
    let sizes: Vec<u64> = pids.filter_map(pss).collect();
    (sizes.iter().sum(), sizes.len())
}

fn say(what: &str, value: impl std::fmt::Display) {
    eprintln!("figure | {what:<48} | {value}");
}

/// Time from the beginning of an apply until the watch has shown that many running Pods.
fn until_running(machine: &Machine, replicas: u32) -> Vec<Duration> {
    // A named field tells each change once; it is read as it comes.
    let watch = machine
        .follow("get pods -w --no-headers -o custom-columns=N:.metadata.name,P:.status.phase");
    let began = Instant::now();
    machine.apply(&nginx(replicas));
    let mut running = std::collections::BTreeSet::new();
    let mut times = Vec::new();
    while times.len() < replicas as usize {
        let line = watch.line("Running", |line| line.ends_with("Running"));
        if running.insert(line) {
            times.push(began.elapsed());
        }
    }
    times
}

#[test]
#[ignore = "prints figures; run on a release build and a quiet machine"]
fn figures() {
    alone(|machine| {
        let began = Instant::now();
        let _up = machine.up();
        say("start to Ready", format!("{:?}", began.elapsed()));
        machine.import("nginx");
        let first = until_running(machine, 1);
        say("apply (kubectl's own time in it) to first Running", format!("{:?}", first[0]));
        machine.kubectl("delete deployment web --cascade=foreground --timeout=60s");
        let (pss, count) = memory();
        say("memory idle, PSS of all knarr processes", format!("{pss} KiB in {count}"));
        let thirty = until_running(machine, 30);
        say("30 Pods at once, apply to all Running", format!("{:?}", thirty[29]));
        say("30 Pods at once, p50", format!("{:?}", thirty[14]));
        let (pss, count) = memory();
        say("memory with 30 Pods, PSS of all knarr processes", format!("{pss} KiB in {count}"));
    });
}
