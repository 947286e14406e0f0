//! The command line, as data.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

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
    Text,
    /// One JSON object a line.
    Json,
}

/// The roles and chores.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the control plane: store, API server, controllers, scheduler. Needs no root.
    Server(ServerFlags),
}

/// Where a control plane keeps its state and listens.
#[derive(Clone, Debug, Args)]
pub(crate) struct ServerFlags {
    /// Where state is kept: store, keys, certificates.
    #[arg(long, default_value = "/var/lib/knarr")]
    pub(crate) data_dir: PathBuf,
    /// Where to write the administrator's kubeconfig [default: DATA_DIR/admin.kubeconfig].
    #[arg(long)]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The address to listen on.
    #[arg(long, default_value = "0.0.0.0")]
    pub(crate) bind_address: IpAddr,
    /// The port to serve HTTPS on.
    #[arg(long, default_value_t = 6443)]
    pub(crate) secure_port: u16,
    /// The address clients are told to use [default: the bind address, or the default route's].
    #[arg(long)]
    pub(crate) advertise_address: Option<IpAddr>,
    /// More names and addresses for the server's certificate.
    #[arg(long, value_delimiter = ',')]
    pub(crate) tls_san: Vec<String>,
}
