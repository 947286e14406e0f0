//! The agent as a whole: what it is made of, and who gets which news.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use knarr_client::{Client, ClientError};
use knarr_cni::Cni;
use knarr_driver::{Scope, reflect};
use knarr_images::{Puller, Store as Images};
use knarr_net::{Network, Pool};
use knarr_oci::cri::PodSandboxMetadata;
use knarr_pki::Signed;
use knarr_podlife::Served;
use knarr_podlife::config::Paths;
use knarr_podlife::image_gc::Policy;
use knarr_podlife::naming::ClusterDns;
use knarr_podlife::services::Services;
use knarr_reconcile::Change;
use knarr_sandbox::{Config, Event, Events, Runtime};
use knarr_typed::{Pod, Typed};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::access::Access;
use crate::refresh::Referred;
use crate::worker::Worker;
use crate::{PODS, image_gc, links, network, report, serve};

/// Watch items waiting for the agent.
const MAX_ITEMS: usize = 256;
/// Events waiting to be recorded; more are dropped.
const MAX_EVENTS: usize = 1024;

/// What a node is told.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The node's name.
    pub name: String,
    /// Tells this instance's links and control groups from others' on the machine; lower-case
    /// letters and digits, at most 4.
    pub instance: String,
    /// Own state: sandboxes, images, addresses.
    pub state_dir: PathBuf,
    /// Pods' folders (`/var/lib/kubelet`).
    pub pods_dir: PathBuf,
    /// Pods' logs (`/var/log/pods`).
    pub logs_dir: PathBuf,
    /// How registries are spoken to: folders with a `hosts.toml`, as containerd has them.
    pub certs_dir: PathBuf,
    /// Networks other than the built-in one.
    pub cni: knarr_cni::Config,
    /// How many images are pulled at a time.
    pub max_parallel_image_pulls: usize,
    /// When images are removed because the disk fills up.
    pub image_gc: Policy,
    /// Where the cluster's names are answered.
    pub cluster_dns: ClusterDns,
    /// Where the node's own resolvers are named.
    pub resolv_conf: PathBuf,
    /// The node's own address.
    pub address: IpAddr,
    /// Its address of the other IP family, where it has one.
    pub second_address: Option<IpAddr>,
    /// Port of the node's server.
    pub port: u16,
    /// Executable and leading arguments of a pod shim.
    pub shim: Vec<String>,
    /// The cluster's CA, PEM: who may call the node's server.
    pub ca: String,
    /// The node server's certificate.
    pub serving: Signed,
    /// What the node reports as its version.
    pub version: String,
}

impl NodeConfig {
    /// The node's addresses, its own family's first, as texts.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = String> {
        [self.address].into_iter().chain(self.second_address).map(|ip| ip.to_string())
    }
}

/// Why an agent cannot work.
#[derive(Debug)]
pub enum AgentError {
    /// The runtime, the image store or the network is of no use here.
    Machine(String),
    /// The API server refuses the node.
    Api(ClientError),
    /// The node's own server cannot listen.
    Listen(u16, std::io::Error),
}

impl std::error::Error for AgentError {}

impl fmt::Display for AgentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Machine(why) => f.write_str(why),
            Self::Api(error) => write!(f, "the API server does not take this node: {error}"),
            Self::Listen(port, error) if error.kind() == std::io::ErrorKind::AddrInUse => write!(
                f,
                "the node's port {port} is taken by another process: stop it, or choose another \
                 --node-port"
            ),
            Self::Listen(port, error) => write!(f, "the node's port {port}: {error}"),
        }
    }
}

fn machine(error: impl fmt::Display) -> AgentError {
    AgentError::Machine(error.to_string())
}

/// What all workers share.
pub(crate) struct Node {
    pub(crate) config: NodeConfig,
    pub(crate) client: Client,
    pub(crate) runtime: Arc<Runtime>,
    pub(crate) images: Arc<Images>,
    pub(crate) puller: Puller,
    /// Who may use which image.
    pub(crate) access: Access,
    /// Places for pulls that run at a time.
    pub(crate) pullers: Semaphore,
    /// There are other images than were reported.
    pub(crate) images_changed: Notify,
    pub(crate) network: Network,
    pub(crate) cni: Cni,
    pub(crate) pool: Mutex<Option<Pool>>,
    pub(crate) memory: i64,
    pub(crate) cpus: i64,
    /// Events on their way to the API server, (namespace, event): no Pod waits for them.
    pub(crate) events: mpsc::Sender<(String, Value)>,
    /// The Services that containers are told of.
    pub(crate) services: watch::Sender<Services>,
    pub(crate) served: watch::Sender<Served>,
    /// ConfigMaps and Secrets of the Pods here.
    pub(crate) referred: Arc<Referred>,
    /// Counts what the runtime told, for whoever waits for a container's end.
    pub(crate) exits: watch::Sender<u64>,
}

impl Node {
    /// Where a Pod's things lie.
    pub(crate) fn paths(&self, pod: &Pod) -> Paths {
        let word = |text: &Option<String>| text.clone().unwrap_or_default();
        let metadata = &pod.metadata;
        let (namespace, name) = (word(&metadata.namespace), word(&metadata.name));
        let uid = word(&metadata.uid);
        Paths {
            pod: self.config.pods_dir.join("pods").join(&uid).display().to_string(),
            logs: self
                .config
                .logs_dir
                .join(format!("{namespace}_{name}_{uid}"))
                .display()
                .to_string(),
            cgroup: format!("/knarr-{}/kubepods", self.config.instance),
        }
    }

    /// Runs a blocking call of the runtime or a store.
    pub(crate) async fn blocking<R: Send + 'static>(
        self: &Arc<Self>,
        call: impl FnOnce(&Self) -> R + Send + 'static,
    ) -> R {
        let node = self.clone();
        tokio::task::spawn_blocking(move || call(&node)).await.expect("blocking calls do not panic")
    }

    pub(crate) fn pool<R>(&self, use_it: impl FnOnce(&mut Option<Pool>) -> R) -> R {
        use_it(&mut self.pool.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A Pod's task.
struct Running {
    pod: watch::Sender<Arc<Pod>>,
    news: Arc<Notify>,
}

/// Runs the agent until `drain` says so. Pods keep running when it ends.
///
/// # Errors
/// [`AgentError`] when it cannot begin.
pub async fn run(
    config: NodeConfig,
    client: Client,
    mut drain: watch::Receiver<bool>,
) -> Result<(), AgentError> {
    let listener = TcpListener::bind((config.address, config.port)).await;
    let listener = listener.map_err(|error| AgentError::Listen(config.port, error))?;
    let images = Images::open(config.state_dir.join("images")).map_err(machine)?;
    let images = Arc::new(images);
    let puller = Puller::open(images.clone(), Some(config.certs_dir.clone())).map_err(machine)?;
    let runtime = Config { state_dir: config.state_dir.join("runtime"), shim: config.shim.clone() };
    let (runtime, events) = Runtime::open(runtime).map_err(machine)?;
    let access = access(&config, &images).map_err(machine)?;
    let (events_send, events_queue) = mpsc::channel(MAX_EVENTS);
    let node = Arc::new(Node {
        events: events_send,
        exits: watch::Sender::new(0),
        services: watch::Sender::new(Services::default()),
        served: watch::Sender::new(Served::default()),
        referred: Arc::default(),
        network: Network::open().map_err(machine)?,
        cni: Cni::open(config.cni.clone()).map_err(machine)?,
        pool: Mutex::new(None),
        runtime: Arc::new(runtime),
        images,
        puller,
        access,
        images_changed: Notify::new(),
        pullers: Semaphore::new(config.max_parallel_image_pulls.max(1)),
        memory: report::memory(),
        cpus: report::cpus(),
        client,
        config,
    });
    network::recover(&node).await;
    report::register(&node).await.map_err(AgentError::Api)?;
    info!(node = node.config.name, "node registered");
    let mut tasks = JoinSet::new();
    tasks.spawn(report::record(node.client.clone(), events_queue));
    tasks.spawn(report::heartbeat(node.clone()));
    tasks.spawn(links::follow(node.clone()));
    tasks.spawn(network::tidy(node.clone()));
    tasks.spawn(image_gc::collect(node.clone()));
    tasks.spawn(serve::serve(node.clone(), listener, drain.clone()));
    let (send, items) = mpsc::channel(MAX_ITEMS);
    let scope = Scope { resource: PODS, fields: format!("spec.nodeName%3D{}", node.config.name) };
    tasks.spawn(reflect(node.client.clone(), scope, Arc::default(), send));
    tokio::select! {
        () = dispatch(node, items, events) => {}
        _ = drain.wait_for(|drain| *drain) => {}
    }
    Ok(())
}

fn access(config: &NodeConfig, images: &Images) -> Result<Access, Box<dyn std::error::Error>> {
    let named = |image: knarr_oci::cri::Image| {
        let names = image.repo_tags.into_iter().chain(image.repo_digests);
        names.map(move |name| (image.id.clone(), name))
    };
    let here: Vec<_> = images.list()?.into_iter().flat_map(named).collect();
    Ok(Access::open(config.state_dir.join("node/pulled.json"), &here)?)
}

/// Brings news to the Pods' tasks.
async fn dispatch(
    node: Arc<Node>,
    mut items: mpsc::Receiver<(knarr_api::Resource, Change)>,
    events: Events,
) {
    let (send, mut ended) = mpsc::channel::<String>(MAX_ITEMS);
    let told = node.clone();
    std::thread::spawn(move || forward(&told, &events, &send));
    let mut running: HashMap<String, Running> = HashMap::new();
    let mut workers: JoinSet<String> = JoinSet::new();
    loop {
        tokio::select! {
            item = items.recv() => {
                let Some((_, change)) = item else { return };
                match change {
                    Change::Put(bytes, _) => match Pod::decode(&bytes) {
                        Ok(pod) => give(&node, &mut running, &mut workers, pod),
                        Err(error) => warn!(%error, "a Pod that cannot be read"),
                    },
                    Change::Deleted(bytes, _) => {
                        let uid = Pod::decode(&bytes).ok().and_then(|pod| pod.metadata.uid);
                        uid.into_iter().for_each(|uid| abandon(&running, &uid));
                    }
                    Change::Synced(_) => orphans(&node, &mut running, &mut workers),
                    Change::Restarted => {}
                }
            }
            Some(uid) = ended.recv() => {
                running.get(&uid).into_iter().for_each(|pod| pod.news.notify_one());
            }
            Some(Ok(uid)) = workers.join_next(), if !workers.is_empty() => {
                running.remove(&uid);
            }
        }
    }
}

/// Turns the runtime's events into uids of Pods that should look again.
fn forward(node: &Node, events: &Events, send: &mpsc::Sender<String>) {
    for event in events {
        node.exits.send_modify(|count| *count += 1);
        let uid = match event {
            Event::ContainerExited(status) => status.labels.get(UID_LABEL).cloned(),
            Event::SandboxNotReady(_) => None,
        };
        if send.blocking_send(uid.unwrap_or_default()).is_err() {
            return;
        }
    }
}

/// The label by which containers and sandboxes are known to belong to a Pod.
pub(crate) const UID_LABEL: &str = "io.kubernetes.pod.uid";

fn give(
    node: &Arc<Node>,
    running: &mut HashMap<String, Running>,
    workers: &mut JoinSet<String>,
    pod: Pod,
) {
    let Some(uid) = pod.metadata.uid.clone() else { return };
    let pod = Arc::new(pod);
    if let Some(known) = running.get(&uid) {
        known.pod.send_replace(pod);
        known.news.notify_one();
        return;
    }
    let (send, receive) = watch::channel(pod);
    let news = Arc::new(Notify::new());
    let worker = Worker::new(node.clone(), receive, news.clone());
    running.insert(uid.clone(), Running { pod: send, news });
    workers.spawn(async move {
        worker.run().await;
        uid
    });
}

/// A Pod that the API no longer has is taken down, as if deleted with a short grace period.
fn abandon(running: &HashMap<String, Running>, uid: &str) {
    let Some(known) = running.get(uid) else { return };
    known.pod.send_modify(|pod| {
        let mut doomed = Pod::clone(pod);
        doom(&mut doomed);
        *pod = Arc::new(doomed);
    });
    known.news.notify_one();
}

fn doom(pod: &mut Pod) {
    let at = knarr_typed::k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(crate::now());
    pod.metadata.deletion_timestamp.get_or_insert(at);
    pod.metadata.deletion_grace_period_seconds = Some(2);
}

/// Sandboxes whose Pods nobody knows any more are taken down.
fn orphans(
    node: &Arc<Node>,
    running: &mut HashMap<String, Running>,
    workers: &mut JoinSet<String>,
) {
    for sandbox in node.runtime.list_pod_sandbox() {
        if !running.contains_key(&sandbox.metadata.uid) {
            let PodSandboxMetadata { name, uid, namespace, .. } = sandbox.metadata;
            info!(pod = name, namespace, uid, "a Pod that the API does not have is taken down");
            let mut pod = Pod::default();
            pod.metadata.name = Some(name);
            pod.metadata.namespace = Some(namespace);
            pod.metadata.uid = Some(uid);
            pod.spec = Some(knarr_typed::PodSpec::default());
            doom(&mut pod);
            give(node, running, workers, pod);
        }
    }
}
