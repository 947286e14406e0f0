//! What a person or a probe reads: version, health, metrics, under etcd's paths and names.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use tonic::Code;

use crate::face::Face;
use crate::gateway::methods;

/// The version of etcd's API that is spoken here; clients decide by it what they may ask.
pub const ETCD_VERSION: &str = "3.6.6";

/// Codes of gRPC: 0 to 16.
const CODES: usize = 17;

/// Counters of one face, by the path of a method.
#[derive(Debug)]
pub(crate) struct Metrics(BTreeMap<String, Calls>);

/// How often a method was called, and how its calls ended.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    started: AtomicU64,
    handled: [AtomicU64; CODES],
}

impl Default for Metrics {
    fn default() -> Self {
        Self(methods().map(|path| (path, Calls::default())).collect())
    }
}

impl Metrics {
    /// The counters of a method; there are none for what does not exist.
    pub(crate) fn calls(&self, path: &str) -> Option<&Calls> {
        self.0.get(path)
    }

    fn write(&self, out: &mut String) {
        let row = |out: &mut String, name: &str, path: &str, code: &str, count: &AtomicU64| {
            let (service, method) = path.trim_matches('/').split_once('/').unwrap_or_default();
            let count = count.load(Ordering::Relaxed);
            if count > 0 {
                writeln!(
                    out,
                    "{name}{{grpc_service=\"{service}\",grpc_method=\"{method}\"{code}}} {count}"
                )
                .expect("writing to a string");
            }
        };
        out.push_str("# HELP grpc_server_started_total Calls begun.\n");
        out.push_str("# TYPE grpc_server_started_total counter\n");
        for (path, calls) in &self.0 {
            row(out, "grpc_server_started_total", path, "", &calls.started);
        }
        out.push_str("# HELP grpc_server_handled_total Calls ended, by code.\n");
        out.push_str("# TYPE grpc_server_handled_total counter\n");
        for (path, calls) in &self.0 {
            for (code, count) in (0..).zip(&calls.handled) {
                let code = format!("{:?}", Code::from_i32(code)).replace("Ok", "OK");
                let code = format!(",grpc_code=\"{code}\"");
                row(out, "grpc_server_handled_total", path, &code, count);
            }
        }
    }
}

impl Calls {
    pub(crate) fn begun(&self) {
        self.started.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn ended(&self, code: Code) {
        let at = usize::try_from(code as i32).unwrap_or(0);
        self.handled[at.min(CODES - 1)].fetch_add(1, Ordering::Relaxed);
    }
}

/// A page: code, content type, text.
pub(crate) type Page = (u16, &'static str, String);

impl Face {
    /// The page at a path, if there is one.
    pub(crate) fn page(&self, path: &str, query: &str) -> Option<Page> {
        let json = |text: String| (200, "application/json", text);
        Some(match path {
            "/version" => {
                let cluster = ETCD_VERSION.rsplit_once('.').map_or("", |(minor, _)| minor);
                let body = serde_json::json!({
                    "etcdserver": ETCD_VERSION, "etcdcluster": format!("{cluster}.0"),
                });
                json(body.to_string())
            }
            "/health" => match self.alarms().first() {
                None => json(r#"{"health":"true","reason":""}"#.to_owned()),
                Some(alarm) => {
                    let reason = format!("ALARM {}", alarm.alarm().as_str_name());
                    let body = serde_json::json!({ "health": "false", "reason": reason });
                    (503, "application/json", body.to_string())
                }
            },
            "/livez" | "/readyz" => (200, "text/plain; charset=utf-8", checks(path, query)),
            "/metrics" => (200, "text/plain; version=0.0.4; charset=utf-8", self.metrics_text()),
            _ => return None,
        })
    }

    fn metrics_text(&self) -> String {
        let mut text = String::new();
        // What the store knows is read when asked, and has no second place.
        for (name, kind, help, value) in self.gauges() {
            writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}")
                .expect("writing to a string");
        }
        self.metrics.write(&mut text);
        text
    }

    fn gauges(&self) -> Vec<(&'static str, &'static str, &'static str, u64)> {
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
        let resident = resident_bytes().unwrap_or(0);
        let mut rows = vec![
            ("etcd_server_has_leader", "gauge", "Whether there is a leader.", 1),
            ("etcd_server_is_leader", "gauge", "Whether it is this member.", 1),
            ("etcd_server_proposals_committed_total", "counter", "Entries committed.", index),
            ("etcd_server_proposals_applied_total", "counter", "Entries applied.", index),
            ("etcd_mvcc_db_total_size_in_bytes", "gauge", "Bytes held.", live + history),
            ("etcd_mvcc_db_total_size_in_use_in_bytes", "gauge", "Bytes of newest versions.", live),
            ("etcd_debugging_mvcc_keys_total", "gauge", "Keys held, with those of the past.", keys),
            ("etcd_debugging_mvcc_current_revision", "gauge", "The newest revision.", revision),
            ("etcd_debugging_mvcc_compact_revision", "gauge", "The last compaction.", compacted),
            ("etcd_debugging_lease_held", "gauge", "Leases held.", leases),
            ("process_resident_memory_bytes", "gauge", "Resident memory size.", resident),
        ];
        rows.sort_unstable_by_key(|row| row.0);
        rows
    }
}

fn checks(path: &str, query: &str) -> String {
    let verbose = query.split('&').any(|word| word.split('=').next() == Some("verbose"));
    match verbose {
        true => format!("[+]serializable_read ok\n{} check passed\n", path.trim_matches('/')),
        false => "ok\n".to_owned(),
    }
}

fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    Some(pages * 4096)
}
