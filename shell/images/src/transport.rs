//! Connections to one host: HTTP/1.1 over TCP or TLS, redirects followed.
//!
//! A redirect to another host never takes credentials along: registries send blobs to object
//! stores whose owners are others. One from HTTPS to plain HTTP is refused.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, LOCATION, USER_AGENT};
use http::{Method, Request, Response, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::hosts::Host;
use crate::registry::RegistryError;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a server may think before it answers.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_REDIRECTS: u32 = 10;

/// A client for one host, with its trust and its headers.
pub(crate) struct Transport {
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    headers: HeaderMap,
}

/// An answer, and where it came from after redirects.
pub(crate) struct Answer {
    pub(crate) response: Response<Incoming>,
    pub(crate) url: String,
}

impl Transport {
    /// Prepares for a host.
    ///
    /// # Errors
    /// Its certificates or headers are of no use.
    pub(crate) fn new(host: &Host) -> Result<Transport, RegistryError> {
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls(host)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let mut headers = HeaderMap::new();
        headers.insert(
            USER_AGENT,
            HeaderValue::from_static(concat!("knarr/", env!("CARGO_PKG_VERSION"))),
        );
        for (name, value) in &host.headers {
            let bad = || RegistryError::Config(format!("{name} is no header"));
            let name = HeaderName::try_from(name).map_err(|_| bad())?;
            headers.insert(name, HeaderValue::try_from(value).map_err(|_| bad())?);
        }
        Ok(Transport { client: Client::builder(TokioExecutor::new()).build(connector), headers })
    }

    /// Sends a request and follows redirects.
    ///
    /// # Errors
    /// [`RegistryError::Unreachable`] when there is no answer.
    pub(crate) async fn send(
        &self,
        method: &Method,
        url: &str,
        headers: &HeaderMap,
    ) -> Result<Answer, RegistryError> {
        let (mut url, mut headers) = (url.to_owned(), headers.clone());
        for (name, value) in &self.headers {
            headers.insert(name, value.clone());
        }
        for _ in 0..MAX_REDIRECTS {
            let response = self.once(method, &url, &headers).await?;
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let Some(location) = location.filter(|_| response.status().is_redirection()) else {
                return Ok(Answer { response, url });
            };
            let next = join(&url, location)?;
            if origin(&next) != origin(&url) {
                headers.remove(AUTHORIZATION);
                self.headers.keys().for_each(|name| drop(headers.remove(name)));
            }
            if url.starts_with("https:") && !next.starts_with("https:") {
                return Err(RegistryError::Broken(format!("{url} leads to plain HTTP: {next}")));
            }
            url = next;
        }
        Err(RegistryError::Broken(format!("{url}: more than {MAX_REDIRECTS} redirects")))
    }

    async fn once(
        &self,
        method: &Method,
        url: &str,
        headers: &HeaderMap,
    ) -> Result<Response<Incoming>, RegistryError> {
        let failed = |why: String| RegistryError::Unreachable(format!("{method} {url}: {why}"));
        let mut request = Request::builder().method(method).uri(url).body(Empty::new());
        let request = request.as_mut().map_err(|error| RegistryError::Broken(error.to_string()))?;
        *request.headers_mut() = headers.clone();
        let answer = self.client.request(std::mem::take(request));
        match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
            Ok(answer) => answer.map_err(|error| failed(causes(&error))),
            Err(_) => Err(failed("no answer in time".to_owned())),
        }
    }
}

/// A whole body, if it is short enough.
///
/// # Errors
/// It is longer than `limit` bytes, or the connection broke.
pub(crate) async fn body(
    response: Response<Incoming>,
    limit: usize,
    what: &str,
) -> Result<Bytes, RegistryError> {
    let whole = Limited::new(response.into_body(), limit).collect();
    match tokio::time::timeout(ANSWER_TIMEOUT, whole).await {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            Err(RegistryError::Broken(format!("{what} is longer than {limit} bytes")))
        }
        Ok(Err(error)) => Err(RegistryError::Unreachable(format!("{what}: {}", causes(&*error)))),
        Err(_) => Err(RegistryError::Unreachable(format!("{what}: no answer in time"))),
    }
}

/// An error with its causes.
pub(crate) fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

fn origin(url: &str) -> Option<(String, String)> {
    let uri: Uri = url.parse().ok()?;
    Some((uri.scheme_str()?.to_owned(), uri.authority()?.as_str().to_ascii_lowercase()))
}

/// A location as seen from a URL.
fn join(url: &str, location: &str) -> Result<String, RegistryError> {
    let bad = || RegistryError::Broken(format!("{url} leads nowhere: {location:?}"));
    let (scheme, authority) = origin(url).ok_or_else(bad)?;
    let next = if location.starts_with("http://") || location.starts_with("https://") {
        location.to_owned()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{scheme}://{rest}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        let path = url.split('?').next().unwrap_or_default();
        let folder = path.rsplit_once('/').map_or(path, |(folder, _)| folder);
        format!("{folder}/{location}")
    };
    origin(&next).ok_or_else(bad).map(|_| next)
}

fn tls(host: &Host) -> Result<ClientConfig, RegistryError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let bad = |error: &dyn std::fmt::Display| RegistryError::Config(format!("TLS: {error}"));
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| bad(&error))?;
    let builder = match host.skip_verify {
        true => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        }
        false => builder.with_root_certificates(roots(host)?),
    };
    let Some((cert, key)) = &host.client else { return Ok(builder.with_no_client_auth()) };
    let key = PrivateKeyDer::from_pem_file(key);
    let key = key.map_err(|error| bad(&error))?;
    builder.with_client_auth_cert(certificates(cert)?, key).map_err(|error| bad(&error))
}

/// The system's authorities and the host's own. A plain host needs none, and reads none.
fn roots(host: &Host) -> Result<RootCertStore, RegistryError> {
    let mut roots = RootCertStore::empty();
    if host.base.starts_with("https:") {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    for file in &host.ca {
        for certificate in certificates(file)? {
            let bad = |error| RegistryError::Config(format!("{}: {error}", file.display()));
            roots.add(certificate).map_err(bad)?;
        }
    }
    Ok(roots)
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, RegistryError> {
    let bad = |why: &dyn std::fmt::Display| {
        RegistryError::Config(format!("cannot use {}: {why}", file.display()))
    };
    let pem = fs::read(file).map_err(|error| bad(&error))?;
    let read = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    read.map_err(|error| bad(&error))
}

/// What `skip_verify` asks for: only signatures are checked.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
