//! The road over TLS.

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use knarr_pki::{Kubeconfig, PkiError};
use knarr_registry::Method;

use crate::stream::WatchStream;
use crate::{ClientError, JSON, refusal};

/// A server somewhere, with a pool of connections to it.
pub(crate) struct Remote {
    server: String,
    token: Option<String>,
    pool: Pool<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Remote {
    pub(crate) fn new(config: &Kubeconfig) -> Result<Self, PkiError> {
        let tls = knarr_pki::client_config(&config.ca, config.client.as_ref())?;
        Ok(Self::with_tls(&config.server, config.token.clone(), (*tls).clone()))
    }

    /// A server that these TLS settings recognise.
    pub(crate) fn with_tls(server: &str, token: Option<String>, tls: rustls::ClientConfig) -> Self {
        let mut tcp = HttpConnector::new();
        // Requests are small and somebody waits for each: never hold one back for the next.
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_only()
            .enable_http2()
            .wrap_connector(tcp);
        let pool = Pool::builder(TokioExecutor::new()).build(connector);
        Self { server: server.trim_end_matches('/').to_owned(), token, pool }
    }

    async fn request(
        &self,
        method: Method,
        target: &str,
        content_type: &str,
        body: Bytes,
    ) -> Result<http::Response<Incoming>, ClientError> {
        let unknown = |why: &dyn std::fmt::Display| ClientError::Unknown(why.to_string());
        let mut request = http::Request::builder()
            .method(wire(method))
            .uri(format!("{}{target}", self.server))
            .header(ACCEPT, JSON)
            .header(CONTENT_TYPE, content_type);
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Full::new(body)).map_err(|error| unknown(&error))?;
        self.pool.request(request).await.map_err(|error| {
            let mut text = error.to_string();
            let mut cause = std::error::Error::source(&error);
            while let Some(inner) = cause {
                text = format!("{text}: {inner}");
                cause = inner.source();
            }
            unknown(&text)
        })
    }

    /// Sends a request; the code and the whole body of the answer.
    pub(crate) async fn send(
        &self,
        method: Method,
        target: &str,
        content_type: &str,
        body: Bytes,
    ) -> Result<(u16, Bytes), ClientError> {
        let response = self.request(method, target, content_type, body).await?;
        let code = response.status().as_u16();
        let body = response.into_body().collect().await;
        let body = body.map_err(|error| ClientError::Unknown(error.to_string()))?;
        Ok((code, body.to_bytes()))
    }

    /// Opens a watch.
    pub(crate) async fn watch(&self, target: &str) -> Result<WatchStream, ClientError> {
        let response = self.request(Method::Get, target, JSON, Bytes::new()).await?;
        let code = response.status().as_u16();
        if code == 200 {
            return Ok(WatchStream::remote(response.into_body()));
        }
        let body = response.into_body().collect().await;
        Err(refusal(code, &body.map(|body| body.to_bytes()).unwrap_or_default()))
    }
}

fn wire(method: Method) -> http::Method {
    match method {
        Method::Get => http::Method::GET,
        Method::Head => http::Method::HEAD,
        Method::Post => http::Method::POST,
        Method::Put => http::Method::PUT,
        Method::Patch => http::Method::PATCH,
        Method::Delete => http::Method::DELETE,
        Method::Options => http::Method::OPTIONS,
    }
}
