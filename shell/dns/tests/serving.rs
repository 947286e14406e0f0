//! Questions over real sockets, with a server for the rest of the world that the test plays.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use knarr_dns::{Answerer, DnsConfig, Forwarder, Known, Resolvers, StubDomain, serve};
use knarr_dns_zone::{Clients, Code, Query, Record, Reply, Zone, addresses_in, kind};
use knarr_netplan::Services;
use knarr_reconcile::Change;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// The rest of the world: `www.example.com`, a long answer that needs TCP, and nothing else.
struct World {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    tasks: JoinSet<()>,
}

fn says(query: &Query, limit: usize) -> Vec<u8> {
    let address = |last: u8| Record::Address([192, 0, 2, last].into());
    let (code, count) = match query.name.as_str() {
        "www.example.com" => (Code::NoError, 1),
        "long.example.com" => (Code::NoError, 200),
        "broken.example.com" => (Code::ServFail, 0),
        _ => (Code::NxDomain, 0),
    };
    let mut reply = Reply::new(query, code, limit);
    for last in 0..count {
        reply.answer(None, &address(last), 60);
    }
    reply.finish()
}

impl World {
    async fn new() -> Self {
        Self::that(says).await
    }

    /// One that answers in its own way.
    async fn that(says: fn(&Query, usize) -> Vec<u8>) -> Self {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let udp = UdpSocket::bind(address).await.unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        let count = asked.clone();
        tasks.spawn(async move {
            let mut buffer = [0; 4096];
            loop {
                let (length, client) = udp.recv_from(&mut buffer).await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                let query = Query::parse(&buffer[..length]).unwrap();
                // Long enough that questions asked together are on their way together.
                tokio::time::sleep(Duration::from_millis(20)).await;
                udp.send_to(&says(&query, 512), client).await.unwrap();
            }
        });
        tasks.spawn(async move {
            loop {
                let (mut stream, _) = tcp.accept().await.unwrap();
                let query = Query::parse(&read(&mut stream).await).unwrap();
                write(&mut stream, &says(&query, 65_535)).await;
            }
        });
        Self { address, asked, tasks }
    }
}

async fn read(stream: &mut TcpStream) -> Vec<u8> {
    let mut message = vec![0; stream.read_u16().await.unwrap().into()];
    stream.read_exact(&mut message).await.unwrap();
    message
}

async fn write(stream: &mut TcpStream, message: &[u8]) {
    stream.write_u16(message.len().try_into().unwrap()).await.unwrap();
    stream.write_all(message).await.unwrap();
}

struct Served {
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Served {
    /// A node's DNS with one Service of each kind, whose stub domain is the world's.
    async fn new(servers: Vec<SocketAddr>) -> Self {
        let mut zone = Zone::new("cluster.local", vec!["10.0.0.0/8".parse().unwrap()]);
        for (name, spec) in [
            ("web", r#"{"clusterIP":"10.43.0.5","clusterIPs":["10.43.0.5"],"ports":[]}"#),
            ("far", r#"{"type":"ExternalName","externalName":"www.example.com"}"#),
            ("near", r#"{"type":"ExternalName","externalName":"web.a.svc.cluster.local"}"#),
            ("loop", r#"{"type":"ExternalName","externalName":"loop.a.svc.cluster.local"}"#),
        ] {
            let service =
                format!(r#"{{"metadata":{{"name":"{name}","namespace":"a"}},"spec":{spec}}}"#);
            zone.apply(Services::SERVICES, &Change::Put(service.into(), 1)).unwrap();
        }
        let mut clients = Clients::default();
        let pod =
            r#"{"metadata":{"uid":"1","namespace":"a"},"status":{"podIPs":[{"ip":"127.0.0.1"}]}}"#;
        clients.apply(&Change::Put(pod.into(), 1)).unwrap();
        let known = Arc::new(RwLock::new(Known { zone, clients }));
        let stub = StubDomain { domain: "example.com".into(), servers };
        let config = DnsConfig {
            addresses: vec![],
            port: 0,
            link: None,
            domain: "cluster.local".into(),
            ranges: vec![],
            resolv_conf: "/nonexistent".into(),
            stub_domains: vec![stub],
            node: String::new(),
        };
        let answerer = Answerer::new(known, Forwarder::new(Resolvers::new(&config)));
        let mut tasks = JoinSet::new();
        // An address of this process alone.
        let [.., high, low] = std::process::id().to_be_bytes();
        let address = SocketAddr::from(([127, 1, high, low], 5300));
        serve(&Arc::new(answerer), address, &mut tasks).unwrap();
        Self { address, _tasks: tasks }
    }

    async fn ask(&self, name: &str) -> Vec<u8> {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let query = Query::new(77, name, kind::A);
        socket.send_to(&query.bytes(), self.address).await.unwrap();
        let mut buffer = vec![0; 4096];
        let received = timeout(Duration::from_secs(20), socket.recv(&mut buffer)).await;
        buffer.truncate(received.expect("an answer").unwrap());
        assert!(query.is_answered_by(&buffer));
        buffer
    }

    async fn addresses(&self, name: &str) -> Vec<String> {
        addresses_in(&self.ask(name).await).iter().map(IpAddr::to_string).collect()
    }
}

fn code(reply: &[u8]) -> u8 {
    reply[3] & 15
}

#[tokio::test]
async fn names_of_the_cluster_and_of_the_world_are_answered() {
    let world = World::new().await;
    let dns = Served::new(vec![world.address]).await;
    assert_eq!(dns.addresses("web.a.svc.cluster.local").await, ["10.43.0.5"]);
    assert_eq!(dns.addresses("www.example.com").await, ["192.0.2.0"]);
    assert_eq!(dns.addresses("far.a.svc.cluster.local").await, ["192.0.2.0"]);
    assert_eq!(dns.addresses("near.a.svc.cluster.local").await, ["10.43.0.5"]);
    assert_eq!(code(&dns.ask("loop.a.svc.cluster.local").await), Code::ServFail as u8);
    assert_eq!(code(&dns.ask("none.example.com").await), Code::NxDomain as u8);
    assert_eq!(code(&dns.ask("none.a.svc.cluster.local").await), Code::NxDomain as u8);
    // Nobody knows: there is no server for it.
    assert_eq!(code(&dns.ask("example.org").await), Code::ServFail as u8);
    drop(world.tasks);
}

#[tokio::test]
async fn the_search_path_is_walked_in_one_round() {
    let world = World::new().await;
    let dns = Served::new(vec![world.address]).await;
    assert_eq!(dns.addresses("web.a.a.svc.cluster.local").await, ["10.43.0.5"]);
    assert_eq!(dns.addresses("www.example.com.a.svc.cluster.local").await, ["192.0.2.0"]);
    // A client of another namespace than the path's has to walk by itself.
    let other = dns.ask("www.example.com.b.svc.cluster.local").await;
    assert_eq!(code(&other), Code::NxDomain as u8);
}

#[tokio::test]
async fn what_many_ask_is_asked_once_and_remembered() {
    let world = World::new().await;
    let dns = Arc::new(Served::new(vec![world.address]).await);
    let mut asking = JoinSet::new();
    for _ in 0..20 {
        let dns = dns.clone();
        asking.spawn(async move { dns.addresses("www.example.com").await });
    }
    for answer in asking.join_all().await {
        assert_eq!(answer, ["192.0.2.0"]);
    }
    assert_eq!(world.asked.load(Ordering::SeqCst), 1);
    dns.ask("www.example.com").await;
    assert_eq!(world.asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_long_answer_goes_by_tcp() {
    let world = World::new().await;
    let dns = Served::new(vec![world.address]).await;
    let short = dns.ask("long.example.com").await;
    assert!(short[2] & 2 != 0, "it says that it is cut");
    let mut stream = TcpStream::connect(dns.address).await.unwrap();
    write(&mut stream, &Query::new(5, "long.example.com", kind::A).bytes()).await;
    assert_eq!(addresses_in(&read(&mut stream).await).len(), 200);
    // The same connection takes more questions.
    write(&mut stream, &Query::new(6, "web.a.svc.cluster.local", kind::A).bytes()).await;
    assert_eq!(addresses_in(&read(&mut stream).await).len(), 1);
}

#[tokio::test]
async fn a_server_that_is_down_is_passed_over() {
    let world = World::new().await;
    let down = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let dns = Served::new(vec![down, world.address]).await;
    assert_eq!(dns.addresses("www.example.com").await, ["192.0.2.0"]);
    assert_eq!(code(&dns.ask("broken.example.com").await), Code::ServFail as u8);
}

#[tokio::test]
async fn nonsense_does_not_stop_it() {
    let world = World::new().await;
    let dns = Served::new(vec![world.address]).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for length in [0, 1, 11, 12, 40, 600] {
        socket.send_to(&vec![0xff; length], dns.address).await.unwrap();
    }
    assert_eq!(dns.addresses("web.a.svc.cluster.local").await, ["10.43.0.5"]);
}

#[tokio::test]
async fn a_server_that_fails_is_not_the_last_word() {
    let failing = World::that(|query, limit| Reply::new(query, Code::ServFail, limit).finish());
    let (failing, world) = (failing.await, World::new().await);
    let dns = Served::new(vec![failing.address, world.address]).await;
    assert_eq!(dns.addresses("www.example.com").await, ["192.0.2.0"]);
}
