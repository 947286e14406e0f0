//! When revisions were made: marks in the log, one a second at most, that lead from a moment to a
//! revision and back.

use alloc::collections::VecDeque;

use crate::keyspace::Keyspace;
use crate::model::Revision;

/// What the clock on the wall said between two revisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Everything up to it was made before.
    pub revision: Revision,
    /// Milliseconds since 1970; everything above the revision was made then or later.
    pub wall_ms: u64,
}

/// The marks of the held history. Both their revisions and their times ascend.
#[derive(Clone, Debug, Default)]
pub struct Marks(VecDeque<Mark>);

impl Marks {
    /// Takes the next mark. A clock that was set back stands until it has caught up, and of marks
    /// without a revision between them the last one counts.
    pub fn push(&mut self, mark: Mark) {
        let newest = self.newest();
        let revision = newest.map_or(mark.revision, |newest| newest.revision.max(mark.revision));
        let wall_ms = newest.map_or(mark.wall_ms, |newest| newest.wall_ms.max(mark.wall_ms));
        if newest.is_some_and(|newest| newest.revision == revision) {
            self.0.pop_back();
        }
        self.0.push_back(Mark { revision, wall_ms });
    }

    /// The newest mark.
    pub fn newest(&self) -> Option<Mark> {
        self.0.back().copied()
    }

    /// The marks, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = Mark> {
        self.0.iter().copied()
    }

    /// When a revision was made, at the earliest; `None` when it is older than the marks.
    pub fn time_of(&self, revision: Revision) -> Option<u64> {
        let later = self.0.partition_point(|mark| mark.revision < revision);
        self.0.get(later.checked_sub(1)?).map(|mark| mark.wall_ms)
    }

    /// The newest revision made before a moment; `None` when nothing after the moment is marked,
    /// which makes it the newest of all.
    pub fn before(&self, wall_ms: u64) -> Option<Revision> {
        let later = self.0.partition_point(|mark| mark.wall_ms <= wall_ms);
        self.0.get(later).map(|mark| mark.revision)
    }

    /// Drops what says nothing about revisions from `floor` on.
    pub(crate) fn forget(&mut self, floor: Revision) {
        while self.0.get(1).is_some_and(|second| second.revision < floor) {
            self.0.pop_front();
        }
    }
}

impl Keyspace {
    /// When the revisions of the held history were made.
    pub fn marks(&self) -> &Marks {
        &self.marks
    }
}
