//! Carries out checks of containers: commands, pages, connections, the gRPC health service. Texts
//! are those that a Go client gives, because people and tools look for them.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use knarr_podlife::checks::{Check, HttpGet, Scheme};
use knarr_podlife::probes::Outcome;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::agent::Node;
use crate::insecure;

/// Most bytes of a page or a command's output that are looked at.
const MAX_OUTPUT: usize = 10 * 1024;
const MAX_REDIRECTS: u32 = 10;
const HEALTH: &str = "/grpc.health.v1.Health/Check";

/// Makes a probe, within its time.
pub(crate) async fn probe(node: &Arc<Node>, id: &str, check: &Check, within: Duration) -> Outcome {
    let late = format!("{}s", within.as_secs());
    match check {
        Check::Exec(command) => exec(node, id, command, within).await,
        Check::Http(get) => match timeout(within, page(get)).await {
            Ok(outcome) => outcome,
            Err(_) => Outcome::Failure(format!(
                "Get {:?}: context deadline exceeded (Client.Timeout exceeded while awaiting \
                 headers)",
                url(get)
            )),
        },
        Check::Tcp { host, port } => match timeout(within, connect(host, *port)).await {
            Ok(Ok(_)) => Outcome::Success,
            Ok(Err(why)) => Outcome::Failure(why),
            Err(_) => Outcome::Failure(format!("dial tcp {}: i/o timeout", joined(host, *port))),
        },
        Check::Grpc { host, port, service } => {
            match timeout(within, health(host, *port, service)).await {
                Ok(outcome) => outcome,
                Err(_) => {
                    let at = joined(host, *port);
                    let why = format!("timeout: failed to connect service {at:?} within {late}");
                    Outcome::Failure(format!("{why}: context deadline exceeded"))
                }
            }
        }
        Check::Sleep(seconds) => {
            tokio::time::sleep(Duration::from_secs(*seconds)).await;
            Outcome::Success
        }
    }
}

/// Runs a lifecycle hook to its end; a page's status does not count.
pub(crate) async fn hook(node: &Arc<Node>, id: &str, check: &Check) -> Result<(), String> {
    match check {
        Check::Http(get) => send(get).await.map(drop),
        other => match probe(node, id, other, Duration::ZERO).await {
            Outcome::Success | Outcome::Warning(_) => Ok(()),
            Outcome::Failure(why) | Outcome::Error(why) => Err(why),
        },
    }
}

/// Runs a command; no time is for ever.
async fn exec(node: &Arc<Node>, id: &str, command: &[String], within: Duration) -> Outcome {
    let (id, words) = (id.to_owned(), command.to_vec());
    let ran = node.blocking(move |node| node.runtime.exec_sync(&id, &words, within)).await;
    match ran {
        Ok(answer) => {
            let mut said = answer.stdout;
            said.extend(answer.stderr);
            said.truncate(MAX_OUTPUT);
            match answer.exit_code {
                0 => Outcome::Success,
                _ => Outcome::Failure(String::from_utf8_lossy(&said).into_owned()),
            }
        }
        Err(knarr_sandbox::Error::Timeout) => {
            let words = command.join(" ");
            let seconds = within.as_secs();
            let why = format!("command timed out: {words:?} timed out after {seconds}s");
            Outcome::Failure(why)
        }
        Err(error) => Outcome::Error(error.to_string()),
    }
}

fn joined(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn url(get: &HttpGet) -> String {
    let scheme = match get.scheme {
        Scheme::Http => "http",
        Scheme::Https => "https",
    };
    format!("{scheme}://{}{}", joined(&get.host, get.port), get.path)
}

async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    use std::io::ErrorKind;
    TcpStream::connect((host, port)).await.map_err(|error| {
        let why = match error.kind() {
            ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
            ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
            ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_owned(),
            _ => error.to_string(),
        };
        format!("dial tcp {}: {why}", joined(host, port))
    })
}

/// Gets a page, going along with redirects as long as they stay on the host.
async fn page(get: &HttpGet) -> Outcome {
    let mut get = get.clone();
    for _ in 0..MAX_REDIRECTS {
        let answer = match send(&get).await {
            Ok(answer) => answer,
            Err(why) => return Outcome::Failure(format!("Get {:?}: {why}", url(&get))),
        };
        let status = answer.status();
        match redirected(&get, &answer) {
            Some(next) => get = next,
            None if status.is_redirection() => {
                let said = text(answer).await;
                let why = format!("Probe terminated redirects, Response body: {said}");
                return Outcome::Warning(why);
            }
            None if status.is_success() => return Outcome::Success,
            None => {
                let why = format!("HTTP probe failed with statuscode: {}", status.as_u16());
                return Outcome::Failure(why);
            }
        }
    }
    let why = format!("stopped after {MAX_REDIRECTS} redirects");
    Outcome::Failure(format!("Get {:?}: {why}", url(&get)))
}

async fn text(answer: Response<Incoming>) -> String {
    let body = Limited::new(answer.into_body(), MAX_OUTPUT).collect().await;
    let bytes = body.map(|body| body.to_bytes()).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The page that an answer leads to, if it is on the same host.
fn redirected(get: &HttpGet, answer: &Response<Incoming>) -> Option<HttpGet> {
    const FOLLOWED: [StatusCode; 5] = [
        StatusCode::MOVED_PERMANENTLY,
        StatusCode::FOUND,
        StatusCode::SEE_OTHER,
        StatusCode::TEMPORARY_REDIRECT,
        StatusCode::PERMANENT_REDIRECT,
    ];
    if !FOLLOWED.contains(&answer.status()) {
        return None;
    }
    let location = answer.headers().get(http::header::LOCATION)?.to_str().ok()?;
    let to: Uri = location.parse().ok()?;
    let path = to.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let Some(host) = to.host() else { return Some(HttpGet { path, ..get.clone() }) };
    if host.trim_matches(['[', ']']) != get.host {
        return None;
    }
    let (scheme, default) = match to.scheme_str() {
        Some("https") => (Scheme::Https, 443),
        _ => (Scheme::Http, 80),
    };
    let port = to.port_u16().unwrap_or(default);
    Some(HttpGet { scheme, port, path, ..get.clone() })
}

/// Sends the request for a page, over TLS when that is wanted.
async fn send(get: &HttpGet) -> Result<Response<Incoming>, String> {
    let request = request(get)?;
    let socket = connect(&get.host, get.port).await?;
    match get.scheme {
        Scheme::Http => one(socket, request).await,
        Scheme::Https => one(insecure::connect(&get.host, socket).await?, request).await,
    }
}

fn request(get: &HttpGet) -> Result<Request<Empty<Bytes>>, String> {
    let mut request = Request::get(get.path.as_str());
    let default = joined(&get.host, get.port);
    let host = get.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("Host"));
    request = request.header("Host", host.map_or(default.as_str(), |(_, value)| value.as_str()));
    for (name, value) in get.headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("Host")) {
        let name = HeaderName::try_from(name.as_str()).map_err(|error| error.to_string())?;
        let value = HeaderValue::try_from(value.as_str()).map_err(|error| error.to_string())?;
        request = request.header(name, value);
    }
    request.body(Empty::new()).map_err(|error| error.to_string())
}

/// One request on a connection of its own.
async fn one(
    socket: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: Request<Empty<Bytes>>,
) -> Result<Response<Incoming>, String> {
    let mut client = hyper::client::conn::http1::Builder::new();
    let connected = client.title_case_headers(true).handshake(TokioIo::new(socket)).await;
    let (mut sender, connection) = connected.map_err(|error| error.to_string())?;
    // Ends when the answer is dropped.
    tokio::spawn(connection);
    sender.send_request(request).await.map_err(|error| error.to_string())
}

/// Asks the gRPC health service.
async fn health(host: &str, port: u16, service: &str) -> Outcome {
    let at = joined(host, port);
    let socket = match connect(host, port).await {
        Ok(socket) => socket,
        Err(why) => {
            return Outcome::Failure(format!("error: failed to connect service at {at:?}: {why}"));
        }
    };
    match ask_health(&at, socket, service).await {
        Ok(1) => Outcome::Success,
        Ok(status) => {
            let names = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];
            let name = usize::try_from(status).ok().and_then(|at| names.get(at)).copied();
            let name = name.map_or_else(|| status.to_string(), str::to_owned);
            Outcome::Failure(format!("service unhealthy (responded with {name:?})"))
        }
        Err(Refusal::Code(12, why)) => Outcome::Failure(format!(
            "error: this server does not implement the grpc health protocol \
             (grpc.health.v1.Health): {why}"
        )),
        Err(Refusal::Code(code, why)) => Outcome::Failure(format!(
            "error: health rpc probe failed: rpc error: code = {} desc = {why}",
            code_name(code)
        )),
        Err(Refusal::Broken(why)) => {
            Outcome::Failure(format!("error: health rpc probe failed: {why}"))
        }
    }
}

/// Why a health service gave no answer.
enum Refusal {
    /// A gRPC status.
    Code(u32, String),
    /// No gRPC at all.
    Broken(String),
}

fn broken(error: impl std::fmt::Display) -> Refusal {
    Refusal::Broken(error.to_string())
}

fn code_name(code: u32) -> String {
    let names = ["OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound"];
    let name = usize::try_from(code).ok().and_then(|at| names.get(at));
    name.map_or_else(|| format!("Code({code})"), |name| (*name).to_owned())
}

async fn ask_health(at: &str, socket: TcpStream, service: &str) -> Result<u64, Refusal> {
    let client = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (mut sender, connection) = client.handshake(TokioIo::new(socket)).await.map_err(broken)?;
    tokio::spawn(connection);
    let request = Request::post(format!("http://{at}{HEALTH}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "kube-probe/1.36")
        .body(Full::new(question(service)).map_err(|never: Infallible| match never {}))
        .map_err(broken)?;
    let answer = sender.send_request(request).await.map_err(broken)?;
    let status = answer.status();
    let head = answer.headers().clone();
    let body = Limited::new(answer.into_body(), MAX_OUTPUT).collect().await.map_err(broken)?;
    let end = body.trailers().cloned().unwrap_or(head);
    let word = |name: &str| end.get(name).and_then(|value| value.to_str().ok());
    match word("grpc-status").and_then(|code| code.parse().ok()) {
        Some(0) => Ok(answered(&body.to_bytes())),
        Some(code) => Err(Refusal::Code(code, word("grpc-message").unwrap_or_default().to_owned())),
        None => Err(Refusal::Broken(format!("unexpected HTTP status code {status}"))),
    }
}

/// A `HealthCheckRequest` in its frame: the service is field 1.
fn question(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        varint(&mut message, service.len() as u64);
        message.extend_from_slice(service.as_bytes());
    }
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    let mut frame = vec![0];
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend(message);
    frame.into()
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// The status (field 1) of a framed `HealthCheckResponse`.
fn answered(frame: &[u8]) -> u64 {
    let Some([0x08, rest @ ..]) = frame.get(5..) else { return 0 };
    let mut value = 0;
    for (at, byte) in rest.iter().take(9).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            break;
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_is_asked_and_answered_in_frames() {
        assert_eq!(&question("")[..], [0; 5]);
        assert_eq!(&question("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(question(&"x".repeat(200))[..8], [0, 0, 0, 0, 203, 0x0a, 0xc8, 1]);
        assert_eq!(answered(&[0, 0, 0, 0, 2, 8, 1]), 1);
        assert_eq!(answered(&[0, 0, 0, 0, 3, 8, 0x81, 1]), 129);
        assert_eq!([answered(&[]), answered(&[0; 5])], [0, 0], "nothing is UNKNOWN");
    }
}
