//! The smoke test, twice: everything in one process, and a process for each role. It guards
//! against shortcuts that exist only inside one process.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::fs;

use knarr_e2e::{Machine, Running, alone};
use rustix::process::Signal;

mod manifests;
use manifests::{READY_3, nginx};

/// What a cluster must do, however its roles are spread over processes.
fn smoke(machine: &Machine) {
    machine.wait("node/node-1", "condition=Ready");
    machine.import("nginx");
    machine.apply(&nginx(3));
    machine.kubectl("rollout status deployment/web --timeout=60s");
    machine.wait("deployment/web", READY_3);
    for address in machine.values("pods", ".items[*].status.podIP") {
        machine.page(&address);
    }
    let pod = machine.value("pods", ".items[0].metadata.name");
    assert!(machine.kubectl(&format!("logs {pod}")).contains("GET / HTTP/1.0"));
    machine.kubectl("delete deployment web --cascade=foreground --timeout=60s");
    assert_eq!(machine.kubectl("get pods,rs -o name"), "");
    machine.kubectl("create namespace brief");
    machine.wait("serviceaccount/default -n brief", "create");
    machine.kubectl("delete namespace brief --timeout=60s");
}

const SERVER: &str = "@data @kubeconfig --bind-address 127.0.0.1";

/// Waits until an API server answers that it is ready.
fn until_ready(machine: &Machine, server: &Running) {
    server.line("Ready", |line| line.starts_with("Ready"));
    assert_eq!(machine.kubectl("get --raw /readyz"), "ok");
}

fn agent(machine: &Machine) -> Running {
    let token = fs::read_to_string(machine.path("data/token")).unwrap();
    let line = format!(
        "agent --server https://127.0.0.1:6443 --token {} --node-name node-1 @root",
        token.trim()
    );
    let agent = machine.start(&line);
    agent.line("Joined", |line| line.starts_with("Joined"));
    agent
}

#[test]
fn everything_in_one_process() {
    alone(|machine| {
        let _up = machine.up();
        smoke(machine);
    });
}

#[test]
fn a_process_for_each_role() {
    alone(|machine| {
        let server = machine.start(&format!("kube-apiserver {SERVER}"));
        until_ready(machine, &server);
        let _manager = machine.start(
            "kube-controller-manager --kubeconfig @data/controller-manager.kubeconfig \
             --pki-dir @data/pki",
        );
        let _scheduler = machine.start("kube-scheduler --kubeconfig @data/scheduler.kubeconfig");
        let _agent = agent(machine);
        smoke(machine);
    });
}

#[test]
fn a_server_without_root_and_an_agent_elsewhere() {
    alone(|machine| {
        let data = machine.path("nobody");
        fs::create_dir(&data).unwrap();
        std::os::unix::fs::chown(&data, Some(65534), Some(65534)).unwrap();
        let line = "server --data-dir @nobody/data --kubeconfig @nobody/admin.kubeconfig \
                    --bind-address 127.0.0.1";
        let server = Running::start("server", &mut machine.command_as_nobody(line));
        server.line("ready", |line| line.starts_with("Ready"));
        fs::copy(machine.path("nobody/admin.kubeconfig"), machine.kubeconfig()).unwrap();
        std::os::unix::fs::symlink(machine.path("nobody/data"), machine.path("data")).unwrap();
        let _agent = agent(machine);
        smoke(machine);
    });
}

#[test]
fn each_role_comes_back_after_a_kill() {
    alone(|machine| {
        let server_line = format!("kube-apiserver {SERVER}");
        let mut server = machine.start(&server_line);
        until_ready(machine, &server);
        let manager_line = "kube-controller-manager --pki-dir @data/pki \
                            --kubeconfig @data/controller-manager.kubeconfig";
        let scheduler_line = "kube-scheduler --kubeconfig @data/scheduler.kubeconfig";
        let mut manager = machine.start(manager_line);
        let mut scheduler = machine.start(scheduler_line);
        let mut agent_process = agent(machine);
        machine.import("nginx");
        machine.apply(&nginx(1));
        machine.wait("deployment/web", "condition=Available");
        for process in [&mut server, &mut manager, &mut scheduler, &mut agent_process] {
            process.end(Signal::KILL);
        }
        let server = machine.start(&server_line);
        until_ready(machine, &server);
        let _manager = machine.start(manager_line);
        let _scheduler = machine.start(scheduler_line);
        let _agent = agent(machine);
        machine.kubectl("scale deployment/web --replicas=3");
        machine.wait("deployment/web", READY_3);
    });
}

#[test]
fn an_agent_with_a_wrong_token_is_refused() {
    alone(|machine| {
        let server = machine.start(&format!("server {SERVER}"));
        until_ready(machine, &server);
        let wrong = "agent --server https://127.0.0.1:6443 --token nonsense --node-name n @root";
        let text = machine.knarr(wrong).failure();
        assert!(text.contains("knarr: ") && text.contains("token"), "{text}");
        let token = fs::read_to_string(machine.path("data/token")).unwrap();
        let (front, secret) = token.trim().rsplit_once('.').unwrap();
        let other: String = secret.chars().map(|c| if c == 'a' { 'b' } else { 'a' }).collect();
        let wrong = format!(
            "agent --server https://127.0.0.1:6443 --token {front}.{other} --node-name n @root"
        );
        machine.knarr(&wrong).failure();
        assert_eq!(machine.kubectl("get nodes -o name"), "");
    });
}

#[test]
fn health_and_metrics_are_served() {
    alone(|machine| {
        let _up = machine.up();
        for path in ["/healthz", "/livez", "/readyz"] {
            assert_eq!(machine.kubectl(&format!("get --raw {path}")), "ok", "{path}");
        }
        let metrics = machine.kubectl("get --raw /metrics");
        assert!(metrics.contains("apiserver_request_total"), "{metrics}");
    });
}
