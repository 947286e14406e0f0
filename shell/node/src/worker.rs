//! One Pod's task: look, decide, do, look again.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use knarr_api::ObjectKey;
use knarr_client::PatchType;
use knarr_net::Attachment;
use knarr_oci::cri::{ContainerStatus, Image};
use knarr_oci::reference::Reference;
use knarr_oci::spec::NetworkNs;
use knarr_podlife::config::{self, Given};
use knarr_podlife::env::{self, Itself};
use knarr_podlife::naming;
use knarr_podlife::{Action, Backoffs, Decision, Failure, IMAGE_REF, ImageState, Observed, decide};
use knarr_sandbox::CreateContainer;
use knarr_typed::{Container, Pod};
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tracing::{debug, info, warn};

use crate::agent::{Node, UID_LABEL};
use crate::pulls::{Pulls, may_use};
use crate::refresh::Volumes;
use crate::{PODS, files, now, report};

/// A step that failed: the container's waiting reason, and what went wrong.
struct StepError {
    reason: &'static str,
    message: String,
}

fn step(reason: &'static str) -> impl Fn(&dyn std::fmt::Display) -> StepError {
    move |error| StepError { reason, message: error.to_string() }
}

/// The task of one Pod.
pub(crate) struct Worker {
    node: Arc<Node>,
    pod: watch::Receiver<Arc<Pod>>,
    news: Arc<Notify>,
    backoffs: Backoffs,
    failures: BTreeMap<String, Failure>,
    pulls: Pulls,
    volumes: Volumes,
    prepared: bool,
    reported: Value,
}

impl Worker {
    pub(crate) fn new(node: Arc<Node>, pod: watch::Receiver<Arc<Pod>>, news: Arc<Notify>) -> Self {
        Self {
            node,
            pod,
            news,
            backoffs: Backoffs::default(),
            failures: BTreeMap::new(),
            pulls: Pulls::default(),
            volumes: Volumes::default(),
            prepared: false,
            reported: Value::Null,
        }
    }

    /// Works until nothing is left of the Pod.
    pub(crate) async fn run(mut self) {
        loop {
            let pod = self.pod.borrow_and_update().clone();
            self.refresh(&pod).await;
            let observed = self.observe(&pod).await;
            let Some(decision) = decide(&pod, &observed, &mut self.backoffs, now()) else { return };
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
        let renewal = self.volumes.wake(pod).filter(|_| self.prepared);
        let wake = decision.wake.into_iter().chain(renewal).min();
        let asleep = async {
            match wake {
                Some(at) => {
                    let wait = Duration::try_from(at.duration_since(now())).unwrap_or_default();
                    tokio::time::sleep(wait).await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.news.notified() => {}
            () = self.volumes.changed() => {}
            () = asleep => {}
        }
    }

    async fn observe(&self, pod: &Pod) -> Observed {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let runtime = &self.node.runtime;
        let mut sandboxes = runtime.list_pod_sandbox();
        sandboxes.retain(|sandbox| sandbox.metadata.uid == uid);
        let own = |status: &ContainerStatus| status.labels.get(UID_LABEL) == Some(&uid);
        let mut containers = runtime.list_containers();
        containers.retain(own);
        let node_addresses = vec![self.node.config.address.to_string()];
        let addresses = match config::host_network(pod) {
            true => node_addresses.clone(),
            false => sandboxes.iter().find_map(|s| self.address(&s.id)).into_iter().collect(),
        };
        Observed {
            images: self.images(pod).await,
            pulls: self.pulls.seen(),
            failures: self.failures.clone(),
            prepared: self.prepared,
            sandboxes,
            containers,
            addresses,
            node_addresses,
        }
    }

    /// The address that a sandbox has.
    fn address(&self, sandbox: &str) -> Option<String> {
        self.node.pool(|pool| pool.as_ref()?.of(sandbox)).map(|address| address.to_string())
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
            Err(error) => debug!(pod = %key, %error, "the status was not taken"),
        }
    }

    /// Carries out a decision until a step fails; whether the Pod is over and done with.
    async fn act(&mut self, pod: &Pod, observed: &Observed, decision: &Decision) -> bool {
        let mut actions = decision.actions.iter().peekable();
        while let Some(action) = actions.next() {
            let (name, result) = match action {
                Action::Kill { .. } => {
                    let mut together = vec![action];
                    while let Some(next @ Action::Kill { .. }) = actions.peek() {
                        together.push(next);
                        actions.next();
                    }
                    (String::new(), self.kill(&together).await)
                }
                Action::StartContainer { name, .. } => {
                    (name.clone(), self.start(pod, observed, action).await)
                }
                Action::Pull { image, name, attempt } => {
                    self.pulls.begin((&self.node, pod, &self.news), image, name, *attempt);
                    continue;
                }
                Action::Forget => {
                    self.forget(pod).await;
                    return true;
                }
                other => (String::new(), self.other(pod, other).await),
            };
            match result {
                Ok(()) => drop(self.failures.remove(&name)),
                Err(error) => {
                    self.fail(pod, name, error).await;
                    // The other containers of the Pod are not held up by this one.
                    if !matches!(action, Action::StartContainer { .. }) {
                        break;
                    }
                }
            }
        }
        false
    }

    async fn fail(&mut self, pod: &Pod, name: String, error: StepError) {
        let StepError { reason, message } = error;
        let times = self.failures.get(&name).map_or(0, |failure| failure.times) + 1;
        warn!(pod = %key(pod), container = name, reason, message, "a step of a Pod failed");
        let event = match reason {
            "RunContainerError" | "CreateContainerError" | "CreateContainerConfigError" => "Failed",
            other => other,
        };
        let text = if event == "Failed" { format!("Error: {message}") } else { message.clone() };
        report::event(&self.node, pod, true, event, &text);
        let failure = Failure { reason: reason.to_owned(), message, at: now(), times };
        self.failures.insert(name, failure);
    }

    async fn kill(&self, actions: &[&Action]) -> Result<(), StepError> {
        let kills = actions.iter().filter_map(|action| match action {
            Action::Kill { id, grace, .. } => Some((id.clone(), Duration::from_secs(*grace))),
            _ => None,
        });
        let kills = kills.map(|(id, grace)| {
            self.node.blocking(move |node| node.runtime.stop_container(&id, grace))
        });
        for result in join_all(kills).await {
            result.map_err(|error| step("FailedKillPod")(&error))?;
        }
        Ok(())
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
                let id = id.clone();
                let removed = self.node.blocking(move |node| node.runtime.remove_pod_sandbox(&id));
                removed.await.map_err(|error| failed(&error))
            }
            Action::CleanUp => {
                let paths = self.node.paths(pod);
                let removed = self.node.blocking(move |_| files::remove_pod(&paths));
                removed.await.map_err(|error| failed(&error))
            }
            Action::StartContainer { .. }
            | Action::Kill { .. }
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
            node_addresses: vec![self.node.config.address.to_string()],
            allocatable: (self.node.cpus * 1000, self.node.memory),
        }
    }

    async fn run_sandbox(&mut self, pod: &Pod, attempt: u32) -> Result<(), StepError> {
        let failed = step("FailedCreatePodSandBox");
        let paths = self.node.paths(pod);
        let mut wanted = config::sandbox(pod, &paths, attempt);
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        wanted.labels.insert(UID_LABEL.to_owned(), uid);
        let host = config::host_network(pod);
        let netns = if host { NetworkNs::Node } else { NetworkNs::New };
        let made = self.node.blocking(move |node| node.runtime.run_pod_sandbox(&wanted, netns));
        let id = made.await.map_err(|error| failed(&error))?;
        if !host && let Err(error) = self.connect(&id).await {
            self.stop_sandbox(&id).await.ok();
            let gone = id.clone();
            self.node.blocking(move |node| node.runtime.remove_pod_sandbox(&gone)).await.ok();
            return Err(error);
        }
        let address = if host { None } else { self.address(&id) };
        let written = files::write_names(&paths, &self.names(pod, address.as_slice()));
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

    /// Gives a sandbox its address and its link.
    async fn connect(&self, sandbox: &str) -> Result<(), StepError> {
        let failed = step("FailedCreatePodSandBox");
        let id = sandbox.to_owned();
        let status = self.node.blocking(move |node| node.runtime.pod_sandbox_status(&id)).await;
        let netns = status.map_err(|error| failed(&error))?.netns.unwrap_or_default();
        let address: IpAddr = self.node.pool(|pool| match pool {
            Some(pool) => pool.allocate(sandbox).map_err(|error| failed(&error)),
            None => Err(failed(&"the node has no Pod address range (podCIDR) yet")),
        })?;
        let want = Attachment { link: self.link(sandbox), addresses: vec![address] };
        let attached = self.node.network.attach(Path::new(&netns), &want).await;
        attached.map_err(|error| failed(&error))
    }

    /// The host end of a sandbox's link.
    fn link(&self, sandbox: &str) -> String {
        format!("kn{}{}", self.node.config.instance, &sandbox[..sandbox.len().min(8)])
    }

    async fn stop_sandbox(&self, id: &str) -> Result<(), StepError> {
        let failed = step("FailedKillPod");
        let detached = self.node.network.detach(&self.link(id)).await;
        detached.map_err(|error| failed(&error))?;
        let stopping = id.to_owned();
        let stopped = self.node.blocking(move |node| node.runtime.stop_pod_sandbox(&stopping));
        stopped.await.map_err(|error| failed(&error))?;
        let released = self.node.pool(|pool| pool.as_mut().map(|pool| pool.release(id)));
        released.transpose().map(drop).map_err(|error| failed(&error))
    }

    async fn start(
        &mut self,
        pod: &Pod,
        observed: &Observed,
        action: &Action,
    ) -> Result<(), StepError> {
        let Action::StartContainer { name, sandbox, attempt } = action else { return Ok(()) };
        let Some(container) = containers(pod).find(|c| c.name == *name) else { return Ok(()) };
        let image = container.image.clone().unwrap_or_default();
        let named = image.clone();
        let found = self.node.blocking(move |node| node.images.status(&named)).await;
        let user = found.ok().flatten().map(|image| (image.uid, image.username));
        let user = user.unwrap_or_default();
        let mut wanted = self.container_config(pod, container, *attempt, observed, user)?;
        let parts = files::prepare_sub_paths(container, &wanted.mounts);
        parts.map_err(|error| step("CreateContainerConfigError")(&error))?;
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        wanted.labels.insert(UID_LABEL.to_owned(), uid);
        if let Some(ImageState::Present(known_as)) = observed.images.get(&image) {
            wanted.annotations.insert(IMAGE_REF.to_owned(), known_as.clone());
        }
        if !self.pulls.were_for(&image, name, *attempt) {
            report::tell_of(&self.node, pod, &knarr_podlife::pulls::present(&image));
        }
        let sandbox = sandbox.clone();
        let created = self.node.blocking(move |node| {
            let unpacked = node.images.unpacked(&image).map_err(|error| error.to_string())?;
            let request = CreateContainer {
                sandbox_id: &sandbox,
                config: &wanted,
                image: &unpacked.config,
                rootfs: unpacked.rootfs,
            };
            node.runtime.create_container(request).map_err(|error| error.to_string())
        });
        let id = created.await.map_err(|error| step("CreateContainerError")(&error))?;
        let text = "Container created";
        report::event(&self.node, pod, false, "Created", text);
        let starting = id.clone();
        let started = self.node.blocking(move |node| node.runtime.start_container(&starting)).await;
        if let Err(error) = started {
            self.node.blocking(move |node| node.runtime.remove_container(&id)).await.ok();
            return Err(step("RunContainerError")(&error));
        }
        info!(pod = %key(pod), container = name, attempt, "container started");
        let text = "Container started";
        report::event(&self.node, pod, false, "Started", text);
        Ok(())
    }

    fn container_config(
        &self,
        pod: &Pod,
        container: &Container,
        attempt: u32,
        observed: &Observed,
        image_user: (Option<i64>, String),
    ) -> Result<knarr_oci::cri::ContainerConfig, StepError> {
        let failed = step("CreateContainerConfigError");
        let itself = self.itself(observed.addresses.clone());
        let envs = env::environment(pod, container, self.volumes.sources(), &itself);
        let given = Given {
            envs: envs.map_err(|error| failed(&error))?,
            volumes: self.volumes.paths(),
            files: files::shared(&self.node.paths(pod)),
            node_memory: self.node.memory,
            image_user,
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
