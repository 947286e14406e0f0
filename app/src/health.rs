//! Health and metrics of a part that runs alone, over plain HTTP: for probes on the same machine.
//!
//! The API server has its own pages; the controllers and the scheduler serve nothing else, so they
//! listen on a loopback address unless told otherwise, and show nothing that is a secret.

use std::convert::Infallible;
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use knarr_driver::Gauges;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tracing::debug;

use crate::flags::HealthFlags;
use crate::process::Fatal;

/// Connections served at the same time; more wait.
const MAX_CONNECTIONS: usize = 16;
/// Who does not send a request in this time is let go, also between two requests.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the pages tell about.
#[derive(Clone)]
pub(crate) struct Subject {
    /// The lease that is held while the part works.
    pub(crate) lease: &'static str,
    /// What the ring says.
    pub(crate) gauges: Arc<Gauges>,
}

/// The pages, not served yet.
pub(crate) struct Health {
    listener: Option<TcpListener>,
    subject: Subject,
}

impl Health {
    /// Binds the address of the flags; `port` is for who named none, port 0 for no pages at all.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub(crate) async fn bind(
        flags: &HealthFlags,
        port: u16,
        subject: Subject,
    ) -> Result<Self, Fatal> {
        let address = SocketAddr::new(flags.bind_address, flags.health_port.unwrap_or(port));
        let listener = match address.port() {
            0 => None,
            _ => Some(TcpListener::bind(address).await.map_err(|error| {
                Fatal(format!(
                    "cannot serve health on {address}: {error}; choose another --health-port, or 0"
                ))
            })?),
        };
        Ok(Self { listener, subject })
    }

    /// Serves until dropped.
    pub(crate) async fn serve(self) {
        let Some(listener) = self.listener else { return std::future::pending().await };
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => {
                    match accepted {
                        Ok((stream, _)) => {
                            connections.spawn(connection(stream, self.subject.clone()));
                        }
                        Err(error) => {
                            debug!(%error, "accepting a connection failed");
                            tokio::time::sleep(Duration::from_millis(100)).await;
                        }
                    }
                }
                Some(_) = connections.join_next() => {}
            }
        }
    }
}

async fn connection(stream: TcpStream, subject: Subject) {
    let service = service_fn(|request: Request<Incoming>| {
        let (code, text) = page(&subject, request.uri().path());
        let response = Response::builder().status(code);
        let response = response.header("content-type", "text/plain; version=0.0.4; charset=utf-8");
        let response = response.body(Full::new(Bytes::from(text)));
        std::future::ready(Ok::<_, Infallible>(response.expect("code and header are valid")))
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
        debug!(%error, "connection ended");
    }
}

/// Status code and text of a path. Who waits for the lease is healthy and ready too.
fn page(subject: &Subject, path: &str) -> (u16, String) {
    match path {
        "/healthz" | "/livez" | "/readyz" => (200, "ok".to_owned()),
        "/metrics" => (200, metrics(subject)),
        _ => (404, "404 page not found\n".to_owned()),
    }
}

/// Metrics under upstream's names, as Prometheus reads them.
fn metrics(subject: &Subject) -> String {
    let depths = subject.gauges.depths();
    let mut text = String::new();
    let mut gauge = |name: &str, help: &str, rows: &mut dyn Iterator<Item = (&str, u64)>| {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
        for (label, value) in rows {
            let label =
                if label.is_empty() { "".to_owned() } else { format!("{{name={label:?}}}") };
            let _ = writeln!(text, "{name}{label} {value}");
        }
    };
    let leads = (subject.lease, u64::from(depths.is_some()));
    gauge(
        "leader_election_master_status",
        "Whether this process holds the lease.",
        &mut [leads].into_iter(),
    );
    let mut queues = depths.iter().flatten().map(|(name, depth)| (*name, *depth as u64));
    gauge("workqueue_depth", "Keys waiting, by controller.", &mut queues);
    let mut memory = resident_bytes().map(|bytes| ("", bytes)).into_iter();
    gauge("process_resident_memory_bytes", "Resident memory size in bytes.", &mut memory);
    text
}

fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    Some(pages * 4096)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn subject() -> Subject {
        Subject { lease: "kube-scheduler", gauges: Arc::default() }
    }

    #[test]
    fn metrics_tell_who_leads_and_what_waits() {
        let subject = subject();
        let waiting = page(&subject, "/metrics").1;
        assert!(waiting.contains("leader_election_master_status{name=\"kube-scheduler\"} 0\n"));
        assert!(!waiting.contains("workqueue_depth{"), "{waiting}");
        subject.gauges.set(Some(vec![("scheduler", 3)]));
        let leading = page(&subject, "/metrics").1;
        assert!(leading.contains("leader_election_master_status{name=\"kube-scheduler\"} 1\n"));
        assert!(leading.contains("\nworkqueue_depth{name=\"scheduler\"} 3\n"), "{leading}");
        assert!(leading.contains("\nprocess_resident_memory_bytes "), "{leading}");
        assert_eq!(page(&subject, "/debug").0, 404);
    }

    #[tokio::test]
    async fn pages_come_over_http_and_a_taken_port_is_said() {
        let ip = IpAddr::from([127, 0, 0, 1]);
        let listener = TcpListener::bind((ip, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let flags = HealthFlags { bind_address: ip, health_port: None };
        let taken = Health::bind(&flags, address.port(), subject()).await;
        assert!(taken.err().expect("the port is taken").0.contains("--health-port"));
        let off = HealthFlags { health_port: Some(0), ..flags };
        let off = Health::bind(&off, address.port(), subject()).await.expect("nothing to bind");
        assert!(off.listener.is_none());
        let health = Health { listener: Some(listener), subject: subject() };
        let ask = async {
            let mut stream = TcpStream::connect(address).await.expect("somebody listens");
            let request = b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
            stream.write_all(request).await.expect("it is read");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("it answers");
            answer
        };
        tokio::select! {
            answer = ask => {
                assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
                assert!(answer.ends_with("\r\n\r\nok"), "{answer}");
            }
            () = health.serve() => unreachable!("it serves until dropped"),
        }
    }
}
