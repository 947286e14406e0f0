//! Sessions with containers, as upstream's kubectl opens them: commands, attachments, copies,
//! logs, forwarded ports. Whoever opens one and goes away leaves nothing behind.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::io::Write;
use std::process::Stdio;

use knarr_e2e::{Machine, Outcome, Running, alone};
use serde_json::json;

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

#[test]
fn a_big_output_and_a_big_input_are_whole() {
    alone(|machine| {
        let _up = with_box(machine);
        let mut command = machine.kubectl_command("exec box -- sh -c");
        command.arg("head -c 50000000 /dev/zero; head -c 50000000 /dev/zero | tr '\\0' e >&2");
        let output = command.output().unwrap();
        assert_eq!((output.stdout.len(), output.stderr.len()), (50_000_000, 50_000_000));
        assert!(output.stdout.iter().all(|byte| *byte == 0), "the streams are apart");
        assert!(output.stderr.iter().all(|byte| *byte == b'e'), "the streams are apart");
        let input = vec![7; 20_000_000];
        assert_eq!(exec(machine, "-i", "wc -c", &input).success().trim(), "20000000");
        // A command that ends without reading its input, or a client whose input never ends.
        assert_eq!(exec(machine, "-i", "exit 3", &input).status.code(), Some(3));
    });
}

/// A terminal of the test's own, with a kubectl in it.
struct Terminal {
    master: std::fs::File,
    child: std::process::Child,
    seen: String,
}

impl Terminal {
    fn start(command: &mut std::process::Command, columns: u16, rows: u16) -> Self {
        use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let slave = ioctl_tiocgptpeer(&master, flags).unwrap();
        let end = || Stdio::from(slave.try_clone().unwrap());
        let child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        let terminal = Self { master: master.into(), child, seen: String::new() };
        terminal.resize(columns, rows);
        terminal
    }

    fn resize(&self, columns: u16, rows: u16) {
        use rustix::process::{Pid, Signal, kill_process};
        let size =
            rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&self.master, size).unwrap();
        kill_process(Pid::from_child(&self.child), Signal::WINCH).unwrap();
    }

    fn say(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    /// Reads on until `wanted` has come.
    #[track_caller]
    fn hear(&mut self, wanted: &str) {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        use std::io::Read;
        let deadline = std::time::Instant::now() + knarr_e2e::PATIENCE;
        while !self.seen.contains(wanted) {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            let left = Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap(), tv_nsec: 0 };
            let mut fds = [PollFd::new(&self.master, PollFlags::IN)];
            let ready = poll(&mut fds, Some(&left)).unwrap();
            let mut buffer = [0; 4096];
            let count = if ready == 0 { Ok(0) } else { self.master.read(&mut buffer) };
            match count {
                Ok(count @ 1..) => self.seen += &String::from_utf8_lossy(&buffer[..count]),
                other => panic!("no {wanted:?} ({other:?}) in {:?}", self.seen),
            }
        }
        let at = self.seen.find(wanted).unwrap() + wanted.len();
        self.seen.drain(..at);
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn a_terminal_has_its_size_and_hangs_up() {
    alone(|machine| {
        let _up = with_box(machine);
        let command = &mut machine.kubectl_command("exec -it box -- sh");
        let mut terminal = Terminal::start(command, 100, 30);
        terminal.hear("# ");
        terminal.say("tty; stty size; echo a-$((40+2))\n");
        terminal.hear("/dev/pts/");
        terminal.hear("30 100");
        terminal.hear("a-42");
        terminal.say("while sleep 0.1; do stty size; done\n");
        terminal.resize(77, 22);
        terminal.hear("22 77");
        terminal.say("\x03");
        terminal.hear("# ");
        terminal.say("sleep 31415 & sleep 27182\n");
        await_processes(machine, "sleep 27182", 1);
        terminal.child.kill().unwrap();
        await_processes(machine, "sleep 27182", 0);
        await_processes(machine, "sleep 31415", 0);
    });
}

/// Waits until that many processes of the machine have this command line.
#[track_caller]
fn await_processes(_: &Machine, line: &str, wanted: usize) {
    let deadline = std::time::Instant::now() + knarr_e2e::PATIENCE;
    let count = || {
        let lines = knarr_e2e::Snapshot::pids().into_iter().filter_map(|pid| {
            let text = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            Some(String::from_utf8_lossy(&text).replace('\0', " ").trim().to_owned())
        });
        lines.filter(|found| found == line).count()
    };
    while count() != wanted {
        assert!(std::time::Instant::now() < deadline, "{line}: {} of {wanted}", count());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn a_client_that_vanishes_leaves_no_process() {
    alone(|machine| {
        let _up = with_box(machine);
        let mut quiet = machine.follow("exec box -- sleep 11111");
        await_processes(machine, "sleep 11111", 1);
        // A command that never reads what it is sent: the client's end is behind its input.
        let mut command = machine.kubectl_command("exec -i box -- sleep 22222");
        command.stdin(std::fs::File::open("/dev/zero").unwrap());
        let mut deaf = Running::start("exec -i", &mut command_with_input(command));
        await_processes(machine, "sleep 22222", 1);
        std::thread::sleep(std::time::Duration::from_secs(1));
        quiet.end(rustix::process::Signal::KILL);
        deaf.end(rustix::process::Signal::KILL);
        await_processes(machine, "sleep 11111", 0);
        await_processes(machine, "sleep 22222", 0);
    });
}

/// `Running::start` takes the input away: a shell gives it back.
fn command_with_input(kubectl: std::process::Command) -> std::process::Command {
    let mut command = std::process::Command::new("sh");
    let words = kubectl.get_args().map(|arg| arg.to_str().unwrap()).collect::<Vec<_>>().join(" ");
    let program = kubectl.get_program().to_str().unwrap();
    command.args(["-c", &format!("exec {program} {words} < /dev/zero")]);
    for (name, value) in kubectl.get_envs() {
        command.env(name, value.unwrap());
    }
    command
}

#[test]
fn attaching_reaches_what_runs() {
    alone(|machine| {
        let _up = machine.up();
        machine.import("busybox");
        machine.apply(&pod(
            "echo",
            "while read x; do echo got $x; done; echo over; exit 5",
            r#", "stdin": true, "stdinOnce": true"#,
        ));
        machine.wait("pod/echo", "condition=Ready");
        let mut command = machine.kubectl_command("attach -i echo");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"one\ntwo\n").unwrap();
        let outcome = Outcome::from(child.wait_with_output().unwrap());
        assert_eq!(outcome.out, "got one\ngot two\nover\n", "{outcome}");
        machine.wait("pod/echo", "jsonpath={.status.phase}=Failed");
        assert_eq!(machine.kubectl("logs echo"), "got one\ngot two\nover\n");
    });
}

#[test]
fn several_attach_at_once_and_leave_alone() {
    alone(|machine| {
        let _up = machine.up();
        machine.import("busybox");
        let script = "i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.1; done";
        machine.apply(&pod("ticks", script, ""));
        machine.wait("pod/ticks", "condition=Ready");
        let (stays, mut goes) = (machine.follow("attach ticks"), machine.follow("attach ticks"));
        let tick = |line: &str| line.starts_with("tick ");
        let last = goes.line("a tick", tick);
        stays.line("the same tick", |line| line == last);
        goes.end(rustix::process::Signal::KILL);
        for _ in 0..10 {
            stays.line("another tick", tick);
        }
    });
}

#[test]
fn run_with_a_terminal_attaches_and_removes_the_pod() {
    alone(|machine| {
        let _up = machine.up();
        machine.import("busybox");
        let run = "run -it --rm once --restart=Never --image=docker.io/library/busybox:1 \
                   --image-pull-policy=Never -- sh";
        let mut terminal = Terminal::start(&mut machine.kubectl_command(run), 80, 24);
        terminal.hear("If you don't see a command prompt");
        terminal.say("\n");
        terminal.hear("# ");
        terminal.say("echo b-$((20+2)); stty size\n");
        terminal.hear("b-22");
        terminal.hear("24 80");
        terminal.say("exit\n");
        terminal.hear("pod \"once\" deleted");
        assert_eq!(machine.kubectl("get pods -o name"), "");
    });
}

#[test]
fn a_slow_reader_of_an_attachment_gets_all_of_the_output() {
    alone(|machine| {
        let _up = machine.up();
        machine.import("busybox");
        let run = "run -i --rm -q once --restart=Never --image=docker.io/library/busybox:1 \
                   --image-pull-policy=Never -- sh -c";
        let mut command = machine.kubectl_command(run);
        command.arg("cat >/dev/null; head -c 60000000 /dev/zero");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"go\n").unwrap();
        // More than all pipes and sockets hold waits for the reader, in the container.
        std::thread::sleep(std::time::Duration::from_secs(2));
        let output = child.wait_with_output().unwrap();
        assert!(
            output.stdout.len() == 60_000_000,
            "{} {}",
            output.stdout.len(),
            String::from_utf8_lossy(&output.stderr)
        );
    });
}

#[test]
fn a_tree_is_copied_both_ways() {
    alone(|machine| {
        let _up = with_box(machine);
        let here = machine.path("tree");
        std::fs::create_dir_all(here.join("deep/er")).unwrap();
        let random: Vec<u8> =
            (0..20_000_000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        std::fs::write(here.join("deep/big"), &random).unwrap();
        std::fs::write(here.join("deep/er/small"), "small\n").unwrap();
        machine.kubectl(&format!("cp {} box:/tmp/there", here.display()));
        let back = machine.path("back");
        machine.kubectl(&format!("cp box:/tmp/there {}", back.display()));
        assert!(std::fs::read(back.join("deep/big")).unwrap() == random, "not the same bytes");
        assert_eq!(std::fs::read_to_string(back.join("deep/er/small")).unwrap(), "small\n");
        let sum = exec(machine, "", "cat /tmp/there/deep/big | wc -c", b"").success();
        assert_eq!(sum.trim(), "20000000");
    });
}

#[test]
fn logs_are_followed_to_the_last_line() {
    alone(|machine| {
        let _up = machine.up();
        machine.import("busybox");
        machine.apply(&pod(
            "ticks",
            "for i in 1 2 3 4 5; do echo tick $i; echo oh $i >&2; sleep 0.3; done; printf end",
            "",
        ));
        machine.wait("pod/ticks", "condition=Ready");
        let followed = machine.kubectl("logs -f ticks");
        let ticks: Vec<&str> = followed.lines().filter(|line| line.starts_with("tick")).collect();
        assert_eq!(ticks, ["tick 1", "tick 2", "tick 3", "tick 4", "tick 5"]);
        assert!(followed.ends_with("end"), "{followed:?}");
        assert_eq!(machine.kubectl("logs ticks --tail=1"), "end");
        let stamped = machine.kubectl("logs ticks --timestamps --tail=2");
        assert!(stamped.lines().all(|line| line.split_once('Z').is_some()), "{stamped}");
        assert_eq!(machine.kubectl("logs ticks --since=1h").lines().count(), 11);
        let since = machine.kubectl("logs ticks --since-time=2100-01-01T00:00:00Z");
        assert_eq!(since, "");
        assert_eq!(machine.kubectl("logs ticks --limit-bytes=4"), "tick");
        let none = machine.try_kubectl("logs ticks --previous").failure();
        assert!(
            none.contains("previous terminated container \"main\" in pod \"ticks\" not found"),
            "{none}"
        );
        let waiting = pod("never", "true", "").replace("busybox:1", "missing:1");
        machine.apply(&waiting);
        machine.wait(
            "pod/never",
            "jsonpath={.status.containerStatuses[0].state.waiting.reason}=ErrImageNeverPull",
        );
        let absent = machine.try_kubectl("exec never -- true").failure();
        assert!(absent.contains("container not found (\"main\")"), "{absent}");
        let refused = machine.try_kubectl("logs never").failure();
        assert!(
            refused.contains(
                "container \"main\" in pod \"never\" is waiting to start: ErrImageNeverPull"
            ),
            "{refused}"
        );
    });
}

#[test]
fn the_log_of_the_run_before_is_kept() {
    alone(|machine| {
        let _up = machine.up();
        machine.import("busybox");
        let script = "echo run; test -e /dev/shm/x || { touch /dev/shm/x; exit 1; }; sleep 1000000";
        machine.apply(
            &pod("twice", script, "").replace("Never\", \"containers", "Always\", \"containers"),
        );
        machine.wait("pod/twice", "jsonpath={.status.containerStatuses[0].restartCount}=1");
        machine.wait("pod/twice", "condition=Ready");
        assert_eq!(machine.kubectl("logs twice --previous"), "run\n");
        let follow = machine.follow("logs -f twice");
        follow.line("run", |line| line == "run");
    });
}

#[test]
fn ports_are_forwarded_in_parallel_and_refusals_told() {
    alone(|machine| {
        let _up = with_box(machine);
        let httpd = "cd /tmp; echo hello > index.html; head -c 3000000 /dev/zero > big; \
                     httpd -p 8000 -h /tmp";
        exec(machine, "", httpd, b"").success();
        let mut forward = machine.follow("port-forward pod/box 18000:8000 18001:8001");
        forward.line("forwarding", |line| line.contains("Forwarding from 127.0.0.1:18001"));
        let get = |page: &'static str| {
            std::thread::spawn(move || {
                use std::io::Read;
                let mut stream = std::net::TcpStream::connect("127.0.0.1:18000").unwrap();
                write!(stream, "GET /{page} HTTP/1.0\r\n\r\n").unwrap();
                let mut answer = Vec::new();
                stream.read_to_end(&mut answer).unwrap();
                answer
            })
        };
        let pages: Vec<_> =
            (0..20).map(|at| get(if at % 2 == 0 { "index.html" } else { "big" })).collect();
        for (at, page) in pages.into_iter().enumerate() {
            let page = page.join().unwrap();
            if at % 2 == 0 {
                assert!(page.ends_with(b"hello\n"), "{}", String::from_utf8_lossy(&page));
            } else {
                assert!(page.len() > 3_000_000, "{} bytes", page.len());
            }
        }
        std::net::TcpStream::connect("127.0.0.1:18001").unwrap();
        forward.line("the refusal", |line| {
            line.contains("error forwarding port 8001") && line.contains("connection refused")
        });
        forward.end(rustix::process::Signal::INT);
    });
}

#[test]
fn whoever_may_only_get_opens_no_session() {
    alone(|machine| {
        let _up = with_box(machine);
        machine.kubectl("create serviceaccount reader");
        let sessions = "pods,pods/exec,pods/attach,pods/portforward";
        machine.kubectl(&format!("create role reader --verb=get,list --resource={sessions}"));
        machine.kubectl("create rolebinding reader --role=reader --serviceaccount=default:reader");
        let token = machine.kubectl("create token reader");
        let as_reader = |args: &str| {
            let server = machine.kubectl("config view -o jsonpath={.clusters[0].cluster.server}");
            let ca = machine.kubectl(
                "config view --raw -o jsonpath={.clusters[0].cluster.certificate-authority-data}",
            );
            let cluster = json!({"server": server, "certificate-authority-data": ca});
            let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "r",
                "clusters": [{"name": "c", "cluster": cluster}],
                "users": [{"name": "r", "user": {"token": token.trim()}}],
                "contexts": [{"name": "r", "context": {"cluster": "c", "user": "r"}}]});
            let path = machine.path("reader.kubeconfig");
            std::fs::write(&path, config.to_string()).unwrap();
            let mut command = machine.kubectl_command(args);
            Outcome::of(command.env("KUBECONFIG", path))
        };
        as_reader("get pod box").success();
        for args in ["exec box -- true", "attach box", "port-forward box 18000:80"] {
            let refused = as_reader(args).failure();
            assert!(refused.contains("cannot create resource \"pods/"), "{args}: {refused}");
        }
    });
}

#[test]
fn proxies_carry_requests_to_pods_and_nodes() {
    alone(|machine| {
        let _up = with_box(machine);
        exec(machine, "", "echo hello > /tmp/index.html; httpd -p 8000 -h /tmp", b"").success();
        let page =
            machine.kubectl("get --raw /api/v1/namespaces/default/pods/box:8000/proxy/index.html");
        assert_eq!(page, "hello\n");
        let health = machine.kubectl("get --raw /api/v1/nodes/node-1/proxy/healthz");
        assert_eq!(health, "ok");
        let refused = machine
            .try_kubectl("get --raw /api/v1/namespaces/default/pods/box:8009/proxy/")
            .failure();
        assert!(refused.contains("error trying to reach service"), "{refused}");
    });
}

/// What Debian's client for Python does with `argv[1]`, a kubeconfig: channels of version 4.
const PYTHON: &str = r#"
import sys
from kubernetes import client, config
from kubernetes.stream import stream, portforward
config.load_kube_config(sys.argv[1])
core = client.CoreV1Api()
call = core.connect_get_namespaced_pod_exec
print(stream(call, "box", "default", command=["sh", "-c", "echo out; echo err >&2"],
             stderr=True, stdin=False, stdout=True, tty=False).split())
session = stream(call, "box", "default", command=["sh", "-c", "read x; echo got $x; exit 4"],
                 stderr=True, stdin=True, stdout=True, tty=False, _preload_content=False)
session.write_stdin("one\n")
session.run_forever(timeout=30)
print(session.read_stdout().strip(), session.returncode)
ports = portforward(core.connect_get_namespaced_pod_portforward, "box", "default", ports="8000")
http = ports.socket(8000)
http.setblocking(True)
http.sendall(b"GET /index.html HTTP/1.0\r\n\r\n")
page = b""
while not page.endswith(b"hello\n"):
    page += http.recv(4096)
print(page.split()[-1].decode(), ports.error(8000))
"#;

#[test]
fn the_client_for_python_opens_sessions() {
    alone(|machine| {
        let _up = with_box(machine);
        exec(machine, "", "echo hello > /tmp/index.html; httpd -p 8000 -h /tmp", b"").success();
        let mut python = std::process::Command::new("timeout");
        python.args(["60", "/usr/bin/python3", "-c", PYTHON]).arg(machine.kubeconfig());
        let said = Outcome::of(&mut python).success();
        let lines: Vec<&str> = said.lines().collect();
        assert!(["['out', 'err']", "['err', 'out']"].contains(&lines[0]), "{said}");
        assert_eq!(lines[1..], ["got one 4", "hello None"], "{said}");
    });
}

/// Open descriptors of knarr and of its shims.
fn descriptors() -> usize {
    let ours = |pid: &i32| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        name.starts_with("knarr")
    };
    let count = |pid: i32| std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    knarr_e2e::Snapshot::pids().into_iter().filter(ours).map(count).sum()
}

#[test]
fn sessions_leave_no_descriptor_behind() {
    alone(|machine| {
        let _up = with_box(machine);
        exec(machine, "-i", "cat", b"warm").success();
        machine.kubectl("logs box");
        let before = descriptors();
        for _ in 0..10 {
            exec(machine, "-i", "cat; exit 1", b"x");
            machine.kubectl("logs box");
            let mut attached = machine.follow("attach box");
            let mut followed = machine.follow("logs -f box");
            let mut forward = machine.follow("port-forward box 18000:80");
            forward.line("forwarding", |line| line.contains("Forwarding"));
            for gone in [&mut attached, &mut followed, &mut forward] {
                gone.end(rustix::process::Signal::KILL);
            }
        }
        // Connections kept alive for the next request come and go: fewer than the sessions were.
        let deadline = std::time::Instant::now() + knarr_e2e::PATIENCE;
        while descriptors() > before + 5 {
            let now = std::time::Instant::now();
            assert!(now < deadline, "{before} descriptors before, {} after", descriptors());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    });
}
