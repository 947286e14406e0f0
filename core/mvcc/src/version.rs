//! One version of one key, in one allocation that everybody shares: the chain of its key, the
//! history, and whoever read it.
//!
//! Its bytes are four numbers (revision, revision of creation, how many versions, lease), the
//! length of the key, the key and the value. A deletion is the version with the number 0, as in
//! etcd. Refused: key and value as handles of their own. They took three allocations and more than
//! twice the room, and held whatever buffer they had come in.

use alloc::sync::Arc;

use bytes::{Buf as _, Bytes};

use crate::codec::Parts;
use crate::model::{KeyValue, LeaseId, Revision};

/// What stands before the key.
const HEAD: usize = 36;
/// What an allocation costs beside what is in it: two counts, and the allocator's part.
const ALLOCATION: usize = 24;

/// A version of a key, or the mark that it was deleted; clones share it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version(Arc<[u8]>);

impl Version {
    /// The version that is shown like this.
    pub fn of(kv: &KeyValue) -> Self {
        let numbers = [kv.mod_revision.0, kv.create_revision.0, kv.version, kv.lease.0 as u64];
        Self::new(numbers, &kv.key, &kv.value)
    }

    pub(crate) fn gone(revision: Revision, key: &[u8]) -> Self {
        Self::new([revision.0, 0, 0, 0], key, &[])
    }

    /// The version that a put makes of the one that is there.
    pub(crate) fn put(
        revision: Revision,
        old: Option<&Self>,
        key: &[u8],
        value: &[u8],
        lease: LeaseId,
    ) -> Self {
        let create = old.map_or(revision.0, |old| old.created().0);
        let version = old.map_or(0, Self::count) + 1;
        Self::new([revision.0, create, version, lease.0 as u64], key, value)
    }

    fn new(numbers: [u64; 4], key: &[u8], value: &[u8]) -> Self {
        let len = HEAD + key.len() + value.len();
        let mut all: Arc<[u8]> = core::iter::repeat_n(0, len).collect();
        let out = Arc::get_mut(&mut all).expect("nobody else has it yet");
        let (head, rest) = out.split_at_mut(HEAD);
        for (place, number) in head.chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        let key_len = u32::try_from(key.len()).expect("keys are far below 4 GiB");
        head[HEAD - 4..].copy_from_slice(&key_len.to_le_bytes());
        rest[..key.len()].copy_from_slice(key);
        rest[key.len()..].copy_from_slice(value);
        Self(all)
    }

    fn number(&self, place: usize) -> u64 {
        let number = self.0[8 * place..].first_chunk().expect("it begins with four numbers");
        u64::from_le_bytes(*number)
    }

    fn key_len(&self) -> usize {
        let len = self.0[HEAD - 4..].first_chunk().expect("after the numbers comes a length");
        u32::from_le_bytes(*len) as usize
    }

    pub(crate) fn revision(&self) -> Revision {
        Revision(self.number(0))
    }

    /// The revision at which the key came into being (again).
    pub(crate) fn created(&self) -> Revision {
        Revision(self.number(1))
    }

    /// 1 at creation, plus one with each put.
    pub(crate) fn count(&self) -> u64 {
        self.number(2)
    }

    pub(crate) fn lease(&self) -> LeaseId {
        LeaseId(self.number(3) as i64)
    }

    pub(crate) fn is_live(&self) -> bool {
        self.count() > 0
    }

    pub(crate) fn key(&self) -> &[u8] {
        &self.0[HEAD..HEAD + self.key_len()]
    }

    /// The value; a deletion's is empty.
    pub fn value(&self) -> &[u8] {
        &self.0[HEAD + self.key_len()..]
    }

    /// What others are shown; it shares key and value, also of a deletion.
    pub fn kv(&self) -> KeyValue {
        let mut value = Bytes::from_owner(self.0.clone());
        value.advance(HEAD);
        let key = value.split_to(self.key_len());
        KeyValue {
            key,
            value,
            create_revision: self.created(),
            mod_revision: self.revision(),
            version: self.count(),
            lease: self.lease(),
        }
    }

    /// The version of these [`Version::parts`].
    pub(crate) fn from_parts(
        Parts(key, value, [create, revision, count, lease]): &Parts<'_>,
    ) -> Self {
        Self::new([*revision, *create, *count, *lease], key, value)
    }

    pub(crate) fn parts(&self) -> Parts<'_> {
        let numbers = [self.created().0, self.revision().0, self.count(), self.number(3)];
        Parts(self.key(), self.value(), numbers)
    }

    pub(crate) fn weight(&self) -> usize {
        weight(self.key().len(), self.value().len())
    }
}

/// What holding a version costs, beside the handles of it.
pub(crate) fn weight(key: usize, value: usize) -> usize {
    ALLOCATION + HEAD + key + value
}
