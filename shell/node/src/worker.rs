//! One Pod's task: look, decide, do, look again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use knarr_api::ObjectKey;
use knarr_client::PatchType;
use knarr_oci::cri::{ContainerState, ContainerStatus, Image};
use knarr_oci::reference::Reference;
use knarr_oci::spec::NetworkNs;
use knarr_podlife::checks::Hook;
use knarr_podlife::config::{self, Given};
use knarr_podlife::env::{self, Itself};
use knarr_podlife::naming;
use knarr_podlife::probes::{self, Outcome, ProbeKind};
use knarr_podlife::termination;
use knarr_podlife::{
    Action, Decision, Failure, IMAGE_REF, ImageState, Memory, Observed, Served, decide,
};
use knarr_typed::{Container, Pod};
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use crate::agent::{Node, UID_LABEL};
use crate::life::{self, Beside, End, Start};
use crate::pulls::{Pulls, may_use};
use crate::refresh::Volumes;
use crate::{PODS, checks, files, links, network, now, report};

/// A step that failed: the container's waiting reason, and what went wrong.
pub(crate) struct StepError {
    reason: &'static str,
    message: String,
}

/// News of what goes on beside a Pod's task.
enum Done {
    /// A container began, or not.
    Started(String, Result<(), StepError>),
    /// A container ended, or not.
    Ended(String, Result<(), StepError>),
    /// A probe of a container (name, which, id) came out.
    Probed((String, ProbeKind, String), Outcome),
}

/// News that wait for a Pod's task.
const MAX_NEWS: usize = 64;
/// When a report that did not get through is made again.
const TELL_AGAIN: SignedDuration = SignedDuration::from_secs(1);
/// How long a container that would not end is left alone.
const END_AGAIN: Duration = Duration::from_secs(1);
/// How often a probe that could not be made is tried.
const PROBE_TRIES: u32 = 3;

pub(crate) fn step(reason: &'static str) -> impl Fn(&dyn std::fmt::Display) -> StepError {
    move |error| StepError { reason, message: error.to_string() }
}

/// The task of one Pod.
pub(crate) struct Worker {
    node: Arc<Node>,
    pod: watch::Receiver<Arc<Pod>>,
    news: Arc<Notify>,
    memory: Memory,
    /// What goes on beside this task; ends with it.
    tasks: JoinSet<()>,
    done: (mpsc::Sender<Done>, mpsc::Receiver<Done>),
    /// Names of containers whose start is under way.
    starting: BTreeSet<String>,
    /// Tells those starts that their containers are to end.
    halt: watch::Sender<bool>,
    /// Ids of containers whose end is under way, and when they are killed.
    stopping: BTreeMap<String, Timestamp>,
    /// Last words of containers that ended, by id.
    words: BTreeMap<String, String>,
    failures: BTreeMap<String, Failure>,
    pulls: Pulls,
    volumes: Volumes,
    served: watch::Receiver<Served>,
    prepared: bool,
    reported: Value,
    /// The last report did not get through.
    untold: bool,
}

impl Worker {
    pub(crate) fn new(node: Arc<Node>, pod: watch::Receiver<Arc<Pod>>, news: Arc<Notify>) -> Self {
        Self {
            served: node.served.subscribe(),
            node,
            pod,
            news,
            memory: Memory::default(),
            tasks: JoinSet::new(),
            done: mpsc::channel(MAX_NEWS),
            starting: BTreeSet::new(),
            halt: watch::Sender::new(false),
            stopping: BTreeMap::new(),
            words: BTreeMap::new(),
            failures: BTreeMap::new(),
            pulls: Pulls::default(),
            volumes: Volumes::default(),
            prepared: false,
            reported: Value::Null,
            untold: false,
        }
    }

    /// Works until nothing is left of the Pod.
    pub(crate) async fn run(mut self) {
        loop {
            let pod = self.pod.borrow_and_update().clone();
            while let Ok(done) = self.done.1.try_recv() {
                self.hear(&pod, done);
            }
            while self.tasks.try_join_next().is_some() {}
            self.refresh(&pod).await;
            let observed = self.observe(&pod).await;
            let Some(decision) = decide(&pod, &observed, &mut self.memory, now()) else { return };
            self.report(&pod, &decision).await;
            if decision.actions.is_empty() {
                self.wait(&pod, &decision).await;
                continue;
            }
            if self.act(&pod, &observed, &decision).await {
                return;
            }
        }
    }

    /// Has the Pod's volumes show what they are made of as it is now.
    async fn refresh(&mut self, pod: &Pod) {
        if pod.metadata.deletion_timestamp.is_some() || over(pod) {
            self.volumes.rest();
        } else if self.prepared && self.volumes.stale(pod) {
            let itself = self.itself(Vec::new());
            self.volumes.refresh(&self.node, pod, &itself).await;
            self.failures.retain(|_, failure| failure.reason != "CreateContainerConfigError");
        } else if self.volumes.stale(pod) {
            // What was missing may be there now.
            self.failures.retain(|_, failure| failure.reason != "FailedMount");
        }
    }

    async fn wait(&mut self, pod: &Pod, decision: &Decision) {
        let again = self.untold.then(|| now() + TELL_AGAIN);
        let renewal = self.volumes.wake(pod).filter(|_| self.prepared);
        let wake = decision.wake.into_iter().chain(again).chain(renewal).min();
        let asleep = async {
            match wake {
                Some(at) => {
                    let wait = Duration::try_from(at.duration_since(now())).unwrap_or_default();
                    tokio::time::sleep(wait).await;
                }
                None => std::future::pending().await,
            }
        };
        let leaving = pod.metadata.deletion_timestamp.is_some();
        tokio::select! {
            () = self.news.notified() => {}
            _ = self.served.changed(), if leaving => {}
            () = self.volumes.changed() => {}
            () = asleep => {}
            Some(done) = self.done.1.recv() => self.hear(pod, done),
        }
    }

    /// Takes in what came of something beside this task.
    fn hear(&mut self, pod: &Pod, done: Done) {
        match done {
            Done::Started(name, result) => {
                self.starting.remove(&name);
                match result {
                    Ok(()) => drop(self.failures.remove(&name)),
                    Err(error) => self.fail(pod, name, error),
                }
            }
            Done::Ended(id, result) => {
                self.stopping.remove(&id);
                if let Err(error) = result {
                    self.fail(pod, String::new(), error);
                }
            }
            Done::Probed((name, kind, id), outcome) => {
                let event = self.memory.probes.heard(pod, (&name, kind, &id), &outcome);
                event.iter().for_each(|event| report::tell_of(&self.node, pod, event));
            }
        }
    }

    async fn observe(&mut self, pod: &Pod) -> Observed {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let runtime = &self.node.runtime;
        let mut sandboxes = runtime.list_pod_sandbox();
        sandboxes.retain(|sandbox| sandbox.metadata.uid == uid);
        let own = |status: &ContainerStatus| status.labels.get(UID_LABEL) == Some(&uid);
        let mut containers = runtime.list_containers();
        containers.retain(own);
        let containers = self.with_last_words(containers).await;
        let node_addresses: Vec<String> = self.node.config.addresses().collect();
        let addresses = match config::host_network(pod) {
            true => node_addresses.clone(),
            false => sandboxes
                .iter()
                .map(|s| self.addresses(&s.id))
                .find(|own| !own.is_empty())
                .unwrap_or_default(),
        };
        Observed {
            images: self.images(pod).await,
            pulls: self.pulls.seen(),
            failures: self.failures.clone(),
            prepared: self.prepared,
            starting: self.starting.clone(),
            stopping: self.stopping.clone(),
            standing: self.served.borrow_and_update().standing(&uid),
            sandboxes,
            containers,
            addresses,
            node_addresses,
        }
    }

    /// Adds what containers that ended have said.
    async fn with_last_words(&mut self, mut runs: Vec<ContainerStatus>) -> Vec<ContainerStatus> {
        let ended = |run: &ContainerStatus| run.state == ContainerState::Exited;
        self.words.retain(|id, _| runs.iter().any(|run| run.id == *id));
        for run in runs.iter_mut().filter(|run| ended(run)) {
            if !self.words.contains_key(&run.id) {
                let asked = run.clone();
                let words = self.node.blocking(move |_| life::last_words(&asked)).await;
                self.words.insert(run.id.clone(), words);
            }
            run.message = termination::said(&run.message, &self.words[&run.id]);
        }
        runs
    }

    /// The addresses that a sandbox has.
    fn addresses(&self, sandbox: &str) -> Vec<String> {
        network::addresses(&self.node, sandbox).iter().map(ToString::to_string).collect()
    }

    async fn images(&self, pod: &Pod) -> BTreeMap<String, ImageState> {
        let wanted: Vec<String> =
            containers(pod).map(|c| c.image.clone().unwrap_or_default()).collect();
        let look = |node: &Node| -> Vec<_> {
            wanted.into_iter().map(|image| (node.images.status(&image), image)).collect()
        };
        let mut states = BTreeMap::new();
        for (found, image) in self.node.blocking(look).await {
            let state = match found {
                Ok(Some(found)) if may_use(&self.node, pod, &image, &found.id).await => {
                    ImageState::Present(image_ref(&image, found))
                }
                Ok(_) => ImageState::Absent,
                Err(error) => unusable(&image, &error),
            };
            states.insert(image, state);
        }
        states
    }

    /// Tells the API server, when there is something new to tell.
    async fn report(&mut self, pod: &Pod, decision: &Decision) {
        for event in &decision.events {
            report::tell_of(&self.node, pod, event);
        }
        self.untold = false;
        let gone = decision.actions.contains(&Action::Forget);
        if decision.status == self.reported || gone && self.reported.is_null() {
            return;
        }
        let metadata = json!({"uid": pod.metadata.uid});
        let patch = json!({"metadata": metadata, "status": decision.status});
        let key = key(pod);
        let sent = self.node.client.patch(PODS, &key, "status", PatchType::Merge, &patch).await;
        match sent {
            Ok(_) => self.reported = decision.status.clone(),
            Err(error) => {
                debug!(pod = %key, %error, "the status was not taken");
                self.untold = true;
            }
        }
    }

    /// Carries out a decision until a step fails; whether the Pod is over and done with.
    async fn act(&mut self, pod: &Arc<Pod>, observed: &Observed, decision: &Decision) -> bool {
        let mut starts = Vec::new();
        for action in &decision.actions {
            let result = match action {
                Action::Probe { name, kind, id } => {
                    self.probe(pod, observed, (name.clone(), *kind, id.clone()));
                    continue;
                }
                Action::Kill { id, name, grace } => {
                    self.kill(pod, observed, (id, name), Duration::from_secs(*grace));
                    continue;
                }
                Action::StartContainer { name, .. } => {
                    match self.begin(pod, observed, action).await {
                        Ok(start) => starts.extend(start),
                        // The other containers of the Pod are not held up by this one.
                        Err(error) => self.fail(pod, name.clone(), error),
                    }
                    continue;
                }
                Action::Pull { image, name, attempt } => {
                    self.pulls.begin((&self.node, pod, &self.news), image, name, *attempt);
                    continue;
                }
                Action::Forget => {
                    self.forget(pod).await;
                    return true;
                }
                other => self.other(pod, other).await,
            };
            match result {
                Ok(()) => drop(self.failures.remove("")),
                Err(error) => {
                    self.fail(pod, String::new(), error);
                    break;
                }
            }
        }
        self.start(pod, observed, starts);
        false
    }

    fn fail(&mut self, pod: &Pod, name: String, error: StepError) {
        let StepError { reason, message } = error;
        let times = self.failures.get(&name).map_or(0, |failure| failure.times) + 1;
        warn!(pod = %key(pod), container = name, reason, message, "a step of a Pod failed");
        match reason {
            "RunContainerError" | "CreateContainerError" | "CreateContainerConfigError" => {
                let text = format!("Error: {message}");
                report::event(&self.node, pod, true, "Failed", &text);
            }
            // Told when it happened, without what may be secret.
            "PostStartHookError" => {}
            other => report::event(&self.node, pod, true, other, &message),
        }
        let failure = Failure { reason: reason.to_owned(), message, at: now(), times };
        self.failures.insert(name, failure);
    }

    /// Makes a probe beside this task.
    fn probe(&mut self, pod: &Pod, observed: &Observed, which: (String, ProbeKind, String)) {
        let (node, done) = (self.node.clone(), self.done.0.clone());
        let check = probes::check(pod, &which.0, which.1, &observed.addresses);
        self.tasks.spawn(async move {
            let outcome = match check {
                Ok((check, seconds)) => {
                    let within = Duration::from_secs(seconds);
                    let mut outcome = checks::probe(&node, &which.2, &check, within).await;
                    for _ in 1..PROBE_TRIES {
                        if let Outcome::Error(_) = outcome {
                            outcome = checks::probe(&node, &which.2, &check, within).await;
                        }
                    }
                    outcome
                }
                Err(why) => Outcome::Error(why),
            };
            done.send(Done::Probed(which, outcome)).await.ok();
        });
    }

    /// Ends a container beside this task.
    fn kill(
        &mut self,
        pod: &Arc<Pod>,
        observed: &Observed,
        (id, name): (&str, &str),
        grace: Duration,
    ) {
        let by = now().saturating_add(SignedDuration::try_from(grace).unwrap_or_default());
        let under_way = self.stopping.insert(id.to_owned(), by.unwrap_or(Timestamp::MAX));
        if self.starting.contains(name) {
            self.halt.send_replace(true);
        }
        // A hook runs once, however often the grace period becomes shorter.
        let hook = under_way.is_none().then_some(Hook::PreStop);
        let end = End { id: id.to_owned(), name: name.to_owned(), grace, hook };
        let (beside, done) = (self.beside(pod, observed), self.done.0.clone());
        self.tasks.spawn(async move {
            let id = end.id.clone();
            let ended = beside.end(end).await;
            if ended.is_err() {
                tokio::time::sleep(END_AGAIN).await;
            }
            done.send(Done::Ended(id, ended)).await.ok();
        });
    }

    /// Starts containers one after the other beside this task.
    fn start(&mut self, pod: &Arc<Pod>, observed: &Observed, starts: Vec<Start>) {
        if starts.is_empty() {
            return;
        }
        self.starting.extend(starts.iter().map(|start| start.name.clone()));
        self.halt.send_replace(false);
        let (beside, done) = (self.beside(pod, observed), self.done.0.clone());
        let mut halt = self.halt.subscribe();
        self.tasks.spawn(async move {
            for start in starts {
                let name = start.name.clone();
                let started = beside.start(start, &mut halt).await;
                done.send(Done::Started(name, started)).await.ok();
            }
        });
    }

    fn beside(&self, pod: &Arc<Pod>, observed: &Observed) -> Beside {
        let (node, news) = (self.node.clone(), self.news.clone());
        Beside { node, pod: pod.clone(), addresses: observed.addresses.clone(), news }
    }

    async fn other(&mut self, pod: &Pod, action: &Action) -> Result<(), StepError> {
        let failed = step("FailedKillPod");
        match action {
            Action::Prepare => self.prepare(pod).await,
            Action::RunSandbox { attempt } => self.run_sandbox(pod, *attempt).await,
            Action::RemoveContainer { id } => {
                let id = id.clone();
                let removed = self.node.blocking(move |node| node.runtime.remove_container(&id));
                removed.await.map_err(|error| failed(&error))
            }
            Action::StopSandbox { id } => self.stop_sandbox(id).await,
            Action::RemoveSandbox { id } => {
                // It may have ended by itself.
                self.disconnect(id).await?;
                let own = id.clone();
                let removed = self.node.blocking(move |node| node.runtime.remove_pod_sandbox(&own));
                removed.await.map_err(|error| failed(&error))?;
                network::release(&self.node, id).map_err(|error| failed(&error))
            }
            Action::CleanUp => {
                let paths = self.node.paths(pod);
                let removed = self.node.blocking(move |_| files::remove_pod(&paths));
                removed.await.map_err(|error| failed(&error))
            }
            Action::StartContainer { .. }
            | Action::Kill { .. }
            | Action::Probe { .. }
            | Action::Pull { .. }
            | Action::Forget => Ok(()),
        }
    }

    async fn prepare(&mut self, pod: &Pod) -> Result<(), StepError> {
        let itself = self.itself(Vec::new());
        let made = self.volumes.prepare(&self.node, pod, &itself).await;
        made.map_err(|error| step("FailedMount")(&error))?;
        self.prepared = true;
        Ok(())
    }

    fn itself(&self, addresses: Vec<String>) -> Itself {
        Itself {
            addresses,
            node_addresses: self.node.config.addresses().collect(),
            allocatable: (self.node.cpus * 1000, self.node.memory),
            services: BTreeMap::new(),
        }
    }

    async fn run_sandbox(&mut self, pod: &Pod, attempt: u32) -> Result<(), StepError> {
        let failed = step("FailedCreatePodSandBox");
        let paths = self.node.paths(pod);
        let mut wanted = config::sandbox(pod, &paths, attempt);
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        wanted.labels.insert(UID_LABEL.to_owned(), uid);
        let host = config::host_network(pod);
        if !host {
            let name = naming::kernel_hostname(pod, &self.node.config.cluster_dns);
            wanted.hostname = name.map_err(|error| failed(&error))?;
        }
        let netns = if host { NetworkNs::Node } else { NetworkNs::New };
        let made = self.node.blocking(move |node| node.runtime.run_pod_sandbox(&wanted, netns));
        let id = made.await.map_err(|error| failed(&error))?;
        if !host && let Err(error) = network::connect(&self.node, pod, &id).await {
            // What stays connected is undone when the sandbox is found to be gone.
            self.stop_sandbox(&id).await.ok();
            let gone = id.clone();
            self.node.blocking(move |node| node.runtime.remove_pod_sandbox(&gone)).await.ok();
            return Err(failed(&error));
        }
        let addresses = if host { Vec::new() } else { self.addresses(&id) };
        let written = files::write_names(&paths, &self.names(pod, &addresses));
        written.map_err(|error| failed(&error))
    }

    /// How the Pod's containers call themselves and others.
    fn names(&self, pod: &Pod, addresses: &[String]) -> files::Names {
        let own = &self.node.config;
        let host = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
        let (hosts, resolv_conf) = (host(Path::new("/etc/hosts")), host(&own.resolv_conf));
        files::Names {
            hostname: config::hostname(pod),
            hosts: naming::hosts(pod, addresses, &own.cluster_dns, &hosts),
            resolv_conf: naming::resolv_conf(pod, &own.cluster_dns, &resolv_conf),
        }
    }

    async fn stop_sandbox(&self, id: &str) -> Result<(), StepError> {
        let failed = step("FailedKillPod");
        self.disconnect(id).await?;
        let stopping = id.to_owned();
        let stopped = self.node.blocking(move |node| node.runtime.stop_pod_sandbox(&stopping));
        stopped.await.map_err(|error| failed(&error))?;
        network::release(&self.node, id).map_err(|error| failed(&error))
    }

    async fn disconnect(&self, sandbox: &str) -> Result<(), StepError> {
        let undone = network::disconnect(&self.node, sandbox).await;
        undone.map_err(|error| step("FailedKillPod")(&error))
    }

    /// All that a container needs to begin.
    async fn begin(
        &mut self,
        pod: &Pod,
        observed: &Observed,
        action: &Action,
    ) -> Result<Option<Start>, StepError> {
        let Action::StartContainer { name, sandbox, attempt } = action else { return Ok(None) };
        let Some(container) = containers(pod).find(|c| c.name == *name) else { return Ok(None) };
        let image = container.image.clone().unwrap_or_default();
        let named = image.clone();
        let found = self.node.blocking(move |node| node.images.status(&named)).await;
        let user = found.ok().flatten().map(|image| (image.uid, image.username));
        let services = links::variables(&self.node, pod).await;
        let services = services.map_err(|why| step("CreateContainerConfigError")(&why))?;
        let itself = Itself { services, ..self.itself(observed.addresses.clone()) };
        let message = termination::message_file(&self.node.paths(pod), container, *attempt);
        let given = Given {
            files: message.iter().map(|m| (m.inside.clone(), m.outside.clone())).collect(),
            image_user: user.unwrap_or_default(),
            ..Given::default()
        };
        let mut config = self.container_config(pod, container, *attempt, &itself, given)?;
        let parts = files::prepare_sub_paths(container, &config.mounts);
        parts.map_err(|error| step("CreateContainerConfigError")(&error))?;
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        config.labels.insert(UID_LABEL.to_owned(), uid);
        if let Some(ImageState::Present(known_as)) = observed.images.get(&image) {
            config.annotations.insert(IMAGE_REF.to_owned(), known_as.clone());
        }
        config.annotations.extend(message.iter().flat_map(|m| m.annotations.clone()));
        if !self.pulls.were_for(&image, name, *attempt) {
            report::tell_of(&self.node, pod, &knarr_podlife::pulls::present(&image));
        }
        let (name, sandbox) = (name.clone(), sandbox.clone());
        Ok(Some(Start { name, sandbox, config, message: message.map(|m| m.outside) }))
    }

    fn container_config(
        &self,
        pod: &Pod,
        container: &Container,
        attempt: u32,
        itself: &Itself,
        given: Given,
    ) -> Result<knarr_oci::cri::ContainerConfig, StepError> {
        let failed = step("CreateContainerConfigError");
        let envs = env::environment(pod, container, self.volumes.sources(), itself);
        let mut shared = files::shared(&self.node.paths(pod));
        shared.extend(given.files);
        let given = Given {
            envs: envs.map_err(|error| failed(&error))?,
            volumes: self.volumes.paths(),
            files: shared,
            node_memory: self.node.memory,
            ..given
        };
        config::container(pod, container, attempt, &given).map_err(|error| failed(&error))
    }

    /// The last step: the API server forgets the Pod.
    async fn forget(&self, pod: &Pod) {
        let options = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": pod.metadata.uid}});
        match self.node.client.delete(PODS, &key(pod), &options).await {
            Ok(_) => info!(pod = %key(pod), "Pod gone"),
            Err(error) => debug!(pod = %key(pod), %error, "the Pod is gone already"),
        }
    }
}

pub(crate) fn key(pod: &Pod) -> ObjectKey {
    let word = |text: &Option<String>| text.clone().unwrap_or_default();
    ObjectKey::new(word(&pod.metadata.namespace), word(&pod.metadata.name))
}

/// Whether a Pod has told its last phase.
fn over(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod.spec.iter();
    spec.flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers))
}

/// What an image is reported as: by digest under the name that the Pod gives it, else its id.
fn image_ref(image: &str, found: Image) -> String {
    let name = Reference::parse(image).map(|reference| format!("{}@", reference.name()));
    let own = |digest: &&String| name.as_ref().is_ok_and(|name| digest.starts_with(name));
    let digests = &found.repo_digests;
    digests.iter().find(own).or(digests.first()).cloned().unwrap_or(found.id)
}

fn unusable(image: &str, error: &knarr_images::Error) -> ImageState {
    let (reason, what) = match error {
        knarr_images::Error::Reference(_, why) => {
            let text = format!("Failed to apply default image tag {image:?}: {why}");
            return ImageState::Unusable("InvalidImageName", text);
        }
        other => ("ImageInspectError", other),
    };
    ImageState::Unusable(reason, format!("Failed to inspect image {image:?}: {what}"))
}
