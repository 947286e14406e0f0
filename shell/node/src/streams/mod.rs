//! What a node streams to a client: commands, attachments, forwarded ports.
//!
//! The API server passes a client's WebSocket on untouched, so its messages are read here.

mod channels;
mod forward;
mod remote;
mod socket;
mod spdy;

use std::sync::Arc;

use hyper::body::Incoming;
use knarr_oci::cri::{ContainerState, ContainerStatus, PodSandboxState, PodSandboxStatus};
use knarr_sandbox::Wanted;
use tracing::debug;

use crate::agent::Node;
use crate::query::Query;
use crate::serve::{Answer, answer};
use remote::{Plan, Work};

/// Serves `exec` or `attach` in a container.
pub(crate) async fn remote(
    node: &Arc<Node>,
    request: &mut http::Request<Incoming>,
    verb: &str,
    place: [&str; 3],
) -> Answer {
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let wanted = Wanted {
        input: query.flag("input"),
        output: query.flag("output"),
        error: query.flag("error") && !query.flag("tty"),
        terminal: query.flag("tty"),
    };
    let Some(run) = running(node, place) else {
        return answer(500, format!("container not found ({:?})", place[2]));
    };
    let work = match verb {
        "exec" => Work::Exec(query.all("command").map(str::to_owned).collect()),
        _ => Work::Attach,
    };
    let (node, plan) = (node.clone(), Plan { container: run.id, work, wanted });
    socket::upgrade(request, &channels::PROTOCOLS, move |version, socket| {
        debug!(?plan, "a session begins");
        remote::serve(node, plan, version, socket)
    })
}

/// Serves `port-forward` to a Pod.
pub(crate) fn forward(
    node: &Arc<Node>,
    request: &mut http::Request<Incoming>,
    [namespace, pod]: [&str; 2],
) -> Answer {
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let ports = query.all("port").flat_map(|list| list.split(',')).flat_map(str::parse).collect();
    let sandboxes = node.runtime.list_pod_sandbox();
    let ours = |sandbox: &&PodSandboxStatus| {
        sandbox.metadata.namespace == namespace
            && sandbox.metadata.name == pod
            && sandbox.state == PodSandboxState::Ready
    };
    let Some(sandbox) = sandboxes.iter().find(ours) else {
        return answer(500, format!("pod not found ({:?})", format!("{pod}_{namespace}")));
    };
    let target = forward::Target { sandbox: sandbox.id.clone(), pod: format!("{namespace}/{pod}") };
    let node = node.clone();
    socket::upgrade(request, &forward::PROTOCOLS, move |sharing, socket| {
        debug!(?target, "ports are forwarded");
        forward::serve(node, target, ports, sharing, socket)
    })
}

/// The run of a container that is alive.
fn running(node: &Node, [namespace, pod, container]: [&str; 3]) -> Option<ContainerStatus> {
    let sandboxes = node.runtime.list_pod_sandbox();
    let mut sandboxes = sandboxes
        .into_iter()
        .filter(|sandbox| sandbox.metadata.namespace == namespace && sandbox.metadata.name == pod);
    let runs = node.runtime.list_containers();
    sandboxes.find_map(|sandbox| {
        let ours = |run: &&ContainerStatus| {
            run.pod_sandbox_id == sandbox.id
                && run.metadata.name == container
                && run.state == ContainerState::Running
        };
        runs.iter().find(ours).cloned()
    })
}
