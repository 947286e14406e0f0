//! Leases: keys that end together. Who holds which key is replicated state; deadlines are soft,
//! because keep-alives stay off the log and a restarted pump renews every lease in full.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use bytes::Bytes;

use crate::command::Refusal;
use crate::keyspace::Keyspace;
use crate::model::LeaseId;

/// A lease as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its id.
    pub id: LeaseId,
    /// The granted time to live in seconds.
    pub ttl_secs: i64,
    /// When it ends, on the pump's clock, in milliseconds.
    pub deadline: u64,
    /// The keys that end with it.
    pub keys: BTreeSet<Bytes>,
}

/// All leases, and the order in which they end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Leases {
    by_id: BTreeMap<LeaseId, Lease>,
    by_deadline: BTreeSet<(u64, LeaseId)>,
}

impl Keyspace {
    /// A lease by id.
    pub fn lease(&self, id: LeaseId) -> Option<&Lease> {
        self.leases.by_id.get(&id)
    }

    /// All leases by id.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.leases.by_id.values()
    }

    /// When the next lease ends, in milliseconds on the pump's clock.
    pub fn next_expiry(&self) -> Option<u64> {
        self.leases.by_deadline.first().map(|(deadline, _)| *deadline)
    }

    /// The leases that have ended at `now`, in the order they did. The pump sends a
    /// [`crate::Command::LeaseRevoke`] for each.
    pub fn expired(&self, now: u64) -> Vec<LeaseId> {
        let ended = self.leases.by_deadline.iter().take_while(|(deadline, _)| *deadline <= now);
        ended.map(|(_, id)| *id).collect()
    }

    /// Renews a lease; its time to live in seconds, or `None` when there is no such lease or it has
    /// ended already. Not replicated.
    pub fn keep_alive(&mut self, id: LeaseId, now: u64) -> Option<i64> {
        let lease = self.leases.by_id.get(&id).filter(|lease| lease.deadline > now)?;
        let ttl_secs = lease.ttl_secs;
        self.leases.set_deadline(id, now);
        Some(ttl_secs)
    }

    /// Renews every lease in full: deadlines of a former pump mean nothing on this one's clock.
    pub fn renew_all(&mut self, now: u64) {
        let ids: Vec<LeaseId> = self.leases.by_id.keys().copied().collect();
        ids.into_iter().for_each(|id| self.leases.set_deadline(id, now));
    }
}

impl Leases {
    /// Makes a lease. Id 0 takes the log index, or the next free number above.
    pub(crate) fn grant(
        &mut self,
        id: LeaseId,
        ttl_secs: i64,
        now: u64,
        index: u64,
    ) -> Result<LeaseId, Refusal> {
        let id = if id == LeaseId(0) { self.free_id(index) } else { id };
        if self.by_id.contains_key(&id) {
            return Err(Refusal::LeaseExists);
        }
        self.insert(Lease { id, ttl_secs, deadline: ends(now, ttl_secs), keys: BTreeSet::new() });
        Ok(id)
    }

    fn free_id(&self, index: u64) -> LeaseId {
        let mut id = LeaseId((index & (i64::MAX as u64)) as i64).max(LeaseId(1));
        while self.by_id.contains_key(&id) {
            id = LeaseId(id.0.checked_add(1).unwrap_or(1));
        }
        id
    }

    pub(crate) fn insert(&mut self, lease: Lease) {
        self.by_deadline.insert((lease.deadline, lease.id));
        self.by_id.insert(lease.id, lease);
    }

    pub(crate) fn remove(&mut self, id: LeaseId) -> Option<Lease> {
        let lease = self.by_id.remove(&id)?;
        self.by_deadline.remove(&(lease.deadline, id));
        Some(lease)
    }

    fn set_deadline(&mut self, id: LeaseId, now: u64) {
        if let Some(lease) = self.by_id.get_mut(&id) {
            self.by_deadline.remove(&(lease.deadline, id));
            lease.deadline = ends(now, lease.ttl_secs);
            self.by_deadline.insert((lease.deadline, id));
        }
    }

    /// Whether a key may name this lease; "none" always works.
    pub(crate) fn attachable(&self, id: LeaseId) -> bool {
        id == LeaseId(0) || self.by_id.contains_key(&id)
    }

    pub(crate) fn attach(&mut self, id: LeaseId, key: &[u8]) {
        if let Some(lease) = self.by_id.get_mut(&id) {
            lease.keys.insert(Bytes::copy_from_slice(key));
        }
    }

    pub(crate) fn detach(&mut self, id: LeaseId, key: &[u8]) {
        if let Some(lease) = self.by_id.get_mut(&id) {
            lease.keys.remove(key);
        }
    }
}

fn ends(now: u64, ttl_secs: i64) -> u64 {
    now.saturating_add(u64::try_from(ttl_secs).unwrap_or(0).saturating_mul(1000))
}
