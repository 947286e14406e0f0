//! What a registry asks for before it answers: `WWW-Authenticate`, read; and what the token
//! service said. RFC 9110 §11.6.1; the distribution specification's token flow.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::Deserialize;

/// How to prove who one is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// Name and password.
    Basic,
    /// A token of the service at `realm`.
    Bearer {
        /// Its URL.
        realm: String,
        /// Whom the token is for.
        service: String,
        /// What it allows; empty when the registry did not say.
        scope: String,
    },
}

impl Challenge {
    /// The challenges of a header; unknown schemes are left out.
    #[must_use]
    pub fn parse(header: &str) -> Vec<Challenge> {
        let mut found = Vec::new();
        let mut scheme = String::new();
        let mut parameters = BTreeMap::new();
        for part in split_outside_quotes(header) {
            let (words, value) = part.split_once('=').unwrap_or((part, ""));
            let mut name = words.trim();
            if let Some((opens, first)) = name.split_once(' ') {
                found.extend(made(&scheme, &parameters));
                (scheme, name) = (opens.to_ascii_lowercase(), first.trim());
                parameters.clear();
            } else if !part.contains('=') {
                found.extend(made(&scheme, &parameters));
                scheme = name.to_ascii_lowercase();
                parameters.clear();
                continue;
            }
            parameters.insert(name.to_ascii_lowercase(), unquoted(value.trim()));
        }
        found.extend(made(&scheme, &parameters));
        found
    }
}

fn made(scheme: &str, parameters: &BTreeMap<String, String>) -> Option<Challenge> {
    let get = |name: &str| parameters.get(name).cloned().unwrap_or_default();
    match scheme {
        "basic" => Some(Challenge::Basic),
        "bearer" if parameters.contains_key("realm") => Some(Challenge::Bearer {
            realm: get("realm"),
            service: get("service"),
            scope: get("scope"),
        }),
        _ => None,
    }
}

fn split_outside_quotes(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ',' if !quoted => {
                parts.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(text[start..].trim());
    parts.retain(|part| !part.is_empty());
    parts
}

fn unquoted(value: &str) -> String {
    let inner = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
    let Some(inner) = inner else { return value.to_string() };
    let mut plain = String::new();
    let mut letters = inner.chars();
    while let Some(c) = letters.next() {
        plain.push(if c == '\\' { letters.next().unwrap_or(c) } else { c });
    }
    plain
}

/// What a token service answers; it may call the token by two names.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct TokenAnswer {
    token: String,
    access_token: String,
}

impl TokenAnswer {
    /// The token, if there is one.
    #[must_use]
    pub fn token(self) -> Option<String> {
        [self.token, self.access_token].into_iter().find(|token| !token.is_empty())
    }
}
