//! The store: images by name, layers by chain id.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use knarr_oci::cri::Image;
use knarr_oci::image::{ImageConfig, Platform};
use knarr_oci::reference::{Reference, is_digest};
use knarr_oci::spec::Rootfs;
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use serde::{Deserialize, Serialize};

use crate::archive::{self, Found};
use crate::blobs::{Hashing, digest_of};
use crate::pull::MAX_LEFT_AGE;
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

/// An image whose new layers are unpacked in some folder.
pub(crate) struct Arrival<'a> {
    /// `sha256:…` of the configuration.
    pub(crate) id: &'a str,
    /// References in full.
    pub(crate) names: &'a [String],
    pub(crate) manifest_digest: &'a str,
    pub(crate) config_bytes: &'a [u8],
    /// Chain ids, lowest first.
    pub(crate) layers: Vec<String>,
}

/// The folder of one process for pulls; others see that it is alive by its lock.
pub(crate) struct PullDir {
    pub(crate) path: PathBuf,
    _lock: File,
}

impl Drop for PullDir {
    fn drop(&mut self) {
        // What stays is removed by the next process that pulls.
        let _ = fs::remove_dir_all(&self.path);
    }
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
        for name in ["tmp", "layers", "images", "partial", "pulls"] {
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

    /// Gives an image that has the first name all the others, too; `None` without such an image.
    pub(crate) fn tag(&self, tags: &[String]) -> Result<Option<Image>, Error> {
        let Some(id) = self.find(&tags[0], &self.names()?)? else { return Ok(None) };
        let _lock = self.lock()?;
        let mut names = self.names()?;
        if !self.ids()?.contains(&id) {
            return Ok(None);
        }
        self.name_all(tags, &id, &mut names)?;
        self.image(&id, &names).map(Some)
    }

    fn name_all(&self, tags: &[String], id: &str, names: &mut Names) -> Result<(), Error> {
        if tags.iter().all(|tag| names.get(tag).is_some_and(|owner| owner == id)) {
            return Ok(());
        }
        names.extend(tags.iter().map(|tag| (tag.clone(), id.to_owned())));
        self.write_names(&self.work()?, names)
    }

    /// Puts an image in place whose new layers lie below `from`. `None` when a layer that it counts
    /// on went meanwhile.
    pub(crate) fn adopt(&self, arrival: &Arrival<'_>, from: &Path) -> Result<Option<Image>, Error> {
        // Everything is on the disk before anything has its name, and nobody waits for that.
        self.sync()?;
        let _lock = self.lock()?;
        let size_of = |chain: &String| {
            layer_size(&self.layer(chain)).or_else(|| layer_size(&from.join(chain)))
        };
        let sizes: Option<Vec<u64>> = arrival.layers.iter().map(size_of).collect();
        let Some(sizes) = sizes else { return Ok(None) };
        let work = self.work()?;
        let manifest_digest = Some(arrival.manifest_digest.to_owned());
        let (layers, size) = (arrival.layers.clone(), sizes.iter().sum());
        let record = Record { manifest_digest, layers, size };
        let made = self.write_image(&work.0.join("record"), &record, arrival.config_bytes)?;
        for chain in &arrival.layers {
            move_in(&from.join(chain), &self.layer(chain))?;
            // Another process was first: what is left here is no use.
            let _ = fs::remove_dir_all(from.join(chain));
        }
        let id = hex(arrival.id);
        move_in(&made, &self.root.join("images").join(id))?;
        let mut names = self.names()?;
        names.extend(arrival.names.iter().map(|name| (name.clone(), id.to_owned())));
        self.write_names(&work, &names)?;
        self.image(id, &names).map(Some)
    }

    /// Whether a layer is in its place.
    pub(crate) fn has_layer(&self, chain: &str) -> bool {
        self.layer(chain).exists()
    }

    /// The file that a blob grows in.
    pub(crate) fn partial(&self, digest: &str) -> PathBuf {
        self.root.join("partial").join(hex(digest))
    }

    pub(crate) fn platform(&self) -> &Platform {
        &self.platform
    }

    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    /// A folder for this process's pulls. Those of processes that are gone are removed, and blobs
    /// that nobody asked for again.
    pub(crate) fn pull_dir(&self) -> Result<PullDir, Error> {
        let failed = || io_error("make a folder for pulls");
        let _lock = self.lock_file("pulls.lock")?;
        let all = self.root.join("pulls");
        for left in folder_names(&all)? {
            let path = all.join(left);
            if take(&path).is_ok() {
                fs::remove_dir_all(path).map_err(failed())?;
            }
        }
        self.forget_partials(MAX_LEFT_AGE)?;
        let taken = folder_names(&all)?;
        let name = (0_u32..).map(|n| n.to_string()).find(|name| !taken.contains(name));
        let path = all.join(name.expect("there is always a free number"));
        fs::create_dir(&path).map_err(failed())?;
        let _lock = take(&path).map_err(failed())?;
        Ok(PullDir { path, _lock })
    }

    /// Removes what pulls that broke off have left; blobs that come right now stay.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn forget_broken_off(&self) -> Result<(), Error> {
        self.forget_partials(Duration::ZERO)
    }

    /// The configuration of an image, byte for byte.
    pub(crate) fn config_bytes(&self, id: &str) -> Result<Vec<u8>, Error> {
        let path = self.root.join("images").join(hex(id)).join("config.json");
        fs::read(&path).map_err(io_error(path.to_string_lossy()))
    }

    /// A file without a name, gone when it is closed.
    pub(crate) fn scratch(&self) -> io::Result<File> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        Ok(rustix::fs::open(&self.root, flags, mode)?.into())
    }

    /// Removes blobs on their way that have not grown for so long.
    pub(crate) fn forget_partials(&self, age: Duration) -> Result<(), Error> {
        let dir = self.root.join("partial");
        for name in folder_names(&dir)? {
            let path = dir.join(name);
            if is_older(&path, age) && take(&path).is_ok() {
                fs::remove_file(path).map_err(io_error("remove a partial blob"))?;
            }
        }
        Ok(())
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
            // Digests name an image only beside a tag, unless it was pulled by digest.
            if !names.iter().any(|(text, owner)| *owner == id && !text.contains('@')) {
                names.retain(|_, owner| *owner != id);
            }
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
        let diff_ids = &image.config.rootfs.diff_ids;
        let layers = chains(diff_ids);
        let mut size = 0;
        for ((blob, diff_id), chain) in image.layers.iter().zip(diff_ids).zip(&layers) {
            size += match layer_size(&self.layer(chain)) {
                Some(size) => size,
                None => {
                    let refused = |e: io::Error| Error::Archive(format!("layer {diff_id}: {e}"));
                    let stream = blob.unpacked().map_err(refused)?;
                    self.unpack_layer(stream, diff_id, &dir.join(chain))?
                }
            };
        }
        Ok(Record { manifest_digest: image.manifest_digest.clone(), layers, size })
    }

    /// Unpacks a plain tar whose digest must be `diff_id` into a new folder; its bytes.
    pub(crate) fn unpack_layer(
        &self,
        stream: impl Read,
        diff_id: &str,
        dir: &Path,
    ) -> Result<u64, Error> {
        let fs_dir = dir.join("fs");
        if fs_dir.exists() {
            // An image may have the same empty layer on the same chain only once: chains differ.
            return Err(Error::Archive(format!("layer {diff_id} appears twice in one place")));
        }
        fs::create_dir_all(&fs_dir).map_err(io_error("make a layer"))?;
        let refused = |error: io::Error| Error::Archive(format!("layer {diff_id}: {error}"));
        let mut stream = Hashing::new(stream);
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
        for (number, (image, record)) in found.iter().zip(records).enumerate() {
            let dir = work.0.join(format!("image{number}"));
            self.write_image(&dir.join("record"), record, &image.config_bytes)?;
        }
        // Everything is on the disk before anything has its name.
        self.sync()?;
        for (number, (image, record)) in found.iter().zip(records).enumerate() {
            let dir = work.0.join(format!("image{number}"));
            for chain in &record.layers {
                move_in(&dir.join(chain), &self.layer(chain))?;
            }
            move_in(&dir.join("record"), &self.root.join("images").join(hex(&image.id)))?;
        }
        Ok(())
    }

    fn write_image(&self, dir: &Path, record: &Record, config: &[u8]) -> Result<PathBuf, Error> {
        let record = serde_json::to_vec(record).expect("a record is plain data");
        let write = || -> io::Result<()> {
            fs::create_dir_all(dir)?;
            for (name, bytes) in [("record.json", record.as_slice()), ("config.json", config)] {
                let mut file = File::create(dir.join(name))?;
                file.write_all(bytes)?;
                file.sync_all()?;
            }
            Ok(())
        };
        write().map_err(io_error("write to the image store"))?;
        Ok(dir.to_path_buf())
    }

    /// Waits until all that was written is on the disk.
    fn sync(&self) -> Result<(), Error> {
        let sync = || -> io::Result<()> { Ok(rustix::fs::syncfs(File::open(&self.root)?)?) };
        sync().map_err(io_error("write to the image store"))
    }

    fn layer(&self, chain: &str) -> PathBuf {
        self.root.join("layers").join(chain)
    }

    /// Excludes other changes, of this process or another, until dropped.
    fn lock(&self) -> Result<File, Error> {
        self.lock_file("lock")
    }

    fn lock_file(&self, name: &str) -> Result<File, Error> {
        let failed = || io_error("lock the image store");
        let file = File::create(self.root.join(name)).map_err(failed())?;
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
        let named = names.get(&reference.to_string()).cloned();
        let Some(digest) = reference.digest.as_ref().filter(|_| named.is_none()) else {
            return Ok(named);
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
        let (by_digest, repo_tags): (Vec<String>, Vec<String>) =
            repo_tags.into_iter().partition(|name| name.contains('@'));
        let own = repo_tags.iter().filter(|_| by_digest.is_empty()).filter_map(with_digest);
        let digests: BTreeSet<String> = own.chain(by_digest.iter().cloned()).collect();
        let (uid, username) = config.user();
        Ok(Image {
            id: format!("sha256:{id}"),
            repo_digests: digests.into_iter().collect(),
            repo_tags,
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

/// Chain ids of layers without `sha256:`, lowest first.
pub(crate) fn chains(diff_ids: &[String]) -> Vec<String> {
    let mut below = String::new();
    let chain = |diff_id: &String| {
        below = match below.as_str() {
            "" => diff_id.clone(),
            below => digest_of(format!("{below} {diff_id}").as_bytes()),
        };
        hex(&below).to_string()
    };
    diff_ids.iter().map(chain).collect()
}

/// The bytes of an unpacked layer; `None` when it is not whole.
fn layer_size(dir: &Path) -> Option<u64> {
    fs::read_to_string(dir.join("size")).ok()?.trim().parse().ok()
}

/// Whether a file or folder has not changed for so long.
pub(crate) fn is_older(path: &Path, age: Duration) -> bool {
    let changed = fs::metadata(path).and_then(|meta| meta.modified());
    changed.is_ok_and(|at| at.elapsed().is_ok_and(|since| since >= age))
}

/// Locks a file or folder that nobody holds.
fn take(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    Ok(file)
}

pub(crate) fn parse(text: &str) -> Result<Reference, Error> {
    Reference::parse(text).map_err(|why| Error::Reference(text.into(), why))
}

/// Moves a folder to its place, unless there is one already (equal, as it is named by contents).
fn move_in(from: &Path, to: &Path) -> Result<(), Error> {
    if !from.exists() || to.exists() {
        return Ok(());
    }
    fs::rename(from, to).map_err(io_error(format!("make {}", to.display())))
}

pub(crate) fn folder_names(dir: &Path) -> Result<Vec<String>, Error> {
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
