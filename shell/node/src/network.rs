//! A sandbox's network: by CNI plugins where a configuration is there, else the built-in veth.
//!
//! The configuration is read for each sandbox, so a new one counts from the next Pod on; what is
//! connected is undone the way it was made.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use knarr_cni::{CniError, Wanted};
use knarr_net::Attachment;
use knarr_typed::Pod;
use tracing::{info, warn};

use crate::agent::Node;

/// How long the connection of a sandbox that is no more may stay.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

type Why = Box<dyn std::error::Error + Send + Sync>;

/// Why the node can run no Pod that wants a network, as upstream's kubelet says it.
pub(crate) fn trouble(node: &Node) -> Option<String> {
    let why = node.cni.network().err()?;
    Some(format!(
        "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady \
         message:Network plugin returns error: {why}"
    ))
}

/// Gives a sandbox its addresses and its link.
pub(crate) async fn connect(node: &Arc<Node>, pod: &Pod, sandbox: &str) -> Result<(), Why> {
    let id = sandbox.to_owned();
    let status = node.blocking(move |node| node.runtime.pod_sandbox_status(&id)).await?;
    let netns = status.netns.unwrap_or_default();
    match node.cni.network() {
        Ok(None) => built_in(node, sandbox, Path::new(&netns)).await,
        Ok(Some(list)) => {
            let wanted = Wanted::of(pod, sandbox, &netns)?;
            node.network.loopback(Path::new(&netns)).await?;
            let given = node.cni.connect(list, wanted).await;
            given.map(drop).map_err(|error| failed(sandbox, &error))
        }
        Err(error) => Err(failed(sandbox, &error)),
    }
}

fn failed(sandbox: &str, error: &CniError) -> Why {
    let what = "Failed to create pod sandbox: failed to setup network for sandbox";
    format!("{what} {sandbox:?}: {error}").into()
}

async fn built_in(node: &Node, sandbox: &str, netns: &Path) -> Result<(), Why> {
    let addresses = node.pool(|pool| match pool {
        Some(pool) => pool.allocate(sandbox).map_err(Why::from),
        None => Err("the node has no Pod address range (podCIDR) yet".into()),
    })?;
    let want = Attachment { link: link(node, sandbox), addresses };
    Ok(node.network.attach(netns, &want).await?)
}

/// The host end of a sandbox's built-in link.
fn link(node: &Node, sandbox: &str) -> String {
    format!("kn{}{}", node.config.instance, &sandbox[..sandbox.len().min(8)])
}

/// Takes a sandbox's link away. Safe to repeat.
pub(crate) async fn disconnect(node: &Node, sandbox: &str) -> Result<(), Why> {
    node.cni.disconnect(sandbox).await?;
    Ok(node.network.detach(&link(node, sandbox)).await?)
}

/// Gives back the built-in addresses of a sandbox that is no more.
pub(crate) fn release(node: &Node, sandbox: &str) -> Result<(), Why> {
    let released = node.pool(|pool| pool.as_mut().map(|pool| pool.release(sandbox)));
    Ok(released.transpose().map(drop)?)
}

/// The addresses that a sandbox has.
pub(crate) fn addresses(node: &Node, sandbox: &str) -> Vec<IpAddr> {
    let own = node.pool(|pool| pool.as_ref().map(|pool| pool.of(sandbox))).unwrap_or_default();
    if own.is_empty() { node.cni.addresses(sandbox) } else { own }
}

/// Ends sandboxes whose connecting was broken off by the end of an agent: others take their place.
pub(crate) async fn recover(node: &Arc<Node>) {
    for id in node.cni.unfinished() {
        info!(sandbox = id, "a sandbox that was never connected is ended");
        // One that is gone already is what is wanted.
        node.blocking(move |node| node.runtime.stop_pod_sandbox(&id)).await.ok();
    }
}

/// Undoes, now and then, the connections of sandboxes that are no more; no Pod waits for it.
pub(crate) async fn tidy(node: Arc<Node>) {
    loop {
        sweep(&node).await;
        tokio::time::sleep(SWEEP_EVERY).await;
    }
}

async fn sweep(node: &Node) {
    // Asked in this order: a connection comes after its sandbox and ends before it.
    let connected = node.cni.sandboxes();
    if connected.is_empty() {
        return;
    }
    let sandboxes = node.runtime.list_pod_sandbox();
    let is_gone = |id: &&String| sandboxes.iter().all(|sandbox| sandbox.id != **id);
    for id in connected.iter().filter(is_gone) {
        if let Err(error) = node.cni.disconnect(id).await {
            warn!(sandbox = id, %error, "the connection of a lost sandbox stays");
        }
    }
}
