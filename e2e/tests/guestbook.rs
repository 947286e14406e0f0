//! Two tiers that talk over Services and DNS: the example `guestbook.yaml`, its images pulled from
//! a registry, with upstream's kubectl, a real redis and a busybox web server.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use knarr_e2e::{Machine, Outcome, Running, alone};

/// The machine's own address, on a link that leads nowhere.
const OWN: &str = "192.0.2.1";
/// Where the test answers DNS for the rest of the world.
const WORLD: &str = "192.0.2.1:5353";
const MORE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web-headless}
spec: {clusterIP: None, selector: {app: web}, ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: outside}
spec: {type: ExternalName, externalName: www.example.com}
---
apiVersion: v1
kind: Pod
metadata: {name: shell}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: shell, image: 'busybox:1', command: [sleep, '100000']}
";

fn run(line: &str) {
    let mut words = line.split(' ');
    Outcome::of(Command::new(words.next().unwrap()).args(words)).success();
}

/// Gives the machine an address that Pods can reach.
fn own_address() {
    run("ip link add lan type bridge");
    run("ip address add 192.0.2.1/24 dev lan");
    run("ip link set lan up");
}

/// Docker's registry, as far as this machine knows, is a folder of the test.
fn registry(machine: &Machine) -> Running {
    let config = machine.path("registry.yml");
    let folder = machine.path("registry");
    let text = format!(
        "version: 0.1\nstorage: {{filesystem: {{rootdirectory: '{}'}}}}\n\
         http: {{addr: '127.0.0.1:5000'}}\nlog: {{accesslog: {{disabled: true}}}}\n",
        folder.display()
    );
    fs::write(&config, text).unwrap();
    let registry = Running::start(
        "docker-registry",
        Command::new("docker-registry").arg("serve").arg(&config),
    );
    registry.line("listening", |line| line.contains("listening on"));
    for image in ["busybox:1", "redis:7"] {
        let word = image.split(':').next().unwrap();
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["--insecure-policy", "copy", "--dest-tls-verify=false"]);
        skopeo.arg(format!("oci-archive:{}", machine.archive(word).display()));
        skopeo.arg(format!("docker://127.0.0.1:5000/library/{image}"));
        Outcome::of(&mut skopeo).success();
    }
    let mirrors = machine.path("root/etc/knarr/certs.d/docker.io");
    fs::create_dir_all(&mirrors).unwrap();
    fs::write(mirrors.join("hosts.toml"), "[host.\"http://127.0.0.1:5000\"]\n").unwrap();
    registry
}

/// Answers every question for an IPv4 address with 198.51.100.7.
fn world() {
    let socket = UdpSocket::bind(WORLD).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 1024];
        while let Ok((length, client)) = socket.recv_from(&mut buffer) {
            let end = 12 + buffer[12..length].iter().position(|byte| *byte == 0).unwrap() + 5;
            let wants_v4 = buffer[end - 3] == 1;
            let answers = u8::from(wants_v4);
            let mut reply = buffer[..end].to_vec();
            reply[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, answers, 0, 0, 0, 0]);
            if wants_v4 {
                reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 198, 51, 100, 7]);
            }
            socket.send_to(&reply, client).unwrap();
        }
    });
}

fn up(machine: &Machine) -> Running {
    let up = machine.start(&format!(
        "up @data @root @kubeconfig --node-name node-1 --advertise-address {OWN} \
         --node-ip {OWN} --stub-domain example.com={WORLD}"
    ));
    up.line("ready", |line| line.starts_with("Ready"));
    up
}

fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    page
}

/// Runs a line of shell in the Pod `shell`.
#[track_caller]
fn shell(machine: &Machine, line: &str) -> String {
    let mut kubectl = machine.kubectl_command("exec shell -- sh -c");
    Outcome::of(kubectl.arg(line)).success()
}

#[test]
fn two_tiers_talk_over_services_and_dns() {
    alone(|machine| {
        own_address();
        world();
        let _registry = registry(machine);
        let up = up(machine);
        machine.apply(&fs::read_to_string("../examples/guestbook.yaml").unwrap());
        machine.apply(MORE);
        machine.wait("deployment/redis deployment/web", "condition=Available");
        machine.wait("pod/shell", "condition=Ready");

        // By cluster IP and by node port, from the node; by name, from a Pod.
        let ip = machine.value("service/web", ".spec.clusterIP");
        assert!(get(&format!("{ip}:80"), "/cgi-bin/guestbook?Anna").contains("Anna"));
        let page = get(&format!("{OWN}:30080"), "/cgi-bin/guestbook?Bela");
        assert!(page.contains("Anna\nBela\n"), "{page}");
        for host in ["web", "web.default", "web.default.svc.cluster.local"] {
            let page = shell(machine, &format!("wget -qO- http://{host}/cgi-bin/guestbook"));
            assert!(page.contains("Anna\nBela\n"), "{host}: {page}");
        }
        names(machine, &ip);
        // The API server, by its Service.
        assert_eq!(shell(machine, "nc -w 5 kubernetes 443 </dev/null && echo there"), "there\n");
        let said = up.output();
        assert!(!said.contains("write refused"), "{said}");
        drop(up);
        machine.knarr("reset --yes @data @root").success();
    });
}

/// What DNS says of all this.
fn names(machine: &Machine, ip: &str) {
    let asked = |kind: &str, name: &str| {
        shell(machine, &format!("nslookup -type={kind} {name} 2>&1 || true"))
    };
    assert!(asked("a", "web.default.svc.cluster.local").contains(ip));
    let service = asked("srv", "_http._tcp.web.default.svc.cluster.local");
    assert!(service.contains("0 100 80 web.default.svc.cluster.local"), "{service}");
    let mut octets: Vec<&str> = ip.split('.').collect();
    octets.reverse();
    let reverse = asked("ptr", &format!("{}.in-addr.arpa", octets.join(".")));
    assert!(reverse.contains("web.default.svc.cluster.local"), "{reverse}");
    let headless = asked("a", "web-headless.default.svc.cluster.local");
    for pod in machine.values("pods -l app=web", ".items[*].status.podIP") {
        assert!(headless.contains(&pod), "{pod} is not in {headless}");
    }
    let alias = asked("a", "outside.default.svc.cluster.local");
    assert!(alias.contains("www.example.com") && alias.contains("198.51.100.7"), "{alias}");
    assert!(shell(machine, "nslookup www.example.com 2>&1").contains("198.51.100.7"));
    let nothing = asked("a", "none.default.svc.cluster.local");
    assert!(nothing.contains("NXDOMAIN"), "{nothing}");
}
