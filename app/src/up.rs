//! `knarr up`: a cluster on one machine, control plane and first node in one process. Every node
//! joins over TLS like any other.

use std::time::Instant;

use crate::flags::UpFlags;
use crate::nodes::{Invitation, NodeNetwork};
use crate::paths::NodePaths;
use crate::process::{Drain, Fatal};
use crate::server::{Beside, ControlPlane};
use crate::{agent, nodes};

/// Runs control plane and nodes until told to stop.
pub(crate) async fn run(mut flags: UpFlags, drain: Drain) -> Result<(), Fatal> {
    agent::preflight()?;
    let began = Instant::now();
    println!("Starting the control plane in {} …", flags.server.data_dir.display());
    let mut beside = Beside { domain: flags.node.dns.cluster_domain.clone(), ..Beside::default() };
    let network = match flags.nodes {
        1 => None,
        _ => Some(NodeNetwork::open(&flags).await?),
    };
    if let Some(network) = &network {
        beside.addresses = network.addresses(1);
        flags.server.advertise_address.get_or_insert(beside.addresses[0]);
        if flags.node.node_ip.is_empty() {
            flags.node.node_ip.clone_from(&beside.addresses);
        }
    }
    let mut plane = ControlPlane::start(&flags.server, &beside, drain.clone()).await?;
    plane.start_rings(&flags.server.controllers, &drain);
    println!("Starting {} …", if flags.nodes == 1 { "the node" } else { "the nodes" });
    let ca = plane.authority.certificate().to_owned();
    let node = agent::prepare(&flags.node, &[], &plane.url, &ca, &plane.token).await?;
    let mut names = vec![node.config.name.clone()];
    let mut running = tokio::spawn(node.run(drain.clone()));
    let mut further = Vec::new();
    if let Some(network) = &network {
        let token = plane.token.to_string();
        let invitation = Invitation { server: &plane.url, token: &token, flags: &flags };
        for number in 2..=flags.nodes {
            let name = format!("{}-{number}", names[0]);
            names.push(name.clone());
            further.push(network.start(number, name, &invitation).await?);
        }
    }
    let further = tokio::spawn(nodes::keep(further, drain.clone()));
    let ready = nodes::all_ready(&plane.server, &names);
    let early = tokio::select! {
        result = ready => {
            result?;
            greet(&flags, &plane, &names, began);
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
    further.await.map_err(|error| Fatal(error.to_string()))?;
    plane.finish().await;
    println!("Stopped. Containers keep running; `knarr up` takes them over again.");
    Ok(())
}

fn greet(flags: &UpFlags, plane: &ControlPlane, names: &[String], began: Instant) {
    let seconds = began.elapsed().as_secs_f64();
    let kubeconfig = plane.kubeconfig.display();
    let root = flags.node.root_dir.display();
    let paths = NodePaths::new(&flags.node.root_dir);
    let word = if names.len() == 1 { "node" } else { "nodes" };
    println!("Ready: {word} {}, {} ({seconds:.2} s)", names.join(", "), plane.url);
    println!("kubeconfig: {kubeconfig}");
    println!("images and Pods: {}", paths.state.display());
    println!("\nNext, in another terminal:");
    println!("  export KUBECONFIG={kubeconfig}");
    println!("  knarr images import --root-dir {root} ARCHIVE.tar");
    for name in &names[1..] {
        let root = paths.nodes.join(name);
        println!("  knarr images import --root-dir {} ARCHIVE.tar", root.display());
    }
    println!("  kubectl apply -f examples/nginx.yaml");
    println!("  kubectl get pods -w");
}
