//! Kubeconfigs: where a cluster is, and who talks to it.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::authority::{PkiError, Signed};

/// The part of a kubeconfig that we write and read: one cluster, one user, one context.
#[derive(Clone, Debug)]
pub struct Kubeconfig {
    /// `https://host:port`.
    pub server: String,
    /// The cluster's CA, PEM.
    pub ca: String,
    /// The user's certificate and key; a bearer token is used where this is `None`.
    pub client: Option<Signed>,
    /// A bearer token.
    pub token: Option<String>,
}

impl Kubeconfig {
    /// As the YAML (of the JSON kind) that every client reads.
    pub fn render(&self, user: &str) -> String {
        let encoded = |text: &str| Value::String(STANDARD.encode(text));
        let mut credentials = json!({});
        if let Some(client) = &self.client {
            credentials["client-certificate-data"] = encoded(&client.certificate);
            credentials["client-key-data"] = encoded(&client.key);
        }
        if let Some(token) = &self.token {
            credentials["token"] = token.as_str().into();
        }
        let tree = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "knarr",
            "clusters": [{"name": "knarr", "cluster": {
                "server": self.server, "certificate-authority-data": encoded(&self.ca)}}],
            "users": [{"name": user, "user": credentials}],
            "contexts": [{"name": "knarr", "context": {"cluster": "knarr", "user": user}}],
        });
        let mut text = serde_json::to_string_pretty(&tree).expect("a tree has a JSON form");
        text.push('\n');
        text
    }

    /// Reads a kubeconfig that [`Kubeconfig::render`] wrote.
    ///
    /// # Errors
    /// When the file cannot be read or lacks a part.
    pub fn read(path: &Path) -> Result<Self, PkiError> {
        let text = std::fs::read(path).map_err(|error| PkiError::Io(path.to_owned(), error))?;
        let bad = |why: &str| PkiError::Material(format!("{}: {why}", path.display()));
        let tree: Value = serde_json::from_slice(&text).map_err(|e| bad(&e.to_string()))?;
        let decoded = |pointer: &str| {
            let bytes = STANDARD.decode(tree.pointer(pointer)?.as_str()?).ok()?;
            String::from_utf8(bytes).ok()
        };
        let plain =
            |pointer: &str| tree.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let cluster = "/clusters/0/cluster";
        let user = "/users/0/user";
        let certificate = decoded(&format!("{user}/client-certificate-data"));
        let key = decoded(&format!("{user}/client-key-data"));
        Ok(Self {
            server: plain(&format!("{cluster}/server")).ok_or_else(|| bad("no server"))?,
            ca: decoded(&format!("{cluster}/certificate-authority-data"))
                .ok_or_else(|| bad("no certificate authority"))?,
            client: certificate.zip(key).map(|(certificate, key)| Signed { certificate, key }),
            token: plain(&format!("{user}/token")),
        })
    }
}
