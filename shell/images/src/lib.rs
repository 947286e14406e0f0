//! Images from OCI archives, unpacked into layers for overlayfs.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::PathBuf;

use knarr_oci::cri::Image;
use knarr_oci::image::ImageConfig;
use knarr_oci::spec::Rootfs;

/// A local image store below one folder. Calls block.
pub struct Store {
    root: PathBuf,
}

/// What went wrong, for the caller.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// No image of that name or id.
    NotFound(String),
}

/// What a container needs of an image.
pub struct Unpacked {
    /// Read-only layers.
    pub rootfs: Rootfs,
    /// Configuration.
    pub config: ImageConfig,
}

#[allow(unused_variables, missing_docs, clippy::missing_errors_doc)]
#[rustfmt::skip]
impl Store {
    /// Opens the store, making it when missing, and removes what an interrupted import left.
    pub fn open(root: PathBuf) -> Result<Store, Error> { unreachable!() }
    /// Imports an OCI or docker archive, plain or gzip; the names its images are now known by.
    pub fn import(&self, archive: impl Read) -> Result<Vec<Image>, Error> { unreachable!() }
    pub fn list(&self) -> Result<Vec<Image>, Error> { unreachable!() }
    /// The image of a name (as a user writes it), digest reference or id.
    pub fn status(&self, reference: &str) -> Result<Option<Image>, Error> { unreachable!() }
    /// Layers and configuration, to be given to the runtime.
    pub fn unpacked(&self, reference: &str) -> Result<Unpacked, Error> { unreachable!() }
    /// Forgets a name (or, by id, all names) and removes layers that no image and no container uses.
    pub fn remove(&self, reference: &str, in_use: &BTreeSet<String>) -> Result<(), Error> { unreachable!() }
}
