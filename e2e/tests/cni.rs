//! Networks by CNI plugins: Debian's bridge, host-local and portmap, and plugins that fail.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use knarr_e2e::{Machine, PATIENCE, UP, alone};
use rustix::process::Signal;

mod manifests;
use manifests::busybox;

/// Both families on one bridge, and ports of the node.
fn bridge(machine: &Machine) -> String {
    let dir = machine.path("addresses");
    format!(
        r#"{{"cniVersion": "1.0.0", "name": "test", "plugins": [
          {{"type": "bridge", "bridge": "cnitest", "isGateway": true, "ipMasq": true,
            "ipam": {{"type": "host-local", "dataDir": {dir:?},
              "ranges": [[{{"subnet": "10.88.0.0/24"}}], [{{"subnet": "fd88::/64"}}]],
              "routes": [{{"dst": "0.0.0.0/0"}}, {{"dst": "::/0"}}]}}}},
          {{"type": "portmap", "capabilities": {{"portMappings": true}}, "snat": true}}]}}"#
    )
}

/// Puts a configuration where nodes look for it.
fn configure(machine: &Machine, file: &str, content: &str) {
    let dir = machine.path("root/etc/cni/net.d");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join(file), content).unwrap();
}

fn web() -> &'static str {
    "---
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: nginx:1
    imagePullPolicy: Never
    ports: [{containerPort: 80, hostPort: 8081}]
"
}

/// Whether an nginx answers there.
fn answers(address: &str) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address.parse().unwrap(), PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    ask().is_ok_and(|text| text.starts_with("HTTP/1.1 200"))
}

fn said(program: &str, args: &str) -> String {
    let done = Command::new(program).args(args.split(' ')).output().unwrap();
    assert!(done.status.success(), "{program} {args}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

/// What plugins have of Pods: addresses, links, rules; and what the node knows of it.
fn connected(machine: &Machine) -> Vec<String> {
    let names = |dir: &Path| -> Vec<String> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
    };
    let mut found = names(&machine.path("addresses/test"));
    found.retain(|name| name.starts_with("10.88.0.") || name.starts_with("fd88"));
    found.extend(names(&machine.path("root/var/lib/knarr/cni")));
    let lines = |text: String, word: &str| -> Vec<String> {
        text.lines().filter(|line| line.contains(word)).map(str::to_owned).collect()
    };
    found.extend(lines(said("ip", "-brief link"), "veth"));
    let rules = said("nft", "list ruleset");
    found.extend(["10.88.0.", "fd88", "CNI-DN-"].iter().flat_map(|w| lines(rules.clone(), w)));
    found
}

/// Removes what plugins keep for the next Pod, and what the test wrote.
fn tidy(machine: &Machine) {
    said("ip", "link del cnitest");
    said("nft", "flush ruleset");
    fs::remove_dir_all(machine.path("root/etc")).unwrap();
}

#[test]
fn plugins_connect_pods_and_leave_nothing() {
    alone(|machine| {
        configure(machine, "10-test.conflist", &bridge(machine));
        configure(machine, "20-later.conflist", "is not looked at");
        let mut up = machine.up();
        machine.import("busybox");
        machine.import("nginx");
        machine.apply(&(busybox("one", "sleep 3600") + web()));
        machine.wait("pod/one", "condition=Ready");
        machine.wait("pod/web", "condition=Ready");
        let ips = machine.values("pod/web", ".status.podIPs[*].ip");
        assert!(ips[0].starts_with("10.88.0.") && ips[1].starts_with("fd88::"), "{ips:?}");
        for address in [&ips[0], &ips[1], "127.0.0.1", "fd88::1", "198.51.100.10"] {
            machine.kubectl(&format!("exec one -- ping -c 1 -W 5 {address}"));
        }
        said("busybox", &format!("ping -c 1 -W 5 {}", ips[1]));
        assert!(answers(&format!("{}:80", ips[0])), "the node does not reach a Pod");
        assert!(answers("198.51.100.10:8081"), "the hostPort does not answer");

        assert!(up.end(Signal::TERM).success());
        let mut up = machine.up();
        assert_eq!(machine.values("pod/web", ".status.podIPs[*].ip"), ips);
        machine.kubectl("delete pod web --wait");
        let left = connected(machine);
        let left = left.iter().filter(|name| name.starts_with("10.88.0.")).count();
        assert_eq!(left, 1, "{:?}", connected(machine));
        assert!(!answers("198.51.100.10:8081"));
        machine.kubectl("delete pod one --wait");
        assert_eq!(connected(machine), [] as [&str; 0]);

        machine.apply(web());
        machine.wait("pod/web", "condition=Ready");
        assert!(up.end(Signal::TERM).success());
        machine.knarr("reset --yes @data @root").success();
        assert_eq!(connected(machine), [] as [&str; 0]);
        tidy(machine);
        machine.assert_as_before();
    });
}

/// A plugin that refuses, and does not undo while a file is there.
fn broken(machine: &Machine) {
    let marker = machine.path("stuck").display().to_string();
    fs::write(&marker, "").unwrap();
    let script = format!(
        "[ $CNI_COMMAND = DEL ] && [ ! -e {marker} ] && exit 0\n\
         echo '{{\"cniVersion\": \"1.0.0\", \"code\": 11, \"msg\": \"no room\", \
         \"details\": \"try later\"}}'\nexit 1"
    );
    plugin(machine, "broken", &script);
}

/// Makes a plugin of a few lines of shell.
fn plugin(machine: &Machine, name: &str, script: &str) {
    let path = machine.path("bin").join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, format!("#!/bin/sh\ncat >/dev/null\n{script}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "never came true: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_broken_network_is_told_of_and_without_one_the_built_in_is_used() {
    alone(|machine| {
        broken(machine);
        let up = machine.start(&format!("{UP} --cni-bin-dir @bin"));
        up.line("Ready", |line| line.starts_with("Ready"));
        machine.import("busybox");
        machine.apply(&busybox("before", "sleep 3600"));
        machine.wait("pod/before", "condition=Ready");
        let address = machine.value("pod/before", ".status.podIP");
        assert!(address.starts_with("10.42."), "{address}");

        configure(machine, "10-x.conf", r#"{"cniVersion":"0.4.0","name":"x","type":"broken"}"#);
        machine.apply(&busybox("one", "sleep 3600"));
        let text = r#"plugin type=\"broken\" name=\"x\" failed (add): no room; try later"#;
        let events = || machine.kubectl("get events -o json");
        until("the event", || events().contains(text));
        assert!(events().contains("FailedCreatePodSandBox"));
        let records = || fs::read_dir(machine.path("root/var/lib/knarr/cni")).unwrap().count();
        assert!(records() > 0, "what could not be undone is forgotten");

        configure(machine, "00-malformed.conflist", "{");
        machine.wait("node/node-1", "condition=Ready=False");
        let why = machine.value("node/node-1", ".status.conditions[?(@.type=='Ready')].message");
        assert!(why.contains("NetworkPluginNotReady") && why.contains("00-malformed"), "{why}");
        fs::remove_dir_all(machine.path("root/etc")).unwrap();
        fs::remove_file(machine.path("stuck")).unwrap();
        machine.wait("node/node-1", "condition=Ready");
        machine.wait("pod/one", "condition=Ready");
        until("what was not undone is", || records() == 0);
        assert_eq!(machine.value("pod/before", ".status.podIP"), address);
        drop(up);
        machine.knarr("reset --yes @data @root").success();
        machine.assert_as_before();
    });
}

#[test]
fn a_pod_whose_connecting_was_broken_off_gets_another_sandbox() {
    alone(|machine| {
        let path = |name: &str| machine.path(name).display().to_string();
        let (begun, stuck, undone) = (path("begun"), path("stuck"), path("undone"));
        fs::write(&stuck, "").unwrap();
        let script = format!(
            "[ $CNI_COMMAND = DEL ] && echo $CNI_CONTAINERID >>{undone} && exit 0\n\
             echo $CNI_CONTAINERID >>{begun}\nwhile [ -e {stuck} ]; do sleep 0.05; done\n\
             echo '{{\"cniVersion\": \"1.0.0\", \"ips\": [{{\"address\": \"10.9.0.9/24\"}}]}}'"
        );
        plugin(machine, "slow", &script);
        configure(machine, "x.conf", r#"{"cniVersion":"1.0.0","name":"x","type":"slow"}"#);
        let start = || {
            let up = machine.start(&format!("{UP} --cni-bin-dir @bin"));
            up.line("Ready", |line| line.starts_with("Ready"));
            up
        };
        let up = start();
        machine.import("busybox");
        machine.apply(&busybox("one", "sleep 3600"));
        let lines = |path: &str| -> Vec<String> {
            fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
        };
        until("a plugin is called", || lines(&begun).len() == 1);
        drop(up);
        fs::remove_file(&stuck).unwrap();
        let up = start();
        machine.wait("pod/one", "condition=Ready");
        assert_eq!(machine.value("pod/one", ".status.podIP"), "10.9.0.9");
        assert_eq!(lines(&undone), lines(&begun)[..1]);
        drop(up);
        machine.knarr("reset --yes @data @root").success();
        assert_eq!(lines(&undone), lines(&begun));
        fs::remove_dir_all(machine.path("root/etc")).unwrap();
        machine.assert_as_before();
    });
}
