//! Real packets through a node's table: a node, two Pods and an outside machine, each in a network
//! namespace of its own. Needs root (network namespaces). A namespace goes with its thread, and its
//! links and tables with it.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use knarr_api::Resource;
use knarr_net::{Attachment, Network};
use knarr_netplan::{Cidr, NodeTable, Services};
use knarr_proxy::{Proxy, ProxyConfig};
use knarr_reconcile::Change;

/// A thread in a new network namespace; runs what it is sent.
struct Namespace {
    path: PathBuf,
    jobs: mpsc::Sender<Box<dyn FnOnce() + Send>>,
}

impl Namespace {
    fn new() -> Self {
        let (send_path, path) = mpsc::channel();
        let (jobs, inbox) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root");
            let tid = rustix::thread::gettid().as_raw_nonzero();
            let path = format!("/proc/{}/task/{tid}/ns/net", std::process::id());
            send_path.send(PathBuf::from(path)).expect("the maker waits");
            inbox.iter().for_each(|job| job());
        });
        Self { path: path.recv().expect("the thread lives"), jobs }
    }

    fn run<R: Send + 'static>(&self, job: impl FnOnce() -> R + Send + 'static) -> R {
        let (send, result) = mpsc::channel();
        let job = Box::new(move || drop(send.send(job())));
        self.jobs.send(job).expect("the thread lives");
        result.recv().expect("the job ends")
    }

    /// Answers every connection and datagram at port 8080 with its name and the peer's address.
    fn answer(&self, name: &'static str) {
        self.run(move || {
            let tcp = TcpListener::bind("[::]:8080").expect("the Pod is empty");
            thread::spawn(move || {
                for stream in tcp.incoming() {
                    let mut stream = stream.expect("accepted");
                    let peer = stream.peer_addr().expect("connected").ip().to_canonical();
                    stream.write_all(format!("{name} {peer}").as_bytes()).ok();
                    // Stays open until the client is done.
                    thread::spawn(move || stream.read(&mut [0]).ok());
                }
            });
            let udp = UdpSocket::bind("[::]:8080").expect("the Pod is empty");
            thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                    let answer = format!("{name} {}", peer.ip().to_canonical());
                    udp.send_to(answer.as_bytes(), peer).ok();
                }
            });
        });
    }

    /// What is answered at an address; or why nothing is.
    fn ask(&self, to: &str) -> Result<String, ErrorKind> {
        let to: SocketAddr = to.parse().expect("an address");
        self.run(move || open(to).map(|(text, _)| text))
    }

    /// Who answers, asked often.
    fn who(&self, to: &str) -> BTreeSet<String> {
        (0..40).map(|_| self.ask(to).expect("somebody answers")).collect()
    }
}

fn open(to: SocketAddr) -> Result<(String, TcpStream), ErrorKind> {
    let patience = Duration::from_millis(700);
    let mut stream = TcpStream::connect_timeout(&to, patience).map_err(|error| error.kind())?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("set");
    let mut text = [0; 64];
    let length = stream.read(&mut text).map_err(|error| error.kind())?;
    Ok((String::from_utf8_lossy(&text[..length]).into_owned(), stream))
}

fn ip(args: &str) {
    let done = Command::new("ip").args(args.split(' ')).output().expect("iproute2 is there");
    assert!(done.status.success(), "ip {args}: {}", String::from_utf8_lossy(&done.stderr));
}

fn nft(args: &str) -> String {
    let done = Command::new("nft").args(args.split(' ')).output().expect("nftables is there");
    assert!(done.status.success(), "nft {args}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).into_owned()
}

fn block_on<T>(job: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(job)
}

struct World {
    node: Namespace,
    one: Namespace,
    two: Namespace,
    outside: Namespace,
    proxy: Proxy,
}

impl World {
    /// A node 192.0.2.1 with Pods 10.88.0.2 and 10.88.0.3, and 203.0.113.5 outside.
    fn new() -> Self {
        let [node, one, two, outside] = [(); 4].map(|()| Namespace::new());
        let rows = [
            ("kxone", &one, ["10.88.0.2", "fd88::2"]),
            ("kxtwo", &two, ["10.88.0.3", "fd88::3"]),
            ("kxout", &outside, ["203.0.113.5", "2001:db8::5"]),
        ];
        let links = rows.map(|(link, namespace, addresses)| {
            let addresses = addresses.map(|a| a.parse::<IpAddr>().expect("an address")).to_vec();
            (namespace.path.clone(), Attachment { link: link.to_owned(), addresses })
        });
        let proxy = node.run(move || {
            ip("link set lo up");
            ip("addr add 192.0.2.1/32 dev lo");
            ip("addr add 2001:db8:1::1/128 dev lo");
            block_on(async {
                let network = Network::open().expect("netlink");
                for (path, want) in &links {
                    network.loopback(path).await.expect("up");
                    network.attach(path, want).await.expect("attached");
                }
            });
            ip("route add default dev kxout");
            // What comes from outside for a Service without endpoints would leave where it came
            // from; the redirect for that uses up what the kernel allows in ICMP errors.
            for link in ["all", "kxout"] {
                let path = format!("/proc/sys/net/ipv4/conf/{link}/send_redirects");
                std::fs::write(path, "0").expect("set");
            }
            ip("-6 route add default dev kxout");
            let range = |text: &str| text.parse::<Cidr>().expect("a range");
            let config = ProxyConfig {
                node_name: "n1".to_owned(),
                instance: "test".to_owned(),
                cluster_cidrs: ["10.88.0.0/16", "fd88::/64"].map(range).to_vec(),
                node_port_addresses: Vec::new(),
                healthz: None,
                metrics: None,
            };
            Proxy::open(&config).expect("netfilter")
        });
        one.answer("one");
        two.answer("two");
        outside.answer("outside");
        let mut world = Self { node, one, two, outside, proxy };
        world.put(
            NodeTable::NODES,
            r#"{"metadata":{"name":"n1"},"status":{"addresses":[
                {"type":"InternalIP","address":"192.0.2.1"},
                {"type":"InternalIP","address":"2001:db8:1::1"},
                {"type":"Hostname","address":"n1"}]}}"#,
        );
        for resource in [Services::SERVICES, Services::SLICES, NodeTable::NODES] {
            world.proxy.take(resource, &Change::Synced(1));
        }
        world.commit();
        world
    }

    fn put(&mut self, resource: Resource, text: &str) {
        self.proxy.take(resource, &Change::Put(Bytes::copy_from_slice(text.as_bytes()), 1));
    }

    fn commit(&mut self) {
        block_on(self.proxy.commit());
    }

    /// A Service `web`, with these endpoints: (address, node).
    fn service(&mut self, spec: &str, status: &str, endpoints: &[(&str, &str)]) {
        let text = format!(
            r#"{{"metadata":{{"namespace":"a","name":"web"}},
            "spec":{{"clusterIP":"10.96.0.1","clusterIPs":["10.96.0.1","fd96::1"],{spec}}},
            "status":{{{status}}}}}"#
        );
        self.put(Services::SERVICES, &text);
        self.endpoints(endpoints);
    }

    fn endpoints(&mut self, endpoints: &[(&str, &str)]) {
        let rows = endpoints
            .iter()
            .map(|(address, node)| format!(r#"{{"addresses":["{address}"],"nodeName":"{node}"}}"#));
        let rows = rows.collect::<Vec<_>>().join(",");
        let text = format!(
            r#"{{"metadata":{{"namespace":"a","name":"web-1",
            "labels":{{"kubernetes.io/service-name":"web"}}}},"endpoints":[{rows}],
            "ports":[{{"name":"","port":8080,"protocol":"TCP"}},
            {{"name":"udp","port":8080,"protocol":"UDP"}}]}}"#
        );
        self.put(Services::SLICES, &text);
        self.commit();
    }
}

const TCP: &str = r#""ports":[{"port":80,"protocol":"TCP"}]"#;
const NODE_PORT: &str =
    r#""type":"NodePort","ports":[{"port":80,"protocol":"TCP","nodePort":30080}]"#;
const BOTH: [(&str, &str); 2] = [("10.88.0.2", "n1"), ("10.88.0.3", "n1")];

fn set(words: &[&str]) -> BTreeSet<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn a_cluster_address_reaches_all_endpoints() {
    let mut world = World::new();
    world.service(TCP, "", &BOTH);
    let expected = set(&["one 192.0.2.1", "two 192.0.2.1"]);
    assert_eq!(world.node.who("10.96.0.1:80"), expected, "from the node");
    assert_eq!(world.outside.who("10.96.0.1:80"), expected, "from outside, masqueraded");
    // A Pod that reaches itself must be masqueraded, or it would answer itself directly.
    assert_eq!(world.two.who("10.96.0.1:80"), set(&["one 10.88.0.3", "two 192.0.2.1"]));
    world.endpoints(&[("fd88::2", "n1"), ("fd88::3", "n1")]);
    let seen = world.two.who("[fd96::1]:80");
    assert_eq!(seen, set(&["one fd88::3", "two 2001:db8:1::1"]), "the same with IPv6");
    assert_eq!(world.one.ask("10.96.0.1:80"), Err(ErrorKind::ConnectionRefused));
}

#[test]
fn who_has_no_endpoints_refuses() {
    let mut world = World::new();
    world.service(NODE_PORT, "", &[]);
    let refused = Err(ErrorKind::ConnectionRefused);
    for to in ["10.96.0.1:80", "192.0.2.1:30080"] {
        for (name, from) in
            [("node", &world.node), ("one", &world.one), ("outside", &world.outside)]
        {
            assert_eq!(from.ask(to), refused, "{name} to {to}");
        }
    }
    assert_eq!(world.one.ask("[fd96::1]:80"), refused);
    world.endpoints(&BOTH);
    assert_eq!(world.one.ask("10.96.0.1:81"), refused, "a port that the Service does not have");
    assert!(world.one.ask("10.96.0.1:80").is_ok());
}

#[test]
fn datagrams_are_refused_too() {
    let mut world = World::new();
    world.service(r#""ports":[{"name":"udp","port":53,"protocol":"UDP"}]"#, "", &[]);
    let refusal = |namespace: &Namespace| {
        namespace.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("bound");
            socket.connect("10.96.0.1:53").expect("there is a route");
            socket.set_read_timeout(Some(Duration::from_secs(5))).expect("set");
            socket.send(b"x").expect("sent");
            socket.recv(&mut [0]).expect_err("nobody answers").kind()
        })
    };
    // The node's own are stopped before they are sent, which is another error.
    for from in [&world.one, &world.outside] {
        assert_eq!(refusal(from), ErrorKind::ConnectionRefused);
    }
}

#[test]
fn node_ports_follow_the_external_policy() {
    let mut world = World::new();
    world.service(NODE_PORT, "", &BOTH);
    let to = "192.0.2.1:30080";
    let masqueraded = set(&["one 192.0.2.1", "two 192.0.2.1"]);
    assert_eq!(world.outside.who(to), masqueraded);
    assert_eq!(world.node.who(to), masqueraded, "from the node itself");
    let local = NODE_PORT.replace("\"type\"", "\"externalTrafficPolicy\":\"Local\",\"type\"");
    world.service(&local, "", &[("10.88.0.2", "n1"), ("10.88.0.3", "n2")]);
    assert_eq!(world.outside.who(to), set(&["one 203.0.113.5"]), "local only, source kept");
    assert_eq!(world.node.who(to), masqueraded, "the node is not outside");
    assert_eq!(world.one.who(to), set(&["one 192.0.2.1", "two 10.88.0.2"]), "nor are Pods");
    world.endpoints(&[("10.88.0.3", "n2")]);
    assert_eq!(world.outside.ask(to), Err(ErrorKind::TimedOut), "dropped, not refused");
    let local = r#""internalTrafficPolicy":"Local","ports":[{"port":80,"protocol":"TCP"}]"#;
    world.service(local, "", &[("10.88.0.2", "n1"), ("10.88.0.3", "n2")]);
    assert_eq!(world.node.who("10.96.0.1:80"), set(&["one 192.0.2.1"]));
    world.endpoints(&[("10.88.0.3", "n2")]);
    assert_eq!(world.one.ask("10.96.0.1:80"), Err(ErrorKind::TimedOut));
}

#[test]
fn clients_keep_their_endpoint() {
    let mut world = World::new();
    let sticky = format!(r#""sessionAffinity":"ClientIP",{NODE_PORT}"#);
    world.service(&sticky, "", &BOTH);
    for to in ["10.96.0.1:80", "192.0.2.1:30080"] {
        world.endpoints(&BOTH);
        let first = world.outside.who(to);
        assert_eq!(first.len(), 1, "{first:?}");
        let one = first.contains("one 192.0.2.1");
        let (other, name) = if one { (BOTH[1], "two") } else { (BOTH[0], "one") };
        world.endpoints(&[other]);
        let second = set(&[&format!("{name} 192.0.2.1")]);
        assert_eq!(world.outside.who(to), second, "the one it had is gone");
        world.endpoints(&BOTH);
        assert_eq!(world.outside.who(to), second, "and it keeps the new one");
    }
    world.endpoints(&[("fd88::2", "n1"), ("fd88::3", "n1")]);
    assert_eq!(world.outside.who("[fd96::1]:80").len(), 1, "the same with IPv6");
    for how in ["list ruleset", "-j list ruleset"] {
        assert!(world.node.run(move || nft(how)).contains("203.0.113.5"), "nft shows clients");
    }
}

/// How long the map of clients still has the only one it has.
fn kept_for(node: &Namespace) -> Duration {
    let listed = node.run(|| nft("list map inet knarr-test clients-4"));
    let (_, rest) = listed.split_once("timeout 1m expires ").expect("there is a client");
    let text = rest.split_whitespace().next().expect("a time");
    if text == "1m" {
        return Duration::from_secs(60);
    }
    let (seconds, millis) = text.split_once('s').expect("59s or 59s996ms");
    let number = |text: &str| text.parse::<u64>().expect("a number");
    let millis = millis.strip_suffix("ms").map_or(0, number);
    Duration::from_secs(number(seconds)) + Duration::from_millis(millis)
}

#[test]
fn a_client_is_kept_from_its_last_connection_on() {
    let mut world = World::new();
    let minute = r#""sessionAffinity":"ClientIP",
        "sessionAffinityConfig":{"clientIP":{"timeoutSeconds":60}}"#;
    world.service(&format!("{minute},{TCP}"), "", &BOTH);
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(200) {
        world.outside.who("10.96.0.1:80");
    }
    let last = Instant::now();
    world.outside.ask("10.96.0.1:80").expect("somebody answers");
    let gone_by = Duration::from_secs(60).checked_sub(kept_for(&world.node)).expect("a minute");
    // The kernel counts in hundredths of a second, or finer.
    assert!(gone_by <= last.elapsed() + Duration::from_millis(20), "{gone_by:?}");
}

#[test]
fn source_ranges_guard_load_balancer_addresses() {
    let mut world = World::new();
    let ingress = r#""loadBalancer":{"ingress":[{"ip":"198.51.100.1"}]}"#;
    let spec = |range: &str| {
        format!(r#""type":"LoadBalancer","loadBalancerSourceRanges":["{range}"],{TCP}"#)
    };
    world.service(&spec("203.0.113.0/24"), ingress, &BOTH);
    assert!(world.outside.ask("198.51.100.1:80").is_ok());
    world.service(&spec("203.0.113.6/32"), ingress, &BOTH);
    assert_eq!(world.outside.ask("198.51.100.1:80"), Err(ErrorKind::TimedOut));
    assert!(world.outside.ask("10.96.0.1:80").is_ok(), "other addresses are not guarded");
    world.service(&spec("0.0.0.0/0"), ingress, &BOTH);
    assert!(world.outside.ask("198.51.100.1:80").is_ok());
}

#[test]
fn pods_leave_the_cluster_as_the_node() {
    let world = World::new();
    assert_eq!(world.one.ask("203.0.113.5:8080").expect("reachable"), "outside 192.0.2.1");
    assert_eq!(world.one.ask("10.88.0.3:8080").expect("reachable"), "two 10.88.0.2");
    assert_eq!(world.outside.ask("10.88.0.3:8080").expect("reachable"), "two 203.0.113.5");
    world.node.answer("node");
    assert_eq!(world.one.ask("192.0.2.1:8080").expect("reachable"), "node 10.88.0.2");
}

#[test]
fn connections_outlive_changes() {
    let mut world = World::new();
    world.service(TCP, "", &[BOTH[0]]);
    let to = "10.96.0.1:80".parse().expect("an address");
    let (_, mut stream) = world.two.run(move || open(to)).expect("connected");
    world.endpoints(&[BOTH[1]]);
    let mut echo = move || {
        stream.write_all(b"x").expect("still connected");
        stream.read(&mut [0]).expect("ended well, by the other side")
    };
    assert_eq!(echo(), 0);
    assert_eq!(world.two.who("10.96.0.1:80"), set(&["two 192.0.2.1"]));
}

#[test]
fn udp_flows_leave_endpoints_that_are_gone() {
    let mut world = World::new();
    let udp = r#""ports":[{"name":"udp","port":53,"protocol":"UDP"}]"#;
    world.service(udp, "", &[BOTH[0]]);
    let socket = world.outside.run(|| UdpSocket::bind("203.0.113.5:4000").expect("it is free"));
    socket.set_read_timeout(Some(Duration::from_secs(5))).expect("set");
    let ask = || {
        socket.send_to(b"x", "10.96.0.1:53").expect("sent");
        let mut text = [0; 64];
        let (length, from) = socket.recv_from(&mut text).expect("answered");
        assert_eq!(from.to_string(), "10.96.0.1:53");
        String::from_utf8_lossy(&text[..length]).into_owned()
    };
    assert_eq!(ask(), "one 192.0.2.1");
    assert_eq!(ask(), "one 192.0.2.1");
    world.endpoints(&[BOTH[1]]);
    assert_eq!(ask(), "two 192.0.2.1", "the same socket, another endpoint");
}
