//! The whole state as it is at one moment, read in short steps while writes go on: the keyspace
//! knows its past, and holds it until the last step.

use std::sync::{Arc, RwLock};
use std::vec;

use knarr_mvcc::{Item, Keyspace, Meta, Walk};

use crate::store::{read_lock, write_lock};

/// The items of a snapshot, in their order. Each few are read under the shared lock of the store:
/// not on a thread that must not block.
#[derive(Debug)]
pub struct Items {
    keyspace: Arc<RwLock<Keyspace>>,
    walk: Walk,
    read: vec::IntoIter<Item>,
}

impl Items {
    /// With so many bytes of history.
    pub(crate) fn new(keyspace: Arc<RwLock<Keyspace>>, history_bytes: usize) -> Self {
        let walk = write_lock(&keyspace).begin_walk(history_bytes);
        Self { keyspace, walk, read: vec::IntoIter::default() }
    }

    /// The numbers of the state.
    pub fn meta(&self) -> Meta {
        self.walk.meta()
    }
}

impl Iterator for Items {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        loop {
            if let Some(item) = self.read.next() {
                return Some(item);
            }
            self.read = read_lock(&self.keyspace).walk_on(&mut self.walk)?.into_iter();
        }
    }
}

impl Drop for Items {
    fn drop(&mut self) {
        write_lock(&self.keyspace).end_walk(&self.walk);
    }
}
