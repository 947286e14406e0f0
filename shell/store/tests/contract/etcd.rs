//! An etcd of a test's own: on loopback, in a folder that goes with it.
#![allow(dead_code, reason = "each of the tests uses its part")]

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use knarr_etcdpb::etcdserverpb as pb;
use knarr_etcdpb::etcdserverpb::kv_client::KvClient;
use tempfile::TempDir;

/// A running etcd of one or more members; ended when dropped.
pub struct Etcd {
    members: Vec<Member>,
    _dir: TempDir,
}

/// How one member is started, and its process while it runs.
struct Member {
    command: Command,
    endpoint: String,
    process: Option<Child>,
}

impl Etcd {
    /// Starts one of a single member.
    pub async fn start() -> Self {
        Self::of(1).await
    }

    /// Starts one of so many members and waits until all answer.
    pub async fn of(count: usize) -> Self {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let urls: Vec<(String, String)> = (0..count).map(|_| (free(), free())).collect();
        let peers: Vec<_> =
            urls.iter().enumerate().map(|(n, (_, peer))| format!("m{n}={peer}")).collect();
        let mut members = Vec::new();
        for (n, (endpoint, peer)) in urls.iter().enumerate() {
            let mut command = Command::new("etcd");
            command.arg(format!("--name=m{n}"));
            command.arg("--data-dir").arg(dir.path().join(n.to_string()));
            command.args(["--listen-client-urls", endpoint, "--advertise-client-urls", endpoint]);
            command.args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]);
            command.arg(format!("--initial-cluster={}", peers.join(",")));
            if count > 1 {
                // An election is quick: it is not what is measured.
                command.args(["--heartbeat-interval=20", "--election-timeout=200"]);
            }
            command.stdout(Stdio::null()).stderr(Stdio::null());
            members.push(Member { command, endpoint: endpoint.clone(), process: None });
        }
        let mut etcd = Self { members, _dir: dir };
        (0..count).for_each(|n| etcd.restart(n));
        for n in 0..count {
            etcd.answers(n).await;
        }
        etcd
    }

    /// Where its members are.
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|member| member.endpoint.clone()).collect()
    }

    /// Where its first member is.
    pub fn endpoint(&self) -> &str {
        &self.members[0].endpoint
    }

    /// Ends a member as a power cut would.
    pub fn kill(&mut self, n: usize) {
        if let Some(mut process) = self.members[n].process.take() {
            process.kill().ok();
            process.wait().ok();
        }
    }

    /// Starts a member that does not run.
    pub fn restart(&mut self, n: usize) {
        let member = &mut self.members[n];
        let process = member.command.spawn();
        let missing = |error| panic!("{:?}: {error} (scripts/setup installs it)", member.command);
        member.process = Some(process.unwrap_or_else(missing));
    }

    /// Waits until a member answers.
    pub async fn answers(&self, n: usize) {
        let endpoint = &self.members[n].endpoint;
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let asked = async {
                let mut client = KvClient::connect(endpoint.clone()).await.ok()?;
                let key = b"a"[..].into();
                client.range(pb::RangeRequest { key, ..Default::default() }).await.ok()
            };
            if asked.await.is_some() {
                return;
            }
            assert!(Instant::now() < deadline, "etcd at {endpoint} does not answer");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        (0..self.members.len()).for_each(|n| self.kill(n));
    }
}

/// A URL that nobody listens at, nor will: not one of the ports that the kernel gives to whoever
/// asks for any, and of this process's own share of the others.
pub fn free() -> String {
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    let share = u16::try_from(std::process::id() % 1200).unwrap() * 10;
    loop {
        let port = 20_000 + share + TAKEN.fetch_add(1, Ordering::Relaxed);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return format!("http://127.0.0.1:{port}");
        }
    }
}
