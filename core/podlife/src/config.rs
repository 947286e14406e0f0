//! What the runtime is asked for: CRI configurations made of a Pod.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use knarr_api::quantity::Quantity;
use knarr_oci::cri;
use knarr_oci::generate::{DEFAULT_MASKED_PATHS, DEFAULT_READONLY_PATHS};
use knarr_typed::k8s_openapi::api::core::v1::SecurityContext;
use knarr_typed::{Container, Pod, PodSpec};

use crate::env::expand;
use crate::mounts::mounts;

/// Where a Pod's things lie on the node.
#[derive(Clone, Debug)]
pub struct Paths {
    /// `…/pods/UID`.
    pub pod: String,
    /// `…/NAMESPACE_NAME_UID`.
    pub logs: String,
    /// Control group of all Pods of this node agent.
    pub cgroup: String,
}

const CPU_PERIOD_MICROS: i64 = 100_000;
const MIN_SHARES: i64 = 2;

fn word(text: &Option<String>) -> String {
    text.clone().unwrap_or_default()
}

fn spec(pod: &Pod) -> PodSpec {
    pod.spec.clone().unwrap_or_default()
}

/// The host name that a Pod's containers see.
pub fn hostname(pod: &Pod) -> String {
    let spec = spec(pod);
    let name = spec.hostname.unwrap_or_else(|| word(&pod.metadata.name));
    name[..name.len().min(63)].trim_end_matches(['-', '.']).to_owned()
}

/// Whether the Pod lives in the node's own network namespace.
pub fn host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false)
}

fn quality(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.qos_class.as_deref()).unwrap_or("BestEffort")
}

/// The Pod's control group.
pub fn cgroup(pod: &Pod, paths: &Paths) -> String {
    let uid = word(&pod.metadata.uid);
    match quality(pod) {
        "Guaranteed" => format!("{}/pod{uid}", paths.cgroup),
        class => format!("{}/{}/pod{uid}", paths.cgroup, class.to_ascii_lowercase()),
    }
}

fn namespaces(spec: &PodSpec) -> cri::NamespaceOption {
    use cri::NamespaceMode::{Container, Node, Pod};
    let on = |flag: Option<bool>| flag.unwrap_or(false);
    cri::NamespaceOption {
        network: if on(spec.host_network) { Node } else { Pod },
        pid: match (on(spec.host_pid), on(spec.share_process_namespace)) {
            (true, _) => Node,
            (_, true) => Pod,
            _ => Container,
        },
        ipc: if on(spec.host_ipc) { Node } else { Pod },
        ..cri::NamespaceOption::default()
    }
}

/// The sandbox of a Pod.
pub fn sandbox(pod: &Pod, paths: &Paths, attempt: u32) -> cri::PodSandboxConfig {
    let spec = spec(pod);
    let sysctls = spec.security_context.as_ref().and_then(|context| context.sysctls.clone());
    let sysctls = sysctls.unwrap_or_default().into_iter().map(|sysctl| (sysctl.name, sysctl.value));
    let mut linux = cri::LinuxPodSandboxConfig {
        cgroup_parent: cgroup(pod, paths),
        sysctls: sysctls.collect(),
        ..cri::LinuxPodSandboxConfig::default()
    };
    linux.security_context.namespace_options = namespaces(&spec);
    let inits = spec.init_containers.iter().flatten();
    linux.security_context.privileged = inits.chain(&spec.containers).any(privileged);
    cri::PodSandboxConfig {
        metadata: cri::PodSandboxMetadata {
            name: word(&pod.metadata.name),
            uid: word(&pod.metadata.uid),
            namespace: word(&pod.metadata.namespace),
            attempt,
        },
        hostname: if host_network(pod) { String::new() } else { hostname(pod) },
        log_directory: paths.logs.clone(),
        labels: pod.metadata.labels.clone().unwrap_or_default(),
        annotations: BTreeMap::new(),
        linux,
    }
}

fn privileged(container: &Container) -> bool {
    let context = container.security_context.as_ref();
    context.and_then(|context| context.privileged).unwrap_or(false)
}

/// What a container is given beside its own fields.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// Its environment, complete and in order.
    pub envs: Vec<(String, String)>,
    /// Host paths of the Pod's volumes, by volume name.
    pub volumes: BTreeMap<String, String>,
    /// Files that every container sees: (container path, host path).
    pub files: Vec<(String, String)>,
    /// The node's memory in bytes, for the out-of-memory score.
    pub node_memory: i64,
    /// The image's own user: by number, by name, or neither (root).
    pub image_user: (Option<i64>, String),
}

/// Why a container cannot be configured: `CreateContainerConfigError`.
pub type ConfigError = String;

/// A container of a Pod.
///
/// # Errors
/// When it asks for something that cannot be given; the text says what.
pub fn container(
    pod: &Pod,
    container: &Container,
    attempt: u32,
    given: &Given,
) -> Result<cri::ContainerConfig, ConfigError> {
    let spec = spec(pod);
    check_non_root(pod, &spec, container, &given.image_user)?;
    let lookup = |name: &str| {
        let found = given.envs.iter().rev().find(|(key, _)| key == name);
        found.map(|(_, value)| value.clone())
    };
    let expanded = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter().flatten().map(|text| expand(text, lookup)).collect()
    };
    let envs = given
        .envs
        .iter()
        .map(|(key, value)| cri::KeyValue { key: key.clone(), value: value.clone() });
    Ok(cri::ContainerConfig {
        metadata: cri::ContainerMetadata { name: container.name.clone(), attempt },
        image: word(&container.image),
        command: expanded(&container.command),
        args: expanded(&container.args),
        working_dir: word(&container.working_dir),
        envs: envs.collect(),
        mounts: mounts(pod, container, given)?,
        log_path: format!("{}/{attempt}.log", container.name),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        linux: cri::LinuxContainerConfig {
            resources: resources(pod, container, given.node_memory),
            security_context: security(&spec, container),
        },
        ..cri::ContainerConfig::default()
    })
}

/// Refuses to run as root what must not (`runAsNonRoot`); upstream's texts.
fn check_non_root(
    pod: &Pod,
    spec: &PodSpec,
    container: &Container,
    (image_uid, image_name): &(Option<i64>, String),
) -> Result<(), ConfigError> {
    let (own, whole) = (container.security_context.as_ref(), spec.security_context.as_ref());
    let wanted = own.and_then(|own| own.run_as_non_root);
    if !wanted.or(whole.and_then(|whole| whole.run_as_non_root)).unwrap_or(false) {
        return Ok(());
    }
    let asked = own.and_then(|own| own.run_as_user).or(whole.and_then(|whole| whole.run_as_user));
    let why = match (asked, image_uid, image_name.as_str()) {
        (Some(0), ..) => "container's runAsUser breaks non-root policy".to_owned(),
        (Some(_), ..) => return Ok(()),
        (None, Some(0), _) | (None, None, "") => {
            "container has runAsNonRoot and image will run as root".to_owned()
        }
        (None, Some(_), _) => return Ok(()),
        (None, None, name) => format!(
            "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify \
             user is non-root"
        ),
    };
    let (name, namespace) = (word(&pod.metadata.name), word(&pod.metadata.namespace));
    let uid = word(&pod.metadata.uid);
    let whose = format!("{name}_{namespace}({uid})");
    Err(format!("{why} (pod: {whose:?}, container: {})", container.name))
}

/// An amount of a resource in its base unit's thousandths (cpu) or units (memory).
fn amount(
    list: Option<
        &BTreeMap<String, knarr_typed::k8s_openapi::apimachinery::pkg::api::resource::Quantity>,
    >,
    name: &str,
    read: fn(&Quantity) -> i64,
) -> Option<i64> {
    let text = &list?.get(name)?.0;
    text.parse::<Quantity>().ok().map(|quantity| read(&quantity))
}

fn resources(pod: &Pod, container: &Container, node_memory: i64) -> cri::LinuxContainerResources {
    let asked = container.resources.as_ref();
    let (requests, limits) =
        (asked.and_then(|r| r.requests.as_ref()), asked.and_then(|r| r.limits.as_ref()));
    let milli = |quantity: &Quantity| quantity.milli_value();
    let units = |quantity: &Quantity| quantity.value();
    let cpu = amount(requests, "cpu", milli).or(amount(limits, "cpu", milli)).unwrap_or(0);
    let quota = amount(limits, "cpu", milli).filter(|milli| *milli > 0);
    let memory_request = amount(requests, "memory", units).unwrap_or(0);
    cri::LinuxContainerResources {
        cpu_period: quota.map_or(0, |_| CPU_PERIOD_MICROS),
        cpu_quota: quota.map_or(0, |milli| (milli * CPU_PERIOD_MICROS / 1000).max(1000)),
        cpu_shares: (cpu * 1024 / 1000).max(MIN_SHARES),
        memory_limit_in_bytes: amount(limits, "memory", units).unwrap_or(0),
        oom_score_adj: oom_score(quality(pod), memory_request, node_memory),
        ..cri::LinuxContainerResources::default()
    }
}

/// Who goes first when the node runs out of memory (-997 … 1000).
fn oom_score(quality: &str, request: i64, node_memory: i64) -> i64 {
    match quality {
        "Guaranteed" => -997,
        "Burstable" if node_memory > 0 => (1000 - 1000 * request / node_memory).clamp(3, 999),
        "Burstable" => 999,
        _ => 1000,
    }
}

fn security(spec: &PodSpec, container: &Container) -> cri::LinuxContainerSecurityContext {
    let none = SecurityContext::default();
    let own = container.security_context.as_ref().unwrap_or(&none);
    let pod = spec.security_context.as_ref();
    let privileged = own.privileged.unwrap_or(false);
    let escalation = own.allow_privilege_escalation.unwrap_or(true);
    let capabilities = own.capabilities.clone().unwrap_or_default();
    let own_profile = own.seccomp_profile.as_ref();
    let profile = own_profile.or(pod.and_then(|pod| pod.seccomp_profile.as_ref()));
    let seccomp = match profile.map(|profile| (profile.type_.as_str(), &profile.localhost_profile))
    {
        _ if privileged => cri::SecurityProfile::Unconfined,
        Some(("Unconfined", _)) => cri::SecurityProfile::Unconfined,
        Some(("Localhost", path)) => {
            cri::SecurityProfile::Localhost(path.clone().unwrap_or_default())
        }
        _ => cri::SecurityProfile::RuntimeDefault,
    };
    let mut groups = pod.and_then(|pod| pod.supplemental_groups.clone()).unwrap_or_default();
    groups.extend(pod.and_then(|pod| pod.fs_group));
    cri::LinuxContainerSecurityContext {
        capabilities: cri::Capability {
            add_capabilities: capabilities.add.unwrap_or_default(),
            drop_capabilities: capabilities.drop.unwrap_or_default(),
            ..cri::Capability::default()
        },
        privileged,
        namespace_options: namespaces(spec),
        run_as_user: own.run_as_user.or(pod.and_then(|pod| pod.run_as_user)),
        run_as_group: own.run_as_group.or(pod.and_then(|pod| pod.run_as_group)),
        readonly_rootfs: own.read_only_root_filesystem.unwrap_or(false),
        supplemental_groups: groups,
        no_new_privs: !escalation,
        masked_paths: if privileged || unmasked(own) {
            Vec::new()
        } else {
            paths(&DEFAULT_MASKED_PATHS)
        },
        readonly_paths: if privileged || unmasked(own) {
            Vec::new()
        } else {
            paths(&DEFAULT_READONLY_PATHS)
        },
        seccomp,
        ..cri::LinuxContainerSecurityContext::default()
    }
}

fn unmasked(context: &SecurityContext) -> bool {
    context.proc_mount.as_deref() == Some("Unmasked")
}

fn paths(list: &[&str]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}
