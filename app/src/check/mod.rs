//! `knarr check network`: the nine principles of the network model, tried with Pods on every node.
//!
//! The Pods do the trying: servers tell who asks them, clients ask everybody and write down what
//! they heard; [`judge`] says what that means. All is in a namespace of its own, which is removed
//! however the check ends.

mod judge;
mod objects;

use std::collections::BTreeMap;
use std::time::Duration;

use knarr_api::{ObjectKey, Reason, Resource};
use knarr_client::{Client, EventType, StreamItem};
use knarr_pki::Kubeconfig;
use knarr_registry::Method;
use serde_json::{Value, json};

use self::judge::{Findings, NodeFacts, Probe, Seen};
use crate::flags::NetworkFlags;
use crate::process::{Drain, Fatal};

const NAMESPACES: Resource = Resource::new("v1", "namespaces");
const NODES: Resource = Resource::new("v1", "nodes");
const PODS: Resource = Resource::new("v1", "pods");
const SERVICES: Resource = Resource::new("v1", "services");
const ACCOUNTS: Resource = Resource::new("v1", "serviceaccounts");
/// What is asked for where no node has anything like it.
const IMAGE: &str = "docker.io/library/busybox:stable";
/// For the removal of what the check made.
const CLEANUP: Duration = Duration::from_secs(60);

/// Tries the principles; `Err` unless all hold.
pub(crate) async fn run(flags: NetworkFlags, mut drain: Drain) -> Result<(), Fatal> {
    let client = Client::connect(&Kubeconfig::read(&flags.kubeconfig)?)?;
    let check = Check {
        namespace: format!("knarr-check-{:x}", std::process::id()),
        client,
        patience: Duration::from_secs(flags.timeout),
    };
    let result = tokio::select! {
        result = check.run(flags.image) => result,
        () = async { drop(drain.wait_for(|drain| *drain).await) } => {
            Err(Fatal("interrupted".to_owned()))
        }
    };
    say("removing what the check made …");
    check.clean_up().await?;
    result
}

fn say(text: &str) {
    eprintln!("{text}");
}

struct Check {
    client: Client,
    namespace: String,
    patience: Duration,
}

impl Check {
    async fn run(&self, image: Option<String>) -> Result<(), Fatal> {
        let list = self.client.list(NODES, "", "").await?;
        let nodes: Vec<NodeFacts> = items(&list).map(NodeFacts::read).collect();
        let image = image.unwrap_or_else(|| common_image(&list));
        let mut findings = Findings { nodes, ..Findings::default() };
        say(&format!(
            "{} nodes, image {image}, namespace {}",
            findings.nodes.len(),
            self.namespace
        ));
        self.begin().await?;
        self.serve(&image, &mut findings).await?;
        self.ask(&image, &mut findings).await?;
        report(&findings)
    }

    /// Makes the namespace and waits for what Pods need in it.
    async fn begin(&self) -> Result<(), Fatal> {
        let object = json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": self.namespace}});
        self.client.create(NAMESPACES, "", &object).await?;
        let there = |all: &BTreeMap<String, Value>| Ok(all.contains_key("default"));
        self.until(ACCOUNTS, "a service account", there).await.map(drop)
    }

    /// Starts the Pods that tell who asks.
    async fn serve(&self, image: &str, findings: &mut Findings) -> Result<(), Fatal> {
        say("starting Pods that serve on every node …");
        let nodes: Vec<&NodeFacts> = findings.usable().collect();
        for (number, node) in nodes.iter().enumerate() {
            self.create(PODS, &objects::server(number, &node.name, image)).await?;
            self.create(PODS, &objects::host_server(number, &node.name, image)).await?;
        }
        let service = self.create(SERVICES, &objects::service()).await?;
        let wanted = 2 * nodes.len();
        let pods = self.until(PODS, "the Pods to be ready", |pods| all_in(pods, wanted, ready));
        for pod in pods.await?.values() {
            match pod.pointer("/spec/hostNetwork") {
                Some(Value::Bool(true)) => {}
                _ => findings.servers.push(Probe::read(pod)),
            }
        }
        let ips = service.pointer("/spec/clusterIPs").and_then(Value::as_array);
        let ips = ips.into_iter().flatten().filter_map(Value::as_str);
        findings.services = ips.map(str::to_owned).collect();
        let port = service.pointer("/spec/ports/0/nodePort").and_then(Value::as_u64);
        findings.node_port = port.and_then(|port| port.try_into().ok()).unwrap_or_default();
        Ok(())
    }

    /// Runs the Pods that ask everybody.
    async fn ask(&self, image: &str, findings: &mut Findings) -> Result<(), Fatal> {
        say("asking everybody from every node, from Pods and from the node itself …");
        let targets = findings.targets();
        let nodes: Vec<String> = findings.usable().map(|node| node.name.clone()).collect();
        for (number, node) in nodes.iter().enumerate() {
            for place in [objects::Place::Pod, objects::Place::Node] {
                let pod = objects::client(number, (node, image), place, &targets);
                self.create(PODS, &pod).await?;
            }
        }
        let wanted = 2 * nodes.len();
        let pods = self.until(PODS, "the answers", |pods| {
            let clients = pods.iter().filter(|(name, _)| name.contains("client"));
            let clients = clients.map(|(name, pod)| (name.clone(), pod.clone())).collect();
            all_in(&clients, wanted, |pod| text(pod, "/status/phase") == "Succeeded")
        });
        for (name, pod) in pods.await?.iter().filter(|(name, _)| name.contains("client")) {
            let path = PODS.object_path(&ObjectKey::new(&self.namespace, name), "log");
            let log = self.client.send(Method::Get, &path, "", bytes::Bytes::new()).await?;
            let seen = Seen::read(&String::from_utf8_lossy(&log));
            findings.clients.push((Probe::read(pod), seen));
        }
        Ok(())
    }

    async fn create(&self, resource: Resource, object: &Value) -> Result<Value, Fatal> {
        Ok(self.client.create(resource, &self.namespace, object).await?)
    }

    /// Follows the namespace's objects, by name, until they are as wanted.
    async fn until(
        &self,
        resource: Resource,
        what: &str,
        wanted: impl Fn(&BTreeMap<String, Value>) -> Result<bool, Fatal>,
    ) -> Result<BTreeMap<String, Value>, Fatal> {
        let mut all = BTreeMap::new();
        let follow = async {
            loop {
                all.clear();
                let mut watch = self.client.watch(resource, &self.namespace, "").await?;
                while let Ok(item) = watch.next().await {
                    let StreamItem::Event { event, object, .. } = item else { continue };
                    let object: Value = serde_json::from_slice(&object).unwrap_or_default();
                    let name = text(&object, "/metadata/name").to_owned();
                    match event {
                        EventType::Deleted => drop(all.remove(&name)),
                        _ => drop(all.insert(name, object)),
                    }
                    if wanted(&all)? {
                        return Ok::<(), Fatal>(());
                    }
                }
            }
        };
        match tokio::time::timeout(self.patience, follow).await {
            Ok(result) => result?,
            Err(_) => return Err(Fatal(format!("waited in vain for {what}: {}", states(&all)))),
        }
        Ok(all)
    }

    /// Removes the namespace and waits until all of it is gone.
    async fn clean_up(&self) -> Result<(), Fatal> {
        let key = ObjectKey::new("", &self.namespace);
        let gone = async {
            loop {
                match self.client.delete(NAMESPACES, &key, &json!({})).await {
                    Err(error) if error.is(Reason::NotFound) => return Ok(()),
                    Err(error) if !error.is(Reason::Conflict) => return Err(error.into()),
                    _ => tokio::time::sleep(Duration::from_millis(200)).await,
                }
            }
        };
        let late = || Fatal(format!("namespace {} does not go away", self.namespace));
        tokio::time::timeout(CLEANUP, gone).await.unwrap_or_else(|_| Err(late()))
    }
}

/// Prints every principle; `Err` unless all hold.
fn report(findings: &Findings) -> Result<(), Fatal> {
    let mut failed = 0;
    for (name, reasons) in findings.verdicts() {
        println!("{:<6} {name}", if reasons.is_empty() { "ok" } else { "FAILED" });
        reasons.iter().for_each(|why| println!("         {why}"));
        failed += usize::from(!reasons.is_empty());
    }
    let skipped: Vec<&str> =
        findings.nodes.iter().filter(|node| !node.ready).map(|node| node.name.as_str()).collect();
    match (failed, skipped.is_empty()) {
        (0, true) => Ok(()),
        (0, false) => Err(Fatal(format!("not checked, as not ready: {}", skipped.join(", ")))),
        (count, _) => Err(Fatal(format!("{count} of 9 principles do not hold"))),
    }
}

/// Whether that many Pods are so; one that has failed will never be.
fn all_in(
    pods: &BTreeMap<String, Value>,
    wanted: usize,
    so: impl Fn(&Value) -> bool,
) -> Result<bool, Fatal> {
    if let Some(pod) = pods.values().find(|pod| text(pod, "/status/phase") == "Failed") {
        let name = text(pod, "/metadata/name");
        return Err(Fatal(format!("Pod {name} failed: {}", text(pod, "/status/message"))));
    }
    Ok(pods.len() == wanted && pods.values().all(so))
}

fn ready(pod: &Value) -> bool {
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array);
    conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// Why Pods are not as they should be, in a line.
fn states(all: &BTreeMap<String, Value>) -> String {
    let state = |(name, pod): (&String, &Value)| {
        let waiting = pod.pointer("/status/containerStatuses/0/state/waiting/reason");
        let phase = text(pod, "/status/phase");
        format!("{name} {}", waiting.and_then(Value::as_str).unwrap_or(phase))
    };
    all.iter().map(state).collect::<Vec<_>>().join(", ")
}

/// An image with a shell that all nodes have.
fn common_image(nodes: &Value) -> String {
    let names = |node: &Value| -> Vec<String> {
        let images = node.pointer("/status/images").and_then(Value::as_array).cloned();
        let names = images.unwrap_or_default();
        let names = names.iter().flat_map(|image| image["names"].as_array().cloned());
        names.flatten().filter_map(|name| Some(name.as_str()?.to_owned())).collect()
    };
    let mut nodes = items(nodes).map(names);
    let mut common = nodes.next().unwrap_or_default();
    for names in nodes {
        common.retain(|name| names.contains(name));
    }
    let fit = |name: &&String| name.contains("busybox") && !name.contains('@');
    common.iter().find(fit).cloned().unwrap_or(IMAGE.to_owned())
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list["items"].as_array().into_iter().flatten()
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}
