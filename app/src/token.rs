//! Join tokens: `K10<hash of the CA>::<id>.<secret>`. The hash lets a node recognise the server,
//! the rest is a bootstrap token by which the server recognises the node.

use std::fmt;
use std::path::Path;

use serde_json::{Value, json};

use crate::process::Fatal;

const PREFIX: &str = "K10";

/// A join token in its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct JoinToken {
    /// Hash of the CA, hex.
    pub(crate) ca_hash: String,
    /// The bootstrap token, `id.secret`.
    pub(crate) bootstrap: String,
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}::{}", self.ca_hash, self.bootstrap)
    }
}

impl JoinToken {
    /// Reads a token.
    pub(crate) fn parse(text: &str) -> Result<Self, Fatal> {
        let parts = text.trim().strip_prefix(PREFIX).and_then(|rest| rest.split_once("::"));
        let bad = "the join token is malformed: give the content of DATA_DIR/token of the server";
        let (ca_hash, bootstrap) = parts.ok_or_else(|| Fatal(bad.to_owned()))?;
        Ok(Self { ca_hash: ca_hash.to_owned(), bootstrap: bootstrap.to_owned() })
    }

    /// The token of a data directory, made at the first start.
    pub(crate) fn load_or_create(path: &Path, ca: &str) -> Result<Self, Fatal> {
        if let Ok(text) = std::fs::read_to_string(path) {
            return Self::parse(&text);
        }
        let token = Self {
            ca_hash: knarr_pki::ca_hash(ca)?,
            bootstrap: format!("{}.{}", random_word(6)?, random_word(16)?),
        };
        knarr_pki::write_private(path, format!("{token}\n").as_bytes())?;
        Ok(token)
    }

    /// The Secret by which the API server knows it.
    pub(crate) fn secret(&self) -> Value {
        let (id, secret) = self.bootstrap.split_once('.').unwrap_or((&self.bootstrap, ""));
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
            "metadata": {"name": format!("bootstrap-token-{id}"), "namespace": "kube-system"},
            "stringData": {
                "token-id": id, "token-secret": secret, "description": "joins nodes",
                "usage-bootstrap-authentication": "true", "usage-bootstrap-signing": "true",
            },
        })
    }
}

fn random_word(length: usize) -> Result<String, Fatal> {
    const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    let mut bytes = vec![0; length];
    getrandom::fill(&mut bytes).map_err(|error| Fatal(format!("no randomness: {error}")))?;
    Ok(bytes.iter().map(|byte| LETTERS[usize::from(byte % 32)] as char).collect())
}
