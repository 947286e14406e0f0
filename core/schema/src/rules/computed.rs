//! Defaults that need code: image tags, sums over containers, names derived from names.
use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};

use knarr_api::quantity::Quantity;
use serde_json::{Map, Value, json};

type Object = Map<String, Value>;

/// The function a `call` line names.
pub(super) fn function(name: &str) -> Option<fn(&mut Object)> {
    Some(match name {
        "image_pull_policy" => image_pull_policy,
        "volume_pull_policy" => volume_pull_policy,
        "empty_dir" => empty_dir,
        "pod_level_resources" => pod_level_resources,
        "crd_names" => crd_names,
        _ => return None,
    })
}

fn image_pull_policy(container: &mut Object) {
    pull_policy(container, "image", "imagePullPolicy");
}

fn volume_pull_policy(volume: &mut Object) {
    pull_policy(volume, "reference", "pullPolicy");
}

fn pull_policy(object: &mut Object, image: &str, policy: &str) {
    if text(object.get(policy)).is_empty() {
        let value = if is_latest(text(object.get(image))) { "Always" } else { "IfNotPresent" };
        object.insert(policy.into(), value.into());
    }
}

fn text(value: Option<&Value>) -> &str {
    value.and_then(Value::as_str).unwrap_or_default()
}

/// Whether an image reference means the tag `latest`: it says so, or has neither tag nor digest.
/// A malformed reference does not.
fn is_latest(image: &str) -> bool {
    let (name, digest) = image.split_once('@').unwrap_or((image, ""));
    let (path, tag) = match name.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, tag),
        _ => (name, ""),
    };
    let path = match path.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => rest,
        _ => path,
    };
    let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-/".contains(c);
    let is_valid = !path.is_empty() && path.chars().all(is_name);
    is_valid && (tag == "latest" || tag.is_empty() && digest.is_empty())
}

/// A volume of no kind is an emptyDir.
fn empty_dir(volume: &mut Object) {
    if volume.keys().all(|key| key == "name") {
        volume.insert("emptyDir".into(), json!({}));
    }
}

/// Resources of a whole Pod: huge page limits are the containers' sum; requests are the
/// containers' sum for CPU and memory, and the Pod's limits for what is still missing.
fn pod_level_resources(pod: &mut Object) {
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let limits = containers_sum(spec, "limits");
    let requests = containers_sum(spec, "requests");
    let Some(own) = spec.get_mut("resources").and_then(Value::as_object_mut) else { return };
    if count(own, "limits") + count(own, "requests") > 0 {
        for (name, sum) in limits.iter().filter(|(name, _)| is_huge_page(name)) {
            if own.get("requests").and_then(|r| r.get(name)).is_none() {
                add_missing(own, "limits", name, sum.to_string().into());
            }
        }
    }
    if count(own, "limits") == 0 {
        return;
    }
    for (name, sum) in requests.iter().filter(|(name, _)| matches!(name.as_str(), "cpu" | "memory"))
    {
        add_missing(own, "requests", name, sum.to_string().into());
    }
    let limits = own.get("limits").and_then(Value::as_object).cloned().unwrap_or_default();
    for (name, limit) in limits {
        if is_huge_page(&name) || matches!(name.as_str(), "cpu" | "memory") {
            add_missing(own, "requests", &name, limit);
        }
    }
}

fn is_huge_page(name: &str) -> bool {
    name.starts_with("hugepages-")
}

fn count(resources: &Object, key: &str) -> usize {
    resources.get(key).and_then(Value::as_object).map_or(0, Map::len)
}

fn add_missing(resources: &mut Object, key: &str, name: &str, value: Value) {
    let list = resources.entry(key).or_insert_with(|| json!({}));
    if let Value::Object(list) = list {
        list.entry(name).or_insert(value);
    }
}

type Sums = BTreeMap<String, Quantity>;

/// What the Pod's containers need at the worst moment: all that run together, or one init
/// container beside the sidecars started before it.
fn containers_sum(spec: &Object, key: &str) -> Sums {
    let mut total = Sums::new();
    let mut sidecars = Sums::new();
    let mut init = Sums::new();
    for container in objects(spec, "containers") {
        add(&mut total, &resources(container, key));
    }
    for container in objects(spec, "initContainers") {
        let mut needs = resources(container, key);
        if text(container.get("restartPolicy")) == "Always" {
            add(&mut total, &needs);
            add(&mut sidecars, &needs);
        } else {
            add(&mut needs, &sidecars);
            raise(&mut init, needs);
        }
    }
    raise(&mut total, init);
    total
}

fn objects<'a>(spec: &'a Object, key: &str) -> impl Iterator<Item = &'a Object> {
    let items = spec.get(key).and_then(Value::as_array);
    items.into_iter().flatten().filter_map(Value::as_object)
}

fn resources(container: &Object, key: &str) -> Sums {
    let list = container.get("resources").and_then(|r| r.get(key)).and_then(Value::as_object);
    let entries = list.into_iter().flatten();
    entries.filter_map(|(name, q)| Some((name.clone(), q.as_str()?.parse().ok()?))).collect()
}

fn add(total: &mut Sums, more: &Sums) {
    for (name, quantity) in more {
        let sum = total.get(name).map_or_else(|| quantity.clone(), |old| old + quantity);
        total.insert(name.clone(), sum);
    }
}

fn raise(total: &mut Sums, other: Sums) {
    for (name, quantity) in other {
        if total.get(&name).is_none_or(|old| *old < quantity) {
            total.insert(name, quantity);
        }
    }
}

/// Singular and list kind from the kind, stored versions from the storage version.
fn crd_names(crd: &mut Object) {
    let Some(spec) = crd.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let versions = spec.get("versions").and_then(Value::as_array).into_iter().flatten();
    let stored = versions.filter(|v| v["storage"] == true);
    let stored = stored.map(|v| text(v.get("name")).to_string()).next();
    if let Some(names) = spec.get_mut("names").and_then(Value::as_object_mut) {
        let kind = text(names.get("kind")).to_string();
        if text(names.get("singular")).is_empty() {
            names.insert("singular".into(), kind.to_lowercase().into());
        }
        if text(names.get("listKind")).is_empty() && !kind.is_empty() {
            names.insert("listKind".into(), (kind + "List").into());
        }
    }
    let Some(stored) = stored else { return };
    let status = crd.entry("status").or_insert_with(|| json!({}));
    let has_stored = status["storedVersions"].as_array().is_some_and(|v| !v.is_empty());
    if let (Value::Object(status), false) = (status, has_stored) {
        status.insert("storedVersions".into(), json!([stored]));
    }
}
