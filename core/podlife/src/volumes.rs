//! Volumes: what has to be fetched for a Pod, and what its volumes then hold.

use alloc::borrow::ToOwned;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use knarr_api::quantity::Quantity;
use knarr_typed::k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, EmptyDirVolumeSource, KeyToPath, Volume, VolumeProjection,
};
use knarr_typed::{Container, Pod};
use serde_json::Value;

use crate::env::{Itself, Sources, pod_field, resource_field};

const DEFAULT_MODE: u32 = 0o644;
/// Mode of what only the Pod may read, once it is known who that is.
const PRIVATE_MODE: u32 = 0o600;
const DEFAULT_TOKEN_SECONDS: i64 = 3600;

/// Something that a Pod needs from the API before it can start.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
    /// Files, replaced together, and folders in which other volumes are mounted.
    Files(Vec<File>, Vec<String>),
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
    /// The user it belongs to, if not root.
    pub owner: Option<u32>,
}

pub(crate) fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
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

/// The group that owns a Pod's volumes (`fsGroup`), but not those of the node.
pub fn fs_group(pod: &Pod) -> Option<u32> {
    let group = pod.spec.as_ref()?.security_context.as_ref()?.fs_group?;
    u32::try_from(group).ok()
}

/// The user that all containers of a Pod run as, if it is the same and the Pod says so.
fn only_user(pod: &Pod) -> Option<u32> {
    let whole = pod.spec.as_ref()?.security_context.as_ref().and_then(|own| own.run_as_user);
    let user = |container: &Container| {
        container.security_context.as_ref().and_then(|own| own.run_as_user).or(whole)
    };
    let users: Option<BTreeSet<i64>> = containers(pod).map(user).collect();
    let mut users = users?.into_iter();
    let first = users.next().filter(|_| users.next().is_none())?;
    u32::try_from(first).ok()
}

/// Whether containers may only read a volume, whatever their mounts say.
pub(crate) fn is_read_only(pod: &Pod, name: &str) -> bool {
    let own = volumes(pod).find(|volume| volume.name == name);
    own.is_some_and(|volume| {
        volume.config_map.is_some()
            || volume.secret.is_some()
            || volume.downward_api.is_some()
            || volume.projected.is_some()
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
    let given = Given { pod, sources, itself };
    let content = |volume: &Volume| {
        if let Some(kind) = unserved(volume) {
            let name = &volume.name;
            return Err(format!(
                "Unable to attach or mount volumes: unmounted volumes=[{name}], unattached \
                 volumes=[], failed to process volumes=[{name}]: {kind} volumes are not served yet"
            ));
        }
        let made = given.content(volume);
        let failed = |why| format!("MountVolume.SetUp failed for volume {:?} : {why}", volume.name);
        made.map(|content| (volume.name.clone(), content)).map_err(failed)
    };
    volumes(pod).map(content).collect()
}

/// The kind of a volume, when the node cannot make it.
fn unserved(volume: &Volume) -> Option<String> {
    const SERVED: [&str; 6] =
        ["emptyDir", "hostPath", "configMap", "secret", "downwardAPI", "projected"];
    let tree = serde_json::to_value(volume).unwrap_or_default();
    let mut kinds = tree.as_object()?.keys().filter(|key| *key != "name");
    kinds.find(|kind| !SERVED.contains(&kind.as_str())).cloned()
}

/// What the contents of a Pod's volumes are made of.
#[derive(Clone, Copy)]
struct Given<'a> {
    pod: &'a Pod,
    sources: &'a Sources,
    itself: &'a Itself,
}

/// A ConfigMap or Secret in a volume.
struct Keyed<'a> {
    need: Need,
    items: Option<&'a [KeyToPath]>,
    optional: Option<bool>,
}

impl Given<'_> {
    fn content(self, volume: &Volume) -> Result<Content, String> {
        if let Some(empty) = &volume.empty_dir {
            return self.empty(empty);
        }
        if let Some(host) = &volume.host_path {
            return Ok(Content::Host(host.path.clone(), host.type_.clone().unwrap_or_default()));
        }
        let mut files = Files::default();
        if let Some(map) = &volume.config_map {
            files.mode = mode(map.default_mode);
            let need = Need::ConfigMap(map.name.clone());
            let keyed = Keyed { need, items: map.items.as_deref(), optional: map.optional };
            self.keyed(&mut files, &keyed)?;
        } else if let Some(secret) = &volume.secret {
            files.mode = mode(secret.default_mode);
            let need = Need::Secret(secret.secret_name.clone().unwrap_or_default());
            let keyed = Keyed { need, items: secret.items.as_deref(), optional: secret.optional };
            self.keyed(&mut files, &keyed)?;
        } else if let Some(downward) = &volume.downward_api {
            files.mode = mode(downward.default_mode);
            self.downward(&mut files, downward.items.as_deref())?;
        } else if let Some(projected) = &volume.projected {
            files.mode = mode(projected.default_mode);
            for source in projected.sources.iter().flatten() {
                self.projection(&mut files, source)?;
            }
        }
        Ok(Content::Files(files.list, mount_points(self.pod, &volume.name)))
    }

    fn empty(self, empty: &EmptyDirVolumeSource) -> Result<Content, String> {
        let limit = empty.size_limit.as_ref().and_then(|limit| bytes_of(&limit.0));
        match empty.medium.as_deref().unwrap_or_default() {
            "" => Ok(Content::Empty { memory: false, limit: limit.unwrap_or(0) }),
            "Memory" => {
                let whole = [self.itself.allocatable.1, memory_limits(self.pod)];
                let bounds = whole.into_iter().chain(limit).filter(|bound| *bound > 0);
                Ok(Content::Empty { memory: true, limit: bounds.min().unwrap_or(0) })
            }
            huge if huge.starts_with("HugePages") => {
                Err(format!("storage medium {huge:?} is not served yet"))
            }
            other => Err(format!("unknown storage medium {other:?}")),
        }
    }

    fn projection(self, files: &mut Files, source: &VolumeProjection) -> Result<(), String> {
        if let Some(map) = &source.config_map {
            let need = Need::ConfigMap(map.name.clone());
            let keyed = Keyed { need, items: map.items.as_deref(), optional: map.optional };
            return self.keyed(files, &keyed);
        }
        if let Some(secret) = &source.secret {
            let need = Need::Secret(secret.name.clone());
            let keyed = Keyed { need, items: secret.items.as_deref(), optional: secret.optional };
            return self.keyed(files, &keyed);
        }
        if let Some(downward) = &source.downward_api {
            return self.downward(files, downward.items.as_deref());
        }
        let need = projection_need(source);
        let (Some(token), Some(need)) = (&source.service_account_token, need) else {
            let kind = if source.cluster_trust_bundle.is_some() {
                "clusterTrustBundle"
            } else {
                "podCertificate"
            };
            return Err(format!("{kind} projections are not served yet"));
        };
        let owner = only_user(self.pod);
        let known = owner.is_some() || fs_group(self.pod).is_some();
        let mode = if known { PRIVATE_MODE } else { files.mode };
        let text = self.sources.token(&need)?;
        files.put(&token.path, text.as_bytes().to_vec(), mode, owner)
    }

    fn keyed(self, files: &mut Files, keyed: &Keyed<'_>) -> Result<(), String> {
        let optional = keyed.optional.unwrap_or(false);
        let Some(object) = self.sources.object(&keyed.need)? else {
            let missing = match &keyed.need {
                Need::Secret(name) => format!("secret {name:?} not found"),
                Need::ConfigMap(name) | Need::Token(name, _) => {
                    format!("configmap {name:?} not found")
                }
            };
            return if optional { Ok(()) } else { Err(missing) };
        };
        let default = files.mode;
        let Some(items) = keyed.items.filter(|items| !items.is_empty()) else {
            for data in ["data", "binaryData"] {
                for key in object[data].as_object().into_iter().flatten().map(|(key, _)| key) {
                    let bytes = self.sources.value(&keyed.need, key).unwrap_or_default();
                    files.put(key, bytes, default, None)?;
                }
            }
            return Ok(());
        };
        for item in items {
            let mode = item.mode.map_or(default, |own| mode(Some(own)));
            match self.sources.value(&keyed.need, &item.key) {
                Some(bytes) => files.put(&item.path, bytes, mode, None)?,
                None if optional => {}
                None => return Err(no_such_key(&keyed.need, &item.key)),
            }
        }
        Ok(())
    }

    fn downward(
        self,
        files: &mut Files,
        items: Option<&[DownwardAPIVolumeFile]>,
    ) -> Result<(), String> {
        for item in items.unwrap_or_default() {
            let text = match (&item.field_ref, &item.resource_field_ref) {
                (Some(field), _) => pod_field(self.pod, &field.field_path, self.itself)?,
                (None, Some(field)) => {
                    let name = field.container_name.as_deref().unwrap_or_default();
                    let container = containers(self.pod).find(|c| c.name == name);
                    let container =
                        container.ok_or_else(|| format!("container {name} not found"))?;
                    let divisor = field.divisor.as_ref().map(|divisor| divisor.0.as_str());
                    resource_field(container, &field.resource, divisor, self.itself)?
                }
                (None, None) => String::new(),
            };
            let mode = item.mode.map_or(files.mode, |own| mode(Some(own)));
            files.put(&item.path, text.into_bytes(), mode, None)?;
        }
        Ok(())
    }
}

fn no_such_key(need: &Need, key: &str) -> String {
    match need {
        Need::Secret(_) => format!("references non-existent secret key: {key}"),
        _ => format!("configmap references non-existent config key: {key}"),
    }
}

fn mode(mode: Option<i32>) -> u32 {
    mode.map_or(DEFAULT_MODE, |mode| mode.unsigned_abs() & 0o777)
}

fn bytes_of(quantity: &str) -> Option<i64> {
    quantity.parse().ok().map(|quantity: Quantity| quantity.value())
}

/// What all containers together may use of memory, as far as they say so; 0 if none does.
fn memory_limits(pod: &Pod) -> i64 {
    let limit = |container: &Container| {
        let limits = container.resources.as_ref()?.limits.as_ref()?;
        bytes_of(&limits.get("memory")?.0)
    };
    let apps = pod.spec.iter().flat_map(|spec| &spec.containers);
    apps.filter_map(limit).sum()
}

/// Where other volumes are mounted inside this one: it cannot be written to when that happens.
fn mount_points(pod: &Pod, name: &str) -> Vec<String> {
    let mut found = BTreeSet::new();
    for container in containers(pod) {
        let mounts = container.volume_mounts.as_deref().unwrap_or_default();
        for own in mounts.iter().filter(|mount| mount.name == name) {
            let place = format!("{}/", own.mount_path.trim_end_matches('/'));
            let inside = mounts.iter().filter(|other| other.name != name);
            let inside = inside.filter_map(|other| other.mount_path.strip_prefix(&place));
            let base = own.sub_path.as_deref().unwrap_or_default();
            found.extend(inside.map(|rest| format!("{base}/{rest}").replace("//", "/")));
        }
    }
    let plain = |path: String| {
        let path = path.trim_matches('/').to_owned();
        let odd = path.is_empty() || path.split('/').any(|part| part == ".." || part == ".");
        (!odd).then_some(path)
    };
    found.into_iter().filter_map(plain).collect()
}

/// The files of a volume in the making.
#[derive(Default)]
struct Files {
    mode: u32,
    list: Vec<File>,
}

impl Files {
    /// Adds a file; a path that leaves the volume is refused (the API refuses it, too).
    fn put(
        &mut self,
        path: &str,
        bytes: Vec<u8>,
        mode: u32,
        owner: Option<u32>,
    ) -> Result<(), String> {
        let odd = |part: &str| part.is_empty() || part == ".." || part == ".";
        if path.split('/').any(odd) || path.starts_with("..") {
            return Err(format!("the path {path:?} leaves the volume"));
        }
        self.list.retain(|file| file.path != path);
        self.list.push(File { path: path.to_owned(), bytes, mode, owner });
        Ok(())
    }
}

/// What of a Pod itself its volumes show: they are written anew when this changes.
pub fn shown(pod: &Pod) -> [BTreeMap<String, String>; 2] {
    [&pod.metadata.labels, &pod.metadata.annotations].map(|map| map.clone().unwrap_or_default())
}

impl Sources {
    /// A ConfigMap or Secret; `None` when there is none.
    fn object(&self, need: &Need) -> Result<Option<&Value>, String> {
        let found = match need {
            Need::ConfigMap(name) => self.config_maps.get(name),
            Need::Secret(name) => self.secrets.get(name),
            Need::Token(..) => None,
        };
        match self.unknown.get(need) {
            Some(why) if found.is_none() => Err(why.clone()),
            _ => Ok(found),
        }
    }

    /// The value of a key of a ConfigMap or Secret.
    fn value(&self, need: &Need, key: &str) -> Option<Vec<u8>> {
        match need {
            Need::ConfigMap(name) => self.config_map(name, key),
            Need::Secret(name) => self.secret(name, key),
            Need::Token(..) => None,
        }
    }

    fn token(&self, need: &Need) -> Result<&str, String> {
        let Need::Token(audience, seconds) = need else { return Err(not_granted()) };
        let found = self.tokens.get(&(audience.clone(), *seconds));
        let why = || self.unknown.get(need).cloned().unwrap_or_else(not_granted);
        found.map(String::as_str).ok_or_else(why)
    }
}

fn not_granted() -> String {
    "the service account token is not there yet".to_owned()
}
