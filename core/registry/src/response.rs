//! What goes out.

use alloc::string::String;
use alloc::vec::Vec;

use bytes::Bytes;
use knarr_api::{ObjectKey, Status};
use serde_json::Value;

use crate::watch::WatchSpec;

/// JSON, the media type of nearly every answer.
pub(crate) const JSON: &str = "application/json";

/// A request that only the node of a Pod can answer; the shell carries it there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStream {
    /// Which node.
    pub node: String,
    /// Path and query on the node's own server.
    pub target: String,
    /// Which Pod, for messages.
    pub pod: ObjectKey,
}

/// The body of an answer.
#[derive(Clone, Debug)]
pub enum Body {
    /// Pieces, to be sent one after the other; objects are not copied into them.
    Chunks(Vec<Bytes>),
    /// A stream of watch events.
    Watch(WatchSpec),
    /// A stream from a node.
    Node(NodeStream),
    /// A page that the server process makes: health, metrics, token keys, OpenAPI documents. Its
    /// path.
    Own(String),
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// HTTP status code.
    pub code: u16,
    /// `Content-Type`.
    pub content_type: &'static str,
    /// Texts for `Warning` headers.
    pub warnings: Vec<String>,
    /// The body.
    pub body: Body,
}

impl Response {
    /// An answer made of pieces.
    pub fn chunks(code: u16, chunks: Vec<Bytes>) -> Self {
        Self { code, content_type: JSON, warnings: Vec::new(), body: Body::Chunks(chunks) }
    }

    /// A tree as JSON.
    pub fn json(code: u16, tree: &Value) -> Self {
        let text = serde_json::to_vec(tree).expect("a tree always has a JSON form");
        Self::chunks(code, [Bytes::from(text)].into())
    }

    /// Plain text.
    pub fn text(code: u16, text: impl Into<String>) -> Self {
        let mut response = Self::chunks(code, [Bytes::from(text.into())].into());
        response.content_type = "text/plain; charset=utf-8";
        response
    }

    /// A refusal.
    pub fn status(status: &Status) -> Self {
        Self::json(status.code, &status.to_json())
    }

    /// The whole body, when it is one of bytes.
    pub fn bytes(&self) -> Option<Bytes> {
        match &self.body {
            Body::Chunks(chunks) if chunks.len() == 1 => Some(chunks[0].clone()),
            Body::Chunks(chunks) => Some(chunks.concat().into()),
            Body::Watch(_) | Body::Node(_) | Body::Own(_) => None,
        }
    }
}

impl From<Status> for Response {
    fn from(status: Status) -> Self {
        Self::status(&status)
    }
}
