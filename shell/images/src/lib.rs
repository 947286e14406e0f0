//! Images from registries and OCI archives, unpacked into layers for overlayfs.
//!
//! ```text
//! <root>/lock                      held by whoever changes the store
//! <root>/tmp/                      work that may be thrown away at any time
//! <root>/layers/<chain id>/fs      one layer, unpacked; shared by the images above it
//! <root>/images/<id>/record.json   layers, manifest digest, size
//! <root>/images/<id>/config.json   the configuration, byte for byte
//! <root>/names.json                full reference -> id
//! <root>/partial/<digest>          a blob that a pull is fetching, or was when it broke off
//! <root>/pulls/<n>/                layers on their way in, of one process; locked while it lives
//! ```
//!
//! Everything is made in `tmp` and appears by one rename: layers first, then the image, then its
//! name. A crash leaves at most unreferenced layers and work in `tmp`, which the next change
//! removes. A pull works beside the store, in `partial` and `pulls`, and takes the lock only to
//! put in place what it made.

mod archive;
mod blobs;
mod download;
mod export;
mod hosts;
mod keyed;
mod pull;
mod registry;
mod store;
mod tarball;
mod transport;
mod unpack;

use std::io;

use knarr_oci::image::ImageError;
use knarr_oci::reference::ReferenceError;

pub use hosts::Scheme;
pub use pull::{Progress, PullOptions, Puller, Stage, Watcher};
pub use registry::RegistryError;
pub use store::{Store, Unpacked};

/// What an archive may cost; more is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the archive's files, and of all its layers unpacked.
    pub bytes: u64,
    /// Files of the archive, and of each layer.
    pub entries: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { bytes: 64 << 30, entries: 2_000_000 }
    }
}

/// What went wrong, for the caller.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// No image of that name or id.
    NotFound(String),
    /// A name that is none.
    Reference(String, ReferenceError),
    /// The archive is broken, hostile, or not an image for this machine; the text says how.
    Archive(String),
    /// A registry did not give the image.
    Pull {
        /// The reference in full.
        image: String,
        /// `resolve` or `copy`.
        step: &'static str,
        /// What went wrong.
        why: RegistryError,
    },
    /// The kernel refused something.
    Io(String, io::Error),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::NotFound(name) => write!(f, "no image {name:?}"),
            Error::Reference(name, why) => write!(f, "{name:?}: {why}"),
            Error::Archive(why) => write!(f, "bad image archive: {why}"),
            Error::Pull { image, step: "resolve", why } => write!(
                f,
                "failed to pull and unpack image {image:?}: failed to resolve reference \
                 {image:?}: {why}"
            ),
            Error::Pull { image, step, why } => {
                write!(f, "failed to pull and unpack image {image:?}: failed to {step}: {why}")
            }
            Error::Io(what, error) => write!(f, "{what}: {error}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<ImageError> for Error {
    fn from(error: ImageError) -> Error {
        Error::Archive(error.to_string())
    }
}

/// Names what was done in an error of the kernel.
fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let what = what.into();
    move |error| Error::Io(what, error)
}
