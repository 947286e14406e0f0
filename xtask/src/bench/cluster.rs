//! A cluster under measurement: the real binary in a folder of its own, its Pods, its memory.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Outcome;
use super::api::{Connection, Events};

const PORT: u16 = 6443;
const PODS: &str = "/api/v1/namespaces/default/pods";

/// Where clusters are made, one after the other.
pub(super) struct Site {
    pub(super) knarr: PathBuf,
    pub(super) dir: PathBuf,
}

impl Site {
    fn knarr(&self, words: &str) -> Command {
        let place = |name: &str| self.dir.join(name).display().to_string();
        let mut command = Command::new(&self.knarr);
        command.args(words.split_whitespace().map(|word| match word {
            "@data" => format!("--data-dir={}", place("data")),
            "@root" => format!("--root-dir={}", place("root")),
            word => word.to_owned(),
        }));
        command
    }

    /// Runs a command line of knarr's to its end.
    pub(super) fn run(&self, words: &str) -> Outcome<()> {
        let output = self.knarr(words).stdin(Stdio::null()).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        output.status.success().then_some(()).ok_or(format!("knarr {words}: {said}").into())
    }

    /// Puts busybox into the image store of the next cluster.
    pub(super) fn import(&self) -> Outcome<()> {
        let archive = self.dir.join("busybox.tar").display().to_string();
        if !Path::new(&archive).exists() {
            crate::image::run(&["--out".to_owned(), archive.clone(), "busybox".to_owned()])?;
        }
        self.run(&format!("images import {archive} @root"))
    }

    /// Puts busybox into the image store of a further node, whose root this folder is.
    pub(super) fn import_into(&self, folder: &str) -> Outcome<()> {
        let (archive, root) = (self.dir.join("busybox.tar"), self.dir.join(folder));
        let (archive, root) = (archive.display(), root.display());
        self.run(&format!("images import {archive} --root-dir {root}"))
    }

    /// Starts a cluster and waits for `Ready`.
    pub(super) fn up(&self) -> Outcome<Cluster<'_>> {
        self.up_with("")
    }

    /// Starts a cluster with more flags.
    pub(super) fn up_with(&self, flags: &'static str) -> Outcome<Cluster<'_>> {
        let (started, ready) = (Instant::now(), Duration::ZERO);
        let mut cluster = Cluster { site: self, flags, started, ready };
        cluster.launch()?;
        Ok(cluster)
    }

    /// Removes the cluster that was here.
    fn reset(&self) -> Outcome<()> {
        self.run("reset --yes @data @root")
    }
}

/// A running cluster; dropped, it is removed.
pub(super) struct Cluster<'a> {
    site: &'a Site,
    flags: &'static str,
    pub(super) started: Instant,
    /// From the start of the process to `Ready` on its standard output.
    pub(super) ready: Duration,
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        if let Err(why) = self.site.reset() {
            eprintln!("xtask: {why}");
        }
    }
}

impl Cluster<'_> {
    /// Stops the process and starts it again on its state.
    pub(super) fn restart(&mut self) -> Outcome<()> {
        self.site.run("down @data @root")?;
        self.launch()
    }

    fn launch(&mut self) -> Outcome<()> {
        let log = self.site.dir.join("log");
        let words = "up @data @root --bind-address 127.0.0.1 --node-name bench";
        let mut command = self.site.knarr(&format!("{words} {}", self.flags));
        command.args(["--secure-port".to_owned(), PORT.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(&log)?);
        self.started = Instant::now();
        let mut child = command.spawn()?;
        let mut lines = BufReader::new(child.stdout.take().expect("stdout is piped"));
        // `knarr down` and `reset` end it and wait for that; what is left to do is to reap it.
        std::thread::spawn(move || child.wait());
        let mut line = String::new();
        while !line.starts_with("Ready") {
            line.clear();
            if lines.read_line(&mut line)? == 0 {
                return Err(format!("no Ready: {}", fs::read_to_string(log)?).into());
            }
        }
        self.ready = self.started.elapsed();
        std::thread::spawn(move || io::copy(&mut lines, &mut io::sink()));
        Ok(())
    }

    pub(super) fn connect(&self) -> Outcome<Connection> {
        Connection::open(&self.site.dir.join("data/pki"), PORT)
    }

    /// A view of the Pods, once the cluster takes any: that is when the default account is there.
    pub(super) fn pods(&self) -> Outcome<Pods> {
        let accounts = "/api/v1/namespaces/default/serviceaccounts?watch=1";
        let mut accounts = self.connect()?.watch(accounts)?;
        while accounts.next()?["object"]["metadata"]["name"] != "default" {}
        let events = self.connect()?.watch(&format!("{PODS}?watch=1"))?;
        Ok(Pods { requests: self.connect()?, events })
    }

    /// Proportional set size of all processes of the binary, shims among them, and the part of it
    /// that is not pages of files; in MB.
    pub(super) fn memory(&self) -> Outcome<(f64, f64)> {
        let binary = fs::canonicalize(&self.site.knarr)?;
        let (mut all, mut anonymous) = (0.0, 0.0);
        for entry in fs::read_dir("/proc")?.flatten() {
            if fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe == binary) {
                let rollup = fs::read_to_string(entry.path().join("smaps_rollup"))?;
                all += megabytes(&rollup, "Pss:")?;
                anonymous += megabytes(&rollup, "Pss_Anon:")?;
            }
        }
        Ok((all, anonymous))
    }
}

/// A line of `smaps_rollup`, which counts in units of 1024 bytes.
pub(super) fn megabytes(rollup: &str, name: &str) -> Outcome<f64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix(name));
    let count = line.and_then(|rest| rest.split_whitespace().next()).ok_or(name)?;
    Ok(count.parse::<f64>()? * 1024.0 / 1e6)
}

/// Pods of the default namespace, and what happens to them.
pub(super) struct Pods {
    requests: Connection,
    events: Events,
}

impl Pods {
    /// Creates a Pod of one container that sleeps until it is told to end.
    pub(super) fn create(&mut self, name: &str) -> Outcome<()> {
        self.create_on(name, "")
    }

    /// Creates one on a certain node, or anywhere when it has no name.
    pub(super) fn create_on(&mut self, name: &str, node: &str) -> Outcome<()> {
        let script = "trap 'exit 0' TERM; sleep 1000000 & wait";
        let pod = json!({
            "metadata": {"name": name},
            "spec": {"nodeName": node, "containers": [{
                "name": "sleep",
                "image": "docker.io/library/busybox:1",
                "command": ["/bin/sh", "-c", script],
            }]},
        });
        self.requests.send("POST", PODS, &pod.to_string()).map(drop)
    }

    /// Deletes a Pod and waits until it is gone.
    pub(super) fn delete(&mut self, name: &str) -> Outcome<()> {
        self.requests.send("DELETE", &format!("{PODS}/{name}"), "")?;
        self.until(name, |event| event["type"] == "DELETED")
    }

    /// Waits until a Pod runs.
    pub(super) fn running(&mut self, name: &str) -> Outcome<()> {
        self.until(name, runs)
    }

    /// Waits until a Pod runs; its address.
    pub(super) fn address(&mut self, name: &str) -> Outcome<String> {
        let mut address = None;
        while address.is_none() {
            let event = self.events.next()?;
            let mine = event["object"]["metadata"]["name"] == name && runs(&event);
            let ip = event["object"]["status"]["podIP"].as_str();
            address = ip.filter(|_| mine).map(str::to_owned);
        }
        address.ok_or("a Pod without address".into())
    }

    /// Waits until that many Pods, all that there are, run.
    pub(super) fn all_running(&mut self, count: usize) -> Outcome<()> {
        self.until_all(count, runs)
    }

    /// Deletes all Pods, that many, and waits until they are gone.
    pub(super) fn delete_all(&mut self, count: usize) -> Outcome<()> {
        self.requests.send("DELETE", PODS, "")?;
        self.until_all(count, |event| event["type"] == "DELETED")
    }

    fn until_all(&mut self, count: usize, wanted: impl Fn(&Value) -> bool) -> Outcome<()> {
        let mut names = BTreeSet::new();
        while names.len() < count {
            let event = self.events.next()?;
            if wanted(&event) {
                names.insert(event["object"]["metadata"]["name"].to_string());
            }
        }
        Ok(())
    }

    fn until(&mut self, name: &str, wanted: impl Fn(&Value) -> bool) -> Outcome<()> {
        loop {
            let event = self.events.next()?;
            if event["object"]["metadata"]["name"] == name && wanted(&event) {
                return Ok(());
            }
        }
    }
}

fn runs(event: &Value) -> bool {
    event["type"] != "DELETED" && event["object"]["status"]["phase"] == "Running"
}
