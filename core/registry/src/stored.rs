//! Values as upstream's API server stores them, made what is stored here.
//!
//! Upstream keeps built-in kinds as protobuf in an envelope, or as JSON if told to, and custom
//! kinds as JSON; here everything is canonical JSON. Keys are the same but for what servers keep
//! for themselves. Both read what an older server wrote through today's defaults.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use bytes::Bytes;
use knarr_api::{Catalog, Kind, ObjectKey};
use knarr_schema::{Envelope, Schema};
use serde_json::Value;

use crate::object::{text, tree};
use crate::{convert, kinds};

/// Keys below these are notes of upstream's servers to themselves; nothing here reads them.
const NOTES: [(&str, &str); 4] = [
    ("/registry/masterleases/", "addresses of API servers"),
    ("/registry/peerserverleases/", "addresses of API servers"),
    ("/registry/ranges/", "maps of given addresses and ports; made anew from the Services"),
    ("/registry/health", "a health check's own key"),
];

/// Versions that are stored by servers of this day and differ from what is served in nothing but
/// their name.
const RENAMED: [(&str, &str); 6] = [
    ("admissionregistration.k8s.io/v1beta1", "admissionregistration.k8s.io/v1"),
    ("batch/v1beta1", "batch/v1"),
    ("flowcontrol.apiserver.k8s.io/v1beta3", "flowcontrol.apiserver.k8s.io/v1"),
    ("networking.k8s.io/v1beta1", "networking.k8s.io/v1"),
    ("resource.k8s.io/v1beta2", "resource.k8s.io/v1"),
    ("storage.k8s.io/v1beta1", "storage.k8s.io/v1"),
];

const ENCRYPTED: &[u8] = b"k8s:enc:";

/// An object as it is stored here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Where.
    pub key: String,
    /// Canonical JSON.
    pub value: Bytes,
    /// What it is: `Pod`, `Deployment.apps`.
    pub kind: String,
    /// Keys that stand for what it holds, to be stored beside it: a Service's node ports.
    pub claims: Vec<(String, Bytes)>,
}

/// Why a value cannot become an object here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// It is encrypted, by this provider.
    Encrypted(String),
    /// Neither protobuf nor JSON of an object.
    NoObject,
    /// A built-in kind in a version that is not served here: apiVersion and kind.
    Kind(String, String),
    /// It does not fit its kind.
    Malformed(String),
}

/// Why a key has no place here, if it is one that upstream's servers keep for themselves.
pub fn note_of_a_server(key: &str) -> Option<&'static str> {
    let note = NOTES.iter().find(|(prefix, _)| key.starts_with(prefix));
    note.map(|(_, what)| *what)
}

/// Makes a value what is stored here. What is canonical already stays as it is.
///
/// # Errors
/// [`Unreadable`].
pub fn canonical(
    catalog: &Catalog,
    schema: &Schema,
    key: &str,
    value: &[u8],
) -> Result<Stored, Unreadable> {
    let read = Read::of(value)?;
    let Some(kind) = catalog.kind(&read.api_version, &read.kind) else {
        return read.custom(key);
    };
    let id = schema.kind_type(&kind.group, &kind.version, &kind.kind);
    let id = id.ok_or_else(|| read.unknown())?;
    let tree = match &read.body {
        Body::Protobuf(raw) => schema.decode_protobuf(id, raw).map_err(malformed),
        Body::Json(object) => {
            schema.decode_value(id, object).map(|decoded| decoded.tree).map_err(malformed)
        }
    };
    let mut tree = tree?;
    schema.default(id, &mut tree);
    schema.normalize(id, &mut tree);
    let object = ObjectKey::new(
        if kind.namespaced() { text(&tree, "/metadata/namespace") } else { "" },
        text(&tree, "/metadata/name"),
    );
    if object.name.is_empty() || (kind.namespaced() && object.namespace.is_empty()) {
        return Err(malformed("it has no name"));
    }
    let claims = kinds::port_claims(kind, &tree);
    let value = encode(kind, &mut tree);
    Ok(Stored { key: kind.key(&object), value, kind: kind.group_kind(), claims })
}

/// A normalised object as bytes; the one form in which objects are stored.
pub(crate) fn encode(kind: &Kind, tree: &mut Value) -> Bytes {
    convert::to_stored(kind, tree);
    knarr_schema::encode(&kind.kind, &convert::stored_version(kind), tree).into()
}

/// What a value says it is.
struct Read<'a> {
    api_version: String,
    kind: String,
    body: Body<'a>,
}

enum Body<'a> {
    Protobuf(&'a [u8]),
    Json(Value),
}

impl<'a> Read<'a> {
    fn of(value: &'a [u8]) -> Result<Self, Unreadable> {
        if let Some(rest) = value.strip_prefix(ENCRYPTED) {
            let provider = rest.split(|byte| *byte == b':').next().unwrap_or_default();
            return Err(Unreadable::Encrypted(String::from_utf8_lossy(provider).into_owned()));
        }
        let mut read = if value.first() == Some(&b'{') {
            let object = tree(value).map_err(|status| malformed(status.message))?;
            let word = |pointer| text(&object, pointer).to_owned();
            Self { api_version: word("/apiVersion"), kind: word("/kind"), body: Body::Json(object) }
        } else {
            let envelope = Envelope::unwrap(value).map_err(|_| Unreadable::NoObject)?;
            let (api_version, kind) = (envelope.api_version.to_owned(), envelope.kind.to_owned());
            Self { api_version, kind, body: Body::Protobuf(envelope.raw) }
        };
        if read.kind.is_empty() || read.api_version.is_empty() {
            return Err(Unreadable::NoObject);
        }
        if let Some((_, now)) = RENAMED.iter().find(|(old, _)| *old == read.api_version) {
            read.api_version = (*now).to_owned();
        }
        Ok(read)
    }

    /// A kind that no row of the catalog declares: one of a definition, if it lies where those do.
    fn custom(self, key: &str) -> Result<Stored, Unreadable> {
        let group = self.api_version.split_once('/').map_or("", |(group, _)| group);
        let custom = !group.is_empty() && key.starts_with(&format!("/registry/{group}/"));
        match self.body {
            Body::Json(object) if custom => Ok(Stored {
                key: key.to_owned(),
                value: knarr_schema::encode(&self.kind, &self.api_version, &object).into(),
                kind: format!("{}.{group}", self.kind),
                claims: Vec::new(),
            }),
            _ => Err(self.unknown()),
        }
    }

    fn unknown(&self) -> Unreadable {
        Unreadable::Kind(self.api_version.clone(), self.kind.clone())
    }
}

fn malformed(why: impl ToString) -> Unreadable {
    Unreadable::Malformed(why.to_string())
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Encrypted(provider) => write!(f, "encrypted ({provider})"),
            Self::NoObject => f.write_str("no object"),
            Self::Kind(api_version, kind) => {
                write!(f, "{kind} in version {api_version} is not served here")
            }
            Self::Malformed(why) => f.write_str(why),
        }
    }
}

impl core::error::Error for Unreadable {}
