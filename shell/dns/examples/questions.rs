//! Asks for the addresses of 1,000 Services, of a node's DNS and of Debian's unbound with the same
//! names as local data: `questions ROUNDS`; `cargo xtask bench dns` does.
#![allow(clippy::print_stdout, reason = "it reports to whoever runs it")]

use std::fmt::Write;
use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use knarr_dns::{Answerer, DnsConfig, Forwarder, Known, Resolvers, serve};
use knarr_dns_zone::{Clients, Query, Zone, addresses_in, kind};
use knarr_netplan::Services;
use knarr_reconcile::Change;
use tokio::task::JoinSet;

const SERVICES: usize = 1_000;
/// Questions on their way at a time.
const WINDOW: usize = 64;
const ROUND: Duration = Duration::from_secs(2);
const OURS: ([u8; 4], u16) = ([127, 0, 0, 53], 5301);
const THEIRS: ([u8; 4], u16) = ([127, 0, 0, 53], 5302);

fn name(at: usize) -> String {
    format!("s{at}.default.svc.cluster.local")
}

fn address(at: usize) -> String {
    format!("10.43.{}.{}", at / 250, at % 250 + 1)
}

/// A node's DNS that knows the Services.
fn ours(tasks: &mut JoinSet<()>) {
    let mut zone = Zone::new("cluster.local", Vec::new());
    for at in 0..SERVICES {
        let ip = address(at);
        let service = format!(
            r#"{{"metadata":{{"namespace":"default","name":"s{at}"}},
            "spec":{{"clusterIP":"{ip}","clusterIPs":["{ip}"],"ports":[{{"port":80}}]}}}}"#
        );
        let change = Change::Put(service.into(), 1);
        zone.apply(Services::SERVICES, &change).expect("a Service");
    }
    let known = Arc::new(RwLock::new(Known { zone, clients: Clients::default() }));
    let resolvers = Resolvers::new(&DnsConfig {
        addresses: Vec::new(),
        port: 0,
        link: None,
        domain: "cluster.local".to_owned(),
        ranges: Vec::new(),
        resolv_conf: "/dev/null".into(),
        stub_domains: Vec::new(),
        node: String::new(),
    });
    let answerer = Arc::new(Answerer::new(known, Forwarder::new(resolvers)));
    serve(&answerer, OURS.into(), tasks).expect("the port is free");
}

struct Unbound(Child);

impl Drop for Unbound {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn theirs(dir: &std::path::Path) -> Unbound {
    let mut config = format!(
        "server:\n  interface: 127.0.0.53@{}\n  num-threads: 2\n  so-reuseport: yes\n  \
         do-daemonize: no\n  username: \"\"\n  chroot: \"\"\n  pidfile: \"\"\n  use-syslog: no\n  \
         verbosity: 0\n  local-zone: \"cluster.local.\" static\n",
        THEIRS.1
    );
    for at in 0..SERVICES {
        writeln!(config, "  local-data: \"{}. 30 IN A {}\"", name(at), address(at)).expect("text");
    }
    let file = dir.join("unbound.conf");
    std::fs::write(&file, config).expect("a folder that can be written");
    let mut unbound = Command::new("/usr/sbin/unbound");
    unbound.arg("-d").arg("-c").arg(&file).stdout(Stdio::null()).stderr(Stdio::null());
    let unbound = Unbound(unbound.spawn().expect("unbound (apt-get install unbound)"));
    let began = Instant::now();
    while ask_one(THEIRS.into()).is_none() {
        assert!(began.elapsed() < Duration::from_secs(10), "unbound never answered");
    }
    unbound
}

fn ask_one(server: SocketAddr) -> Option<()> {
    let socket = UdpSocket::bind("127.0.0.1:0").ok()?;
    socket.set_read_timeout(Some(Duration::from_millis(100))).ok()?;
    socket.connect(server).ok()?;
    socket.send(&Query::new(1, &name(7), kind::A).bytes()).ok()?;
    let mut buffer = [0; 1500];
    let length = socket.recv(&mut buffer).ok()?;
    (addresses_in(&buffer[..length]) == [address(7).parse::<std::net::IpAddr>().ok()?])
        .then_some(())
}

/// Questions a second, and how long each waited.
fn round(server: SocketAddr) -> (f64, Vec<Duration>) {
    let questions: Vec<Vec<u8>> =
        (0..SERVICES).map(|at| Query::new(0, &name(at), kind::A).bytes()).collect();
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a socket");
    socket.connect(server).expect("a socket");
    let mut sent = vec![Instant::now(); 1 << 16];
    let mut waited = Vec::new();
    let mut id = 0_u16;
    let mut ask = |sent: &mut Vec<Instant>| {
        let mut question = questions[usize::from(id) % SERVICES].clone();
        question[..2].copy_from_slice(&id.to_be_bytes());
        sent[usize::from(id)] = Instant::now();
        socket.send(&question).expect("a socket");
        id = id.wrapping_add(1);
    };
    (0..WINDOW).for_each(|_| ask(&mut sent));
    let began = Instant::now();
    let mut buffer = [0; 1500];
    while began.elapsed() < ROUND {
        // A question that was lost is made up for by another.
        if socket.recv(&mut buffer).is_ok() {
            let id = u16::from_be_bytes([buffer[0], buffer[1]]);
            waited.push(sent[usize::from(id)].elapsed());
            assert_eq!(buffer[7], 1, "one address");
        }
        ask(&mut sent);
    }
    (waited.len() as f64 / began.elapsed().as_secs_f64(), waited)
}

fn main() {
    let rounds = std::env::args().nth(1).and_then(|word| word.parse().ok()).unwrap_or(3);
    let dir = std::env::temp_dir().join(format!("questions-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a folder");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let _inside = runtime.enter();
    let mut tasks = JoinSet::new();
    ours(&mut tasks);
    let unbound = theirs(&dir);
    let mut all = [("knarr", OURS), ("unbound", THEIRS)]
        .map(|(name, at)| (name, SocketAddr::from(at), Vec::new(), Vec::new()));
    for _ in 0..rounds {
        for (_, server, rates, waits) in &mut all {
            let (rate, waited) = round(*server);
            rates.push(rate);
            waits.extend(waited);
        }
    }
    drop(unbound);
    std::fs::remove_dir_all(&dir).ok();
    for (name, _, mut rates, mut waits) in all {
        rates.sort_by(f64::total_cmp);
        waits.sort();
        let part = |of: usize| waits[waits.len() * of / 1000];
        println!(
            "{name}: p50 {:?} p90 {:?} p99 {:?} rate {:.0}",
            part(500),
            part(900),
            part(990),
            rates[rates.len() / 2]
        );
    }
}
