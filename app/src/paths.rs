//! Where things lie below a data directory.

use std::path::{Path, PathBuf};

/// The store's own directory.
pub(crate) fn store(data: &Path) -> PathBuf {
    data.join("store")
}

/// Keys and certificates.
pub(crate) fn pki(data: &Path) -> PathBuf {
    data.join("pki")
}

/// The administrator's kubeconfig.
pub(crate) fn kubeconfig(data: &Path) -> PathBuf {
    data.join("admin.kubeconfig")
}
