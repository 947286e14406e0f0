//! What a shim is told to build: the runtime specification of one container, fully decided.
//!
//! Everything here is a choice already made; the shim has nothing left to decide but what only
//! the root file system can tell (the numbers behind a user's name, see [`crate::user`]).

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::cri::{MountPropagation, NamespaceMode};
use crate::seccomp::Profile;

/// The layers of a root file system, as host paths.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rootfs {
    /// Read-only folders, topmost first.
    pub lower: Vec<String>,
}

/// One container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// The first process.
    pub process: Process,
    /// Read-only layers.
    pub rootfs: Rootfs,
    /// Whether `/` is mounted read-only.
    pub readonly_rootfs: bool,
    /// Mounts, in the order to make them.
    pub mounts: Vec<MountSpec>,
    /// Device nodes under /dev, in order.
    pub devices: Vec<DeviceNode>,
    /// Whether all device nodes of the host appear too.
    pub all_host_devices: bool,
    /// Device access rules, evaluated by the device cgroup.
    pub device_rules: Vec<DeviceRule>,
    /// Paths hidden behind /dev/null or an empty read-only tmpfs.
    pub masked_paths: Vec<String>,
    /// Paths made read-only.
    pub readonly_paths: Vec<String>,
    /// Process namespace.
    pub pid: NamespaceMode,
    /// Container whose process namespace is joined when `pid` is `Target`.
    pub pid_target: String,
    /// cgroup path, absolute within each hierarchy.
    pub cgroup: String,
    /// Limits.
    pub resources: crate::cri::LinuxContainerResources,
    /// Absolute path of the log; empty for none.
    pub log_path: String,
    /// Signal number of the first stop attempt.
    pub stop_signal: i32,
}

/// A process to run: the container's first, or one of `exec`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Program and arguments; never empty.
    pub args: Vec<String>,
    /// `NAME=value`, names unique.
    pub env: Vec<String>,
    /// Working folder, absolute.
    pub cwd: String,
    /// Who it runs as, before the look-up in the image's passwd and group.
    pub user: UserSpec,
    /// Capability sets.
    pub capabilities: CapabilitySets,
    /// No privileges by execve.
    pub no_new_privs: bool,
    /// System call filter.
    pub seccomp: Option<Profile>,
    /// OOM score adjustment.
    pub oom_score_adj: i64,
    /// Standard streams.
    pub stdio: Stdio,
}

/// What the standard streams are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stdio {
    /// Input from /dev/null, outputs by pipes.
    #[default]
    Pipes,
    /// Input kept open as a pipe, outputs by pipes.
    PipesWithInput,
    /// A terminal.
    Terminal,
}

/// Who a process runs as, in the words of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserSpec {
    /// `user[:group]`, names or numbers; empty is root.
    pub user: String,
    /// Supplementary groups in any case.
    pub additional_gids: Vec<u32>,
    /// Whether /etc/group adds more.
    pub groups: crate::cri::SupplementalGroupsPolicy,
}

/// Capability sets as bit masks, bit n is capability n.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapabilitySets {
    /// Bounding set.
    pub bounding: u64,
    /// Permitted and effective sets of a root process.
    pub permitted: u64,
    /// Inheritable and ambient sets.
    pub ambient: u64,
}

/// Kinds of mounts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountKind {
    /// A new file system of a type, with its options.
    Fs {
        /// `proc`, `tmpfs`, `devpts`, `mqueue`, `sysfs`.
        fs_type: String,
        /// Options of the file system, e.g. `size=64m`; empty for none.
        data: String,
    },
    /// A host path.
    Bind {
        /// Absolute host path.
        source: String,
        /// What of it is shown: a path that is looked up beneath it; empty for all of it.
        #[serde(default)]
        sub_path: String,
        /// Propagation.
        propagation: MountPropagation,
        /// Whether read-only holds for mounts below too.
        recursive_read_only: bool,
    },
    /// The view of the container's own cgroup.
    Cgroup,
}

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountSpec {
    /// Absolute path inside.
    pub target: String,
    /// What is mounted.
    pub kind: MountKind,
    /// Attributes among `ro`, `nosuid`, `nodev`, `noexec`.
    pub flags: Vec<MountFlag>,
}

/// Attributes of a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountFlag {
    /// No writing.
    ReadOnly,
    /// Set-user-id bits are ignored.
    NoSuid,
    /// Device nodes do not open.
    NoDev,
    /// No program starts.
    NoExec,
}

/// Block or character.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceKind {
    /// Character device.
    Char,
    /// Block device.
    Block,
    /// Both, in rules only.
    All,
}

/// A device node to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNode {
    /// Absolute path inside.
    pub path: String,
    /// Host path whose numbers are taken; empty when the numbers are given.
    pub host_path: String,
    /// Access to grant to a device of the host: any of `r`, `w`, `m`.
    pub access: String,
    /// Kind.
    pub kind: DeviceKind,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permissions, e.g. 0o666.
    pub mode: u32,
}

/// A rule of the device cgroup; the last one that matches decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRule {
    /// Whether matching access is granted.
    pub allow: bool,
    /// Kind.
    pub kind: DeviceKind,
    /// Major number, `None` for any.
    pub major: Option<u32>,
    /// Minor number, `None` for any.
    pub minor: Option<u32>,
    /// Any of `r`, `w`, `m`.
    pub access: String,
}

/// One sandbox, as its shim is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Network namespace.
    pub network: NetworkNs,
    /// Host name for an own UTS namespace; `None` keeps the node's.
    pub hostname: Option<String>,
    /// IPC namespace: `Pod` or `Node`.
    pub ipc: NamespaceMode,
    /// Process namespace of the Pod: `Pod` makes one with an init of the shim.
    pub pid: NamespaceMode,
    /// Kernel parameters as paths below /proc/sys and contents.
    pub sysctls: BTreeMap<String, String>,
    /// cgroup of the Pod.
    pub cgroup_parent: String,
    /// cgroup of the shim.
    pub cgroup: String,
    /// Limits of the Pod.
    pub resources: Option<crate::cri::LinuxContainerResources>,
}

/// Where a sandbox's network namespace comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetworkNs {
    /// The node's own.
    Node,
    /// A new, empty one with only a loopback that is down.
    New,
    /// An existing one, named by a path (a bind mount of a `/proc/<pid>/ns/net`).
    Path(String),
}
