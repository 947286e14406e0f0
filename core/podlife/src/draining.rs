//! A Pod that goes is told to end when nobody is sent to it any more.
//!
//! Upstream leaves it to a `preStop` hook that sleeps: the signal and the news that the Pod is
//! going start at the same moment, and a connection made in between is lost. Here the signal waits
//! until the EndpointSlices say that the Pod takes no new connections, and a moment more, so that
//! every node's rules have followed and what was accepted by the kernel has been by the program.
//! The wait is short and bounded; a Pod that no Service selects has none, nor one whose hooks see
//! to it.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;

use jiff::{SignedDuration, Timestamp};
use knarr_typed::Pod;
use serde::Deserialize;

/// From the slices' word to the signal.
const SETTLE: SignedDuration = SignedDuration::from_millis(250);
/// No Pod waits longer for the slices to say something.
const MAX_WAIT: SignedDuration = SignedDuration::from_secs(2);

#[derive(Deserialize)]
struct Slice {
    metadata: Metadata,
    #[serde(default)]
    endpoints: Option<Vec<Endpoint>>,
}

#[derive(Deserialize)]
struct Metadata {
    namespace: String,
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    target_ref: Option<Target>,
    #[serde(default)]
    conditions: Conditions,
}

#[derive(Deserialize)]
struct Target {
    #[serde(default)]
    uid: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Conditions {
    ready: Option<bool>,
    terminating: Option<bool>,
}

impl Endpoint {
    /// Who takes new connections here; nothing said about readiness is a yes.
    fn served(self) -> Option<String> {
        let Conditions { ready, terminating } = self.conditions;
        let open = ready.unwrap_or(true) && !terminating.unwrap_or(false);
        self.target_ref.map(|target| target.uid).filter(|uid| open && !uid.is_empty())
    }
}

type Key = (String, String);

/// Whether new connections are sent to a Pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// They never were, as far as is known.
    #[default]
    Apart,
    /// They are.
    Served,
    /// Since then no more.
    Drained(Timestamp),
}

/// The Pods that EndpointSlices send new connections to.
#[derive(Clone, Debug, Default)]
pub struct Served {
    by_slice: BTreeMap<Key, BTreeSet<String>>,
    slices_of: BTreeMap<String, usize>,
    drained: BTreeMap<String, Timestamp>,
    stale: BTreeSet<Key>,
}

impl Served {
    /// Takes in an EndpointSlice as it is now.
    ///
    /// # Errors
    /// When it is none.
    pub fn put(&mut self, slice: &[u8], now: Timestamp) -> Result<(), serde_json::Error> {
        let Slice { metadata, endpoints } = serde_json::from_slice(slice)?;
        let uids = endpoints.into_iter().flatten().filter_map(Endpoint::served).collect();
        self.set((metadata.namespace, metadata.name), uids, now);
        Ok(())
    }

    /// Forgets an EndpointSlice.
    ///
    /// # Errors
    /// When it is none.
    pub fn remove(&mut self, slice: &[u8], now: Timestamp) -> Result<(), serde_json::Error> {
        let Slice { metadata, .. } = serde_json::from_slice(slice)?;
        self.set((metadata.namespace, metadata.name), BTreeSet::new(), now);
        Ok(())
    }

    /// Everything is told anew.
    pub fn restarted(&mut self) {
        self.stale = self.by_slice.keys().cloned().collect();
    }

    /// Everything has been told.
    pub fn synced(&mut self, now: Timestamp) {
        for key in core::mem::take(&mut self.stale) {
            self.set(key, BTreeSet::new(), now);
        }
    }

    fn set(&mut self, key: Key, uids: BTreeSet<String>, now: Timestamp) {
        self.stale.remove(&key);
        for uid in &uids {
            *self.slices_of.entry(uid.clone()).or_default() += 1;
            self.drained.remove(uid);
        }
        let old = match uids.is_empty() {
            true => self.by_slice.remove(&key),
            false => self.by_slice.insert(key, uids),
        };
        for uid in old.into_iter().flatten() {
            let Some(count) = self.slices_of.get_mut(&uid) else { continue };
            *count -= 1;
            if *count == 0 {
                self.slices_of.remove(&uid);
                self.drained.insert(uid, now);
            }
        }
        // A Pod that was drained long ago has ended, or waits for nothing any more.
        self.drained.retain(|_, at| now.duration_since(*at) < MAX_WAIT * 4);
    }

    /// How a Pod stands.
    pub fn standing(&self, uid: &str) -> Standing {
        match (self.slices_of.contains_key(uid), self.drained.get(uid)) {
            (true, _) => Standing::Served,
            (false, Some(at)) => Standing::Drained(*at),
            (false, None) => Standing::Apart,
        }
    }
}

/// Until when a Pod that is seen to go since `since` is not told to; `None` for no longer.
pub(crate) fn hold(
    pod: &Pod,
    standing: Standing,
    grace: u64,
    since: Timestamp,
    now: Timestamp,
) -> Option<Timestamp> {
    let hooked = |container: &knarr_typed::Container| {
        container.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.pre_stop.is_some())
    };
    let spec = pod.spec.as_ref()?;
    if grace == 0 || spec.containers.iter().any(hooked) {
        return None;
    }
    let half = SignedDuration::from_millis(i64::try_from(grace).unwrap_or(i64::MAX / 1000) * 500);
    let last = since.saturating_add(MAX_WAIT.min(half)).ok()?;
    let until = match standing {
        Standing::Apart => return None,
        Standing::Served => last,
        Standing::Drained(at) => at.saturating_add(SETTLE).ok()?.min(last),
    };
    (now < until).then_some(until)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millisecond(millis).expect("a time")
    }

    fn slice(name: &str, endpoints: serde_json::Value) -> Vec<u8> {
        let tree = json!({"metadata": {"namespace": "a", "name": name}, "endpoints": endpoints});
        serde_json::to_vec(&tree).expect("a tree")
    }

    fn endpoint(uid: &str, ready: bool, terminating: bool) -> serde_json::Value {
        json!({"targetRef": {"uid": uid}, "conditions": {"ready": ready,
            "terminating": terminating}})
    }

    #[test]
    fn a_pod_is_drained_when_its_last_slice_says_so() {
        let mut served = Served::default();
        assert_eq!(served.standing("1"), Standing::Apart);
        for name in ["x", "y"] {
            served.put(&slice(name, json!([endpoint("1", true, false)])), at(0)).expect("a slice");
        }
        assert_eq!(served.standing("1"), Standing::Served);
        served.put(&slice("x", json!([endpoint("1", false, true)])), at(5)).expect("a slice");
        assert_eq!(served.standing("1"), Standing::Served);
        // One whose Service publishes it in any state is ready to the end.
        served.put(&slice("y", json!([endpoint("1", true, true)])), at(7)).expect("a slice");
        assert_eq!(served.standing("1"), Standing::Drained(at(7)));
        served.put(&slice("y", json!([endpoint("1", true, false)])), at(9)).expect("a slice");
        assert_eq!(served.standing("1"), Standing::Served);
        served.restarted();
        served.synced(at(11));
        assert_eq!(served.standing("1"), Standing::Drained(at(11)));
    }

    #[test]
    fn the_wait_is_short_and_bounded() {
        let pod = |containers: serde_json::Value| -> Pod {
            serde_json::from_value(json!({"metadata": {}, "spec": {"containers": containers}}))
                .expect("a Pod")
        };
        let plain = pod(json!([{"name": "c"}]));
        let holds = |pod: &Pod, standing, grace, now| hold(pod, standing, grace, at(0), at(now));
        assert_eq!(holds(&plain, Standing::Apart, 30, 0), None);
        assert_eq!(holds(&plain, Standing::Served, 30, 0), Some(at(2000)));
        assert_eq!(holds(&plain, Standing::Served, 1, 0), Some(at(500)), "half of its time");
        assert_eq!(holds(&plain, Standing::Served, 0, 0), None);
        assert_eq!(holds(&plain, Standing::Served, 30, 2000), None);
        assert_eq!(holds(&plain, Standing::Drained(at(10)), 30, 20), Some(at(260)));
        assert_eq!(holds(&plain, Standing::Drained(at(10)), 30, 260), None);
        assert_eq!(holds(&plain, Standing::Drained(at(1900)), 30, 1900), Some(at(2000)));
        let hooked =
            pod(json!([{"name": "c", "lifecycle": {"preStop": {"sleep": {"seconds": 5}}}}]));
        assert_eq!(holds(&hooked, Standing::Served, 30, 0), None);
    }
}
