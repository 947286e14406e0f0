//! DNS: beside a node in its process, or on its own.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;
use knarr_api::ip::Cidr;
use knarr_api::{ObjectKey, Reason, Resource};
use knarr_client::Client;
use knarr_dns::{DnsConfig, StubDomain};
use knarr_pki::Kubeconfig;
use tracing::warn;

use crate::cluster::Facts;
use crate::paths::NodePaths;
use crate::process::{Drain, Fatal};

const SERVICES: Resource = Resource::new("v1", "services");
const PORT: u16 = 53;

/// The cluster's DNS, as a node knows it.
#[derive(Clone, Debug, Args)]
pub(crate) struct DnsFlags {
    /// Where the cluster's names are answered [default: the cluster IPs of kube-system/kube-dns].
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub(crate) cluster_dns: Vec<IpAddr>,
    /// The cluster's domain [default: what the cluster says, or cluster.local].
    #[arg(long, value_name = "DOMAIN")]
    pub(crate) cluster_domain: Option<String>,
    /// Where the node's own resolvers are named.
    #[arg(long, default_value = "/etc/resolv.conf", value_name = "FILE")]
    pub(crate) resolv_conf: PathBuf,
    /// A domain that certain servers know; may be given several times.
    #[arg(long = "stub-domain", value_name = "DOMAIN=SERVER[,SERVER]")]
    pub(crate) stub_domains: Vec<StubDomain>,
}

/// DNS on its own.
#[derive(Clone, Debug, Args)]
pub(crate) struct DnsRoleFlags {
    /// Whom to talk to, and as whom.
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: PathBuf,
    /// Whose Pods' search paths are walked for them [default: nobody's].
    #[arg(long, value_name = "NAME")]
    pub(crate) node_name: Option<String>,
    /// The cluster's own addresses: their reverse names are answered here [default: what the
    /// cluster says].
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub(crate) ranges: Vec<Cidr>,
    /// The port to answer at.
    #[arg(long, default_value_t = PORT, value_name = "PORT")]
    pub(crate) port: u16,
    /// The root of the node it works for: its link is named after it.
    #[arg(long, default_value = "/", value_name = "DIR")]
    pub(crate) root_dir: PathBuf,
    #[command(flatten)]
    pub(crate) dns: DnsFlags,
}

/// The addresses that were given, or those of the cluster's DNS Service; none without one.
pub(crate) async fn addresses(flags: &DnsFlags, client: &Client) -> Result<Vec<IpAddr>, Fatal> {
    if !flags.cluster_dns.is_empty() {
        return Ok(flags.cluster_dns.clone());
    }
    match client.get(SERVICES, &ObjectKey::new("kube-system", "kube-dns")).await {
        Ok(service) => {
            let list = service.pointer("/spec/clusterIPs").and_then(|list| list.as_array());
            let texts = list.into_iter().flatten().filter_map(|text| text.as_str());
            Ok(texts.filter_map(|text| text.parse().ok()).collect())
        }
        Err(error) if error.is(Reason::NotFound) => {
            warn!("the cluster has no Service kube-system/kube-dns: Pods get no cluster DNS");
            Ok(Vec::new())
        }
        Err(error) => Err(error.into()),
    }
}

/// What a node's DNS is told.
pub(crate) fn config(
    flags: &DnsFlags,
    addresses: Vec<IpAddr>,
    facts: &Facts,
    (instance, node): (&str, &str),
) -> DnsConfig {
    DnsConfig {
        addresses,
        port: PORT,
        link: Some(format!("kn{instance}dns")),
        domain: facts.domain.clone(),
        ranges: facts.cluster_cidrs.iter().chain(&facts.service_cidrs).copied().collect(),
        resolv_conf: flags.resolv_conf.clone(),
        stub_domains: flags.stub_domains.clone(),
        node: node.to_owned(),
    }
}

/// Runs DNS alone.
pub(crate) async fn run(flags: DnsRoleFlags, drain: Drain) -> Result<(), Fatal> {
    let client = Client::connect(&Kubeconfig::read(&flags.kubeconfig)?)?;
    let addresses = addresses(&flags.dns, &client).await?;
    let instance = NodePaths::new(&flags.root_dir).instance;
    let node = flags.node_name.unwrap_or_default();
    let mut facts = Facts::learn(&client).await?;
    facts.domain = flags.dns.cluster_domain.clone().unwrap_or(facts.domain);
    if !flags.ranges.is_empty() {
        facts = Facts { cluster_cidrs: flags.ranges, service_cidrs: Vec::new(), ..facts };
    }
    let mut config = config(&flags.dns, addresses, &facts, (&instance, &node));
    config.port = flags.port;
    Ok(knarr_dns::run(config, client, drain).await?)
}
