//! The command line, as data.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use knarr_api::ip::Cidr;

use crate::backend::BackendFlags;
use crate::dns::{DnsFlags, DnsRoleFlags};
use crate::etcd::{EtcdBesideFlags, EtcdFlags};
use crate::history::PastCommand;
use crate::keep::KeepFlags;

/// Kubernetes v1.36 in one binary.
#[derive(Debug, Parser)]
#[command(name = "knarr", version, about, max_term_width = 100)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
    /// How much to log: 0 warnings, 1 what matters, 2 every request, 4 everything.
    #[arg(short = 'v', long = "v", global = true, default_value_t = 1)]
    pub(crate) verbosity: u8,
    /// How log lines look.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    #[value(alias = "console")]
    Text,
    /// One JSON object a line.
    Json,
}

/// The roles and chores.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a cluster of one node here: control plane and node in one process. Needs root.
    Up(UpFlags),
    /// Run the control plane: store, API server, controllers, scheduler. Needs no root.
    Server(ServerFlags),
    /// Join this machine to a cluster as a node. Needs root.
    #[command(alias = "kubelet")]
    Agent(AgentFlags),
    /// Run the store and the API server alone.
    KubeApiserver(ServerFlags),
    /// Run the controllers against an API server.
    KubeControllerManager(ManagerFlags),
    /// Run the scheduler against an API server.
    KubeScheduler(ComponentFlags),
    /// Run a node's Service proxy against an API server. Needs root.
    KubeProxy(ProxyFlags),
    /// Run a node's DNS against an API server. Needs root.
    Dns(DnsRoleFlags),
    /// Run the store alone, for clients of etcd: gRPC, and JSON over HTTP.
    Etcd(EtcdFlags),
    /// Say what runs here.
    Status(PlaceFlags),
    /// Stop knarr. Containers keep running, and the next start adopts them.
    Down(DownFlags),
    /// Stop everything and remove all that knarr made on this machine.
    Reset(ResetFlags),
    /// Try whether a cluster keeps what it promises.
    Check(CheckFlags),
    /// Pull, bring in, list, write out and remove container images.
    Images(ImagesFlags),
    /// Make the state of a new control plane: of a backup, or of another cluster's etcd.
    Store(StoreFlags),
}

/// Where a control plane keeps its state and listens.
#[derive(Clone, Debug, Args)]
pub(crate) struct ServerFlags {
    /// Where state is kept: store, keys, certificates.
    #[arg(long, default_value = "/var/lib/knarr", value_name = "DIR")]
    pub(crate) data_dir: PathBuf,
    /// Where to write the administrator's kubeconfig [default: DATA_DIR/admin.kubeconfig].
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The address to listen on.
    #[arg(long, default_value = "0.0.0.0", value_name = "IP")]
    pub(crate) bind_address: IpAddr,
    /// The port to serve HTTPS on.
    #[arg(long, default_value_t = 6443, value_name = "PORT")]
    pub(crate) secure_port: u16,
    /// The address clients are told to use [default: the bind address, or the default route's].
    #[arg(long, value_name = "IP")]
    pub(crate) advertise_address: Option<IpAddr>,
    /// More names and addresses for the server's certificate.
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    pub(crate) tls_san: Vec<String>,
    /// Where Pods get their addresses from, one range per family; each node takes a /24 (IPv6: a
    /// /64) of it.
    #[arg(long, default_value = "10.42.0.0/16", value_name = "CIDR", value_delimiter = ',')]
    pub(crate) cluster_cidr: Vec<Cidr>,
    /// Where Services get their cluster IPs from, one range per family. The first address is the
    /// API server's, the tenth that of DNS.
    #[arg(
        long,
        default_value = "10.43.0.0/16",
        value_name = "CIDR",
        value_delimiter = ',',
        alias = "service-cidr"
    )]
    pub(crate) service_cluster_ip_range: Vec<Cidr>,
    /// Where Services get their node ports from.
    #[arg(
        long, default_value = "30000-32767", value_name = "FIRST-LAST", value_parser = port_range
    )]
    pub(crate) service_node_port_range: RangeInclusive<u16>,
    #[command(flatten)]
    pub(crate) backend: BackendFlags,
    #[command(flatten)]
    pub(crate) etcd: EtcdBesideFlags,
    #[command(flatten)]
    pub(crate) keep: KeepFlags,
    #[command(flatten)]
    pub(crate) controllers: ControllerFlags,
}

/// What controllers are told.
#[derive(Clone, Debug, Args)]
pub(crate) struct ControllerFlags {
    /// How long a node may be silent before nothing is known of it any more, such as 1m30s.
    #[arg(long, default_value = "50s", value_name = "DURATION", value_parser = duration)]
    pub(crate) node_monitor_grace_period: Duration,
}

/// Reads a duration as Go writes them, such as `1m30s`; 0 is none.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    match duration_or_zero(text)? {
        Duration::ZERO => Err(format!("{text:?} is no duration such as 1m30s")),
        duration => Ok(duration),
    }
}

/// The same, and 0 is one too.
pub(crate) fn duration_or_zero(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is no duration such as 1m30s");
    let (mut rest, mut sum) = (text, Duration::ZERO);
    if text.is_empty() {
        return Err(bad());
    }
    while !rest.is_empty() && text != "0" {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let number: u64 = rest[..digits].parse().map_err(|_| bad())?;
        let units: [(&str, u64); 6] = [
            ("ns", 1),
            ("us", 1_000),
            ("ms", 1_000_000),
            ("s", 1_000_000_000),
            ("m", 60_000_000_000),
            ("h", 3_600_000_000_000),
        ];
        let (nanos, after) = units
            .into_iter()
            .find_map(|(unit, nanos)| Some((nanos, rest[digits..].strip_prefix(unit)?)))
            .ok_or_else(bad)?;
        let part = number.checked_mul(nanos).map(Duration::from_nanos);
        sum = part.and_then(|part| sum.checked_add(part)).ok_or_else(bad)?;
        rest = after;
    }
    Ok(sum)
}

/// Reads a switch's value as Go does.
pub(crate) fn truth(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("{text:?} is neither true nor false")),
    }
}

fn port_range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let (first, last) = text.split_once('-').ok_or("must be FIRST-LAST, such as 30000-32767")?;
    let port = |text: &str| text.parse().map_err(|_| format!("{text:?} is no port"));
    let (first, last): (u16, u16) = (port(first)?, port(last)?);
    match 0 < first && first <= last {
        true => Ok(first..=last),
        false => Err("the first port must be above 0 and not behind the last".to_owned()),
    }
}

/// Where a node keeps its things.
#[derive(Clone, Debug, Args)]
pub(crate) struct NodeFlags {
    /// Shifts all of the node's paths (images, Pods, logs), for several nodes on one machine.
    #[arg(long, default_value = "/", value_name = "DIR")]
    pub(crate) root_dir: PathBuf,
    /// The node's name [default: the host name].
    #[arg(long, value_name = "NAME")]
    pub(crate) node_name: Option<String>,
    /// The node's own addresses, one per IP family, the one that others use first [default: those
    /// of the default routes].
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub(crate) node_ip: Vec<IpAddr>,
    /// The port of the node's own server.
    #[arg(long, default_value_t = 10250, value_name = "PORT")]
    pub(crate) node_port: u16,
    #[command(flatten)]
    pub(crate) dns: DnsFlags,
    /// Where CNI configurations lie; the first by name is used instead of the built-in network
    /// [default: ROOT/etc/cni/net.d].
    #[arg(long, value_name = "DIR")]
    pub(crate) cni_conf_dir: Option<PathBuf>,
    /// Where CNI plugins lie; looked for in this order.
    #[arg(long, default_value = "/opt/cni/bin,/usr/lib/cni", value_name = "DIR")]
    #[arg(value_delimiter = ',')]
    pub(crate) cni_bin_dir: Vec<PathBuf>,
    /// How many images are pulled at a time.
    #[arg(long, default_value_t = 5, value_name = "COUNT")]
    pub(crate) max_parallel_image_pulls: usize,
    /// Used percent of the disk from which on unused images are removed.
    #[arg(long, default_value_t = 85, value_parser = clap::value_parser!(u64).range(..=100))]
    #[arg(value_name = "PERCENT")]
    pub(crate) image_gc_high_threshold: u64,
    /// Used percent of the disk that removing images aims at.
    #[arg(long, default_value_t = 80, value_parser = clap::value_parser!(u64).range(..=100))]
    #[arg(value_name = "PERCENT")]
    pub(crate) image_gc_low_threshold: u64,
    /// How long an image has been here at least before it may be removed.
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    pub(crate) minimum_image_ttl_seconds: i64,
}

/// Control plane and node.
#[derive(Clone, Debug, Args)]
pub(crate) struct UpFlags {
    /// How many nodes: all but the first are processes of their own in network namespaces of their
    /// own, with their things below ROOT/var/lib/knarr/nodes/NAME.
    #[arg(long, default_value_t = 1, value_name = "COUNT")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=100))]
    pub(crate) nodes: u16,
    /// Where the nodes of this machine get their addresses from, one range per family [default:
    /// with several nodes the first of 10.44.X.0/24 and fd44:0:0:X::/64 that is free].
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub(crate) node_cidr: Vec<Cidr>,
    #[command(flatten)]
    pub(crate) server: ServerFlags,
    #[command(flatten)]
    pub(crate) node: NodeFlags,
}

/// A node that joins.
#[derive(Clone, Debug, Args)]
pub(crate) struct AgentFlags {
    /// The API server, https://HOST:PORT.
    #[arg(long, value_name = "URL")]
    pub(crate) server: String,
    /// The join token: the content of DATA_DIR/token of the server.
    #[arg(long, value_name = "TOKEN", env = "KNARR_TOKEN", hide_env_values = true)]
    pub(crate) token: String,
    /// Where Pods get their addresses from [default: what the cluster says].
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub(crate) cluster_cidr: Vec<Cidr>,
    /// End when the standard input does.
    #[arg(long, hide = true)]
    pub(crate) end_with_stdin: bool,
    #[command(flatten)]
    pub(crate) node: NodeFlags,
}

/// A node's Service proxy.
#[derive(Clone, Debug, Args)]
pub(crate) struct ProxyFlags {
    /// Whom to talk to, and as whom.
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: PathBuf,
    /// The node's name [default: the host name].
    #[arg(long, visible_alias = "node-name", value_name = "NAME")]
    pub(crate) hostname_override: Option<String>,
    /// Where Pods get their addresses from, one range of each family.
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub(crate) cluster_cidr: Vec<Cidr>,
    /// Which of the node's addresses have node ports, as ranges [default: all].
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub(crate) nodeport_addresses: Vec<Cidr>,
    /// Where to say whether it works, by plain HTTP; empty for nowhere.
    #[arg(long, default_value = "0.0.0.0:10256", value_name = "IP:PORT")]
    pub(crate) healthz_bind_address: String,
    /// Where to show metrics, by plain HTTP; empty for nowhere.
    #[arg(long, default_value = "127.0.0.1:10249", value_name = "IP:PORT")]
    pub(crate) metrics_bind_address: String,
    /// The root of the node it works for: its table is named after it.
    #[arg(long, default_value = "/", value_name = "DIR")]
    pub(crate) root_dir: PathBuf,
}

/// A component that talks to an API server.
#[derive(Clone, Debug, Args)]
pub(crate) struct ComponentFlags {
    /// Whom to talk to, and as whom.
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: PathBuf,
    #[command(flatten)]
    pub(crate) health: HealthFlags,
}

/// Where a component says how it is.
#[derive(Clone, Debug, Args)]
pub(crate) struct HealthFlags {
    /// The address to serve health and metrics on, by plain HTTP.
    #[arg(long, default_value = "127.0.0.1", value_name = "IP")]
    pub(crate) bind_address: IpAddr,
    /// The port for that, 0 for none [default: controllers 10257, scheduler 10259].
    #[arg(long, value_name = "PORT")]
    pub(crate) health_port: Option<u16>,
}

/// The controllers.
#[derive(Clone, Debug, Args)]
pub(crate) struct ManagerFlags {
    #[command(flatten)]
    pub(crate) component: ComponentFlags,
    /// Folder with the CA that signs node certificates (ca.crt, ca.key).
    #[arg(long, default_value = "/var/lib/knarr/pki", value_name = "DIR")]
    pub(crate) pki_dir: PathBuf,
    /// Where Pods get their addresses from, one range per family.
    #[arg(long, default_value = "10.42.0.0/16", value_name = "CIDR", value_delimiter = ',')]
    pub(crate) cluster_cidr: Vec<Cidr>,
    #[command(flatten)]
    pub(crate) controllers: ControllerFlags,
}

/// Which instance is meant.
#[derive(Clone, Debug, Args)]
pub(crate) struct PlaceFlags {
    /// Where the control plane keeps its state.
    #[arg(long, default_value = "/var/lib/knarr", value_name = "DIR")]
    pub(crate) data_dir: PathBuf,
    /// The node's root.
    #[arg(long, default_value = "/", value_name = "DIR")]
    pub(crate) root_dir: PathBuf,
}

/// How to stop.
#[derive(Clone, Debug, Args)]
pub(crate) struct DownFlags {
    #[command(flatten)]
    pub(crate) place: PlaceFlags,
    /// Stop the containers too.
    #[arg(long)]
    pub(crate) drain: bool,
}

/// How to remove everything.
#[derive(Clone, Debug, Args)]
pub(crate) struct ResetFlags {
    #[command(flatten)]
    pub(crate) place: PlaceFlags,
    /// Do it without asking.
    #[arg(long, short = 'y')]
    pub(crate) yes: bool,
}

/// What is to be tried.
#[derive(Clone, Debug, Args)]
pub(crate) struct CheckFlags {
    /// What to try.
    #[command(subcommand)]
    pub(crate) command: CheckCommand,
}

/// What can be tried.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum CheckCommand {
    /// The nine principles of the network model, with Pods on every node. They are in a namespace
    /// of their own, which is removed afterwards.
    Network(NetworkFlags),
}

/// How the network is tried.
#[derive(Clone, Debug, Args)]
pub(crate) struct NetworkFlags {
    /// Whom to talk to, and as whom.
    #[arg(long, value_name = "FILE", default_value = "/var/lib/knarr/admin.kubeconfig")]
    pub(crate) kubeconfig: PathBuf,
    /// An image with a shell, `httpd`, `ip` and `wget` [default: a busybox that all nodes have, or
    /// docker.io/library/busybox:stable].
    #[arg(long, value_name = "NAME")]
    pub(crate) image: Option<String>,
    /// How long Pods may take to start, and to answer.
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    pub(crate) timeout: u64,
}

/// Images of a node.
#[derive(Clone, Debug, Args)]
pub(crate) struct ImagesFlags {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: ImagesCommand,
    /// The node's root.
    #[arg(long, default_value = "/", global = true, value_name = "DIR")]
    pub(crate) root_dir: PathBuf,
}

/// What to pull, and how.
#[derive(Clone, Debug, Args)]
pub(crate) struct PullFlags {
    /// Its name.
    pub(crate) image: String,
    /// Who asks for it.
    #[arg(long, value_name = "USER:PASSWORD", env = "KNARR_PULL_CREDS", hide_env_values = true)]
    pub(crate) creds: Option<String>,
    /// Speak to the registry by plain HTTP.
    #[arg(long)]
    pub(crate) plain_http: bool,
}

/// What can be done with images.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum ImagesCommand {
    /// Bring in an OCI or docker archive.
    Import {
        /// The archive, plain or compressed.
        file: PathBuf,
        /// The name to give to an image that has none.
        #[arg(long)]
        name: Option<String>,
    },
    /// Pull an image from its registry.
    Pull(PullFlags),
    /// Write an image to an OCI archive.
    Export {
        /// Its name or id.
        image: String,
        /// The archive to write.
        file: PathBuf,
    },
    /// Remove all images that no container uses.
    Prune,
    /// List images.
    Ls,
    /// Remove an image.
    Rm {
        /// Its name or id.
        image: String,
    },
}

/// States of control planes.
#[derive(Clone, Debug, Args)]
pub(crate) struct StoreFlags {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: StoreCommand,
}

/// Where a state comes from.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Go back to a snapshot that `etcdctl snapshot save` or knarr made, exactly as it was, or to
    /// what a store was at a moment.
    Restore {
        /// The snapshot.
        #[arg(required_unless_present = "from", conflicts_with = "from")]
        snapshot: Option<PathBuf>,
        /// The data directory of the store that was; it is not changed.
        #[arg(long, value_name = "DIR", requires = "at")]
        from: Option<PathBuf>,
        /// When: a revision, a time such as 2026-11-28T12:00:00Z, or how long ago, such as -10m.
        #[arg(long, value_name = "MOMENT", requires = "from", allow_hyphen_values = true)]
        at: Option<String>,
        #[command(flatten)]
        target: NewStoreFlags,
    },
    /// Take over the cluster of an upstream API server: its objects, as they are now.
    Import(ImportFlags),
    #[command(flatten)]
    Past(PastCommand),
}

/// Where a new state goes.
#[derive(Clone, Debug, Args)]
pub(crate) struct NewStoreFlags {
    /// Where the control plane will keep its state; there must be no store yet.
    #[arg(long, default_value = "/var/lib/knarr", value_name = "DIR")]
    pub(crate) data_dir: PathBuf,
    /// Take a snapshot without a checksum: a copy of a stopped member's `member/snap/db`.
    #[arg(long)]
    pub(crate) skip_hash_check: bool,
}

/// What to take over, and how.
#[derive(Clone, Debug, Args)]
pub(crate) struct ImportFlags {
    /// A snapshot that `etcdctl snapshot save` made.
    #[arg(long, value_name = "FILE", required_unless_present = "endpoints")]
    pub(crate) snapshot: Option<PathBuf>,
    /// Members of a running etcd; the first that answers is read.
    #[arg(long, value_name = "URL", value_delimiter = ',', conflicts_with = "snapshot")]
    pub(crate) endpoints: Vec<String>,
    /// The authority that etcd's certificate is of.
    #[arg(long, value_name = "FILE")]
    pub(crate) cacert: Option<PathBuf>,
    /// A client certificate that etcd knows.
    #[arg(long, value_name = "FILE", requires = "key")]
    pub(crate) cert: Option<PathBuf>,
    /// Its key.
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub(crate) key: Option<PathBuf>,
    /// Below which key the objects lie: upstream's --etcd-prefix.
    #[arg(long, default_value = "/registry", value_name = "KEY")]
    pub(crate) prefix: String,
    /// Only say what would become of it.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Keep values that cannot be read, such as encrypted ones, as they are; nothing here can serve
    /// them, nor a list that they are in.
    #[arg(long)]
    pub(crate) keep_unreadable: bool,
    #[command(flatten)]
    pub(crate) target: NewStoreFlags,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        let read = |text: &str| duration(text).ok().map(|read| read.as_millis());
        assert_eq!(read("50s"), Some(50_000));
        assert_eq!(read("1m30s"), Some(90_000));
        assert_eq!(read("1h2ms"), Some(3_600_002));
        for bad in ["", "50", "s", "0", "0s", "-1s", "1d", "99999999999s"] {
            assert_eq!(read(bad), None, "{bad}");
        }
        assert_eq!(duration_or_zero("7000us"), Ok(Duration::from_millis(7)));
        assert_eq!(duration_or_zero("0"), Ok(Duration::ZERO));
        assert!(duration_or_zero("").is_err());
    }
}
