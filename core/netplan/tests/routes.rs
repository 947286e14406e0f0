//! Golden script: nodes in, routes out. A line is `node NAME INTERNAL,… PODS,…` or `gone NAME`; an
//! empty line ends a step, and its answer are the lines that open with `=> `: the routes of node
//! `a`, which is on the links of the last line `links RANGE…`. `KNARR_BLESS=1` rewrites them.
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::{env, fs};

use bytes::Bytes;
use knarr_netplan::{Cidr, NodeTable};
use knarr_reconcile::Change;
use serde_json::{Value, json};

fn change(line: &str) -> Option<Change> {
    let words: Vec<&str> = line.split(' ').collect();
    let list = |at: usize| words.get(at).into_iter().flat_map(|word| word.split(','));
    let bytes = |object: Value| Bytes::from(serde_json::to_vec(&object).unwrap());
    match words[0] {
        "node" => {
            let mut addresses: Vec<Value> =
                list(2).map(|address| json!({"type": "InternalIP", "address": address})).collect();
            addresses.push(json!({"type": "ExternalIP", "address": "10.0.0.99"}));
            addresses.push(json!({"type": "Hostname", "address": words[1]}));
            let pods: Vec<&str> = list(3).collect();
            let object = json!({"metadata": {"name": words[1]}, "spec": {"podCIDRs": pods},
                "status": {"addresses": addresses}});
            Some(Change::Put(bytes(object), 1))
        }
        "gone" => Some(Change::Deleted(bytes(json!({"metadata": {"name": words[1]}})), 1)),
        "again" => Some(Change::Restarted),
        "synced" => Some(Change::Synced(1)),
        _ => None,
    }
}

fn answer(table: &NodeTable, links: &[Cidr]) -> String {
    let plan = table.routes("a", links);
    let mut text = String::new();
    for route in &plan.routes {
        writeln!(text, "=> {route}").unwrap();
    }
    for unrouted in &plan.unrouted {
        writeln!(text, "=> none: {unrouted}").unwrap();
    }
    text
}

#[test]
fn routes_follow_nodes() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/routes.txt");
    let script = fs::read_to_string(path).unwrap();
    let (mut table, mut links) = (NodeTable::default(), Vec::new());
    let mut told = String::new();
    for step in script.split("\n\n") {
        let lines = step.lines().filter(|line| !line.starts_with("=> ") && !line.is_empty());
        for line in lines {
            writeln!(told, "{line}").unwrap();
            if let Some(ranges) = line.strip_prefix("links ") {
                links = ranges.split(' ').map(|range| range.parse().unwrap()).collect();
            }
            if let Some(change) = change(line) {
                table.apply(&change).unwrap();
            }
        }
        told += &answer(&table, &links);
        told.push('\n');
    }
    let told = format!("{}\n", told.trim_end());
    if env::var_os("KNARR_BLESS").is_some() {
        fs::write(path, &told).unwrap();
    }
    assert_eq!(told, script);
}
