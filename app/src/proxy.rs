//! The Service proxy's role: beside a node in its process, or on its own.

use std::net::SocketAddr;

use knarr_client::Client;
use knarr_pki::Kubeconfig;
use knarr_proxy::ProxyConfig;

use crate::agent::host_name;
use crate::flags::ProxyFlags;
use crate::paths::NodePaths;
use crate::process::{Drain, Fatal};

/// Reads where to listen; an empty text is nowhere, and a bare address has upstream's port.
fn listen(flag: &str, text: &str, port: u16) -> Result<Option<SocketAddr>, Fatal> {
    if text.is_empty() {
        return Ok(None);
    }
    let bare = || text.parse().map(|ip| SocketAddr::new(ip, port));
    let address = text.parse().or_else(|_| bare());
    address.map(Some).map_err(|_| Fatal(format!("--{flag}: {text:?} is no address and port")))
}

/// Runs a proxy alone.
pub(crate) async fn run(flags: ProxyFlags, drain: Drain) -> Result<(), Fatal> {
    let client = Client::connect(&Kubeconfig::read(&flags.kubeconfig)?)?;
    let config = ProxyConfig {
        node_name: flags.hostname_override.unwrap_or_else(host_name),
        instance: NodePaths::new(&flags.root_dir).instance,
        cluster_cidrs: flags.cluster_cidr,
        node_port_addresses: flags.nodeport_addresses,
        healthz: listen("healthz-bind-address", &flags.healthz_bind_address, 10256)?,
        metrics: listen("metrics-bind-address", &flags.metrics_bind_address, 10249)?,
    };
    Ok(knarr_proxy::run(config, client, drain).await?)
}
