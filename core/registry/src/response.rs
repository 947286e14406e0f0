//! What goes out.

use alloc::string::String;
use alloc::vec::Vec;

use bytes::Bytes;
use knarr_api::Status;
use serde_json::Value;

use crate::watch::WatchSpec;

/// JSON, the media type of nearly every answer.
pub(crate) const JSON: &str = "application/json";

/// A request that somebody else answers, a node or a Pod; the shell carries it there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Onward {
    /// Where to, `host:port`.
    pub host: String,
    /// Path and query there.
    pub target: String,
    /// How to get there.
    pub road: Road,
    /// What is passed on.
    pub passage: Passage,
}

/// How the server behind an [`Onward`] is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Road {
    /// A node's own server: TLS with the cluster's certificates on both sides.
    Node,
    /// Plain HTTP.
    Http,
    /// TLS without a look at the certificate: nobody vouches for a Pod's.
    Https,
}

/// What an [`Onward`] passes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// A GET; the answer streams back, a refusal becomes a Status.
    Text,
    /// An upgraded connection and nothing else.
    Session,
    /// Method, headers and body, the answer, and an upgrade if one is asked for.
    Whole,
}

/// The body of an answer.
#[derive(Clone, Debug)]
pub enum Body {
    /// Pieces, to be sent one after the other; objects are not copied into them.
    Chunks(Vec<Bytes>),
    /// A stream of watch events.
    Watch(WatchSpec),
    /// What somebody else answers.
    Onward(Onward),
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
            Body::Watch(_) | Body::Onward(_) | Body::Own(_) => None,
        }
    }
}

impl From<Status> for Response {
    fn from(status: Status) -> Self {
        Self::status(&status)
    }
}
