//! The node's own server: logs, health. Only the API server may call it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use crate::agent::Node;
use crate::logs::{self, LogOptions};
use crate::{now, streams};

const API_SERVER: &str = "kube-apiserver-kubelet-client";
const ADMINISTRATORS: &str = "system:masters";
/// After a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const HANDSHAKE: Duration = Duration::from_secs(10);

/// What goes out.
pub(crate) type Answer = http::Response<BoxBody<Bytes, Infallible>>;

/// An answer in words.
pub(crate) fn answer(code: u16, text: impl Into<Bytes>) -> Answer {
    let mut answer = http::Response::new(Full::new(text.into()).boxed());
    *answer.status_mut() = http::StatusCode::from_u16(code).expect("codes are valid");
    answer
}

/// Serves until `drain` says so.
pub(crate) async fn serve(
    node: Arc<Node>,
    listener: TcpListener,
    mut drain: watch::Receiver<bool>,
) {
    let acceptor = match knarr_pki::server_config(&node.config.serving, &node.config.ca) {
        Ok(tls) => TlsAcceptor::from(tls),
        Err(error) => return warn!(%error, "the node's server has no usable certificate"),
    };
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = drain.wait_for(|drain| *drain) => return,
        };
        match accepted {
            Ok((stream, _)) => {
                drop(tokio::spawn(connection(node.clone(), stream, acceptor.clone())))
            }
            Err(error) => {
                // Out of descriptors, most likely: connections have to end first.
                warn!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(node: Arc<Node>, stream: TcpStream, acceptor: TlsAcceptor) {
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await else {
        return;
    };
    let peer = knarr_pki::peer_identity(stream.get_ref().1.peer_certificates());
    let trusted = peer.is_some_and(|(name, groups)| {
        name == API_SERVER || groups.iter().any(|group| group == ADMINISTRATORS)
    });
    let service = service_fn(move |request: http::Request<Incoming>| {
        let node = node.clone();
        async move {
            let path = request.uri().path().to_owned();
            Ok::<_, Infallible>(match (path.as_str(), trusted) {
                ("/healthz" | "/livez" | "/readyz", _) => answer(200, "ok"),
                (_, false) => answer(401, "Unauthorized"),
                (path, true) => page(&node, path, request).await,
            })
        }
    });
    let builder = auto::Builder::new(TokioExecutor::new());
    if let Err(error) = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await
    {
        debug!(%error, "connection ended");
    }
}

async fn page(node: &Arc<Node>, path: &str, mut request: http::Request<Incoming>) -> Answer {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match parts[..] {
        [verb @ ("exec" | "attach"), namespace, pod, container] => {
            streams::remote(node, &mut request, verb, [namespace, pod, container]).await
        }
        ["containerLogs", namespace, pod, container] => {
            let wanted = [namespace, pod, container].map(str::to_owned);
            let query = request.uri().query().unwrap_or_default().to_owned();
            node.blocking(move |node| container_logs(node, &wanted, &query)).await
        }
        ["metrics"] => answer(200, metrics(node)),
        _ => answer(404, "404 page not found"),
    }
}

/// The log of a container, by the runtime's own record of where it lies.
fn container_logs(node: &Node, wanted: &[String; 3], query: &str) -> Answer {
    let [namespace, pod, container] = wanted;
    let options = LogOptions::parse(query, now());
    let sandboxes = node.runtime.list_pod_sandbox();
    let of_pod = |id: &str| {
        sandboxes.iter().any(|sandbox| {
            sandbox.id == id
                && sandbox.metadata.namespace == *namespace
                && sandbox.metadata.name == *pod
        })
    };
    let mut runs = node.runtime.list_containers();
    runs.retain(|run| run.metadata.name == *container && of_pod(&run.pod_sandbox_id));
    runs.sort_by_key(|run| std::cmp::Reverse(run.metadata.attempt));
    let Some(run) = runs.get(usize::from(options.previous)) else {
        let what = if options.previous { "previous terminated container" } else { "container" };
        let text = format!("{what} {container:?} in pod {pod:?} not found");
        return answer(400, text);
    };
    match logs::read(run.log_path.as_ref(), &options) {
        Ok(text) => answer(200, text),
        Err(error) => answer(500, format!("failed to read the log: {error}")),
    }
}

fn metrics(node: &Node) -> String {
    let pods = node.runtime.list_pod_sandbox().len();
    let containers = node.runtime.list_containers().len();
    format!(
        "# TYPE kubelet_running_pods gauge\nkubelet_running_pods {pods}\n\
         # TYPE kubelet_running_containers gauge\nkubelet_running_containers {containers}\n"
    )
}
