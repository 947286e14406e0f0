//! What the node tells the API server of itself, and asks it for its Pods.

use std::sync::Arc;
use std::time::Duration;

use knarr_api::{ObjectKey, Reason};
use knarr_client::{Client, ClientError, PatchType};
use knarr_net::{Pool, Subnet};
use knarr_podlife::PodEvent;
use knarr_podlife::image_gc::reported;
use knarr_typed::Pod;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use crate::agent::Node;
use crate::{EVENTS, LEASES, NODES, network, now, stamp};

const MAX_PODS: u32 = 110;
const LEASE_SECONDS: u64 = 40;
/// A quarter of the lease, as upstream's kubelet renews it.
const RENEW_EVERY: Duration = Duration::from_secs(10);
/// The status is told again this often even when nothing changed.
const RETELL_EVERY: u32 = 30;

/// The machine's memory in bytes.
pub(crate) fn memory() -> i64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<i64>().ok());
    kib.unwrap_or(0) * 1024
}

/// The machine's processors.
pub(crate) fn cpus() -> i64 {
    std::thread::available_parallelism().map_or(1, |count| count.get() as i64)
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn resources(node: &Node) -> Value {
    let disk = rustix::fs::statvfs(&node.config.state_dir);
    let disk = disk.map_or(0, |disk| disk.f_blocks * disk.f_frsize / 1024);
    json!({
        "cpu": node.cpus.to_string(), "memory": format!("{}Ki", node.memory / 1024),
        "pods": MAX_PODS.to_string(), "ephemeral-storage": format!("{disk}Ki"),
    })
}

fn first_line(path: &str) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().next().unwrap_or_default().trim().to_owned()
}

fn os_image() -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or("Linux".to_owned(), |name| name.trim_matches('"').to_owned())
}

fn conditions(trouble: Option<&str>) -> Value {
    let at = stamp(now());
    let condition = |kind: &str, status: &str, reason: &str, message: &str| {
        json!({"type": kind, "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": at, "lastTransitionTime": at})
    };
    let ready = match trouble {
        None => condition("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
        Some(why) => condition("Ready", "False", "KubeletNotReady", why),
    };
    json!([
        condition(
            "MemoryPressure",
            "False",
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available"
        ),
        condition(
            "DiskPressure",
            "False",
            "KubeletHasNoDiskPressure",
            "kubelet has no disk pressure"
        ),
        condition(
            "PIDPressure",
            "False",
            "KubeletHasSufficientPID",
            "kubelet has sufficient PID available"
        ),
        ready,
    ])
}

fn status(node: &Node) -> Value {
    let trouble = network::trouble(node);
    let config = &node.config;
    let internal = config.addresses().map(|ip| json!({"type": "InternalIP", "address": ip}));
    let mut addresses: Vec<Value> = internal.collect();
    addresses.push(json!({"type": "Hostname", "address": config.name}));
    json!({
        "capacity": resources(node), "allocatable": resources(node),
        "conditions": conditions(trouble.as_deref()),
        "addresses": addresses,
        "daemonEndpoints": {"kubeletEndpoint": {"Port": config.port}},
        "nodeInfo": {
            "machineID": first_line("/etc/machine-id"),
            "systemUUID": first_line("/etc/machine-id"),
            "bootID": first_line("/proc/sys/kernel/random/boot_id"),
            "kernelVersion": first_line("/proc/sys/kernel/osrelease"),
            "osImage": os_image(),
            "containerRuntimeVersion": format!("knarr://{}", env!("CARGO_PKG_VERSION")),
            "kubeletVersion": config.version, "kubeProxyVersion": "",
            "operatingSystem": "linux", "architecture": architecture(),
        },
    })
}

fn own_key(node: &Node) -> ObjectKey {
    ObjectKey::new("", &node.config.name)
}

/// Makes the Node object, or takes it over after a restart.
pub(crate) async fn register(node: &Arc<Node>) -> Result<(), ClientError> {
    let name = &node.config.name;
    let mut labels = json!({"kubernetes.io/hostname": name});
    for prefix in ["kubernetes.io", "beta.kubernetes.io"] {
        labels[format!("{prefix}/os")] = "linux".into();
        labels[format!("{prefix}/arch")] = architecture().into();
    }
    let object = json!({"apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": labels}, "spec": {}});
    match node.client.create(NODES, "", &object).await {
        Ok(_) => {}
        Err(error) if error.is(Reason::AlreadyExists) => {}
        Err(error) => return Err(error),
    }
    let live = tell(node).await?;
    take_range(node, &live);
    Ok(())
}

/// Tells the whole status; transition times of conditions that did not change are kept.
async fn tell(node: &Arc<Node>) -> Result<Value, ClientError> {
    let live = node.client.get(NODES, &own_key(node)).await?;
    let mut status = status(node);
    match node.blocking(|node| node.images.list()).await {
        Ok(images) => status["images"] = reported(images),
        Err(error) => warn!(%error, "the images cannot be listed"),
    }
    let old = live.pointer("/status/conditions").and_then(Value::as_array);
    for condition in status["conditions"].as_array_mut().into_iter().flatten() {
        let same =
            |old: &&Value| old["type"] == condition["type"] && old["status"] == condition["status"];
        if let Some(old) = old.into_iter().flatten().find(same) {
            condition["lastTransitionTime"] = old["lastTransitionTime"].clone();
        }
    }
    let patch = json!({"status": status});
    node.client.patch(NODES, &own_key(node), "status", PatchType::Merge, &patch).await
}

/// Takes up the node's Pod address ranges, once it has them.
fn take_range(node: &Node, live: &Value) {
    let ranges = live.pointer("/spec/podCIDRs").and_then(Value::as_array);
    let ranges: Vec<&str> = ranges.into_iter().flatten().filter_map(Value::as_str).collect();
    if ranges.is_empty() {
        return;
    }
    node.pool(|pool| {
        if pool.is_some() {
            return;
        }
        let dir = node.config.state_dir.join("addresses");
        let subnets: Result<Vec<Subnet>, String> =
            ranges.iter().map(|range| range.parse()).collect();
        let opened = subnets
            .and_then(|subnets| Pool::open(&dir, &subnets).map_err(|error| error.to_string()));
        let range = ranges.join(", ");
        match opened {
            Ok(opened) => {
                info!(range, "Pod address range");
                *pool = Some(opened);
            }
            Err(error) => warn!(range, error, "the Pod address range is of no use"),
        }
    });
}

/// Renews the node's lease and now and then its status, and takes the Pod address range up.
pub(crate) async fn heartbeat(node: Arc<Node>) {
    tokio::join!(ranges(&node), beats(&node));
}

/// Waits for the Pod address range.
async fn ranges(node: &Node) {
    let fields = format!("fieldSelector=metadata.name%3D{}", node.config.name);
    while node.pool(|pool| pool.is_none()) {
        let Ok(mut watch) = node.client.watch(NODES, "", &fields).await else {
            tokio::time::sleep(Duration::from_secs(1)).await;
            continue;
        };
        while let Ok(item) = watch.next().await {
            if let knarr_client::StreamItem::Event { object, .. } = item {
                take_range(node, &serde_json::from_slice(&object).unwrap_or_default());
            }
            if node.pool(|pool| pool.is_some()) {
                break;
            }
        }
    }
}

async fn beats(node: &Arc<Node>) {
    let mut told = None;
    for beat in 0_u32.. {
        if let Err(error) = renew(node).await {
            warn!(%error, "the node's lease was not renewed");
        }
        let trouble = network::trouble(node);
        if trouble != told || beat % RETELL_EVERY == 0 || is_given_up(node).await {
            trouble.iter().for_each(|why| warn!(why, "no Pods can be connected"));
            retell(node).await;
            told = trouble;
        }
        let next = tokio::time::sleep(RENEW_EVERY);
        tokio::pin!(next);
        loop {
            tokio::select! {
                () = &mut next => break,
                () = node.images_changed.notified() => retell(node).await,
            }
        }
    }
}

/// Whether the cluster believes that this node is not ready, as after it was not heard for long.
async fn is_given_up(node: &Node) -> bool {
    let live = node.client.get(NODES, &own_key(node)).await.unwrap_or_default();
    let conditions = live.pointer("/status/conditions").and_then(Value::as_array);
    conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] != "True")
}

async fn retell(node: &Arc<Node>) {
    if let Err(error) = tell(node).await {
        warn!(%error, "the node's status was not taken");
    }
}

async fn renew(node: &Node) -> Result<(), ClientError> {
    const NAMESPACE: &str = "kube-node-lease";
    let name = &node.config.name;
    let at = now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
    let patch = json!({"spec": {"holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS,
        "renewTime": at}});
    let key = ObjectKey::new(NAMESPACE, name);
    match node.client.patch(LEASES, &key, "", PatchType::Merge, &patch).await {
        Err(error) if error.is(Reason::NotFound) => {
            let mut object = patch;
            object["apiVersion"] = "coordination.k8s.io/v1".into();
            object["kind"] = "Lease".into();
            object["metadata"] = json!({"name": name, "namespace": NAMESPACE});
            node.client.create(LEASES, NAMESPACE, &object).await.map(drop)
        }
        other => other.map(drop),
    }
}

/// Records events as they come; one that is refused is not worth a retry.
pub(crate) async fn record(client: Client, mut events: mpsc::Receiver<(String, Value)>) {
    while let Some((namespace, event)) = events.recv().await {
        if let Err(error) = client.create(EVENTS, &namespace, &event).await {
            debug!(%error, reason = %event["reason"], "an event was not taken");
        }
    }
}

/// Has a decision's event recorded.
pub(crate) fn tell_of(node: &Node, pod: &Pod, told: &PodEvent) {
    event(node, pod, told.warning, told.reason, &told.message);
}

/// Has a warning about the node itself recorded.
pub(crate) fn node_event(node: &Node, reason: &str, message: &str) {
    let name = &node.config.name;
    let about = json!({"apiVersion": "v1", "kind": "Node", "name": name, "uid": name});
    record_event(node, ObjectKey::new("default", name), about, (true, reason), message);
}

/// Has an event about a Pod recorded.
pub(crate) fn event(node: &Node, pod: &Pod, warning: bool, reason: &str, message: &str) {
    let key = crate::worker::key(pod);
    let about = json!({"apiVersion": "v1", "kind": "Pod", "name": key.name,
        "namespace": key.namespace, "uid": pod.metadata.uid});
    record_event(node, key, about, (warning, reason), message);
}

fn record_event(
    node: &Node,
    key: ObjectKey,
    about: Value,
    (warning, reason): (bool, &str),
    message: &str,
) {
    let at = now();
    let name = format!("{}.{:x}", key.name, at.as_nanosecond());
    let source = json!({"component": "kubelet", "host": node.config.name});
    let object = json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": {"name": name, "namespace": key.namespace},
        "involvedObject": about,
        "type": if warning { "Warning" } else { "Normal" },
        "reason": reason, "message": message, "count": 1, "source": source,
        "reportingComponent": "kubelet", "reportingInstance": node.config.name,
        "firstTimestamp": stamp(at), "lastTimestamp": stamp(at),
    });
    if node.events.try_send((key.namespace.clone(), object)).is_err() {
        debug!(%key, reason, "too many events: one is dropped");
    }
}
