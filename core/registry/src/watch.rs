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

    /// The events that stand for what there is now.
    pub fn initial(&self, snapshot: Snapshot<'_>, now: Timestamp, out: &mut Vec<Bytes>) {
        let found = snapshot.keyspace().iter(&self.range, snapshot.revision());
        for kv in found.into_iter().flatten().filter(|kv| self.filter.matches(&kv.value)) {
            self.put("ADDED", &kv.value, kv.mod_revision, now, out);
        }
    }

    /// One change as its watcher sees it; nothing when it does not concern the selector.
    pub fn encode(&self, event: &Event, now: Timestamp, out: &mut Vec<Bytes>) {
        let selected = |kv: &Option<KeyValue>| {
            kv.as_ref().filter(|kv| self.filter.matches(&kv.value)).map(|kv| kv.value.clone())
        };
        match (selected(&event.old), selected(&event.new)) {
            (Some(_), Some(new)) => self.put("MODIFIED", &new, event.revision, now, out),
            (None, Some(new)) => self.put("ADDED", &new, event.revision, now, out),
            (Some(old), None) => self.put("DELETED", &old, event.revision, now, out),
            (None, None) => {}
        }
    }

    fn put(&self, what: &str, value: &Bytes, at: Revision, now: Timestamp, out: &mut Vec<Bytes>) {
        out.push(format!("{{\"type\":\"{what}\",\"object\":").into());
        match self.rendering {
            Rendering::Object => pieces(value, at, out),
            rendering => out.push(render(&self.kind, rendering, value, at, now).into()),
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
