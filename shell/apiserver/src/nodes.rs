//! Requests that somebody else answers, a node or a Pod: the server carries them there and the
//! answer back. What is upgraded becomes two byte streams that nobody here looks into.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HOST, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use knarr_api::{Reason, Status};
use knarr_registry::{Onward, Passage, Response, Road};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tracing::{debug, warn};

use crate::http::{OutBody, whole};
use crate::server::Server;

/// Bytes on their way in each direction of an upgraded connection.
const BUFFER: usize = 64 << 10;
/// Most of a refusal that is read.
const MAX_REFUSAL: usize = 64 << 10;

/// What of a client's request may have to be passed on.
pub(crate) struct Arrived {
    pub(crate) method: Method,
    pub(crate) headers: HeaderMap,
    /// Not read by the API; `None` when it was.
    pub(crate) body: Option<Incoming>,
    /// The client's connection, should it be upgraded.
    pub(crate) upgrade: Option<OnUpgrade>,
}

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Answer = http::Response<OutBody>;

/// Carries a request there and its answer back.
pub(crate) async fn carry(server: &Arc<Server>, target: Onward, arrived: Arrived) -> Answer {
    if target.passage == Passage::Session && arrived.upgrade.is_none() {
        return failed(&Status::bad_request("Upgrade request required"));
    }
    match pass(server, &target, arrived).await {
        Ok(answer) => answer,
        Err(why) => {
            warn!(host = target.host, %why, "a request was not answered");
            match target.passage {
                Passage::Text => {
                    let url = format!("https://{}{}", target.host, target.target);
                    failed(&Status::internal(format!("Get {url:?}: {why}")))
                }
                Passage::Session => {
                    failed(&Status::internal(format!("error dialing backend: {why}")))
                }
                Passage::Whole => {
                    let text = format!("error trying to reach service: {why}");
                    failed(&Status::new(Reason::ServiceUnavailable, text))
                }
            }
        }
    }
}

fn failed(status: &Status) -> Answer {
    let response = Response::status(status);
    let mut out = http::Response::new(whole(response.bytes().into_iter().collect()));
    *out.status_mut() = StatusCode::from_u16(response.code).expect("codes are valid");
    let json = HeaderValue::from_static(response.content_type);
    out.headers_mut().insert(CONTENT_TYPE, json);
    out
}

async fn pass(
    server: &Arc<Server>,
    target: &Onward,
    mut arrived: Arrived,
) -> Result<Answer, Failure> {
    let upgrade = arrived.upgrade.take();
    let request = request(target, arrived, upgrade.is_some())?;
    let response = send(server, target, request).await?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return switch(response, upgrade.ok_or("an upgrade that nobody asked for")?);
    }
    if target.passage == Passage::Text && !response.status().is_success() {
        return refusal(response).await;
    }
    let mut response = response;
    strip(response.headers_mut(), Upgrading::No);
    if target.passage == Passage::Text {
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    }
    // A connection that breaks in the middle ends the stream: the code is sent already.
    Ok(response.map(|body| {
        let frames = futures_util::stream::unfold(body, |mut body| async {
            let frame = body.frame().await?.ok()?;
            Some((Ok(frame), body))
        });
        http_body_util::StreamBody::new(frames).boxed()
    }))
}

/// The request to send on.
fn request(
    target: &Onward,
    arrived: Arrived,
    upgrading: bool,
) -> Result<http::Request<BoxBody<Bytes, hyper::Error>>, Failure> {
    let empty = || Empty::new().map_err(|never| match never {}).boxed();
    let (method, mut headers, body) = match target.passage {
        Passage::Text => (Method::GET, HeaderMap::new(), empty()),
        Passage::Session => (arrived.method, arrived.headers, empty()),
        Passage::Whole => {
            (arrived.method, arrived.headers, arrived.body.map_or_else(empty, BodyExt::boxed))
        }
    };
    strip(&mut headers, if upgrading { Upgrading::Yes } else { Upgrading::No });
    // Whoever is asked next must not see who asks, nor act as them.
    headers.remove(http::header::AUTHORIZATION);
    headers.insert(HOST, HeaderValue::from_str(&target.host)?);
    let mut request = http::Request::builder().method(method).uri(&target.target).body(body)?;
    *request.headers_mut() = headers;
    Ok(request)
}

/// Whether the headers that belong to an upgrade stay.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Upgrading {
    Yes,
    No,
}

/// Takes away the headers that belong to one connection.
fn strip(headers: &mut HeaderMap, upgrading: Upgrading) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|list| list.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    let upgrade = headers.get(UPGRADE).cloned();
    named.into_iter().for_each(|name| drop(headers.remove(name)));
    for name in ["connection", "keep-alive", "proxy-connection", "te", "trailer", "upgrade"] {
        headers.remove(name);
    }
    if let (Upgrading::Yes, Some(upgrade)) = (upgrading, upgrade) {
        headers.insert(UPGRADE, upgrade);
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    }
}

/// Sends a request on a connection of its own.
async fn send(
    server: &Arc<Server>,
    target: &Onward,
    request: http::Request<BoxBody<Bytes, hyper::Error>>,
) -> Result<http::Response<Incoming>, Failure> {
    let tcp = TcpStream::connect(&target.host).await?;
    tcp.set_nodelay(true)?;
    let tls = match target.road {
        Road::Http => return over(tcp, request).await,
        Road::Node => server.node_tls.clone(),
        Road::Https => server.pod_tls.clone(),
    };
    let host = target.host.rsplit_once(':').map_or(target.host.as_str(), |(host, _)| host);
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())?;
    over(Records(TlsConnector::from(tls).connect(name, tcp).await?), request).await
}

/// A connection that is read a TLS record at a time, as Go reads. A node gives each frame of a
/// WebSocket a record of its own, and so must be passed on: clients that ask the system whether
/// there is something to read, as that for Python does, do not see the second frame of a record.
struct Records<S>(TlsStream<S>);

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Records<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let record = ready!(Pin::new(&mut self.0).poll_fill_buf(cx))?;
        let len = record.len().min(buf.remaining());
        buf.put_slice(&record[..len]);
        Pin::new(&mut self.0).consume(len);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Records<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

async fn over(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: http::Request<BoxBody<Bytes, hyper::Error>>,
) -> Result<http::Response<Incoming>, Failure> {
    let io = TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
    tokio::spawn(connection.with_upgrades());
    Ok(sender.send_request(request).await?)
}

/// Joins the client's connection with the one behind.
fn switch(mut response: http::Response<Incoming>, client: OnUpgrade) -> Result<Answer, Failure> {
    let behind = hyper::upgrade::on(&mut response);
    tokio::spawn(async move {
        let (client, behind) = match tokio::try_join!(client, behind) {
            Ok(both) => both,
            Err(error) => return debug!(%error, "a connection was not upgraded"),
        };
        let (mut client, mut behind) = (TokioIo::new(client), TokioIo::new(behind));
        // Either side may go at any time; the other is told by the end of its stream.
        let moved =
            tokio::io::copy_bidirectional_with_sizes(&mut client, &mut behind, BUFFER, BUFFER);
        if let Err(error) = moved.await {
            debug!(%error, "a session was cut");
        }
    });
    Ok(response.map(|_| whole(Vec::new())))
}

/// A node's refusal as a Status, as upstream words them.
async fn refusal(response: http::Response<Incoming>) -> Result<Answer, Failure> {
    let code = response.status();
    let body = Limited::new(response.into_body(), MAX_REFUSAL).collect().await?.to_bytes();
    let text = String::from_utf8_lossy(&body).into_owned();
    Ok(failed(&match code {
        StatusCode::BAD_REQUEST => Status::bad_request(text),
        StatusCode::NOT_FOUND => Status::new(Reason::NotFound, text),
        _ => Status::internal(text),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use knarr_pki::{Authority, Clients, Identity, Usage, client_config, server_config};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_rustls::TlsAcceptor;

    #[tokio::test]
    async fn a_connection_is_read_a_record_at_a_time() {
        let dir = tempfile::tempdir().expect("a directory");
        let authority = Authority::load_or_create(dir.path()).expect("a CA");
        let identity = Identity { dns: vec!["node".into()], ..Identity::default() };
        let signed = authority.issue(&identity, Usage::Server).expect("a certificate");
        let acceptor = TlsAcceptor::from(server_config(&signed, Clients::Anyone).expect("TLS"));
        let trusting = client_config(authority.certificate(), None).expect("TLS");
        let (near, far) = tokio::io::duplex(BUFFER);
        let name = ServerName::try_from("node").expect("a name");
        let connecting = TlsConnector::from(trusting).connect(name, near);
        let (near, far) = tokio::join!(connecting, acceptor.accept(far));
        let (mut near, mut far) = (Records(near.expect("TLS")), far.expect("TLS"));
        for frame in ["one", "another"] {
            far.write_all(frame.as_bytes()).await.expect("there is room");
            far.flush().await.expect("there is room");
        }
        let mut read = [0; 100];
        let mut next = async |room: usize| {
            let len = near.read(&mut read[..room]).await.expect("TLS");
            String::from_utf8_lossy(&read[..len]).into_owned()
        };
        assert_eq!(next(100).await, "one");
        assert_eq!(next(4).await, "anot");
        assert_eq!(next(100).await, "her");
        far.shutdown().await.expect("TLS");
        assert_eq!(next(100).await, "");
    }
}
