//! Who may use an image that is here: a Pod that could have pulled it.
//!
//! An image that came with a secret is not for everybody on the node (KEP-2535). For each image
//! and repository it is kept which credentials brought it, as hashes; a Pod without any of those
//! has to ask the registry itself. Images that no Pod's pull brought are for all. What is about to
//! be pulled is noted before, so that a crash opens nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use knarr_oci::credentials::Credentials;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tracing::warn;

/// For whom an image is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Grant {
    /// For everybody.
    All,
    /// For those with credentials of these hashes.
    Holders(BTreeSet<String>),
}

#[derive(Default, Serialize, Deserialize)]
struct Records {
    /// Image id, then repository.
    grants: BTreeMap<String, BTreeMap<String, Grant>>,
    /// Repositories that are being pulled from, and by how many.
    intents: BTreeMap<String, u32>,
}

/// A pull on its way; dropped, it is over.
pub(crate) struct Intent<'a> {
    access: &'a Access,
    repository: &'a str,
}

impl Drop for Intent<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.access.end(self.repository) {
            warn!(%error, "the end of a pull could not be noted");
        }
    }
}

/// The node's records.
pub(crate) struct Access {
    file: PathBuf,
    records: Mutex<Records>,
}

fn hash(credentials: &Credentials) -> String {
    let hash = Sha256::new_with_prefix(credentials.basic()).finalize();
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Access {
    /// Opens the records; without a file there are none. `here` are the images of the store, by
    /// (id, name): of those that a pull may have brought when the agent died, nobody is sure.
    pub(crate) fn open(file: PathBuf, here: &[(String, String)]) -> io::Result<Access> {
        let mut records: Records = match fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Records::default(),
            Err(error) => return Err(error),
        };
        for repository in std::mem::take(&mut records.intents).into_keys() {
            let named = |name: &str| {
                name.strip_prefix(&repository).is_some_and(|rest| rest.starts_with([':', '@']))
            };
            for (id, _) in here.iter().filter(|(_, name)| named(name)) {
                let grants = records.grants.entry(id.clone()).or_default();
                grants.entry(repository.clone()).or_insert(Grant::Holders(BTreeSet::new()));
            }
        }
        Ok(Access { file, records: Mutex::new(records) })
    }

    fn lock(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it takes no credentials at all to use an image of a repository.
    pub(crate) fn is_for_all(&self, id: &str, repository: &str) -> bool {
        let records = self.lock();
        match records.grants.get(id) {
            Some(grants) => grants.get(repository) == Some(&Grant::All),
            None => !records.intents.contains_key(repository),
        }
    }

    /// Whether some of these credentials brought the image once.
    pub(crate) fn is_for(&self, id: &str, repository: &str, own: &[Credentials]) -> bool {
        let records = self.lock();
        match records.grants.get(id).and_then(|grants| grants.get(repository)) {
            Some(Grant::All) => true,
            Some(Grant::Holders(hashes)) => own.iter().any(|own| hashes.contains(&hash(own))),
            None => false,
        }
    }

    /// Notes that a pull begins.
    pub(crate) fn intend<'a>(&'a self, repository: &'a str) -> io::Result<Intent<'a>> {
        let mut records = self.lock();
        let count = records.intents.entry(repository.to_owned()).or_default();
        *count += 1;
        if *count == 1 {
            self.write(&records)?;
        }
        Ok(Intent { access: self, repository })
    }

    fn end(&self, repository: &str) -> io::Result<()> {
        let mut records = self.lock();
        match records.intents.get_mut(repository) {
            Some(count) if *count > 1 => {
                *count -= 1;
                Ok(())
            }
            _ => {
                records.intents.remove(repository);
                self.write(&records)
            }
        }
    }

    /// Notes what a pull brought, and with which credentials.
    pub(crate) fn grant(
        &self,
        id: &str,
        repository: &str,
        own: Option<&Credentials>,
    ) -> io::Result<()> {
        let mut records = self.lock();
        let grants = records.grants.entry(id.to_owned()).or_default();
        let grant = grants.entry(repository.to_owned()).or_insert(Grant::Holders(BTreeSet::new()));
        match (own, grant) {
            (None, grant) => *grant = Grant::All,
            (Some(own), Grant::Holders(hashes)) => drop(hashes.insert(hash(own))),
            (Some(_), Grant::All) => {}
        }
        self.write(&records)
    }

    /// Forgets images that are gone.
    pub(crate) fn retain(&self, here: &BTreeSet<&str>) -> io::Result<()> {
        let mut records = self.lock();
        let before = records.grants.len();
        records.grants.retain(|id, _| here.contains(id.as_str()));
        if records.grants.len() == before { Ok(()) } else { self.write(&records) }
    }

    fn write(&self, records: &Records) -> io::Result<()> {
        let next = self.file.with_extension("next");
        fs::create_dir_all(self.file.parent().unwrap_or(&self.file))?;
        fs::write(&next, serde_json::to_vec(records)?)?;
        fs::File::open(&next)?.sync_all()?;
        fs::rename(next, &self.file)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test fails by panicking
mod tests {
    use super::*;

    #[test]
    fn only_who_could_have_pulled_may_use_it() {
        let dir = tempfile::tempdir().unwrap();
        let here = [("x".to_owned(), "r/a:1".to_owned()), ("y".to_owned(), "r/ab:1".to_owned())];
        let open = || Access::open(dir.path().join("node/pulled.json"), &here).unwrap();
        let access = open();
        let (own, other) = (Credentials::parse("a:1").unwrap(), Credentials::parse("a:2").unwrap());
        assert!(access.is_for_all("x", "r/a"), "nobody's pull brought it");
        let intent = access.intend("r/a").unwrap();
        assert!(!access.is_for_all("x", "r/a"));
        assert!(!open().is_for_all("x", "r/a"), "a crash now opens nothing");
        assert!(open().is_for_all("y", "r/ab"), "another repository is not meant");
        drop(intent);
        assert!(access.is_for_all("x", "r/a") && open().is_for_all("x", "r/a"), "it failed");
        access.grant("x", "r/a", Some(&own)).unwrap();
        let access = open();
        assert!(!access.is_for_all("x", "r/a"));
        assert!(access.is_for("x", "r/a", std::slice::from_ref(&own)));
        assert!(!access.is_for("x", "r/a", std::slice::from_ref(&other)));
        assert!(!access.is_for("x", "r/b", std::slice::from_ref(&own)), "another repository");
        let text = fs::read_to_string(dir.path().join("node/pulled.json")).unwrap();
        assert!(!text.contains(&own.basic()), "credentials are on the disk");
        access.grant("x", "r/a", None).unwrap();
        assert!(access.is_for_all("x", "r/a"));
        access.grant("x", "r/a", Some(&own)).unwrap();
        assert!(access.is_for_all("x", "r/a"), "what is for all stays so");
        access.retain(&BTreeSet::new()).unwrap();
        assert!(open().is_for_all("x", "r/a"));
    }
}
