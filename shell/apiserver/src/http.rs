//! HTTP over TLS: connections in, requests to the pump, bodies and streams out.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, WARNING};
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use knarr_api::{Reason, Status};
use knarr_registry::{Body, Credential, Method, Request, Response};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use crate::nodes::{self, Arrived};
use crate::server::{Server, body_as_json};
use crate::watcher::{Watcher, WatcherEnd};

/// The largest request body, as upstream has it.
const MAX_BODY: usize = 3 << 20;
/// When the cluster is to be looked at.
const AT: HeaderName = HeaderName::from_static("knarr-at");
/// A client that does not finish the handshake or its headers in this time is let go.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// After a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Events that are ready together leave together, up to about this many bytes.
const FRAME: usize = 32 << 10;

/// The body of an answer on its way out.
pub(crate) type OutBody = BoxBody<Bytes, Infallible>;

/// Whoever has sent something on this connection, as TLS knows them.
#[derive(Clone)]
struct Peer {
    certificate: Option<(String, Vec<String>)>,
    address: SocketAddr,
}

/// Serves connections until `drain` says so; requests in flight are finished, watches are closed.
pub async fn serve(
    server: Arc<Server>,
    listener: TcpListener,
    tls: watch::Receiver<Arc<ServerConfig>>,
    mut drain: watch::Receiver<bool>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drained(&mut drain) => return,
        };
        match accepted {
            Ok((stream, address)) => {
                let acceptor = TlsAcceptor::from(tls.borrow().clone());
                let connection =
                    connection(server.clone(), stream, address, acceptor, drain.clone());
                tokio::spawn(connection);
            }
            Err(error) => {
                // Out of descriptors, most likely: connections have to end first.
                warn!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Waits until the server is told to go down (or is gone).
async fn drained(drain: &mut watch::Receiver<bool>) {
    drain.wait_for(|drain| *drain).await.ok();
}

async fn connection(
    server: Arc<Server>,
    stream: TcpStream,
    address: SocketAddr,
    acceptor: TlsAcceptor,
    mut drain: watch::Receiver<bool>,
) {
    stream.set_nodelay(true).ok();
    let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return debug!(%address, %error, "TLS handshake failed"),
        Err(_) => return debug!(%address, "TLS handshake took too long"),
    };
    let certificate = knarr_pki::peer_identity(stream.get_ref().1.peer_certificates());
    let peer = Peer { certificate, address };
    let closing = drain.clone();
    let service = service_fn(move |request| {
        let (server, peer, closing) = (server.clone(), peer.clone(), closing.clone());
        async move { Ok::<_, Infallible>(handle(server, peer, request, closing).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HANDSHAKE);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(1000);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = drained(&mut drain) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        debug!(%address, %error, "connection ended");
    }
}

async fn handle(
    server: Arc<Server>,
    peer: Peer,
    request: http::Request<Incoming>,
    drain: watch::Receiver<bool>,
) -> http::Response<OutBody> {
    let began = Instant::now();
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let (request, arrived) = receive(&server, &peer, request).await;
    let response = match request {
        Ok(request) => server.call(request).await,
        Err(status) => status.into(),
    };
    let code = response.code;
    let streaming = matches!(response.body, Body::Watch(_) | Body::Onward(_));
    server.metrics.observe(&method, &path, code, began.elapsed(), streaming);
    debug!(%method, path, code, peer = %peer.address, "request");
    send(&server, response, arrived, drain).await
}

fn method_of(method: &http::Method) -> Option<Method> {
    Some(match *method {
        http::Method::GET => Method::Get,
        http::Method::HEAD => Method::Head,
        http::Method::POST => Method::Post,
        http::Method::PUT => Method::Put,
        http::Method::PATCH => Method::Patch,
        http::Method::DELETE => Method::Delete,
        http::Method::OPTIONS => Method::Options,
        _ => return None,
    })
}

/// The request as the pipeline reads it, and what may be passed on of it.
async fn receive(
    server: &Server,
    peer: &Peer,
    mut request: http::Request<Incoming>,
) -> (Result<Request, Status>, Arrived) {
    let upgrade = request.headers().contains_key(http::header::UPGRADE);
    let upgrade = upgrade.then(|| hyper::upgrade::on(&mut request));
    let (parts, body) = request.into_parts();
    let (method, headers) = (parts.method.clone(), parts.headers.clone());
    let (ours, theirs) = match knarr_registry::is_proxy(parts.uri.path()) {
        true => (None, Some(body)),
        false => (Some(body), None),
    };
    let arrived = Arrived { method, headers, body: theirs, upgrade };
    (read_request(server, peer, parts, ours).await, arrived)
}

async fn read_request(
    server: &Server,
    peer: &Peer,
    parts: http::request::Parts,
    body: Option<Incoming>,
) -> Result<Request, Status> {
    let method = method_of(&parts.method).ok_or_else(Status::no_such_path)?;
    let word = |name| header(&parts.headers, name).to_owned();
    let content_type = word(CONTENT_TYPE);
    let body = match body {
        Some(body) => read_body(body).await?,
        None => Bytes::new(),
    };
    let body = if body.is_empty() {
        body
    } else {
        body_as_json(&server.views().schema, &content_type, body)?
    };
    Ok(Request {
        method,
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        accept: word(ACCEPT),
        content_type,
        body,
        credential: credential(server, peer, header(&parts.headers, AUTHORIZATION)),
        at: word(AT),
    })
}

async fn read_body(body: Incoming) -> Result<Bytes, Status> {
    let collected = Limited::new(body, MAX_BODY).collect().await.map_err(|error| {
        if error.is::<LengthLimitError>() {
            let text = format!("Request entity too large: limit is {MAX_BODY}");
            return Status::new(Reason::RequestEntityTooLarge, text);
        }
        Status::bad_request(format!("reading the request body failed: {error}"))
    })?;
    Ok(collected.to_bytes())
}

fn header(headers: &HeaderMap, name: HeaderName) -> &str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// A certificate counts before a token, as upstream's authenticators are ordered.
fn credential(server: &Server, peer: &Peer, authorization: &str) -> Credential {
    if let Some((name, groups)) = &peer.certificate {
        return Credential::Certificate { name: name.clone(), groups: groups.clone() };
    }
    match authorization.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
            server.credential(token.trim())
        }
        _ => Credential::None,
    }
}

async fn send(
    server: &Arc<Server>,
    response: Response,
    arrived: Arrived,
    drain: watch::Receiver<bool>,
) -> http::Response<OutBody> {
    let Response { code, content_type, warnings, body } = response;
    let body = match body {
        Body::Chunks(chunks) => whole(chunks),
        Body::Watch(spec) => watch_body(server.watch(spec), drain),
        Body::Onward(target) => return nodes::carry(server, target, arrived).await,
        Body::Own(_) => whole(Vec::new()),
    };
    let mut out = http::Response::new(body);
    *out.status_mut() = http::StatusCode::from_u16(code).expect("codes are valid");
    out.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    for text in warnings {
        let text = text.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
            out.headers_mut().append(WARNING, value);
        }
    }
    out
}

/// Pieces gathered into frames of a sensible size.
pub(crate) fn whole(chunks: Vec<Bytes>) -> OutBody {
    if chunks.len() <= 1 {
        return Full::new(chunks.into_iter().next().unwrap_or_default()).boxed();
    }
    let total: usize = chunks.iter().map(Bytes::len).sum();
    if total <= FRAME {
        return Full::new(chunks.concat().into()).boxed();
    }
    let mut chunks = chunks.into_iter();
    let frames = std::iter::from_fn(move || {
        let mut frame = Vec::with_capacity(FRAME * 2);
        while frame.len() < FRAME {
            let Some(chunk) = chunks.next() else { break };
            frame.extend_from_slice(&chunk);
        }
        (!frame.is_empty()).then(|| Ok(Frame::data(Bytes::from(frame))))
    });
    StreamBody::new(stream::iter(frames)).boxed()
}

fn watch_body(watcher: Watcher, drain: watch::Receiver<bool>) -> OutBody {
    let frames = stream::unfold(Some((watcher, drain)), |state| async move {
        let (mut watcher, mut drain) = state?;
        let first = tokio::select! {
            next = watcher.next() => next,
            () = drained(&mut drain) => Err(WatcherEnd::Done),
        };
        let mut out = Vec::new();
        match first {
            Ok(next) => {
                watcher.encode(&next, &mut out);
                let mut size: usize = out.iter().map(Bytes::len).sum();
                while size < FRAME
                    && let Some(next) = watcher.ready()
                {
                    let before = out.len();
                    watcher.encode(&next, &mut out);
                    size += out[before..].iter().map(Bytes::len).sum::<usize>();
                }
                Some((Ok(Frame::data(out.concat().into())), Some((watcher, drain))))
            }
            Err(WatcherEnd::Done) => None,
            Err(WatcherEnd::Expired { after, oldest }) => {
                Some((Ok(Frame::data(watcher.spec().expired(after, oldest))), None))
            }
        }
    });
    StreamBody::new(frames).boxed()
}
