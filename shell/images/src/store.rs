//! The store: images by name, layers by chain id.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use knarr_oci::cri::Image;
use knarr_oci::image::{ImageConfig, Platform};
use knarr_oci::reference::{Reference, is_digest};
use knarr_oci::spec::Rootfs;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::archive::{self, Found};
use crate::blobs::{Blob, Hashing, digest_of};
use crate::{Error, Limits, io_error, unpack};

/// A local image store below one folder. Calls block; several processes may share it.
pub struct Store {
    root: PathBuf,
    platform: Platform,
    limits: Limits,
}

/// What a container needs of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// Read-only layers.
    pub rootfs: Rootfs,
    /// Configuration.
    pub config: ImageConfig,
}

/// `record.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    manifest_digest: Option<String>,
    /// Chain ids without `sha256:`, lowest first.
    layers: Vec<String>,
    size: u64,
}

/// Full references and the ids (without `sha256:`) of their images.
type Names = BTreeMap<String, String>;

fn hex(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap_or(digest)
}

/// A folder in `tmp` that goes away with this value.
struct Work(PathBuf);

impl Drop for Work {
    fn drop(&mut self) {
        // What stays is removed by the next change.
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Store {
    /// Opens the store for this machine's platform, making it when missing.
    ///
    /// # Errors
    /// The folders cannot be made.
    pub fn open(root: PathBuf) -> Result<Store, Error> {
        let platform = Platform::linux(std::env::consts::ARCH);
        let store = Store { root, platform, limits: Limits::default() };
        for name in ["tmp", "layers", "images"] {
            fs::create_dir_all(store.root.join(name)).map_err(io_error("make the image store"))?;
        }
        Ok(store)
    }

    /// The same store with other limits.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Store {
        Store { limits, ..self }
    }

    /// Imports an OCI or docker archive, plain, gzip or zstd. `name` is used for an image that the
    /// archive does not name. The images, each with all its names.
    ///
    /// # Errors
    /// [`Error::Archive`] when the archive is refused; nothing of it is left then.
    pub fn import(&self, archive: impl Read, name: Option<&str>) -> Result<Vec<Image>, Error> {
        let _lock = self.lock()?;
        let work = self.work()?;
        let blobs = archive::read_files(archive, &work.0, self.limits)?;
        let found = archive::images(&blobs, &self.platform)?;
        let mut names = self.names()?;
        let mut records = Vec::new();
        for (number, image) in found.iter().enumerate() {
            for text in names_of(image, name) {
                let reference = parse(text)?;
                names.insert(reference.to_string(), hex(&image.id).to_string());
            }
            records.push(self.unpack_layers(image, &work.0.join(format!("image{number}")))?);
        }
        self.publish(&work, &found, &records)?;
        self.write_names(&work, &names)?;
        found.iter().map(|image| self.image(hex(&image.id), &names)).collect()
    }

    /// All images, by id.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn list(&self) -> Result<Vec<Image>, Error> {
        let names = self.names()?;
        self.ids()?.iter().map(|id| self.image(id, &names)).collect()
    }

    /// The image of a name (as a user writes it), of a name with a digest, or of an id.
    ///
    /// # Errors
    /// The store cannot be read; the text is no name.
    pub fn status(&self, reference: &str) -> Result<Option<Image>, Error> {
        let names = self.names()?;
        self.find(reference, &names)?.map(|id| self.image(&id, &names)).transpose()
    }

    /// Layers and configuration, to be given to the runtime.
    ///
    /// # Errors
    /// There is no such image.
    pub fn unpacked(&self, reference: &str) -> Result<Unpacked, Error> {
        let id = self.find(reference, &self.names()?)?;
        let id = id.ok_or_else(|| Error::NotFound(reference.into()))?;
        let (record, config) = (self.record(&id)?, self.config(&id)?);
        let folder = |chain: &String| self.layer(chain).join("fs").to_string_lossy().into_owned();
        let lower = record.layers.iter().rev().map(folder).collect();
        Ok(Unpacked { rootfs: Rootfs { lower }, config })
    }

    /// Forgets a name, or by id all names; without a name left, the image goes, and with it the
    /// layers that no other image needs. Layers in `in_use` (folders, as in [`Rootfs`]) stay until
    /// the next removal. A missing image is fine.
    ///
    /// # Errors
    /// The store cannot be changed; the text is no name.
    pub fn remove(&self, reference: &str, in_use: &BTreeSet<String>) -> Result<(), Error> {
        let _lock = self.lock()?;
        let work = self.work()?;
        let mut names = self.names()?;
        if let Some(id) = self.find(reference, &names)? {
            let by_id = hex(reference) == id;
            let name = if by_id { None } else { Some(parse(reference)?.to_string()) };
            let known = name.as_ref().is_some_and(|name| names.contains_key(name));
            names.retain(|text, owner| *owner != id || (known && Some(text) != name.as_ref()));
            self.write_names(&work, &names)?;
            if !names.values().any(|owner| *owner == id) {
                self.discard(&self.root.join("images").join(&id), &work)?;
            }
        }
        self.collect(in_use, &work)
    }

    /// Removes the layers that no image and no container stands on.
    fn collect(&self, in_use: &BTreeSet<String>, work: &Work) -> Result<(), Error> {
        let mut kept = BTreeSet::new();
        for id in self.ids()? {
            kept.extend(self.record(&id)?.layers);
        }
        for chain in folder_names(&self.root.join("layers"))? {
            let folder = self.layer(&chain);
            let used = in_use.contains(&*folder.join("fs").to_string_lossy());
            if !used && !kept.contains(&chain) {
                self.discard(&folder, work)?;
            }
        }
        Ok(())
    }

    /// Takes a folder out of the store at once; its contents go with the work folder.
    fn discard(&self, folder: &Path, work: &Work) -> Result<(), Error> {
        let name = folder.file_name().unwrap_or_default();
        fs::rename(folder, work.0.join(name)).map_err(io_error("remove from the image store"))
    }

    /// Unpacks the layers that the store does not have, below `dir`.
    fn unpack_layers(&self, image: &Found, dir: &Path) -> Result<Record, Error> {
        let (mut chain, mut layers, mut size) = (String::new(), Vec::new(), 0);
        for (blob, diff_id) in image.layers.iter().zip(&image.config.rootfs.diff_ids) {
            chain = match chain.as_str() {
                "" => diff_id.clone(),
                below => digest_of(format!("{below} {diff_id}").as_bytes()),
            };
            let name = hex(&chain).to_string();
            size += match fs::read_to_string(self.layer(&name).join("size")) {
                Ok(text) => text.trim().parse().unwrap_or(0),
                Err(_) => self.unpack_layer(blob, diff_id, &dir.join(&name))?,
            };
            layers.push(name);
        }
        Ok(Record { manifest_digest: image.manifest_digest.clone(), layers, size })
    }

    fn unpack_layer(&self, blob: &Blob, diff_id: &str, dir: &Path) -> Result<u64, Error> {
        let fs_dir = dir.join("fs");
        if fs_dir.exists() {
            // An image may have the same empty layer on the same chain only once: chains differ.
            return Err(Error::Archive(format!("layer {diff_id} appears twice in one place")));
        }
        fs::create_dir_all(&fs_dir).map_err(io_error("make a layer"))?;
        let refused = |error: io::Error| Error::Archive(format!("layer {diff_id}: {error}"));
        let mut stream = Hashing::new(blob.unpacked().map_err(refused)?);
        let size = unpack::unpack(&mut stream, &fs_dir, self.limits).map_err(refused)?;
        // The padding after the last entry belongs to the digest too.
        let padding = self.limits.bytes;
        let rest = io::copy(&mut stream.by_ref().take(padding), &mut io::sink());
        rest.map_err(refused)?;
        let digest = stream.digest();
        if digest != diff_id {
            return Err(Error::Archive(format!("layer {diff_id} has other contents: {digest}")));
        }
        fs::write(dir.join("size"), size.to_string()).map_err(io_error("write a layer"))?;
        Ok(size)
    }

    /// Puts unpacked layers, then images, in their places.
    fn publish(&self, work: &Work, found: &[Found], records: &[Record]) -> Result<(), Error> {
        let failed = || io_error("write to the image store");
        for (number, (image, record)) in found.iter().zip(records).enumerate() {
            let dir = work.0.join(format!("image{number}"));
            let made = dir.join("record");
            fs::create_dir_all(&made).map_err(failed())?;
            let record = serde_json::to_vec(record).expect("a record is plain data");
            fs::write(made.join("record.json"), record).map_err(failed())?;
            fs::write(made.join("config.json"), &image.config_bytes).map_err(failed())?;
        }
        // Everything is on the disk before anything has its name.
        let root = File::open(&self.root).map_err(failed())?;
        rustix::fs::syncfs(&root).map_err(|error| failed()(error.into()))?;
        for (number, (image, record)) in found.iter().zip(records).enumerate() {
            let dir = work.0.join(format!("image{number}"));
            for chain in &record.layers {
                move_in(&dir.join(chain), &self.layer(chain))?;
            }
            move_in(&dir.join("record"), &self.root.join("images").join(hex(&image.id)))?;
        }
        Ok(())
    }

    fn layer(&self, chain: &str) -> PathBuf {
        self.root.join("layers").join(chain)
    }

    /// Excludes other changes, of this process or another, until dropped.
    fn lock(&self) -> Result<File, Error> {
        let failed = || io_error("lock the image store");
        let file = File::create(self.root.join("lock")).map_err(failed())?;
        flock(&file, FlockOperation::LockExclusive).map_err(|error| failed()(error.into()))?;
        Ok(file)
    }

    /// A fresh work folder, in place of what an interrupted change has left; under the lock.
    fn work(&self) -> Result<Work, Error> {
        let dir = self.root.join("tmp");
        let failed = || io_error("make a work folder");
        for left in folder_names(&dir)? {
            fs::remove_dir_all(dir.join(left)).map_err(failed())?;
        }
        let work = Work(dir.join("work"));
        fs::create_dir(&work.0).map_err(failed())?;
        Ok(work)
    }

    fn names(&self) -> Result<Names, Error> {
        match fs::read(self.root.join("names.json")) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| Error::Io("names.json".into(), error.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Names::new()),
            Err(error) => Err(Error::Io("names.json".into(), error)),
        }
    }

    fn write_names(&self, work: &Work, names: &Names) -> Result<(), Error> {
        let write = || -> io::Result<()> {
            let next = work.0.join("names.json");
            let mut file = File::create(&next)?;
            file.write_all(&serde_json::to_vec(names)?)?;
            file.sync_all()?;
            fs::rename(&next, self.root.join("names.json"))?;
            File::open(&self.root)?.sync_all()
        };
        write().map_err(io_error("names.json"))
    }

    fn ids(&self) -> Result<Vec<String>, Error> {
        folder_names(&self.root.join("images"))
    }

    fn record(&self, id: &str) -> Result<Record, Error> {
        self.document(id, "record.json")
    }

    fn config(&self, id: &str) -> Result<ImageConfig, Error> {
        self.document(id, "config.json")
    }

    fn document<T: serde::de::DeserializeOwned>(&self, id: &str, name: &str) -> Result<T, Error> {
        let path = self.root.join("images").join(id).join(name);
        let read = || -> io::Result<T> { Ok(serde_json::from_slice(&fs::read(&path)?)?) };
        read().map_err(io_error(path.to_string_lossy()))
    }

    /// The id behind a reference.
    fn find(&self, reference: &str, names: &Names) -> Result<Option<String>, Error> {
        let id = hex(reference);
        if is_digest(&format!("sha256:{id}")) {
            return Ok(self.ids()?.into_iter().find(|known| known == id));
        }
        let reference = parse(reference)?;
        let Some(digest) = &reference.digest else {
            return Ok(names.get(&reference.to_string()).cloned());
        };
        let same_name =
            |text: &str| parse(text).is_ok_and(|known| known.name() == reference.name());
        for (_, id) in names.iter().filter(|(text, _)| same_name(text)) {
            if self.record(id)?.manifest_digest.as_ref() == Some(digest) {
                return Ok(Some(id.clone()));
            }
        }
        Ok(None)
    }

    fn image(&self, id: &str, names: &Names) -> Result<Image, Error> {
        let (record, config) = (self.record(id)?, self.config(id)?);
        let owned = names.iter().filter(|(_, owner)| *owner == id);
        let repo_tags: Vec<String> = owned.map(|(name, _)| name.clone()).collect();
        let with_digest = |name: &String| {
            Some(format!("{}@{}", parse(name).ok()?.name(), record.manifest_digest.as_ref()?))
        };
        let digests: BTreeSet<String> = repo_tags.iter().filter_map(with_digest).collect();
        let (uid, username) = config.user();
        Ok(Image {
            id: format!("sha256:{id}"),
            repo_digests: digests.into_iter().collect(),
            repo_tags: repo_tags.into_iter().filter(|name| !name.contains('@')).collect(),
            size: record.size,
            uid,
            username,
        })
    }
}

fn names_of<'a>(image: &'a Found, given: Option<&'a str>) -> Vec<&'a str> {
    match image.names.is_empty() {
        true => given.into_iter().collect(),
        false => image.names.iter().map(String::as_str).collect(),
    }
}

fn parse(text: &str) -> Result<Reference, Error> {
    Reference::parse(text).map_err(|why| Error::Reference(text.into(), why))
}

/// Moves a folder to its place, unless there is one already (equal, as it is named by contents).
fn move_in(from: &Path, to: &Path) -> Result<(), Error> {
    if !from.exists() || to.exists() {
        return Ok(());
    }
    fs::rename(from, to).map_err(io_error(format!("make {}", to.display())))
}

fn folder_names(dir: &Path) -> Result<Vec<String>, Error> {
    let read = || -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            names.extend(entry?.file_name().into_string().ok());
        }
        names.sort();
        Ok(names)
    };
    read().map_err(io_error(dir.to_string_lossy()))
}
