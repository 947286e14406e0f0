//! Several nodes on one machine: Pods of all reach each other, nodes are lost and come back, and
//! nothing stays behind.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::process::Command;

use knarr_e2e::{Machine, Running, UP, alone};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

mod manifests;
use manifests::nginx;

/// The first node is `node-1`; the second is named after it.
const SECOND: &str = "node-1-2";

fn two_nodes(machine: &Machine, more: &str) -> Running {
    let up = machine.start(&format!("{UP} --nodes 2 {more}"));
    up.line("Ready", |line| line.starts_with("Ready: nodes node-1, node-1-2"));
    up
}

/// Puts an image into both nodes' stores.
fn import(machine: &Machine, word: &str) {
    machine.import(word);
    let archive = machine.archive(word);
    let root = machine.path("root/var/lib/knarr/nodes").join(SECOND);
    let line = format!("images import {} --root-dir {}", archive.display(), root.display());
    machine.knarr(&line).success();
}

/// A Pod on a node that stays there whatever becomes of the node.
fn sleeper(name: &str, node: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  nodeName: {node}
  tolerations: [{{operator: Exists}}]
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: busybox:1
    imagePullPolicy: Never
    command: [sleep, \"3600\"]
"
    )
}

/// A Deployment whose Pods leave a lost node at once.
fn hasty(replicas: u32) -> String {
    let hasty = "spec:
      tolerations:
      - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute,
         tolerationSeconds: 1}
      terminationGracePeriodSeconds";
    nginx(replicas).replace("spec:\n      terminationGracePeriodSeconds", hasty)
}

/// Shorter than upstream's 50 s, and longer than a node lets pass between two signs of life (10 s).
const GRACE: &str = "--node-monitor-grace-period 13s";

/// The process of the second node's agent.
fn agent(machine: &Machine) -> Pid {
    let root = machine.path("root/var/lib/knarr/nodes").join(SECOND);
    let text = std::fs::read_to_string(root.join("var/lib/knarr/pid")).unwrap();
    Pid::from_raw(text.trim().parse().unwrap()).unwrap()
}

/// Waits until a process has ended.
fn until_gone(process: Pid) {
    let end = std::time::Instant::now() + knarr_e2e::PATIENCE;
    while test_kill_process(process).is_ok() {
        assert!(std::time::Instant::now() < end, "process {process:?} does not end");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

fn ip(args: &str) -> String {
    let done = Command::new("ip").args(args.split(' ')).output().unwrap();
    assert!(done.status.success(), "ip {args}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

#[test]
fn two_nodes_come_up_and_go_without_a_trace() {
    alone(|machine| {
        let mut up = two_nodes(machine, "");
        import(machine, "busybox");
        machine.apply(&(sleeper("one", "node-1") + &sleeper("two", SECOND)));
        machine.wait("pod/one", "condition=Ready");
        machine.wait("pod/two", "condition=Ready");
        let before = machine.values("pods", ".items[*].status.containerStatuses[0].containerID");
        let address = machine.value("pod/two", ".status.podIP");
        machine.kubectl(&format!("exec one -- ping -c 1 -W 2 {address}"));
        let told = machine.knarr("status @data @root").success();
        assert!(told.contains("node node-1-2: running"), "{told}");
        assert!(up.end(Signal::TERM).success(), "a stop is no error");
        let told = machine.knarr("status @data @root").failure();
        assert!(told.contains("not running"), "{told}");

        let mut up = two_nodes(machine, "");
        machine.kubectl(&format!("exec one -- ping -c 1 -W 2 {address}"));
        let after = machine.values("pods", ".items[*].status.containerStatuses[0].containerID");
        assert_eq!(after, before, "containers were not taken over");
        machine.knarr("down @data @root").success();
        up.wait();
        machine.knarr("down --drain @data @root").success();
        let up = two_nodes(machine, "");
        // Killed, the first takes the further nodes along: what they hold on to is gone.
        let lost = agent(machine);
        drop(up);
        until_gone(lost);
        machine.knarr("reset --yes @data @root").success();
        machine.assert_as_before();
    });
}

#[test]
fn the_network_keeps_its_nine_principles_and_a_lost_route_is_found() {
    alone(|machine| {
        let up = two_nodes(machine, "");
        import(machine, "busybox");
        // The nodes say which images they have as soon as they have them; the check asks them.
        let check = "check network --kubeconfig @admin.kubeconfig --image busybox:1";
        let told = machine.knarr(check).success();
        let kept = told.lines().filter(|line| line.starts_with("ok ")).count();
        assert_eq!((kept, told.lines().count()), (9, 9), "{told}");
        assert_eq!(machine.kubectl("get namespaces -o name").matches("knarr-check").count(), 0);

        let route = ip("route show proto 107");
        ip(&format!("route del {}", route.split(" proto").next().unwrap().trim()));
        let mut failing = machine.command(check);
        let outcome = knarr_e2e::Outcome::of(&mut failing);
        assert!(!outcome.status.success(), "{outcome}");
        assert!(
            outcome.out.contains("FAILED containers reach containers without NAT"),
            "{outcome}"
        );
        assert!(outcome.out.contains("ok     every Pod has an IP of its own"), "{outcome}");
        assert_eq!(machine.kubectl("get namespaces -o name").matches("knarr-check").count(), 0);
        drop(up);
        machine.knarr("reset --yes @data @root").success();
        machine.assert_as_before();
    });
}

#[test]
fn pods_and_services_have_both_families() {
    alone(|machine| {
        // As on any machine: who has no route at all never comes to the packet rules.
        ip("address add fd99::10/64 dev uplink nodad");
        ip("-6 route add default via fd99::1");
        let more = "--cluster-cidr 10.42.0.0/16,fd42::/48 --service-cidr 10.43.0.0/16,fd43::/108";
        let up = two_nodes(machine, more);
        import(machine, "busybox");
        machine.apply(&sleeper("two", SECOND));
        machine.wait("pod/two", "condition=Ready");
        let both = |path: &str| {
            let ips = machine.values("pod/two", path);
            assert!(
                matches!(&ips[..], [v4, v6] if v4.contains('.') && v6.contains(':')),
                "{ips:?}"
            );
        };
        both(".status.podIPs[*].ip");
        both(".status.hostIPs[*].ip");
        let check = "check network --kubeconfig @admin.kubeconfig --image busybox:1";
        let told = machine.knarr(check).success();
        assert_eq!(told.lines().filter(|line| line.starts_with("ok ")).count(), 9, "{told}");
        drop(up);
        machine.knarr("reset --yes @data @root").success();
        ip("-6 route del default via fd99::1");
        ip("address del fd99::10/64 dev uplink");
        machine.assert_as_before();
    });
}

#[test]
fn a_killed_node_loses_its_pods_to_others_and_comes_back() {
    alone(|machine| {
        let mut up = two_nodes(machine, GRACE);
        import(machine, "nginx");
        machine.kubectl("cordon node-1");
        machine.apply(&hasty(1));
        machine.wait("deployment/web", "jsonpath={.status.readyReplicas}=1");
        machine.kubectl("uncordon node-1");
        let old = machine.value("pods", ".items[0].metadata.name");
        let container = machine.value("pods", ".items[0].status.containerStatuses[0].containerID");
        assert_eq!(machine.value(&format!("pod/{old}"), ".spec.nodeName"), SECOND);

        let pods = machine.follow("get pods -w -o wide");
        kill_process(agent(machine), Signal::KILL).unwrap();
        machine.wait(&format!("node/{SECOND}"), "condition=Ready=Unknown");
        pods.line("another on the first node", |line| {
            line.contains(" Running ") && line.split_whitespace().any(|word| word == "node-1")
        });
        let taints = machine.values(&format!("node/{SECOND}"), ".spec.taints[*].key");
        assert!(taints.contains(&"node.kubernetes.io/unreachable".to_owned()), "{taints:?}");
        // Nobody could end the old one.
        machine.container_process(&container);
        let doomed = machine.value(&format!("pod/{old}"), ".metadata.deletionTimestamp");
        assert!(!doomed.is_empty());

        up.end(Signal::TERM);
        let _up = two_nodes(machine, GRACE);
        machine.wait(&format!("pod/{old}"), "delete");
        machine.wait(&format!("node/{SECOND}"), "condition=Ready");
        assert_eq!(machine.running_containers(), 1, "the old one is still there");
        let taints = machine.values(&format!("node/{SECOND}"), ".spec.taints[*].key");
        assert!(taints.is_empty(), "{taints:?}");
    });
}

#[test]
fn a_node_whose_link_was_cut_is_itself_again_afterwards() {
    alone(|machine| {
        let _up = two_nodes(machine, GRACE);
        import(machine, "busybox");
        machine.apply(&(sleeper("one", "node-1") + &sleeper("two", SECOND)));
        machine.wait("pod/one", "condition=Ready");
        machine.wait("pod/two", "condition=Ready");
        let container = machine.value("pod/two", ".status.containerStatuses[0].containerID");
        let links = ip("-o link show type bridge_slave");
        let links = if links.is_empty() { ip("-o link show type veth") } else { links };
        let slave = links.lines().find(|line| line.contains("master kn")).unwrap();
        let link = slave.split(": ").nth(1).unwrap().split('@').next().unwrap();
        ip(&format!("link set {link} down"));
        machine.wait(&format!("node/{SECOND}"), "condition=Ready=Unknown");
        ip(&format!("link set {link} up"));
        machine.wait(&format!("node/{SECOND}"), "condition=Ready");
        let address = machine.value("pod/two", ".status.podIP");
        machine.kubectl(&format!("exec one -- ping -c 1 -W 2 {address}"));
        let after = machine.value("pod/two", ".status.containerStatuses[0].containerID");
        assert_eq!(after, container);
    });
}
