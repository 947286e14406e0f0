//! Services through the node's own packet rules, with upstream's kubectl and a real nginx.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use knarr_e2e::alone;

mod manifests;
use manifests::nginx;

const ADDRESS: &str = "10.43.0.50";

const SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.43.0.50
  ports: [{name: http, port: 80, targetPort: 80}]
";

fn slice(addresses: &[String]) -> String {
    let ready = |ip| format!("- {{addresses: [{ip}], conditions: {{ready: true}}}}\n");
    let rows: String = addresses.iter().map(ready).collect();
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
         metadata: {{name: web-own, labels: {{kubernetes.io/service-name: web}}}}\n\
         ports: [{{name: http, port: 80, protocol: TCP}}]\nendpoints:\n{rows}"
    )
}

/// Waits until the Service answers; the rules follow the API without saying when they have.
fn until_served() {
    let end = Instant::now() + Duration::from_secs(20);
    let to = format!("{ADDRESS}:80").parse().unwrap();
    while TcpStream::connect_timeout(&to, Duration::from_secs(1)).is_err() {
        assert!(Instant::now() < end, "the Service never answered");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_service_without_selector_reaches_its_endpoints() {
    alone(|machine| {
        let up = machine.up();
        machine.import("nginx");
        machine.apply(&nginx(2));
        machine.wait("deployment/web", "jsonpath={.status.readyReplicas}=2");
        machine.apply(SERVICE);
        machine.apply(&slice(&machine.values("pods -l app=web", ".items[*].status.podIP")));
        until_served();
        let pages: BTreeSet<String> = (0..40).map(|_| machine.page(ADDRESS)).collect();
        assert!(pages.len() >= 2, "one endpoint only: {pages:?}");
        drop(up);
        machine.knarr("reset --yes @data @root").success();
        machine.assert_as_before();
    });
}

#[test]
fn the_proxy_runs_alone() {
    alone(|machine| {
        let address = |verb| {
            let args = ["address", verb, "192.0.2.9/32", "dev", "lo"];
            assert!(Command::new("ip").args(args).status().unwrap().success());
        };
        address("add");
        let backend = TcpListener::bind("192.0.2.9:80").unwrap();
        let server = machine.start("server @data @kubeconfig --bind-address 127.0.0.1");
        server.line("Ready", |line| line.starts_with("Ready"));
        let kubeconfig = machine.kubeconfig();
        let line = format!("kube-proxy --kubeconfig {} @root", kubeconfig.display());
        let proxy = machine.start(&line);
        machine.apply(SERVICE);
        machine.apply(&slice(&["192.0.2.9".to_owned()]));
        until_served();
        assert!(get("127.0.0.1:10256", "/healthz").starts_with("HTTP/1.1 200"));
        let metrics = get("127.0.0.1:10249", "/metrics");
        assert!(metrics.contains("\nkubeproxy_sync_proxy_rules_service_changes_total "));
        drop((proxy, server, backend));
        machine.knarr("reset --yes @data @root").success();
        address("del");
        machine.assert_as_before();
    });
}

fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}
