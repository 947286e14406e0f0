//! A container's environment: literal values, references, and `$(NAME)` expansion.

use alloc::borrow::ToOwned;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use knarr_api::quantity::Quantity;
use knarr_typed::k8s_openapi::api::core::v1::EnvVarSource;
use knarr_typed::{Container, Pod};
use serde_json::Value;

use crate::volumes::Need;

/// The objects that a Pod refers to, as far as they exist.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// ConfigMaps by name.
    pub config_maps: BTreeMap<String, Value>,
    /// Secrets by name.
    pub secrets: BTreeMap<String, Value>,
    /// Service account tokens by (audience, seconds).
    pub tokens: BTreeMap<(String, i64), String>,
    /// What could not be found out, and why.
    pub unknown: BTreeMap<Need, String>,
}

impl Sources {
    /// The value of a ConfigMap's key, as bytes.
    pub(crate) fn config_map(&self, name: &str, key: &str) -> Option<Vec<u8>> {
        let map = self.config_maps.get(name)?;
        if let Some(text) = map["data"][key].as_str() {
            return Some(text.as_bytes().to_vec());
        }
        STANDARD.decode(map["binaryData"][key].as_str()?).ok()
    }

    /// The value of a Secret's key, as bytes.
    pub(crate) fn secret(&self, name: &str, key: &str) -> Option<Vec<u8>> {
        STANDARD.decode(self.secrets.get(name)?["data"][key].as_str()?).ok()
    }
}

/// What a Pod knows of itself.
#[derive(Clone, Debug, Default)]
pub struct Itself {
    /// Its addresses.
    pub addresses: Vec<String>,
    /// The node's addresses.
    pub node_addresses: Vec<String>,
    /// What the node can give, for limits that are not set: (cpu in thousandths, memory in bytes).
    pub allocatable: (i64, i64),
    /// Variables of Services: behind the container's own.
    pub services: BTreeMap<String, String>,
}

/// The environment of a container, in order; later values win.
///
/// # Errors
/// When something it refers to is not there; upstream's text.
pub fn environment(
    pod: &Pod,
    container: &Container,
    sources: &Sources,
    itself: &Itself,
) -> Result<Vec<(String, String)>, String> {
    let mut envs: Vec<(String, String)> = Vec::new();
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.clone().unwrap_or_default();
        let (found, name, optional, what) = match (&from.config_map_ref, &from.secret_ref) {
            (Some(map), _) => {
                (sources.config_maps.get(&map.name), &map.name, map.optional, "configmap")
            }
            (_, Some(secret)) => {
                (sources.secrets.get(&secret.name), &secret.name, secret.optional, "secret")
            }
            _ => continue,
        };
        let Some(object) = found else {
            if optional.unwrap_or(false) {
                continue;
            }
            return Err(format!("{what} {name:?} not found"));
        };
        for key in object["data"].as_object().into_iter().flatten().map(|(key, _)| key) {
            let value = match what {
                "secret" => sources.secret(name, key),
                _ => sources.config_map(name, key),
            };
            let value = value.unwrap_or_default();
            envs.push((format!("{prefix}{key}"), String::from_utf8_lossy(&value).into_owned()));
        }
    }
    for env in container.env.iter().flatten() {
        let value = match (&env.value, &env.value_from) {
            // With an empty text a reference counts.
            (Some(text), source) if !text.is_empty() || source.is_none() => {
                let lookup = |name: &str| {
                    let found = envs.iter().rev().find(|(key, _)| key == name);
                    let found = found.map(|(_, value)| value);
                    found.or_else(|| itself.services.get(name)).cloned()
                };
                Some(expand(text, lookup))
            }
            (_, Some(source)) => referred(pod, container, source, sources, itself)?,
            (_, None) => Some(String::new()),
        };
        if let Some(value) = value {
            envs.push((env.name.clone(), value));
        }
    }
    let own: BTreeSet<&String> = envs.iter().map(|(name, _)| name).collect();
    let services = itself.services.iter().filter(|(name, _)| !own.contains(name));
    let services: Vec<_> = services.map(|(name, value)| (name.clone(), value.clone())).collect();
    Ok(services.into_iter().chain(envs).collect())
}

fn referred(
    pod: &Pod,
    container: &Container,
    source: &EnvVarSource,
    sources: &Sources,
    itself: &Itself,
) -> Result<Option<String>, String> {
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    if let Some(field) = &source.field_ref {
        return pod_field(pod, &field.field_path, itself).map(Some);
    }
    if let Some(field) = &source.resource_field_ref {
        let divisor = field.divisor.as_ref().map(|divisor| divisor.0.as_str());
        return resource_field(container, &field.resource, divisor, itself).map(Some);
    }
    let (found, exists, name, key, optional, what) = if let Some(r) = &source.config_map_key_ref {
        let exists = sources.config_maps.contains_key(&r.name);
        (sources.config_map(&r.name, &r.key), exists, &r.name, &r.key, r.optional, "configmap")
    } else if let Some(r) = &source.secret_key_ref {
        let exists = sources.secrets.contains_key(&r.name);
        (sources.secret(&r.name, &r.key), exists, &r.name, &r.key, r.optional, "secret")
    } else {
        return Ok(None);
    };
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    match found {
        Some(bytes) => Ok(Some(text(bytes))),
        None if optional.unwrap_or(false) => Ok(None),
        None if !exists => Err(format!("{what} {name:?} not found")),
        None if what == "secret" => {
            Err(format!("couldn't find key {key} in Secret {namespace}/{name}"))
        }
        None => Err(format!("couldn't find key {key} in ConfigMap {namespace}/{name}")),
    }
}

/// A field of the Pod by the downward API's path.
///
/// # Errors
/// When the path is not one of those.
pub fn pod_field(pod: &Pod, path: &str, itself: &Itself) -> Result<String, String> {
    let metadata = &pod.metadata;
    let spec = pod.spec.as_ref();
    let map = |map: &Option<BTreeMap<String, String>>| {
        let pairs = map.iter().flatten().map(|(key, value)| format!("{key}={value:?}"));
        pairs.collect::<Vec<_>>().join("\n")
    };
    let keyed = |map: &Option<BTreeMap<String, String>>, rest: &str| {
        let key = rest.strip_suffix("']")?;
        Some(map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default())
    };
    let found = match path {
        "metadata.name" => metadata.name.clone(),
        "metadata.namespace" => metadata.namespace.clone(),
        "metadata.uid" => metadata.uid.clone(),
        "metadata.labels" => Some(map(&metadata.labels)),
        "metadata.annotations" => Some(map(&metadata.annotations)),
        "spec.nodeName" => spec.and_then(|spec| spec.node_name.clone()),
        "spec.serviceAccountName" => spec.and_then(|spec| spec.service_account_name.clone()),
        "status.podIP" => itself.addresses.first().cloned(),
        "status.podIPs" => Some(itself.addresses.join(",")),
        "status.hostIP" => itself.node_addresses.first().cloned(),
        "status.hostIPs" => Some(itself.node_addresses.join(",")),
        path => {
            let label = path.strip_prefix("metadata.labels['");
            let annotation = path.strip_prefix("metadata.annotations['");
            let found = label
                .and_then(|rest| keyed(&metadata.labels, rest))
                .or(annotation.and_then(|rest| keyed(&metadata.annotations, rest)));
            return found.ok_or_else(|| format!("unsupported fieldPath: {path}"));
        }
    };
    Ok(found.unwrap_or_default())
}

/// A resource of a container by the downward API's name, in units of the divisor, rounded up.
pub(crate) fn resource_field(
    container: &Container,
    resource: &str,
    divisor: Option<&str>,
    itself: &Itself,
) -> Result<String, String> {
    let (list, name) = resource.split_once('.').unwrap_or(("", resource));
    let asked = container.resources.as_ref();
    let list = match list {
        "limits" => asked.and_then(|r| r.limits.as_ref()),
        "requests" => asked.and_then(|r| r.requests.as_ref()),
        _ => return Err(format!("unsupported container resource : {resource}")),
    };
    let milli = name == "cpu";
    let read = |text: &str| {
        let quantity = text.parse::<Quantity>().ok()?;
        Some(if milli { quantity.milli_value() } else { quantity.value() })
    };
    let own = list.and_then(|list| list.get(name)).and_then(|quantity| read(&quantity.0));
    let whole = if milli { itself.allocatable.0 } else { itself.allocatable.1 };
    let value = own.unwrap_or(if resource.starts_with("limits") { whole } else { 0 });
    let divisor = divisor.and_then(read).filter(|divisor| *divisor > 0);
    let divisor = divisor.unwrap_or(if milli { 1000 } else { 1 });
    Ok(((value + divisor - 1) / divisor).to_string())
}

/// Replaces `$(NAME)` by its value; `$$` is a dollar; a name that is not known stands as it is.
pub fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) =
            rest.strip_prefix('(').and_then(|inner| inner.split_once(')'))
        {
            match lookup(name) {
                Some(value) => out.push_str(&value),
                None => out.push_str(&["$(", name, ")"].concat()),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_expanded_as_upstream_does() {
        let lookup = |name: &str| (name == "A").then(|| "x".to_owned());
        for (text, expected) in [
            ("$(A)", "x"),
            ("a$(A)b", "axb"),
            ("$$(A)", "$(A)"),
            ("$(B)", "$(B)"),
            ("$A", "$A"),
            ("$(A", "$(A"),
            ("$$$$", "$$"),
            ("$", "$"),
        ] {
            assert_eq!(expand(text, lookup), expected, "{text}");
        }
    }
}
