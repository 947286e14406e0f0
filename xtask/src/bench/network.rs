//! Throughput between Pods: on one node, through a Service, between two nodes.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::cluster::{Cluster, Site};
use super::{Outcome, Row};

const ROUNDS: usize = 3;
const SECONDS: &str = "3";
const PORT: u16 = 5201;
const SERVICES: &str = "/api/v1/namespaces/default/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";

/// iperf3's server in a Pod's network; ended when dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// iperf3 inside a Pod's network.
fn iperf(pod: &str) -> Outcome<Command> {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", netns(pod)?.display())).arg("iperf3").stdin(Stdio::null());
    Ok(command)
}

/// The network namespace of the Pod of this name: each knows its own.
fn netns(pod: &str) -> Outcome<PathBuf> {
    for entry in fs::read_dir("/proc")?.flatten() {
        let named = fs::read_to_string(entry.path().join("root/etc/hostname"));
        if named.is_ok_and(|name| name.trim() == pod) {
            return Ok(entry.path().join("ns/net"));
        }
    }
    Err(format!("no process of Pod {pod}").into())
}

/// Gbit/s that arrive.
fn round(from: &str, to: &str) -> Outcome<f64> {
    let output = iperf(from)?.args(["-c", to, "-t", SECONDS, "--json"]).output()?;
    let told: Value = serde_json::from_slice(&output.stdout)?;
    let rate = told.pointer("/end/sum_received/bits_per_second").and_then(Value::as_f64);
    Ok(rate.ok_or(format!("iperf3: {}", told["error"]))? / 1e9)
}

/// A Service whose one endpoint is this address; its own address.
fn service(cluster: &Cluster<'_>, endpoint: &str) -> Outcome<String> {
    let mut requests = cluster.connect()?;
    let service = json!({"metadata": {"name": "b"}, "spec": {"ports": [{"port": PORT}]}});
    let made = requests.send("POST", SERVICES, &service.to_string())?;
    let slice = json!({"metadata": {"name": "b", "labels": {"kubernetes.io/service-name": "b"}},
        "addressType": "IPv4", "ports": [{"name": "", "port": PORT}],
        "endpoints": [{"addresses": [endpoint], "conditions": {"ready": true}}]});
    requests.send("POST", SLICES, &slice.to_string())?;
    Ok(made["spec"]["clusterIP"].as_str().unwrap_or_default().to_owned())
}

pub(super) fn network(site: &Site) -> Outcome<Vec<Row>> {
    site.import()?;
    site.import_into("root/var/lib/knarr/nodes/bench-2")?;
    let cluster = site.up_with("--nodes 2")?;
    let mut pods = cluster.pods()?;
    let mut addresses = Vec::new();
    for (name, node) in [("a", "bench"), ("b", "bench"), ("c", "bench-2")] {
        pods.create_on(name, node)?;
        addresses.push(pods.address(name)?);
    }
    let serve = |pod| -> Outcome<Server> {
        Ok(Server(iperf(pod)?.arg("-s").stdout(Stdio::null()).spawn()?))
    };
    let _servers = [serve("b")?, serve("c")?];
    let address = service(&cluster, &addresses[1])?;
    let (mut near, mut served, mut far) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        near.push(round("a", &addresses[1])?);
        served.push(round("a", &address)?);
        far.push(round("a", &addresses[2])?);
    }
    Ok(vec![
        Row::new("Pod to Pod, one node", "Gbit/s", near),
        Row::new("Pod to Pod, through a Service", "Gbit/s", served),
        Row::new("Pod to Pod, two nodes", "Gbit/s", far),
    ])
}
