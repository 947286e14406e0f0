//! Metrics of the API server, under upstream's names.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use knarr_store::Store;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    verb: String,
    code: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct VerbLabel {
    verb: String,
}

/// Counters and histograms of one server.
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    seconds: Family<VerbLabel, Histogram>,
    revision: Gauge<f64, AtomicU64>,
    /// What the store weighs, by part, and what it refused.
    weights: [Gauge<f64, AtomicU64>; 5],
    memory: Gauge<f64, AtomicU64>,
}

/// Upstream's buckets of apiserver_request_duration_seconds, in seconds.
const BUCKETS: [f64; 14] =
    [0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0];

/// Names and meanings of what the store weighs.
const WEIGHTS: [(&str, &str); 5] = [
    ("knarr_store_live_bytes", "What the newest versions weigh in memory."),
    ("knarr_store_history_bytes", "What the recent past weighs in memory."),
    ("knarr_store_budget_bytes", "What these two may weigh together."),
    ("knarr_store_archive_bytes", "What the older past weighs on disk."),
    ("knarr_store_refused_writes", "Writes refused because they would go over the budget."),
];

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::default();
        let requests = Family::default();
        let seconds =
            Family::new_with_constructor((|| Histogram::new(BUCKETS)) as fn() -> Histogram);
        let (revision, memory) = (Gauge::default(), Gauge::default());
        registry.register("apiserver_request", "Requests by verb and code.", requests.clone());
        registry.register(
            "apiserver_request_duration_seconds",
            "Seconds until the response headers, watches aside.",
            seconds.clone(),
        );
        registry.register("knarr_store_revision", "The newest durable revision.", revision.clone());
        let weights = WEIGHTS.map(|(name, help)| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        });
        registry.register(
            "process_resident_memory_bytes",
            "Resident memory size in bytes.",
            memory.clone(),
        );
        Self { registry, requests, seconds, revision, weights, memory }
    }

    pub(crate) fn observe(
        &self,
        method: &http::Method,
        _path: &str,
        code: u16,
        took: Duration,
        streaming: bool,
    ) {
        let verb = if streaming { "WATCH".to_owned() } else { method.to_string() };
        self.requests.get_or_create(&RequestLabels { verb: verb.clone(), code }).inc();
        if !streaming {
            self.seconds.get_or_create(&VerbLabel { verb }).observe(took.as_secs_f64());
        }
    }

    /// The text that Prometheus reads.
    pub(crate) fn render(&self, store: &Store) -> String {
        self.revision.set(store.durable().0 as f64);
        let weights = store.weights();
        let figures = [weights.live, weights.history, weights.budget].map(|bytes| bytes as f64);
        let figures = figures.into_iter().chain([weights.archive as f64, weights.refused as f64]);
        for (gauge, figure) in self.weights.iter().zip(figures) {
            gauge.set(figure);
        }
        self.memory.set(resident_bytes().unwrap_or(0.0));
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a string");
        text
    }
}

fn resident_bytes() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: f64 = text.split(' ').nth(1)?.parse().ok()?;
    Some(pages * 4096.0)
}
