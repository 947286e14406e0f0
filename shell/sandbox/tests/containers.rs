//! Real containers: what runs in them sees what CRI promises, and nothing is left of them.

mod support;

use std::fs;
use std::time::Duration;

use knarr_oci::cri::*;
use knarr_sandbox::Error;
use support::{World, can_run, output, probe};

#[test]
fn a_container_runs_logs_and_ends() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let sandbox = world.sandbox();
    let (status, out) = world.run(
        &sandbox,
        &probe(&[
            "echo",
            "hello",
            "err",
            "oops",
            "pid",
            "cat",
            "/proc/sys/kernel/hostname",
            "exit",
            "3",
        ]),
    );
    assert_eq!(out, "hello\npid=1\nprobe-host\n");
    assert_eq!((status.exit_code, status.reason.as_str()), (3, "Error"));
    assert!(status.started_at > 0 && status.finished_at >= status.started_at);
    world.finish();
}
