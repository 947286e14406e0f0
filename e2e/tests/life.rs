//! A Pod's life on the node: probes, hooks, last words, its environment, what its containers share.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use knarr_e2e::{Machine, Running, alone};

/// A container of busybox that runs one line of shell, with more fields in flow style.
fn container(name: &str, script: &str, more: &str) -> String {
    format!(
        "  - {{name: {name}, image: 'busybox:1', imagePullPolicy: Never, \
         command: [sh, -c, \"{script}\"], {more}}}\n"
    )
}

/// A Pod with more fields of its spec, each on a line.
fn pod(name: &str, more: &str, containers: &[String]) -> String {
    let more: String = more.lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\n\
         spec:\n  terminationGracePeriodSeconds: 20\n{more}  containers:\n{}",
        containers.concat()
    )
}

/// Runs until it is told to end.
const RUN: &str = "trap 'exit 0' TERM; sleep 1000 & wait";

fn cluster(machine: &Machine) -> Running {
    let up = machine.up();
    machine.import("busybox");
    up
}

fn state(machine: &Machine, pod: &str, path: &str) -> String {
    machine.value(&format!("pod/{pod}"), &format!(".status.containerStatuses[0]{path}"))
}

/// Waits for an event of a Pod with these words.
fn event(machine: &Machine, pod: &str, words: &str) {
    let events = machine.follow(&format!("events --for pod/{pod} --watch"));
    events.line(words, |line| line.contains(words));
}

#[test]
fn a_pod_is_ready_when_its_probe_says_so() {
    alone(|machine| {
        let _up = cluster(machine);
        let probe = "readinessProbe: {exec: {command: [cat, /ready]}, periodSeconds: 1}";
        machine.apply(&pod("gate", "", &[container("main", RUN, probe)]));
        machine.apply(
            "apiVersion: v1\nkind: Service\nmetadata: {name: gate}\n\
             spec: {selector: {app: gate}, ports: [{port: 80}]}\n",
        );
        machine.wait("pod/gate", "jsonpath={.status.phase}=Running");
        event(machine, "gate", "Readiness probe failed: cat: can't open '/ready'");
        let why = ".status.conditions[?(@.type==\"Ready\")].message";
        let why = machine.value("pod/gate", why);
        assert_eq!(why, "containers with unready status: [main]");
        let slices = "endpointslices -l kubernetes.io/service-name=gate";
        let ready = ".items[*].endpoints[*].conditions.ready";
        assert_ne!(machine.value(slices, ready), "true");
        machine.kubectl("exec gate -- touch /ready");
        machine.wait("pod/gate", "condition=Ready");
        machine.wait(slices, "jsonpath={.endpoints[0].conditions.ready}=true");
        machine.kubectl("exec gate -- rm /ready");
        machine.wait("pod/gate", "condition=Ready=false");
        assert_eq!(state(machine, "gate", ".restartCount"), "0");
        machine.kubectl("delete pod gate --timeout=60s");
    });
}

#[test]
fn a_container_that_fails_its_liveness_probe_is_restarted() {
    alone(|machine| {
        let _up = cluster(machine);
        let serve = "mkdir /www; echo well > /www/health; \
                     trap 'exit 0' TERM; httpd -f -p 8080 -h /www & wait";
        let probe = "ports: [{name: web, containerPort: 8080}], \
                     livenessProbe: {httpGet: {path: /health, port: web}, periodSeconds: 1, \
                     initialDelaySeconds: 1, failureThreshold: 2}";
        machine.apply(&pod("live", "", &[container("main", serve, probe)]));
        machine.wait("pod/live", "condition=Ready");
        machine.kubectl("exec live -- rm /www/health");
        event(machine, "live", "Liveness probe failed: HTTP probe failed with statuscode: 404");
        event(machine, "live", "Container main failed liveness probe, will be restarted");
        machine.wait("pod/live", "jsonpath={.status.containerStatuses[0].restartCount}=1");
        machine.wait("pod/live", "condition=Ready");
        assert_eq!(state(machine, "live", ".lastState.terminated.exitCode"), "0");
        machine.kubectl("delete pod live --timeout=60s");
    });
}

#[test]
fn a_startup_probe_holds_the_liveness_probe_back() {
    alone(|machine| {
        let _up = cluster(machine);
        let probes = "startupProbe: {tcpSocket: {port: 8080}, periodSeconds: 1, \
                      failureThreshold: 60}, \
                      livenessProbe: {exec: {command: [cat, /begun]}, periodSeconds: 1, \
                      failureThreshold: 1, terminationGracePeriodSeconds: 1}";
        let serve = "while ! test -e /go; do sleep 0.1; done; touch /begun; \
                     httpd -f -p 8080 & wait";
        machine.apply(&pod("slow", "", &[container("main", serve, probes)]));
        event(machine, "slow", "Startup probe failed: dial tcp");
        assert_eq!(state(machine, "slow", ".started"), "false");
        assert_eq!(state(machine, "slow", ".ready"), "false");
        machine.kubectl("exec slow -- touch /go");
        machine.wait("pod/slow", "condition=Ready");
        assert_eq!(state(machine, "slow", ".started"), "true");
        assert_eq!(state(machine, "slow", ".restartCount"), "0");
        machine.kubectl("exec slow -- rm /begun");
        machine.wait("pod/slow", "jsonpath={.status.containerStatuses[0].restartCount}=1");
        machine.kubectl("delete pod slow --grace-period=1 --timeout=60s");
    });
}

#[test]
fn hooks_run_after_the_start_and_before_the_signal() {
    alone(|machine| {
        let _up = cluster(machine);
        let script = "trap 'echo signal; exit 0' TERM; sleep 1000 & wait";
        let say = |word: &str| format!("exec: {{command: [sh, -c, 'echo {word} > /proc/1/fd/1']}}");
        let hooks =
            format!("lifecycle: {{postStart: {{{}}}, preStop: {{{}}}}}", say("began"), say("last"));
        machine.apply(&pod("hooks", "", &[container("main", script, &hooks)]));
        machine.wait("pod/hooks", "condition=Ready");
        let log = machine.follow("logs -f hooks");
        log.line("began", |line| line.contains("began"));
        machine.kubectl("delete pod hooks --wait=false");
        let first = log.line("the hook", |line| ["last", "signal"].contains(&line.trim()));
        assert_eq!(first.trim(), "last");
        log.line("the signal", |line| line.contains("signal"));
        machine.wait("pod/hooks", "delete");
    });
}

#[test]
fn a_container_waits_for_its_start_hook_and_ends_with_it() {
    alone(|machine| {
        let _up = cluster(machine);
        let wait = "volumeMounts: [{name: word, mountPath: /word}], \
                    lifecycle: {postStart: {exec: {command: [sh, -c, \
                    'until test -e /word/go; do sleep 0.1; done']}}}";
        let word = machine.path("word");
        let volume = format!(
            "volumes: [{{name: word, hostPath: {{path: '{}', type: DirectoryOrCreate}}}}]",
            word.display()
        );
        let two = [container("main", RUN, wait), container("next", RUN, "")];
        machine.apply(&pod("held", &volume, &two));
        event(machine, "held", "Container started");
        assert_eq!(state(machine, "held", ".state.waiting.reason"), "ContainerCreating");
        assert_eq!(machine.value("pod/held", ".status.phase"), "Pending");
        let next = ".status.containerStatuses[1].containerID";
        assert_eq!(machine.value("pod/held", next), "", "begins after the hook before it");
        std::fs::write(word.join("go"), "").unwrap();
        machine.wait("pod/held", "condition=Ready");
        let fail = "lifecycle: {postStart: {exec: {command: ['false']}}}";
        machine.apply(&pod("fails", "", &[container("main", RUN, fail)]));
        event(machine, "fails", "PostStartHook failed");
        machine.wait("pod/fails", "jsonpath={.status.containerStatuses[0].restartCount}=1");
        machine.kubectl("delete pod held fails --timeout=60s");
    });
}

#[test]
fn last_words_are_kept() {
    alone(|machine| {
        let _up = cluster(machine);
        let log = "terminationMessagePolicy: FallbackToLogsOnError";
        let own = "terminationMessagePath: /tmp/words";
        let pods = [
            pod(
                "file",
                "restartPolicy: Never",
                &[container("main", "echo -n bye > /dev/termination-log; exit 3", "")],
            ),
            pod(
                "path",
                "restartPolicy: Never",
                &[container("main", "echo done > /tmp/words", own)],
            ),
            pod("log", "restartPolicy: Never", &[container("main", "echo oh no; exit 1", log)]),
            pod("fine", "restartPolicy: Never", &[container("main", "echo well", log)]),
        ];
        machine.apply(&pods.concat());
        for (name, phase, message) in [
            ("file", "Failed", "bye"),
            ("path", "Succeeded", "done\n"),
            ("log", "Failed", "oh no\n"),
            ("fine", "Succeeded", ""),
        ] {
            machine.wait(&format!("pod/{name}"), &format!("jsonpath={{.status.phase}}={phase}"));
            assert_eq!(state(machine, name, ".state.terminated.message"), message, "{name}");
        }
        assert_eq!(state(machine, "file", ".state.terminated.exitCode"), "3");
        assert_eq!(state(machine, "file", ".state.terminated.reason"), "Error");
        machine.kubectl("delete pod file path log fine --timeout=60s");
    });
}

#[test]
fn services_are_in_the_environment() {
    alone(|machine| {
        let _up = cluster(machine);
        machine.apply(
            "apiVersion: v1\nkind: Service\nmetadata: {name: redis-master}\n\
             spec: {selector: {app: none}, ports: [{name: db, port: 6379}]}\n",
        );
        let env = "env: [{name: URL, value: 'redis://$(REDIS_MASTER_SERVICE_HOST)'}]";
        let address = machine.value("service/redis-master", ".spec.clusterIP");
        let off = "enableServiceLinks: false";
        machine.apply(&pod("with", "", &[container("main", RUN, env)]));
        machine.apply(&pod("without", off, &[container("main", RUN, "")]));
        machine.wait("pod/with", "condition=Ready");
        machine.wait("pod/without", "condition=Ready");
        let with = machine.kubectl("exec with -- env");
        for line in [
            format!("REDIS_MASTER_SERVICE_HOST={address}\n"),
            "REDIS_MASTER_SERVICE_PORT=6379\n".to_owned(),
            "REDIS_MASTER_SERVICE_PORT_DB=6379\n".to_owned(),
            format!("REDIS_MASTER_PORT=tcp://{address}:6379\n"),
            format!("REDIS_MASTER_PORT_6379_TCP_ADDR={address}\n"),
            format!("URL=redis://{address}\n"),
            "KUBERNETES_SERVICE_PORT_HTTPS=443\n".to_owned(),
        ] {
            assert!(with.contains(&line), "no {line} in {with}");
        }
        let without = machine.kubectl("exec without -- env");
        assert!(without.contains("KUBERNETES_SERVICE_HOST="), "{without}");
        assert!(!without.contains("REDIS"), "{without}");
        machine.kubectl("delete pod with without --timeout=60s");
    });
}

/// Two containers of a Pod that are ready.
fn pair(machine: &Machine, more: &str, first: &str, fields: &str) {
    let two = [container("one", first, fields), container("two", RUN, fields)];
    machine.apply(&pod("pair", more, &two));
    machine.wait("pod/pair", "condition=Ready");
}

#[test]
fn containers_of_a_pod_share_its_network() {
    alone(|machine| {
        let _up = cluster(machine);
        let serve = "mkdir /www; echo shared > /www/page; httpd -f -p 8080 -h /www";
        pair(machine, "", serve, "");
        let page = machine.kubectl("exec pair -c two -- wget -qO- http://127.0.0.1:8080/page");
        assert_eq!(page, "shared\n");
        machine.kubectl("delete pod pair --grace-period=1 --timeout=60s");
    });
}

#[test]
fn containers_of_a_pod_share_its_host_name() {
    alone(|machine| {
        let _up = cluster(machine);
        pair(machine, "", RUN, "");
        let names =
            ["one", "two"].map(|c| machine.kubectl(&format!("exec pair -c {c} -- hostname")));
        assert_eq!(names, ["pair\n", "pair\n"]);
        let spaces = ["one", "two"]
            .map(|c| machine.kubectl(&format!("exec pair -c {c} -- readlink /proc/self/ns/uts")));
        assert_eq!(spaces[0], spaces[1]);
        machine.kubectl("delete pod pair --timeout=60s");
    });
}

#[test]
fn containers_of_a_pod_share_system_v_memory_and_posix_queues() {
    alone(|machine| {
        let _up = cluster(machine);
        pair(machine, "", RUN, "");
        let spaces = ["one", "two"]
            .map(|c| machine.kubectl(&format!("exec pair -c {c} -- readlink /proc/self/ns/ipc")));
        assert_eq!(spaces[0], spaces[1], "System V");
        machine.kubectl("exec pair -c one -- touch /dev/mqueue/letters /dev/shm/memory");
        let queues = machine.kubectl("exec pair -c two -- ls /dev/mqueue /dev/shm");
        assert!(queues.contains("letters") && queues.contains("memory"), "{queues}");
        machine.kubectl("delete pod pair --timeout=60s");
    });
}

#[test]
fn containers_of_a_pod_share_its_volumes() {
    alone(|machine| {
        let _up = cluster(machine);
        let mount = "volumeMounts: [{name: common, mountPath: /common}]";
        pair(machine, "volumes: [{name: common, emptyDir: {}}]", RUN, mount);
        machine.kubectl("exec pair -c one -- touch /common/note");
        assert_eq!(machine.kubectl("exec pair -c two -- ls /common"), "note\n");
        machine.kubectl("delete pod pair --timeout=60s");
    });
}

#[test]
fn containers_of_a_pod_share_processes_where_asked() {
    alone(|machine| {
        let _up = cluster(machine);
        pair(machine, "", "sleep 7777", "");
        let apart = machine.kubectl("exec pair -c two -- ps");
        assert!(!apart.contains("7777"), "{apart}");
        machine.kubectl("delete pod pair --grace-period=1 --timeout=60s");
        pair(machine, "shareProcessNamespace: true", "sleep 7777", "");
        let together = machine.kubectl("exec pair -c two -- ps");
        assert!(together.contains("sleep 7777"), "{together}");
        machine.kubectl("delete pod pair --grace-period=1 --timeout=60s");
    });
}
