//! What a person or a probe reads: version, health, metrics, under etcd's paths and names.

use std::sync::atomic::Ordering;

use crate::face::Face;
pub(crate) use crate::metrics::Metrics;

/// The version of etcd's API that is spoken here; clients decide by it what they may ask.
pub const ETCD_VERSION: &str = "3.6.6";
/// The same, without what only mends.
pub(crate) const ETCD_CLUSTER_VERSION: &str = "3.6.0";

/// A page: code, content type, text.
pub(crate) type Page = (u16, &'static str, String);

/// A check of `/livez` or `/readyz`: what is wrong, if anything.
type Check = (&'static str, fn(&Face) -> Option<String>);

/// Whether writes can be answered.
const WRITES: Check = ("disk_writes", Face::failed);
/// Whether there is room for them. It comes back without a restart, so `/livez` does not ask.
const DISK_ROOM: Check = ("disk_room", Face::without_room);
/// A read needs nobody else's consent here, and is always answered.
const LOCAL_READ: Check = ("serializable_read", |_| None);

const LIVEZ: &[Check] = &[WRITES, LOCAL_READ];
const READYZ: &[Check] = &[
    ("data_corruption", |_| None), // damage is found when it is read, which is at the start
    DISK_ROOM,
    WRITES,
    ("linearizable_read", |_| None),
    ("non_learner", |_| None),
    LOCAL_READ,
];

impl Face {
    /// The page at a path, if there is one.
    pub(crate) fn page(&self, path: &str, query: &str) -> Option<Page> {
        let json = |text: String| (200, "application/json", text);
        let path = path.trim_matches('/');
        let (root, check) = path.split_once('/').unwrap_or((path, ""));
        Some(match (root, check) {
            ("version", "") => {
                let versions = serde_json::json!({
                    "etcdserver": ETCD_VERSION, "etcdcluster": ETCD_CLUSTER_VERSION,
                });
                json(versions.to_string())
            }
            ("health", "") => self.health(query),
            ("livez", check) => self.checked(LIVEZ, check, query)?,
            ("readyz", check) => self.checked(READYZ, check, query)?,
            ("metrics", "") => {
                (200, "text/plain; version=0.0.4; charset=utf-8", self.metrics_text())
            }
            _ => return None,
        })
    }

    /// Why no write is answered any more.
    fn failed(&self) -> Option<String> {
        self.store.failure().map(|why| format!("the disk failed: {why}"))
    }

    fn without_room(&self) -> Option<String> {
        self.store.weights().disk_full.then(|| "no space left on the store's disk".to_owned())
    }

    /// `/health`: alarms may be excluded; that the disk failed may not.
    fn health(&self, query: &str) -> Page {
        let alarms = self.alarms().into_iter().map(|alarm| alarm.alarm().as_str_name());
        let mut alarms = alarms.filter(|name| !values(query, "exclude").any(|word| word == *name));
        let reason = self.failed().or_else(|| alarms.next().map(|name| format!("ALARM {name}")));
        let ill = usize::from(reason.is_some());
        self.metrics.healthy[ill].fetch_add(1, Ordering::Relaxed);
        let health = if reason.is_none() { "true" } else { "false" };
        let body = serde_json::json!({ "health": health, "reason": reason.unwrap_or_default() });
        ([200, 503][ill], "application/json", body.to_string())
    }

    /// All checks but those excluded, or the one that is named. What is wrong is always said.
    fn checked(&self, checks: &[Check], named: &str, query: &str) -> Option<Page> {
        let excluded = |name: &str| match named {
            "" => values(query, "exclude").any(|word| word == name),
            named => named != name,
        };
        if !named.is_empty() && checks.iter().all(|(name, _)| *name != named) {
            return None;
        }
        let checks = checks.iter().filter(|(name, _)| !excluded(name));
        let said = checks.map(|(name, check)| match check(self) {
            None => (true, format!("[+]{name} ok\n")),
            Some(why) => (false, format!("[-]{name} failed: {why}\n")),
        });
        let (well, lines): (Vec<bool>, Vec<String>) = said.unzip();
        let (well, mut text) = (well.into_iter().all(|well| well), lines.concat());
        if well {
            let verbose = values(query, "verbose").next().is_some();
            text = if verbose { text + "ok\n" } else { "ok\n".to_owned() };
        }
        Some((if well { 200 } else { 503 }, "text/plain; charset=utf-8", text))
    }
}

/// The values of a word of a query.
fn values<'a>(query: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.filter(move |(word, _)| *word == name).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use knarr_mvcc::{Op, Txn};
    use knarr_store::sim::{Fault, SimClock, SimDisk};
    use knarr_store::{Store, StoreConfig, StoreError};

    use super::*;
    use crate::face::FaceConfig;

    fn put() -> Txn {
        let op = Op::Put { key: "a".into(), value: "1".into(), lease: Default::default() };
        Txn { success: vec![op], ..Txn::default() }
    }

    #[tokio::test]
    async fn health_ends_with_the_disk() {
        let disk = SimDisk::default();
        let store = Store::open(
            Arc::new(disk.clone()),
            Arc::new(SimClock::default()),
            StoreConfig::default(),
        );
        let store = store.expect("a new disk is empty");
        let face = Face::new(store.clone(), FaceConfig::default()).expect("simple tokens");
        let ask = |path: &str, query: &str| {
            let (code, _, text) = face.page(path, query).expect("there is such a page");
            (code, text)
        };
        store.txn(put()).await.expect("the disk works");
        assert_eq!(ask("/health", ""), (200, r#"{"health":"true","reason":""}"#.to_owned()));
        assert_eq!(ask("/livez", ""), (200, "ok\n".to_owned()));
        let livez = "[+]disk_writes ok\n[+]serializable_read ok\nok\n";
        assert_eq!(ask("/livez", "verbose"), (200, livez.to_owned()));
        assert_eq!(face.page("/livez/nothing", ""), None);

        disk.set_fault(Fault::SyncFails);
        assert!(matches!(store.txn(put()).await, Err(StoreError::Failed(_))));
        let (code, text) = ask("/health", "exclude=NOSPACE&serializable=true");
        assert_eq!(code, 503);
        assert!(text.contains(r#""health":"false","reason":"the disk failed: "#), "{text}");
        for page in ["/livez", "/readyz", "/livez/disk_writes"] {
            let (code, text) = ask(page, "");
            assert_eq!(code, 503);
            assert!(text.contains("[-]disk_writes failed: the disk failed: "), "{page}: {text}");
        }
        assert_eq!(ask("/readyz", "exclude=disk_writes"), (200, "ok\n".to_owned()));
        assert_eq!(ask("/livez/serializable_read", ""), (200, "ok\n".to_owned()));
        let metrics = ask("/metrics", "").1;
        for row in [
            "etcd_server_health_success 1",
            "etcd_server_health_failures 1",
            "etcd_server_proposals_failed_total 1",
            "etcd_server_proposals_pending 0",
            "etcd_mvcc_put_total 1",
        ] {
            assert!(metrics.contains(&format!("\n{row}\n")), "{row}: {metrics}");
        }
    }
}
