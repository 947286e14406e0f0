//! Volumes: what has to be fetched for a Pod, and what its volumes then hold.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use knarr_typed::k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, KeyToPath, Volume, VolumeProjection,
};
use knarr_typed::{Container, Pod};
use serde_json::Value;

use crate::env::{Itself, Sources, pod_field};

const DEFAULT_MODE: u32 = 0o644;
const DEFAULT_TOKEN_SECONDS: i64 = 3600;

/// Something that a Pod needs from the API before it can start.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// A ConfigMap by name.
    ConfigMap(String),
    /// A Secret by name.
    Secret(String),
    /// A service account token: audience (empty for the API server) and seconds.
    Token(String, i64),
}

/// What a volume is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// An empty folder that lives as long as the Pod; in memory if asked, at most that large.
    Empty {
        /// Whether it is a tmpfs.
        memory: bool,
        /// Bound in bytes, 0 for none.
        limit: i64,
    },
    /// A path of the node and what it must be (`Directory`, `FileOrCreate`, …; empty: anything).
    Host(String, String),
    /// Files, replaced together.
    Files(Vec<File>),
}

/// A file of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Relative path without `..`.
    pub path: String,
    /// Content.
    pub bytes: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
}

fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod.spec.iter();
    spec.flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers))
}

fn volumes(pod: &Pod) -> impl Iterator<Item = &Volume> {
    pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten())
}

/// Everything that a Pod refers to.
pub fn needs(pod: &Pod) -> BTreeSet<Need> {
    let mut needs = BTreeSet::new();
    for volume in volumes(pod) {
        if let Some(map) = &volume.config_map {
            needs.insert(Need::ConfigMap(map.name.clone()));
        }
        if let Some(secret) = &volume.secret {
            needs.insert(Need::Secret(secret.secret_name.clone().unwrap_or_default()));
        }
        let sources = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
        needs.extend(sources.filter_map(projection_need));
    }
    for container in containers(pod) {
        for from in container.env_from.iter().flatten() {
            needs.extend(from.config_map_ref.iter().map(|r| Need::ConfigMap(r.name.clone())));
            needs.extend(from.secret_ref.iter().map(|r| Need::Secret(r.name.clone())));
        }
        for source in container.env.iter().flatten().filter_map(|env| env.value_from.as_ref()) {
            let (map, secret) = (&source.config_map_key_ref, &source.secret_key_ref);
            needs.extend(map.iter().map(|r| Need::ConfigMap(r.name.clone())));
            needs.extend(secret.iter().map(|r| Need::Secret(r.name.clone())));
        }
    }
    needs
}

fn projection_need(source: &VolumeProjection) -> Option<Need> {
    if let Some(map) = &source.config_map {
        return Some(Need::ConfigMap(map.name.clone()));
    }
    if let Some(secret) = &source.secret {
        return Some(Need::Secret(secret.name.clone()));
    }
    source.service_account_token.as_ref().map(|token| {
        let seconds = token.expiration_seconds.unwrap_or(DEFAULT_TOKEN_SECONDS);
        Need::Token(token.audience.clone().unwrap_or_default(), seconds)
    })
}

/// What each volume of a Pod holds, by name.
///
/// # Errors
/// When something is missing or not served; the text is for a FailedMount event.
pub fn contents(
    pod: &Pod,
    sources: &Sources,
    itself: &Itself,
) -> Result<Vec<(String, Content)>, String> {
    let content = |volume: &Volume| {
        let made = content(pod, volume, sources, itself);
        let failed = |why| format!("MountVolume.SetUp failed for volume {:?} : {why}", volume.name);
        made.map(|content| (volume.name.clone(), content)).map_err(failed)
    };
    volumes(pod).map(content).collect()
}

fn content(
    pod: &Pod,
    volume: &Volume,
    sources: &Sources,
    itself: &Itself,
) -> Result<Content, String> {
    if let Some(empty) = &volume.empty_dir {
        let limit = empty.size_limit.as_ref().and_then(|limit| limit.0.parse().ok());
        let limit = limit.map_or(0, |limit: knarr_api::quantity::Quantity| limit.value());
        return Ok(Content::Empty { memory: empty.medium.as_deref() == Some("Memory"), limit });
    }
    if let Some(host) = &volume.host_path {
        return Ok(Content::Host(host.path.clone(), host.type_.clone().unwrap_or_default()));
    }
    let mut files = Vec::new();
    if let Some(map) = &volume.config_map {
        let mode = mode(map.default_mode);
        let optional = map.optional.unwrap_or(false);
        keyed(
            &mut files,
            &Keyed { what: "configmap", name: &map.name, optional, mode },
            map.items.as_deref(),
            sources,
        )?;
    } else if let Some(secret) = &volume.secret {
        let name = secret.secret_name.as_deref().unwrap_or_default();
        let mode = mode(secret.default_mode);
        let optional = secret.optional.unwrap_or(false);
        keyed(
            &mut files,
            &Keyed { what: "secret", name, optional, mode },
            secret.items.as_deref(),
            sources,
        )?;
    } else if let Some(downward) = &volume.downward_api {
        downward_files(
            &mut files,
            pod,
            downward.items.as_deref(),
            mode(downward.default_mode),
            itself,
        )?;
    } else if let Some(projected) = &volume.projected {
        let mode = mode(projected.default_mode);
        for source in projected.sources.iter().flatten() {
            projection(&mut files, pod, source, mode, sources, itself)?;
        }
    } else {
        return Err("this kind of volume is not served yet".to_owned());
    }
    Ok(Content::Files(files))
}

fn mode(mode: Option<i32>) -> u32 {
    mode.map_or(DEFAULT_MODE, |mode| mode.unsigned_abs() & 0o777)
}

fn projection(
    files: &mut Vec<File>,
    pod: &Pod,
    source: &VolumeProjection,
    mode: u32,
    sources: &Sources,
    itself: &Itself,
) -> Result<(), String> {
    if let Some(map) = &source.config_map {
        let optional = map.optional.unwrap_or(false);
        let keys = Keyed { what: "configmap", name: &map.name, optional, mode };
        return keyed(files, &keys, map.items.as_deref(), sources);
    }
    if let Some(secret) = &source.secret {
        let optional = secret.optional.unwrap_or(false);
        let keys = Keyed { what: "secret", name: &secret.name, optional, mode };
        return keyed(files, &keys, secret.items.as_deref(), sources);
    }
    if let Some(downward) = &source.downward_api {
        return downward_files(files, pod, downward.items.as_deref(), mode, itself);
    }
    if let Some(token) = &source.service_account_token {
        let audience = token.audience.clone().unwrap_or_default();
        let seconds = token.expiration_seconds.unwrap_or(DEFAULT_TOKEN_SECONDS);
        let found = sources.tokens.get(&(audience, seconds));
        let token_text = found.ok_or("the service account token is not there yet")?;
        return put(files, &token.path, token_text.as_bytes().to_vec(), mode);
    }
    Err("this kind of projection is not served yet".to_owned())
}

/// Reads a key of a ConfigMap or Secret by the object's name.
type ReadKey = fn(&Sources, &str, &str) -> Option<Vec<u8>>;

/// A ConfigMap or Secret in a volume.
struct Keyed<'a> {
    what: &'static str,
    name: &'a str,
    optional: bool,
    mode: u32,
}

fn keyed(
    files: &mut Vec<File>,
    keys: &Keyed<'_>,
    items: Option<&[KeyToPath]>,
    sources: &Sources,
) -> Result<(), String> {
    let (object, value): (Option<&Value>, ReadKey) = match keys.what {
        "secret" => (sources.secrets.get(keys.name), Sources::secret),
        _ => (sources.config_maps.get(keys.name), Sources::config_map),
    };
    let Some(object) = object else {
        let missing = Err(format!("{} {:?} not found", keys.what, keys.name));
        return if keys.optional { Ok(()) } else { missing };
    };
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        for data in ["data", "binaryData"] {
            for key in object[data].as_object().into_iter().flatten().map(|(key, _)| key) {
                let bytes = value(sources, keys.name, key).unwrap_or_default();
                put(files, key, bytes, keys.mode)?;
            }
        }
        return Ok(());
    };
    for item in items {
        let item_mode = item.mode.map_or(keys.mode, |own| mode(Some(own)));
        match value(sources, keys.name, &item.key) {
            Some(bytes) => put(files, &item.path, bytes, item_mode)?,
            None if keys.optional => {}
            None => {
                let what = if keys.what == "secret" { "secret" } else { "config" };
                return Err(format!("references non-existent {what} key: {}", item.key));
            }
        }
    }
    Ok(())
}

fn downward_files(
    files: &mut Vec<File>,
    pod: &Pod,
    items: Option<&[DownwardAPIVolumeFile]>,
    default: u32,
    itself: &Itself,
) -> Result<(), String> {
    for item in items.unwrap_or_default() {
        let Some(field) = &item.field_ref else {
            return Err("resourceFieldRef in volumes is not served yet".to_owned());
        };
        let text = pod_field(pod, &field.field_path, itself)?;
        let mode = item.mode.map_or(default, |own| mode(Some(own)));
        put(files, &item.path, text.into_bytes(), mode)?;
    }
    Ok(())
}

/// Adds a file; a path that leaves the volume is refused (the API refuses it, too).
fn put(files: &mut Vec<File>, path: &str, bytes: Vec<u8>, mode: u32) -> Result<(), String> {
    let odd = |part: &str| part.is_empty() || part == ".." || part == ".";
    if path.split('/').any(odd) || path.starts_with("..") {
        return Err(format!("the path {path:?} leaves the volume"));
    }
    files.retain(|file| file.path != path);
    files.push(File { path: path.to_owned(), bytes, mode });
    Ok(())
}
