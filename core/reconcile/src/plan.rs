//! What a controller wants done, as a value.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use knarr_api::{ObjectKey, Resource};
use serde_json::{Value, json};

use crate::view::Row;

const CSRS: Resource = Resource::new("certificates.k8s.io/v1", "certificatesigningrequests");

/// The form of a patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patch {
    /// RFC 7396: nulls delete, lists are replaced.
    Merge,
    /// Kubernetes' own: lists merge by their keys.
    Strategic,
}

/// One write. Objects are never put back whole: a patch touches only what it names, so fields that
/// this build does not know survive.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// Makes an object.
    Create {
        /// Where.
        resource: Resource,
        /// In which namespace; empty for cluster-wide kinds.
        namespace: String,
        /// What.
        object: Value,
    },
    /// Changes an object or a part of it.
    Patch {
        /// Where.
        resource: Resource,
        /// Which.
        object: ObjectKey,
        /// A part with an endpoint of its own (`status`), or empty.
        subresource: &'static str,
        /// How `body` is meant.
        kind: Patch,
        /// The change.
        body: Value,
    },
    /// Posts to a subresource (`binding`).
    Post {
        /// Where.
        resource: Resource,
        /// Which.
        object: ObjectKey,
        /// The subresource.
        subresource: &'static str,
        /// The body.
        body: Value,
    },
    /// Puts a whole subresource (`finalize`, `approval`), with its resourceVersion inside.
    Put {
        /// Where.
        resource: Resource,
        /// Which.
        object: ObjectKey,
        /// The subresource, or empty.
        subresource: &'static str,
        /// The body.
        body: Value,
    },
    /// Signs a certificate request and puts the chain into its `status.certificate`.
    Sign {
        /// The CertificateSigningRequest.
        object: ObjectKey,
        /// The request, PKCS#10 in PEM.
        request_pem: String,
        /// What the certificate is good for.
        usage: Usage,
        /// How long it is good for.
        seconds: u64,
    },
    /// Writes nothing: is refused, as a conflict is, if a fresh read finds this object. A stage of
    /// its own before a write that rests on the object's absence.
    Absent {
        /// Where.
        resource: Resource,
        /// Which.
        object: ObjectKey,
        /// Another object of that name does not count; any one does when this is empty.
        uid: String,
    },
    /// Writes nothing: is refused, as a conflict is, if a fresh list finds anything.
    Empty {
        /// Of what.
        resource: Resource,
        /// In which namespace.
        namespace: String,
    },
    /// Deletes an object.
    Delete {
        /// Where.
        resource: Resource,
        /// Which.
        object: ObjectKey,
        /// DeleteOptions.
        options: Value,
    },
}

/// What a certificate is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// Telling a server who the client is.
    Client,
    /// Telling clients who the server is.
    Server,
}

impl Write {
    /// Deletes exactly the object that the view shows, in the background.
    pub fn delete(resource: Resource, row: &Row) -> Self {
        let preconditions = json!({"uid": row.facts.uid});
        let options = json!({"preconditions": preconditions, "propagationPolicy": "Background"});
        Self::Delete { resource, object: row.key.clone(), options }
    }

    /// Puts the status of the version the view shows, with `change` (RFC 7396) made to it. Most
    /// controllers may update a status but not patch it. `None` when that changes nothing.
    pub fn status(resource: Resource, row: &Row, change: &Value) -> Option<Self> {
        let mut tree = row.tree();
        let before = tree["status"].take();
        tree["status"] = before.clone();
        merge(&mut tree["status"], change);
        (tree["status"] != before).then(|| Self::put_exact(resource, row, "status", tree))
    }

    /// Puts a changed tree of the object over the version the view shows.
    pub fn put_exact(
        resource: Resource,
        row: &Row,
        subresource: &'static str,
        mut body: Value,
    ) -> Self {
        body["metadata"]["resourceVersion"] = alloc::format!("{}", row.revision).into();
        Self::Put { resource, object: row.key.clone(), subresource, body }
    }

    /// A merge patch that holds only for the version the view shows.
    pub fn patch_exact(resource: Resource, row: &Row, mut body: Value) -> Self {
        body["metadata"]["uid"] = row.facts.uid.as_str().into();
        body["metadata"]["resourceVersion"] = alloc::format!("{}", row.revision).into();
        let (object, kind) = (row.key.clone(), Patch::Merge);
        Self::Patch { resource, object, subresource: "", kind, body }
    }

    /// What it writes to.
    pub fn resource(&self) -> Resource {
        match self {
            Self::Sign { .. } => CSRS,
            Self::Create { resource, .. }
            | Self::Patch { resource, .. }
            | Self::Post { resource, .. }
            | Self::Put { resource, .. }
            | Self::Absent { resource, .. }
            | Self::Empty { resource, .. }
            | Self::Delete { resource, .. } => *resource,
        }
    }
}

/// A JSON merge patch (RFC 7396).
fn merge(target: &mut Value, change: &Value) {
    let Value::Object(change) = change else {
        *target = change.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in change {
        match value {
            Value::Null => drop(target.as_object_mut().map(|object| object.remove(key))),
            value => merge(&mut target[key], value),
        }
    }
}

/// Normal or Warning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the values that go over the wire")]
pub enum EventKind {
    Normal,
    Warning,
}

/// An Event to record about an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Normal or Warning.
    pub kind: EventKind,
    /// Upstream's reason, such as `ScalingReplicaSet`.
    pub reason: &'static str,
    /// What a person reads.
    pub message: String,
    /// ObjectReference of what it is about.
    pub regarding: Value,
}

impl Event {
    /// An event about the object in `row`.
    pub fn about(
        row: &Row,
        api_version: &str,
        kind: &str,
        event: EventKind,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        let mut regarding = json!({"apiVersion": api_version, "kind": kind, "name": row.key.name,
            "uid": row.facts.uid, "resourceVersion": alloc::format!("{}", row.revision)});
        if !row.key.namespace.is_empty() {
            regarding["namespace"] = row.key.namespace.to_owned().into();
        }
        Self { kind: event, reason, message: message.into(), regarding }
    }
}

/// What a controller wants done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Writes of one stage may run together; the next stage runs only if all of them succeeded.
    pub stages: Vec<Vec<Write>>,
    /// What to tell people, once the writes are done.
    pub events: Vec<Event>,
    /// What to tell people if a write is refused for another reason than a conflict; what the
    /// server said is put behind the message.
    pub on_refusal: Option<Event>,
    /// When to look again although nothing changes.
    pub retry_after: Option<Duration>,
}

impl Plan {
    /// Nothing to do.
    pub fn none() -> Self {
        Self::default()
    }

    /// Writes that may run together.
    pub fn writes(writes: Vec<Write>) -> Self {
        Self::none().then(writes)
    }

    /// More writes, after those so far.
    #[must_use]
    pub fn then(mut self, writes: Vec<Write>) -> Self {
        if !writes.is_empty() {
            self.stages.push(writes);
        }
        self
    }

    /// With an event.
    #[must_use]
    pub fn with_event(mut self, event: Event) -> Self {
        self.events.push(event);
        self
    }

    /// Looks again after `wait`, or earlier if it was to be earlier already.
    #[must_use]
    pub fn again_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(self.retry_after.map_or(wait, |old| old.min(wait)));
        self
    }

    /// Whether there is nothing to carry out.
    pub fn is_empty(&self) -> bool {
        self.stages.is_empty() && self.events.is_empty()
    }
}
