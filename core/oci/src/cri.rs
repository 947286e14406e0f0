//! The words of the container runtime interface (CRI v1) as plain values: the seam between the
//! agent and a runtime, so that the embedded one and a remote one are called alike.
//!
//! Names and meanings are those of `runtime.v1`; fields that this build does not act on are left
//! out rather than carried and ignored. Timestamps are nanoseconds since the Unix epoch, 0 means
//! "not yet". Sizes are bytes.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

/// Who a sandbox belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodSandboxMetadata {
    /// Pod name.
    pub name: String,
    /// Pod UID.
    pub uid: String,
    /// Pod namespace.
    pub namespace: String,
    /// How often the sandbox of this Pod was made before.
    pub attempt: u32,
}

/// What `run_pod_sandbox` is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodSandboxConfig {
    /// Who it belongs to.
    pub metadata: PodSandboxMetadata,
    /// Host name inside; empty keeps the host's (as for host network).
    pub hostname: String,
    /// Folder of the container logs; `ContainerConfig::log_path` is relative to it.
    pub log_directory: String,
    /// Labels, given back by status and list.
    pub labels: BTreeMap<String, String>,
    /// Annotations, given back by status and list.
    pub annotations: BTreeMap<String, String>,
    /// What is particular to Linux.
    pub linux: LinuxPodSandboxConfig,
}

/// The Linux half of a sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LinuxPodSandboxConfig {
    /// Absolute cgroup path of the Pod, e.g. `/kubepods/burstable/pod<uid>`.
    pub cgroup_parent: String,
    /// Security options of the sandbox.
    pub security_context: LinuxSandboxSecurityContext,
    /// Kernel parameters written in the sandbox's namespaces, e.g. `net.ipv4.ip_forward`.
    pub sysctls: BTreeMap<String, String>,
    /// Limits of the Pod as a whole, put on `cgroup_parent`.
    pub resources: Option<LinuxContainerResources>,
}

/// Security options that hold for a whole sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LinuxSandboxSecurityContext {
    /// Which namespaces are shared with whom.
    pub namespace_options: NamespaceOption,
    /// Whether any container may be privileged.
    pub privileged: bool,
}

/// How far a namespace is shared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamespaceMode {
    /// Shared by the containers of one Pod.
    #[default]
    Pod,
    /// The container's own.
    Container,
    /// The node's.
    Node,
    /// Another container's (ephemeral debug containers): see `NamespaceOption::target_id`.
    Target,
}

/// The sharing of the namespaces that CRI names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NamespaceOption {
    /// Network: `Pod` or `Node`.
    pub network: NamespaceMode,
    /// Processes: `Container`, `Pod`, `Node` or `Target`.
    pub pid: NamespaceMode,
    /// SysV IPC and /dev/shm: `Pod` or `Node`.
    pub ipc: NamespaceMode,
    /// Container id when `pid` is `Target`.
    pub target_id: String,
}

/// Name of a container within its sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerMetadata {
    /// Name in the Pod.
    pub name: String,
    /// How often it was made before.
    pub attempt: u32,
}

/// What `create_container` is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerConfig {
    /// Name within the sandbox.
    pub metadata: ContainerMetadata,
    /// Image reference as the user wrote it, for status.
    pub image: String,
    /// Replaces the image's entrypoint (and drops its cmd) when not empty.
    pub command: Vec<String>,
    /// Replaces the image's cmd when not empty.
    pub args: Vec<String>,
    /// Working folder; empty takes the image's, then `/`.
    pub working_dir: String,
    /// Environment in order; later names win, and all win over the image's.
    pub envs: Vec<KeyValue>,
    /// Mounts besides the default ones, in order.
    pub mounts: Vec<Mount>,
    /// Device nodes of the host to show.
    pub devices: Vec<Device>,
    /// Labels, given back by status and list.
    pub labels: BTreeMap<String, String>,
    /// Annotations, given back by status and list.
    pub annotations: BTreeMap<String, String>,
    /// Log file relative to the sandbox's `log_directory`; empty writes no log.
    pub log_path: String,
    /// Keep standard input open for `attach`.
    pub stdin: bool,
    /// Close it when the first `attach` ends.
    #[serde(default)]
    pub stdin_once: bool,
    /// Give the process a terminal.
    pub tty: bool,
    /// What is particular to Linux.
    pub linux: LinuxContainerConfig,
    /// Signal of the first stop attempt, e.g. `SIGQUIT`; empty takes the image's, then SIGTERM.
    pub stop_signal: String,
}

/// An environment variable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyValue {
    /// Name.
    pub key: String,
    /// Value.
    pub value: String,
}

/// A device node of the host shown in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Path inside.
    pub container_path: String,
    /// Path on the host.
    pub host_path: String,
    /// Any of `r`, `w`, `m`.
    pub permissions: String,
}

/// How mounts made later travel between host and container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountPropagation {
    /// Neither way (`None`, the default).
    #[default]
    Private,
    /// Host to container.
    HostToContainer,
    /// Both ways.
    Bidirectional,
}

/// A host path shown in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mount {
    /// Absolute path inside.
    pub container_path: String,
    /// Absolute path on the host; made as a folder when missing.
    pub host_path: String,
    /// What of the host path is shown, relative and looked up beneath it; empty for all of it.
    pub sub_path: String,
    /// Refuse writing through this mount (not through mounts below it).
    pub readonly: bool,
    /// Refuse writing through all mounts below it too.
    pub recursive_read_only: bool,
    /// Propagation.
    pub propagation: MountPropagation,
}

/// The Linux half of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LinuxContainerConfig {
    /// Limits.
    pub resources: LinuxContainerResources,
    /// Security options.
    pub security_context: LinuxContainerSecurityContext,
}

/// Limits; 0 (or an empty text) leaves the kernel's default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LinuxContainerResources {
    /// CFS period, microseconds.
    pub cpu_period: i64,
    /// CFS quota per period, microseconds.
    pub cpu_quota: i64,
    /// Relative weight, 1024 is one CPU.
    pub cpu_shares: i64,
    /// Memory bound in bytes.
    pub memory_limit_in_bytes: i64,
    /// Memory and swap bound in bytes.
    pub memory_swap_limit_in_bytes: i64,
    /// OOM score adjustment, -1000..=1000.
    pub oom_score_adj: i64,
    /// CPUs allowed, e.g. `0-1,3`.
    pub cpuset_cpus: String,
    /// Memory nodes allowed.
    pub cpuset_mems: String,
    /// Most processes and threads.
    pub pids_limit: i64,
    /// cgroup v2 files and their contents, written as they are.
    pub unified: BTreeMap<String, String>,
}

/// Capabilities to add to and drop from the default set; names with or without `CAP_`, or `ALL`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Capability {
    /// Added to bounding, permitted and effective.
    pub add_capabilities: Vec<String>,
    /// Dropped from all sets.
    pub drop_capabilities: Vec<String>,
    /// Added to the inheritable and ambient sets too.
    pub add_ambient_capabilities: Vec<String>,
}

/// Which filter of system calls holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SecurityProfile {
    /// The runtime's default.
    RuntimeDefault,
    /// None.
    #[default]
    Unconfined,
    /// The profile's JSON text (the agent reads the file that `localhostProfile` names).
    Localhost(String),
}

/// Security options of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LinuxContainerSecurityContext {
    /// Capabilities.
    pub capabilities: Capability,
    /// All capabilities, all devices, nothing masked, no seccomp.
    pub privileged: bool,
    /// Namespaces; `target_id` counts only here.
    pub namespace_options: NamespaceOption,
    /// User id; wins over `run_as_username` and the image's user.
    pub run_as_user: Option<i64>,
    /// Group id; needs a user.
    pub run_as_group: Option<i64>,
    /// User name looked up in the image's /etc/passwd.
    pub run_as_username: String,
    /// Mount the root file system read-only.
    pub readonly_rootfs: bool,
    /// Supplementary groups besides those of /etc/group.
    pub supplemental_groups: Vec<i64>,
    /// Whether the groups of /etc/group count.
    pub supplemental_groups_policy: SupplementalGroupsPolicy,
    /// Processes can gain no privileges by execve.
    pub no_new_privs: bool,
    /// Paths hidden.
    pub masked_paths: Vec<String>,
    /// Paths made read-only.
    pub readonly_paths: Vec<String>,
    /// System call filter.
    pub seccomp: SecurityProfile,
}

/// Whether group memberships defined in the image count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SupplementalGroupsPolicy {
    /// They are merged.
    #[default]
    Merge,
    /// Only the listed groups.
    Strict,
}

/// State of a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PodSandboxState {
    /// Its shim runs.
    Ready,
    /// Stopped, or its shim died.
    NotReady,
}

/// Answer of `pod_sandbox_status` and element of `list_pod_sandbox`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodSandboxStatus {
    /// Sandbox id.
    pub id: String,
    /// Who it belongs to.
    pub metadata: PodSandboxMetadata,
    /// State.
    pub state: PodSandboxState,
    /// When it was made.
    pub created_at: i64,
    /// Path that names its network namespace; `None` for the node's.
    pub netns: Option<String>,
    /// As given.
    pub labels: BTreeMap<String, String>,
    /// As given.
    pub annotations: BTreeMap<String, String>,
}

/// State of a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    /// Made, not started.
    #[default]
    Created,
    /// Its first process runs.
    Running,
    /// Its first process ended.
    Exited,
    /// The runtime cannot tell.
    Unknown,
}

/// Answer of `container_status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerStatus {
    /// Container id.
    pub id: String,
    /// The sandbox it lives in.
    pub pod_sandbox_id: String,
    /// Name within the sandbox.
    pub metadata: ContainerMetadata,
    /// State.
    pub state: ContainerState,
    /// When it was made.
    pub created_at: i64,
    /// When its process started.
    pub started_at: i64,
    /// When its process ended.
    pub finished_at: i64,
    /// Exit code, 128 + signal for a killed process.
    pub exit_code: i32,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, …
    pub reason: String,
    /// More words.
    pub message: String,
    /// Image as the user wrote it.
    pub image: String,
    /// As given.
    pub labels: BTreeMap<String, String>,
    /// As given.
    pub annotations: BTreeMap<String, String>,
    /// Absolute path of the log file; empty for none.
    pub log_path: String,
    /// Host process id while running, else 0.
    pub pid: i32,
}

/// Answer of `exec_sync`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecSyncResponse {
    /// What the command wrote, at most 16 MiB.
    pub stdout: Vec<u8>,
    /// What the command wrote to its standard error, at most 16 MiB.
    pub stderr: Vec<u8>,
    /// Its exit code.
    pub exit_code: i32,
}

/// An image of the local store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Digest of its configuration, `sha256:…`.
    pub id: String,
    /// Normalised references with tags.
    pub repo_tags: Vec<String>,
    /// Normalised references with digests.
    pub repo_digests: Vec<String>,
    /// Bytes on disk of its layers, unpacked.
    pub size: u64,
    /// Numeric user of the image configuration.
    pub uid: Option<i64>,
    /// User name of the image configuration when not numeric.
    pub username: String,
}
