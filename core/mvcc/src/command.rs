//! What the log holds: commands, and the answers they get when they are applied.

use alloc::boxed::Box;
use core::fmt;

use crate::model::{LeaseId, Revision, Txn, TxnResponse};
use crate::settings::Change;

/// The longest time to live a lease may ask for, in seconds (etcd's limit).
pub const MAX_LEASE_TTL_SECS: i64 = 9_000_000_000;

/// One entry of the replicated log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Compare, then write and read.
    Txn(Txn),
    /// Forgets versions that were superseded before `revision`.
    Compact {
        /// The oldest revision that stays readable.
        revision: Revision,
    },
    /// Makes a lease.
    LeaseGrant {
        /// The wanted id; 0 lets the keyspace choose one.
        id: LeaseId,
        /// Time to live in seconds.
        ttl_secs: i64,
        /// The pump's clock in milliseconds; the lease first ends at `now + ttl`.
        now: u64,
    },
    /// Ends a lease and deletes its keys. Expiry is this command too, sent by the pump.
    LeaseRevoke {
        /// Which lease.
        id: LeaseId,
    },
    /// Changes the few facts beside the keys.
    Settings(Change),
    /// A command that counts only while the settings are still those it was judged by.
    Under {
        /// Their version.
        settings: u64,
        /// What to do then; not another `Under`.
        command: Box<Command>,
    },
    /// What the clock on the wall says before the next command.
    Time {
        /// Milliseconds since 1970.
        wall_ms: u64,
    },
}

/// What an applied command answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The transaction ran.
    Txn(TxnResponse),
    /// The keyspace is compacted; the revision did not move.
    Compact(Revision),
    /// The lease exists.
    LeaseGrant {
        /// Its id.
        id: LeaseId,
        /// Its time to live in seconds.
        ttl_secs: i64,
    },
    /// The lease is gone, and its keys with it; the revision after that.
    LeaseRevoke(Revision),
    /// The settings are changed; their version.
    Settings(u64),
    /// The time is noted.
    Time,
}

/// An answer, or why the command changed nothing.
pub type Outcome = Result<Answer, Refusal>;

/// Why a command changed nothing. All are the caller's fault and final: a retry gets the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A key is empty.
    EmptyKey,
    /// One transaction writes a key twice (or puts what it also deletes).
    DuplicateKey,
    /// Transactions are nested deeper than [`crate::MAX_TXN_DEPTH`].
    TooDeep,
    /// The lease does not exist.
    LeaseNotFound,
    /// The lease exists already.
    LeaseExists,
    /// The time to live is over [`MAX_LEASE_TTL_SECS`].
    LeaseTtlTooLarge,
    /// The revision is compacted away already; the compaction revision.
    Compacted(Revision),
    /// The revision is not there yet; the current revision.
    FutureRevision(Revision),
    /// A key that is to be amended is not there.
    KeyNotFound,
    /// The settings are no longer those the command was judged by; their version. Judge again.
    SettingsChanged(u64),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EmptyKey => f.write_str("key is not provided"),
            Self::DuplicateKey => f.write_str("duplicate key given in txn request"),
            Self::TooDeep => f.write_str("transactions are nested too deep"),
            Self::LeaseNotFound => f.write_str("requested lease not found"),
            Self::LeaseExists => f.write_str("lease already exists"),
            Self::LeaseTtlTooLarge => f.write_str("too large lease TTL"),
            Self::KeyNotFound => f.write_str("key not found"),
            Self::SettingsChanged(now) => write!(f, "the settings changed (now at {now})"),
            Self::Compacted(at) => {
                write!(f, "required revision has been compacted (compacted at {})", at.0)
            }
            Self::FutureRevision(at) => {
                write!(f, "required revision is a future revision (current is {})", at.0)
            }
        }
    }
}

impl core::error::Error for Refusal {}
