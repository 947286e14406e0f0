//! Connections in, calls to the services, answers out. One port speaks gRPC, JSON and pages.

use std::convert::Infallible;
use std::error::Error;
use std::io::{self, Cursor};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use http::header::CONTENT_TYPE;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use knarr_etcdpb::etcdserverpb as pb;
use knarr_etcdpb::{v3electionpb, v3lockpb};
use pb::auth_server::AuthServer;
use pb::cluster_server::ClusterServer;
use pb::kv_server::KvServer;
use pb::lease_server::LeaseServer;
use pb::maintenance_server::MaintenanceServer;
use pb::watch_server::WatchServer;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tonic::body::Body;
use tonic::{Code, Status};
use tracing::{debug, warn};
use v3electionpb::election_server::ElectionServer;
use v3lockpb::lock_server::LockServer;

use crate::alive;
use crate::authority::Mended;
use crate::election::Elections;
use crate::face::{Face, PeerName};
use crate::gateway;
use crate::http2;
use crate::lease::Leases;
use crate::lock::Locks;
use crate::maintenance::Keeper;
use crate::metrics::Calls;
use crate::tls::TlsKeeper;
use crate::unary::{PREFIX, Quick};
use crate::watch::Watches;

/// A client that does not finish the handshake or its headers in this time is let go.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// After a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What a connection of HTTP/2 begins with (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What a message may be larger than the request in it.
const OVERHEAD: usize = 512 << 10;

/// Why a connection ended before it was to.
pub(crate) type Broken = Box<dyn Error + Send + Sync>;

/// Where clients connect.
#[derive(Debug)]
pub enum Listener {
    /// TCP, with TLS where there are certificates.
    Tcp(TcpListener, Option<Arc<TlsKeeper>>),
    /// A socket in the file system.
    Unix(UnixListener),
}

/// Serves connections until `drain` says so; calls in flight are finished.
pub async fn serve(face: Arc<Face>, listener: Listener, drain: watch::Receiver<bool>) {
    accept_all(Services::new(face, false), listener, drain).await;
}

/// Serves metrics and health and nothing else until `drain` says so: for who gathers them, and has
/// no certificate.
pub async fn serve_pages(face: Arc<Face>, listener: Listener, drain: watch::Receiver<bool>) {
    accept_all(Services::new(face, true), listener, drain).await;
}

async fn accept_all(services: Services, listener: Listener, mut drain: watch::Receiver<bool>) {
    let services = Arc::new(services);
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener) => accepted,
            () = drained(&mut drain) => return,
        };
        match accepted {
            Ok(Accepted::Plain(stream)) => {
                tokio::spawn(connection(services.clone(), stream, None, drain.clone()));
            }
            Ok(Accepted::Tls(stream, tls)) => {
                tokio::spawn(secured(services.clone(), stream, tls, drain.clone()));
            }
            Ok(Accepted::Unix(stream)) => {
                tokio::spawn(connection(services.clone(), stream, None, drain.clone()));
            }
            Err(error) => {
                // Out of descriptors, most likely: connections have to end first.
                warn!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

enum Accepted {
    Plain(tokio::net::TcpStream),
    Tls(tokio::net::TcpStream, Arc<TlsKeeper>),
    Unix(tokio::net::UnixStream),
}

async fn accept(listener: &Listener) -> std::io::Result<Accepted> {
    match listener {
        Listener::Unix(listener) => listener.accept().await.map(|(s, _)| Accepted::Unix(s)),
        Listener::Tcp(listener, tls) => {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            alive::keep_tcp(&stream)?;
            Ok(match tls {
                Some(tls) => Accepted::Tls(stream, tls.clone()),
                None => Accepted::Plain(stream),
            })
        }
    }
}

async fn drained(drain: &mut watch::Receiver<bool>) {
    drain.wait_for(|drain| *drain).await.ok();
}

async fn secured(
    services: Arc<Services>,
    stream: tokio::net::TcpStream,
    tls: Arc<TlsKeeper>,
    drain: watch::Receiver<bool>,
) {
    let acceptor = TlsAcceptor::from(tls.config());
    match timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => {
            let peer = knarr_pki::peer_identity(stream.get_ref().1.peer_certificates());
            let peer = peer.map(|(name, _)| PeerName(name.into()));
            connection(services, stream, peer, drain).await;
        }
        Ok(Err(error)) => debug!(%error, "TLS handshake failed"),
        Err(_) => debug!("TLS handshake took too long"),
    }
}

/// Serves one connection in the version of HTTP that its first bytes are of.
async fn connection<S>(
    services: Arc<Services>,
    mut stream: S,
    peer: Option<PeerName>,
    mut drain: watch::Receiver<bool>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let begun = match timeout(HANDSHAKE, begun(&mut stream)).await {
        Ok(Ok(begun)) => begun,
        Ok(Err(error)) => return debug!(%error, "connection ended"),
        Err(_) => return debug!("a connection said nothing"),
    };
    let is_http2 = begun == PREFACE;
    let (read, write) = tokio::io::split(stream);
    let begun = Cursor::new(begun);
    let drained = drained(&mut drain);
    let result = if is_http2 {
        http2::serve(&services, begun.chain(Mended::new(read)), write, peer, drained).await
    } else {
        let stream = TokioIo::new(tokio::io::join(begun.chain(read), write));
        http1(services, stream, peer, drained).await.map_err(Broken::from)
    };
    if let Err(error) = result {
        debug!(%error, "connection ended");
    }
}

/// What a connection begins with, as far as it takes to know whether that is [`PREFACE`].
async fn begun(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut begun = Vec::with_capacity(PREFACE.len());
    while begun.len() < PREFACE.len() && PREFACE.starts_with(&begun) {
        let room = PREFACE.len() - begun.len();
        if stream.take(room as u64).read_buf(&mut begun).await? == 0 {
            break;
        }
    }
    Ok(begun)
}

async fn http1(
    services: Arc<Services>,
    stream: impl hyper::rt::Read + hyper::rt::Write + Unpin,
    peer: Option<PeerName>,
    drained: impl Future<Output = ()>,
) -> hyper::Result<()> {
    let service = service_fn(move |mut request: Request<Incoming>| {
        if let Some(peer) = &peer {
            request.extensions_mut().insert(peer.clone());
        }
        let services = services.clone();
        async move { Ok::<_, Infallible>(services.answer(request.map(Body::new)).await) }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HANDSHAKE);
    let mut connection = pin!(builder.serve_connection(stream, service));
    tokio::select! {
        result = connection.as_mut() => result,
        () = drained => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    }
}

/// The largest message that is taken, in bytes.
fn largest(face: &Face) -> usize {
    face.config.max_request_bytes + OVERHEAD
}

/// All services of a face.
pub(crate) struct Services {
    pub(crate) face: Arc<Face>,
    kv: KvServer<Face>,
    watch: WatchServer<Watches>,
    lease: LeaseServer<Leases>,
    cluster: ClusterServer<Face>,
    maintenance: MaintenanceServer<Keeper>,
    auth: AuthServer<Face>,
    lock: LockServer<Locks>,
    election: ElectionServer<Elections>,
    /// Whether there are only pages here.
    pages_only: bool,
}

impl Services {
    fn new(face: Arc<Face>, pages_only: bool) -> Self {
        let largest = largest(&face);
        Self {
            kv: KvServer::from_arc(face.clone()).max_decoding_message_size(largest),
            watch: WatchServer::new(Watches(face.clone())),
            lease: LeaseServer::new(Leases(face.clone())),
            cluster: ClusterServer::from_arc(face.clone()),
            maintenance: MaintenanceServer::new(Keeper(face.clone())),
            auth: AuthServer::from_arc(face.clone()),
            lock: LockServer::new(Locks(face.clone())),
            election: ElectionServer::new(Elections(face.clone())),
            pages_only,
            face,
        }
    }

    pub(crate) async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let content = request.headers().get(CONTENT_TYPE);
        let is_call = content.is_some_and(|word| word.as_bytes().starts_with(b"application/grpc"));
        if is_call && !self.pages_only {
            return self.call(request).await;
        }
        let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
        match self.face.page(path, query) {
            Some(page) if !self.pages_only || path != "/version" => gateway::page(page),
            _ if self.pages_only || !self.face.config.gateway => gateway::nothing(),
            // Boxed: it is large, and every call would carry the room for it.
            _ => Box::pin(gateway::answer(self, request)).await,
        }
    }

    /// Whether a request is one of the calls that make the load.
    pub(crate) fn quick_method<T>(&self, request: &Request<T>) -> Option<Quick> {
        Quick::of(request).filter(|_| !self.pages_only)
    }

    /// Answers one of the calls that make the load.
    pub(crate) async fn quick(
        &self,
        method: Quick,
        request: Request<RecvStream>,
    ) -> Result<Bytes, Status> {
        let calls = self.face.metrics.calls(request.uri().path());
        if let Some(calls) = calls {
            calls.begun();
        }
        let _timed = calls.and_then(Calls::timed);
        let answer = method.answer(&self.face, request, largest(&self.face)).await;
        if let Some(calls) = calls {
            calls.ended(answer.as_ref().map_or_else(Status::code, |_| Code::Ok));
            answer.iter().for_each(|message| calls.sent(message.len() - PREFIX));
        }
        answer
    }

    /// Calls a method by its path, `/package.Service/Method`.
    pub(crate) async fn call(&self, request: Request<Body>) -> Response<Body> {
        use tower_service::Service as _;
        let path = request.uri().path();
        let calls = self.face.metrics.calls(path);
        if let Some(calls) = calls {
            calls.begun();
        }
        let timed = calls.and_then(Calls::timed);
        let service = path.trim_start_matches('/').split('/').next().unwrap_or_default();
        let response = match service {
            "etcdserverpb.KV" => self.kv.clone().call(request).await,
            "etcdserverpb.Watch" => self.watch.clone().call(request).await,
            "etcdserverpb.Lease" => self.lease.clone().call(request).await,
            "etcdserverpb.Cluster" => self.cluster.clone().call(request).await,
            "etcdserverpb.Maintenance" => self.maintenance.clone().call(request).await,
            "etcdserverpb.Auth" => self.auth.clone().call(request).await,
            "v3lockpb.Lock" => self.lock.clone().call(request).await,
            "v3electionpb.Election" => self.election.clone().call(request).await,
            other => {
                let status = Status::unimplemented(format!("unknown service {other}"));
                Ok(status.into_http())
            }
        };
        let Ok(response) = response;
        // A call that failed says so in its head; one that did not has sent it and is under way.
        let code = response.headers().get("grpc-status");
        let code = code.map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()));
        if let Some(calls) = calls {
            calls.ended(code);
        }
        match timed {
            None => response,
            // It has ended when its answer has.
            Some(timed) => response.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    let _until_dropped = &timed;
                    frame
                }))
            }),
        }
    }
}
