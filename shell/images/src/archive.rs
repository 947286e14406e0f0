//! Image archives: what `docker save`, `skopeo copy oci-archive:` and the like write.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::path::{Component, Path};

use knarr_oci::image::{Descriptor, DockerArchiveImage, ImageConfig, Index, Manifest, Platform};
use serde::de::DeserializeOwned;

use crate::blobs::{Blob, Blobs, decompressed};
use crate::tarball::{self, Kind};
use crate::{Error, Limits};

/// Deepest nesting of indexes.
const MAX_NESTING: u32 = 4;

/// An image found in an archive, its parts checked against each other.
pub(crate) struct Found {
    /// Names the archive gives it.
    pub(crate) names: Vec<String>,
    /// Digest of its manifest, when it has one.
    pub(crate) manifest_digest: Option<String>,
    /// The configuration's bytes.
    pub(crate) config_bytes: Vec<u8>,
    /// The same, read.
    pub(crate) config: ImageConfig,
    /// `sha256:…` of the configuration.
    pub(crate) id: String,
    /// Layers, lowest first.
    pub(crate) layers: Vec<Blob>,
}

fn broken(error: impl std::fmt::Display) -> Error {
    Error::Archive(error.to_string())
}

/// Takes the files of an archive in, plain or compressed.
pub(crate) fn read_files(stream: impl Read, dir: &Path, limits: Limits) -> Result<Blobs, Error> {
    let mut blobs = Blobs::new(dir);
    let mut left = limits.bytes;
    let stream = decompressed(stream).map_err(broken)?;
    tarball::read_entries(stream, limits.entries, |entry, data| {
        let name = plain_name(&entry.path)?;
        match entry.kind {
            Kind::File => {
                left = left.checked_sub(entry.size).ok_or_else(|| bad("it is too large"))?;
                if blobs.add(name, data)? != entry.size {
                    return Err(bad("it is cut off"));
                }
            }
            Kind::Symlink(target) => {
                let parent = Path::new(&name).parent().unwrap_or(Path::new(""));
                blobs.link(name.clone(), plain_join(parent, Path::new(&target))?);
            }
            Kind::HardLink(target) => blobs.link(name, plain_name(&target)?),
            Kind::Dir => {}
            Kind::Fifo | Kind::Device => return Err(bad("it has special files")),
        }
        Ok(())
    })
    .map_err(broken)?;
    Ok(blobs)
}

fn bad(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// A name in the archive, without `./`.
fn plain_name(name: &OsStr) -> io::Result<String> {
    plain_join(Path::new(""), Path::new(name))
}

/// `path` seen from `dir`, without `.` and `..`; never above the archive's top.
fn plain_join(dir: &Path, path: &Path) -> io::Result<String> {
    let mut plain = dir.to_path_buf();
    for part in path.components() {
        match part {
            Component::Normal(part) => plain.push(part),
            Component::CurDir => {}
            Component::ParentDir if plain.pop() => {}
            _ => return Err(bad("a name leads out of the archive")),
        }
    }
    plain.into_os_string().into_string().map_err(|_| bad("a name is no text"))
}

/// The images of an archive for a platform.
pub(crate) fn images(blobs: &Blobs, platform: &Platform) -> Result<Vec<Found>, Error> {
    if let Some(index) = blobs.get("index.json") {
        let index: Index = parse(index)?;
        return index.manifests.iter().map(|d| oci_image(blobs, d, platform, 0)).collect();
    }
    let manifest = blobs.get("manifest.json");
    let manifest = manifest.ok_or_else(|| broken("it has no index.json and no manifest.json"))?;
    let images: Vec<DockerArchiveImage> = parse(manifest)?;
    images.iter().map(|image| docker_image(blobs, image, platform)).collect()
}

fn parse<T: DeserializeOwned>(blob: &Blob) -> Result<T, Error> {
    serde_json::from_slice(&blob.read().map_err(broken)?).map_err(broken)
}

fn oci_image(
    blobs: &Blobs,
    descriptor: &Descriptor,
    platform: &Platform,
    depth: u32,
) -> Result<Found, Error> {
    let blob = blobs.by_digest(&descriptor.digest).map_err(broken)?;
    let names = descriptor.image_name().map(String::from);
    if descriptor.is_index() {
        if depth == MAX_NESTING {
            return Err(broken("its indexes are nested too deeply"));
        }
        let index: Index = parse(blob)?;
        let mut found = oci_image(blobs, index.choose(platform)?, platform, depth + 1)?;
        found.names.extend(names);
        return Ok(found);
    }
    let manifest: Manifest = parse(blob)?;
    let config = blobs.by_digest(&manifest.config.digest).map_err(broken)?;
    let layers = manifest.layers.iter().map(|layer| blobs.by_digest(&layer.digest).cloned());
    let layers = layers.collect::<io::Result<Vec<_>>>().map_err(broken)?;
    let digest = Some(descriptor.digest.clone());
    found(names.into_iter().collect(), digest, config, layers, platform)
}

fn docker_image(
    blobs: &Blobs,
    image: &DockerArchiveImage,
    platform: &Platform,
) -> Result<Found, Error> {
    let file = |name: &String| {
        let missing = || broken(format!("{name} is missing"));
        plain_name(OsStr::new(name)).ok().and_then(|name| blobs.get(&name)).ok_or_else(missing)
    };
    let layers = image.layers.iter().map(|name| file(name).cloned()).collect::<Result<_, _>>()?;
    found(image.repo_tags.clone(), None, file(&image.config)?, layers, platform)
}

fn found(
    names: Vec<String>,
    manifest_digest: Option<String>,
    config: &Blob,
    layers: Vec<Blob>,
    platform: &Platform,
) -> Result<Found, Error> {
    let config_bytes = config.read().map_err(broken)?;
    let read: ImageConfig = serde_json::from_slice(&config_bytes).map_err(broken)?;
    read.check(platform, layers.len())?;
    let id = config.digest.clone();
    Ok(Found { names, manifest_digest, config_bytes, config: read, id, layers })
}
