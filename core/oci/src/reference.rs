//! Image references: what a user writes, and the one full form that images are kept under.
//!
//! The grammar and the defaults are docker's: no registry means `docker.io`, no namespace there
//! means `library`, no tag and no digest means `latest`.

use alloc::format;
use alloc::string::{String, ToString};
use core::fmt;

/// A reference in full.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// Host name with optional port.
    pub registry: String,
    /// Path in the registry.
    pub repository: String,
    /// Tag; `None` only beside a digest.
    pub tag: Option<String>,
    /// `algorithm:hex`.
    pub digest: Option<String>,
}

/// Why a text is no reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReferenceError {
    /// It does not follow the grammar.
    Format,
    /// The repository has upper-case letters.
    Uppercase,
    /// The repository is longer than 255 bytes.
    TooLong,
}

impl fmt::Display for ReferenceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ReferenceError::Format => "invalid reference format",
            ReferenceError::Uppercase => {
                "invalid reference format: repository name must be lowercase"
            }
            ReferenceError::TooLong => "repository name must not be more than 255 characters",
        })
    }
}

impl core::error::Error for ReferenceError {}

impl fmt::Display for Reference {
    /// `registry/repository@digest` when there is a digest, else `registry/repository:tag`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        match (&self.digest, &self.tag) {
            (Some(digest), _) => write!(f, "@{digest}"),
            (None, Some(tag)) => write!(f, ":{tag}"),
            (None, None) => Ok(()),
        }
    }
}

impl Reference {
    /// Reads what a user wrote.
    ///
    /// # Errors
    /// The text does not follow docker's grammar.
    pub fn parse(text: &str) -> Result<Reference, ReferenceError> {
        let (named, digest) = match text.split_once('@') {
            Some((named, digest)) if is_digest(digest) => (named, Some(digest.to_string())),
            Some(_) => return Err(ReferenceError::Format),
            None => (text, None),
        };
        // A colon after the last slash starts a tag; one before belongs to a port.
        let (name, tag) = match named.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (named, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(ReferenceError::Format);
        }
        let (registry, repository) = split_registry(name);
        check_repository(&repository)?;
        if !is_registry(registry) {
            return Err(ReferenceError::Format);
        }
        let tag = match (tag, &digest) {
            (None, None) => Some("latest"),
            (tag, _) => tag,
        };
        Ok(Reference {
            registry: registry.to_string(),
            repository,
            tag: tag.map(ToString::to_string),
            digest,
        })
    }

    /// `registry/repository`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }
}

fn split_registry(name: &str) -> (&str, String) {
    let (registry, rest) = match name.split_once('/') {
        Some((first, rest)) if names_host(first) => (first, rest),
        _ => ("docker.io", name),
    };
    let registry = if registry == "index.docker.io" { "docker.io" } else { registry };
    let official = registry == "docker.io" && !rest.contains('/');
    (registry, if official { format!("library/{rest}") } else { rest.to_string() })
}

fn names_host(part: &str) -> bool {
    part == "localhost"
        || part.contains(['.', ':'])
        || part.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn is_registry(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (text, None),
    };
    let port_fits =
        port.is_none_or(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()));
    port_fits && (is_bracketed_address(host) || host.split('.').all(is_host_label))
}

fn is_bracketed_address(host: &str) -> bool {
    let inner = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    inner.is_some_and(|inner| inner.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b':'))
}

fn is_host_label(label: &str) -> bool {
    let bytes = label.as_bytes();
    let inner = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-';
    !bytes.is_empty() && bytes.iter().all(inner) && bytes[0] != b'-' && !label.ends_with('-')
}

fn check_repository(repository: &str) -> Result<(), ReferenceError> {
    if repository.len() > 255 {
        return Err(ReferenceError::TooLong);
    }
    if repository.split('/').all(is_component) {
        return Ok(());
    }
    let lower = repository.to_ascii_lowercase();
    let only_case = lower != repository && lower.split('/').all(is_component);
    Err(if only_case { ReferenceError::Uppercase } else { ReferenceError::Format })
}

/// Runs of `[a-z0-9]` joined by `.`, `_`, `__` or any number of `-`.
fn is_component(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends = text.bytes().next().is_some_and(is_word) && text.bytes().last().is_some_and(is_word);
    let joints = text.split(|c: char| c.is_ascii() && is_word(c as u8)).filter(|s| !s.is_empty());
    ends && joints
        .into_iter()
        .all(|joint| matches!(joint, "." | "_" | "__") || joint.bytes().all(|byte| byte == b'-'))
}

fn is_tag(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let inner = |byte: u8| is_word(byte) || byte == b'.' || byte == b'-';
    text.len() <= 128 && text.bytes().next().is_some_and(is_word) && text.bytes().all(inner)
}

/// Whether a text is a digest that this build can check: `sha256:` and 64 lower-case hex digits.
#[must_use]
pub fn is_digest(text: &str) -> bool {
    let hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    text.strip_prefix("sha256:").is_some_and(|rest| rest.len() == 64 && rest.bytes().all(hex))
}
