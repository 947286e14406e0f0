//! Connections in, calls to the services, answers out. One port speaks gRPC, JSON and pages.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use knarr_etcdpb::etcdserverpb as pb;
use knarr_etcdpb::{v3electionpb, v3lockpb};
use pb::auth_server::AuthServer;
use pb::cluster_server::ClusterServer;
use pb::kv_server::KvServer;
use pb::lease_server::LeaseServer;
use pb::maintenance_server::MaintenanceServer;
use pb::watch_server::WatchServer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tonic::Code;
use tonic::body::Body;
use tracing::{debug, warn};
use v3electionpb::election_server::ElectionServer;
use v3lockpb::lock_server::LockServer;

use crate::election::Elections;
use crate::face::{Face, PeerName};
use crate::gateway;
use crate::lease::Leases;
use crate::lock::Locks;
use crate::maintenance::Keeper;
use crate::tls::TlsKeeper;
use crate::watch::Watches;

/// A client that does not finish the handshake or its headers in this time is let go.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// After a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What a message may be larger than the request in it.
const OVERHEAD: usize = 512 << 10;
/// What may be on its way to this server: of one call, and of one connection.
const WINDOWS: (u32, u32) = (1 << 20, 4 << 20);

/// Where clients connect.
#[derive(Debug)]
pub enum Listener {
    /// TCP, with TLS where there are certificates.
    Tcp(TcpListener, Option<Arc<TlsKeeper>>),
    /// A socket in the file system.
    Unix(UnixListener),
}

/// Serves connections until `drain` says so; calls in flight are finished.
pub async fn serve(face: Arc<Face>, listener: Listener, mut drain: watch::Receiver<bool>) {
    let services = Arc::new(Services::new(face));
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
    match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => {
            let peer = knarr_pki::peer_identity(stream.get_ref().1.peer_certificates());
            let peer = peer.map(|(name, _)| PeerName(name.into()));
            connection(services, stream, peer, drain).await;
        }
        Ok(Err(error)) => debug!(%error, "TLS handshake failed"),
        Err(_) => debug!("TLS handshake took too long"),
    }
}

async fn connection<S>(
    services: Arc<Services>,
    stream: S,
    peer: Option<PeerName>,
    mut drain: watch::Receiver<bool>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |mut request: Request<Incoming>| {
        if let Some(peer) = &peer {
            request.extensions_mut().insert(peer.clone());
        }
        let services = services.clone();
        async move { Ok::<_, Infallible>(services.answer(request.map(Body::new)).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HANDSHAKE);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(None)
        .initial_stream_window_size(WINDOWS.0)
        .initial_connection_window_size(WINDOWS.1);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = drained(&mut drain) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        debug!(%error, "connection ended");
    }
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
}

impl Services {
    fn new(face: Arc<Face>) -> Self {
        let largest = face.config.max_request_bytes + OVERHEAD;
        Self {
            kv: KvServer::from_arc(face.clone()).max_decoding_message_size(largest),
            watch: WatchServer::new(Watches(face.clone())),
            lease: LeaseServer::new(Leases(face.clone())),
            cluster: ClusterServer::from_arc(face.clone()),
            maintenance: MaintenanceServer::new(Keeper(face.clone())),
            auth: AuthServer::from_arc(face.clone()),
            lock: LockServer::new(Locks(face.clone())),
            election: ElectionServer::new(Elections(face.clone())),
            face,
        }
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let content = request.headers().get(CONTENT_TYPE);
        if content.is_some_and(|content| content.as_bytes().starts_with(b"application/grpc")) {
            return self.call(request).await;
        }
        let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
        match self.face.page(path, query) {
            Some(page) => gateway::page(page),
            // Boxed: it is large, and every call would carry the room for it.
            None => Box::pin(gateway::answer(self, request)).await,
        }
    }

    /// Calls a method by its path, `/package.Service/Method`.
    pub(crate) async fn call(&self, request: Request<Body>) -> Response<Body> {
        use tower_service::Service as _;
        let path = request.uri().path();
        let calls = self.face.metrics.calls(path);
        if let Some(calls) = calls {
            calls.begun();
        }
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
                let status = tonic::Status::unimplemented(format!("unknown service {other}"));
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
        response
    }
}
