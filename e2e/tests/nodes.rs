//! Several nodes on one machine: Pods of all reach each other, nodes are lost and come back, and
//! nothing stays behind.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::process::Command;

use knarr_e2e::{Machine, Running, UP, alone};
use rustix::process::Signal;

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

/// A Pod on a node, which tells whoever asks at port 80 from which address.
fn teller(name: &str, node: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: teller}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: busybox:1
    imagePullPolicy: Never
    command: [sh, -c, \"while true; do nc -l -p 80 -e sh -c 'echo {name} $NCAT_REMOTE_ADDR'; done\"]
"
    )
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
        machine.apply(&(teller("one", "node-1") + &teller("two", SECOND)));
        machine.wait("pod/one", "condition=Ready");
        machine.wait("pod/two", "condition=Ready");
        let address = |pod: &str| machine.value(&format!("pod/{pod}"), ".status.podIP");
        eprintln!("{} {}\n{}", address("one"), address("two"), ip("route"));
        eprintln!(
            "{:?}",
            machine.try_kubectl(&format!("exec one -- ping -c 1 -W 2 {}", address("two")))
        );
        eprintln!(
            "{:?}",
            machine.try_kubectl(&format!("exec two -- ping -c 1 -W 2 {}", address("one")))
        );
        assert!(up.end(Signal::TERM).success(), "a stop is no error");
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
