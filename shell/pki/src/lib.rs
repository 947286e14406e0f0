//! Certificate authority, leaf certificates, keys and kubeconfigs on disk.
//!
//! Keys are written with mode 0600 in a directory with mode 0700, through a temporary file and a
//! rename, so that a crash leaves a whole file or none.

mod authority;
mod kubeconfig;
mod pinned;
mod tls;
mod unverified;

pub use authority::{Authority, Identity, PkiError, Signed, Usage, is_fresh, new_request};
pub use kubeconfig::Kubeconfig;
pub use pinned::{ca_hash, pinned_config};
pub use tls::{Clients, client_config, peer_identity, server_config};
pub use unverified::unverified_config;

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Writes a file that only its owner may read, whole or not at all.
///
/// # Errors
/// Those of the file system.
pub fn write_private(path: &Path, text: &[u8]) -> std::io::Result<()> {
    write_with_mode(path, text, 0o600)
}

/// Writes a file that everybody may read, whole or not at all.
///
/// # Errors
/// Those of the file system.
pub fn write_public(path: &Path, text: &[u8]) -> std::io::Result<()> {
    write_with_mode(path, text, 0o644)
}

fn write_with_mode(path: &Path, text: &[u8], mode: u32) -> std::io::Result<()> {
    if let Some(dir) = path.parent().filter(|dir| !dir.exists()) {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&temporary)?;
    file.write_all(text)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}
