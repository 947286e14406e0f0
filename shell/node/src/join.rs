//! How a node gets its identity: by bootstrap token and CertificateSigningRequest (TLS bootstrap).

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use knarr_api::ObjectKey;
use knarr_client::{Client, ClientError, StreamItem};
use knarr_pki::{Identity, Kubeconfig, PkiError, Signed};
use serde_json::{Value, json};
use tracing::info;

use crate::{REQUESTS, now};

const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";
/// Somebody has to approve; in a cluster of ours a controller does, at once.
const PATIENCE: Duration = Duration::from_secs(120);

/// Why a node could not join.
#[derive(Debug)]
pub enum JoinError {
    /// Keys could not be made or used.
    Pki(PkiError),
    /// The API server refused.
    Api(ClientError),
    /// A request was denied, or nobody approved it.
    NotSigned(String),
}

impl std::error::Error for JoinError {}

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pki(error) => error.fmt(f),
            Self::Api(error) => write!(f, "joining the cluster: {error}"),
            Self::NotSigned(why) => write!(f, "joining the cluster: {why}"),
        }
    }
}

/// Joins a cluster: the node's client kubeconfig, and the certificate of its own server.
///
/// # Errors
/// [`JoinError`].
pub async fn join(
    server: &str,
    ca: &str,
    token: &str,
    name: &str,
    address: IpAddr,
) -> Result<(Kubeconfig, Signed), JoinError> {
    let mut config = Kubeconfig {
        server: server.to_owned(),
        ca: ca.to_owned(),
        client: None,
        token: Some(token.to_owned()),
    };
    let identity = Identity {
        name: format!("system:node:{name}"),
        groups: vec!["system:nodes".to_owned()],
        ..Identity::default()
    };
    let bootstrap = Client::connect(&config).map_err(JoinError::Pki)?;
    let client = signed(&bootstrap, &identity, CLIENT_SIGNER, "client auth").await?;
    config.client = Some(client);
    config.token = None;
    info!(node = name, "the node has its client certificate");
    let own = Client::connect(&config).map_err(JoinError::Pki)?;
    let identity = Identity { dns: vec![name.to_owned()], addresses: vec![address], ..identity };
    let serving = signed(&own, &identity, SERVING_SIGNER, "server auth").await?;
    Ok((config, serving))
}

/// A new key with a certificate that the cluster signed.
async fn signed(
    client: &Client,
    identity: &Identity,
    signer: &str,
    usage: &str,
) -> Result<Signed, JoinError> {
    let (key, request) = knarr_pki::new_request(identity).map_err(JoinError::Pki)?;
    let name = format!("node-csr-{:x}", now().as_nanosecond());
    let object = json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
        "metadata": {"name": name},
        "spec": {"request": STANDARD.encode(request), "signerName": signer,
            "usages": ["digital signature", usage]},
    });
    client.create(REQUESTS, "", &object).await.map_err(JoinError::Api)?;
    let waited = tokio::time::timeout(PATIENCE, certificate(client, &name)).await;
    let certificate = waited.map_err(|_| {
        JoinError::NotSigned(format!("nobody signed the certificate request {name} in time"))
    })??;
    Ok(Signed { certificate, key })
}

/// Waits for a request's certificate.
async fn certificate(client: &Client, name: &str) -> Result<String, JoinError> {
    let fields = format!("fieldSelector=metadata.name%3D{name}");
    loop {
        let watch = client.watch(REQUESTS, "", &fields).await;
        let mut watch = watch.map_err(JoinError::Api)?;
        while let Ok(item) = watch.next().await {
            let StreamItem::Event { object, .. } = item else { continue };
            let request: Value = serde_json::from_slice(&object).unwrap_or_default();
            if let Some(found) = verdict(&request, name)? {
                return Ok(found);
            }
        }
        // The watch ended; the request may have been answered meanwhile.
        let key = ObjectKey::new("", name);
        let request = client.get(REQUESTS, &key).await.map_err(JoinError::Api)?;
        if let Some(found) = verdict(&request, name)? {
            return Ok(found);
        }
    }
}

fn verdict(request: &Value, name: &str) -> Result<Option<String>, JoinError> {
    let conditions = request.pointer("/status/conditions").and_then(Value::as_array);
    for condition in conditions.into_iter().flatten() {
        if matches!(condition["type"].as_str(), Some("Denied" | "Failed")) {
            let why = condition["message"].as_str().unwrap_or("denied");
            return Err(JoinError::NotSigned(format!("certificate request {name}: {why}")));
        }
    }
    let certificate = request.pointer("/status/certificate").and_then(Value::as_str);
    let decoded = certificate.and_then(|text| STANDARD.decode(text).ok());
    Ok(decoded.and_then(|bytes| String::from_utf8(bytes).ok()))
}
