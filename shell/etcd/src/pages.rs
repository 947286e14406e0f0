//! What a person or a probe reads: version, health, metrics, under etcd's paths and names.

use std::fmt::Write as _;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tonic::Code;

use crate::face::Face;

/// The version of etcd's API that is spoken here; clients decide by it what they may ask.
pub(crate) const ETCD_VERSION: &str = "3.6.6";

/// A call, as grpc's own metrics name it.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Call {
    grpc_service: String,
    grpc_method: String,
}

/// A call and how it ended.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Handled {
    grpc_service: String,
    grpc_method: String,
    grpc_code: String,
}

/// Counters of one face.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    started: Family<Call, Counter>,
    handled: Family<Handled, Counter>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::default();
        let (started, handled) = (Family::default(), Family::default());
        registry.register("grpc_server_started", "Calls begun.", started.clone());
        registry.register("grpc_server_handled", "Calls ended, by code.", handled.clone());
        Self { registry, started, handled }
    }

    pub(crate) fn begun(&self, grpc_service: &str, grpc_method: &str) {
        let (grpc_service, grpc_method) = (grpc_service.to_owned(), grpc_method.to_owned());
        self.started.get_or_create(&Call { grpc_service, grpc_method }).inc();
    }

    pub(crate) fn ended(&self, grpc_service: &str, grpc_method: &str, code: Code) {
        let (grpc_service, grpc_method) = (grpc_service.to_owned(), grpc_method.to_owned());
        let grpc_code = format!("{code:?}").replace("Ok", "OK");
        self.handled.get_or_create(&Handled { grpc_service, grpc_method, grpc_code }).inc();
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
            "/health" => json(r#"{"health":"true","reason":""}"#.to_owned()),
            "/livez" | "/readyz" => (200, "text/plain; charset=utf-8", checks(path, query)),
            "/metrics" => (200, "text/plain; version=0.0.4; charset=utf-8", self.metrics_text()),
            _ => return None,
        })
    }

    fn metrics_text(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.metrics.registry).expect("writing to a string");
        // What the store knows is read when asked, and has no second place.
        let mut own = String::new();
        for (name, kind, help, value) in self.gauges() {
            writeln!(own, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}")
                .expect("writing to a string");
        }
        text.insert_str(0, &own);
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
            ("etcd_server_proposals_committed_total", "gauge", "Entries committed.", index),
            ("etcd_server_proposals_applied_total", "gauge", "Entries applied.", index),
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
