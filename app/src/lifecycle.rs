//! What a person does to a running instance: look, stop, remove.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use knarr_api::Resource;
use knarr_apiserver::Server;
use knarr_client::{Client, StreamItem};
use knarr_net::Network;
use knarr_registry::User;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::Value;
use tracing::warn;

use crate::flags::{DownFlags, PlaceFlags, ResetFlags};
use crate::paths::{self, NodePaths};
use crate::process::Fatal;

const NODES: Resource = Resource::new("v1", "nodes");
/// How long a process may take to end before it is killed.
const PATIENCE: Duration = Duration::from_secs(15);

/// Notes which process uses a directory.
pub(crate) fn write_pid(dir: &Path) -> io::Result<()> {
    knarr_pki::write_public(&dir.join("pid"), format!("{}\n", std::process::id()).as_bytes())
}

/// The knarr process that uses a directory, if it lives.
fn running(dir: &Path) -> Option<Pid> {
    let text = fs::read_to_string(dir.join("pid")).ok()?;
    let pid: i32 = text.trim().parse().ok()?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    // A pid may have been given to somebody else meanwhile; ours is called as we are.
    let own = fs::read_to_string("/proc/self/comm").ok()?;
    (name == own && pid != std::process::id().cast_signed()).then(|| Pid::from_raw(pid)).flatten()
}

/// Ends the process that uses a directory, if there is one.
pub(crate) fn end_running(dir: &Path) -> io::Result<()> {
    running(dir).map_or(Ok(()), end)
}

/// The nodes of this machine, the first (which is in the control plane's process) first.
fn nodes(flags: &PlaceFlags) -> Vec<(String, NodePaths)> {
    let first = NodePaths::new(&flags.root_dir);
    let further = first.further().into_iter().map(|(name, paths)| (format!("node {name}"), paths));
    let further: Vec<_> = further.collect();
    [("node".to_owned(), first)].into_iter().chain(further).collect()
}

/// Waits until a node says that it is ready and takes Pods.
pub(crate) async fn node_ready(server: &Arc<Server>, name: &str) -> Result<(), Fatal> {
    let user = User::new("system:apiserver", &["system:masters"]);
    let client = Client::in_process(server.clone(), user);
    let query = format!("fieldSelector=metadata.name%3D{name}");
    loop {
        let mut watch = client.watch(NODES, "", &query).await?;
        while let Ok(item) = watch.next().await {
            let StreamItem::Event { object, .. } = item else { continue };
            let node: Value = serde_json::from_slice(&object).unwrap_or_default();
            if is_ready(&node) {
                return Ok(());
            }
        }
    }
}

fn is_ready(node: &Value) -> bool {
    let conditions = node.pointer("/status/conditions").and_then(Value::as_array);
    let ready =
        conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True");
    let taints = node.pointer("/spec/taints").and_then(Value::as_array);
    let closed = taints.into_iter().flatten().any(|t| t["key"] == "node.kubernetes.io/not-ready");
    ready && !closed && node.pointer("/spec/podCIDR").is_some()
}

/// Says what runs.
pub(crate) fn status(flags: &PlaceFlags) -> Result<(), Fatal> {
    let mut any = false;
    let plane = ("control plane".to_owned(), flags.data_dir.clone());
    let nodes = nodes(flags).into_iter().map(|(what, paths)| (what, paths.state));
    for (what, dir) in [plane].into_iter().chain(nodes) {
        match running(&dir) {
            Some(pid) => {
                any = true;
                println!("{what}: running (process {}) in {}", pid.as_raw_nonzero(), dir.display());
            }
            None if dir.exists() => println!("{what}: stopped, state in {}", dir.display()),
            None => println!("{what}: nothing in {}", dir.display()),
        }
    }
    let kubeconfig = paths::kubeconfig(&flags.data_dir);
    if kubeconfig.exists() {
        println!("kubeconfig: {}", kubeconfig.display());
    }
    if any { Ok(()) } else { Err(Fatal("knarr is not running here".to_owned())) }
}

/// Stops the processes of an instance; whether there were some.
fn stop(flags: &PlaceFlags) -> Result<bool, Fatal> {
    let states = nodes(flags).into_iter().map(|(_, paths)| paths.state);
    let dirs = [flags.data_dir.clone()].into_iter().chain(states);
    // Further nodes end with the first.
    let mut pids: Vec<Pid> = dirs.filter_map(|dir| running(&dir)).collect();
    pids.dedup();
    for pid in &pids {
        end(*pid).map_err(|error| Fatal(format!("process {}: {error}", pid.as_raw_nonzero())))?;
    }
    Ok(!pids.is_empty())
}

/// Asks a process to end, waits for it, and kills it when it does not.
fn end(pid: Pid) -> io::Result<()> {
    let process = match pidfd_open(pid, PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        other => other?,
    };
    for signal in [Signal::TERM, Signal::KILL] {
        match pidfd_send_signal(&process, signal) {
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            other => other?,
        }
        let wait = Timespec { tv_sec: PATIENCE.as_secs().cast_signed(), tv_nsec: 0 };
        let mut fds = [PollFd::new(&process, PollFlags::IN)];
        if poll(&mut fds, Some(&wait))? > 0 {
            return Ok(());
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "does not end"))
}

/// Stops knarr; with `--drain` its containers too.
pub(crate) async fn down(flags: DownFlags) -> Result<(), Fatal> {
    let stopped = stop(&flags.place)?;
    if flags.drain {
        for (_, node) in nodes(&flags.place) {
            stop_containers(&node).await?;
        }
        println!("Stopped, with all containers.");
    } else if stopped {
        println!("Stopped. Containers keep running; the next start takes them over.");
    } else {
        println!("Nothing was running.");
    }
    Ok(())
}

/// Where CNI's things are, but for its plugins.
pub(crate) fn cni_config(node: &NodePaths) -> knarr_cni::Config {
    knarr_cni::Config {
        conf_dir: node.cni.clone(),
        bin_dirs: Vec::new(),
        state_dir: node.state.join("cni"),
        patience: knarr_cni::PATIENCE,
    }
}

/// Has plugins undo what they did, while the sandboxes are there.
async fn disconnect(node: &NodePaths) -> Result<(), Fatal> {
    let config = cni_config(node);
    if !config.state_dir.exists() {
        return Ok(());
    }
    let cni = knarr_cni::Cni::open(config)?;
    for sandbox in cni.sandboxes() {
        if let Err(error) = cni.disconnect(&sandbox).await {
            warn!(sandbox, %error, "a Pod's network was not taken down");
        }
    }
    Ok(())
}

async fn stop_containers(node: &NodePaths) -> Result<(), Fatal> {
    disconnect(node).await?;
    let runtime = node.state.join("runtime");
    if runtime.exists() {
        knarr_sandbox::cleanup(&runtime)
            .map_err(|error| Fatal(format!("containers could not be removed: {error}")))?;
    }
    Ok(())
}

/// Stops everything and removes all that this instance made.
pub(crate) async fn reset(flags: ResetFlags) -> Result<(), Fatal> {
    let place = &flags.place;
    let node = NodePaths::new(&place.root_dir);
    if !flags.yes {
        return Err(Fatal(format!(
            "this removes the cluster in {} and all Pods of {}: add --yes to do it",
            place.data_dir.display(),
            node.state.display()
        )));
    }
    stop(place)?;
    let groups = knarr_sandbox::Hierarchies::detect()?;
    // What further nodes have in the kernel besides lives in their namespaces and ends with them.
    for (_, node) in nodes(place) {
        stop_containers(&node).await?;
        groups.remove(&format!("/knarr-{}", node.instance))?;
    }
    let network = Network::open()?;
    network.set_pod_routes(&node.instance, &BTreeSet::new()).await?;
    remove_links(&node, &network).await?;
    knarr_net::Table::open(&node.instance)?.remove()?;
    for dir in [&node.state, &node.pods] {
        knarr_sandbox::unmount_below(dir)?;
    }
    for dir in [&place.data_dir, &node.state, &node.pods.join("pods"), &node.logs] {
        remove_dir(dir)?;
    }
    remove_empty_parents(&node.pods, &place.root_dir);
    for dir in [&node.state, &node.logs] {
        if let Some(parent) = dir.parent() {
            remove_empty_parents(parent, &place.root_dir);
        }
    }
    println!("Removed.");
    Ok(())
}

async fn remove_links(node: &NodePaths, network: &Network) -> Result<(), Fatal> {
    for link in network.links(&format!("kn{}", node.instance)).await? {
        network.detach(&link).await?;
    }
    Ok(())
}

fn remove_dir(dir: &Path) -> Result<(), Fatal> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Fatal(format!("cannot remove {}: {error}", dir.display())))
        }
        _ => Ok(()),
    }
}

/// Removes folders that hold nothing, from `dir` up to (not including) `root`; never those of the
/// machine itself.
fn remove_empty_parents(dir: &Path, root: &Path) {
    let Ok(root) = std::path::absolute(root) else { return };
    if root == Path::new("/") {
        return;
    }
    let mut dir = dir;
    while dir != root && fs::remove_dir(dir).is_ok() {
        let Some(parent) = dir.parent() else { return };
        dir = parent;
    }
}
