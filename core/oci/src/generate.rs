//! From what CRI asks to what a shim builds: the decisions of a runtime, without doing anything.
//!
//! Defaults are containerd's, so that a Pod finds the same /proc, /dev, environment and
//! capabilities here as elsewhere.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use crate::cri::{
    ContainerConfig, LinuxContainerSecurityContext, Mount, NamespaceMode, PodSandboxConfig,
    SecurityProfile,
};
use crate::image::ImageConfig;
use crate::seccomp::Profile;
use crate::seccomp_default::runtime_default;
use crate::spec::{
    ContainerSpec, DeviceKind, DeviceNode, DeviceRule, MountFlag, MountKind, MountSpec, NetworkNs,
    Process, Rootfs, SandboxSpec, Stdio, UserSpec,
};
use crate::{capability, signal};

/// `PATH` of an image that has none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is hidden unless `procMount: Unmasked`, as the kubelet asks for.
pub const DEFAULT_MASKED_PATHS: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// What is read-only unless `procMount: Unmasked`, as the kubelet asks for.
pub const DEFAULT_READONLY_PATHS: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Why a container cannot be made as asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GenerateError {
    /// Neither the configuration nor the image names a program.
    NoCommand,
    /// No such capability.
    Capability(String),
    /// A group without a user.
    GroupWithoutUser(i64),
    /// A user or group number out of range.
    Number(i64),
    /// A seccomp profile that is none.
    Seccomp(String),
    /// A signal that is none.
    Signal(String),
    /// A path that must be absolute, or free of `..`.
    Path(String),
}

impl fmt::Display for GenerateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GenerateError::NoCommand => f.write_str("no command specified"),
            GenerateError::Capability(name) => write!(f, "unknown capability {name:?}"),
            GenerateError::GroupWithoutUser(gid) => {
                write!(f, "user group \"{gid}\" is specified without user")
            }
            GenerateError::Number(n) => write!(f, "user or group id {n} is out of range"),
            GenerateError::Seccomp(why) => write!(f, "seccomp profile: {why}"),
            GenerateError::Signal(name) => write!(f, "invalid signal: {name:?}"),
            GenerateError::Path(path) => write!(f, "path {path:?} must be absolute without \"..\""),
        }
    }
}

impl core::error::Error for GenerateError {}

/// Everything a container's specification depends on.
#[derive(Clone, Debug)]
pub struct ContainerRequest<'a> {
    /// Container id, the last part of its cgroup path.
    pub id: &'a str,
    /// Its sandbox.
    pub sandbox: &'a PodSandboxConfig,
    /// What is asked for.
    pub config: &'a ContainerConfig,
    /// What the image says.
    pub image: &'a ImageConfig,
    /// Its layers.
    pub rootfs: Rootfs,
    /// Host path shown as /dev/shm.
    pub shm: &'a str,
}

/// Decides everything about a sandbox.
///
/// # Errors
/// The control group is not a path below the root of its hierarchy.
pub fn sandbox_spec(
    config: &PodSandboxConfig,
    id: &str,
    network: NetworkNs,
) -> Result<SandboxSpec, GenerateError> {
    check_group(&config.linux.cgroup_parent)?;
    let options = &config.linux.security_context.namespace_options;
    let parent = config.linux.cgroup_parent.trim_end_matches('/');
    let own_name = network != NetworkNs::Node && !config.hostname.is_empty();
    let path = |name: &String| name.replace('.', "/");
    let sysctls = config.linux.sysctls.iter().map(|(name, value)| (path(name), value.clone()));
    Ok(SandboxSpec {
        network,
        hostname: own_name.then(|| config.hostname.clone()),
        ipc: options.ipc,
        pid: options.pid,
        sysctls: sysctls.collect(),
        cgroup_parent: parent.to_string(),
        cgroup: format!("{parent}/{id}"),
        resources: config.linux.resources.clone(),
    })
}

fn check_group(path: &str) -> Result<(), GenerateError> {
    let plain = |part: &str| !matches!(part, "" | "." | "..");
    match path.strip_prefix('/') {
        Some(rest) if rest.trim_end_matches('/').split('/').all(plain) => Ok(()),
        _ => Err(GenerateError::Path(path.to_string())),
    }
}

/// Decides everything about a container.
///
/// # Errors
/// The request contradicts itself or names something unknown.
pub fn container_spec(request: &ContainerRequest<'_>) -> Result<ContainerSpec, GenerateError> {
    let ContainerRequest { sandbox, config, image, .. } = request;
    let security = &config.linux.security_context;
    Ok(ContainerSpec {
        process: process(sandbox, config, image)?,
        rootfs: request.rootfs.clone(),
        readonly_rootfs: security.readonly_rootfs,
        mounts: mounts(config, request.shm)?,
        devices: devices(config),
        all_host_devices: security.privileged,
        device_rules: device_rules(security.privileged),
        masked_paths: unless_privileged(security, &security.masked_paths),
        readonly_paths: unless_privileged(security, &security.readonly_paths),
        pid: security.namespace_options.pid,
        pid_target: security.namespace_options.target_id.clone(),
        cgroup: format!("{}/{}", sandbox.linux.cgroup_parent.trim_end_matches('/'), request.id),
        resources: config.linux.resources.clone(),
        log_path: log_path(sandbox, config),
        stop_signal: stop_signal(config, image)?,
    })
}

fn process(
    sandbox: &PodSandboxConfig,
    config: &ContainerConfig,
    image: &ImageConfig,
) -> Result<Process, GenerateError> {
    let security = &config.linux.security_context;
    let capabilities = capability::sets(&security.capabilities, security.privileged)
        .map_err(GenerateError::Capability)?;
    Ok(Process {
        args: arguments(config, image)?,
        env: environment(sandbox, config, image),
        cwd: working_dir(config, image)?,
        user: user(security, image)?,
        capabilities,
        no_new_privs: security.no_new_privs,
        seccomp: seccomp(security, capabilities.bounding)?,
        oom_score_adj: config.linux.resources.oom_score_adj,
        stdio: match (config.tty, config.stdin) {
            (true, _) => Stdio::Terminal,
            (false, true) => Stdio::PipesWithInput,
            (false, false) => Stdio::Pipes,
        },
    })
}

/// `command` replaces entrypoint and cmd, `args` replaces cmd.
fn arguments(config: &ContainerConfig, image: &ImageConfig) -> Result<Vec<String>, GenerateError> {
    let run = &image.config;
    let (head, tail) = match (config.command.is_empty(), config.args.is_empty()) {
        (false, _) => (&config.command, &config.args),
        (true, false) => (&run.entrypoint, &config.args),
        (true, true) => (&run.entrypoint, &run.cmd),
    };
    let args: Vec<String> = head.iter().chain(tail).cloned().collect();
    if args.first().is_none_or(String::is_empty) {
        return Err(GenerateError::NoCommand);
    }
    Ok(args)
}

/// Defaults, then the image's, then the user's; a later value takes the place of an earlier one.
fn environment(
    sandbox: &PodSandboxConfig,
    config: &ContainerConfig,
    image: &ImageConfig,
) -> Vec<String> {
    let mut env: Vec<(String, String)> = Vec::new();
    let mut set = |key: &str, value: &str| match env.iter_mut().find(|(known, _)| known == key) {
        Some((_, old)) => *old = value.to_string(),
        None => env.push((key.to_string(), value.to_string())),
    };
    set("PATH", DEFAULT_PATH);
    if !sandbox.hostname.is_empty() {
        set("HOSTNAME", &sandbox.hostname);
    }
    if config.tty {
        set("TERM", "xterm");
    }
    for (key, value) in image.config.env.iter().filter_map(|pair| pair.split_once('=')) {
        set(key, value);
    }
    for pair in &config.envs {
        set(&pair.key, &pair.value);
    }
    env.into_iter().map(|(key, value)| format!("{key}={value}")).collect()
}

fn working_dir(config: &ContainerConfig, image: &ImageConfig) -> Result<String, GenerateError> {
    let asked = [&config.working_dir, &image.config.working_dir];
    match asked.into_iter().find(|dir| !dir.is_empty()) {
        Some(dir) if dir.starts_with('/') => Ok(dir.clone()),
        Some(dir) => Err(GenerateError::Path(dir.clone())),
        None => Ok("/".to_string()),
    }
}

fn user(
    security: &LinuxContainerSecurityContext,
    image: &ImageConfig,
) -> Result<UserSpec, GenerateError> {
    let number = |n: i64| u32::try_from(n).map_err(|_| GenerateError::Number(n));
    let named = match security.run_as_user {
        Some(uid) => number(uid)?.to_string(),
        None => security.run_as_username.clone(),
    };
    let user = match (named.is_empty(), security.run_as_group) {
        (false, Some(gid)) => format!("{named}:{}", number(gid)?),
        (false, None) => named,
        (true, Some(gid)) => return Err(GenerateError::GroupWithoutUser(gid)),
        (true, None) => image.config.user.clone(),
    };
    let gids = security.supplemental_groups.iter().copied().map(number);
    Ok(UserSpec {
        user,
        additional_gids: gids.collect::<Result<_, _>>()?,
        groups: security.supplemental_groups_policy,
    })
}

fn seccomp(
    security: &LinuxContainerSecurityContext,
    bounding: u64,
) -> Result<Option<Profile>, GenerateError> {
    match &security.seccomp {
        _ if security.privileged => Ok(None),
        SecurityProfile::Unconfined => Ok(None),
        SecurityProfile::RuntimeDefault => Ok(Some(runtime_default(bounding))),
        SecurityProfile::Localhost(json) => serde_json::from_str(json)
            .map(Some)
            .map_err(|error| GenerateError::Seccomp(error.to_string())),
    }
}

fn file_system(target: &str, fs_type: &str, data: &str, flags: &[MountFlag]) -> MountSpec {
    let kind = MountKind::Fs { fs_type: fs_type.to_string(), data: data.to_string() };
    MountSpec { target: target.to_string(), kind, flags: flags.to_vec() }
}

/// The mounts of every container, unless the user puts another thing at the same place.
fn default_mounts(privileged: bool, shm: &str) -> Vec<MountSpec> {
    use MountFlag::{NoDev, NoExec, NoSuid, ReadOnly};
    let mut system = vec![NoSuid, NoExec, NoDev];
    if !privileged {
        system.push(ReadOnly);
    }
    let shm = Mount {
        container_path: "/dev/shm".to_string(),
        host_path: shm.to_string(),
        ..Mount::default()
    };
    vec![
        file_system("/proc", "proc", "", &[NoSuid, NoExec, NoDev]),
        file_system("/dev", "tmpfs", "mode=755,size=65536k", &[NoSuid]),
        file_system(
            "/dev/pts",
            "devpts",
            "newinstance,ptmxmode=0666,mode=0620,gid=5",
            &[NoSuid, NoExec],
        ),
        file_system("/dev/mqueue", "mqueue", "", &[NoSuid, NoExec, NoDev]),
        file_system("/sys", "sysfs", "", &system),
        MountSpec { target: "/sys/fs/cgroup".to_string(), kind: MountKind::Cgroup, flags: system },
        bind(&shm),
    ]
}

fn bind(mount: &Mount) -> MountSpec {
    let readonly = mount.readonly || mount.recursive_read_only;
    MountSpec {
        target: mount.container_path.clone(),
        kind: MountKind::Bind {
            source: mount.host_path.clone(),
            sub_path: mount.sub_path.clone(),
            propagation: mount.propagation,
            recursive_read_only: mount.recursive_read_only,
        },
        flags: readonly.then_some(MountFlag::ReadOnly).into_iter().collect(),
    }
}

/// The default mounts that stay, then the user's, parents before children.
fn mounts(config: &ContainerConfig, shm: &str) -> Result<Vec<MountSpec>, GenerateError> {
    let mut asked: Vec<&Mount> = config.mounts.iter().collect();
    for path in asked.iter().flat_map(|mount| [&mount.container_path, &mount.host_path]) {
        if !path.starts_with('/') || path.split('/').any(|part| part == "..") {
            return Err(GenerateError::Path(path.clone()));
        }
    }
    let subs = asked.iter().map(|mount| &mount.sub_path);
    let leaves = |sub: &&String| sub.starts_with('/') || sub.split('/').any(|part| part == "..");
    if let Some(sub) = { subs }.find(leaves) {
        return Err(GenerateError::Path(sub.clone()));
    }
    let parts = |path: &str| path.split('/').filter(|part| !part.is_empty()).count();
    asked.sort_by_key(|mount| parts(&mount.container_path));
    let same = |a: &str, b: &str| a.trim_end_matches('/') == b.trim_end_matches('/');
    let mut all = default_mounts(config.linux.security_context.privileged, shm);
    all.retain(|own| !asked.iter().any(|mount| same(&mount.container_path, &own.target)));
    all.extend(asked.into_iter().map(bind));
    Ok(all)
}

/// The device nodes of every container: name, major, minor.
const DEVICES: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

fn devices(config: &ContainerConfig) -> Vec<DeviceNode> {
    let standard = DEVICES.iter().map(|&(path, major, minor)| DeviceNode {
        path: path.to_string(),
        host_path: String::new(),
        access: String::new(),
        kind: DeviceKind::Char,
        major,
        minor,
        mode: 0o666,
    });
    let asked = config.devices.iter().map(|device| DeviceNode {
        path: device.container_path.clone(),
        host_path: device.host_path.clone(),
        access: device.permissions.clone(),
        kind: DeviceKind::Char,
        major: 0,
        minor: 0,
        mode: 0o660,
    });
    standard.chain(asked).collect()
}

/// Nothing but making nodes and the standard devices; everything for a privileged container.
fn device_rules(privileged: bool) -> Vec<DeviceRule> {
    let rule = |allow, kind, major, minor, access: &str| DeviceRule {
        allow,
        kind,
        major,
        minor,
        access: access.to_string(),
    };
    if privileged {
        return vec![rule(true, DeviceKind::All, None, None, "rwm")];
    }
    let mut rules = vec![
        rule(false, DeviceKind::All, None, None, "rwm"),
        rule(true, DeviceKind::Char, None, None, "m"),
        rule(true, DeviceKind::Block, None, None, "m"),
    ];
    // Beside the nodes: pseudo-terminals and their multiplexer.
    let terminals = [(Some(136), None), (Some(5), Some(2)), (Some(5), Some(1))];
    let nodes = DEVICES.iter().map(|&(_, major, minor)| (Some(major), Some(minor)));
    for (major, minor) in nodes.chain(terminals) {
        rules.push(rule(true, DeviceKind::Char, major, minor, "rwm"));
    }
    rules
}

fn unless_privileged(security: &LinuxContainerSecurityContext, paths: &[String]) -> Vec<String> {
    if security.privileged { Vec::new() } else { paths.to_vec() }
}

fn log_path(sandbox: &PodSandboxConfig, config: &ContainerConfig) -> String {
    if config.log_path.is_empty() || sandbox.log_directory.is_empty() {
        return String::new();
    }
    format!("{}/{}", sandbox.log_directory.trim_end_matches('/'), config.log_path)
}

fn stop_signal(config: &ContainerConfig, image: &ImageConfig) -> Result<i32, GenerateError> {
    let asked = [&config.stop_signal, &image.config.stop_signal];
    match asked.into_iter().find(|name| !name.is_empty()) {
        None => Ok(signal::TERM),
        Some(name) => signal::number(name).ok_or_else(|| GenerateError::Signal(name.to_string())),
    }
}

/// The process of an `exec`: the container's own, with another command.
#[must_use]
pub fn exec_process(container: &ContainerSpec, command: &[String], stdio: Stdio) -> Process {
    Process { args: command.to_vec(), stdio, ..container.process.clone() }
}

/// Merges an update into what holds: fields that are unset keep their value.
#[must_use]
pub fn updated(
    held: &crate::cri::LinuxContainerResources,
    change: &crate::cri::LinuxContainerResources,
) -> crate::cri::LinuxContainerResources {
    let number = |old: i64, new: i64| if new == 0 { old } else { new };
    let text = |old: &String, new: &String| if new.is_empty() { old } else { new }.clone();
    let mut unified: BTreeMap<String, String> = held.unified.clone();
    unified.extend(change.unified.clone());
    crate::cri::LinuxContainerResources {
        cpu_period: number(held.cpu_period, change.cpu_period),
        cpu_quota: number(held.cpu_quota, change.cpu_quota),
        cpu_shares: number(held.cpu_shares, change.cpu_shares),
        memory_limit_in_bytes: number(held.memory_limit_in_bytes, change.memory_limit_in_bytes),
        memory_swap_limit_in_bytes: number(
            held.memory_swap_limit_in_bytes,
            change.memory_swap_limit_in_bytes,
        ),
        oom_score_adj: number(held.oom_score_adj, change.oom_score_adj),
        cpuset_cpus: text(&held.cpuset_cpus, &change.cpuset_cpus),
        cpuset_mems: text(&held.cpuset_mems, &change.cpuset_mems),
        pids_limit: number(held.pids_limit, change.pids_limit),
        unified,
    }
}

/// Whether the sandbox makes a process namespace that its containers share.
#[must_use]
pub fn shares_processes(spec: &SandboxSpec) -> bool {
    spec.pid == NamespaceMode::Pod
}
