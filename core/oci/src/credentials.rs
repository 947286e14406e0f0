//! Which credentials belong to which image: docker's configuration files, as pull secrets hold
//! them, and upstream's rules of matching.
//!
//! A key names a registry with an optional path (`quay.io/team`), with or without a scheme; in the
//! host, `*` and `?` stand for parts of one label. Every matching key counts, the more specific
//! first, because several may be valid while one is being replaced.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::Deserialize;

/// The one registry that a name without a host means, as docker's files spell it.
const DEFAULT_REGISTRY: &str = "index.docker.io";

/// A name and a password.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Credentials {
    /// Who.
    pub username: String,
    /// The secret.
    pub password: String,
}

impl core::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Credentials({}, …)", self.username)
    }
}

impl Credentials {
    /// Reads `user:password`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Credentials> {
        let (username, password) = text.split_once(':')?;
        Some(Credentials { username: username.to_string(), password: password.to_string() })
    }

    /// What follows `Basic ` in an Authorization header.
    #[must_use]
    pub fn basic(&self) -> String {
        STANDARD.encode(format!("{}:{}", self.username, self.password))
    }
}

/// The two forms of docker's configuration file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigForm {
    /// `.dockerconfigjson`: entries below `auths`.
    Json,
    /// `.dockercfg`: entries at the top.
    Legacy,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    username: String,
    password: String,
    auth: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct File {
    auths: BTreeMap<String, Entry>,
}

/// Credentials by registry.
#[derive(Clone, Debug, Default)]
pub struct Keyring {
    by_key: BTreeMap<String, Vec<Credentials>>,
}

impl Keyring {
    /// Adds the entries of a configuration file.
    ///
    /// # Errors
    /// It is no such file; the text says how.
    pub fn add(&mut self, file: &[u8], form: ConfigForm) -> Result<(), String> {
        let entries = match form {
            ConfigForm::Json => serde_json::from_slice::<File>(file).map(|file| file.auths),
            ConfigForm::Legacy => serde_json::from_slice(file),
        };
        for (location, entry) in entries.map_err(|error| error.to_string())? {
            self.by_key.entry(key(&location)).or_default().push(entry.credentials()?);
        }
        Ok(())
    }

    /// The credentials for `registry/repository`, the most specific first.
    #[must_use]
    pub fn lookup(&self, image: &str) -> Vec<Credentials> {
        let matching = self.by_key.iter().rev().filter(|(key, _)| matches(key, image));
        let found: Vec<_> = matching.flat_map(|(_, all)| all.iter().cloned()).collect();
        if found.is_empty() && is_default_registry(image) {
            return self.by_key.get(DEFAULT_REGISTRY).cloned().unwrap_or_default();
        }
        found
    }
}

impl Entry {
    fn credentials(self) -> Result<Credentials, String> {
        if self.auth.is_empty() {
            return Ok(Credentials { username: self.username, password: self.password });
        }
        let text = self.auth.trim();
        let bytes =
            if text.ends_with('=') { STANDARD.decode(text) } else { STANDARD_NO_PAD.decode(text) };
        let bytes = bytes.map_err(|_| "auth is not base64".to_string())?;
        let text = String::from_utf8(bytes).map_err(|_| "auth is no text".to_string())?;
        Credentials::parse(&text).ok_or_else(|| "unable to parse auth field".to_string())
    }
}

/// A location without scheme, without docker's `/v1/` and `/v2/`.
fn key(location: &str) -> String {
    let rest = location.strip_prefix("https://").or_else(|| location.strip_prefix("http://"));
    let rest = rest.unwrap_or(location);
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let path = match path {
        versioned if versioned.starts_with("/v1/") || versioned.starts_with("/v2/") => &path[3..],
        path => path,
    };
    format!("{host}{}", if path == "/" { "" } else { path })
}

fn matches(key: &str, image: &str) -> bool {
    let split = |text: &str| {
        let (host, path) = text.split_at(text.find('/').unwrap_or(text.len()));
        let (host, port) = host.rsplit_once(':').unwrap_or((host, ""));
        (host.to_string(), port.to_string(), path.to_string())
    };
    let ((glob, glob_port, prefix), (host, port, path)) = (split(key), split(image));
    let (globs, labels) = (glob.split('.'), host.split('.'));
    glob_port == port
        && path.starts_with(&prefix)
        && globs.clone().count() == labels.clone().count()
        && globs.zip(labels).all(|(glob, label)| fits(glob.as_bytes(), label.as_bytes()))
}

/// Whether a label fits a pattern of letters, `*` and `?`.
fn fits(glob: &[u8], label: &[u8]) -> bool {
    match (glob.split_first(), label.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => (0..=label.len()).any(|skip| fits(rest, &label[skip..])),
        (Some((b'?', glob)), Some((_, label))) => fits(glob, label),
        (Some((wanted, glob)), Some((found, label))) => wanted == found && fits(glob, label),
        _ => false,
    }
}

fn is_default_registry(image: &str) -> bool {
    let Some((host, _)) = image.split_once('/') else { return !image.is_empty() };
    !host.is_empty()
        && (matches!(host, "docker.io" | DEFAULT_REGISTRY) || !host.contains(['.', ':']))
}
