//! Sessions with containers, as upstream's kubectl opens them: commands, attachments, copies,
//! logs, forwarded ports. Whoever opens one and goes away leaves nothing behind.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::io::Write;
use std::process::Stdio;

use knarr_e2e::{Machine, Outcome, Running, alone};

/// A Pod of busybox that runs a script, and more of its container.
fn pod(name: &str, script: &str, more: &str) -> String {
    format!(
        r#"{{"apiVersion": "v1", "kind": "Pod", "metadata": {{"name": "{name}"}}, "spec": {{
           "terminationGracePeriodSeconds": 0, "restartPolicy": "Never", "containers": [{{
           "name": "main", "image": "docker.io/library/busybox:1",
           "imagePullPolicy": "Never", "command": ["sh", "-c", {script:?}] {more} }}]}}}}"#
    )
}

/// A cluster with a Pod `box` that only waits.
fn with_box(machine: &Machine) -> Running {
    let up = machine.up();
    machine.import("busybox");
    machine.apply(&pod("box", "sleep 1000000", ""));
    machine.wait("pod/box", "condition=Ready");
    up
}

/// `kubectl exec`, with a script for the container's shell.
fn exec(machine: &Machine, flags: &str, script: &str, input: &[u8]) -> Outcome {
    let mut command = machine.kubectl_command(&format!("exec {flags} box --"));
    command.args(["sh", "-c", script]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).ok();
    Outcome::from(child.wait_with_output().unwrap())
}

#[test]
fn a_command_runs_with_its_streams_and_its_exit_code() {
    alone(|machine| {
        let _up = with_box(machine);
        let both = exec(machine, "", "echo out; echo err >&2; exit 7", b"");
        assert_eq!((both.out.as_str(), both.status.code()), ("out\n", Some(7)), "{both}");
        assert!(both.err.starts_with("err\n"), "{both}");
        assert!(both.err.contains("command terminated with exit code 7"), "{both}");
        let cat = exec(machine, "-i", "cat; echo end", b"one\ntwo");
        assert_eq!(cat.success(), "one\ntwoend\n");
        let missing = machine.try_kubectl("exec box -- no-such-program").failure();
        assert!(missing.contains("no-such-program"), "{missing}");
        let refused = machine.try_kubectl("exec box -c nobody -- true").failure();
        assert!(refused.contains("container nobody is not valid for pod box"), "{refused}");
    });
}
