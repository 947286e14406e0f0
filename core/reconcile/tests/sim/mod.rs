//! A cluster in memory for golden scripts: it takes writes as the API server does, feeds the
//! engine, and prints every plan.
//!
//! A script is plain text: commands, each with the YAML documents that follow it, and below a line
//! `---- ` what came of it. `KNARR_BLESS=1` writes the answers anew.
#![allow(dead_code, reason = "not every test file uses all of it")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use jiff::{SignedDuration, Timestamp};
use knarr_api::{ObjectKey, Resource};
use knarr_reconcile::{
    Change, Config, Controller, Engine, Job, KindRow, Outcome, Patch, Plan, Write, Written,
};
use serde_json::{Value, json};

/// Kinds that scripts may use: apiVersion, kind, plural, namespaced.
const KINDS: [(&str, &str, &str, bool); 18] = [
    ("v1", "Namespace", "namespaces", false),
    ("v1", "Node", "nodes", false),
    ("v1", "Pod", "pods", true),
    ("v1", "Secret", "secrets", true),
    ("v1", "ConfigMap", "configmaps", true),
    ("v1", "ServiceAccount", "serviceaccounts", true),
    ("v1", "ReplicationController", "replicationcontrollers", true),
    ("apps/v1", "ReplicaSet", "replicasets", true),
    ("apps/v1", "Deployment", "deployments", true),
    ("certificates.k8s.io/v1", "CertificateSigningRequest", "certificatesigningrequests", false),
    ("coordination.k8s.io/v1", "Lease", "leases", true),
    ("scheduling.k8s.io/v1", "PriorityClass", "priorityclasses", false),
    ("storage.k8s.io/v1", "CSINode", "csinodes", false),
    ("v1", "Service", "services", true),
    ("v1", "Endpoints", "endpoints", true),
    ("discovery.k8s.io/v1", "EndpointSlice", "endpointslices", true),
    ("networking.k8s.io/v1", "ServiceCIDR", "servicecidrs", false),
    ("networking.k8s.io/v1", "IPAddress", "ipaddresses", false),
];

pub fn kinds() -> Vec<KindRow> {
    let row =
        |&(api_version, kind, plural, namespaced): &(&'static str, &str, &'static str, bool)| {
            let resource = Resource::new(api_version, plural);
            KindRow { kind: kind.to_owned(), resource, namespaced }
        };
    KINDS.iter().map(row).collect()
}

pub fn resource_of(tree: &Value) -> Resource {
    // Events are met by their own controller only, not by those that walk every kind.
    let all = KINDS.iter().chain(&[("v1", "Event", "events", true)]);
    let mut all = all.filter(|(v, k, ..)| tree["apiVersion"] == *v && tree["kind"] == *k);
    let found = all.next();
    let (api_version, _, plural, _) = found.unwrap_or_else(|| panic!("unknown kind in {tree}"));
    Resource::new(api_version, plural)
}

/// The cluster.
pub struct Sim {
    pub engine: Engine,
    pub objects: BTreeMap<(Resource, ObjectKey), (Value, u64)>,
    pub now: Timestamp,
    pub revision: u64,
    uids: u64,
    seed: u64,
    /// Creations that are refused, by resource.
    pub refuse: Option<(Resource, String)>,
    pub log: String,
}

pub fn key_of(tree: &Value) -> ObjectKey {
    let word = |key: &str| tree["metadata"][key].as_str().unwrap_or_default().to_owned();
    ObjectKey { namespace: word("namespace"), name: word("name") }
}

impl Sim {
    pub fn new(controllers: Vec<Controller>) -> Self {
        let config = Config {
            root_ca: "CA".into(),
            cluster_cidrs: vec!["10.244.0.0/16".into()],
            kinds: kinds(),
            node_monitor_grace_period: None,
        };
        let mut engine = Engine::new(controllers, config);
        for resource in engine.resources() {
            engine.handle(resource, &Change::Synced(1));
        }
        Self {
            engine,
            objects: BTreeMap::new(),
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
            revision: 1,
            uids: 0,
            seed: 0,
            refuse: None,
            log: String::new(),
        }
    }

    pub fn stamp(&self) -> String {
        self.now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    }

    /// Stores an object (as anybody might) and tells the engine.
    pub fn put(&mut self, mut tree: Value) -> u64 {
        let (resource, key) = (resource_of(&tree), key_of(&tree));
        let old = self.objects.get(&(resource, key.clone())).map(|(tree, _)| tree.clone());
        let now = self.stamp();
        let metadata = &mut tree["metadata"];
        metadata.as_object_mut().unwrap().remove("resourceVersion");
        match &old {
            Some(old) => {
                for field in ["uid", "creationTimestamp", "generation"] {
                    metadata[field] = old["metadata"][field].clone();
                }
                if old["spec"] != tree["spec"] {
                    let generation = old["metadata"]["generation"].as_i64().unwrap_or(0);
                    tree["metadata"]["generation"] = (generation + 1).into();
                }
            }
            None => {
                self.uids += 1;
                if metadata["uid"].is_null() {
                    metadata["uid"] = format!("uid-{}", self.uids).into();
                }
                if metadata["creationTimestamp"].is_null() {
                    metadata["creationTimestamp"] = now.into();
                }
                metadata["generation"] = 1.into();
            }
        }
        if old.as_ref() == Some(&tree) {
            return self.revision;
        }
        let finalizers = tree["metadata"]["finalizers"].as_array().is_none_or(Vec::is_empty);
        if finalizers
            && tree["metadata"].get("deletionTimestamp").is_some()
            && resource.plural != "pods"
            && resource.plural != "namespaces"
        {
            return self.remove(resource, &key);
        }
        self.revision += 1;
        let bytes = serde_json::to_vec(&tree).unwrap();
        self.objects.insert((resource, key), (tree, self.revision));
        self.engine.handle(resource, &Change::Put(bytes.into(), self.revision));
        self.revision
    }

    pub fn remove(&mut self, resource: Resource, key: &ObjectKey) -> u64 {
        let (tree, _) = self.objects.remove(&(resource, key.clone())).expect("it exists");
        self.revision += 1;
        let bytes = serde_json::to_vec(&tree).unwrap();
        self.engine.handle(resource, &Change::Deleted(bytes.into(), self.revision));
        self.revision
    }

    pub fn get(&self, resource: Resource, key: &ObjectKey) -> Option<&Value> {
        self.objects.get(&(resource, key.clone())).map(|(tree, _)| tree)
    }

    pub fn all(&self, plural: &str) -> Vec<Value> {
        let objects = self.objects.iter().filter(|((r, _), _)| r.plural == plural);
        objects.map(|(_, (tree, _))| tree.clone()).collect()
    }

    /// Deletes as the API server does: finalizers and grace only mark the object.
    pub fn delete(&mut self, resource: Resource, key: &ObjectKey, options: &Value) -> u64 {
        let mut tree = self.get(resource, key).expect("it exists").clone();
        let finalizer = match options["propagationPolicy"].as_str() {
            Some("Foreground") => Some("foregroundDeletion"),
            Some("Orphan") => Some("orphan"),
            _ => None,
        };
        if let Some(finalizer) = finalizer {
            let mut list = tree["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
            list.push(finalizer.into());
            tree["metadata"]["finalizers"] = list.into();
        }
        let held = tree["metadata"]["finalizers"].as_array().is_some_and(|list| !list.is_empty())
            || resource.plural == "namespaces"
            || (resource.plural == "pods" && tree["spec"]["nodeName"].is_string());
        if !held || options["gracePeriodSeconds"] == 0 {
            return self.remove(resource, key);
        }
        tree["metadata"]["deletionTimestamp"] = self.stamp().into();
        self.put(tree)
    }

    fn bind(&mut self, resource: Resource, object: &ObjectKey, body: &Value) -> u64 {
        let mut tree = self.get(resource, object).expect("bound Pods exist").clone();
        tree["spec"]["nodeName"] = body["target"]["name"].clone();
        self.put(tree)
    }

    /// Puts an object, or only the part of it that a subresource is.
    fn replace(
        &mut self,
        resource: Resource,
        object: &ObjectKey,
        subresource: &str,
        body: &Value,
    ) -> Result<u64, Option<String>> {
        let (live, revision) = self.objects[&(resource, object.clone())].clone();
        let sent = body["metadata"]["resourceVersion"].as_str();
        if sent != Some(revision.to_string().as_str()) {
            return Err(None);
        }
        let mut tree = match subresource {
            "" => body.clone(),
            _ => live.clone(),
        };
        match subresource {
            "" => tree["status"] = live["status"].clone(),
            "finalize" => tree["spec"] = body["spec"].clone(),
            _ => tree["status"] = body["status"].clone(),
        }
        let emptied = subresource == "finalize"
            && tree["spec"]["finalizers"].as_array().is_none_or(Vec::is_empty);
        Ok(if emptied { self.remove(resource, object) } else { self.put(tree) })
    }

    /// Carries out one write.
    fn write(&mut self, write: &Write) -> Result<Option<Written>, Option<String>> {
        let resource = write.resource();
        let revision = match write {
            Write::Create { namespace, object, .. } => {
                if let Some((refused, why)) = &self.refuse
                    && *refused == resource
                {
                    return Err(Some(why.clone()));
                }
                let mut object = object.clone();
                if !namespace.is_empty() {
                    object["metadata"]["namespace"] = namespace.as_str().into();
                }
                assert!(self.get(resource, &key_of(&object)).is_none(), "exists: {object}");
                self.put(object)
            }
            Write::Patch { object, kind, body, subresource, .. } => {
                let Some(tree) = self.get(resource, object) else {
                    return Err(Some("not found".into()));
                };
                let mut tree = tree.clone();
                let before = tree.clone();
                patch(&mut tree, body, *kind == Patch::Strategic);
                for field in ["uid", "resourceVersion"] {
                    let current = match field {
                        "uid" => before["metadata"]["uid"].clone(),
                        _ => self.objects[&(resource, object.clone())].1.to_string().into(),
                    };
                    let wanted = &body["metadata"][field];
                    if !wanted.is_null() && *wanted != current {
                        return Err(None);
                    }
                }
                if *subresource == "status" {
                    let status = tree["status"].clone();
                    tree = before;
                    tree["status"] = status;
                }
                self.put(tree)
            }
            Write::Post { object, body, .. } => self.bind(resource, object, body),
            Write::Put { object, subresource, body, .. } => {
                self.replace(resource, object, subresource, body)?
            }
            Write::Sign { object, .. } => {
                let mut tree = self.get(resource, object).expect("it exists").clone();
                tree["status"]["certificate"] = "CERTIFICATE".into();
                self.put(tree)
            }
            Write::Absent { object, uid, .. } => {
                let found = self.get(resource, object);
                let found = found
                    .is_some_and(|tree| uid.is_empty() || tree["metadata"]["uid"] == uid.as_str());
                return if found { Err(None) } else { Ok(None) };
            }
            Write::Empty { namespace, .. } => {
                let mut keys = self.objects.keys();
                let found = keys.any(|(r, k)| *r == resource && k.namespace == *namespace);
                return if found { Err(None) } else { Ok(None) };
            }
            Write::Delete { object, options, .. } => {
                if self.get(resource, object).is_none() {
                    return Ok(None);
                }
                self.delete(resource, object, options)
            }
        };
        Ok(Some(Written::At(resource, revision)))
    }

    /// Carries out a plan.
    pub fn carry_out(&mut self, job: &Job) -> Outcome {
        let mut written = Vec::new();
        for stage in &job.plan.stages {
            let results: Vec<_> = stage.iter().map(|write| self.write(write)).collect();
            let mut failed = None;
            for result in results {
                match result {
                    Ok(mark) => written.extend(mark),
                    Err(why) => failed = Some(why),
                }
            }
            if let Some(why) = failed {
                if let (Some(why), Some(event)) = (&why, &job.plan.on_refusal) {
                    let (kind, reason, message) = (event.kind, event.reason, &event.message);
                    writeln!(self.log, "  refused: {kind:?} {reason}: {message}{why}").unwrap();
                }
                return Outcome::Failed(written, why);
            }
        }
        Outcome::Done(written)
    }

    /// Runs one job, if one is ready.
    pub fn step(&mut self) -> Option<Job> {
        self.seed += 1000;
        let job = self.engine.poll(self.now, self.seed)?;
        let name = self.engine.controllers()[job.controller].name;
        let key = match job.key.object.name.as_str() {
            "" => "everything".to_owned(),
            _ => job.key.object.to_string(),
        };
        writeln!(self.log, "{name} {key}").unwrap();
        print(&job.plan, &mut self.log);
        let outcome = self.carry_out(&job);
        self.engine.finish(&job, outcome, self.now);
        Some(job)
    }

    /// Runs until nothing is ready.
    pub fn settle(&mut self) {
        let mut left = 200;
        while self.step().is_some() {
            left -= 1;
            assert!(left > 0, "it never settles:\n{}", self.log);
        }
    }

    /// Lets time pass.
    pub fn wait(&mut self, seconds: i64) {
        self.now = self.now.checked_add(SignedDuration::from_secs(seconds)).unwrap();
    }

    /// Plays the nodes: Pods on their way out are gone, others run.
    pub fn nodes_work(&mut self, most: usize) {
        let mut left = most;
        for mut pod in self.all("pods") {
            let key = key_of(&pod);
            if pod["metadata"].get("deletionTimestamp").is_some() {
                self.remove(Resource::new("v1", "pods"), &key);
            } else if pod["status"]["phase"] != "Running" && left > 0 {
                left -= 1;
                if pod["spec"]["nodeName"].is_null() {
                    pod["spec"]["nodeName"] = "n1".into();
                }
                pod["status"] = json!({"phase": "Running", "conditions": [{"type": "Ready",
                    "status": "True", "lastTransitionTime": self.stamp()}]});
                self.put(pod);
            }
        }
    }
}

fn patch(target: &mut Value, change: &Value, strategic: bool) {
    let Value::Object(change) = change else {
        *target = change.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in change {
        match (key.as_str(), value) {
            (_, Value::Null) => drop(target.as_object_mut().map(|object| object.remove(key))),
            ("ownerReferences" | "conditions", Value::Array(items)) if strategic => {
                let by = if key == "conditions" { "type" } else { "uid" };
                let mut list = target[key].as_array().cloned().unwrap_or_default();
                for item in items {
                    let at = list.iter().position(|old| old[by] == item[by]);
                    match (at, item["$patch"] == "delete") {
                        (Some(at), true) => drop(list.remove(at)),
                        (Some(at), false) => patch(&mut list[at], item, false),
                        (None, true) => {}
                        (None, false) => list.push(item.clone()),
                    }
                }
                target[key] = list.into();
            }
            (_, value) => patch(&mut target[key], value, strategic),
        }
    }
}

/// Prints a plan compactly; of a whole object put back only the parts that a plan may change.
pub fn print(plan: &Plan, out: &mut String) {
    for (number, stage) in plan.stages.iter().enumerate() {
        for write in stage {
            let resource = write.resource();
            let line = match write {
                Write::Create { namespace, object, .. } => {
                    let mut object = object.clone();
                    let name = object["metadata"]["name"].take();
                    let name = name.as_str().unwrap_or_default();
                    let metadata = object["metadata"].as_object_mut().unwrap();
                    metadata.retain(|key, _| key != "name" && key != "namespace");
                    object.as_object_mut().unwrap().retain(|k, _| k != "apiVersion" && k != "kind");
                    format!("create {resource} {} {object}", ObjectKey::new(namespace, name))
                }
                Write::Patch { object, subresource, body, kind, .. } => {
                    format!("patch {resource} {object} {subresource} {kind:?} {body}")
                }
                Write::Post { object, subresource, body, .. } => {
                    format!("post {resource} {object} {subresource} {body}")
                }
                Write::Put { object, subresource, body, .. } => {
                    let shown = match *subresource {
                        "status" | "approval" => body["status"].clone(),
                        "finalize" => body["spec"].clone(),
                        _ => {
                            let mut shown = json!({"annotations": body["metadata"]["annotations"]});
                            shown["replicas"] = body["spec"]["replicas"].clone();
                            shown["finalizers"] = body["metadata"]["finalizers"].clone();
                            shown["ownerReferences"] = body["metadata"]["ownerReferences"].clone();
                            for field in ["subsets", "endpoints", "ports"] {
                                shown[field] = body[field].clone();
                            }
                            shown.as_object_mut().unwrap().retain(|k, v| {
                                !v.is_null() && (k != "ownerReferences" || shown_owners(resource))
                            });
                            shown
                        }
                    };
                    format!("put {resource} {object} {subresource} {shown}")
                }
                Write::Absent { object, uid, .. } => format!("absent? {resource} {object} {uid}"),
                Write::Empty { namespace, .. } => format!("empty? {resource} {namespace}"),
                Write::Sign { object, usage, seconds, .. } => {
                    format!("sign {object} {usage:?} {seconds}s")
                }
                Write::Delete { object, options, .. } => {
                    format!("delete {resource} {object} {options}")
                }
            };
            writeln!(out, "  {number}: {line}").unwrap();
        }
    }
    for event in &plan.events {
        writeln!(out, "  event: {:?} {}: {}", event.kind, event.reason, event.message).unwrap();
    }
    if let Some(wait) = plan.retry_after {
        writeln!(out, "  again after {}s", wait.as_secs_f64()).unwrap();
    }
}

fn shown_owners(resource: Resource) -> bool {
    resource.plural != "replicasets"
}

/// Plays every script of a folder and compares what came of it.
pub fn play_all(folder: &str, controllers: fn(&str) -> Vec<Controller>) {
    let mut wrong = Vec::new();
    let mut paths: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "no scripts in {folder}");
    for path in paths {
        let text = std::fs::read_to_string(&path).unwrap();
        let played = play(&text, controllers);
        if std::env::var_os("KNARR_BLESS").is_some() {
            std::fs::write(&path, &played).unwrap();
        } else if played != text {
            wrong.push(difference(&path, &text, &played));
        }
    }
    assert!(wrong.is_empty(), "{}\n(KNARR_BLESS=1 takes the new answers)", wrong.join("\n"));
}

fn difference(path: &Path, old: &str, new: &str) -> String {
    let same = old.lines().zip(new.lines()).take_while(|(old, new)| old == new).count();
    let line = |text: &str| text.lines().nth(same).unwrap_or("(end)").to_owned();
    format!("{}:{}\n  - {}\n  + {}", path.display(), same + 1, line(old), line(new))
}

/// Plays one script; what it answers is the script with its answers.
fn play(text: &str, controllers: fn(&str) -> Vec<Controller>) -> String {
    let mut out = String::new();
    let mut sim: Option<Sim> = None;
    for block in text.split("\n\n") {
        let block = block.trim_matches('\n');
        let input: Vec<&str> = block.lines().take_while(|line| *line != "----").collect();
        let commands = input.join("\n");
        writeln!(out, "{commands}").unwrap();
        let Some(first) = input.iter().find(|line| !line.starts_with('#')) else {
            out.push('\n');
            continue;
        };
        if let Some(names) = first.strip_prefix("controllers ") {
            let wanted: Vec<&str> = names.split(' ').collect();
            let rows = wanted.iter().flat_map(|name| controllers(name)).collect();
            sim = Some(Sim::new(rows));
            out.push('\n');
            continue;
        }
        let sim = sim.as_mut().expect("a script begins with `controllers`");
        let body: Vec<&str> = input.iter().filter(|l| !l.starts_with('#')).copied().collect();
        command(sim, body[0], &body[1..].join("\n"));
        let log = std::mem::take(&mut sim.log);
        if !log.is_empty() {
            writeln!(out, "----\n{}", log.trim_end()).unwrap();
        }
        out.push('\n');
    }
    format!("{}\n", out.trim_end())
}

fn documents(yaml: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"))
}

/// One command of a script; after each the controllers run until nothing is ready.
fn command(sim: &mut Sim, line: &str, yaml: &str) {
    let words: Vec<&str> = line.split(' ').collect();
    let named = |sim: &Sim, kind: &str, name: &str| {
        let (namespace, name) = name.split_once('/').unwrap_or(("", name));
        let key = ObjectKey::new(namespace, name);
        let found = sim.objects.keys().find(|(r, k)| r.plural == kind && *k == key);
        found.unwrap_or_else(|| panic!("no {kind} {key}")).clone()
    };
    match words.as_slice() {
        ["put"] => {
            for tree in documents(yaml) {
                sim.put(tree);
            }
        }
        ["patch", kind, name] => {
            let at = named(sim, kind, name);
            let mut tree = sim.objects[&at].0.clone();
            for change in documents(yaml) {
                patch(&mut tree, &change, false);
            }
            sim.put(tree);
        }
        ["delete", kind, name, rest @ ..] => {
            let (resource, key) = named(sim, kind, name);
            let policy = rest.first().copied().unwrap_or("Background");
            sim.delete(resource, &key, &json!({"propagationPolicy": policy}));
        }
        ["gone", kind, name] => {
            let (resource, key) = named(sim, kind, name);
            sim.remove(resource, &key);
        }
        ["nodes", "work", most @ ..] => {
            sim.nodes_work(most.first().map_or(usize::MAX, |most| most.parse().unwrap()));
        }
        ["wait", seconds] => sim.wait(seconds.parse().unwrap()),
        ["refuse", plural, why @ ..] => {
            let kinds = kinds();
            let row = kinds.iter().find(|row| row.resource.plural == *plural).unwrap();
            sim.refuse = Some((row.resource, why.join(" ")));
        }
        ["accept"] => sim.refuse = None,
        ["show", kind] => {
            for tree in sim.all(kind) {
                let line = summary(&tree);
                writeln!(sim.log, "{line}").unwrap();
            }
            return;
        }
        _ => panic!("no such command: {line}"),
    }
    sim.settle();
}

fn summary(tree: &Value) -> String {
    let key = key_of(tree);
    let mut line = format!("{key}");
    for (name, pointer) in [
        ("replicas", "/spec/replicas"),
        ("node", "/spec/nodeName"),
        ("phase", "/status/phase"),
        ("cidr", "/spec/podCIDR"),
        ("taints", "/spec/taints"),
        ("deleting", "/metadata/deletionTimestamp"),
        ("finalizers", "/metadata/finalizers"),
    ] {
        if let Some(value) = tree.pointer(pointer).filter(|value| !value.is_null()) {
            write!(line, " {name}={value}").unwrap();
        }
    }
    line
}
