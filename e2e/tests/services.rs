//! Services through the node's own packet rules, with upstream's kubectl and a real nginx.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::collections::BTreeSet;
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use knarr_e2e::alone;

mod manifests;
use manifests::nginx;

const ADDRESS: &str = "10.96.0.50";

const SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.0.50
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

/// A machine without a default route has no way to any other network, so not to the Service's.
fn route(verb: &str) {
    let args = ["route", verb, "10.96.0.0/16", "dev", "lo"];
    assert!(Command::new("ip").args(args).status().unwrap().success());
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
        route("add");
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
        route("del");
        machine.knarr("reset --yes @data @root").success();
        machine.assert_as_before();
    });
}
