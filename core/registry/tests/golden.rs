//! Golden scripts: requests go in, answers come out. `KNARR_BLESS=1` rewrites the answers.
//!
//! A script is a list of blocks with an empty line between them. A block is a request
//! (`METHOD /path?query`), its settings (`as: user group…`, `accept: …`, `type: …`,
//! `show: /pointer…`) and its body, YAML unless it begins with `{` or `[`; the answer follows as
//! lines that begin with `=> `. Other blocks: `WATCH /path?query` opens a watch and shows what it
//! begins with, `EVENTS` shows what it has seen since, `WAIT seconds` turns the clock,
//! `BASE /path` names a collection and the object that `TRY path = json; path -` lines vary and
//! create in a dry run, `LIVE /path` the object that they vary and update in a dry run.
#![allow(clippy::unwrap_used)]

mod world;

use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

use knarr_registry::Method;
use serde_json::Value;
use world::{Cluster, Sent};

fn check(file: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
    let script = fs::read_to_string(&path).unwrap();
    let out = play(&script, Cluster::new());
    if env::var_os("KNARR_BLESS").is_some() {
        fs::write(&path, out).unwrap();
        return;
    }
    for (at, (wanted, got)) in script.lines().zip(out.lines()).enumerate() {
        assert_eq!(wanted, got, "{file}:{}; KNARR_BLESS=1 accepts the new output", at + 1);
    }
    assert_eq!(script, out, "{file}");
}

/// The script with the answers that a cluster gives.
fn play(script: &str, cluster: Cluster) -> String {
    let mut player = Player { cluster, base: None };
    let mut out = String::new();
    for block in script.trim_end().split("\n\n") {
        player.play(block, &mut out);
        out.push('\n');
    }
    out.trim_end().to_owned() + "\n"
}

/// What the `TRY` lines vary: path, method, object.
type Base = (String, Method, Value);

struct Player {
    cluster: Cluster,
    base: Option<Base>,
}

impl Player {
    fn play(&mut self, block: &str, out: &mut String) {
        let mut request: Vec<&str> = Vec::new();
        for line in block.lines().filter(|line| !line.starts_with("=> ")) {
            let changes = line.strip_prefix("TRY ");
            if changes.is_some() {
                self.command(&core::mem::take(&mut request), out);
            }
            writeln!(out, "{line}").unwrap();
            match changes {
                Some(changes) => show(&self.vary(changes), out),
                None if line.starts_with('#') => {}
                None => request.push(line),
            }
        }
        self.command(&request, out);
    }

    fn command(&mut self, request: &[&str], out: &mut String) {
        if let [command, rest @ ..] = request {
            show(&self.answer(command, rest), out);
        }
    }

    fn answer(&mut self, command: &str, rest: &[&str]) -> String {
        let (word, argument) = command.split_once(' ').unwrap_or((command, ""));
        match word {
            "WAIT" => {
                self.cluster.wait(argument.parse().unwrap());
                String::new()
            }
            "EVENTS" => self.cluster.events(),
            "BASE" => {
                self.base = Some((argument.into(), Method::Post, yaml(&rest.join("\n"))));
                String::new()
            }
            "LIVE" => {
                let live = self.cluster.get(argument);
                self.base = Some((argument.into(), Method::Put, live));
                String::new()
            }
            word => {
                let sent = read_request(word, argument, rest);
                self.cluster.send(&sent)
            }
        }
    }

    /// Creates or updates the base with some changes, in a dry run.
    fn vary(&mut self, changes: &str) -> String {
        let (path, method, base) = self.base.clone().expect("BASE or LIVE comes before TRY");
        let mut tree = base;
        for change in changes.split("; ") {
            match change.split_once(" = ") {
                Some((path, value)) => *place(&mut tree, path) = yaml(value),
                None => take(&mut tree, change.strip_suffix(" -").expect("path = json, or path -")),
            }
        }
        let mut sent = Sent::new(method, &format!("{path}?dryRun=All"));
        sent.body = tree.to_string();
        sent.show = Some(Vec::new());
        self.cluster.send(&sent)
    }
}

fn show(answer: &str, out: &mut String) {
    answer.lines().for_each(|line| writeln!(out, "=> {line}").unwrap());
}

fn read_request(word: &str, target: &str, rest: &[&str]) -> Sent {
    let method = match word {
        "GET" | "WATCH" => Method::Get,
        "POST" => Method::Post,
        "PUT" => Method::Put,
        "PATCH" => Method::Patch,
        "DELETE" => Method::Delete,
        "OPTIONS" => Method::Options,
        other => panic!("no command {other}"),
    };
    let mut sent = Sent::new(method, target);
    let mut body = Vec::new();
    for line in rest {
        let (key, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.trim();
        match key {
            "as" => sent.user = value.into(),
            "accept" => sent.accept = value.into(),
            "type" => sent.content_type = value.into(),
            "show" => sent.show = Some(value.split_whitespace().map(String::from).collect()),
            _ => body.push(*line),
        }
    }
    let body = body.join("\n");
    let is_json = body.starts_with(['{', '[']) || body.is_empty();
    sent.body = if is_json { body } else { yaml(&body).to_string() };
    sent
}

fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// `spec.containers[0].name`, made where it is not there; a key with dots stands in quotes.
fn steps(path: &str) -> Vec<String> {
    let mut steps = vec![String::new()];
    let mut quoted = false;
    for letter in path.chars() {
        match letter {
            '"' => quoted = !quoted,
            '.' | '[' if !quoted => steps.push(String::new()),
            ']' if !quoted => {}
            letter => steps.last_mut().unwrap().push(letter),
        }
    }
    steps
}

fn place<'a>(tree: &'a mut Value, path: &str) -> &'a mut Value {
    steps(path).into_iter().fold(tree, |at, step| match step.parse::<usize>() {
        Ok(index) if at.is_array() || at.is_null() => {
            if at.is_null() {
                *at = Value::Array(Vec::new());
            }
            let items = at.as_array_mut().unwrap();
            items.resize(items.len().max(index + 1), Value::Null);
            &mut items[index]
        }
        _ => &mut at[step],
    })
}

fn take(tree: &mut Value, path: &str) {
    let mut steps = steps(path);
    let last = steps.pop().unwrap();
    let parent = steps.into_iter().fold(tree, |at, step| match step.parse::<usize>() {
        Ok(index) if at.is_array() => &mut at[index],
        _ => &mut at[step],
    });
    match parent {
        Value::Array(items) => drop(items.remove(last.parse().unwrap())),
        parent => drop(parent.as_object_mut().unwrap().remove(&last)),
    }
}

macro_rules! golden {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            check(concat!(stringify!($name), ".txt"));
        }
    )*};
}

golden! {
    access
    allocation
    cluster
    config
    custom
    deletes
    lists
    objects
    past
    pods
    roles
    services
    streams
    subresources
    watches
    workloads
}

/// A definition of ConfigMaps that are not the built-in ones.
const DECLARED: &str = "
metadata: {name: configmaps.example.com}
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
spec:
  group: example.com
  scope: Namespaced
  names: {plural: configmaps, kind: ConfigMap}
  versions:
    - name: v1
      served: true
      storage: true
      schema:
        openAPIV3Schema:
          type: object
          properties:
            data: {type: object, additionalProperties: {type: string}}
            binaryData: {type: object, additionalProperties: {type: string}}
            immutable: {type: boolean}
";

/// What is told of a kind declared at run time, in the words of the built-in one. A generation
/// that is counted and a type in every item of a list are the differences that there are.
fn as_built_in(answers: &str) -> String {
    let text = answers
        .replace("\\\"", "\"")
        .replace("/apis/example.com/v1/", "/api/v1/")
        .replace("example.com/v1", "v1")
        .replace("configmaps.example.com", "configmaps")
        .replace("ConfigMap.example.com", "ConfigMap")
        .replace("\"group\":\"example.com\",", "")
        .replace("{\"kind\":\"ConfigMap\",\"apiVersion\":\"v1\",\"metadata\"", "{\"metadata\"");
    let mut parts = text.split("\"generation\":");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out += part.trim_start_matches(|c: char| c.is_ascii_digit() || c == ',');
    }
    out
}

/// The suite of ConfigMaps passes unchanged on a kind declared at run time.
#[test]
fn a_declared_kind_is_like_a_built_in_one() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let other = |block: &&str| {
        // Other forms, and pages: their tokens hold storage keys.
        let apart = ["strategic-merge", "as=Table", "limit=", "/api/v1\n", "binaryData"];
        !apart.iter().any(|word| block.contains(word))
    };
    for file in ["objects.txt", "lists.txt", "watches.txt", "deletes.txt"] {
        let script = fs::read_to_string(folder.join(file)).unwrap();
        let blocks: Vec<&str> = script.trim_end().split("\n\n").filter(other).collect();
        let script = blocks.join("\n\n");
        let declared: Vec<String> = blocks
            .iter()
            .map(|block| match block.contains("configmaps") {
                true => block
                    .replace("/api/v1/", "/apis/example.com/v1/")
                    .replace("apiVersion: v1\nkind: ConfigMap", "kind: ConfigMap"),
                false => (*block).to_owned(),
            })
            .collect();
        let cluster = || {
            let mut cluster = Cluster::new();
            cluster.create(&yaml(DECLARED));
            cluster
        };
        let built_in =
            play(&script.replace("apiVersion: v1\nkind: ConfigMap", "kind: ConfigMap"), cluster());
        let declared = play(&declared.join("\n\n"), cluster());
        let (built_in, declared) = (as_built_in(&built_in), as_built_in(&declared));
        for (built_in, declared) in built_in.lines().zip(declared.lines()) {
            assert_eq!(built_in, declared, "{file}");
        }
        assert_eq!(built_in.len(), declared.len(), "{file}");
    }
}

/// Every script is played.
#[test]
fn no_script_is_forgotten() {
    let source = include_str!("golden.rs");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for entry in fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let name = name.strip_suffix(".txt").unwrap();
        assert!(source.lines().any(|line| line.trim() == name), "{name}");
    }
}

fn service(name: &str, spec: &str) -> Sent {
    let mut sent = Sent::new(Method::Post, "/api/v1/namespaces/default/services");
    sent.body = format!(r#"{{"metadata":{{"name":"{name}"}},"spec":{spec}}}"#);
    sent
}

#[test]
fn two_that_choose_the_same_address_and_port_get_different_ones() {
    let mut cluster = Cluster::new();
    let spec = r#"{"type":"NodePort","ports":[{"port":80}]}"#;
    let [a, b] = cluster.race(&service("a", spec), &service("b", spec));
    assert_eq!((a.0, b.0), (201, 201), "{a:?} {b:?}");
    for field in ["/spec/clusterIP", "/spec/ports/0/nodePort"] {
        assert!(a.1.pointer(field).is_some());
        assert_ne!(a.1.pointer(field), b.1.pointer(field), "{field}");
    }
}

#[test]
fn two_that_ask_for_the_same_address_or_port_do_not_both_get_it() {
    for (spec, why) in [
        (r#"{"clusterIP":"10.96.0.70","ports":[{"port":80}]}"#, "provided IP is already allocated"),
        (
            r#"{"type":"NodePort","ports":[{"port":80,"nodePort":30080}]}"#,
            "provided port is already allocated",
        ),
    ] {
        let mut cluster = Cluster::new();
        let [a, b] = cluster.race(&service("a", spec), &service("b", spec));
        assert_eq!((a.0, b.0), (422, 201), "{a:?} {b:?}");
        assert!(a.1["message"].as_str().unwrap().contains(why), "{a:?}");
    }
}

/// A cluster of both families.
fn dual_stack() -> Cluster {
    let mut cluster = Cluster::new();
    cluster.create(&serde_json::json!({"apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR", "metadata": {"name": "six"}, "spec": {"cidrs": ["fd00:96::/112"]}}));
    cluster
}

#[test]
fn a_second_address_is_nobody_elses() {
    let mut cluster = dual_stack();
    let [a, b] =
        cluster.race(&service("a", &both("10.96.0.80")), &service("b", &both("10.96.0.81")));
    assert_eq!((a.0, b.0), (422, 201), "{a:?} {b:?}");
}

fn both(first: &str) -> String {
    format!(
        r#"{{"ipFamilyPolicy":"RequireDualStack","clusterIP":"{first}",
        "clusterIPs":["{first}","fd00:96::80"],"ports":[{{"port":80}}]}}"#
    )
}

#[test]
fn a_second_address_that_is_lost_to_another_is_chosen_anew() {
    let mut cluster = dual_stack();
    let spec = r#"{"ipFamilyPolicy":"RequireDualStack","ports":[{"port":80}]}"#;
    let [a, b] = cluster.race(&service("a", spec), &service("b", spec));
    assert_eq!((a.0, b.0), (201, 201), "{a:?} {b:?}");
    for at in [0, 1] {
        let field = format!("/spec/clusterIPs/{at}");
        assert!(a.1.pointer(&field).is_some());
        assert_ne!(a.1.pointer(&field), b.1.pointer(&field), "{field}");
    }
}
