//! A Pod's link in real network namespaces: packets pass both ways, and nothing is left behind.
//! Needs root (network namespaces).

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc;
use std::thread;

use knarr_net::{Attachment, Network};
use rustix::thread::UnshareFlags;

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
            // SAFETY: only the network namespace of this thread changes; no file descriptors are
            // unshared.
            #[allow(unsafe_code, reason = "unshare is unsafe for its file descriptor flags")]
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.expect("root");
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
}

fn ip(args: &str) -> String {
    let done = Command::new("ip").args(args.split(' ')).output().expect("iproute2 is there");
    assert!(done.status.success(), "ip {args}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).into_owned()
}

fn on_runtime<F: Future<Output = ()>>(job: impl FnOnce() -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(job());
}

#[test]
fn node_and_pods_reach_each_other_without_nat() {
    let (node, one, two) = (Namespace::new(), Namespace::new(), Namespace::new());
    let paths = [one.path.clone(), two.path.clone()];
    node.run(move || {
        ip("link set lo up");
        ip("addr add 192.0.2.1/32 dev lo");
        on_runtime(|| async {
            let network = Network::open().expect("netlink");
            for (at, path) in paths.iter().enumerate() {
                let address: IpAddr = format!("10.88.0.{}", at + 2).parse().expect("an address");
                let want = Attachment { link: format!("kntest{at}"), addresses: vec![address] };
                network.attach(path, &want).await.expect("attached");
                network.attach(path, &want).await.expect("attached again");
            }
        });
    });
    let server = one.run(|| TcpListener::bind("10.88.0.2:80").expect("the Pod has its address"));
    let peers = thread::spawn(move || {
        let accept = || {
            let (mut stream, peer) = server.accept().expect("somebody connects");
            stream.write_all(b"hello").expect("sent");
            peer.ip().to_string()
        };
        [accept(), accept()]
    });
    let fetch = || {
        let address: SocketAddr = "10.88.0.2:80".parse().expect("an address");
        let mut text = String::new();
        TcpStream::connect(address).expect("reachable").read_to_string(&mut text).expect("read");
        text
    };
    assert_eq!(node.run(fetch), "hello");
    assert_eq!(two.run(fetch), "hello");
    assert_eq!(peers.join().expect("served"), ["192.0.2.1", "10.88.0.3"], "no NAT");
    node.run(|| {
        on_runtime(|| async {
            let network = Network::open().expect("netlink");
            assert_eq!(network.links("kntest").await.expect("listed").len(), 2);
            for link in ["kntest0", "kntest1", "kntest1"] {
                network.detach(link).await.expect("detached");
            }
            assert!(network.links("kntest").await.expect("listed").is_empty());
        });
        assert_eq!(ip("route").trim(), "", "routes go with their links");
    });
}
