//! A port that shows the pages and nothing else: for who gathers metrics and asks for health, and
//! has no certificate.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tonic::body::Body;
use tracing::debug;

use crate::face::Face;
use crate::gateway;
use crate::serve::Listener;
use crate::tls::TlsKeeper;

/// Connections served at the same time; more wait.
const MAX_CONNECTIONS: usize = 64;
/// Who does not finish a handshake or send a request in this time is let go.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves `/metrics`, `/health`, `/livez` and `/readyz` until `drain` says so.
pub async fn serve_pages(face: Arc<Face>, listener: Listener, mut drain: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = async { drop(drain.wait_for(|drain| *drain).await) } => return,
            Some(_) = connections.join_next() => {}
            accepted = accept(&listener), if connections.len() < MAX_CONNECTIONS => {
                match accepted {
                    Ok((stream, tls)) => drop(connections.spawn(shown(face.clone(), stream, tls))),
                    Err(error) => {
                        // Out of descriptors, most likely: connections have to end first.
                        debug!(%error, "accepting a connection failed");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

type Accepted = (Box<dyn Stream>, Option<Arc<TlsKeeper>>);

async fn accept(listener: &Listener) -> std::io::Result<Accepted> {
    Ok(match listener {
        Listener::Unix(listener) => (Box::new(listener.accept().await?.0), None),
        Listener::Tcp(listener, tls) => (Box::new(listener.accept().await?.0), tls.clone()),
    })
}

async fn shown(face: Arc<Face>, stream: Box<dyn Stream>, tls: Option<Arc<TlsKeeper>>) {
    let Some(tls) = tls else { return connection(face, stream).await };
    let accepted = TlsAcceptor::from(tls.config()).accept(stream);
    match tokio::time::timeout(PATIENCE, accepted).await {
        Ok(Ok(stream)) => connection(face, stream).await,
        Ok(Err(error)) => debug!(%error, "TLS handshake failed"),
        Err(_) => debug!("TLS handshake took too long"),
    }
}

async fn connection(face: Arc<Face>, stream: impl Stream) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = answer(&face, &request);
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
        debug!(%error, "connection ended");
    }
}

fn answer(face: &Face, request: &Request<Incoming>) -> Response<Body> {
    let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
    let page = (path != "/version").then(|| face.page(path, query)).flatten();
    let missing = || (404, "text/plain; charset=utf-8", "404 page not found\n".to_owned());
    gateway::page(page.unwrap_or_else(missing))
}
