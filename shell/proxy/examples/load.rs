//! Measures a full load and one change, beside `nft -f` of the same elements. Run as root, in a
//! network namespace of its own: `load RUNS`; `cargo xtask bench proxy` does.
#![allow(clippy::print_stdout, reason = "it reports to whoever runs it")]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use knarr_netplan::nft::{Field, show_element};
use knarr_netplan::sets::Shape;
use knarr_netplan::{Config, Key, NodeTable, Rules, Services};
use knarr_proxy::{Proxy, ProxyConfig};
use knarr_reconcile::Change;

const COUNTS: [usize; 2] = [1_000, 10_000];
const CHANGES: usize = 100;

fn put(text: String) -> Change {
    Change::Put(Bytes::from(text), 1)
}

fn service(at: usize) -> Change {
    let (high, low) = (at / 250, at % 250 + 1);
    put(format!(
        r#"{{"kind":"Service","apiVersion":"v1","metadata":{{"namespace":"a","name":"s{at}"}},
        "spec":{{"type":"ClusterIP","clusterIP":"10.96.{high}.{low}","selector":{{"app":"s{at}"}},
        "clusterIPs":["10.96.{high}.{low}"],"ipFamilies":["IPv4"],"sessionAffinity":"None",
        "ports":[{{"port":80,"protocol":"TCP","targetPort":8080}}]}}}}"#
    ))
}

/// Two endpoints; `third` is the last digit of the second one.
fn slice(at: usize, third: usize) -> Change {
    let (high, low) = (at / 250, at % 250 + 1);
    put(format!(
        r#"{{"kind":"EndpointSlice","apiVersion":"discovery.k8s.io/v1",
        "metadata":{{"namespace":"a","name":"s{at}-x",
        "labels":{{"kubernetes.io/service-name":"s{at}"}}}},"addressType":"IPv4","endpoints":[
        {{"addresses":["10.88.{high}.{low}"],"conditions":{{"ready":true}},"nodeName":"n1"}},
        {{"addresses":["10.{third}.{high}.{low}"],"conditions":{{"ready":true}},"nodeName":"n2"}}],
        "ports":[{{"name":"","port":8080,"protocol":"TCP"}}]}}"#
    ))
}

async fn loaded(changes: &[(knarr_api::Resource, Change)]) -> (Proxy, Duration) {
    let mut proxy = Proxy::open(&ProxyConfig {
        node_name: "n1".to_owned(),
        instance: "load".to_owned(),
        cluster_cidrs: Vec::new(),
        node_port_addresses: Vec::new(),
        healthz: None,
        metrics: None,
    })
    .expect("netfilter; run as root");
    let began = Instant::now();
    changes.iter().for_each(|(resource, change)| proxy.take(*resource, change));
    for resource in [Services::SERVICES, Services::SLICES, NodeTable::NODES] {
        proxy.take(resource, &Change::Synced(1));
    }
    proxy.commit().await;
    (proxy, began.elapsed())
}

/// The same elements, as `nft` reads them.
fn script(changes: &[(knarr_api::Resource, Change)]) -> String {
    let mut services = Services::default();
    for (resource, change) in changes {
        services.apply(*resource, change).expect("well formed");
    }
    let mut rules = Rules::new(Config::default());
    let keys: Vec<Key> = services.iter().map(|(key, _)| key.clone()).collect();
    let delta = rules.plan(&services, &keys);
    let mut sets: BTreeMap<_, Vec<String>> = BTreeMap::new();
    for element in &delta.add {
        let text = show_element(element);
        let inner = text.split_once("{ ").expect("it has braces").1.trim_end_matches(" }");
        sets.entry(element.0.set).or_default().push(inner.to_owned());
    }
    let mut out =
        "table inet nft-load {}\ndelete table inet nft-load\ntable inet nft-load {\n".to_owned();
    for (set, elements) in &sets {
        let row = set.row();
        let names = |fields: &[Field]| {
            fields.iter().map(|field| field.name()).collect::<Vec<_>>().join(" . ")
        };
        let (word, data) = match row.shape {
            Shape::Verdicts => ("map", " : verdict".to_owned()),
            Shape::Map => ("map", format!(" : {}", names(&row.data))),
            _ => ("set", String::new()),
        };
        let key = names(&row.key);
        let elements = elements.join(", ");
        let body = format!("type {key}{data}; elements = {{ {elements} }}");
        writeln!(out, "{word} {set} {{ {body} }}").expect("a string takes it");
    }
    // `nft` has no word for the random number as a key of type mark: the chains stay empty.
    for chain in &delta.chains {
        writeln!(out, "chain {} {{ }}", chain.name).expect("a string takes it");
    }
    out + "}\n"
}

fn nft(path: &std::path::Path) -> Duration {
    let began = Instant::now();
    let done = Command::new("nft").arg("-f").arg(path).stdin(Stdio::null()).status();
    assert!(done.expect("nftables is there").success());
    began.elapsed()
}

fn report(name: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!("{name}: p50 {:.1?} p90 {:.1?} of {}", at(50), at(90), times.len());
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let runs = std::env::args().nth(1).and_then(|runs| runs.parse().ok()).unwrap_or(10);
    for count in COUNTS {
        let all: Vec<_> = (0..count)
            .flat_map(|at| [(Services::SERVICES, service(at)), (Services::SLICES, slice(at, 99))])
            .collect();
        let file = std::env::temp_dir().join(format!("knarr-load-{}", std::process::id()));
        std::fs::write(&file, script(&all)).expect("room for the script");
        let (mut loads, mut changes, mut others) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..runs {
            let (mut proxy, took) = loaded(&all).await;
            loads.push(took);
            for change in 0..CHANGES / runs {
                let began = Instant::now();
                proxy.take(Services::SLICES, &slice(count / 2, 100 + change % 100));
                proxy.commit().await;
                changes.push(began.elapsed());
            }
            others.push(nft(&file));
        }
        std::fs::remove_file(&file).expect("it is there");
        report(&format!("load-{count}"), loads);
        report(&format!("change-{count}"), changes);
        report(&format!("nft-{count}"), others);
    }
}
