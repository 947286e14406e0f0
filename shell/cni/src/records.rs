//! Connections, one file each: the files are the state, and survive the agent.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use knarr_cni_protocol::Attachment;

use crate::CniError;

/// What is connected, by sandbox.
#[derive(Debug)]
pub(crate) struct Records {
    dir: PathBuf,
    known: BTreeMap<String, Attachment>,
}

impl Records {
    pub(crate) fn open(dir: &Path) -> Result<Self, CniError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |error| CniError::Record(path, error)
        };
        fs::create_dir_all(dir).map_err(at(dir))?;
        let mut known = BTreeMap::new();
        for entry in fs::read_dir(dir).map_err(at(dir))? {
            let path = entry.map_err(at(dir))?.path();
            // Others are what was being written when somebody died.
            if path.extension().is_some_and(|ending| ending == "json") {
                let content = fs::read(&path).map_err(at(&path))?;
                let read = serde_json::from_slice(&content).map_err(io::Error::other);
                let read: Attachment = read.map_err(at(&path))?;
                known.insert(read.wanted.sandbox.clone(), read);
            }
        }
        Ok(Self { dir: dir.to_owned(), known })
    }

    fn path(&self, sandbox: &str) -> PathBuf {
        self.dir.join(format!("{sandbox}.json"))
    }

    pub(crate) fn put(&mut self, doing: &Attachment) -> Result<(), CniError> {
        let path = self.path(&doing.wanted.sandbox);
        let next = path.with_extension("next");
        let bytes = serde_json::to_vec(doing).expect("keys are strings");
        let written = fs::write(&next, bytes).and_then(|()| fs::rename(&next, &path));
        written.map_err(|error| CniError::Record(path, error))?;
        self.known.insert(doing.wanted.sandbox.clone(), doing.clone());
        Ok(())
    }

    pub(crate) fn remove(&mut self, sandbox: &str) -> Result<(), CniError> {
        let path = self.path(sandbox);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(CniError::Record(path, error));
            }
            _ => drop(self.known.remove(sandbox)),
        }
        Ok(())
    }

    pub(crate) fn of(&self, sandbox: &str) -> Option<&Attachment> {
        self.known.get(sandbox)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Attachment> {
        self.known.values()
    }
}
