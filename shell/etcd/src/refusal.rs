//! Refusals as etcd words them: a code of gRPC and a text that clients compare letter by letter.

use knarr_etcd_model::auth::AuthError;
use knarr_mvcc::{ReadError, Refusal};
use knarr_store::{PastError, StoreError};
use tonic::{Code, Status};

/// What this face refuses before the store is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Malformed {
    ValueProvided,
    LeaseProvided,
    TooManyOps,
    InvalidSortOption,
    EmptyKey,
    NoRequest,
}

impl From<Malformed> for Status {
    fn from(malformed: Malformed) -> Self {
        Self::invalid_argument(match malformed {
            Malformed::ValueProvided => "etcdserver: value is provided",
            Malformed::LeaseProvided => "etcdserver: lease is provided",
            Malformed::TooManyOps => "etcdserver: too many operations in txn request",
            Malformed::InvalidSortOption => "etcdserver: invalid sort option",
            Malformed::EmptyKey => "etcdserver: key is not provided",
            Malformed::NoRequest => "etcdserver: an operation of the txn request is empty",
        })
    }
}

/// A refusal of the keyspace.
pub(crate) fn refused(refusal: Refusal) -> Status {
    let (code, text) = match refusal {
        Refusal::EmptyKey => return Malformed::EmptyKey.into(),
        Refusal::DuplicateKey => (Code::InvalidArgument, "duplicate key given in txn request"),
        Refusal::TooDeep => (Code::InvalidArgument, "transactions are nested too deep"),
        Refusal::KeyNotFound => (Code::InvalidArgument, "key not found"),
        Refusal::LeaseNotFound => (Code::NotFound, "requested lease not found"),
        Refusal::LeaseExists => (Code::FailedPrecondition, "lease already exists"),
        Refusal::LeaseTtlTooLarge => (Code::OutOfRange, "too large lease TTL"),
        Refusal::Compacted(_) => (Code::OutOfRange, "mvcc: required revision has been compacted"),
        Refusal::FutureRevision(_) => {
            (Code::OutOfRange, "mvcc: required revision is a future revision")
        }
        Refusal::SettingsChanged(_) => (Code::InvalidArgument, "revision of auth store is old"),
    };
    Status::new(code, format!("etcdserver: {text}"))
}

/// A revision that cannot be read.
pub(crate) fn unreadable(error: ReadError) -> Status {
    refused(error.into())
}

/// A revision that cannot be read from disk either.
pub(crate) fn untold(error: PastError) -> Status {
    match error {
        PastError::Gone { oldest, .. } | PastError::Compacted(oldest) => {
            refused(Refusal::Compacted(oldest))
        }
        PastError::Future(newest) => refused(Refusal::FutureRevision(newest)),
        error => Status::data_loss(format!("etcdserver: {error}")),
    }
}

/// A write that did not happen, or may not have.
pub(crate) fn failed(error: StoreError) -> Status {
    match error {
        StoreError::Refused(refusal) => refused(refusal),
        StoreError::TooLarge(..) => Status::invalid_argument("etcdserver: request is too large"),
        StoreError::NoSpace => {
            Status::resource_exhausted("etcdserver: mvcc: database space exceeded")
        }
        StoreError::Full => Status::resource_exhausted("etcdserver: no space left on the disk"),
        StoreError::Failed(why) => Status::data_loss(format!("etcdserver: the disk failed: {why}")),
        StoreError::Closed => Status::unavailable("etcdserver: server stopped"),
        // This face has a log of its own behind it.
        StoreError::Etcd(why) | StoreError::Unreachable(why) | StoreError::Unknown(why) => {
            Status::unavailable(format!("etcdserver: {why}"))
        }
    }
}

/// A refusal of the rules about users and roles.
pub(crate) fn denied(error: AuthError) -> Status {
    let code = match error {
        AuthError::UserEmpty
        | AuthError::RoleEmpty
        | AuthError::AuthFailed
        | AuthError::PermissionNotGiven
        | AuthError::InvalidAuthMgmt => Code::InvalidArgument,
        AuthError::PermissionDenied => Code::PermissionDenied,
        AuthError::InvalidAuthToken => Code::Unauthenticated,
        _ => Code::FailedPrecondition,
    };
    Status::new(code, format!("etcdserver: {error}"))
}
