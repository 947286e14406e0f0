//! What Pods refer to, as it is now, and the volumes that show it.
//!
//! Each ConfigMap and Secret is watched once, by its name, for all Pods of the node that refer to
//! it, and no longer than the last of them: the watch ends when nobody listens to it any more.
//! Nothing is polled; a token names the time at which it is to be replaced.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::select_all;
use jiff::{SignedDuration, Timestamp};
use knarr_api::{ObjectKey, Resource};
use knarr_client::{Client, ClientError, EventType, StreamItem, WatchStream};
use knarr_podlife::env::{Itself, Sources};
use knarr_podlife::tokens::Token;
use knarr_podlife::volumes::{Need, contents, fs_group, needs, shown};
use knarr_typed::Pod;
use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::agent::Node;
use crate::{files, now, report, worker};

const CONFIG_MAPS: Resource = Resource::new("v1", "configmaps");
const SECRETS: Resource = Resource::new("v1", "secrets");
const ACCOUNTS: Resource = Resource::new("v1", "serviceaccounts");

const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(10);
/// A Pod waits no longer for what it refers to; it is told apart from what does not exist.
const PATIENCE: Duration = Duration::from_secs(10);
/// A token that was not granted is asked for again after this.
const TOKEN_RETRY: SignedDuration = SignedDuration::from_secs(10);

/// What is known of an object.
#[derive(Clone, Debug, PartialEq)]
enum Seen {
    /// Nothing yet.
    Unknown,
    /// The API server does not let the node see it.
    Refused(String),
    /// There is none.
    Absent,
    /// Its newest version.
    Here(Arc<Value>),
}

/// The objects that the node's Pods refer to, by namespace and name.
#[derive(Default)]
pub(crate) struct Referred(Mutex<BTreeMap<(String, Need), watch::Sender<Seen>>>);

impl Referred {
    /// Follows an object; the watch of it ends when the last that follows it stops.
    fn follow(self: &Arc<Self>, client: &Client, key: (String, Need)) -> watch::Receiver<Seen> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(&key) {
            return known.subscribe();
        }
        let (send, receive) = watch::channel(Seen::Unknown);
        all.insert(key.clone(), send.clone());
        tokio::spawn(self.clone().keep(client.clone(), key, send));
        receive
    }

    async fn keep(self: Arc<Self>, client: Client, key: (String, Need), send: watch::Sender<Seen>) {
        loop {
            tokio::select! {
                () = send.closed() => {}
                never = watch_one(&client, &key, &send) => match never {},
            }
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if send.receiver_count() == 0 {
                all.remove(&key);
                return;
            }
        }
    }
}

async fn watch_one(
    client: &Client,
    (namespace, need): &(String, Need),
    send: &watch::Sender<Seen>,
) -> std::convert::Infallible {
    let (resource, name) = match need {
        Need::Secret(name) => (SECRETS, name),
        Need::ConfigMap(name) | Need::Token(name, _) => (CONFIG_MAPS, name),
    };
    let query = format!(
        "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true\
         &fieldSelector=metadata.name%3D{name}"
    );
    let mut wait = FIRST_RETRY;
    loop {
        match client.watch(resource, namespace, &query).await {
            Ok(stream) => {
                wait = FIRST_RETRY;
                follow_one(stream, send).await;
            }
            Err(error) => {
                debug!(%resource, namespace, name, %error, "a watch was not granted");
                tell(send, Seen::Refused(error.to_string()));
            }
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LAST_RETRY);
    }
}

/// Passes on what a watch tells until it ends. What cannot change needs no watch.
async fn follow_one(mut stream: WatchStream, send: &watch::Sender<Seen>) {
    let mut found = false;
    while let Ok(item) = stream.next().await {
        match item {
            StreamItem::Event { event: EventType::Deleted, .. } => tell(send, Seen::Absent),
            StreamItem::Event { object, .. } => {
                found = true;
                let object: Value = serde_json::from_slice(&object).unwrap_or_default();
                let immutable = object["immutable"] == true;
                tell(send, Seen::Here(Arc::new(object)));
                if immutable {
                    drop(stream);
                    return std::future::pending().await;
                }
            }
            StreamItem::Bookmark { initial_end: true, .. } if !found => tell(send, Seen::Absent),
            StreamItem::Bookmark { .. } => {}
        }
    }
}

/// What was seen stays while the API server is away.
fn tell(send: &watch::Sender<Seen>, now: Seen) {
    send.send_if_modified(|seen| {
        let news = match (&*seen, &now) {
            (Seen::Here(_) | Seen::Absent, Seen::Refused(_)) => false,
            (seen, now) => *seen != *now,
        };
        if news {
            *seen = now;
        }
        news
    });
}

/// A Pod's volumes, and what they and its containers' environments are made of.
#[derive(Default)]
pub(crate) struct Volumes {
    followed: BTreeMap<Need, watch::Receiver<Seen>>,
    news: bool,
    tokens: BTreeMap<Need, Token>,
    /// A token was refused: when it is asked for again.
    ask_again: Option<Timestamp>,
    shown: [BTreeMap<String, String>; 2],
    sources: Sources,
    paths: BTreeMap<String, String>,
    told: String,
}

impl Volumes {
    /// The objects that the Pod refers to.
    pub(crate) fn sources(&self) -> &Sources {
        &self.sources
    }

    /// Host paths by the volumes' names.
    pub(crate) fn paths(&self) -> BTreeMap<String, String> {
        self.paths.clone()
    }

    /// Lets go of everything: the Pod needs no more news.
    pub(crate) fn rest(&mut self) {
        self.followed.clear();
        self.tokens.clear();
        (self.news, self.ask_again) = (false, None);
    }

    /// Waits until something changed that the Pod refers to. Cancel safe.
    pub(crate) async fn changed(&mut self) {
        if self.followed.is_empty() {
            return std::future::pending().await;
        }
        let changes = self.followed.values_mut().map(|seen| Box::pin(seen.changed()));
        select_all(changes).await.0.ok();
        self.news = true;
    }

    /// When a token is to be replaced.
    pub(crate) fn wake(&self, pod: &Pod) -> Option<Timestamp> {
        let renewals = self.tokens.values().map(|token| token.renew_at(seed(pod)));
        match self.ask_again {
            Some(again) => Some(again),
            None => renewals.min(),
        }
    }

    /// Whether there is something new to show.
    pub(crate) fn stale(&self, pod: &Pod) -> bool {
        self.news
            || self.followed.values().any(|seen| seen.has_changed().unwrap_or(false))
            || self.shown != shown(pod)
            || self.wake(pod).is_some_and(|at| at <= now())
    }

    /// Makes the volumes.
    ///
    /// # Errors
    /// Something is missing; the text is for a FailedMount event.
    pub(crate) async fn prepare(
        &mut self,
        node: &Arc<Node>,
        pod: &Pod,
        itself: &Itself,
    ) -> Result<(), String> {
        self.gather(node, pod).await;
        let contents = contents(pod, &self.sources, itself)?;
        let (paths, group) = (node.paths(pod), fs_group(pod));
        let made = node.blocking(move |_| files::prepare_pod(&paths, &contents, group)).await;
        self.paths = made?;
        Ok(())
    }

    /// Shows what is new. What cannot be shown leaves the volumes as they are, with an event.
    pub(crate) async fn refresh(&mut self, node: &Arc<Node>, pod: &Pod, itself: &Itself) {
        self.gather(node, pod).await;
        let written = match contents(pod, &self.sources, itself) {
            Ok(contents) => {
                let (paths, group) = (node.paths(pod), fs_group(pod));
                node.blocking(move |_| files::rewrite(&paths, &contents, group)).await
            }
            Err(error) => Err(error),
        };
        let why = match written {
            Ok(changed) if changed.is_empty() => String::new(),
            Ok(changed) => {
                info!(pod = %worker::key(pod), ?changed, "volumes written anew");
                String::new()
            }
            Err(error) => error,
        };
        if !why.is_empty() && why != self.told {
            report::event(node, pod, true, "FailedMount", &why);
        }
        self.told = why;
    }

    /// Brings together what the Pod refers to; what is not there is left out.
    async fn gather(&mut self, node: &Arc<Node>, pod: &Pod) {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let needs = needs(pod);
        for need in needs.iter().filter(|need| !matches!(need, Need::Token(..))) {
            self.followed.entry(need.clone()).or_insert_with(|| {
                node.referred.follow(&node.client, (namespace.clone(), need.clone()))
            });
        }
        let known = async {
            for seen in self.followed.values_mut() {
                seen.wait_for(|seen| *seen != Seen::Unknown).await.ok();
            }
        };
        tokio::time::timeout(PATIENCE, known).await.ok();
        self.news = false;
        self.shown = shown(pod);
        let mut sources = Sources::default();
        for (need, seen) in &mut self.followed {
            take(&mut sources, need, seen.borrow_and_update().clone());
        }
        self.ask_again = None;
        for need in needs {
            if let Need::Token(audience, seconds) = &need {
                match self.token(node, pod, &need).await {
                    Ok(text) => drop(sources.tokens.insert((audience.clone(), *seconds), text)),
                    Err(why) => drop(sources.unknown.insert(need, why)),
                }
            }
        }
        self.sources = sources;
    }

    /// The token to use: a new one when it is time, the last one while no other is granted.
    async fn token(&mut self, node: &Node, pod: &Pod, need: &Need) -> Result<String, String> {
        let last = self.tokens.get(need);
        if let Some(last) = last.filter(|last| now() < last.renew_at(seed(pod))) {
            return Ok(last.text.clone());
        }
        match request(node, pod, need).await {
            Ok(token) => {
                let text = token.text.clone();
                self.tokens.insert(need.clone(), token);
                Ok(text)
            }
            Err(error) => {
                self.ask_again = Some(now() + TOKEN_RETRY);
                warn!(pod = %worker::key(pod), %error, "a service account token was refused");
                match last {
                    Some(last) if last.is_good(now()) => Ok(last.text.clone()),
                    Some(_) => Err(format!("token expired and refresh failed: {error}")),
                    None => Err(format!("failed to fetch token: {error}")),
                }
            }
        }
    }
}

fn take(sources: &mut Sources, need: &Need, seen: Seen) {
    let why = match (need, seen) {
        (Need::ConfigMap(name), Seen::Here(object)) => {
            sources.config_maps.insert(name.clone(), Value::clone(&object));
            return;
        }
        (Need::Secret(name), Seen::Here(object)) => {
            sources.secrets.insert(name.clone(), Value::clone(&object));
            return;
        }
        (_, Seen::Refused(why)) => why,
        (Need::ConfigMap(_), Seen::Unknown) => {
            "failed to sync configmap cache: timed out waiting for the condition".to_owned()
        }
        (_, Seen::Unknown) => {
            "failed to sync secret cache: timed out waiting for the condition".to_owned()
        }
        _ => return,
    };
    sources.unknown.insert(need.clone(), why);
}

/// Tells Pods apart, so that they do not all ask at once.
fn seed(pod: &Pod) -> u64 {
    pod.metadata.uid.iter().flat_map(|uid| uid.bytes()).map(u64::from).sum()
}

async fn request(node: &Node, pod: &Pod, need: &Need) -> Result<Token, ClientError> {
    let (Need::Token(audience, seconds), spec) = (need, pod.spec.as_ref()) else {
        return Err(ClientError::Unknown("no token is needed".to_owned()));
    };
    let account = spec.and_then(|spec| spec.service_account_name.clone());
    let key = worker::key(pod);
    let bound = json!({"apiVersion": "v1", "kind": "Pod", "name": key.name,
        "uid": pod.metadata.uid});
    let audiences: Vec<&str> = [audience.as_str()].into_iter().filter(|a| !a.is_empty()).collect();
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {"audiences": audiences, "expirationSeconds": seconds, "boundObjectRef": bound}});
    let account = ObjectKey::new(key.namespace, account.unwrap_or("default".to_owned()));
    let answer = node.client.create_sub(ACCOUNTS, &account, "token", &request).await?;
    let word = |at: &str| answer.pointer(at).and_then(Value::as_str).unwrap_or_default().to_owned();
    let expires = word("/status/expirationTimestamp").parse();
    let expires = expires.map_err(|error| ClientError::Unknown(format!("{error}")))?;
    Ok(Token { text: word("/status/token"), granted: now(), expires, seconds: *seconds })
}
