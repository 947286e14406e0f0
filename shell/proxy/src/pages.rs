//! The few pages a proxy serves, over plain HTTP: its health, its metrics, and at a port of each
//! Service that wants it, whether this node has endpoints.

use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use knarr_netplan::LocalEndpoints;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

pub(crate) const HEALTHZ: &str = "/healthz";
pub(crate) const METRICS: &str = "/metrics";

/// Connections served at the same time; more wait.
const MAX_CONNECTIONS: usize = 16;
/// Who does not send a request in this time is let go.
const PATIENCE: Duration = Duration::from_secs(10);
const MAX_REQUEST: usize = 8 << 10;

/// Upper bounds of the durations that are told apart, in milliseconds.
const BUCKETS: [u64; 11] = [1, 2, 4, 8, 16, 32, 64, 128, 512, 2_048, 16_384];

/// What a proxy tells about itself.
#[derive(Debug, Default)]
pub(crate) struct Told {
    durations: Mutex<([u64; BUCKETS.len()], u64, Duration)>,
    last: AtomicU64,
    healthy: AtomicBool,
    failures: AtomicU64,
    service_changes: AtomicU64,
    endpoint_changes: AtomicU64,
}

impl Told {
    /// A commit went well.
    pub(crate) fn synced(&self, took: Duration) {
        let mut durations = self.durations.lock().unwrap_or_else(PoisonError::into_inner);
        let within = |bound: &u64| took <= Duration::from_millis(*bound);
        if let Some(at) = BUCKETS.iter().position(within) {
            durations.0[at] += 1;
        }
        durations.1 += 1;
        durations.2 += took;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last.store(now.as_secs(), Ordering::Relaxed);
        self.healthy.store(true, Ordering::Relaxed);
    }

    /// A commit did not.
    pub(crate) fn failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.healthy.store(false, Ordering::Relaxed);
    }

    /// A Service, or else an EndpointSlice, came in.
    pub(crate) fn count_change(&self, service: bool) {
        let count = if service { &self.service_changes } else { &self.endpoint_changes };
        count.fetch_add(1, Ordering::Relaxed);
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        let durations = *self.durations.lock().unwrap_or_else(PoisonError::into_inner);
        let name = "kubeproxy_sync_proxy_rules_duration_seconds";
        let _ = writeln!(text, "# TYPE {name} histogram");
        let mut sum = 0;
        for (bound, count) in BUCKETS.iter().zip(durations.0) {
            sum += count;
            let bound = Duration::from_millis(*bound).as_secs_f64();
            let _ = writeln!(text, "{name}_bucket{{le=\"{bound}\"}} {sum}");
        }
        let (_, count, total) = durations;
        let _ = writeln!(text, "{name}_bucket{{le=\"+Inf\"}} {count}");
        let _ = writeln!(text, "{name}_sum {}\n{name}_count {count}", total.as_secs_f64());
        let rows = [
            ("last_timestamp_seconds", "gauge", &self.last),
            ("nftables_sync_failures_total", "counter", &self.failures),
            ("service_changes_total", "counter", &self.service_changes),
            ("endpoint_changes_total", "counter", &self.endpoint_changes),
        ];
        for (name, kind, value) in rows {
            let name = format!("kubeproxy_sync_proxy_rules_{name}");
            let value = value.load(Ordering::Relaxed);
            let _ = writeln!(text, "# TYPE {name} {kind}\n{name} {value}");
        }
        text
    }
}

/// What a listener tells about.
#[derive(Clone)]
pub(crate) enum Subject {
    /// The proxy: the one path that is served.
    Proxy(&'static str, Arc<Told>),
    /// A Service's endpoints on this node, whatever the path.
    Service(watch::Receiver<LocalEndpoints>),
}

/// Status, more headers, and text of a path.
fn page(subject: &Subject, path: &str) -> (u16, String, String) {
    match subject {
        Subject::Proxy(HEALTHZ, told) if [HEALTHZ, "/livez", "/readyz"].contains(&path) => {
            let healthy = told.healthy.load(Ordering::Relaxed);
            let last = told.last.load(Ordering::Relaxed);
            let body = format!("{{\"healthy\":{healthy},\"lastUpdated\":{last}}}");
            (if healthy { 200 } else { 503 }, String::new(), body)
        }
        Subject::Proxy(METRICS, told) if path == METRICS => {
            (200, "content-type: text/plain; version=0.0.4\r\n".to_owned(), told.metrics())
        }
        Subject::Proxy(METRICS, _) if path == "/proxyMode" => {
            (200, String::new(), "nftables".to_owned())
        }
        Subject::Proxy(..) => (404, String::new(), "404 page not found\n".to_owned()),
        Subject::Service(local) => {
            let local = local.borrow();
            let weight = local.count;
            let headers = format!(
                "content-type: application/json\r\nx-content-type-options: nosniff\r\n\
                 x-load-balancing-endpoint-weight: {weight}\r\n"
            );
            (local.status(), headers, local.body())
        }
    }
}

/// Serves until dropped.
pub(crate) async fn serve(listener: TcpListener, subject: Subject) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => {
                match accepted {
                    Ok((stream, _)) => {
                        let answer = answer(stream, subject.clone());
                        connections.spawn(tokio::time::timeout(PATIENCE, answer));
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Answers one request and closes.
async fn answer(mut stream: TcpStream, subject: Subject) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        if request.len() > MAX_REQUEST || stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let text = String::from_utf8_lossy(&request);
    let path = text.split([' ', '?']).nth(1).unwrap_or_default();
    let (status, headers, body) = page(&subject, path);
    let reason = if status == 200 { "OK" } else { "Unavailable" };
    let length = body.len();
    let head = format!("HTTP/1.1 {status} {reason}\r\n{headers}content-length: {length}\r\n");
    let whole = format!("{head}connection: close\r\n\r\n{body}");
    stream.write_all(whole.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use knarr_netplan::Key;

    use super::*;

    #[test]
    fn metrics_have_upstreams_names() {
        let told = Arc::new(Told::default());
        let healthz = Subject::Proxy(HEALTHZ, told.clone());
        assert_eq!(page(&healthz, HEALTHZ).0, 503, "nothing is loaded yet");
        told.synced(Duration::from_millis(3));
        told.count_change(true);
        assert_eq!(page(&healthz, HEALTHZ).0, 200);
        let (_, _, text) = page(&Subject::Proxy(METRICS, told.clone()), METRICS);
        let prefix = "kubeproxy_sync_proxy_rules";
        for line in [
            "duration_seconds_bucket{le=\"0.002\"} 0",
            "duration_seconds_bucket{le=\"0.004\"} 1",
            "duration_seconds_count 1",
            "service_changes_total 1",
        ] {
            assert!(text.contains(&format!("{prefix}_{line}\n")), "{line} in {text}");
        }
        told.failed();
        assert_eq!(page(&healthz, HEALTHZ).0, 503);
        assert_eq!(page(&healthz, METRICS).0, 404);
    }

    #[tokio::test]
    async fn a_load_balancer_is_told() {
        let local = LocalEndpoints { service: Key::new("a", "web"), count: 0 };
        let (send, receive) = watch::channel(local.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let ask = async {
            let mut stream = TcpStream::connect(address).await.expect("somebody listens");
            stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("it is read");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("it answers");
            answer
        };
        let checks = async {
            let first = ask.await;
            assert!(first.starts_with("HTTP/1.1 503 "), "{first}");
            assert!(first.ends_with("\"localEndpoints\":0,\"serviceProxyHealthy\":true}"));
        };
        tokio::select! {
            () = checks => {}
            () = serve(listener, Subject::Service(receive.clone())) => unreachable!("it serves on"),
        }
        send.send_replace(LocalEndpoints { count: 2, ..local });
        assert_eq!(page(&Subject::Service(receive), "/").0, 200);
    }
}
