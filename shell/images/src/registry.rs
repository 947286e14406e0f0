//! One repository of one host: the distribution specification's pull half, with its token flow.
//!
//! A request is repeated only where that helps and a registry expects it: after a broken
//! connection, 429 (as late as `Retry-After` says) and 5xx, a bounded number of times.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, RANGE, RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::{Method, StatusCode};
use hyper::body::Incoming;
use knarr_oci::challenge::{Challenge, TokenAnswer};
use knarr_oci::credentials::Credentials;
use knarr_oci::image::MANIFEST_TYPES;

use crate::hosts::Host;
use crate::transport::{Answer, Transport, body};

/// How often a request is sent before its failure is told.
pub(crate) const ATTEMPTS: u32 = 5;
/// The pause before the first repetition; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause a registry may ask for.
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// Longest manifest, as the specification recommends.
const MAX_MANIFEST: usize = 4 << 20;
const MAX_TOKEN: usize = 1 << 20;
const MAX_COMPLAINT: usize = 64 << 10;

/// Why a registry did not give what was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RegistryError {
    /// There is no such image.
    NotFound(String),
    /// The registry wants other credentials, or any.
    Denied(String),
    /// It cannot be reached, or breaks off again and again.
    Unreachable(String),
    /// It answered with an error.
    Status(u16, String),
    /// What it gave is not what was asked for, or cannot be used here.
    Broken(String),
    /// The configuration for it is wrong.
    Config(String),
}

impl std::fmt::Display for RegistryError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RegistryError::NotFound(what) => write!(f, "{what}: not found"),
            RegistryError::Denied(why) => write!(
                f,
                "pull access denied, repository does not exist or may require authorization: {why}"
            ),
            RegistryError::Status(code, why) => {
                let text = StatusCode::from_u16(*code).ok().and_then(|c| c.canonical_reason());
                write!(f, "unexpected status {code} {}: {why}", text.unwrap_or_default())
            }
            RegistryError::Unreachable(why)
            | RegistryError::Broken(why)
            | RegistryError::Config(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for RegistryError {}

impl RegistryError {
    /// Whether the same request may succeed when it is sent again.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            RegistryError::Unreachable(_) => true,
            RegistryError::Status(code, _) => *code == 429 || *code >= 500,
            _ => false,
        }
    }
}

/// The pause before repetition `attempt` (0 first).
pub(crate) fn pause(attempt: u32) -> Duration {
    FIRST_PAUSE * 2_u32.pow(attempt.min(8))
}

/// A repository on a host.
pub(crate) struct Repository {
    transport: Transport,
    host: Host,
    name: String,
    /// `?ns=` for mirrors, so that one may serve several registries.
    query: String,
    credentials: Option<Credentials>,
    authorization: Mutex<Option<HeaderValue>>,
}

/// A manifest or index, with its type and the digest of its bytes.
pub(crate) struct Document {
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) bytes: Bytes,
}

impl Repository {
    /// A repository; credentials are shown to the registry itself, never to a mirror.
    ///
    /// # Errors
    /// The host's settings are of no use.
    pub(crate) fn new(
        host: Host,
        registry: &str,
        name: &str,
        credentials: Option<&Credentials>,
    ) -> Result<Repository, RegistryError> {
        Ok(Repository {
            transport: Transport::new(&host)?,
            name: name.to_owned(),
            query: if host.own { String::new() } else { format!("?ns={registry}") },
            credentials: credentials.filter(|_| host.own).cloned(),
            authorization: Mutex::new(None),
            host,
        })
    }

    pub(crate) fn resolves(&self) -> bool {
        self.host.resolve
    }

    /// What a tag stands for now, when the registry tells without sending it.
    pub(crate) async fn resolve(&self, tag: &str) -> Result<Option<String>, RegistryError> {
        let answer = self.request(&Method::HEAD, &format!("manifests/{tag}"), &accept()).await?;
        let digest = answer.response.headers().get("docker-content-digest");
        let digest = digest.and_then(|value| value.to_str().ok());
        Ok(digest.filter(|text| knarr_oci::reference::is_digest(text)).map(str::to_owned))
    }

    /// A manifest or index by tag or digest; by digest, its bytes have that digest.
    pub(crate) async fn manifest(&self, reference: &str) -> Result<Document, RegistryError> {
        let path = format!("manifests/{reference}");
        let (headers, bytes) = self.whole(&path, &accept(), MAX_MANIFEST).await?;
        let media_type = headers.get(http::header::CONTENT_TYPE);
        let media_type = media_type.and_then(|value| value.to_str().ok()).unwrap_or_default();
        let media_type = media_type.split(';').next().unwrap_or_default().trim().to_owned();
        let digest = crate::blobs::digest_of(&bytes);
        if reference.contains(':') && digest != reference {
            let text = format!("manifest {reference} has other contents: {digest}");
            return Err(RegistryError::Broken(text));
        }
        Ok(Document { media_type, digest, bytes })
    }

    /// A blob that is a document; its bytes have that digest.
    pub(crate) async fn document(
        &self,
        digest: &str,
        limit: usize,
    ) -> Result<Bytes, RegistryError> {
        let path = format!("blobs/{digest}");
        let (_, bytes) = self.whole(&path, &HeaderMap::new(), limit).await?;
        match crate::blobs::digest_of(&bytes) {
            found if found == digest => Ok(bytes),
            found => Err(RegistryError::Broken(format!("{digest} has other contents: {found}"))),
        }
    }

    /// A blob from a byte on; whether it begins there (else it begins at its first).
    pub(crate) async fn blob(
        &self,
        digest: &str,
        from: u64,
    ) -> Result<(http::Response<Incoming>, bool), RegistryError> {
        let mut headers = HeaderMap::new();
        if from > 0 {
            let range = HeaderValue::try_from(format!("bytes={from}-")).expect("digits and ASCII");
            headers.insert(RANGE, range);
        }
        let answer = self.request(&Method::GET, &format!("blobs/{digest}"), &headers).await?;
        let range = answer.response.headers().get(http::header::CONTENT_RANGE);
        let range = range.and_then(|value| value.to_str().ok()).unwrap_or_default();
        let continues = answer.response.status() == StatusCode::PARTIAL_CONTENT
            && range.starts_with(&format!("bytes {from}-"));
        Ok((answer.response, continues))
    }

    /// Fetches a document whole, anew if the connection breaks in the middle.
    async fn whole(
        &self,
        path: &str,
        headers: &HeaderMap,
        limit: usize,
    ) -> Result<(HeaderMap, Bytes), RegistryError> {
        let mut attempt = 0;
        loop {
            let answer = self.request(&Method::GET, path, headers).await?;
            let headers = answer.response.headers().clone();
            match body(answer.response, limit, path).await {
                Err(error) if error.is_passing() && attempt + 1 < ATTEMPTS => {
                    tokio::time::sleep(pause(attempt)).await;
                    attempt += 1;
                }
                read => return read.map(|bytes| (headers, bytes)),
            }
        }
    }

    /// Sends a request until it is answered well or there is no more point.
    async fn request(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Answer, RegistryError> {
        let url = format!("{}/{}/{path}{}", self.host.base, self.name, self.query);
        let mut attempt = 0;
        loop {
            let (error, asked) = match self.authorized(method, &url, headers).await {
                Ok(answer) if answer.response.status().is_success() => return Ok(answer),
                Ok(answer) => {
                    let asked = retry_after(&answer);
                    (complaint(method, path, answer).await, asked)
                }
                Err(error) => (error, None),
            };
            attempt += 1;
            if !error.is_passing() || attempt == ATTEMPTS {
                return Err(error);
            }
            tokio::time::sleep(asked.unwrap_or(pause(attempt - 1))).await;
        }
    }

    /// Sends a request; once more with what the registry asks for.
    async fn authorized(
        &self,
        method: &Method,
        url: &str,
        headers: &HeaderMap,
    ) -> Result<Answer, RegistryError> {
        let mut headers = headers.clone();
        let known = self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(known) = known {
            headers.insert(AUTHORIZATION, known);
        }
        let answer = self.transport.send(method, url, &headers).await?;
        if answer.response.status() != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        let Some(proof) = self.proof(&answer).await? else { return Ok(answer) };
        headers.insert(AUTHORIZATION, proof.clone());
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(proof);
        self.transport.send(method, url, &headers).await
    }

    /// What answers a 401.
    async fn proof(&self, answer: &Answer) -> Result<Option<HeaderValue>, RegistryError> {
        let headers = answer.response.headers().get_all(WWW_AUTHENTICATE);
        let texts = headers.iter().filter_map(|value| value.to_str().ok());
        let challenges: Vec<Challenge> = texts.flat_map(Challenge::parse).collect();
        for challenge in challenges {
            let text = match (challenge, &self.credentials) {
                (Challenge::Basic, Some(own)) => format!("Basic {}", own.basic()),
                (Challenge::Basic, None) => continue,
                (Challenge::Bearer { realm, service, scope }, _) => {
                    format!("Bearer {}", self.token(&realm, &service, &scope).await?)
                }
            };
            let bad = |_| RegistryError::Broken("a token is no header".to_owned());
            return HeaderValue::try_from(text).map(Some).map_err(bad);
        }
        Ok(None)
    }

    async fn token(
        &self,
        realm: &str,
        service: &str,
        scope: &str,
    ) -> Result<String, RegistryError> {
        if self.host.base.starts_with("https:") && !realm.starts_with("https:") {
            let text = format!("the token service is not behind TLS: {realm}");
            return Err(RegistryError::Broken(text));
        }
        let usual = format!("repository:{}:pull", self.name);
        let scope = if scope.is_empty() { &usual } else { scope };
        let sign = if realm.contains('?') { '&' } else { '?' };
        let (service, scope) = (escaped(service), escaped(scope));
        let url = format!("{realm}{sign}service={service}&scope={scope}");
        let mut headers = HeaderMap::new();
        if let Some(own) = &self.credentials {
            let bad = |_| RegistryError::Config("credentials are no header".to_owned());
            let basic = HeaderValue::try_from(format!("Basic {}", own.basic())).map_err(bad)?;
            headers.insert(AUTHORIZATION, basic);
        }
        let answer = self.transport.send(&Method::GET, &url, &headers).await?;
        if !answer.response.status().is_success() {
            return Err(match complaint(&Method::GET, "token", answer).await {
                RegistryError::NotFound(why) | RegistryError::Status(400..500, why) => {
                    RegistryError::Denied(format!("failed to fetch a token: {why}"))
                }
                other => other,
            });
        }
        let bytes = body(answer.response, MAX_TOKEN, "the token").await?;
        let told: TokenAnswer = serde_json::from_slice(&bytes)
            .map_err(|error| RegistryError::Broken(format!("the token service: {error}")))?;
        told.token().ok_or_else(|| RegistryError::Broken("there is no token".to_owned()))
    }
}

fn accept() -> HeaderMap {
    let types = HeaderValue::try_from(MANIFEST_TYPES.join(", ")).expect("types are ASCII");
    HeaderMap::from_iter([(ACCEPT, types)])
}

fn escaped(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~/:".contains(&byte) {
            out.push(byte as char);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
        out
    })
}

/// The pause that a registry asks for, in seconds.
fn retry_after(answer: &Answer) -> Option<Duration> {
    let seconds = answer.response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(MAX_PAUSE))
}

/// An answer that is an error, with what the registry says of it.
async fn complaint(method: &Method, path: &str, answer: Answer) -> RegistryError {
    let Answer { response, url } = answer;
    let status = response.status();
    let text = body(response, MAX_COMPLAINT, "an error").await.unwrap_or_default();
    let told: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    let told = told.pointer("/errors/0/message").and_then(serde_json::Value::as_str);
    let told = told.map(|text| format!(": {}", text.chars().take(300).collect::<String>()));
    let why = format!("{method} {url}{}", told.unwrap_or_default());
    match status {
        StatusCode::NOT_FOUND => RegistryError::NotFound(path.to_owned()),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            let code = status.as_u16();
            RegistryError::Denied(format!("authorization failed: {code} from {why}"))
        }
        status => RegistryError::Status(status.as_u16(), why),
    }
}
