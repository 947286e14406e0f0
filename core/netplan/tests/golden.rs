//! Golden scripts: Services and EndpointSlices in, what changes of the table out.
//!
//! A line of a script changes something (`service NAME SPEC`, `slice NAME SERVICE REST`,
//! `delete service NAME`, `node NAME ZONE ADDRESS…`, `cidr RANGE…`); an empty line ends a step,
//! and its answer are the lines that open with `=> `. `all` shows the whole table. Specs are YAML
//! in one line; `ingress` in a Service's spec goes to its status. `KNARR_BLESS=1` rewrites the
//! answers.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

use bytes::Bytes;
use knarr_netplan::nft::{show_element, show_rule};
use knarr_netplan::{Config, Delta, Key, Nodes, Place, Rules, Services};
use knarr_reconcile::Change;
use serde_json::{Value, json};

#[derive(Default)]
struct World {
    services: Services,
    rules: Rules,
    /// The same without asking what changes.
    learned: Rules,
    changed: BTreeSet<Key>,
    told: String,
}

impl World {
    fn new() -> Self {
        let rules = || Rules::new(Config::default());
        Self { rules: rules(), learned: rules(), ..Self::default() }
    }

    fn apply(&mut self, resource: knarr_api::Resource, object: &Value, gone: bool) {
        let bytes = Bytes::from(serde_json::to_vec(object).unwrap());
        let change = if gone { Change::Deleted(bytes, 1) } else { Change::Put(bytes, 1) };
        self.changed.extend(self.services.apply(resource, &change).unwrap());
    }

    fn line(&mut self, line: &str) {
        let mut words = line.splitn(3, ' ');
        let (verb, name, rest) =
            (words.next().unwrap(), words.next().unwrap_or_default(), words.next());
        let rest = rest.unwrap_or_default();
        let metadata = json!({"namespace": "a", "name": name});
        match verb {
            "service" => {
                let mut spec: Value = serde_saphyr::from_str(rest).unwrap();
                let ingress = spec.as_object_mut().unwrap().remove("ingress");
                let status = json!({"loadBalancer": {"ingress": ingress}});
                let object = json!({"metadata": metadata, "spec": spec, "status": status});
                self.apply(Services::SERVICES, &object, false);
            }
            "slice" => {
                let (service, rest) = rest.split_once(' ').unwrap();
                let mut object: Value = serde_saphyr::from_str(rest).unwrap();
                object["metadata"] = metadata;
                object["metadata"]["labels"] = json!({"kubernetes.io/service-name": service});
                if object.get("ports").is_none() {
                    object["ports"] = json!([{"name": "", "port": 8080, "protocol": "TCP"}]);
                }
                self.apply(Services::SLICES, &object, false);
            }
            "delete" => {
                let service = name == "service";
                let resource = if service { Services::SERVICES } else { Services::SLICES };
                let object = json!({"metadata": {"namespace": "a", "name": rest}});
                self.apply(resource, &object, true);
            }
            "node" => self.node(name, rest),
            "cidr" => {
                let ranges = line.split(' ').skip(1).map(|range| range.parse().unwrap());
                let config = Config { cluster_cidrs: ranges.collect(), ..Config::default() };
                self.rules = Rules::new(config.clone());
                self.learned = Rules::new(config);
            }
            "all" => {
                let everything = self.rules.everything();
                self.tell(&everything);
            }
            other => panic!("no verb {other}"),
        }
    }

    fn node(&mut self, name: &str, rest: &str) {
        let mut words = rest.split(' ');
        let zone = words.next().unwrap().replace('-', "");
        let own: BTreeSet<_> = words.map(|word| word.parse().unwrap()).collect();
        let place = Place { node: name.to_owned(), zone };
        let nodes = Nodes { place, all: own.clone(), own };
        self.learned.learn(Some(nodes.clone()), &self.services, &BTreeSet::new());
        let delta = self.rules.set_nodes(nodes, &self.services);
        self.tell(&delta);
    }

    fn tell(&mut self, delta: &Delta) {
        for element in &delta.remove {
            writeln!(self.told, "=> - {}", show_element(element)).unwrap();
        }
        for chain in &delta.chains {
            let hook = chain.base.map_or(String::new(), |(purpose, hook, priority)| {
                format!(" ({} {} {priority})", purpose.name(), hook.row().1)
            });
            writeln!(self.told, "=> + chain {}{hook}", chain.name).unwrap();
            for rule in &chain.rules {
                writeln!(self.told, "=>     {}", show_rule(rule)).unwrap();
            }
        }
        for element in &delta.add {
            writeln!(self.told, "=> + {}", show_element(element)).unwrap();
        }
    }

    fn step(&mut self) -> String {
        let changed = std::mem::take(&mut self.changed);
        let delta = self.rules.plan(&self.services, &changed);
        self.learned.learn(None, &self.services, &changed);
        assert_eq!(self.learned.everything(), self.rules.everything());
        self.tell(&delta);
        if self.told.is_empty() {
            self.told.push_str("=> nothing\n");
        }
        std::mem::take(&mut self.told)
    }
}

fn run(script: &str) -> String {
    let mut world = World::new();
    let mut out = String::new();
    for step in script.trim_end().split("\n\n") {
        let lines: Vec<&str> = step.lines().filter(|line| !line.starts_with("=> ")).collect();
        for line in lines {
            writeln!(out, "{line}").unwrap();
            if !line.starts_with('#') {
                world.line(line);
            }
        }
        out.push_str(&world.step());
        out.push('\n');
    }
    out.trim_end().to_owned() + "\n"
}

#[test]
fn scripts() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let mut paths: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty());
    for path in paths {
        let script = fs::read_to_string(&path).unwrap();
        let answer = run(&script);
        if env::var("KNARR_BLESS").is_ok() {
            fs::write(&path, answer).unwrap();
        } else {
            assert_eq!(script, answer, "{}: bless with KNARR_BLESS=1", path.display());
        }
    }
}
