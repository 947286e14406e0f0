//! What can go wrong, per boundary.

use std::fmt;
use std::io;
use std::sync::Arc;

use knarr_mvcc::{Compacted, Refusal, Revision};

/// Why a store cannot be opened. Nothing on disk was changed.
#[derive(Debug)]
pub enum OpenError {
    /// Another process holds the data directory.
    Locked {
        /// The data directory.
        dir: String,
        /// The holder's process id, where it is known.
        pid: Option<u32>,
    },
    /// The files contradict what was acknowledged: somebody or something changed them.
    Corrupt {
        /// Which file.
        file: String,
        /// Where in it, in bytes.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// The files were written by a newer knarr that says this one must not read them.
    TooNew {
        /// Which file.
        file: String,
        /// The oldest format version that may read it.
        oldest_reader: u32,
    },
    /// The state needs more memory than it may have. Nothing is wrong with it.
    TooLarge {
        /// Which file.
        file: String,
        /// What state and history may weigh, in bytes.
        budget: usize,
    },
    /// The disk failed.
    Io {
        /// Which file or directory.
        file: String,
        /// How.
        source: io::Error,
    },
}

/// Why a write did not happen, or may not have.
#[derive(Clone, Debug)]
pub enum StoreError {
    /// The keyspace refused it; a retry gets the same.
    Refused(Refusal),
    /// The command is larger than the limit; its size and the limit in bytes.
    TooLarge(usize, usize),
    /// No space on the disk. Nothing was written; later writes succeed once there is space.
    Full,
    /// State and history have all the memory they may have, and this would add to it. Nothing was
    /// written; deletions and compactions pass, and later writes succeed once there is room.
    NoSpace,
    /// The disk failed earlier. Whether the write survives shows after a restart.
    Failed(Arc<str>),
    /// The store is closed; nothing was written.
    Closed,
    /// An etcd refused it, in its words; nothing was written.
    Etcd(Arc<str>),
    /// No etcd answers; nothing was written.
    Unreachable(Arc<str>),
    /// The connection to etcd broke on the way: it may have happened, or may yet.
    Unknown(Arc<str>),
}

/// Why a file is no snapshot in etcd's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackupError {
    /// It does not end with a sha256.
    NoSum,
    /// Its sha256 is another.
    Sum,
    /// Its content is damaged, or not etcd's.
    Content(knarr_etcd_model::ReadError),
}

/// Why no store could be made of a snapshot.
#[derive(Debug)]
pub enum RestoreError {
    /// There are files already; none was touched.
    NotEmpty,
    /// The items are no snapshot.
    Items(knarr_mvcc::RestoreError),
    /// The disk failed.
    Io(io::Error),
    /// What was written cannot be opened.
    Open(OpenError),
    /// What was written says something else.
    Differs,
}

/// Why a watch ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchError {
    /// It asked for history that is gone: read the present, then watch from there.
    Compacted(Compacted),
    /// The history that it asked for cannot be read back.
    Past(PastError),
    /// The store is closed.
    Closed,
}

/// Why the past cannot be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PastError {
    /// It goes back only so far.
    Gone {
        /// The oldest revision there is.
        oldest: Revision,
        /// When that was left behind, in milliseconds since 1970, if it is known.
        since: Option<u64>,
    },
    /// It was compacted away, and compaction was to count; the oldest revision that is left.
    Compacted(Revision),
    /// It has not happened yet; the newest revision.
    Future(Revision),
    /// A file of the past is damaged.
    Damaged {
        /// Which file.
        file: String,
        /// Where in it, in bytes.
        offset: u64,
    },
    /// A file of the past cannot be read.
    Io {
        /// Which file.
        file: String,
        /// Why.
        why: String,
    },
}

impl PastError {
    pub(crate) fn io(file: &str, error: &io::Error) -> Self {
        Self::Io { file: file.into(), why: error.to_string() }
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Locked { dir, pid: Some(pid) } => {
                write!(f, "another knarr is running on {dir} (pid {pid})")
            }
            Self::Locked { dir, pid: None } => write!(f, "another knarr is running on {dir}"),
            Self::Corrupt { file, offset, what } => {
                write!(f, "{file} is damaged at offset {offset}: {what}")
            }
            Self::TooNew { file, oldest_reader } => {
                write!(f, "{file} needs a knarr that reads format {oldest_reader} or newer")
            }
            Self::TooLarge { file, budget } => write!(
                f,
                "{file} needs more than the {budget} bytes of memory that state and history may \
                 have: start it with a larger budget; only then can it be made smaller"
            ),
            Self::Io { file, source } => write!(f, "{file}: {source}"),
        }
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(refusal) => refusal.fmt(f),
            Self::TooLarge(size, limit) => {
                write!(f, "request of {size} bytes is over the limit of {limit}")
            }
            Self::Full => f.write_str("no space left on the store's disk"),
            Self::NoSpace => f.write_str("mvcc: database space exceeded"),
            Self::Failed(why) => write!(f, "the store stopped after a disk failure: {why}"),
            Self::Closed => f.write_str("the store is closed"),
            Self::Etcd(why) => write!(f, "etcd: {why}"),
            Self::Unreachable(why) => write!(f, "etcd cannot be reached: {why}"),
            Self::Unknown(why) => write!(f, "nobody knows whether it was written: {why}"),
        }
    }
}

impl std::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }
}

impl fmt::Display for BackupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSum => f.write_str("it does not end with a sha256: it is cut, or no snapshot"),
            Self::Sum => f.write_str("its sha256 is wrong: it is damaged"),
            Self::Content(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for BackupError {}

impl fmt::Display for RestoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotEmpty => f.write_str("there is a store already, or part of one"),
            Self::Items(error) => error.fmt(f),
            Self::Io(error) => error.fmt(f),
            Self::Open(error) => write!(f, "what was written cannot be opened: {error}"),
            Self::Differs => f.write_str("what was written does not read as it was meant"),
        }
    }
}

impl std::error::Error for RestoreError {}

impl fmt::Display for WatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compacted(gone) => gone.fmt(f),
            Self::Past(error) => error.fmt(f),
            Self::Closed => f.write_str("the store is closed"),
        }
    }
}

impl std::error::Error for WatchError {}

impl fmt::Display for PastError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone { oldest, since: Some(ms) } => {
                write!(f, "history begins at revision {}, {}", oldest.0, wall(*ms))
            }
            Self::Gone { oldest, since: None } => {
                write!(f, "history begins at revision {}", oldest.0)
            }
            Self::Compacted(at) => Refusal::Compacted(*at).fmt(f),
            Self::Future(now) => Refusal::FutureRevision(*now).fmt(f),
            Self::Damaged { file, offset } => write!(f, "{file} is damaged at offset {offset}"),
            Self::Io { file, why } => write!(f, "{file}: {why}"),
        }
    }
}

impl std::error::Error for PastError {}

impl From<PastError> for WatchError {
    fn from(error: PastError) -> Self {
        match error {
            // Of the oldest state that is known the changes that led to it are not.
            PastError::Gone { oldest, .. } => Self::Compacted(Compacted { oldest: oldest.next() }),
            PastError::Compacted(oldest) => Self::Compacted(Compacted { oldest }),
            error => Self::Past(error),
        }
    }
}

/// A moment, as RFC 3339 has it.
fn wall(ms: u64) -> String {
    let moment = i64::try_from(ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    moment.map_or_else(|| format!("{ms} ms after 1970"), |moment| moment.to_string())
}
