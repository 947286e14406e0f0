//! The pump around the pipeline.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::future::join_all;
use jiff::Timestamp;
use knarr_api::{Reason, Status};
use knarr_pki::{Authority, PkiError, Signed};
use knarr_registry::{
    Answer, Ask, Body, Call, Config, Credential, Method, OPENAPI_V2_PROTOBUF, Request, Response,
    Snapshot, Step, User, Views, WatchSpec, World, bootstrap,
};
use knarr_schema::Schema;
use knarr_store::{Store, StoreError};
use rustls::ClientConfig;
use tracing::{info, warn};

use crate::documents::Documents;
use crate::metrics::Metrics;
use crate::past;
use crate::tokens::Tokens;
use crate::watcher::Watcher;

/// What a server is made of.
pub struct ServerConfig {
    /// What the pipeline has to know.
    pub pipeline: Config,
    /// The client certificate for talking to nodes.
    pub node_client: Signed,
}

/// Why a server cannot start.
#[derive(Debug)]
pub enum StartError {
    /// Keys or certificates are of no use.
    Pki(PkiError),
    /// A bootstrap object was refused.
    Bootstrap(String),
}

impl std::error::Error for StartError {}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pki(error) => write!(f, "keys and certificates: {error}"),
            Self::Bootstrap(why) => write!(f, "bootstrap objects: {why}"),
        }
    }
}

/// The API server; clones of its `Arc` share it.
pub struct Server {
    store: Store,
    views: RwLock<Arc<Views>>,
    config: Config,
    tokens: Tokens,
    ready: AtomicBool,
    documents: Documents,
    pub(crate) metrics: Metrics,
    pub(crate) node_tls: Arc<ClientConfig>,
    pub(crate) pod_tls: Arc<ClientConfig>,
}

impl Server {
    /// A server over a store. It answers requests; [`Server::bootstrap`] makes it ready.
    ///
    /// # Errors
    /// When the key material is of no use.
    pub fn new(
        store: Store,
        authority: &Authority,
        config: ServerConfig,
    ) -> Result<Arc<Self>, StartError> {
        let node_tls = knarr_pki::client_config(authority.certificate(), Some(&config.node_client))
            .map_err(StartError::Pki)?;
        let pod_tls = knarr_pki::unverified_config().map_err(StartError::Pki)?;
        let tokens = Tokens::new(&config.pipeline.issuer, authority).map_err(StartError::Pki)?;
        Ok(Arc::new(Self {
            store,
            views: RwLock::new(Arc::new(Views::new(Schema::builtin()))),
            config: config.pipeline,
            tokens,
            ready: AtomicBool::new(false),
            documents: Documents::default(),
            metrics: Metrics::new(),
            node_tls,
            pod_tls,
        }))
    }

    /// Makes the objects that every cluster starts with, where they are missing.
    ///
    /// # Errors
    /// When one of them is refused.
    pub async fn bootstrap(self: &Arc<Self>) -> Result<(), StartError> {
        let objects = bootstrap::objects(&self.config);
        let (grounds, others): (Vec<_>, Vec<_>) = objects.iter().partition(|object| {
            ["Namespace", "ServiceCIDR"].iter().any(|kind| object["kind"] == *kind)
        });
        // Namespaces and address ranges come before what is in them; the rest shares its trips to
        // the disk.
        let mut made = self.create_all(&grounds).await?;
        made += self.create_all(&others).await?;
        let own = self.config.advertise.parse::<SocketAddr>().map(|at| at.ip());
        if !self.store.is_shared() {
            self.lead_to(&own.into_iter().collect()).await;
        }
        if made > 0 {
            info!(objects = made, "bootstrap objects created");
        }
        self.ready.store(true, Ordering::Release);
        Ok(())
    }

    /// Makes the Service `kubernetes` lead to these servers.
    pub(crate) async fn lead_to(self: &Arc<Self>, servers: &BTreeSet<IpAddr>) {
        for object in bootstrap::api_server_endpoints(&self.config, servers) {
            let response = self.put(&object).await;
            if response.code >= 300 {
                let why = response.bytes().unwrap_or_default();
                let why = String::from_utf8_lossy(&why);
                warn!(%why, "the Service `kubernetes` does not lead to the servers there are");
            }
        }
    }

    /// What the pipeline has to know.
    pub(crate) fn pipeline(&self) -> &Config {
        &self.config
    }

    /// Creates objects that may be there already; how many were not.
    async fn create_all(
        self: &Arc<Self>,
        objects: &[&serde_json::Value],
    ) -> Result<usize, StartError> {
        let mut made = 0;
        for response in join_all(objects.iter().map(|object| self.create(object))).await {
            match response.code {
                201 => made += 1,
                409 => {}
                _ => {
                    let text = response.bytes().unwrap_or_default();
                    let text = String::from_utf8_lossy(&text).into_owned();
                    return Err(StartError::Bootstrap(text));
                }
            }
        }
        Ok(made)
    }

    /// Creates an object as the server itself.
    pub async fn create(self: &Arc<Self>, object: &serde_json::Value) -> Response {
        self.send(Method::Post, self.collection_path(object), object).await
    }

    /// Creates an object or puts it in the place of the one that is there.
    async fn put(self: &Arc<Self>, object: &serde_json::Value) -> Response {
        let made = self.create(object).await;
        if made.code != 409 {
            return made;
        }
        let name = object.pointer("/metadata/name").and_then(|name| name.as_str());
        let path = format!("{}/{}", self.collection_path(object), name.unwrap_or_default());
        self.send(Method::Put, path, object).await
    }

    async fn send(
        self: &Arc<Self>,
        method: Method,
        path: String,
        object: &serde_json::Value,
    ) -> Response {
        let user = User::new("system:apiserver", &["system:masters"]);
        let mut request = Request::new(method, path, Credential::Component(user));
        request.body = serde_json::to_vec(object).expect("a tree has a JSON form").into();
        self.call(request).await
    }

    /// Where objects like this one are created.
    fn collection_path(&self, object: &serde_json::Value) -> String {
        let word = |pointer: &str| object.pointer(pointer).and_then(|v| v.as_str()).unwrap_or("");
        let (api_version, namespace) = (word("/apiVersion"), word("/metadata/namespace"));
        let views = self.views();
        let kind = views.catalog.kind(api_version, word("/kind"));
        let plural = kind.map_or("", |kind| kind.plural.as_str());
        let root = if api_version.contains('/') { "apis" } else { "api" };
        match namespace {
            "" => format!("/{root}/{api_version}/{plural}"),
            namespace => format!("/{root}/{api_version}/namespaces/{namespace}/{plural}"),
        }
    }

    /// The store behind it.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Whether the bootstrap objects are there.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// The views as they were last advanced.
    pub fn views(&self) -> Arc<Views> {
        self.views.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads a bearer token into what the pipeline knows of it.
    pub(crate) fn credential(&self, token: &str) -> Credential {
        match self.tokens.verify(token, &[]) {
            Some(claims) => Credential::ServiceAccount(claims),
            None => Credential::Token(token.to_owned()),
        }
    }

    /// Carries a request through the pipeline.
    pub async fn call(self: &Arc<Self>, request: Request) -> Response {
        if !request.content_with(self.store.durable())
            && let Err(error) = self.store.fresh().await
        {
            return refused(&error);
        }
        let mut call = Call::new(request);
        let mut answer = Answer::Start;
        loop {
            match self.step(&mut call, answer) {
                Step::Reply(response) => return self.own_pages(response),
                Step::Ask(Ask::Past { range, at, compacted }) => {
                    answer = Answer::Past(past::read(&self.store, range, at, compacted).await);
                }
                Step::Ask(ask) => answer = self.answer(ask),
                Step::Commit(txn) => match self.store.txn(txn).await {
                    Ok(response) => answer = Answer::Committed(response),
                    Err(error) => return refused(&error),
                },
            }
        }
    }

    fn step(&self, call: &mut Call, answer: Answer) -> Step {
        let mut seed = [0; 16];
        getrandom::fill(&mut seed).expect("the kernel gives randomness");
        self.store.read(|keyspace, revision| {
            let snapshot = Snapshot::new(keyspace, revision);
            let views = self.views_at(snapshot);
            let world = World {
                snapshot,
                views: &views,
                config: &self.config,
                now: now(),
                seed: u128::from_le_bytes(seed),
            };
            call.step(&world, answer)
        })
    }

    /// The views, as fresh as the snapshot.
    fn views_at(&self, snapshot: Snapshot<'_>) -> Arc<Views> {
        let views = self.views();
        if views.revision() >= snapshot.revision() {
            return views;
        }
        let mut slot = self.views.write().unwrap_or_else(PoisonError::into_inner);
        if slot.revision() < snapshot.revision() {
            Arc::make_mut(&mut slot).advance(snapshot);
        }
        slot.clone()
    }

    fn answer(&self, ask: Ask) -> Answer {
        match ask {
            Ask::SignToken { claims, audiences, seconds } => {
                Answer::Signed(self.tokens.sign(&claims, &audiences, seconds))
            }
            Ask::VerifyToken { token, audiences } => {
                Answer::Verified(self.tokens.verify(&token, &audiences))
            }
            Ask::Past { .. } => unreachable!("the past is read by its own arm"),
        }
    }

    /// Fills in the pages about this process.
    fn own_pages(&self, mut response: Response) -> Response {
        let Body::Own(path) = &response.body else { return response };
        match path.trim_matches('/') {
            "metrics" => {
                response = Response::text(200, self.metrics.render(&self.store));
                response.content_type = "text/plain; version=0.0.4; charset=utf-8";
            }
            ".well-known/openid-configuration" => {
                response = Response::json(200, &self.tokens.discovery());
            }
            "openid/v1/jwks" => {
                response = Response::json(200, &self.tokens.keys());
                response.content_type = "application/jwk-set+json";
            }
            path if path.starts_with("openapi/") => {
                let is_protobuf = path == OPENAPI_V2_PROTOBUF.trim_matches('/');
                response = match self.documents.get(&self.views(), path) {
                    Some(document) => Response::chunks(200, vec![document]),
                    None => Status::no_such_path().into(),
                };
                if is_protobuf {
                    response.content_type =
                        "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
                }
            }
            path if path.starts_with("readyz") && !self.is_ready() => {
                response = Response::text(500, "[-]poststarthook/bootstrap failed: not finished\n");
            }
            _ => response = Response::text(200, "ok"),
        }
        response
    }

    /// Opens a watch that the pipeline granted.
    pub fn watch(self: &Arc<Self>, spec: WatchSpec) -> Watcher {
        Watcher::new(self.store.clone(), spec)
    }
}

/// The wall clock.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_nanosecond(since.as_nanos() as i128).unwrap_or(Timestamp::MAX)
}

fn refused(error: &StoreError) -> Response {
    warn!(%error, "the store refused a request");
    let status = match error {
        StoreError::Refused(refusal) => Status::internal(refusal),
        StoreError::Etcd(why) => Status::internal(why),
        StoreError::Unknown(_) => Status::new(Reason::ServerTimeout, error.to_string()),
        other => Status::new(Reason::ServiceUnavailable, other.to_string()),
    };
    status.into()
}

/// Turns a YAML or protobuf body into JSON; JSON passes.
pub(crate) fn body_as_json(
    schema: &Schema,
    content_type: &str,
    body: Bytes,
) -> Result<Bytes, Status> {
    let media = content_type.split(';').next().unwrap_or_default().trim();
    match media {
        "application/yaml" | "application/x-yaml" | "text/yaml" => {
            let bad = |why: &dyn fmt::Display| Status::bad_request(format!("{why}"));
            let text = std::str::from_utf8(&body).map_err(|error| bad(&error))?;
            let tree: serde_json::Value =
                serde_saphyr::from_str(text).map_err(|error| bad(&error))?;
            Ok(serde_json::to_vec(&tree).expect("a tree has a JSON form").into())
        }
        "application/vnd.kubernetes.protobuf" => {
            schema.protobuf_to_json(&body).map(Bytes::from).map_err(Status::bad_request)
        }
        "" | "application/json" => Ok(body),
        other if other.ends_with("+json") => Ok(body),
        other => Err(Status::new(
            Reason::UnsupportedMediaType,
            format!(
                "the body of the request was in an unknown format - accepted media types include: \
                 application/json, application/yaml, \
                 application/vnd.kubernetes.protobuf (got {other})"
            ),
        )),
    }
}
