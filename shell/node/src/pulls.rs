//! Images on their way: the pulls of one Pod, each a task that wakes the Pod's worker at its end.
//!
//! Nobody waits for a pull: the worker asks for one, goes on with everything else, and sees how it
//! went at its next look. When the worker is gone, so are its pulls; what they fetched stays.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use knarr_api::{ObjectKey, Resource};
use knarr_images::PullOptions;
use knarr_oci::credentials::{ConfigForm, Credentials, Keyring};
use knarr_oci::cri::Image;
use knarr_oci::reference::Reference;
use knarr_podlife::pulls::{self, Pull, PullOutcome};
use knarr_typed::Pod;
use serde_json::Value;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::agent::Node;
use crate::{now, report, worker};

const SECRETS: Resource = Resource::new("v1", "secrets");

/// The pulls of one Pod; dropped, they end.
#[derive(Default)]
pub(crate) struct Pulls {
    known: Arc<Mutex<BTreeMap<String, Pull>>>,
    tasks: JoinSet<()>,
}

fn locked(
    known: &Mutex<BTreeMap<String, Pull>>,
) -> std::sync::MutexGuard<'_, BTreeMap<String, Pull>> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pulls {
    /// The last pull of each image.
    pub(crate) fn seen(&self) -> BTreeMap<String, Pull> {
        locked(&self.known).clone()
    }

    /// Whether the image was pulled for this run of a container.
    pub(crate) fn were_for(&self, image: &str, name: &str, attempt: u32) -> bool {
        let known = locked(&self.known);
        known.get(image).is_some_and(|pull| pull.name == name && pull.attempt == attempt)
    }

    /// Begins a pull for a container's next run.
    pub(crate) fn begin(
        &mut self,
        (node, pod, news): (&Arc<Node>, &Pod, &Arc<Notify>),
        image: &str,
        name: &str,
        attempt: u32,
    ) {
        while self.tasks.try_join_next().is_some() {}
        let old = locked(&self.known).get(image).cloned();
        let (failures, error) =
            old.map_or_else(Default::default, |pull| (pull.failures, pull.error));
        let name = name.to_owned();
        let pull = Pull { name, attempt, outcome: PullOutcome::Running, failures, error };
        locked(&self.known).insert(image.to_owned(), pull);
        let (node, pod, news) = (node.clone(), pod.clone(), news.clone());
        let (known, image) = (self.known.clone(), image.to_owned());
        self.tasks.spawn(async move {
            let result = tell(&node, &pod, &image).await;
            if let Some(pull) = locked(&known).get_mut(&image) {
                match result {
                    Ok(()) => (pull.outcome, pull.failures) = (PullOutcome::Done, 0),
                    Err(error) => {
                        pull.outcome = PullOutcome::Failed(now());
                        (pull.failures, pull.error) = (pull.failures + 1, error);
                    }
                }
            }
            news.notify_one();
        });
    }
}

/// Pulls an image and tells people of it.
async fn tell(node: &Arc<Node>, pod: &Pod, image: &str) -> Result<(), String> {
    report::tell_of(node, pod, &pulls::begun(image));
    let asked = Instant::now();
    let place = node.pullers.acquire().await.map_err(|error| error.to_string())?;
    let began = Instant::now();
    let pulled = pull(node, pod, image).await;
    drop(place);
    match pulled {
        Ok(pulled) => {
            let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            let (took, waited) = (millis(began.elapsed()), millis(asked.elapsed()));
            info!(pod = %worker::key(pod), image, took, "image pulled");
            node.images_changed.notify_one();
            report::tell_of(node, pod, &pulls::done(image, took, waited, pulled.size));
            Ok(())
        }
        Err(error) => {
            warn!(pod = %worker::key(pod), image, error, "an image could not be pulled");
            pulls::failed(image, &error).iter().for_each(|e| report::tell_of(node, pod, e));
            Err(error)
        }
    }
}

/// Pulls an image with each of the credentials that fit, until one will do.
async fn pull(node: &Arc<Node>, pod: &Pod, image: &str) -> Result<Image, String> {
    let reference = Reference::parse(image).map_err(|error| error.to_string())?;
    let (keyring, missing) = keyring(node, pod).await;
    if !missing.is_empty() {
        let missing = missing.join(", ");
        let text = format!(
            "Unable to retrieve some image pull secrets ({missing}); attempting to pull the image \
             may not succeed."
        );
        report::event(node, pod, true, "FailedToRetrieveImagePullSecret", &text);
    }
    let credentials: Vec<Credentials> = keyring.lookup(&reference.name());
    let tries = match credentials.is_empty() {
        true => vec![None],
        false => credentials.into_iter().map(Some).collect(),
    };
    let repository = reference.name();
    let _intent = node.access.intend(&repository).map_err(|error| error.to_string())?;
    let mut errors = Vec::new();
    for credentials in tries {
        let options = PullOptions { credentials, ..PullOptions::default() };
        match node.puller.pull(image, &options).await {
            Ok(image) => {
                let noted = node.access.grant(&image.id, &repository, options.credentials.as_ref());
                return noted.map(|()| image).map_err(|error| error.to_string());
            }
            Err(error) => errors.push(error.to_string()),
        }
    }
    errors.dedup();
    Err(match errors.as_slice() {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    })
}

/// Whether a Pod could have pulled an image that is here.
pub(crate) async fn may_use(node: &Arc<Node>, pod: &Pod, image: &str, id: &str) -> bool {
    let Ok(reference) = Reference::parse(image) else { return true };
    let repository = reference.name();
    if node.access.is_for_all(id, &repository) {
        return true;
    }
    let own = keyring(node, pod).await.0.lookup(&repository);
    node.access.is_for(id, &repository, &own)
}

/// The credentials of a Pod's pull secrets, and the names of those that cannot be had.
async fn keyring(node: &Arc<Node>, pod: &Pod) -> (Keyring, Vec<String>) {
    let mut keyring = Keyring::default();
    let mut missing = Vec::new();
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let named = pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten());
    for name in named.map(|secret| secret.name.clone()).filter(|name| !name.is_empty()) {
        let Ok(secret) = node.client.get(SECRETS, &ObjectKey::new(&namespace, &name)).await else {
            missing.push(name);
            continue;
        };
        if let Err(error) = add_secret(&mut keyring, &secret) {
            warn!(pod = %worker::key(pod), secret = name, error, "a pull secret is of no use");
        }
    }
    (keyring, missing)
}

fn add_secret(keyring: &mut Keyring, secret: &Value) -> Result<(), String> {
    let (key, form) = match secret["type"].as_str() {
        Some("kubernetes.io/dockerconfigjson") => (".dockerconfigjson", ConfigForm::Json),
        Some("kubernetes.io/dockercfg") => (".dockercfg", ConfigForm::Legacy),
        _ => return Ok(()),
    };
    let data = secret["data"][key].as_str().unwrap_or_default();
    let file = STANDARD.decode(data).map_err(|error| error.to_string())?;
    keyring.add(&file, form)
}
