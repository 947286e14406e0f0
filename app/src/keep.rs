//! How much a store keeps: memory, history, and when it compacts by itself.

use std::time::Duration;

use clap::{Args, ValueEnum};
use knarr_store::{ArchiveConfig, AutoCompaction, StoreConfig};

use crate::flags::{duration, duration_or_zero};

/// How much a store keeps.
#[derive(Clone, Debug, Args)]
pub(crate) struct KeepFlags {
    /// What state and recent history may take of the memory; what would grow beyond is refused
    /// [default: half of what this process can have].
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    store_memory: Option<u64>,
    /// How long older history is kept on disk, for watches and lists from then and for looking
    /// back; 0 is not at all.
    #[arg(long, default_value = "24h", value_name = "DURATION", value_parser = duration_or_zero)]
    history_retention: Duration,
    /// How much of the disk it may take at most.
    #[arg(long, default_value = "1Gi", value_name = "BYTES", value_parser = bytes)]
    history_size: u64,
}

/// Reads a size: a number of bytes, or of Ki, Mi, Gi.
fn bytes(text: &str) -> Result<u64, String> {
    let units = [("Ki", 1 << 10), ("Mi", 1 << 20), ("Gi", 1 << 30)];
    let found = units.into_iter().find_map(|(unit, size)| Some((text.strip_suffix(unit)?, size)));
    let (number, size) = found.unwrap_or((text, 1u64));
    let bytes = number.parse().ok().and_then(|number: u64| number.checked_mul(size));
    bytes.ok_or_else(|| format!("{text:?} is no size such as 512Mi"))
}

impl KeepFlags {
    /// A configuration with what these say.
    pub(crate) fn over(&self, config: StoreConfig) -> StoreConfig {
        let archive = ArchiveConfig { bytes: self.history_size, age: self.history_retention };
        let memory = self.store_memory.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        StoreConfig { archive, memory_bytes: memory.unwrap_or(config.memory_bytes), ..config }
    }
}

/// The same with etcd's names.
#[derive(Clone, Debug, Args)]
pub(crate) struct EtcdKeepFlags {
    /// What the keys and their recent history may take of the memory; 0 or less is half of what
    /// this process can have.
    #[arg(long, default_value_t = 0, value_name = "BYTES")]
    quota_backend_bytes: i64,
    /// What the retention below counts.
    #[arg(long, value_enum, default_value_t = CompactionMode::Periodic)]
    auto_compaction_mode: CompactionMode,
    /// What is kept when nobody compacts: hours or a duration, or a number of revisions; 0 is all.
    #[arg(long, default_value = "0", value_name = "N")]
    auto_compaction_retention: String,
}

/// How revisions to keep are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CompactionMode {
    /// By age.
    Periodic,
    /// By number.
    Revision,
}

impl EtcdKeepFlags {
    /// A configuration with what these say.
    pub(crate) fn over(&self, mut config: StoreConfig) -> Result<StoreConfig, String> {
        let text = self.auto_compaction_retention.as_str();
        config.auto_compaction = match (self.auto_compaction_mode, text.parse::<u64>()) {
            (_, Ok(0)) => AutoCompaction::Off,
            (CompactionMode::Revision, Ok(keep)) => AutoCompaction::Revisions(keep),
            (CompactionMode::Periodic, Ok(hours)) => AutoCompaction::Periodic(hours * 3_600_000),
            (CompactionMode::Periodic, Err(_)) => {
                let period = duration(text)?.as_millis();
                AutoCompaction::Periodic(u64::try_from(period).unwrap_or(u64::MAX))
            }
            (CompactionMode::Revision, Err(_)) => {
                return Err(format!("--auto-compaction-retention {text:?} is no number"));
            }
        };
        if self.quota_backend_bytes > 0 {
            let bytes = usize::try_from(self.quota_backend_bytes);
            config.memory_bytes = bytes.unwrap_or(usize::MAX);
        }
        Ok(config)
    }
}
