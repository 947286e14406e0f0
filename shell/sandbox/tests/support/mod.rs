//! A runtime in a folder of its own, a root file system with the probe, and the check that
//! nothing of it is left.
#![allow(dead_code)] // every test binary uses its own part

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use knarr_oci::cri::*;
use knarr_oci::image::ImageConfig;
use knarr_oci::spec::{NetworkNs, Rootfs};
use knarr_sandbox::{Config, CreateContainer, Event, Events, Hierarchies, Runtime};

/// No test of a real container waits longer for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// Whether this machine can run containers; says why not.
pub(crate) fn can_run() -> bool {
    // SAFETY of meaning: the effective user decides, as it does for the product.
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: needs root");
    }
    root
}

/// One instance: everything it makes carries the name of its folder.
pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) runtime: Option<Runtime>,
    pub(crate) events: Option<Events>,
    pub(crate) name: String,
}

impl World {
    pub(crate) fn new() -> World {
        let dir = tempfile::Builder::new().prefix("knarr-sandbox-").tempdir().unwrap();
        let name = dir.path().file_name().unwrap().to_str().unwrap().to_string();
        let world = World { dir, runtime: None, events: None, name };
        build_rootfs(&world.layer());
        world.opened()
    }

    fn opened(mut self) -> World {
        self.open();
        self
    }

    /// Opens the runtime, as an agent that starts does.
    pub(crate) fn open(&mut self) {
        let shim = vec![env!("CARGO_BIN_EXE_knarr-pod-shim").to_string()];
        let config = Config { state_dir: self.state_dir(), shim };
        let (runtime, events) = Runtime::open(config).unwrap();
        (self.runtime, self.events) = (Some(runtime), Some(events));
    }

    /// Forgets the runtime, as an agent that dies does.
    pub(crate) fn close(&mut self) {
        (self.runtime, self.events) = (None, None);
    }

    pub(crate) fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().unwrap()
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub(crate) fn layer(&self) -> PathBuf {
        self.dir.path().join("layer")
    }

    pub(crate) fn group(&self) -> String {
        format!("/{}/pod", self.name)
    }

    pub(crate) fn sandbox_config(&self) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: PodSandboxMetadata {
                name: "probe".into(),
                uid: "uid".into(),
                namespace: "default".into(),
                attempt: 0,
            },
            hostname: "probe-host".into(),
            log_directory: self.dir.path().join("logs").to_str().unwrap().into(),
            linux: LinuxPodSandboxConfig {
                cgroup_parent: self.group(),
                security_context: LinuxSandboxSecurityContext {
                    namespace_options: own_processes(),
                    privileged: false,
                },
                ..Default::default()
            },
            ..Default::default()
        }
    }

    pub(crate) fn sandbox(&self) -> String {
        self.runtime().run_pod_sandbox(&self.sandbox_config(), NetworkNs::New).unwrap()
    }

    pub(crate) fn create(&self, sandbox: &str, config: &ContainerConfig) -> String {
        let mut image = ImageConfig::default();
        image.config.env.push("PATH=/bin".into());
        let rootfs = Rootfs { lower: vec![self.layer().to_str().unwrap().into()] };
        let request = CreateContainer { sandbox_id: sandbox, config, image: &image, rootfs };
        self.runtime().create_container(request).unwrap()
    }

    /// Creates and starts.
    pub(crate) fn start(&self, sandbox: &str, config: &ContainerConfig) -> String {
        let id = self.create(sandbox, config);
        self.runtime().start_container(&id).unwrap();
        id
    }

    /// Waits for the event of a container's end.
    pub(crate) fn exit_of(&self, id: &str) -> ContainerStatus {
        loop {
            match self.event() {
                Event::ContainerExited(status) if status.id == id => return *status,
                _ => {}
            }
        }
    }

    pub(crate) fn event(&self) -> Event {
        match self.events.as_ref().unwrap().recv_timeout(PATIENCE) {
            Ok(event) => event,
            Err(RecvTimeoutError::Timeout) => panic!("no event came"),
            Err(RecvTimeoutError::Disconnected) => panic!("the runtime is gone"),
        }
    }

    /// Runs a container to its end; its status and what it wrote to standard output.
    pub(crate) fn run(&self, sandbox: &str, config: &ContainerConfig) -> (ContainerStatus, String) {
        let id = self.start(sandbox, config);
        let status = self.exit_of(&id);
        let log = fs::read_to_string(&status.log_path).unwrap();
        self.runtime().remove_container(&id).unwrap();
        (status, output(&log))
    }

    /// Removes the sandboxes and checks that nothing is left.
    pub(crate) fn finish(mut self) {
        for sandbox in self.runtime().list_pod_sandbox() {
            self.runtime().remove_pod_sandbox(&sandbox.id).unwrap();
        }
        self.close();
        self.assert_clean();
    }

    /// Nothing of this instance is left: mounts, control groups, processes (and so namespaces).
    pub(crate) fn assert_clean(&self) {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let left: Vec<&str> = mounts.lines().filter(|line| line.contains(&self.name)).collect();
        assert_eq!(left, Vec::<&str>::new(), "mounts are left");
        assert_eq!(groups_named(Path::new("/sys/fs/cgroup"), &self.name, 0), Vec::<PathBuf>::new());
        assert_eq!(self.processes(), Vec::<String>::new(), "processes are left");
        assert_eq!(dir_names(&self.state_dir().join("sandboxes")), Vec::<String>::new());
    }

    /// Live processes that belong to this instance, by command line and control group. A zombie
    /// is what its parent has not read yet: of the killed shims here, this very process.
    pub(crate) fn processes(&self) -> Vec<String> {
        let me = std::process::id().to_string();
        let read = |pid: &str, file: &str| {
            let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let ours = |pid: &String| {
            let zombie = read(pid, "status").contains("State:\tZ");
            !zombie && ["cmdline", "cgroup"].iter().any(|file| read(pid, file).contains(&self.name))
        };
        let pids = dir_names(Path::new("/proc")).into_iter();
        pids.filter(|pid| pid.parse::<i32>().is_ok() && *pid != me).filter(ours).collect()
    }

    /// Process id of the shim of a sandbox.
    pub(crate) fn shim_of(&self, sandbox: &str) -> i32 {
        let group = format!("{}/{sandbox}", self.group());
        Hierarchies::detect().unwrap().processes(&group)[0]
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.close();
        // Only after a failed test is anything there.
        let _ = knarr_sandbox::cleanup(&self.state_dir());
        let _ = Hierarchies::detect().unwrap().remove(&format!("/{}", self.name));
    }
}

fn dir_names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Groups below one named after the instance; the instance's own group is the caller's.
fn groups_named(dir: &Path, name: &str, depth: u32) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if !path.is_dir() || path.is_symlink() || depth > 2 {
            continue;
        }
        if path.ends_with(name) {
            found.extend(
                fs::read_dir(&path).unwrap().flatten().map(|e| e.path()).filter(|p| p.is_dir()),
            );
        } else {
            found.extend(groups_named(&path, name, depth + 1));
        }
    }
    found
}

pub(crate) fn own_processes() -> NamespaceOption {
    NamespaceOption { pid: NamespaceMode::Container, ..Default::default() }
}

/// A container that runs commands of the probe.
pub(crate) fn probe(commands: &[&str]) -> ContainerConfig {
    let mut config = ContainerConfig {
        metadata: ContainerMetadata { name: "c".into(), attempt: 0 },
        command: vec!["probe".into()],
        args: commands.iter().map(|arg| (*arg).into()).collect(),
        log_path: "c/0.log".into(),
        ..Default::default()
    };
    config.linux.security_context.namespace_options = own_processes();
    config.linux.security_context.seccomp = SecurityProfile::RuntimeDefault;
    config.linux.security_context.masked_paths =
        knarr_oci::generate::DEFAULT_MASKED_PATHS.map(Into::into).into();
    config.linux.security_context.readonly_paths =
        knarr_oci::generate::DEFAULT_READONLY_PATHS.map(Into::into).into();
    // Logs of several containers of one test must not meet.
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    config.log_path = format!("c/{number}.log");
    config
}

/// The standard output in a log.
pub(crate) fn output(log: &str) -> String {
    let line = |line: &str| -> Option<String> {
        let mut parts = line.splitn(4, ' ');
        let (_, stream, tag, text) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let end = if tag == "F" { "\n" } else { "" };
        (stream == "stdout").then(|| format!("{text}{end}"))
    };
    log.lines().filter_map(line).collect()
}

fn build_rootfs(layer: &Path) {
    for name in ["bin", "etc", "tmp"] {
        fs::create_dir_all(layer.join(name)).unwrap();
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/probe.c");
    let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join("probe");
    let newer = |a: &Path, b: &Path| {
        let time = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).ok();
        time(a) > time(b)
    };
    if !newer(&built, &source) {
        let next = built.with_extension(std::process::id().to_string());
        let ok =
            Command::new("gcc").args(["-static", "-O1", "-o"]).arg(&next).arg(&source).status();
        assert!(ok.unwrap().success(), "gcc cannot build the probe");
        fs::rename(&next, &built).unwrap();
    }
    fs::copy(&built, layer.join("bin/probe")).unwrap();
    fs::write(layer.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n")
        .unwrap();
    fs::write(layer.join("etc/group"), "root:x:0:\nweb:x:34:\nextra:x:77:web,other\n").unwrap();
    std::os::unix::fs::symlink("/../../../../etc", layer.join("escape")).unwrap();
}
