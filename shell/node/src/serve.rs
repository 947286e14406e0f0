//! The node's own server: logs, health. Only the API server may call it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use knarr_api::ObjectKey;
use knarr_oci::cri::ContainerState;
use knarr_podlife::logs::{Run, log_of};
use knarr_typed::{Pod, Typed};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use crate::agent::Node;
use crate::logs::{Follow, Log, LogOptions};
use crate::query::Query;
use crate::{PODS, now, streams};

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
    let acceptor = match knarr_pki::server_config(
        &node.config.serving,
        knarr_pki::Clients::MayShow(&node.config.ca),
    ) {
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
        ["portForward", namespace, pod] => streams::forward(node, &mut request, [namespace, pod]),
        ["containerLogs", namespace, pod, container] => {
            let query = Query::parse(request.uri().query().unwrap_or_default());
            let options = LogOptions::parse(&query, now());
            container_logs(node, &ObjectKey::new(namespace, pod), container, options).await
        }
        ["metrics"] => answer(200, metrics(node)),
        _ => answer(404, "404 page not found"),
    }
}

/// The log of a container: which run of it, the Pod's status says.
async fn container_logs(
    node: &Arc<Node>,
    pod: &ObjectKey,
    container: &str,
    options: LogOptions,
) -> Answer {
    let run = if options.previous { Run::Previous } else { Run::Latest };
    let found = match node.client.get(PODS, pod).await {
        Ok(tree) => Pod::decode(&serde_json::to_vec(&tree).expect("a tree has a JSON form")),
        Err(error) => return answer(404, format!("pod {:?} not found: {error}", pod.name)),
    };
    let id = found.map_err(|error| error.to_string()).and_then(|pod| log_of(&pod, container, run));
    let id = match id {
        Ok(id) => id.rsplit("://").next().unwrap_or_default().to_owned(),
        Err(why) => return answer(400, why),
    };
    let exits = node.exits.subscribe();
    let follow = options.follow;
    let opened = node.runtime.container_status(&id).map_err(|error| error.to_string());
    let opened = opened.and_then(|status| {
        Log::open(status.log_path.as_ref(), options).map_err(|error| error.to_string())
    });
    match (opened, follow) {
        (Ok(log), false) => body(stream::unfold(log, |mut log| async {
            let bytes = log.read().ok()??;
            Some((Ok(Frame::data(bytes)), log))
        })),
        (Ok(log), true) => match Follow::new(log, exits) {
            Ok(follow) => followed(node.clone(), id, follow),
            Err(error) => answer(500, format!("failed to follow the log: {error}")),
        },
        (Err(error), _) => answer(500, format!("failed to read the log: {error}")),
    }
}

fn followed(node: Arc<Node>, id: String, follow: Follow) -> Answer {
    body(stream::unfold((node, id, follow), |(node, id, mut follow)| async {
        let runs = || {
            let status = node.runtime.container_status(&id);
            status.is_ok_and(|status| status.state == ContainerState::Running)
        };
        let bytes = follow.next(runs).await?;
        Some((Ok(Frame::data(bytes)), (node, id, follow)))
    }))
}

fn body(
    frames: impl Stream<Item = Result<Frame<Bytes>, Infallible>> + Send + Sync + 'static,
) -> Answer {
    http::Response::new(StreamBody::new(frames).boxed())
}

fn metrics(node: &Node) -> String {
    let pods = node.runtime.list_pod_sandbox().len();
    let containers = node.runtime.list_containers().len();
    format!(
        "# TYPE kubelet_running_pods gauge\nkubelet_running_pods {pods}\n\
         # TYPE kubelet_running_containers gauge\nkubelet_running_containers {containers}\n"
    )
}
