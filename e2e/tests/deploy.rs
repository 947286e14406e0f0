//! The main job: a Deployment of a real nginx, seen and changed with upstream's kubectl.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use knarr_e2e::{Machine, alone};
use rustix::process::Signal;

mod manifests;
use manifests::{READY_3, nginx};

/// A cluster with a Deployment `web` of that many replicas, all available.
fn with_web(machine: &Machine, replicas: u32) -> knarr_e2e::Running {
    let up = machine.up();
    machine.import("nginx");
    machine.apply(&nginx(replicas));
    machine.wait("deployment/web", "condition=Available");
    machine.wait("deployment/web", &format!("jsonpath={{.status.readyReplicas}}={replicas}"));
    up
}

#[test]
fn a_deployment_becomes_available_and_every_pod_answers() {
    alone(|machine| {
        let _up = with_web(machine, 3);
        let pods = machine.values("pods -l app=web", ".items[*].metadata.name");
        assert_eq!(pods.len(), 3);
        for pod in pods {
            let address = machine.value(&format!("pod/{pod}"), ".status.podIP");
            let page = machine.page(&address);
            assert!(page.contains(&format!("nginx on {pod}")), "{pod}: {page}");
            let log = machine.kubectl(&format!("logs {pod}"));
            assert!(log.contains("GET / HTTP/1.0"), "{pod} logs no request: {log}");
        }
    });
}

#[test]
fn every_output_form_of_get_works() {
    alone(|machine| {
        let _up = with_web(machine, 1);
        let table = machine.kubectl("get pods,deploy,rs,nodes");
        for heading in ["READY   STATUS    RESTARTS   AGE", "UP-TO-DATE", "DESIRED", "VERSION"] {
            assert!(table.contains(heading), "no {heading} in\n{table}");
        }
        assert!(table.contains("1/1     Running   0"), "{table}");
        let wide = machine.kubectl("get pods,nodes -o wide");
        assert!(wide.contains("NOMINATED NODE") && wide.contains("CONTAINER-RUNTIME"), "{wide}");
        let names = machine.kubectl("get deploy,nodes -o name");
        assert_eq!(names, "deployment.apps/web\nnode/node-1\n");
        assert_eq!(machine.value("deploy/web", ".spec.replicas"), "1");
        assert_eq!(machine.json("get deploy/web")["spec"]["replicas"], 1);
        let yaml = machine.kubectl("get deploy web -o yaml");
        assert!(yaml.starts_with("apiVersion: apps/v1\nkind: Deployment\n"), "{yaml}");
        let described = machine.kubectl("describe deployment web");
        assert!(described.contains("1 available"), "{described}");
    });
}

#[test]
fn get_watch_shows_a_pod_on_its_way_to_running() {
    alone(|machine| {
        let _up = machine.up();
        machine.import("nginx");
        let watch = machine.follow("get pods -w");
        machine.apply(&nginx(1));
        for state in ["Pending", "ContainerCreating", "Running"] {
            watch.line(state, |line| line.contains(state));
        }
    });
}

#[test]
fn a_deployment_scales_up_and_down_and_goes() {
    alone(|machine| {
        let _up = with_web(machine, 1);
        machine.kubectl("scale deployment/web --replicas=3");
        machine.wait("deployment/web", READY_3);
        machine.kubectl("scale deployment/web --replicas=1");
        machine.wait("deployment/web", "jsonpath={.status.replicas}=1");
        machine.kubectl("delete deployment web --cascade=foreground --timeout=60s");
        assert_eq!(machine.kubectl("get pods,rs,deploy -o name"), "");
        let processes = knarr_e2e::Snapshot::take().only("process");
        let nginx: Vec<_> = processes.iter().filter(|line| line.contains("nginx:")).collect();
        assert!(nginx.is_empty(), "deleted Pods still run: {nginx:?}");
    });
}

#[test]
fn a_killed_nginx_comes_back_and_is_counted() {
    alone(|machine| {
        let _up = with_web(machine, 1);
        let pod = machine.value("pods", ".items[0].metadata.name");
        let pod = format!("pod/{pod}");
        let status = ".status.containerStatuses[0]";
        let first = machine.value(&pod, &format!("{status}.containerID"));
        machine.signal_container(&first, Signal::KILL);
        machine.wait(&pod, &format!("jsonpath={{{status}.restartCount}}=1"));
        machine.wait(&pod, "condition=Ready");
        assert_ne!(machine.value(&pod, &format!("{status}.containerID")), first);
        assert_eq!(machine.value(&pod, &format!("{status}.lastState.terminated.exitCode")), "137");
        machine.page(&machine.value(&pod, ".status.podIP"));
    });
}

#[test]
fn a_container_that_keeps_ending_backs_off() {
    alone(|machine| {
        let _up = machine.up();
        machine.import("busybox");
        machine.apply(&manifests::busybox("brief", "exit 3"));
        let waiting = "jsonpath={.status.containerStatuses[0].state.waiting.reason}";
        machine.wait("pod/brief", &format!("{waiting}=CrashLoopBackOff"));
        let last = ".status.containerStatuses[0].lastState.terminated.exitCode";
        assert_eq!(machine.value("pod/brief", last), "3");
        let table = machine.kubectl("get pod brief");
        assert!(table.contains("CrashLoopBackOff"), "{table}");
        let events = machine.follow("events --for pod/brief --watch");
        events.line("BackOff", |line| line.contains("Back-off restarting failed container"));
    });
}

#[test]
fn a_deleted_pod_is_replaced() {
    alone(|machine| {
        let _up = with_web(machine, 1);
        let old = machine.value("pods", ".items[0].metadata.name");
        machine.kubectl(&format!("delete pod {old} --timeout=60s"));
        machine.wait("deployment/web", "jsonpath={.status.readyReplicas}=1");
        let new = machine.values("pods", ".items[*].metadata.name");
        assert!(new.len() == 1 && new[0] != old, "{new:?} after {old}");
    });
}

#[test]
fn rollouts_go_forward_and_back() {
    alone(|machine| {
        let _up = with_web(machine, 2);
        let image = ".spec.template.spec.containers[0].env[0].value";
        machine.kubectl("set env deployment/web EDITION=second");
        machine.kubectl("rollout status deployment/web --timeout=60s");
        assert_eq!(machine.value("deployment/web", image), "second");
        let history = machine.kubectl("rollout history deployment/web");
        assert!(history.contains("\n1 ") && history.contains("\n2 "), "{history}");
        machine.kubectl("rollout undo deployment/web");
        machine.kubectl("rollout status deployment/web --timeout=60s");
        assert_eq!(machine.value("deployment/web", image), "");
        machine.kubectl("rollout restart deployment/web");
        let done = machine.kubectl("rollout status deployment/web --timeout=60s");
        assert!(done.contains("successfully rolled out"), "{done}");
        let running = machine.values("pods", ".items[*].metadata.name");
        assert!(running.len() >= 2, "{running:?}");
    });
}

#[test]
fn a_paused_rollout_waits_to_be_resumed() {
    alone(|machine| {
        let _up = with_web(machine, 2);
        let hashes = |machine: &Machine| machine.values("replicasets", ".items[*].metadata.name");
        machine.kubectl("rollout pause deployment/web");
        machine.kubectl("set env deployment/web EDITION=second");
        machine.wait("deployment/web", "jsonpath={.status.observedGeneration}=3");
        let reason = ".status.conditions[?(@.type==\"Progressing\")].reason";
        assert_eq!(machine.value("deployment/web", reason), "DeploymentPaused");
        assert_eq!(hashes(machine).len(), 1, "a paused Deployment begins nothing");
        machine.kubectl("rollout resume deployment/web");
        machine.kubectl("rollout status deployment/web --timeout=60s");
        assert_eq!(hashes(machine).len(), 2);
    });
}

#[test]
fn a_pod_that_fits_nowhere_says_why() {
    alone(|machine| {
        let _up = machine.up();
        let pod = manifests::busybox("lost", "sleep 1000");
        machine.apply(&pod.replace("spec:\n", "spec:\n  nodeSelector: {disk: none}\n"));
        machine.wait("pod/lost", "condition=PodScheduled=false");
        let message = machine.value("pod/lost", ".status.conditions[0].message");
        assert_eq!(
            message,
            "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector. \
             no new claims to deallocate, preemption: 0/1 nodes are available: \
             1 Preemption is not helpful for scheduling."
        );
        machine.follow("events --for pod/lost --watch").line("FailedScheduling", |line| {
            line.contains("FailedScheduling") && line.contains("0/1 nodes are available")
        });
    });
}

#[test]
fn events_tell_the_story_of_a_pod() {
    alone(|machine| {
        let _up = with_web(machine, 1);
        let pod = machine.value("pods", ".items[0].metadata.name");
        let events = machine.follow(&format!("events --for pod/{pod} --watch"));
        // In whatever order they were written.
        let mut left = vec!["Scheduled", "Created", "Started"];
        while !left.is_empty() {
            let line =
                events.line(&left.join(" or "), |line| left.iter().any(|w| line.contains(w)));
            left.retain(|word| !line.contains(word));
        }
        let described = machine.kubectl(&format!("describe pod {pod}"));
        assert!(described.contains("Successfully assigned default/"), "{described}");
    });
}

#[test]
fn an_image_that_is_not_here_is_named() {
    alone(|machine| {
        let _up = machine.up();
        machine.apply(&nginx(1).replace("nginx:1", "absent:1"));
        machine.wait("replicaset -l app=web", "create");
        machine.wait("pod -l app=web", "create");
        let reason = "jsonpath={.status.containerStatuses[0].state.waiting.reason}";
        let pod = machine.value("pods", ".items[0].metadata.name");
        machine.wait(&format!("pod/{pod}"), &format!("{reason}=ErrImageNeverPull"));
    });
}

#[test]
fn explain_knows_the_fields() {
    alone(|machine| {
        let _server = machine.up();
        let text = machine.kubectl("explain deployment.spec.strategy.rollingUpdate");
        assert!(text.contains("maxSurge") && text.contains("maxUnavailable"), "{text}");
        let text = machine.kubectl("explain pod.spec.containers.image");
        assert!(text.contains("FIELD: image <string>"), "{text}");
    });
}
