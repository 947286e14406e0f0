//! One API by two roads: in process, straight into the pipeline, and over TLS.
//!
//! Components are written against [`Client`] and cannot tell which road they are on; both carry
//! the same requests through authorization, admission and audit. Nothing here knows a kind.

mod remote;
mod stream;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use knarr_api::{ObjectKey, Reason, Resource, Status};
use knarr_apiserver::Server;
use knarr_pki::{Kubeconfig, PkiError};
use knarr_registry::{Body, Credential, Method, Request, User};
use serde_json::Value;

pub use knarr_registry::EventType;
pub use stream::{StreamItem, WatchError, WatchStream};

use remote::Remote;

/// Why a request did not do what it was to do.
#[derive(Clone, Debug)]
pub enum ClientError {
    /// The server answered, and refused.
    Refused(Status),
    /// No answer: the request may or may not have been carried out.
    Unknown(String),
}

impl ClientError {
    /// Whether the server refused for this reason.
    pub fn is(&self, reason: Reason) -> bool {
        matches!(self, Self::Refused(status) if status.reason == reason)
    }
}

impl std::error::Error for ClientError {}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(status) => f.write_str(&status.message),
            Self::Unknown(why) => write!(f, "no answer from the API server: {why}"),
        }
    }
}

/// The form of a patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    /// RFC 6902.
    Json,
    /// RFC 7396.
    Merge,
    /// Kubernetes' own.
    Strategic,
}

impl PatchType {
    fn media(self) -> &'static str {
        match self {
            Self::Json => "application/json-patch+json",
            Self::Merge => "application/merge-patch+json",
            Self::Strategic => "application/strategic-merge-patch+json",
        }
    }
}

/// A client of the API; clones share their connections.
#[derive(Clone)]
pub struct Client {
    road: Road,
}

#[derive(Clone)]
enum Road {
    InProcess(Arc<Server>, User),
    Tls(Arc<Remote>),
}

impl Client {
    /// A client inside the server's process, with the identity of its component.
    pub fn in_process(server: Arc<Server>, user: User) -> Self {
        Self { road: Road::InProcess(server, user) }
    }

    /// A client of a server somewhere.
    ///
    /// # Errors
    /// When the kubeconfig's key material is of no use.
    pub fn connect(config: &Kubeconfig) -> Result<Self, PkiError> {
        Ok(Self { road: Road::Tls(Arc::new(Remote::new(config)?)) })
    }

    /// Sends a request and gives the body of a successful answer.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn send(
        &self,
        method: Method,
        target: &str,
        content_type: &str,
        body: Bytes,
    ) -> Result<Bytes, ClientError> {
        let (code, body) = match &self.road {
            Road::InProcess(server, user) => {
                let request = request(user, method, target, content_type, body);
                let response = server.call(request).await;
                let body = response.bytes();
                (response.code, body.ok_or_else(|| unexpected(target))?)
            }
            Road::Tls(remote) => remote.send(method, target, content_type, body).await?,
        };
        if (200..300).contains(&code) { Ok(body) } else { Err(refusal(code, &body)) }
    }

    async fn json(
        &self,
        method: Method,
        target: &str,
        content_type: &str,
        body: Option<&Value>,
    ) -> Result<Value, ClientError> {
        let encode = |tree| serde_json::to_vec(tree).expect("a tree has a JSON form").into();
        let body: Bytes = body.map(encode).unwrap_or_default();
        let answer = self.send(method, target, content_type, body).await?;
        serde_json::from_slice(&answer).map_err(|error| ClientError::Unknown(error.to_string()))
    }

    /// Reads one object.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get(&self, resource: Resource, object: &ObjectKey) -> Result<Value, ClientError> {
        self.json(Method::Get, &resource.object_path(object, ""), JSON, None).await
    }

    /// Reads a collection; `query` is the encoded query, empty for all of it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn list(
        &self,
        resource: Resource,
        namespace: &str,
        query: &str,
    ) -> Result<Value, ClientError> {
        let target = format!("{}?{query}", resource.path(namespace));
        self.json(Method::Get, &target, JSON, None).await
    }

    /// Creates an object and gives it as it was stored.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn create(
        &self,
        resource: Resource,
        namespace: &str,
        object: &Value,
    ) -> Result<Value, ClientError> {
        self.json(Method::Post, &resource.path(namespace), JSON, Some(object)).await
    }

    /// Posts to a subresource (binding, eviction, token).
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn create_sub(
        &self,
        resource: Resource,
        object: &ObjectKey,
        subresource: &str,
        body: &Value,
    ) -> Result<Value, ClientError> {
        let target = resource.object_path(object, subresource);
        self.json(Method::Post, &target, JSON, Some(body)).await
    }

    /// Replaces an object, or a part of it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn update(
        &self,
        resource: Resource,
        object: &ObjectKey,
        subresource: &str,
        body: &Value,
    ) -> Result<Value, ClientError> {
        let target = resource.object_path(object, subresource);
        self.json(Method::Put, &target, JSON, Some(body)).await
    }

    /// Patches an object, or a part of it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn patch(
        &self,
        resource: Resource,
        object: &ObjectKey,
        subresource: &str,
        kind: PatchType,
        patch: &Value,
    ) -> Result<Value, ClientError> {
        let target = resource.object_path(object, subresource);
        self.json(Method::Patch, &target, kind.media(), Some(patch)).await
    }

    /// Deletes an object; `options` are a DeleteOptions.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn delete(
        &self,
        resource: Resource,
        object: &ObjectKey,
        options: &Value,
    ) -> Result<Value, ClientError> {
        let target = resource.object_path(object, "");
        self.json(Method::Delete, &target, JSON, Some(options)).await
    }

    /// Watches a collection from `query` on (encoded, without `watch`). With an empty query or
    /// `resourceVersion=0` it begins with everything there is.
    ///
    /// # Errors
    /// [`ClientError`] when the watch is not granted.
    pub async fn watch(
        &self,
        resource: Resource,
        namespace: &str,
        query: &str,
    ) -> Result<WatchStream, ClientError> {
        let target = format!("{}?watch=true&{query}", resource.path(namespace));
        match &self.road {
            Road::InProcess(server, user) => {
                let request = request(user, Method::Get, &target, JSON, Bytes::new());
                let response = server.call(request).await;
                match response.body {
                    Body::Watch(spec) => Ok(WatchStream::in_process(server.watch(spec))),
                    _ => {
                        let body = response.bytes().unwrap_or_default();
                        Err(refusal(response.code, &body))
                    }
                }
            }
            Road::Tls(remote) => remote.watch(&target).await,
        }
    }
}

const JSON: &str = "application/json";

fn request(user: &User, method: Method, target: &str, content_type: &str, body: Bytes) -> Request {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut request = Request::new(method, path, Credential::Component(user.clone()));
    request.query = query.to_owned();
    request.content_type = content_type.to_owned();
    request.body = body;
    request
}

fn unexpected(target: &str) -> ClientError {
    ClientError::Unknown(format!("{target} answers with a stream"))
}

/// Reads a Status; whatever is none becomes one.
pub(crate) fn refusal(code: u16, body: &[u8]) -> ClientError {
    let tree: Value = serde_json::from_slice(body).unwrap_or_default();
    let reason = tree["reason"].as_str().and_then(Reason::parse).unwrap_or(Reason::Unknown);
    let message = tree["message"].as_str().map(str::to_owned);
    let message = message.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
    let details = tree.get("details").cloned();
    ClientError::Refused(Status { reason, code, message, details })
}

/// The CA of a server that is only known by its hash (from a join token), PEM.
///
/// # Errors
/// When the server cannot be reached, or is another one.
pub async fn fetch_ca(server: &str, hash: &str) -> Result<String, ClientError> {
    let (tls, ca) =
        knarr_pki::pinned_config(hash).map_err(|error| ClientError::Unknown(error.to_string()))?;
    let remote = Remote::with_tls(server, None, tls);
    remote.send(Method::Get, "/version", JSON, Bytes::new()).await?;
    ca.get().cloned().ok_or_else(|| ClientError::Unknown("no TLS handshake".to_owned()))
}
