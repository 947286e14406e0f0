//! The state folder: what is where, and how it is written so that a crash leaves whole files.
//!
//! ```text
//! <state>/sandboxes/<sandbox id>/
//!     sandbox.json            configuration; written before anything else exists
//!     shim.sock               the shim listens here
//!     shm/                    tmpfs of the Pod's /dev/shm
//!     containers/<container id>/
//!         container.json      configuration and specification
//!         running.json        written by the shim when the process runs
//!         exit.json           written by the shim when it has ended
//!         rootfs/ upper/ work/  mount point and writable layer
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use knarr_oci::cri::{ContainerConfig, PodSandboxConfig};
use knarr_oci::spec::{ContainerSpec, SandboxSpec};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// `sandbox.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SandboxRecord {
    pub(crate) config: PodSandboxConfig,
    pub(crate) spec: SandboxSpec,
    pub(crate) created_at: i64,
}

/// `container.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    pub(crate) config: ContainerConfig,
    pub(crate) spec: ContainerSpec,
    pub(crate) created_at: i64,
}

/// The folder of one sandbox.
#[derive(Clone, Debug)]
pub(crate) struct SandboxDir(pub(crate) PathBuf);

impl SandboxDir {
    pub(crate) fn new(state: &Path, id: &str) -> SandboxDir {
        SandboxDir(state.join("sandboxes").join(id))
    }

    pub(crate) fn record(&self) -> PathBuf {
        self.0.join("sandbox.json")
    }

    pub(crate) fn shm(&self) -> PathBuf {
        self.0.join("shm")
    }

    pub(crate) fn container(&self, id: &str) -> ContainerDir {
        ContainerDir(self.0.join("containers").join(id))
    }

    pub(crate) fn container_ids(&self) -> Vec<String> {
        folder_names(&self.0.join("containers"))
    }
}

/// The folder of one container.
#[derive(Clone, Debug)]
pub(crate) struct ContainerDir(pub(crate) PathBuf);

impl ContainerDir {
    pub(crate) fn record(&self) -> PathBuf {
        self.0.join("container.json")
    }

    pub(crate) fn running(&self) -> PathBuf {
        self.0.join("running.json")
    }

    pub(crate) fn exit(&self) -> PathBuf {
        self.0.join("exit.json")
    }
}

/// Names of the folders in a folder, sorted; none when it is missing.
pub(crate) fn folder_names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// Reads a JSON file.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

/// Image layers of the containers in a state folder, whether or not a runtime has it open.
///
/// # Errors
/// A container's record cannot be read.
pub fn layers_in_use(state_dir: &Path) -> io::Result<std::collections::BTreeSet<String>> {
    let mut layers = std::collections::BTreeSet::new();
    for id in folder_names(&state_dir.join("sandboxes")) {
        let sandbox = SandboxDir::new(state_dir, &id);
        for container in sandbox.container_ids() {
            let record: ContainerRecord = read(&sandbox.container(&container).record())?;
            layers.extend(record.spec.rootfs.lower);
        }
    }
    Ok(layers)
}

/// Writes a JSON file so that it is there whole or not at all.
///
/// It is not synced: nothing it describes survives a power failure either.
pub(crate) fn write(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let next = path.with_extension("next");
    fs::write(&next, serde_json::to_vec(value)?)?;
    fs::rename(&next, path)
}

/// Removes a folder and all in it; a missing one is fine.
pub(crate) fn remove_dir(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Nanoseconds since the Unix epoch.
pub(crate) fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(since.map_or(0, |since| since.as_nanos())).unwrap_or(i64::MAX)
}
