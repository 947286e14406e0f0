//! The log on disk and the pump around the keyspace.
//!
//! One totally ordered log of commands is the truth. A command is appended, made durable by one
//! fdatasync it shares with its neighbours, and only then applied to the keyspace, in log order:
//! so no revision is ever shown before it is durable, and a failed append leaves nothing to undo.
//! A transaction is decided where it stands in the log, never against what its sender last read.
//! (Refused: applying at append time and hiding the result until the sync. It answers no sooner,
//! it needs an undo for a failed append, and it cannot be kept once a majority has to agree.)
//!
//! Life of a write: [`Store::txn`] → bounded queue → the writer takes what is waiting as one
//! batch → `Log::append` → fdatasync → `Keyspace::apply` → answers and watchers. The writer has a
//! thread; a command that is alone ([`Store::together`]) may be committed by who sent it.
//!
//! * `disk`, `clock`, `spawn` – the seams; `sim` – their simulated halves, for the tests of every
//!   crate.
//! * `record` – file headers and records as bytes; `append` – a file that grows, past the page
//!   cache, `ahead` – what a start reads; `log` – segments; `items` – a state read in steps;
//!   `checkpoint` – one on disk; `recovery` – what a start makes of them; `archive` – history that
//!   memory let go; `past` – the two read as one.
//! * `engine` – the above as one deterministic machine; `queue`, `writer` – what drives it;
//!   `store` – its handle; `watch` – cursors; `backup` – states in etcd's format out, and into a
//!   new directory; `usage` – what it weighs; `measure` – what it did, and how long its disk took.
//!
//! * `external` – the other backend: an etcd, and a mirror of it behind the same handle.
//!
//! Invariants: only this crate touches the data directory. Nothing here looks into a value.

mod ahead;
mod append;
mod archive;
mod backup;
mod checkpoint;
mod clock;
mod config;
mod disk;
mod engine;
mod error;
pub mod external;
mod items;
mod log;
mod measure;
mod memory;
mod pace;
mod past;
mod queue;
mod record;
mod recovery;
pub mod sim;
mod spawn;
mod store;
mod usage;
mod watch;
mod writer;

pub use archive::ArchiveJob;
pub use backup::{EtcdSnapshot, HashCheck, read_etcd_snapshot, restore};
pub use checkpoint::CheckpointJob;
pub use clock::{Clock, SystemClock};
pub use config::{ArchiveConfig, AutoCompaction, Identity, StoreConfig};
pub use disk::{Disk, DiskFile, ReadDisk, RealDisk};
pub use engine::{Engine, Entry};
pub use error::{BackupError, OpenError, PastError, RestoreError, StoreError, WatchError};
pub use items::Items;
pub use knarr_etcd_model as etcd;
pub use knarr_mvcc as mvcc;
pub use log::{Segment, SegmentJob};
pub use measure::{Counter, Histogram, Measures};
pub use past::{Past, PastState};
pub use store::Store;
pub use usage::Weights;
pub use watch::{Bell, Watch};
