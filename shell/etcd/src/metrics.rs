//! Metrics under etcd's names: only what is measured here, or follows from what a group of one is.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use knarr_store::Histogram;
use tonic::Code;

use crate::face::Face;
use crate::gateway::methods;
use crate::pages::{ETCD_CLUSTER_VERSION, ETCD_VERSION};
use crate::process;
use crate::unary::PREFIX;

/// Codes of gRPC: 0 to 16.
const CODES: i32 = 17;

/// The methods that stream, and how; all others do not.
const STREAMS: &[(&str, &str)] = &[
    ("Watch", "bidi_stream"),
    ("LeaseKeepAlive", "bidi_stream"),
    ("Snapshot", "server_stream"),
    ("Observe", "server_stream"),
];

/// What is so for ever: nobody else is in the group, and nothing is defragmented.
const CONSTANTS: &[(&str, &str, &str, u64)] = &[
    ("etcd_disk_defrag_inflight", "gauge", "Whether it is defragmented.", 0),
    ("etcd_server_has_leader", "gauge", "Whether there is a leader.", 1),
    ("etcd_server_heartbeat_send_failures_total", "counter", "Heartbeats not sent.", 0),
    ("etcd_server_is_leader", "gauge", "Whether it is this member.", 1),
    ("etcd_server_is_learner", "gauge", "Whether this member only learns.", 0),
    ("etcd_server_leader_changes_seen_total", "counter", "New leaders: this one.", 1),
    ("etcd_server_learner_promote_successes", "counter", "Learners promoted.", 0),
    ("etcd_server_read_indexes_failed_total", "counter", "Reads that found no leader.", 0),
    ("etcd_server_slow_read_indexes_total", "counter", "Reads that waited for a leader.", 0),
    ("etcd_server_snapshot_apply_in_progress_total", "gauge", "States taken from a leader.", 0),
];

/// Counters of one face.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// By the path of a method.
    calls: BTreeMap<String, Arc<Calls>>,
    /// Questions for health that were answered well, and not.
    pub(crate) healthy: [AtomicU64; 2],
}

/// How often a method was called, and how its calls ended.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    started: AtomicU64,
    handled: [AtomicU64; CODES as usize],
    /// Messages that came, and their bytes.
    received: [AtomicU64; 2],
    /// Messages that went, and their bytes.
    sent: [AtomicU64; 2],
    /// How long they took, where that is measured.
    took: Option<Histogram>,
}

/// A call whose end is waited for to know how long it took.
pub(crate) struct Timed(Arc<Calls>, Instant);

impl Drop for Timed {
    fn drop(&mut self) {
        self.0.took.iter().for_each(|took| took.note(self.1.elapsed()));
    }
}

/// Finds the messages in a stream of bytes: each has its length before it.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    prefix: Vec<u8>,
    /// What is to come of the message.
    left: usize,
}

impl Meter {
    /// Takes up more of the stream; tells the length of each message that begins there.
    pub(crate) fn take(&mut self, mut data: &[u8], mut tell: impl FnMut(usize)) {
        while !data.is_empty() {
            let part = self.left.min(data.len());
            (self.left, data) = (self.left - part, &data[part..]);
            let part = (PREFIX - self.prefix.len()).min(data.len());
            self.prefix.extend_from_slice(&data[..part]);
            data = &data[part..];
            if let [_, a, b, c, d] = self.prefix[..] {
                self.left = u32::from_be_bytes([a, b, c, d]) as usize;
                tell(self.left);
                self.prefix.clear();
            }
        }
    }
}

impl Metrics {
    /// Nothing has been called; whether it is to be measured how long calls take.
    pub(crate) fn new(timed: bool) -> Self {
        let calls = || Calls { took: timed.then(Histogram::default), ..Calls::default() };
        let calls = methods().map(|path| (path, Arc::new(calls()))).collect();
        Self { calls, healthy: Default::default() }
    }

    /// The counters of a method; there are none for what does not exist.
    pub(crate) fn calls(&self, path: &str) -> Option<&Arc<Calls>> {
        self.calls.get(path)
    }

    fn write(&self, text: &mut Text) {
        text.family("grpc_server_started_total", "counter", "Calls begun.");
        for (path, calls) in &self.calls {
            text.row("grpc_server_started_total", &labels(path), read(&calls.started));
        }
        for (name, help, of) in [
            ("grpc_server_msg_received_total", "Messages that came.", Calls::came as Way),
            ("grpc_server_msg_sent_total", "Messages that went.", Calls::went as Way),
        ] {
            text.family(name, "counter", help);
            for (path, calls) in &self.calls {
                text.row(name, &labels(path), read(&of(calls)[0]));
            }
        }
        for (name, help, of) in [
            ("etcd_network_client_grpc_received_bytes_total", "What came.", Calls::came as Way),
            ("etcd_network_client_grpc_sent_bytes_total", "What went.", Calls::went as Way),
        ] {
            let sum: u64 = self.calls.values().map(|calls| read(&of(calls)[1])).sum();
            text.one(name, "counter", help, sum);
        }
        text.family("grpc_server_handled_total", "counter", "Calls ended, by code.");
        for (path, calls) in &self.calls {
            for (code, count) in (0..CODES).zip(&calls.handled) {
                let (code, count) = (Code::from_i32(code), read(count));
                if code == Code::Ok || count > 0 {
                    let code = match code {
                        Code::Ok => "OK".to_owned(),
                        Code::Cancelled => "Canceled".to_owned(),
                        other => format!("{other:?}"),
                    };
                    let labels = format!("{},grpc_code=\"{code}\"", labels(path));
                    text.row("grpc_server_handled_total", &labels, count);
                }
            }
        }
        let timed =
            self.calls.iter().filter_map(|(path, calls)| Some((path, calls.took.as_ref()?)));
        let mut timed = timed.peekable();
        if timed.peek().is_some() {
            text.family("grpc_server_handling_seconds", "histogram", "How long calls took.");
        }
        for (path, took) in timed {
            text.histogram("grpc_server_handling_seconds", &labels(path), took);
        }
    }
}

fn labels(path: &str) -> String {
    let (service, method) = path.trim_matches('/').split_once('/').unwrap_or_default();
    let kind = STREAMS.iter().find(|(name, _)| *name == method).map_or("unary", |(_, kind)| kind);
    format!("grpc_service=\"{service}\",grpc_method=\"{method}\",grpc_type=\"{kind}\"")
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// One of the two ways that messages go.
type Way = fn(&Calls) -> &[AtomicU64; 2];

fn add([messages, sum]: &[AtomicU64; 2], bytes: usize) {
    messages.fetch_add(1, Ordering::Relaxed);
    sum.fetch_add(bytes as u64, Ordering::Relaxed);
}

impl Calls {
    fn came(&self) -> &[AtomicU64; 2] {
        &self.received
    }

    fn went(&self) -> &[AtomicU64; 2] {
        &self.sent
    }

    /// A message of so many bytes came.
    pub(crate) fn received(&self, bytes: usize) {
        add(&self.received, bytes);
    }

    /// A message of so many bytes goes.
    pub(crate) fn sent(&self, bytes: usize) {
        add(&self.sent, bytes);
    }

    pub(crate) fn begun(&self) {
        self.started.fetch_add(1, Ordering::Relaxed);
    }

    /// Where that is measured, measures how long what comes takes until this is dropped.
    pub(crate) fn timed(self: &Arc<Self>) -> Option<Timed> {
        self.took.as_ref().map(|_| Timed(self.clone(), Instant::now()))
    }

    pub(crate) fn ended(&self, code: Code) {
        let at = usize::try_from(code as i32).unwrap_or(0);
        self.handled[at.min(self.handled.len() - 1)].fetch_add(1, Ordering::Relaxed);
    }
}

/// Text as Prometheus reads it.
#[derive(Default)]
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
    }

    fn row(&mut self, name: &str, labels: &str, value: impl Display) {
        match labels {
            "" => self.line(format_args!("{name} {value}")),
            labels => self.line(format_args!("{name}{{{labels}}} {value}")),
        }
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.row(name, "", value);
    }

    fn histogram(&mut self, name: &str, labels: &str, values: &Histogram) {
        let (bucket, comma) = (format!("{name}_bucket"), if labels.is_empty() { "" } else { "," });
        for (end, count) in values.buckets() {
            self.row(&bucket, &format!("{labels}{comma}le=\"{}\"", end.as_secs_f64()), count);
        }
        let count = values.count();
        self.row(&bucket, &format!("{labels}{comma}le=\"+Inf\""), count);
        self.row(&format!("{name}_sum"), labels, values.sum().as_secs_f64());
        self.row(&format!("{name}_count"), labels, count);
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.0, "{line}").expect("writing to a string");
    }
}

impl Face {
    /// All metrics. What the store knows is read when asked, and has no second place.
    pub(crate) fn metrics_text(&self) -> String {
        let mut text = Text::default();
        for (name, kind, help, value) in CONSTANTS.iter().copied().chain(self.counted()) {
            text.one(name, kind, help, value);
        }
        let facts = [
            ("etcd_cluster_version", "cluster_version", ETCD_CLUSTER_VERSION.to_owned()),
            ("etcd_server_version", "server_version", ETCD_VERSION.to_owned()),
            ("etcd_server_id", "server_id", format!("{:x}", self.store.identity().member)),
        ];
        for (name, label, value) in facts {
            text.family(name, "gauge", "What it is, as a label.");
            text.row(name, &format!("{label}=\"{value}\""), 1);
        }
        let measures = self.store.measures();
        for (name, help, syncs) in [
            (
                "etcd_disk_wal_fsync_duration_seconds",
                "Syncs of the log, which writes wait for.",
                &measures.log_syncs,
            ),
            (
                "etcd_disk_backend_commit_duration_seconds",
                "Syncs of states and history, which no write waits for.",
                &measures.state_syncs,
            ),
        ] {
            text.family(name, "histogram", help);
            text.histogram(name, "", syncs);
        }
        self.metrics.write(&mut text);
        for (name, kind, help, value) in process::rows() {
            text.one(name, kind, help, value);
        }
        text.0
    }

    fn counted(&self) -> Vec<(&'static str, &'static str, &'static str, u64)> {
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let (index, live, history, keys, revision, compacted, leases) =
            self.store.read(|keyspace, revision| {
                (
                    keyspace.index(),
                    count(keyspace.live_bytes()),
                    count(keyspace.history_bytes()),
                    count(keyspace.held_keys()),
                    revision.0,
                    keyspace.compacted().0,
                    count(keyspace.leases().count()),
                )
            });
        let (did, held) = (self.store.measures(), live + history);
        let quota = count(self.store.weights().budget);
        let watchers = count(self.store.watchers());
        let (ranges, puts, deletes) = (did.ranges.get(), did.puts.get(), did.deletes.get());
        let [healthy, ill] = [0, 1].map(|at| read(&self.metrics.healthy[at]));
        vec![
            ("etcd_debugging_auth_revision", "gauge", "Of users.", self.auth().revision()),
            ("etcd_debugging_lease_granted_total", "counter", "Granted.", did.granted.get()),
            ("etcd_debugging_lease_held", "gauge", "Leases that live.", leases),
            ("etcd_debugging_lease_renewed_total", "counter", "Renewals.", did.renewed.get()),
            ("etcd_debugging_mvcc_compact_revision", "gauge", "The last compaction.", compacted),
            ("etcd_debugging_mvcc_current_revision", "gauge", "The newest revision.", revision),
            ("etcd_debugging_mvcc_db_total_size_in_bytes", "gauge", "Bytes held.", held),
            ("etcd_debugging_mvcc_delete_total", "counter", "Ranges deleted.", deletes),
            ("etcd_debugging_mvcc_keys_total", "gauge", "Keys, those of the past too.", keys),
            ("etcd_debugging_mvcc_put_total", "counter", "Keys put.", puts),
            ("etcd_debugging_mvcc_range_total", "counter", "Ranges read.", ranges),
            ("etcd_debugging_mvcc_txn_total", "counter", "Of several steps.", did.txns.get()),
            ("etcd_debugging_mvcc_watcher_total", "gauge", "Watches.", watchers),
            ("etcd_disk_wal_write_bytes_total", "gauge", "Bytes logged.", did.log_bytes.get()),
            ("etcd_mvcc_db_total_size_in_bytes", "gauge", "Bytes held.", held),
            ("etcd_mvcc_db_total_size_in_use_in_bytes", "gauge", "Of newest versions.", live),
            ("etcd_mvcc_delete_total", "counter", "Ranges deleted.", deletes),
            ("etcd_mvcc_put_total", "counter", "Keys put.", puts),
            ("etcd_mvcc_range_total", "counter", "Ranges read.", ranges),
            ("etcd_mvcc_txn_total", "counter", "Of several steps.", did.txns.get()),
            ("etcd_server_health_failures", "counter", "Asked and ill.", ill),
            ("etcd_server_health_success", "counter", "Asked and well.", healthy),
            ("etcd_server_proposals_applied_total", "gauge", "Entries applied.", index),
            ("etcd_server_proposals_committed_total", "gauge", "Entries committed.", index),
            ("etcd_server_proposals_failed_total", "counter", "Not written.", did.failed.get()),
            ("etcd_server_proposals_pending", "gauge", "Unanswered writes.", did.pending()),
            ("etcd_server_quota_backend_bytes", "gauge", "What may be held.", quota),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found_however_their_bytes_come() {
        let message =
            |length: u8| [&[0, 0, 0, 0, length][..], &vec![7; usize::from(length)]].concat();
        let stream = [message(3), message(0), message(200)].concat();
        for size in [1, 4, 6, 1000] {
            let (mut meter, mut told) = (Meter::default(), Vec::new());
            stream.chunks(size).for_each(|chunk| meter.take(chunk, |length| told.push(length)));
            assert_eq!(told, [3, 0, 200], "in pieces of {size}");
        }
    }
}
