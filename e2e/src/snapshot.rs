//! What is on a machine: everything that a cluster could leave behind.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Outcome;

/// Processes, mounts, namespaces, links, routes, packet rules and folders.
#[derive(Debug)]
pub struct Snapshot(BTreeMap<&'static str, BTreeSet<String>>);

impl Snapshot {
    /// Looks at the machine now.
    pub fn take() -> Self {
        let command = |line: &str| {
            let mut words = line.split(' ');
            let mut command = Command::new(words.next().unwrap());
            Outcome::of(command.args(words)).success().lines().map(str::to_owned).collect()
        };
        Self(BTreeMap::from([
            ("process", processes()),
            ("mount", mounts()),
            ("namespace", namespaces()),
            ("link", command("ip -brief link")),
            ("route", command("ip route show table all")),
            ("rule", command("nft list ruleset")),
            ("file", files()),
        ]))
    }

    /// The things of one sort.
    pub fn only(&self, sort: &str) -> BTreeSet<String> {
        self.0[sort].clone()
    }

    /// What differs in a later look, one line each.
    pub fn changes(&self, later: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        for (sort, before) in &self.0 {
            let after = &later.0[sort];
            lines.extend(after.difference(before).map(|new| format!("{sort} + {new}")));
            lines.extend(before.difference(after).map(|gone| format!("{sort} - {gone}")));
        }
        lines
    }

    /// The ids of all processes.
    pub fn pids() -> Vec<i32> {
        let names = fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.filter_map(|name| name.parse().ok()).collect()
    }
}

/// Living processes but this one.
fn processes() -> BTreeSet<String> {
    let own = i32::try_from(std::process::id()).unwrap();
    let describe = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let dead = stat.rsplit(") ").next()?.starts_with('Z');
        (!dead).then(|| format!("{pid} {}", String::from_utf8_lossy(&line).replace('\0', " ")))
    };
    Snapshot::pids().into_iter().filter(|pid| *pid != own).filter_map(describe).collect()
}

fn mounts() -> BTreeSet<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().filter_map(|line| Some(line.split(' ').nth(4)?.to_owned())).collect()
}

/// Namespaces with a process in them; one kept by a mount is seen as that mount.
fn namespaces() -> BTreeSet<String> {
    let kinds = ["net", "mnt", "ipc", "uts", "pid"];
    let link = |pid: i32, kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok();
    let of = |pid| kinds.into_iter().filter_map(move |kind| link(pid, kind));
    Snapshot::pids().into_iter().flat_map(of).map(|path| path.display().to_string()).collect()
}

/// The control groups of clusters, innermost first.
pub(crate) fn cgroups(clusters: &BTreeSet<String>) -> impl Iterator<Item = String> {
    let mut found = Vec::new();
    for top in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        let tops = [top.path(), PathBuf::from("/sys/fs/cgroup")];
        for cluster in clusters {
            for path in tops.iter().map(|top| top.join(cluster)).filter(|path| path.is_dir()) {
                found.push(path.display().to_string());
                below(&path, 8, &mut |path| found.push(path.display().to_string()));
            }
        }
    }
    found.into_iter().rev()
}

/// What programs like this one leave in the places of all.
fn files() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for place in ["/run", "/var/lib", "/etc", "/var/log", "/dev/shm", "/opt"] {
        below(Path::new(place), 2, &mut |path| {
            let name = path.to_string_lossy();
            if ["knarr", "kube", "cni", "netns"].iter().any(|word| name.contains(word)) {
                found.insert(name.into_owned());
            }
        });
    }
    found
}

fn below(dir: &Path, depth: u32, visit: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_dir {
            visit(&entry.path());
            if depth > 1 {
                below(&entry.path(), depth - 1, visit);
            }
        }
    }
}
