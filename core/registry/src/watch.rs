//! Watches: which changes a watcher sees, and how.
//!
//! A watch is a cursor. The shell pumps events from the store through [`WatchSpec::encode`]; an
//! object that stops matching the selector is shown as deleted.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use bytes::Bytes;
use jiff::Timestamp;
use knarr_api::{Kind, Reason, Status};
use knarr_mvcc::{Event, KeyRange, KeyValue, Revision};
use serde_json::{Value, json};

use crate::convert::served;
use crate::object::{Snapshot, pieces};
use crate::read::{Filter, Rendering, render};

/// Where a watch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchStart {
    /// With what changed after this revision.
    After(Revision),
    /// With everything there is, as ADDED events, then what changes.
    Initial,
}

/// What a watcher is told of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    /// It is there (again).
    Added,
    /// It changed.
    Modified,
    /// It is gone, or matches no longer.
    Deleted,
}

impl EventType {
    fn name(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// One thing a watcher sees.
#[derive(Clone, Debug)]
pub struct Seen {
    /// What happened.
    pub event: EventType,
    /// The object's bytes, without resourceVersion; of a deleted one the last there were.
    pub value: Bytes,
    /// The revision at which it happened.
    pub revision: Revision,
}

impl Seen {
    fn new(event: EventType, value: Bytes, revision: Revision) -> Self {
        Self { event, value, revision }
    }
}

/// A watch, as decided by the pipeline.
#[derive(Clone, Debug)]
pub struct WatchSpec {
    /// Which keys.
    pub range: KeyRange,
    /// Where to begin.
    pub start: WatchStart,
    /// Whether to send bookmarks.
    pub bookmarks: bool,
    /// Whether to close the initial events with an annotated bookmark (`sendInitialEvents`).
    pub mark_initial: bool,
    /// For how long, in seconds; `None` leaves it to the server.
    pub timeout: Option<u64>,
    pub(crate) kind: Arc<Kind>,
    pub(crate) filter: Filter,
    pub(crate) rendering: Rendering,
}

impl WatchSpec {
    /// The kind that is watched.
    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    /// What stands for what there is now.
    pub fn initial(&self, snapshot: Snapshot<'_>) -> Vec<Seen> {
        let found = snapshot.keyspace().iter(&self.range, snapshot.revision());
        let found = found
            .into_iter()
            .flatten()
            .filter(|kv| self.filter.matches(&served(&self.kind, &kv.value)));
        found.map(|kv| Seen::new(EventType::Added, kv.value.clone(), kv.mod_revision)).collect()
    }

    /// One change as its watcher sees it; nothing when it does not concern the selector. An object
    /// that stops matching is deleted, as far as this watcher goes.
    pub fn see(&self, event: &Event) -> Option<Seen> {
        let selected = |kv: &Option<KeyValue>| {
            kv.as_ref()
                .filter(|kv| self.filter.matches(&served(&self.kind, &kv.value)))
                .map(|kv| kv.value.clone())
        };
        let (kind, value) = match (selected(&event.old), selected(&event.new)) {
            (Some(_), Some(new)) => (EventType::Modified, new),
            (None, Some(new)) => (EventType::Added, new),
            (Some(old), None) => (EventType::Deleted, old),
            (None, None) => return None,
        };
        Some(Seen::new(kind, value, event.revision))
    }

    /// What was seen, as it goes over the wire.
    pub fn encode(&self, seen: &Seen, now: Timestamp, out: &mut Vec<Bytes>) {
        let what = seen.event.name();
        let value = served(&self.kind, &seen.value);
        out.push(format!("{{\"type\":\"{what}\",\"object\":").into());
        match self.rendering {
            Rendering::Object => pieces(&value, seen.revision, out),
            other => out.push(render(&self.kind, other, &value, seen.revision, now).into()),
        }
        out.push(Bytes::from_static(b"}\n"));
    }

    /// A bookmark: everything up to `at` has been sent.
    pub fn bookmark(&self, at: Revision, initial_end: bool, out: &mut Vec<Bytes>) {
        let mut metadata = json!({"resourceVersion": at.0.to_string(), "creationTimestamp": null});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let (kind, api_version) = match self.rendering {
            Rendering::Object => (self.kind.kind.clone(), self.kind.api_version()),
            Rendering::Table => ("Table".to_owned(), "meta.k8s.io/v1".to_owned()),
            Rendering::Metadata => {
                ("PartialObjectMetadata".to_owned(), "meta.k8s.io/v1".to_owned())
            }
        };
        let object = json!({"kind": kind, "apiVersion": api_version, "metadata": metadata});
        out.push(event_line("BOOKMARK", &object));
    }

    /// The end of a watch whose cursor fell out of the history.
    pub fn expired(&self, after: Revision, oldest: Revision) -> Bytes {
        let text = format!("too old resource version: {} ({})", after.0, oldest.0);
        event_line("ERROR", &Status::new(Reason::Expired, text).to_json())
    }
}

fn event_line(what: &str, object: &Value) -> Bytes {
    let line: String = format!("{}\n", json!({"type": what, "object": object}));
    line.into()
}
