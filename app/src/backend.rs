//! Where a control plane keeps its state: a log in its data directory, or an etcd.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use knarr_api::Catalog;
use knarr_schema::Schema;
use knarr_store::external::wire::{Canonical, Scope};
use knarr_store::external::{ExternalConfig, Tls};
use knarr_store::{Identity, OpenError, RealDisk, Store, StoreConfig, StoreError, SystemClock};
use tracing::warn;

use crate::flags::duration;
use crate::keep::KeepFlags;
use crate::paths;
use crate::process::Fatal;

/// How long a start waits for etcd to answer, as upstream's does.
const ETCD_PATIENCE: Duration = Duration::from_secs(60);
/// The layout of keys, upstream's; etcd may have it elsewhere.
const KEYS: &str = "/registry/";

/// An etcd to keep the state in, with upstream's names.
#[derive(Clone, Debug, Args)]
pub(crate) struct BackendFlags {
    /// Keep the state in this etcd, https://HOST:PORT of each member, instead of DATA_DIR. Several
    /// servers may share it; they need the same DATA_DIR/pki.
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    #[arg(conflicts_with = "etcd_listen_client_urls")]
    etcd_servers: Vec<String>,
    /// The authority that signed etcd's certificates [default: those the system trusts].
    #[arg(long, value_name = "FILE", requires = "etcd_servers")]
    etcd_cafile: Option<PathBuf>,
    /// The certificate to show to etcd.
    #[arg(long, value_name = "FILE", requires = "etcd_keyfile", requires = "etcd_servers")]
    etcd_certfile: Option<PathBuf>,
    /// The key of that certificate.
    #[arg(long, value_name = "FILE", requires = "etcd_certfile")]
    etcd_keyfile: Option<PathBuf>,
    /// What the keys in etcd begin with.
    #[arg(long, default_value = "/registry", value_name = "PREFIX")]
    etcd_prefix: String,
    /// How often etcd's history before the last interval is let go, such as 5m; 0 is never.
    #[arg(long, default_value = "5m", value_name = "DURATION", value_parser = duration_or_never)]
    etcd_compaction_interval: Duration,
}

fn duration_or_never(text: &str) -> Result<Duration, String> {
    if ["0", "0s"].contains(&text) { Ok(Duration::ZERO) } else { duration(text) }
}

/// Opens the store in the data directory, or connects to etcd.
pub(crate) async fn open(
    data: &Path,
    flags: &BackendFlags,
    keep: &KeepFlags,
) -> Result<Store, Fatal> {
    match flags.etcd_servers.is_empty() {
        true => open_log(data, keep),
        false => connect(flags).await,
    }
}

/// A new store gets an identity of its own; an existing one keeps what it has.
pub(crate) fn new_store() -> Result<StoreConfig, Fatal> {
    let identity = Identity { cluster: random()?, member: 1 };
    Ok(StoreConfig { identity, ..StoreConfig::default() })
}

fn random() -> Result<u64, Fatal> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|error| Fatal(format!("no randomness: {error}")))?;
    Ok(u64::from_le_bytes(bytes))
}

fn open_log(data: &Path, keep: &KeepFlags) -> Result<Store, Fatal> {
    let refused = |error: OpenError| match error {
        OpenError::Locked { pid, .. } => Fatal(format!(
            "another knarr{} is running on {}: stop it, or use another --data-dir",
            pid.map_or(String::new(), |pid| format!(" (process {pid})")),
            data.display()
        )),
        error @ OpenError::TooLarge { .. } => {
            Fatal(format!("cannot start on {}: {error} (--store-memory)", data.display()))
        }
        error => Fatal(format!("cannot use --data-dir {}: {error}", data.display())),
    };
    let config = keep.over(new_store()?);
    let disk = RealDisk::open(paths::store(data)).map_err(refused)?;
    let clock = Arc::new(SystemClock::default());
    Store::open(Arc::new(disk), clock, config).map_err(refused)
}

/// Connects to etcd, which may be starting at the same time.
async fn connect(flags: &BackendFlags) -> Result<Store, Fatal> {
    let external = config(flags);
    // The cluster is etcd's; this process is a member of its own, whatever directory it shares.
    let identity = Identity { cluster: 0, member: random()? };
    let config = StoreConfig { identity, ..StoreConfig::default() };
    let start = Instant::now();
    loop {
        match Store::connect(external.clone(), config.clone()).await {
            Ok(store) => return Ok(store),
            Err(error @ StoreError::Unreachable(_)) if start.elapsed() < ETCD_PATIENCE => {
                warn!(%error, "trying again");
            }
            Err(error) => return Err(Fatal(format!("cannot use --etcd-servers: {error}"))),
        }
    }
}

fn config(flags: &BackendFlags) -> ExternalConfig {
    let client = flags.etcd_certfile.clone().zip(flags.etcd_keyfile.clone());
    let theirs = format!("/{}/", flags.etcd_prefix.trim_matches('/'));
    ExternalConfig {
        endpoints: flags.etcd_servers.clone(),
        tls: Tls { authority: flags.etcd_cafile.clone(), client },
        scope: Scope { ours: KEYS.into(), theirs: theirs.into(), canonical: canonical() },
        compact_every: flags.etcd_compaction_interval,
    }
}

/// Reads what upstream's API server writes, which is protobuf.
fn canonical() -> Canonical {
    let (catalog, schema) = (Catalog::builtin(), Schema::builtin());
    Arc::new(move |key, value| {
        if !value.starts_with(b"k8s") {
            return value;
        }
        let key = String::from_utf8_lossy(key);
        match knarr_registry::canonical(&catalog, &schema, &key, &value) {
            Ok(stored) => stored.value,
            Err(why) => {
                warn!(%key, %why, "what another server wrote cannot be read");
                value
            }
        }
    })
}
