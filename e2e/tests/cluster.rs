//! Starting, dying, stopping and removing a cluster; and the situations in which it refuses.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::net::TcpListener;
use std::process::Command;

use knarr_e2e::{Machine, Outcome, Running, UP, alone};
use rustix::process::Signal;

mod manifests;
use manifests::{READY_3, nginx};

fn with_web(machine: &Machine) -> Running {
    let up = machine.up();
    machine.import("nginx");
    machine.apply(&nginx(3));
    machine.wait("deployment/web", READY_3);
    up
}

/// What must not change when knarr does: which Pods, which containers, restarted how often.
fn identities(machine: &Machine) -> Vec<String> {
    let row = "{.metadata.uid}/{.status.podIP}/{.status.containerStatuses[0].containerID}\
               /{.status.containerStatuses[0].restartCount}/{.status.phase}";
    let pods = machine.kubectl(&format!("get pods -o jsonpath={{range.items[*]}}{row},{{end}}"));
    let mut rows: Vec<_> = pods.trim_end_matches(',').split(',').map(str::to_owned).collect();
    rows.sort();
    rows
}

#[track_caller]
fn assert_one_sentence(refusal: Outcome, words: &[&str]) {
    let text = refusal.failure();
    let lines: Vec<_> = text.lines().filter(|line| !line.contains(" INFO ")).collect();
    assert_eq!(lines.len(), 1, "one sentence, not: {text}");
    assert!(lines[0].starts_with("knarr: "), "{text}");
    for word in words {
        assert!(lines[0].contains(word), "no {word:?} in {text}");
    }
}

#[test]
fn up_says_what_to_type_next() {
    alone(|machine| {
        let up = machine.start(UP);
        up.line("Ready", |line| line.starts_with("Ready"));
        let kubeconfig = machine.kubeconfig().display().to_string();
        up.line("the kubeconfig", |line| line.contains(&kubeconfig));
        up.line("what is next", |line| line.contains("kubectl apply"));
        machine.wait("node/node-1", "condition=Ready");
    });
}

#[test]
fn a_killed_knarr_loses_neither_pods_nor_acknowledged_writes() {
    alone(|machine| {
        let mut up = with_web(machine);
        let before = identities(machine);
        let many: String = (0..2000)
            .map(|n| format!("---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: map-{n}}}\n"))
            .collect();
        std::fs::write(machine.path("many.yaml"), many).unwrap();
        let file = machine.path("many.yaml").display().to_string();
        let mut creating = machine.follow(&format!("create -f {file}"));
        creating.line("the hundredth", |line| line == "configmap/map-100 created");
        up.end(Signal::KILL);
        creating.wait();
        let told = creating.output();
        let told: Vec<_> = told.lines().filter_map(|line| line.strip_suffix(" created")).collect();
        assert!(told.len() > 100 && told.len() < 2000, "killed at the wrong time: {}", told.len());
        let processes = machine.running_containers();
        assert_eq!(processes, 3, "containers died with knarr");

        let mut up = machine.up();
        let kept = machine.kubectl("get configmaps -o name");
        let lost: Vec<_> = told.iter().filter(|name| !kept.lines().any(|k| k == **name)).collect();
        assert!(lost.is_empty(), "acknowledged, and gone: {lost:?}");
        // A change that goes all the way round shows that the node has looked at its Pods.
        machine.kubectl("scale deployment/web --replicas=4");
        machine.wait("deployment/web", "jsonpath={.status.readyReplicas}=4");
        let after = identities(machine);
        let missing: Vec<_> = before.iter().filter(|row| !after.contains(row)).collect();
        assert!(missing.is_empty(), "{missing:?} not among {after:?}");

        assert!(up.end(Signal::TERM).success(), "a stop is no error");
        assert_eq!(machine.running_containers(), 4, "containers died with a stop");
    });
}

#[test]
fn a_node_notices_what_died_while_it_was_away() {
    alone(|machine| {
        let mut up = with_web(machine);
        let path = ".items[0].status.containerStatuses[0].containerID";
        let container = machine.value("pods", path);
        let pod = machine.value("pods", ".items[0].metadata.name");
        up.end(Signal::INT);
        machine.signal_container(&container, Signal::KILL);
        let _up = machine.up();
        let restarts = "jsonpath={.status.containerStatuses[0].restartCount}=1";
        machine.wait(&format!("pod/{pod}"), restarts);
        machine.wait(&format!("pod/{pod}"), "condition=Ready");
    });
}

#[test]
fn down_leaves_containers_and_drain_stops_them() {
    alone(|machine| {
        let mut up = with_web(machine);
        machine.knarr("status @data @root").success();
        machine.knarr("down @data @root").success();
        assert!(up.wait().success(), "a stop is no error");
        assert_eq!(machine.running_containers(), 3);
        machine.knarr("status @data @root").failure();
        machine.knarr("down --drain @data @root").success();
        assert_eq!(machine.running_containers(), 0);
        let _up = machine.up();
        machine.wait("deployment/web", READY_3);
        machine.knarr("reset --yes @data @root").success();
    });
}

#[test]
fn reset_leaves_the_machine_as_it_was() {
    alone(|machine| {
        let mut up = with_web(machine);
        machine.knarr("reset --yes @data @root").success();
        up.wait();
        machine.assert_as_before();
    });
}

#[test]
fn reset_removes_what_a_kill_amid_pod_starts_left() {
    alone(|machine| {
        let mut up = machine.up();
        machine.import("nginx");
        let pods = machine.follow("get pods -w");
        machine.apply(&nginx(20));
        pods.line("the first to run", |line| line.contains("Running"));
        up.end(Signal::KILL);
        machine.note_cgroups();
        assert!(machine.shims() > 0, "nothing had started: a poor test");
        machine.knarr("reset --yes @data @root").success();
        machine.assert_as_before();
    });
}

#[test]
fn reset_asks_first() {
    alone(|machine| {
        let _up = machine.up();
        assert_one_sentence(machine.knarr("reset @data @root"), &["--yes"]);
        machine.wait("node/node-1", "condition=Ready");
    });
}

#[test]
fn without_root_up_refuses() {
    alone(|machine| {
        let up = Outcome::of(&mut machine.command_as_nobody(UP));
        assert_one_sentence(up, &["root"]);
        machine.assert_as_before();
    });
}

#[test]
fn a_taken_port_is_named() {
    alone(|machine| {
        let _holder = TcpListener::bind("127.0.0.1:6443").unwrap();
        assert_one_sentence(machine.knarr(UP), &["6443", "--secure-port"]);
        machine.assert_as_before();
    });
}

#[test]
fn a_taken_node_port_is_named() {
    alone(|machine| {
        let _holder = TcpListener::bind("0.0.0.0:10250").unwrap();
        assert_one_sentence(machine.knarr(UP), &["10250", "--node-port"]);
        assert_eq!(machine.running_containers(), 0);
    });
}

#[test]
fn a_second_copy_refuses_and_the_first_goes_on() {
    alone(|machine| {
        let _up = machine.up();
        let second = machine.knarr(&format!("{UP} --secure-port 7443 --node-port 11250"));
        assert_one_sentence(second, &["another knarr", "--data-dir"]);
        machine.kubectl("create configmap still-there");
    });
}

#[test]
fn a_machine_without_control_groups_is_refused() {
    alone(|machine| {
        let status = Command::new("umount").args(["-R", "/sys/fs/cgroup"]).status().unwrap();
        assert!(status.success());
        let before = knarr_e2e::Snapshot::take();
        assert_one_sentence(machine.knarr(UP), &["control groups"]);
        let left = before.changes(&knarr_e2e::Snapshot::take());
        assert!(left.is_empty(), "{left:?}");
    });
}

#[test]
fn images_come_are_listed_and_go() {
    alone(|machine| {
        machine.import("nginx");
        machine.import("busybox");
        let list = machine.knarr("images ls @root").success();
        assert!(list.contains("docker.io/library/nginx") && list.contains("busybox"), "{list}");
        machine.knarr("images rm nginx:1 @root").success();
        let list = machine.knarr("images ls @root").success();
        assert!(!list.contains("nginx"), "{list}");
        let text = machine.knarr("images rm nginx:1 @root").failure();
        assert!(text.contains("nginx:1"), "{text}");
    });
}

/// kubectl checks a list itself, by the older OpenAPI document: the server has no such kind.
#[test]
fn a_list_of_objects_is_checked_and_created() {
    alone(|machine| {
        let server = machine.start("kube-apiserver @data @kubeconfig --bind-address 127.0.0.1");
        server.line("Ready", |line| line.starts_with("Ready"));
        let list = include_str!("manifests/list.yaml");
        let created = machine.kubectl_with("create -f -", list);
        assert_eq!(created, "configmap/c created\ndeployment.apps/d created\n");
        let applied = machine.kubectl_with("apply -f -", list);
        assert!(applied.contains("deployment.apps/d "), "{applied}");
        std::fs::write(machine.path("bad.yaml"), list.replace("data:", "date:")).unwrap();
        let bad = machine.path("bad.yaml").display().to_string();
        let refused = machine.try_kubectl(&format!("create -f {bad}")).failure();
        assert!(refused.contains("unknown field \"date\""), "{refused}");
        let paths = machine.kubectl("get --raw /openapi/v2");
        assert!(paths.starts_with("{"), "{}", &paths[..20]);
    });
}
