//! Starts and ends of containers with the hooks that belong to them, beside the Pod's task, so
//! that a slow one holds up neither the others nor what the API server is told.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use knarr_oci::cri::{ContainerConfig, ContainerStatus};
use knarr_podlife::checks::{self, Check, Hook};
use knarr_podlife::termination::{self, MAX_MESSAGE};
use knarr_sandbox::CreateContainer;
use knarr_typed::Pod;
use tokio::sync::{Notify, watch};
use tracing::{debug, info};

use crate::agent::Node;
use crate::worker::{StepError, key, step};
use crate::{checks as doing, report};

/// What a container has at least between its signal and its end.
const MIN_GRACE: Duration = Duration::from_secs(2);
/// How much of a log is looked at for last words.
const LOG_TAIL: u64 = 64 * 1024;

/// A container that begins.
pub(crate) struct Start {
    pub(crate) name: String,
    pub(crate) sandbox: String,
    pub(crate) config: ContainerConfig,
    /// Where it leaves its last words.
    pub(crate) message: Option<String>,
}

/// A container that ends.
pub(crate) struct End {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) grace: Duration,
    /// Whether its hook has still to run.
    pub(crate) hook: Option<Hook>,
}

/// What works beside a Pod's task.
#[derive(Clone)]
pub(crate) struct Beside {
    pub(crate) node: Arc<Node>,
    pub(crate) pod: Arc<Pod>,
    pub(crate) addresses: Vec<String>,
    /// Makes the Pod's task look again.
    pub(crate) news: Arc<Notify>,
}

impl Beside {
    /// Starts a container with its hook, until `halt` says that it is to end again.
    pub(crate) async fn start(
        &self,
        start: Start,
        halt: &mut watch::Receiver<bool>,
    ) -> Result<(), StepError> {
        if *halt.borrow() {
            return Ok(());
        }
        let name = start.name.clone();
        let id = self.begin(start).await?;
        // Whoever wants it to end must see it.
        self.news.notify_one();
        tokio::select! {
            done = self.post_start(&name, &id) => done,
            _ = halt.wait_for(|halt| *halt) => Ok(()),
        }
    }

    /// Makes and starts a container; its id.
    async fn begin(&self, start: Start) -> Result<String, StepError> {
        let Self { node, pod, .. } = self;
        let Start { name, sandbox, config, message } = start;
        let attempt = config.metadata.attempt;
        let created =
            node.blocking(move |node| create(node, &sandbox, &config, message.as_deref()));
        let id = created.await.map_err(|error| step("CreateContainerError")(&error))?;
        report::event(node, pod, false, "Created", "Container created");
        let starting = id.clone();
        let started = node.blocking(move |node| node.runtime.start_container(&starting)).await;
        if let Err(error) = started {
            node.blocking(move |node| node.runtime.remove_container(&id)).await.ok();
            return Err(step("RunContainerError")(&error));
        }
        info!(pod = %key(pod), container = name, attempt, "container started");
        report::event(node, pod, false, "Started", "Container started");
        Ok(id)
    }

    /// Runs the hook of a container that has begun; one that fails ends it.
    async fn post_start(&self, name: &str, id: &str) -> Result<(), StepError> {
        let Some(hook) = checks::hook(&self.pod, name, Hook::PostStart, &self.addresses) else {
            return Ok(());
        };
        let Err(why) = self.run(hook, id).await else { return Ok(()) };
        report::event(&self.node, &self.pod, true, "FailedPostStartHook", "PostStartHook failed");
        report::event(&self.node, &self.pod, false, "Killing", "FailedPostStartHook");
        let grace = Duration::from_secs(knarr_podlife::grace(&self.pod));
        let hook = Some(Hook::PreStop);
        self.end(End { id: id.to_owned(), name: name.to_owned(), grace, hook }).await?;
        Err(step("PostStartHookError")(&why))
    }

    async fn run(&self, hook: Result<Check, String>, id: &str) -> Result<(), String> {
        doing::hook(&self.node, id, &hook?).await
    }

    /// Ends a container: its hook first, then its signal, all within the grace period.
    pub(crate) async fn end(&self, end: End) -> Result<(), StepError> {
        let End { id, name, grace, hook } = end;
        let began = Instant::now();
        let hook = hook.filter(|_| !grace.is_zero());
        if let Some(hook) = hook.and_then(|h| checks::hook(&self.pod, &name, h, &self.addresses)) {
            // One that does not come to its end is cut off, and no failure.
            let ran = tokio::time::timeout(grace, self.run(hook, &id)).await;
            if let Ok(Err(why)) = ran {
                debug!(pod = %key(&self.pod), container = name, why, "a hook failed");
                let text = "PreStopHook failed";
                report::event(&self.node, &self.pod, true, "FailedPreStopHook", text);
            }
        }
        let left = grace.saturating_sub(began.elapsed()).max(MIN_GRACE.min(grace));
        let stopped = self.node.blocking(move |node| node.runtime.stop_container(&id, left)).await;
        stopped.map_err(|error| step("FailedKillPod")(&error))
    }
}

fn create(
    node: &Node,
    sandbox: &str,
    config: &ContainerConfig,
    message: Option<&str>,
) -> Result<String, String> {
    message.map_or(Ok(()), message_file).map_err(|error| error.to_string())?;
    let unpacked = node.images.unpacked(&config.image).map_err(|error| error.to_string())?;
    let request = CreateContainer {
        sandbox_id: sandbox,
        config,
        image: &unpacked.config,
        rootfs: unpacked.rootfs,
    };
    node.runtime.create_container(request).map_err(|error| error.to_string())
}

/// An empty file that every user of the container may write.
fn message_file(path: &str) -> io::Result<()> {
    let path = Path::new(path);
    fs::create_dir_all(path.parent().unwrap_or(path))?;
    fs::File::create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))
}

/// What a container that ended has left as its last words.
pub(crate) fn last_words(run: &ContainerStatus) -> String {
    let Some(file) = termination::written(run) else { return String::new() };
    let words = match tail(file, MAX_MESSAGE as u64) {
        Ok(words) => words,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return format!("Error on reading termination log {file}: {error}"),
    };
    if !words.is_empty() || !termination::falls_back(run) {
        return words;
    }
    match tail(&run.log_path, LOG_TAIL) {
        Ok(log) => termination::last_words(&log),
        Err(error) => format!("Error on reading termination message from logs: {error}"),
    }
}

/// The end of a file.
fn tail(path: &str, bytes: u64) -> io::Result<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes)))?;
    let mut read = Vec::new();
    file.take(bytes).read_to_end(&mut read)?;
    Ok(String::from_utf8_lossy(&read).into_owned())
}
