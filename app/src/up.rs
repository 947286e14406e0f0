//! `knarr up`: a cluster of one node, in one process. The node joins over TLS like any other.

use std::time::Instant;

use crate::flags::UpFlags;
use crate::paths::NodePaths;
use crate::process::{Drain, Fatal};
use crate::server::ControlPlane;
use crate::{agent, lifecycle};

/// Runs control plane and node until told to stop.
pub(crate) async fn run(flags: UpFlags, drain: Drain) -> Result<(), Fatal> {
    agent::preflight()?;
    let began = Instant::now();
    println!("Starting the control plane in {} …", flags.server.data_dir.display());
    let mut plane = ControlPlane::start(&flags.server, drain.clone()).await?;
    plane.start_rings(&drain);
    println!("Starting the node …");
    let ca = plane.authority.certificate().to_owned();
    let cidrs = plane.cluster_cidrs.clone();
    let node = agent::prepare(&flags.node, cidrs, &plane.url, &ca, &plane.token).await?;
    let name = node.config.name.clone();
    let mut running = tokio::spawn(node.run(drain.clone()));
    let ready = lifecycle::node_ready(&plane.server, &name);
    let early = tokio::select! {
        result = ready => {
            result?;
            greet(&flags, &plane, &name, began);
            None
        }
        result = &mut running => Some(result),
    };
    let result = match early {
        Some(result) => result,
        None => running.await,
    };
    // A control plane is of no use here without its node; what it acknowledged is durable.
    result.map_err(|error| Fatal(error.to_string()))??;
    plane.finish().await;
    println!("Stopped. Containers keep running; `knarr up` takes them over again.");
    Ok(())
}

fn greet(flags: &UpFlags, plane: &ControlPlane, name: &str, began: Instant) {
    let seconds = began.elapsed().as_secs_f64();
    let kubeconfig = plane.kubeconfig.display();
    let root = flags.node.root_dir.display();
    let paths = NodePaths::new(&flags.node.root_dir);
    println!("Ready: node {name}, {} ({seconds:.2} s)", plane.url);
    println!("kubeconfig: {kubeconfig}");
    println!("images and Pods: {}", paths.state.display());
    println!("\nNext, in another terminal:");
    println!("  export KUBECONFIG={kubeconfig}");
    println!("  knarr images import --root-dir {root} ARCHIVE.tar");
    println!("  kubectl apply -f examples/nginx.yaml");
    println!("  kubectl get pods -w");
}
