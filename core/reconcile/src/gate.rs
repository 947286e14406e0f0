//! The own-writes gate: what the view must have seen before a key may run again.

use alloc::string::String;
use alloc::vec::Vec;

use knarr_api::{ObjectKey, Resource};

use crate::view::View;

/// What a write left behind that the view will come to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// A version at this revision (a deletion has one too).
    At(Resource, u64),
    /// The object with this uid will be gone; the answer did not say at which revision.
    Gone(Resource, ObjectKey, String),
}

impl Written {
    fn seen(&self, view: &View) -> bool {
        match self {
            Self::At(resource, revision) => view.revision(*resource) >= *revision,
            Self::Gone(resource, object, uid) => {
                view.get(*resource, object).is_none_or(|row| row.facts.uid != *uid)
            }
        }
    }
}

/// What a key waits for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gate(Vec<Written>);

impl Gate {
    pub(crate) fn new(written: Vec<Written>) -> Self {
        Self(written)
    }

    /// Forgets what the view has seen; whether nothing is left. Resources that are not watched are
    /// not waited for; one whose watch begins anew still is.
    pub(crate) fn open(&mut self, view: &View) -> bool {
        self.0.retain(|written| {
            let (Written::At(resource, _) | Written::Gone(resource, ..)) = written;
            view.watches(*resource) && !written.seen(view)
        });
        self.0.is_empty()
    }
}
