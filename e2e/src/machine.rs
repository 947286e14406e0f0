//! A test's machine: where knarr keeps its things on it, and knarr's command line.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};

use crate::{Outcome, PATIENCE, Running, Snapshot, snapshot};

/// A machine with nothing on it yet.
pub struct Machine {
    dir: PathBuf,
    knarr: PathBuf,
    pub(crate) kubectl: PathBuf,
    before: Snapshot,
}

impl Machine {
    pub(crate) fn new(dir: PathBuf) -> Self {
        let built = built("knarr");
        let knarr = std::env::var_os("KNARR_BIN").map_or(built, PathBuf::from);
        assert!(knarr.exists(), "{}: run `cargo build` first", knarr.display());
        let kubectl = kubectl();
        assert!(kubectl.exists(), "{}: run scripts/setup first", kubectl.display());
        let before = Snapshot::take();
        Self { dir, knarr, kubectl, before }
    }

    /// A path in the test's own folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.path("admin.kubeconfig")
    }

    /// What was there before the test did anything.
    pub fn before(&self) -> &Snapshot {
        &self.before
    }

    /// A command line of knarr's; `--data-dir` and `--root-dir` are named in `args` as `@data` and
    /// `@root` where wanted.
    pub fn command(&self, args: &str) -> Command {
        let mut command = Command::new(&self.knarr);
        command.args(self.expand(args));
        command
    }

    /// The same, as a user without any rights.
    pub fn command_as_nobody(&self, args: &str) -> Command {
        let copy = self.path("knarr");
        if !copy.exists() {
            fs::copy(&self.knarr, &copy).unwrap();
        }
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(copy);
        command.args(self.expand(args));
        command
    }

    fn expand(&self, args: &str) -> Vec<String> {
        let place = |name: &str| self.path(name).display().to_string();
        let word = |word: &str| match word {
            "@data" => format!("--data-dir={}", place("data")),
            "@root" => format!("--root-dir={}", place("root")),
            "@kubeconfig" => format!("--kubeconfig={}", self.kubeconfig().display()),
            word => word.replace('@', &place("")),
        };
        args.split_whitespace().map(word).collect()
    }

    /// Runs a command line of knarr's to its end, or ends it when it takes too long.
    pub fn knarr(&self, args: &str) -> Outcome {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=1", "30"]).arg(&self.knarr);
        Outcome::of(command.args(self.expand(args)))
    }

    /// Starts a command line of knarr's.
    pub fn start(&self, args: &str) -> Running {
        Running::start(args, &mut self.command(args))
    }

    /// Starts a cluster of one node and waits until it is ready.
    pub fn up(&self) -> Running {
        let up = self.start(UP);
        up.line("Ready", |line| line.starts_with("Ready"));
        up
    }

    /// The OCI archive of an image that the tests use.
    pub fn archive(&self, word: &str) -> PathBuf {
        archive(word)
    }

    /// Puts the images that the tests use into the node's store.
    pub fn import(&self, word: &str) {
        let archive = archive(word);
        self.knarr(&format!("images import {} @root", archive.display())).success();
    }

    /// Asserts that the machine is as it was before the test, and the folders are gone.
    #[track_caller]
    pub fn assert_as_before(&self) {
        let mut left = self.before.changes(&Snapshot::take());
        left.extend(snapshot::cgroups(&self.clusters()).map(|path| format!("cgroup {path}")));
        left.extend(["data", "root"].into_iter().filter_map(|name| {
            let path = self.path(name);
            let kept = fs::read_dir(&path).is_ok_and(|mut entries| entries.next().is_some());
            kept.then(|| format!("folder {}", path.display()))
        }));
        assert!(left.is_empty(), "left behind:\n{}", left.join("\n"));
    }

    /// Asks an nginx for a page, from the node.
    ///
    /// # Panics
    /// There is no answer.
    #[track_caller]
    pub fn page(&self, address: &str) -> String {
        let address = format!("{address}:80");
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect_timeout(&address.parse().unwrap(), PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        };
        let text = ask().unwrap_or_else(|error| panic!("no answer from {address}: {error}"));
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        text
    }

    /// Sends a signal to the first process of a container (`scheme://id`).
    ///
    /// # Panics
    /// There is no process of it.
    #[track_caller]
    pub fn signal_container(&self, id: &str, signal: Signal) {
        kill_process(self.container_process(id), signal).unwrap();
    }

    /// The first process of a container (`scheme://id`).
    ///
    /// # Panics
    /// There is none.
    #[track_caller]
    pub fn container_process(&self, id: &str) -> Pid {
        let id = id.rsplit('/').next().unwrap_or_default();
        assert!(!id.is_empty(), "the container has no id");
        let mut pids: Vec<i32> = Snapshot::pids()
            .into_iter()
            .filter(|pid| {
                let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
                groups.contains(id)
            })
            .collect();
        pids.sort_unstable();
        let first = pids.first().unwrap_or_else(|| panic!("no process of container {id}"));
        Pid::from_raw(*first).unwrap()
    }

    /// How many containers of nginx run.
    pub fn running_containers(&self) -> usize {
        let processes = Snapshot::take().only("process");
        processes.iter().filter(|line| line.contains("nginx: master")).count()
    }

    /// How many Pods have begun: each has a shim.
    pub fn shims(&self) -> usize {
        let processes = Snapshot::take().only("process");
        processes.iter().filter(|line| line.contains("pod-shim")).count()
    }

    /// Leaves word of this test's control groups, which no namespace takes along, for whoever
    /// cleans up after it: those with a process of this machine in them.
    pub fn note_cgroups(&self) {
        let mut clusters = self.clusters();
        for pid in Snapshot::pids() {
            let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            let paths = groups.lines().filter_map(|line| line.splitn(3, ':').nth(2));
            let tops = paths.filter_map(|path| path.trim_start_matches('/').split('/').next());
            clusters.extend(tops.filter(|top| top.starts_with("knarr-")).map(str::to_owned));
        }
        let names = clusters.into_iter().collect::<Vec<_>>().join("\n");
        fs::write(self.path(CLUSTERS), names).unwrap();
    }

    fn clusters(&self) -> BTreeSet<String> {
        noted_clusters(&self.dir)
    }
}

/// Where a test notes the names of its clusters.
const CLUSTERS: &str = "clusters";

/// The names of a test's clusters, as control groups carry them.
pub(crate) fn noted_clusters(dir: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(dir.join(CLUSTERS)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.note_cgroups();
    }
}

/// The command line of a whole cluster.
pub const UP: &str = "up @data @root @kubeconfig --bind-address 127.0.0.1 --node-name node-1";

/// A program of this workspace, beside the test's executable.
fn built(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().and_then(Path::parent).unwrap().join(name)
}

fn kubectl() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || set("HOME").unwrap_or("/root".into()).join(".cache");
    let cache = || set("XDG_CACHE_HOME").unwrap_or_else(home);
    set("KUBECTL").unwrap_or_else(|| cache().join("knarr/bin/kubectl"))
}

/// The archive of an image, made once and again whenever the chore that makes it is newer.
fn archive(word: &str) -> PathBuf {
    let xtask = built("xtask");
    let archive = built(&format!("{word}.oci.tar"));
    let age = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    if age(&archive) <= age(&xtask) {
        let mut command = Command::new(&xtask);
        Outcome::of(command.arg("image").arg("--out").arg(&archive).arg(word)).success();
    }
    archive
}
