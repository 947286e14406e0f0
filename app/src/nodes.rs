//! The further nodes of `knarr up --nodes`: on the same machine, each a process of its own in a
//! network namespace of its own, joined by token over the wire like a node of another machine.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use knarr_api::ip::{Cidr, Family};
use knarr_apiserver::Server;
use knarr_net::{Namespace, Network, Seat};
use tracing::{info, warn};

use crate::flags::UpFlags;
use crate::lifecycle;
use crate::paths::NodePaths;
use crate::process::{Drain, Fatal};

/// Room for the nodes that the flag allows.
const LARGEST_PREFIX: u8 = 24;

/// The network between the nodes of this machine.
pub(crate) struct NodeNetwork {
    paths: NodePaths,
    bridge: String,
    ranges: Vec<Cidr>,
}

/// What a further node is told.
pub(crate) struct Invitation<'a> {
    pub(crate) server: &'a str,
    pub(crate) token: &'a str,
    pub(crate) flags: &'a UpFlags,
}

/// A further node that runs.
pub(crate) struct Further {
    pub(crate) name: String,
    child: Child,
}

impl NodeNetwork {
    /// Chooses the ranges (those of the last start, if there are some) and makes the bridge.
    pub(crate) async fn open(flags: &UpFlags) -> Result<Self, Fatal> {
        let paths = NodePaths::new(&flags.node.root_dir);
        let bridge = format!("kn{}br", paths.instance);
        let network = Network::open()?;
        let ranges = choose(flags, &paths, &network, &bridge).await?;
        let this = Self { paths, bridge, ranges };
        network.bridge(&this.bridge, &this.seats(1)).await?;
        Ok(this)
    }

    /// The addresses of the `number`th node, counted from 1.
    pub(crate) fn addresses(&self, number: u16) -> Vec<IpAddr> {
        self.ranges.iter().filter_map(|range| range.nth(number.into())).collect()
    }

    fn seats(&self, number: u16) -> Vec<Seat> {
        let first = self.addresses(1);
        let rows = self.ranges.iter().zip(first).zip(self.addresses(number));
        rows.map(|((range, gateway), address)| Seat { address, prefix: range.prefix(), gateway })
            .collect()
    }

    /// Starts the `number`th node.
    pub(crate) async fn start(
        &self,
        number: u16,
        name: String,
        invitation: &Invitation<'_>,
    ) -> Result<Further, Fatal> {
        let root = self.paths.nodes.join(&name);
        fs::create_dir_all(&root)?;
        let own = NodePaths::new(&root);
        lifecycle::end_running(&own.state)?;
        let space = Namespace::open_or_make(&root.join("netns"))?;
        let link = format!("kn{}n{number}", self.paths.instance);
        Network::open()?.plug(&self.bridge, &link, &space, &self.seats(number)).await?;
        let addresses = self.addresses(number);
        let child = space.spawn(invitation.command(&name, &root, &addresses)?)?;
        info!(node = name, ?addresses, process = child.id(), "further node started");
        Ok(Further { name, child })
    }
}

impl Invitation<'_> {
    fn command(&self, name: &str, root: &Path, addresses: &[IpAddr]) -> Result<Command, Fatal> {
        let node = &self.flags.node;
        let mut command = Command::new(std::env::current_exe()?);
        // Its standard input is the rope: it ends when this process does, however that ends.
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        command.env("KNARR_TOKEN", self.token);
        command.args(["agent", "--end-with-stdin", "--server", self.server, "--node-name", name]);
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        command.arg("--node-ip").arg(addresses.join(",")).arg("--root-dir").arg(root);
        command.arg("--resolv-conf").arg(&node.dns.resolv_conf);
        for dir in &node.cni_bin_dir {
            command.arg("--cni-bin-dir").arg(dir);
        }
        for (flag, value) in [
            ("--node-port", u64::from(node.node_port)),
            ("--max-parallel-image-pulls", node.max_parallel_image_pulls as u64),
            ("--image-gc-high-threshold", node.image_gc_high_threshold),
            ("--image-gc-low-threshold", node.image_gc_low_threshold),
            ("--minimum-image-ttl-seconds", node.minimum_image_ttl_seconds.unsigned_abs()),
        ] {
            command.arg(flag).arg(value.to_string());
        }
        Ok(command)
    }
}

/// Runs further nodes until this process is to end, then waits for their end.
pub(crate) async fn keep(nodes: Vec<Further>, mut drain: Drain) {
    let mut waits = tokio::task::JoinSet::new();
    for Further { name, mut child } in nodes {
        let rope = child.stdin.take();
        let mut drain = drain.clone();
        waits.spawn(async move {
            drain.wait_for(|drain| *drain).await.ok();
            drop(rope);
        });
        waits.spawn_blocking(move || match child.wait() {
            Ok(status) if status.success() => {}
            Ok(status) => warn!(node = name, %status, "a further node has ended"),
            Err(error) => warn!(node = name, %error, "a further node is lost"),
        });
    }
    drain.wait_for(|drain| *drain).await.ok();
    while waits.join_next().await.is_some() {}
}

/// Waits until all are ready.
pub(crate) async fn all_ready(server: &Arc<Server>, names: &[String]) -> Result<(), Fatal> {
    for name in names {
        lifecycle::node_ready(server, name).await?;
    }
    Ok(())
}

async fn choose(
    flags: &UpFlags,
    paths: &NodePaths,
    network: &Network,
    bridge: &str,
) -> Result<Vec<Cidr>, Fatal> {
    let file = kept(paths);
    let taken: Vec<Cidr> = (flags.server.cluster_cidr.iter())
        .chain(&flags.server.service_cluster_ip_range)
        .copied()
        .collect();
    let last: Option<Vec<Cidr>> = fs::read_to_string(&file)
        .ok()
        .and_then(|text| text.split_whitespace().map(|word| word.parse().ok()).collect());
    let mut chosen = Vec::new();
    for family in families(flags) {
        let of = |ranges: &[Cidr]| ranges.iter().find(|range| range.family() == family).copied();
        let given = of(&flags.node_cidr).or_else(|| of(last.as_deref().unwrap_or_default()));
        let range = match given {
            Some(range) => refuse(&range, flags.nodes, &taken, network, bridge).await?,
            None => first_free(family, flags.nodes, &taken, network, bridge).await?,
        };
        chosen.push(range);
    }
    fs::create_dir_all(&paths.nodes)?;
    let text: Vec<String> = chosen.iter().map(ToString::to_string).collect();
    fs::write(&file, text.join("\n"))?;
    Ok(chosen)
}

/// Where the ranges of the last start are kept.
fn kept(paths: &NodePaths) -> PathBuf {
    paths.nodes.join("ranges")
}

/// Nodes have addresses of the families that Pods have, the same first.
fn families(flags: &UpFlags) -> Vec<Family> {
    flags.server.cluster_cidr.iter().map(Cidr::family).collect()
}

async fn refuse(
    range: &Cidr,
    nodes: u16,
    taken: &[Cidr],
    network: &Network,
    bridge: &str,
) -> Result<Cidr, Fatal> {
    let fatal = |why: String| Err(Fatal(format!("--node-cidr {range}{why}")));
    if let Some(why) = range.unusable() {
        return fatal(format!(": {why}"));
    }
    if range.nth(u128::from(nodes) + 1).is_none() {
        return fatal(format!(" has no room for {nodes} nodes"));
    }
    if let Some(other) = taken.iter().find(|other| other.overlaps(range)) {
        return fatal(format!(
            " and {other} of Pods or Services overlap: an address would be both a node's and theirs"
        ));
    }
    if network.is_used(range, bridge).await? {
        return fatal(" is in use on a link of this machine: choose another".to_owned());
    }
    Ok(*range)
}

/// The first of 256 ranges that nobody uses.
async fn first_free(
    family: Family,
    nodes: u16,
    taken: &[Cidr],
    network: &Network,
    bridge: &str,
) -> Result<Cidr, Fatal> {
    for third in 0..=255_u8 {
        let text = match family {
            Family::V4 => format!("10.44.{third}.0/{LARGEST_PREFIX}"),
            Family::V6 => format!("fd44:0:0:{third:x}::/64"),
        };
        let range = text.parse().expect("it is written so");
        if let Ok(range) = refuse(&range, nodes, taken, network, bridge).await {
            return Ok(range);
        }
    }
    Err(Fatal("no range is free for nodes: give one by --node-cidr".to_owned()))
}
