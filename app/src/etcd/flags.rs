//! etcd's flags that mean something here, by etcd's names and with its defaults.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, ValueEnum};
use knarr_etcd::Keepalive;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::writer::{BoxMakeWriter, MakeWriterExt as _};

use super::ClientUrl;
use super::idle::IdleFlags;
use crate::flags::{LogFormat, duration, duration_or_zero, truth};
use crate::keep::EtcdKeepFlags;
use crate::process::{self, Fatal};

const SECOND: Duration = Duration::from_secs(1);
/// A switch, as Go has it: `--switch`, `--switch=true`, `--switch=false`.
const SWITCH: std::ops::RangeInclusive<usize> = 0..=1;

/// etcd's flags, by etcd's names and with its defaults. Each is a variable too (ETCD_DATA_DIR), or
/// stands in a file.
#[derive(Clone, Debug, Args)]
pub(crate) struct EtcdFlags {
    /// The member's name, for people.
    #[arg(long, default_value = "default")]
    pub(crate) name: String,
    /// Where the data is kept [default: NAME.etcd].
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Where to listen for clients: http://, https:// or unix://.
    #[arg(
        long,
        value_name = "URL",
        value_delimiter = ',',
        default_value = "http://localhost:2379"
    )]
    pub(crate) listen_client_urls: Vec<ClientUrl>,
    /// What clients are told to dial [default: the URLs listened on].
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    pub(crate) advertise_client_urls: Vec<ClientUrl>,
    /// Where else to listen for clients that speak HTTP/1.
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    pub(crate) listen_client_http_urls: Vec<ClientUrl>,
    /// Where to show /metrics and health, and nothing else, to everybody.
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    pub(crate) listen_metrics_urls: Vec<ClientUrl>,
    /// What peers would be told to dial.
    #[arg(
        long,
        value_name = "URL",
        value_delimiter = ',',
        default_value = "http://localhost:2380"
    )]
    pub(crate) initial_advertise_peer_urls: Vec<String>,
    /// NAME=URL of the one member.
    #[arg(long, value_name = "MEMBERS", value_delimiter = ',')]
    pub(crate) initial_cluster: Vec<String>,
    /// Read all this from a YAML file instead; other flags and variables do not count then.
    #[arg(long, value_name = "FILE")]
    config_file: Option<PathBuf>,
    /// Say which version of etcd's API is spoken.
    #[arg(long, value_parser = truth, action = ArgAction::Set, num_args = SWITCH)]
    #[arg(require_equals = true, default_value = "false", default_missing_value = "true")]
    pub(crate) version: bool,
    /// What is measured: `extensive` is also how long calls take.
    #[arg(long, value_enum, value_name = "WORD", default_value_t = Measured::Basic)]
    pub(crate) metrics: Measured,
    #[command(flatten)]
    pub(crate) log: EtcdLogFlags,
    #[command(flatten)]
    pub(crate) tls: EtcdTlsFlags,
    #[command(flatten)]
    pub(crate) limits: EtcdLimits,
    #[command(flatten)]
    pub(crate) connections: EtcdConnectionFlags,
    #[command(flatten)]
    pub(crate) keep: EtcdKeepFlags,
    #[command(flatten)]
    pub(crate) idle: IdleFlags,
}

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Measured {
    Basic,
    Extensive,
}

/// The same face beside an API server: nowhere, unless it is asked for.
#[derive(Clone, Debug, Args)]
pub(crate) struct EtcdBesideFlags {
    /// Serve the store as etcd's API too, for etcdctl and backups: https:// (with the certificates
    /// in DATA_DIR/pki/etcd, and for those who have one of its authority) or unix:// (for this
    /// user) [default: nowhere].
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    pub(crate) etcd_listen_client_urls: Vec<ClientUrl>,
    /// Let clients of etcd's API write the API server's own keys. What they write there is not
    /// checked by anything.
    #[arg(long, requires = "etcd_listen_client_urls")]
    pub(crate) unsafe_registry_writes: bool,
}

/// Certificates of the client port.
#[derive(Clone, Debug, Args)]
pub(crate) struct EtcdTlsFlags {
    /// The server's certificate, PEM. A new file is taken up without a restart.
    #[arg(long, value_name = "FILE", requires = "key_file")]
    pub(crate) cert_file: Option<PathBuf>,
    /// Its key, PEM.
    #[arg(long, value_name = "FILE", requires = "cert_file")]
    pub(crate) key_file: Option<PathBuf>,
    /// Ask clients for a certificate of --trusted-ca-file.
    #[arg(long, requires_if("true", "trusted_ca_file"))]
    #[arg(value_parser = truth, action = ArgAction::Set, num_args = SWITCH)]
    #[arg(require_equals = true, default_value = "false", default_missing_value = "true")]
    pub(crate) client_cert_auth: bool,
    /// The authority of clients' certificates, PEM; with it every client needs one.
    #[arg(long, value_name = "FILE", requires = "cert_file")]
    pub(crate) trusted_ca_file: Option<PathBuf>,
    /// Make a certificate in DATA_DIR/fixtures/client where none is named.
    #[arg(long, value_parser = truth, action = ArgAction::Set, num_args = SWITCH)]
    #[arg(require_equals = true, default_value = "false", default_missing_value = "true")]
    pub(crate) auto_tls: bool,
}

/// Limits and what goes with them.
#[derive(Clone, Debug, Args)]
pub(crate) struct EtcdLimits {
    /// The most operations of a transaction.
    #[arg(long, default_value_t = 128, value_name = "N")]
    pub(crate) max_txn_ops: usize,
    /// The largest request.
    #[arg(long, default_value_t = 1_572_864, value_name = "BYTES")]
    pub(crate) max_request_bytes: usize,
    /// What those get who log in: `simple`, or
    /// `jwt,sign-method=RS256,pub-key=FILE,priv-key=FILE,ttl=10m`.
    #[arg(long, default_value = "simple", value_name = "KIND")]
    pub(crate) auth_token: String,
    /// How many seconds a simple token lives without being used.
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    pub(crate) auth_token_ttl: u64,
    /// The work factor of password hashes.
    #[arg(
        long, default_value_t = 10, value_name = "N",
        value_parser = clap::value_parser!(u32).range(4..=31)
    )]
    pub(crate) bcrypt_cost: u32,
    /// How often a quiet watcher that wants to hears how far it has come.
    #[arg(
        long,
        default_value = "10m",
        value_name = "DURATION",
        value_parser = duration,
        alias = "experimental-watch-progress-notify-interval",
    )]
    pub(crate) watch_progress_notify_interval: Duration,
}

/// What holds for each client's connection.
#[derive(Clone, Debug, Args)]
pub(crate) struct EtcdConnectionFlags {
    /// How long a client may be silent before it is asked whether it lives.
    #[arg(long, default_value = "2h", value_name = "DURATION", value_parser = duration_or_zero)]
    grpc_keepalive_interval: Duration,
    /// How long it may be silent after that before its connection is ended.
    #[arg(long, default_value = "20s", value_name = "DURATION", value_parser = duration_or_zero)]
    grpc_keepalive_timeout: Duration,
    /// The most calls that a client may have under way on one connection; 0 is no limit.
    #[arg(long, default_value_t = u32::MAX, value_name = "N")]
    max_concurrent_streams: u32,
    /// Serve JSON at /v3/ too.
    #[arg(long, value_parser = truth, action = ArgAction::Set, num_args = SWITCH)]
    #[arg(require_equals = true, default_value = "true", default_missing_value = "true")]
    pub(crate) enable_grpc_gateway: bool,
}

impl EtcdConnectionFlags {
    /// With a zero gRPC's own times count, and it asks once a second at most.
    pub(crate) fn keepalive(&self) -> Keepalive {
        match (self.grpc_keepalive_interval, self.grpc_keepalive_timeout) {
            (Duration::ZERO, _) | (_, Duration::ZERO) => Keepalive::default(),
            (interval, timeout) => Keepalive { interval: interval.max(SECOND), timeout },
        }
    }

    pub(crate) fn max_streams(&self) -> u32 {
        match self.max_concurrent_streams {
            0 => u32::MAX,
            limit => limit,
        }
    }
}

/// What is logged, and where to. How lines look is for every role to say (`--log-format`).
#[derive(Clone, Debug, Args)]
pub(crate) struct EtcdLogFlags {
    /// How much to log [default: as -v says].
    #[arg(long, value_enum, value_name = "LEVEL")]
    log_level: Option<Level>,
    /// Log everything that debugging needs.
    #[arg(long, hide = true, value_parser = truth, action = ArgAction::Set, num_args = SWITCH)]
    #[arg(require_equals = true, default_value = "false", default_missing_value = "true")]
    debug: bool,
    /// Where to log to: stderr, stdout, files.
    #[arg(long, value_name = "OUTPUT", value_delimiter = ',', default_value = "default")]
    #[arg(alias = "log-output")]
    log_outputs: Vec<String>,
}

/// etcd's names of levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Level {
    Debug,
    Info,
    #[value(alias = "warning")]
    Warn,
    #[value(aliases = ["dpanic", "panic", "fatal"])]
    Error,
}

impl EtcdLogFlags {
    /// Starts to log.
    ///
    /// # Errors
    /// [`Fatal`] when a file cannot be had.
    pub(crate) fn start(&self, verbosity: u8, format: LogFormat) -> Result<(), Fatal> {
        let level = match self.log_level {
            _ if self.debug => LevelFilter::DEBUG,
            None => process::level(verbosity),
            Some(Level::Debug) => LevelFilter::DEBUG,
            Some(Level::Info) => LevelFilter::INFO,
            Some(Level::Warn) => LevelFilter::WARN,
            Some(Level::Error) => LevelFilter::ERROR,
        };
        let outputs = self.log_outputs.iter().map(|output| writer(output));
        let all = outputs.reduce(|all, one| Ok(BoxMakeWriter::new(all?.and(one?))));
        process::log_to(all.expect("there is a default")?, level, format);
        Ok(())
    }
}

/// An output by its name. Under systemd the journal reads the standard error.
fn writer(output: &str) -> Result<BoxMakeWriter, Fatal> {
    Ok(match output {
        "default" | "stderr" | "systemd/journal" => BoxMakeWriter::new(std::io::stderr),
        "stdout" => BoxMakeWriter::new(std::io::stdout),
        path => {
            let file = File::options().create(true).append(true).open(path);
            let bad = |error| Fatal(format!("--log-outputs {path}: {error}"));
            BoxMakeWriter::new(file.map_err(bad)?)
        }
    })
}
