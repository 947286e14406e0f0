//! A keyspace that follows another store: what happened is taken over, not decided.

use alloc::vec::Vec;

use bytes::Bytes;

use crate::keyspace::Keyspace;
use crate::model::{KeyValue, Revision};
use crate::version::Version;

impl Keyspace {
    /// Takes over what another store did: `changes` up to `revision`, in its order; `None` deletes.
    /// What was taken over already is passed over, so that a stream may begin again before its end.
    ///
    /// Leases are the other store's: keys name them, and are deleted by it.
    pub fn mirror(&mut self, revision: Revision, changes: Vec<(Bytes, Option<KeyValue>)>) {
        if revision <= self.revision {
            return;
        }
        for (key, new) in changes {
            let new = new.map_or_else(|| Version::gone(revision, &key), |kv| Version::of(&kv));
            self.write(&key, |_| new);
        }
        self.revision = revision;
    }
}
