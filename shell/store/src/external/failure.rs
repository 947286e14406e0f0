//! What a call that failed has left behind: nothing, a refusal, or nobody knows.

use std::error::Error;
use std::sync::Arc;

use knarr_mvcc::{Refusal, Revision};
use tonic::{Code, ConnectError, Status};

use crate::error::StoreError;

/// What became of a call that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// etcd looked at it and said no.
    Refused,
    /// Nothing happened; another member may do better.
    Undone,
    /// It may have happened, or may yet.
    Unknown,
}

/// What members say before they begin.
const BEFORE: [&str; 4] = [
    "etcdserver: no leader",
    "etcdserver: too many requests",
    "etcdserver: unhealthy cluster",
    "etcdserver: rpc not supported for learner",
];

/// etcd's refusals that are ours too; the texts are the same.
const REFUSALS: [Refusal; 9] = [
    Refusal::EmptyKey,
    Refusal::DuplicateKey,
    Refusal::KeyNotFound,
    Refusal::LeaseNotFound,
    Refusal::LeaseExists,
    Refusal::LeaseTtlTooLarge,
    // Which revision it is, etcd does not say.
    Refusal::Compacted(Revision(0)),
    Refusal::FutureRevision(Revision(0)),
    Refusal::TooDeep,
];

impl Failure {
    pub(crate) fn of(status: &Status) -> Self {
        if BEFORE.contains(&status.message()) || never_sent(status) {
            return Self::Undone;
        }
        match status.code() {
            Code::Unavailable
            | Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Unknown
            | Code::Internal
            | Code::Aborted
            | Code::DataLoss => Self::Unknown,
            _ => Self::Refused,
        }
    }
}

/// Whether the request certainly never left this process.
fn never_sent(status: &Status) -> bool {
    causes(status).any(|error| {
        error.is::<ConnectError>()
            || error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled)
    })
}

/// A refusal in our words.
pub(crate) fn refusal(status: &Status) -> StoreError {
    let text = status.message();
    if text == "etcdserver: mvcc: database space exceeded" {
        return StoreError::Full;
    }
    let text = text.trim_start_matches("etcdserver: ").trim_start_matches("mvcc: ");
    let ours = REFUSALS.into_iter().find(|refusal| refusal.to_string().starts_with(text));
    match ours.filter(|_| !text.is_empty()) {
        Some(refusal) => StoreError::Refused(refusal),
        None => StoreError::Etcd(Arc::from(text)),
    }
}

/// An error with what is behind it.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    for error in causes(error) {
        let more = match error.downcast_ref::<Status>() {
            Some(status) => status.message().to_owned(),
            None => error.to_string(),
        };
        if !text.contains(&more) {
            text.push_str(if text.is_empty() { "" } else { ": " });
            text.push_str(&more);
        }
    }
    text
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn Error + 'static)| (*error).source())
}
