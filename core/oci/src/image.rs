//! What an image archive says: indexes, manifests and configurations, read and judged.
//!
//! Only the fields that running a container needs are read; the bytes themselves are kept by the
//! store, so nothing is lost. Spec: OCI image-spec 1.1; docker's schema 2 has the same shapes.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::{Deserialize, Deserializer, Serialize};

/// Reads `null` as the empty value, as Go writes empty slices and maps.
fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(d: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// The documents that a registry is asked for, the preferred first.
pub const MANIFEST_TYPES: [&str; 4] = [
    OCI_INDEX,
    DOCKER_LIST,
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// What a document is, by its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DocumentKind {
    /// A list of manifests.
    Index,
    /// An image.
    Manifest,
    /// Docker's first schema, which nothing makes any more.
    Schema1,
}

/// Tells what a document is: by its own word, else by the type it was sent with.
///
/// # Errors
/// It is something else; the type.
pub fn document_kind(document: &[u8], sent_as: &str) -> Result<DocumentKind, String> {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Kind {
        schema_version: u32,
        media_type: String,
    }
    let said: Kind = serde_json::from_slice(document).map_err(|error| error.to_string())?;
    let media_type = if said.media_type.is_empty() { sent_as } else { &said.media_type };
    match media_type {
        _ if said.schema_version == 1 => Ok(DocumentKind::Schema1),
        OCI_INDEX | DOCKER_LIST => Ok(DocumentKind::Index),
        known if MANIFEST_TYPES.contains(&known) => Ok(DocumentKind::Manifest),
        other => Err(other.to_string()),
    }
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

/// Why the parts of an image do not fit together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// No manifest for the platform.
    NoPlatform {
        /// `os/architecture` wanted.
        wanted: String,
    },
    /// The configuration is for another platform.
    WrongPlatform {
        /// `os/architecture` wanted.
        wanted: String,
        /// `os/architecture` found.
        found: String,
    },
    /// The configuration names another number of layers than the manifest.
    LayerCount {
        /// Layers of the manifest.
        layers: usize,
        /// Layers of the configuration.
        diff_ids: usize,
    },
    /// A text that must be a digest is none.
    Digest(String),
}

impl core::fmt::Display for ImageError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            ImageError::NoPlatform { wanted } => write!(f, "no image for {wanted}"),
            ImageError::WrongPlatform { wanted, found } => {
                write!(f, "the image is for {found}, this machine is {wanted}")
            }
            ImageError::LayerCount { layers, diff_ids } => write!(
                f,
                "the manifest has {layers} layers, but the configuration names {diff_ids}"
            ),
            ImageError::Digest(text) => write!(f, "{text:?} is no sha256 digest"),
        }
    }
}

impl core::error::Error for ImageError {}

impl core::fmt::Display for Platform {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)
    }
}

impl Platform {
    /// Linux on an architecture in the compiler's words (`x86_64`, `aarch64`, …).
    #[must_use]
    pub fn linux(architecture: &str) -> Platform {
        let architecture = match architecture {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Platform { architecture: architecture.into(), os: "linux".into(), variant: String::new() }
    }

    fn runs(&self, other: &Platform) -> bool {
        self.os == other.os && self.architecture == other.architecture
    }
}

impl Index {
    /// The manifest for a platform: the first that names it, else the first that names none.
    ///
    /// # Errors
    /// Every manifest names another platform.
    pub fn choose(&self, platform: &Platform) -> Result<&Descriptor, ImageError> {
        let named = |d: &&Descriptor| d.platform.as_ref().is_some_and(|p| platform.runs(p));
        let unnamed = |d: &&Descriptor| d.platform.is_none();
        let found = self.manifests.iter().find(named);
        found
            .or_else(|| self.manifests.iter().find(unnamed))
            .ok_or_else(|| ImageError::NoPlatform { wanted: platform.to_string() })
    }
}

impl Manifest {
    /// Configuration and layers.
    pub fn parts(&self) -> impl Iterator<Item = &Descriptor> {
        core::iter::once(&self.config).chain(&self.layers)
    }
}

impl Descriptor {
    /// Whether it leads to another index.
    #[must_use]
    pub fn is_index(&self) -> bool {
        matches!(self.media_type.as_str(), OCI_INDEX | DOCKER_LIST)
    }

    /// The name an archive gives to the image: containerd's annotation, else OCI's.
    #[must_use]
    pub fn image_name(&self) -> Option<&str> {
        const NAMES: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];
        NAMES.iter().find_map(|name| self.annotations.get(*name)).map(String::as_str)
    }
}

impl ImageConfig {
    /// Checks that the configuration is for a platform and fits `layers` layers.
    ///
    /// # Errors
    /// It is not, or does not.
    pub fn check(&self, platform: &Platform, layers: usize) -> Result<(), ImageError> {
        let found = Platform {
            architecture: self.architecture.clone(),
            os: self.os.clone(),
            ..Platform::default()
        };
        let diff_ids = &self.rootfs.diff_ids;
        if !self.architecture.is_empty() && !platform.runs(&found) {
            let (wanted, found) = (platform.to_string(), found.to_string());
            return Err(ImageError::WrongPlatform { wanted, found });
        }
        if diff_ids.len() != layers {
            return Err(ImageError::LayerCount { layers, diff_ids: diff_ids.len() });
        }
        match diff_ids.iter().find(|id| !crate::reference::is_digest(id)) {
            Some(id) => Err(ImageError::Digest(id.clone())),
            None => Ok(()),
        }
    }

    /// The numeric user, or else the user's name, as CRI tells of an image.
    #[must_use]
    pub fn user(&self) -> (Option<i64>, String) {
        let user = self.config.user.split(':').next().unwrap_or_default();
        match user.parse() {
            Ok(uid) => (Some(uid), String::new()),
            Err(_) if user.is_empty() => (Some(0), String::new()),
            Err(_) => (None, user.into()),
        }
    }
}
