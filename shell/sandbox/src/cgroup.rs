//! Control groups of version 1, of version 2, and of both mounted side by side.
//!
//! A path such as `/kubepods/podX/Y` is the same in every hierarchy. With version 1 one folder is
//! made per controller used here, and, where version 2 is mounted beside it, one there too: it
//! has the only way to kill a group at once (`cgroup.kill`).

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use knarr_oci::cgroup::{self as settings, Setting};
use knarr_oci::cri::LinuxContainerResources;
use knarr_oci::device_filter;
use knarr_oci::spec::DeviceRule;

use crate::sys;

/// Version 1 controllers that are used, those whose groups need something first.
const CONTROLLERS: [&str; 6] = ["cpu", "cpuacct", "cpuset", "memory", "devices", "pids"];
/// How long a killed group may take to empty.
const EMPTY_WITHIN: Duration = Duration::from_secs(10);

/// The mounted hierarchies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchies {
    /// Version 1: controller names and mount point.
    v1: Vec<(Vec<String>, PathBuf)>,
    /// Version 2.
    unified: Option<PathBuf>,
}

impl Hierarchies {
    /// Looks at this process's mounts.
    ///
    /// # Errors
    /// The mount table cannot be read.
    pub fn detect() -> io::Result<Hierarchies> {
        Ok(Hierarchies::from_mountinfo(&fs::read_to_string("/proc/self/mountinfo")?))
    }

    fn from_mountinfo(table: &str) -> Hierarchies {
        let mut found = Hierarchies { v1: Vec::new(), unified: None };
        for line in table.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let Some(point) = left.split(' ').nth(4).map(PathBuf::from) else { continue };
            let right: Vec<&str> = right.split(' ').collect();
            match right[..] {
                ["cgroup2", ..] => found.unified = found.unified.or(Some(point)),
                ["cgroup", _, options] => {
                    let used = |name: &&str| CONTROLLERS.contains(name);
                    let names: Vec<String> =
                        options.split(',').filter(used).map(String::from).collect();
                    let known = |(seen, _): &(Vec<String>, PathBuf)| *seen == names;
                    if !names.is_empty() && !found.v1.iter().any(known) {
                        found.v1.push((names, point));
                    }
                }
                _ => {}
            }
        }
        found
    }

    /// Whether only version 2 is there.
    #[must_use]
    pub fn is_unified(&self) -> bool {
        self.v1.is_empty()
    }

    /// Folder of a group in the hierarchy of a version 1 controller.
    fn v1_dir(&self, controller: &str, path: &str) -> Option<PathBuf> {
        let row = self.v1.iter().find(|(names, _)| names.iter().any(|name| name == controller));
        row.map(|(_, point)| under(point, path))
    }

    /// Folder of a group in every hierarchy.
    fn dirs(&self, path: &str) -> impl Iterator<Item = PathBuf> {
        let points = self.v1.iter().map(|(_, point)| point).chain(&self.unified);
        points.map(move |point| under(point, path))
    }

    /// Mount points and their version 1 controllers (none for version 2) with a group's folder.
    pub(crate) fn views(&self, path: &str) -> Vec<(Option<String>, PathBuf)> {
        if let (true, Some(point)) = (self.is_unified(), &self.unified) {
            return vec![(None, under(point, path))];
        }
        self.v1.iter().map(|(names, point)| (Some(names.join(",")), under(point, path))).collect()
    }

    /// Makes a group (and its parents) and puts limits on it.
    ///
    /// # Errors
    /// The kernel refuses a folder or a limit.
    pub fn create(
        &self,
        path: &str,
        resources: &LinuxContainerResources,
        devices: &[DeviceRule],
    ) -> io::Result<()> {
        for (names, point) in &self.v1 {
            let inherits = names.iter().any(|name| name == "cpuset");
            make_dirs(
                point,
                path,
                |parent, child| {
                    if inherits { inherit_cpuset(parent, child) } else { Ok(()) }
                },
            )?;
        }
        if let Some(point) = &self.unified {
            make_dirs(point, path, |parent, _| {
                enable_controllers(parent);
                Ok(())
            })?;
        }
        self.update(path, resources)?;
        match &self.unified {
            Some(point) if self.is_unified() => filter_devices(&under(point, path), devices),
            _ => self.apply(path, &settings::v1_devices(devices)),
        }
    }

    /// Changes the limits of a group.
    ///
    /// # Errors
    /// The kernel refuses a limit.
    pub fn update(&self, path: &str, resources: &LinuxContainerResources) -> io::Result<()> {
        if self.is_unified() {
            return self.apply(path, &settings::v2(resources));
        }
        let rows = settings::v1(resources);
        // Memory and memory-with-swap bound each other: which comes first depends on what holds.
        self.apply(path, &rows)
            .or_else(|_| self.apply(path, &rows.into_iter().rev().collect::<Vec<_>>()))
    }

    fn apply(&self, path: &str, rows: &[Setting]) -> io::Result<()> {
        for row in rows {
            let dir = match (row.controller, &self.unified) {
                ("", Some(point)) => under(point, path),
                (controller, _) => match self.v1_dir(controller, path) {
                    Some(dir) => dir,
                    None => continue,
                },
            };
            let file = dir.join(&row.file);
            match fs::write(&file, &row.value) {
                Err(error) if row.optional && is_missing(&error) => {}
                Err(error) => return Err(named(&file, error)),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Moves a process into a group.
    ///
    /// # Errors
    /// The group or the process is gone.
    pub fn add(&self, path: &str, pid: i32) -> io::Result<()> {
        for dir in self.dirs(path) {
            let file = dir.join("cgroup.procs");
            fs::write(&file, pid.to_string()).map_err(|error| named(&file, error))?;
        }
        Ok(())
    }

    /// How often the kernel has killed a process of the group for want of memory.
    pub(crate) fn oom_kills(&self, path: &str) -> u64 {
        let dir = match (&self.unified, self.v1_dir("memory", path)) {
            (_, Some(dir)) => dir.join("memory.oom_control"),
            (Some(point), None) => under(point, path).join("memory.events"),
            (None, None) => return 0,
        };
        let text = fs::read_to_string(dir).unwrap_or_default();
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
    }

    /// Processes of a group and those below it, in any hierarchy.
    ///
    /// # Errors
    /// A folder cannot be read.
    pub fn processes(&self, path: &str) -> Vec<i32> {
        let mut pids: Vec<i32> = self.dirs(path).flat_map(|dir| processes_below(&dir)).collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Kills all processes of a group and those below it, and waits until none is left.
    ///
    /// # Errors
    /// They did not end within ten seconds.
    pub fn kill(&self, path: &str) -> io::Result<()> {
        let deadline = Instant::now() + EMPTY_WITHIN;
        let at_once = self.unified.as_ref().map(|point| under(point, path).join("cgroup.kill"));
        loop {
            if let Some(file) = &at_once {
                // Absent before Linux 5.14 and for a group that is gone; then one by one.
                let _ = fs::write(file, "1");
            }
            let pids = self.processes(path);
            if pids.is_empty() {
                return Ok(());
            }
            for pid in &pids {
                let _ = sys::kill(*pid, libc::SIGKILL);
            }
            if Instant::now() > deadline {
                let text = format!("processes {pids:?} of cgroup {path} do not end");
                return Err(io::Error::new(ErrorKind::TimedOut, text));
            }
            wait_for_end(&pids);
        }
    }

    /// Removes a group and those below it, in every hierarchy; a missing one is fine.
    ///
    /// # Errors
    /// A process still lives in it.
    pub fn remove(&self, path: &str) -> io::Result<()> {
        self.dirs(path).try_for_each(|dir| remove_tree(&dir))
    }
    /// Removes a group that holds nothing; any other stays.
    pub(crate) fn remove_if_empty(&self, path: &str) {
        for dir in self.dirs(path) {
            let _ = fs::remove_dir(dir);
        }
    }
}

fn under(point: &Path, path: &str) -> PathBuf {
    point.join(path.trim_start_matches('/'))
}

/// Lets a program judge over devices, which version 2 has no files for; no rules, no program.
fn filter_devices(dir: &Path, rules: &[DeviceRule]) -> io::Result<()> {
    use std::os::fd::AsFd;
    if rules.is_empty() {
        return Ok(());
    }
    let group = fs::File::open(dir)?;
    sys::attach_device_filter(group.as_fd(), &device_filter::program(rules))
        .map_err(|error| io::Error::new(error.kind(), format!("device rules: {error}")))
}

fn named(file: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", file.display()))
}

fn is_missing(error: &io::Error) -> bool {
    // A kernel without swap accounting lacks the file; creating one in cgroupfs is EACCES/EPERM.
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied)
}

/// Makes each missing folder of `path`, calling `prepare(parent, child)` for each level.
fn make_dirs(
    point: &Path,
    path: &str,
    prepare: impl Fn(&Path, &Path) -> io::Result<()>,
) -> io::Result<()> {
    let whole = under(point, path);
    if whole.is_dir() {
        return Ok(());
    }
    let mut parent = point.to_path_buf();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        let child = parent.join(part);
        match fs::create_dir(&child) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(named(&child, error));
            }
            _ => prepare(&parent, &child)?,
        }
        parent = child;
    }
    Ok(())
}

/// A new version 1 cpuset has no CPU and takes no process until it is given its parent's.
fn inherit_cpuset(parent: &Path, child: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if fs::read_to_string(child.join(file))?.trim().is_empty() {
            fs::write(child.join(file), fs::read_to_string(parent.join(file))?)?;
        }
    }
    Ok(())
}

/// Hands the controllers that are there down to the children of a version 2 group.
fn enable_controllers(parent: &Path) {
    for controller in ["cpu", "cpuset", "memory", "pids", "io"] {
        // Refused where the controller belongs to a version 1 hierarchy or is not compiled in; a
        // limit that then cannot be set is an error where it is written.
        let _ = fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

fn processes_below(dir: &Path) -> Vec<i32> {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<i32> = text.lines().filter_map(|line| line.parse().ok()).collect();
    for name in crate::state::folder_names(dir) {
        pids.extend(processes_below(&dir.join(name)));
    }
    pids
}

/// Waits up to a tenth of a second for the end of the processes, without polling.
fn wait_for_end(pids: &[i32]) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let Some(Ok(handle)) = pids.first().map(|pid| sys::pidfd_open(*pid)) else { return };
    let tenth = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    let _ = poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&tenth));
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => {}
        _ => return Ok(()),
    }
    for name in crate::state::folder_names(dir) {
        remove_tree(&dir.join(name))?;
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(named(dir, error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use knarr_oci::spec::DeviceKind;

    use super::*;

    #[test]
    fn mount_tables_tell_the_layouts_apart() {
        let v1 = "1 2 0:1 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
                  1 2 0:1 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n";
        let v2 = "1 2 0:1 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let pure = Hierarchies::from_mountinfo(v2);
        let hybrid = Hierarchies::from_mountinfo(&format!("{v1}{v2}"));
        assert!(pure.is_unified() && !hybrid.is_unified());
        assert_eq!(
            hybrid.v1,
            [(vec!["cpu".into(), "cpuacct".into()], "/sys/fs/cgroup/cpu".into())]
        );
        let point = Some(PathBuf::from("/sys/fs/cgroup/unified"));
        assert_eq!((&hybrid.unified, &pure.unified), (&point, &point));
    }

    #[test]
    fn version_2_fences_devices_by_a_program() {
        let found = Hierarchies::detect().expect("a mount table");
        let Some(point) = found.unified.filter(|_| rustix::process::geteuid().is_root()) else {
            eprintln!("SKIPPED: needs root and a version 2 hierarchy");
            return;
        };
        let dir = point.join(format!("knarr-devices-{}", std::process::id()));
        fs::create_dir(&dir).expect("a group");
        let rule = |allow, kind, major, minor, access: &str| DeviceRule {
            allow,
            kind,
            major,
            minor,
            access: access.into(),
        };
        let rules = [
            rule(false, DeviceKind::All, None, None, "rwm"),
            rule(true, DeviceKind::Char, None, None, "m"),
            rule(true, DeviceKind::Char, Some(1), Some(3), "rwm"),
            rule(true, DeviceKind::Char, Some(1), Some(9), "r"),
        ];
        let filtered = filter_devices(&dir, &rules);
        let script = format!(
            "echo $$ > {}/cgroup.procs; cd /tmp; n=knarr-node-$$; \
             true < /dev/null && echo null; true < /dev/zero || echo no zero; \
             true < /dev/urandom && echo read; true > /dev/urandom || echo no write; \
             mknod $n c 1 7 && rm $n && echo made",
            dir.display()
        );
        let ran = Command::new("sh").args(["-c", &script]).output();
        fs::remove_dir(&dir).expect("the shell has ended");
        filtered.expect("the kernel takes the program");
        let out = String::from_utf8(ran.expect("a shell").stdout).expect("text");
        assert_eq!(out, "null\nno zero\nread\nno write\nmade\n");
    }
}
