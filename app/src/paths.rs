//! Where things lie: below a data directory (control plane) and below a root (node).

use std::collections::BTreeMap;
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

/// The join token.
pub(crate) fn token(data: &Path) -> PathBuf {
    data.join("token")
}

/// The paths of one node.
#[derive(Clone, Debug)]
pub(crate) struct NodePaths {
    /// Own state: images, runtime, addresses, keys.
    pub(crate) state: PathBuf,
    /// Pods' folders.
    pub(crate) pods: PathBuf,
    /// Pods' logs.
    pub(crate) logs: PathBuf,
    /// How registries are spoken to.
    pub(crate) certs: PathBuf,
    /// CNI configurations.
    pub(crate) cni: PathBuf,
    /// Roots of this machine's further nodes.
    pub(crate) nodes: PathBuf,
    /// Four letters that tell this node's links and groups from others' on the machine.
    pub(crate) instance: String,
}

impl NodePaths {
    /// The paths below a root.
    pub(crate) fn new(root: &Path) -> Self {
        let root = std::path::absolute(root).unwrap_or_else(|_| root.to_owned());
        Self {
            state: root.join("var/lib/knarr"),
            pods: root.join("var/lib/kubelet"),
            logs: root.join("var/log/pods"),
            certs: root.join("etc/knarr/certs.d"),
            cni: root.join("etc/cni/net.d"),
            nodes: root.join("var/lib/knarr/nodes"),
            instance: instance(&root),
        }
    }

    /// The further nodes of this machine, by name.
    pub(crate) fn further(&self) -> BTreeMap<String, Self> {
        let entries = std::fs::read_dir(&self.nodes).into_iter().flatten().flatten();
        let roots = entries.map(|entry| entry.path()).filter(|path| path.is_dir());
        let named = roots.filter_map(|root| {
            Some((root.file_name()?.to_string_lossy().into_owned(), Self::new(&root)))
        });
        named.collect()
    }
}

/// FNV-1a of the path in base 36: the same root has the same name at every start.
fn instance(root: &Path) -> String {
    let bytes = root.as_os_str().as_encoded_bytes().iter();
    let mut hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let letter = |digit: u64| b"0123456789abcdefghijklmnopqrstuvwxyz"[digit as usize] as char;
    let mut name = String::new();
    for _ in 0..4 {
        name.push(letter(hash % 36));
        hash /= 36;
    }
    name
}
