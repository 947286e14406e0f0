//! Configurations: which file counts, and what it says.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Versions of the protocol that are spoken, oldest first.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// Why a configuration is of no use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused(String);

impl core::error::Error for Refused {}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<String> for Refused {
    fn from(why: String) -> Self {
        Self(why)
    }
}

fn refuse<T>(why: impl Into<String>) -> Result<T, Refused> {
    Err(Refused(why.into()))
}

/// A network: plugins that are called one after the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct List {
    /// The network's name.
    pub name: String,
    /// The version in which its plugins are spoken to.
    pub version: String,
    /// At least one.
    pub plugins: Vec<Plugin>,
}

/// One plugin of a network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plugin {
    /// The program's name.
    pub kind: String,
    /// All that its configuration says.
    pub config: Map<String, Value>,
}

impl Plugin {
    fn new(config: Map<String, Value>) -> Result<Self, Refused> {
        let kind = text(&config, "type").unwrap_or_default();
        if kind.is_empty() {
            return refuse("a plugin has no type");
        }
        if kind.contains('/') || kind == "." || kind == ".." {
            return refuse(format!("invalid plugin name: {kind}"));
        }
        Ok(Self { kind: kind.to_owned(), config })
    }

    /// What it may be told besides, by the name of the capability.
    pub(crate) fn is_capable(&self, capability: &str) -> bool {
        let all = self.config.get("capabilities");
        all.and_then(|all| all.get(capability)).and_then(Value::as_bool) == Some(true)
    }

    /// How errors call it.
    pub fn description(&self) -> String {
        match text(&self.config, "name") {
            Some(name) if !name.is_empty() => format!("type={:?} name={name:?}", self.kind),
            _ => format!("type={:?}", self.kind),
        }
    }
}

impl List {
    /// Reads a file: a list of plugins (`*.conflist`), or one plugin.
    ///
    /// # Errors
    /// It is no JSON, lacks something, or asks for a version that is not spoken.
    pub fn decode(file: &str, content: &[u8]) -> Result<Self, Refused> {
        let config: Map<String, Value> = serde_json::from_slice(content)
            .map_err(|error| Refused(format!("error parsing configuration: {error}")))?;
        let name = text(&config, "name").unwrap_or_default();
        if !is_name(name) {
            return refuse(format!("invalid network name {name:?}"));
        }
        let name = name.to_owned();
        let version = version(&config)?;
        let plugins = match file.ends_with(".conflist") {
            false => Vec::from([Plugin::new(config)?]),
            true => plugins(&config)?,
        };
        Ok(Self { name, version, plugins })
    }

    /// Whether plugins are told the last result when they undo.
    pub(crate) fn undoes_with_result(&self) -> bool {
        !self.version.starts_with("0.3.")
    }
}

fn plugins(config: &Map<String, Value>) -> Result<Vec<Plugin>, Refused> {
    let Some(plugins) = config.get("plugins").and_then(Value::as_array) else {
        return refuse("no 'plugins' key");
    };
    if plugins.is_empty() {
        return refuse("no plugins in list");
    }
    let plugin = |plugin: &Value| match plugin {
        Value::Object(config) => Plugin::new(config.clone()),
        _ => refuse("a plugin's configuration is no object"),
    };
    plugins.iter().map(plugin).collect()
}

/// The version that a configuration asks for, or the newest that is spoken of those it offers.
fn version(config: &Map<String, Value>) -> Result<String, Refused> {
    let offered = config.get("cniVersions").and_then(Value::as_array).into_iter().flatten();
    let offered: Vec<&str> =
        offered.chain(config.get("cniVersion")).filter_map(Value::as_str).collect();
    if let Some(version) = VERSIONS.iter().rev().find(|version| offered.contains(version)) {
        return Ok((*version).to_string());
    }
    let spoken = VERSIONS.join(", ");
    match offered.last() {
        None => refuse(format!("no cniVersion; these are spoken: {spoken}")),
        Some(other) => refuse(format!("cniVersion {other:?} is not one of {spoken}")),
    }
}

/// `[a-zA-Z0-9][a-zA-Z0-9_.-]*`
fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

pub(crate) fn text<'a>(config: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    config.get(key).and_then(Value::as_str)
}

/// Which of a folder's files counts: the first configuration by name.
pub fn first(files: Vec<String>) -> Option<String> {
    let ending = |file: &str| file.rsplit_once('.').map(|(_, ending)| ending.to_owned());
    let counts =
        |file: &String| matches!(ending(file).as_deref(), Some("conf" | "conflist" | "json"));
    files.into_iter().filter(counts).min()
}
