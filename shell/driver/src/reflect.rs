//! One watch per resource, begun again whenever it ends.

use std::sync::Arc;
use std::time::Duration;

use knarr_api::Resource;
use knarr_client::{Client, EventType, StreamItem, WatchError, WatchStream};
use knarr_reconcile::Change;
use tokio::sync::{Notify, mpsc};
use tracing::warn;

/// With everything there is, closed by a marked bookmark (KEP-3157).
const FROM_SCRATCH: &str =
    "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(10);

type Sender = mpsc::Sender<(Resource, Change)>;

/// What is watched.
#[derive(Clone, Debug)]
pub struct Scope {
    /// The resource, in all namespaces.
    pub resource: Resource,
    /// A field selector, encoded; empty for all objects.
    pub fields: String,
}

impl Scope {
    /// Every object of a resource.
    pub fn all(resource: Resource) -> Self {
        Self { resource, fields: String::new() }
    }
}

/// Why a reflector goes on.
enum Again {
    /// From the revision it has come to.
    Resume(u64),
    /// From scratch.
    Anew,
}

/// Keeps a resource's changes coming until nobody listens.
pub async fn reflect(client: Client, scope: Scope, restart: Arc<Notify>, send: Sender) {
    let resource = scope.resource;
    let selector = match scope.fields.as_str() {
        "" => String::new(),
        fields => format!("&fieldSelector={fields}"),
    };
    let mut from = Again::Anew;
    let mut wait = FIRST_RETRY;
    while !send.is_closed() {
        let query = match from {
            Again::Resume(revision) => {
                format!("resourceVersion={revision}&allowWatchBookmarks=true")
            }
            Again::Anew => FROM_SCRATCH.to_owned(),
        };
        match client.watch(resource, "", &format!("{query}{selector}")).await {
            Ok(stream) => {
                wait = FIRST_RETRY;
                let Some(next) = follow(stream, resource, &from, &restart, &send).await else {
                    return;
                };
                from = next;
            }
            Err(error) => {
                warn!(%resource, %error, "a watch was not granted");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(LAST_RETRY);
            }
        }
    }
}

/// Passes a watch on until it ends; `None` when nobody listens any more.
async fn follow(
    mut stream: WatchStream,
    resource: Resource,
    from: &Again,
    restart: &Notify,
    send: &Sender,
) -> Option<Again> {
    let mut seen = match from {
        Again::Resume(revision) => *revision,
        Again::Anew => {
            send.send((resource, Change::Restarted)).await.ok()?;
            0
        }
    };
    loop {
        let item = tokio::select! {
            item = stream.next() => item,
            () = restart.notified() => return Some(Again::Anew),
        };
        let change = match item {
            Ok(StreamItem::Event { event, object, revision }) => {
                seen = seen.max(revision);
                match event {
                    EventType::Deleted => Change::Deleted(object, revision),
                    EventType::Added | EventType::Modified => Change::Put(object, revision),
                }
            }
            Ok(StreamItem::Bookmark { revision, initial_end }) => {
                seen = seen.max(revision);
                if !initial_end {
                    continue;
                }
                Change::Synced(revision)
            }
            Err(WatchError::Closed) if seen > 0 => return Some(Again::Resume(seen)),
            Err(error) => {
                if error != WatchError::Closed {
                    warn!(%resource, %error, "a watch begins anew");
                }
                return Some(Again::Anew);
            }
        };
        send.send((resource, change)).await.ok()?;
    }
}
