//! What an image archive says: indexes, manifests and configurations, read and judged.
//!
//! Only the fields that running a container needs are read; the bytes themselves are kept by the
//! store, so nothing is lost. Spec: OCI image-spec 1.1; docker's schema 2 has the same shapes.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Deserializer, Serialize};

/// Reads `null` as the empty value, as Go writes empty slices and maps.
fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(d: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

/// A reference to content by digest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Descriptor {
    /// What the content is.
    pub media_type: String,
    /// `sha256:<64 hex digits>`.
    pub digest: String,
    /// Length in bytes.
    pub size: u64,
    /// Platform, in indexes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Annotations; `org.opencontainers.image.ref.name` names a tag.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// What an image runs on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Platform {
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// `linux`.
    pub os: String,
    /// `v8`, …
    #[serde(skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

/// A list of manifests: `index.json` and multi-platform images.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// The manifests, in order of preference.
    #[serde(deserialize_with = "nullable")]
    pub manifests: Vec<Descriptor>,
}

/// One image for one platform.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// Kind, for the registries that want it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// The configuration.
    pub config: Descriptor,
    /// Layers, lowest first.
    #[serde(deserialize_with = "nullable")]
    pub layers: Vec<Descriptor>,
}

/// One image of a `docker save` archive's `manifest.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DockerArchiveImage {
    /// Path of the configuration in the archive.
    pub config: String,
    /// Names with tags.
    #[serde(deserialize_with = "nullable")]
    pub repo_tags: Vec<String>,
    /// Paths of the layers, lowest first.
    #[serde(deserialize_with = "nullable")]
    pub layers: Vec<String>,
}

/// The configuration blob of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// CPU.
    pub architecture: String,
    /// Operating system.
    pub os: String,
    /// How to run it.
    #[serde(deserialize_with = "nullable")]
    pub config: ExecutionConfig,
    /// What it is made of.
    pub rootfs: RootfsConfig,
}

/// How an image wants to be run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ExecutionConfig {
    /// `user[:group]`.
    pub user: String,
    /// `NAME=value`.
    #[serde(deserialize_with = "nullable")]
    pub env: Vec<String>,
    /// Leading arguments.
    #[serde(deserialize_with = "nullable")]
    pub entrypoint: Vec<String>,
    /// Arguments that the user may replace.
    #[serde(deserialize_with = "nullable")]
    pub cmd: Vec<String>,
    /// Folder to start in.
    pub working_dir: String,
    /// `SIGQUIT`, `3`, …
    pub stop_signal: String,
}

/// The uncompressed layers of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RootfsConfig {
    /// Always `layers`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Digests of the uncompressed layers, lowest first.
    #[serde(deserialize_with = "nullable")]
    pub diff_ids: Vec<String>,
}
