//! The node role: get an identity, then run the agent.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use knarr_api::ip::Cidr;
use knarr_client::Client;
use knarr_dns::DnsConfig;
use knarr_node::{ImageGcPolicy, NodeConfig};
use knarr_pki::{Kubeconfig, Signed};
use knarr_podlife::naming::ClusterDns;
use knarr_proxy::ProxyConfig;
use knarr_routes::RoutesConfig;
use tracing::info;

use crate::cluster::Facts;
use crate::flags::{AgentFlags, NodeFlags};
use crate::paths::NodePaths;
use crate::process::{Drain, Fatal, or_end_of_stdin};
use crate::server::{VERSION, own_address};
use crate::token::JoinToken;
use crate::{POD_SHIM, dns, lifecycle};

/// What the kernel must offer: a path that exists when it does, and what to do when it does not.
const FEATURES: &[(&str, &str)] = &[
    ("/proc/self/ns/net", "network namespaces: use a kernel with CONFIG_NET_NS"),
    ("/proc/self/ns/pid", "process namespaces: use a kernel with CONFIG_PID_NS"),
];

/// Refuses to begin where a node cannot work.
pub(crate) fn preflight() -> Result<(), Fatal> {
    if !rustix::process::geteuid().is_root() {
        return Err(Fatal(
            "a node needs root for namespaces, mounts and control groups: run it with sudo \
             (`knarr server` runs a control plane without)"
                .to_owned(),
        ));
    }
    for (path, what) in FEATURES {
        if !Path::new(path).exists() {
            return Err(Fatal(format!("this kernel lacks {what}")));
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    if !mounts.contains(" - cgroup") {
        let text = "no control groups are mounted: mount cgroup2 at /sys/fs/cgroup";
        return Err(Fatal(text.to_owned()));
    }
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let loadable = Path::new("/lib/modules").exists();
    if !known.contains("overlay") && !loadable {
        return Err(Fatal(
            "this kernel lacks overlayfs: use one with CONFIG_OVERLAY_FS".to_owned(),
        ));
    }
    Ok(())
}

/// Joins a cluster and runs the agent.
pub(crate) async fn run(flags: AgentFlags, drain: Drain) -> Result<(), Fatal> {
    preflight()?;
    let drain = if flags.end_with_stdin { or_end_of_stdin(drain) } else { drain };
    let token = JoinToken::parse(&flags.token)?;
    let ca = knarr_client::fetch_ca(&flags.server, &token.ca_hash).await?;
    let cidrs = &flags.cluster_cidr;
    let node = prepare(&flags.node, cidrs, &flags.server, &ca, &token).await?;
    println!("Joined {} as {}", flags.server, node.config.name);
    node.run(drain).await
}

/// A node that has its identity.
pub(crate) struct ReadyNode {
    pub(crate) config: NodeConfig,
    client: Client,
    cluster_cidrs: Vec<Cidr>,
    dns: DnsConfig,
}

impl ReadyNode {
    /// Runs the agent, the Service proxy, routes and DNS, all as the node.
    pub(crate) async fn run(self, drain: Drain) -> Result<(), Fatal> {
        let routes = RoutesConfig {
            node_name: self.config.name.clone(),
            instance: self.config.instance.clone(),
        };
        let routes = knarr_routes::run(routes, self.client.clone(), drain.clone());
        let proxy = ProxyConfig {
            node_name: self.config.name.clone(),
            instance: self.config.instance.clone(),
            cluster_cidrs: self.cluster_cidrs,
            node_port_addresses: Vec::new(),
            healthz: None,
            metrics: None,
        };
        let proxy = knarr_proxy::run(proxy, self.client.clone(), drain.clone());
        let dns = async {
            match self.dns.addresses.is_empty() {
                true => Ok(()),
                false => knarr_dns::run(self.dns, self.client.clone(), drain.clone()).await,
            }
        };
        let node = knarr_node::run(self.config, self.client.clone(), drain.clone());
        let proxy = async { proxy.await.map_err(Fatal::from) };
        let dns = async { dns.await.map_err(Fatal::from) };
        let routes = async { routes.await.map_err(Fatal::from) };
        tokio::try_join!(async { node.await.map_err(Fatal::from) }, proxy, dns, routes)?;
        Ok(())
    }
}

/// The machine's name.
pub(crate) fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_ascii_lowercase()
}

fn node_name(flags: &NodeFlags) -> String {
    flags.node_name.clone().unwrap_or_else(host_name)
}

/// The node's own address and that of the other family.
fn addresses(given: &[IpAddr]) -> Result<(IpAddr, Option<IpAddr>), Fatal> {
    match given {
        [] => {
            let second = own_address(Ipv6Addr::UNSPECIFIED.into());
            let second = Some(second).filter(|ip| ip.is_ipv6());
            Ok((own_address(Ipv4Addr::UNSPECIFIED.into()), second))
        }
        [one] => Ok((*one, None)),
        [one, other] if one.is_ipv4() != other.is_ipv4() => Ok((*one, Some(*other))),
        _ => Err(Fatal("--node-ip takes one address, or one of each IP family".to_owned())),
    }
}

/// Gets the node's identity (a kept one, or a new one by joining) and what the agent needs.
pub(crate) async fn prepare(
    flags: &NodeFlags,
    cluster_cidrs: &[Cidr],
    server: &str,
    ca: &str,
    token: &JoinToken,
) -> Result<ReadyNode, Fatal> {
    let paths = NodePaths::new(&flags.root_dir);
    let name = node_name(flags);
    knarr_api::names::dns1123_subdomain(&name).map_err(|why| {
        Fatal(format!("{name:?} cannot be a node's name: {why}; use --node-name"))
    })?;
    crate::ranges::node_ips(&flags.node_ip)?;
    let (address, second_address) = addresses(&flags.node_ip)?;
    for dir in [&paths.state, &paths.pods, &paths.logs] {
        fs::create_dir_all(dir)
            .map_err(|error| Fatal(format!("cannot make {}: {error}", dir.display())))?;
    }
    lifecycle::write_pid(&paths.state)?;
    let (kubeconfig, serving) = match kept(&paths.state, server, ca, &name, address) {
        Some(identity) => identity,
        None => {
            let joined = knarr_node::join(server, ca, &token.bootstrap, &name, address).await?;
            keep(&paths.state, &name, address, &joined)?;
            info!(node = name, "joined");
            joined
        }
    };
    let client = Client::connect(&kubeconfig)?;
    let dns_servers = dns::addresses(&flags.dns, &client).await?;
    let servers = dns_servers.iter().map(ToString::to_string).collect();
    let mut facts = Facts::learn(&client).await?;
    if !cluster_cidrs.is_empty() {
        facts.cluster_cidrs = cluster_cidrs.to_vec();
    }
    facts.domain = flags.dns.cluster_domain.clone().unwrap_or(facts.domain);
    let dns = dns::config(&flags.dns, dns_servers, &facts, (&paths.instance, &name));
    let shim = std::env::current_exe()?;
    let mut cni = lifecycle::cni_config(&paths);
    cni.bin_dirs.clone_from(&flags.cni_bin_dir);
    cni.conf_dir = flags.cni_conf_dir.clone().unwrap_or(cni.conf_dir);
    let config = NodeConfig {
        name,
        instance: paths.instance,
        state_dir: paths.state,
        pods_dir: paths.pods,
        logs_dir: paths.logs,
        certs_dir: paths.certs,
        cni,
        max_parallel_image_pulls: flags.max_parallel_image_pulls,
        image_gc: ImageGcPolicy::new(
            flags.image_gc_high_threshold,
            flags.image_gc_low_threshold,
            flags.minimum_image_ttl_seconds,
        ),
        cluster_dns: ClusterDns { servers, domain: facts.domain },
        resolv_conf: flags.dns.resolv_conf.clone(),
        address,
        second_address,
        port: flags.node_port,
        shim: vec![shim.display().to_string(), POD_SHIM.to_owned()],
        ca: ca.to_owned(),
        serving,
        version: VERSION.to_owned(),
    };
    Ok(ReadyNode { config, client, cluster_cidrs: facts.cluster_cidrs, dns })
}

fn identity_file(state: &Path, name: &str) -> PathBuf {
    state.join("node").join(name)
}

/// Keeps an identity for the next start.
fn keep(
    state: &Path,
    name: &str,
    address: IpAddr,
    (kubeconfig, serving): &(Kubeconfig, Signed),
) -> Result<(), Fatal> {
    let write = |file: &str, text: &str| {
        knarr_pki::write_private(&identity_file(state, file), text.as_bytes())
    };
    write("serving.crt", &serving.certificate)?;
    write("serving.key", &serving.key)?;
    write("for", &format!("{name} {address}"))?;
    write("kubeconfig", &kubeconfig.render("node"))?;
    Ok(())
}

/// The identity of the last start, if it is for the same node and cluster and lives on.
fn kept(
    state: &Path,
    server: &str,
    ca: &str,
    name: &str,
    address: IpAddr,
) -> Option<(Kubeconfig, Signed)> {
    let read = |file: &str| fs::read_to_string(identity_file(state, file)).ok();
    let mut kubeconfig = Kubeconfig::read(&identity_file(state, "kubeconfig")).ok()?;
    kubeconfig.server = server.to_owned();
    let serving = Signed { certificate: read("serving.crt")?, key: read("serving.key")? };
    let fresh = knarr_pki::is_fresh(&serving.certificate)
        && kubeconfig.client.as_ref().is_some_and(|c| knarr_pki::is_fresh(&c.certificate));
    let same = kubeconfig.ca == ca && read("for")? == format!("{name} {address}");
    (fresh && same).then_some((kubeconfig, serving))
}
