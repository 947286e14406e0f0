//! Starts and ends of containers with the hooks that belong to them, beside the Pod's task, so
//! that a slow one holds up neither the others nor what the API server is told.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use knarr_oci::cri::{ContainerConfig, ContainerStatus};
use knarr_podlife::checks::{self, Hook};
use knarr_podlife::termination::{self, MAX_MESSAGE};
use knarr_sandbox::CreateContainer;
use knarr_typed::Pod;
use tokio::sync::watch;
use tracing::info;

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

/// Makes and starts a container and runs its hook, until `halt` says that it is to end again.
pub(crate) async fn start(
    node: &Arc<Node>,
    pod: &Pod,
    addresses: &[String],
    start: Start,
    halt: &mut watch::Receiver<bool>,
) -> Result<(), StepError> {
    let Start { name, sandbox, config, message } = start;
    let attempt = config.metadata.attempt;
    let created = node.blocking(move |node| create(node, &sandbox, &config, message.as_deref()));
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
    tokio::select! {
        done = post_start(node, pod, addresses, &name, &id) => done,
        _ = halt.wait_for(|halt| *halt) => Ok(()),
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

/// Runs the hook of a container that has begun; one that fails ends it.
async fn post_start(
    node: &Arc<Node>,
    pod: &Pod,
    addresses: &[String],
    name: &str,
    id: &str,
) -> Result<(), StepError> {
    let Some(hook) = checks::hook(pod, name, Hook::PostStart, addresses) else { return Ok(()) };
    let ran = match hook {
        Ok(hook) => doing::hook(node, id, &hook).await,
        Err(why) => Err(why),
    };
    let Err(why) = ran else { return Ok(()) };
    report::event(node, pod, true, "FailedPostStartHook", "PostStartHook failed");
    report::event(node, pod, false, "Killing", "FailedPostStartHook");
    let grace = Duration::from_secs(knarr_podlife::grace(pod));
    let hook = Some(Hook::PreStop);
    let ending = End { id: id.to_owned(), name: name.to_owned(), grace, hook };
    end(node, pod, addresses, ending).await?;
    Err(step("PostStartHookError")(&why))
}

/// Ends a container: its hook first, then its signal, all within the grace period.
pub(crate) async fn end(
    node: &Arc<Node>,
    pod: &Pod,
    addresses: &[String],
    end: End,
) -> Result<(), StepError> {
    let End { id, name, grace, hook } = end;
    let began = Instant::now();
    let hook = hook.filter(|_| !grace.is_zero());
    if let Some(hook) = hook.and_then(|hook| checks::hook(pod, &name, hook, addresses)) {
        let ran = match hook {
            Ok(hook) => tokio::time::timeout(grace, doing::hook(node, &id, &hook)).await,
            Err(why) => Ok(Err(why)),
        };
        if let Ok(Err(why)) = ran {
            tracing::debug!(pod = %key(pod), container = name, why, "a hook failed");
            report::event(node, pod, true, "FailedPreStopHook", "PreStopHook failed");
        }
    }
    let left = match grace.is_zero() {
        true => Duration::ZERO,
        false => grace.saturating_sub(began.elapsed()).max(MIN_GRACE.min(grace)),
    };
    let stopped = node.blocking(move |node| node.runtime.stop_container(&id, left)).await;
    stopped.map_err(|error| step("FailedKillPod")(&error))
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
