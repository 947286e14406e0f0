//! Watches as a client sees them, the same on both roads.

use std::fmt;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use knarr_apiserver::{Next, Watcher, WatcherEnd};
use knarr_registry::EventType;
use serde::Deserialize;
use serde_json::value::RawValue;

/// A line longer than this is not an object that a server sends.
const MAX_LINE: usize = 32 << 20;

/// What a watch tells.
#[derive(Clone, Debug)]
pub enum StreamItem {
    /// Something happened to an object.
    Event {
        /// What.
        event: EventType,
        /// The object's JSON. Its resourceVersion may be missing from it; `revision` has it.
        object: Bytes,
        /// The revision at which it happened.
        revision: u64,
    },
    /// Everything up to this revision has been told.
    Bookmark {
        /// The revision.
        revision: u64,
        /// Whether this closes the objects that were there at the beginning.
        initial_end: bool,
    },
}

/// Why a watch is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchError {
    /// The server ended it: watch again from the last revision.
    Closed,
    /// The history it asks for is gone: begin anew.
    Expired,
    /// What came is no watch.
    Garbled(String),
}

impl std::error::Error for WatchError {}

impl fmt::Display for WatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("the watch was closed"),
            Self::Expired => f.write_str("the watch fell out of the history"),
            Self::Garbled(why) => write!(f, "the watch is garbled: {why}"),
        }
    }
}

/// A watch in progress.
pub struct WatchStream(Source);

enum Source {
    InProcess(Watcher),
    Remote(Incoming, BytesMut),
}

impl WatchStream {
    pub(crate) fn in_process(watcher: Watcher) -> Self {
        Self(Source::InProcess(watcher))
    }

    pub(crate) fn remote(body: Incoming) -> Self {
        Self(Source::Remote(body, BytesMut::new()))
    }

    /// What comes next; waits for it. Cancel safe.
    ///
    /// # Errors
    /// [`WatchError`]; the watch is over then.
    pub async fn next(&mut self) -> Result<StreamItem, WatchError> {
        match &mut self.0 {
            Source::InProcess(watcher) => watcher.next().await.map(item).map_err(|end| match end {
                WatcherEnd::Done => WatchError::Closed,
                WatcherEnd::Expired { .. } => WatchError::Expired,
            }),
            Source::Remote(body, buffer) => next_line(body, buffer).await,
        }
    }
}

fn item(next: Next) -> StreamItem {
    match next {
        Next::Seen(seen) => {
            StreamItem::Event { event: seen.event, object: seen.value, revision: seen.revision.0 }
        }
        Next::Bookmark(revision, initial_end) => {
            StreamItem::Bookmark { revision: revision.0, initial_end }
        }
    }
}

async fn next_line(body: &mut Incoming, buffer: &mut BytesMut) -> Result<StreamItem, WatchError> {
    loop {
        if let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line = buffer.split_to(end + 1).freeze();
            return parse(&line.slice(..end));
        }
        if buffer.len() > MAX_LINE {
            return Err(WatchError::Garbled("a line without an end".to_owned()));
        }
        let frame = body.frame().await.ok_or(WatchError::Closed)?;
        let frame = frame.map_err(|_| WatchError::Closed)?;
        if let Ok(data) = frame.into_data() {
            buffer.extend_from_slice(&data);
        }
    }
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct Head {
    metadata: Option<Metadata>,
    code: Option<u16>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    resource_version: Option<String>,
    annotations: Option<std::collections::BTreeMap<String, String>>,
}

fn parse(line: &Bytes) -> Result<StreamItem, WatchError> {
    let garbled = |error: serde_json::Error| WatchError::Garbled(error.to_string());
    let parsed: Line<'_> = serde_json::from_slice(line).map_err(garbled)?;
    let text = parsed.object.get();
    let head: Head = serde_json::from_str(text).map_err(garbled)?;
    let metadata = head.metadata.as_ref();
    let revision = metadata.and_then(|m| m.resource_version.as_ref()?.parse().ok());
    let event = match parsed.kind {
        "ADDED" => EventType::Added,
        "MODIFIED" => EventType::Modified,
        "DELETED" => EventType::Deleted,
        "ERROR" if head.code == Some(410) => return Err(WatchError::Expired),
        "ERROR" => return Err(WatchError::Garbled(text.to_owned())),
        _ => {
            let annotations = metadata.and_then(|m| m.annotations.as_ref());
            let initial_end = annotations
                .is_some_and(|annotations| annotations.contains_key("k8s.io/initial-events-end"));
            return Ok(StreamItem::Bookmark { revision: revision.unwrap_or(0), initial_end });
        }
    };
    let object = line.slice_ref(text.as_bytes());
    Ok(StreamItem::Event { event, object, revision: revision.unwrap_or(0) })
}
