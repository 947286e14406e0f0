//! Debian's etcd on a test's machine.

use std::process::Command;

use rustix::process::Signal;

use crate::{Machine, Running};

/// An etcd of several members.
pub struct Etcd<'a> {
    machine: &'a Machine,
    flags: String,
    scheme: &'a str,
    members: Vec<Option<Running>>,
}

impl<'a> Etcd<'a> {
    /// Starts members, and waits until they serve `http` or `https`; `flags` are split at blanks,
    /// and `@` in them is the test's folder.
    pub fn start(machine: &'a Machine, count: usize, scheme: &'a str, flags: &str) -> Self {
        let flags = flags.to_owned();
        let mut etcd = Self { machine, flags, scheme, members: Vec::new() };
        etcd.members.resize_with(count, || None);
        (0..count).for_each(|n| etcd.run(n));
        (0..count).for_each(|n| etcd.ready(n));
        etcd
    }

    /// Its members' addresses, for `--etcd-servers`.
    pub fn servers(&self) -> String {
        let urls: Vec<String> = (0..self.members.len()).map(|n| self.url(n)).collect();
        urls.join(",")
    }

    /// Ends a member as a power cut would.
    pub fn kill(&mut self, n: usize) {
        self.members[n].take().expect("it runs").end(Signal::KILL);
    }

    /// Starts a member again and waits until it serves.
    pub fn restart(&mut self, n: usize) {
        self.run(n);
        self.ready(n);
    }

    fn url(&self, n: usize) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, 2379 + 10 * n)
    }

    fn run(&mut self, n: usize) {
        let peer = |n: usize| format!("http://127.0.0.1:{}", 2380 + 10 * n);
        let peers = (0..self.members.len()).map(|n| format!("m{n}={}", peer(n)));
        let peers = peers.collect::<Vec<_>>().join(",");
        let (url, peer, at) = (self.url(n), peer(n), self.machine.path("").display().to_string());
        let mut command = Command::new("etcd");
        command.arg(format!("--name=m{n}")).arg("--data-dir").arg(format!("{at}/etcd-{n}"));
        command.args(["--listen-client-urls", &url, "--advertise-client-urls", &url]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &peers]);
        // An election is quick: it is not what is measured.
        command.args(["--heartbeat-interval=20", "--election-timeout=200"]);
        command.args(self.flags.split_whitespace().map(|word| word.replace('@', &at)));
        self.members[n] = Some(Running::start(&format!("etcd {n}"), &mut command));
    }

    fn ready(&self, n: usize) {
        let member = self.members[n].as_ref().expect("it runs");
        member.line("that it serves", |line| line.contains("client requests"));
    }
}
