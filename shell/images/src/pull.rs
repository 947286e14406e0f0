//! Pulling: from a name to an image in the store.
//!
//! Resolve the name to a digest; fetch manifest and configuration, small documents with limits;
//! fetch the layers the store lacks, some at a time, and unpack each as soon as it is whole, while
//! the next ones come; put all in place at once. A pull that is dropped stops; what it fetched is
//! taken up by the next. Nothing here holds the store's lock but the last step.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use knarr_oci::credentials::Credentials;
use knarr_oci::cri::Image;
use knarr_oci::image::{
    Descriptor, DocumentKind, ImageConfig, Index, Manifest, Platform, document_kind,
};
use knarr_oci::reference::{Reference, is_digest};
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, spawn_blocking};

use crate::blobs::{MAX_DOCUMENT, decompressed};
use crate::download::download;
use crate::hosts::{Scheme, hosts};
use crate::keyed::Keyed;
use crate::registry::{Document, RegistryError, Repository};
use crate::store::{Arrival, PullDir, Store, chains, folder_names, is_older, parse};
use crate::{Error, io_error};

/// Layers of one image that are fetched at a time; containerd's default.
const PARALLEL_LAYERS: usize = 3;
/// Most layers of an image, as docker has it; overlayfs stacks not many more.
const MAX_LAYERS: usize = 127;
/// Deepest nesting of indexes.
const MAX_NESTING: u32 = 4;
/// What is left of pulls that failed is forgotten after this time.
pub(crate) const MAX_LEFT_AGE: Duration = Duration::from_secs(24 * 3600);
/// How often a pull begins anew because another process removed a layer it counted on.
const MAX_ROUNDS: u32 = 3;

/// Where a layer of a pull is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Others come first.
    Waiting,
    /// That many bytes are here.
    Downloading(u64),
    /// All bytes are here and become files.
    Unpacking,
    /// It is here.
    Done,
    /// It was here before.
    Present,
}

/// News of one layer.
#[derive(Clone, Debug)]
pub struct Progress<'a> {
    /// `sha256:…` of the layer as the registry has it.
    pub digest: &'a str,
    /// Its bytes.
    pub size: u64,
    /// How far it is.
    pub stage: Stage,
}

/// Who is told of progress.
pub type Watcher = Arc<dyn Fn(Progress<'_>) + Send + Sync>;

/// How to pull.
#[derive(Clone, Default)]
pub struct PullOptions {
    /// Who asks.
    pub credentials: Option<Credentials>,
    /// How a registry without a configuration is spoken to.
    pub scheme: Scheme,
    /// Who is told of progress.
    pub watcher: Option<Watcher>,
}

/// Pulls images into a store.
#[derive(Clone)]
pub struct Puller(Arc<Inner>);

struct Inner {
    store: Arc<Store>,
    certs_d: Option<PathBuf>,
    dir: PullDir,
    locks: Keyed,
    unpackers: Arc<Semaphore>,
}

/// A pull on its way.
struct Pull {
    inner: Arc<Inner>,
    repositories: Vec<Repository>,
    watcher: Option<Watcher>,
    parallel: Semaphore,
}

impl Pull {
    fn tell(&self, layer: &Descriptor, stage: Stage) {
        if let Some(watcher) = &self.watcher {
            watcher(Progress { digest: &layer.digest, size: layer.size, stage });
        }
    }
}

/// What a manifest leads to.
struct Plan {
    config_bytes: Vec<u8>,
    id: String,
    layers: Vec<Descriptor>,
    diff_ids: Vec<String>,
}

/// Sets a flag when dropped.
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Reads until it is told to stop.
struct Stoppable<R>(R, Arc<AtomicBool>);

impl<R: Read> Read for Stoppable<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.1.load(Ordering::Relaxed) {
            true => Err(io::Error::other("the pull was given up")),
            false => self.0.read(buffer),
        }
    }
}

fn broken(error: impl std::fmt::Display) -> RegistryError {
    RegistryError::Broken(error.to_string())
}

impl Puller {
    /// A puller into a store; `certs_d` holds the configuration of registries.
    ///
    /// # Errors
    /// The store has no room for work.
    pub fn open(store: Arc<Store>, certs_d: Option<PathBuf>) -> Result<Puller, Error> {
        let dir = store.pull_dir()?;
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let unpackers = Arc::new(Semaphore::new(cpus));
        Ok(Puller(Arc::new(Inner { store, certs_d, dir, locks: Keyed::default(), unpackers })))
    }

    /// Pulls the image of a name; the tag is asked for anew even if the image is here.
    ///
    /// # Errors
    /// [`Error::Pull`]; what came meanwhile is kept for the next try.
    pub async fn pull(&self, name: &str, options: &PullOptions) -> Result<Image, Error> {
        let reference = parse(name)?;
        let failed = |step: &'static str| {
            let image = reference.to_string();
            move |why: RegistryError| Error::Pull { image: image.clone(), step, why }
        };
        let repositories = self.repositories(&reference, options).map_err(failed("resolve"))?;
        let resolved = resolve(&repositories, &reference).await;
        let digest = match resolved.map_err(failed("resolve"))? {
            Some(digest) => digest,
            None => {
                manifest(&repositories, asked(&reference)).await.map_err(failed("resolve"))?.digest
            }
        };
        let names = names(&reference, &digest);
        let watcher = options.watcher.clone();
        let parallel = Semaphore::new(PARALLEL_LAYERS);
        let pull = Arc::new(Pull { inner: self.0.clone(), repositories, watcher, parallel });
        for _ in 0..MAX_ROUNDS {
            if let Some(image) = self.known(&names).await? {
                return Ok(image);
            }
            let plan = pull.plan(&digest).await.map_err(failed("copy"))?;
            let layers = pull.layers(&plan).await;
            layers.map_err(failed("copy"))?;
            if let Some(image) = self.adopt(&names, &digest, plan).await? {
                return Ok(image);
            }
        }
        Err(failed("copy")(broken("its layers are removed while they come")))
    }

    /// Removes what failed pulls left and nobody took up since: unpacked layers, and blobs.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn forget_left(&self) -> Result<(), Error> {
        let Inner { store, dir, locks, .. } = &*self.0;
        for name in folder_names(&dir.path)? {
            let path = dir.path.join(&name);
            let old = is_older(&path, MAX_LEFT_AGE);
            if let Some(_unused) = locks.try_lock(&name).filter(|_| old && path.is_dir()) {
                std::fs::remove_dir_all(&path).map_err(io_error("remove a layer"))?;
            }
        }
        store.forget_partials(MAX_LEFT_AGE)
    }

    fn repositories(
        &self,
        reference: &Reference,
        options: &PullOptions,
    ) -> Result<Vec<Repository>, RegistryError> {
        let registry = &reference.registry;
        let hosts = hosts(self.0.certs_d.as_deref(), registry, options.scheme)?;
        let credentials = options.credentials.as_ref();
        let open = |host| Repository::new(host, registry, &reference.repository, credentials);
        hosts.into_iter().map(open).collect()
    }

    /// The image that a digest names, if it is here; it has all the names then.
    async fn known(&self, names: &[String]) -> Result<Option<Image>, Error> {
        let (inner, names) = (self.0.clone(), names.to_vec());
        blocking(move || inner.store.tag(&names)).await
    }

    async fn adopt(
        &self,
        names: &[String],
        digest: &str,
        plan: Plan,
    ) -> Result<Option<Image>, Error> {
        let (inner, names, digest) = (self.0.clone(), names.to_vec(), digest.to_owned());
        blocking(move || {
            let arrival = Arrival {
                id: &plan.id,
                names: &names,
                manifest_digest: &digest,
                config_bytes: &plan.config_bytes,
                layers: chains(&plan.diff_ids),
            };
            let adopted = inner.store.adopt(&arrival, &inner.dir.path)?;
            for layer in plan.layers.iter().filter(|_| adopted.is_some()) {
                inner.forget_blob(&layer.digest);
            }
            Ok(adopted)
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    spawn_blocking(work).await.expect("the image store does not panic")
}

/// The names that a pulled image gets: what was asked for, and by digest.
fn names(reference: &Reference, digest: &str) -> Vec<String> {
    let by_digest = format!("{}@{digest}", reference.name());
    let mut names = vec![by_digest, reference.to_string()];
    names.dedup();
    names
}

fn asked(reference: &Reference) -> &str {
    reference.digest.as_deref().or(reference.tag.as_deref()).unwrap_or("latest")
}

/// The digest behind a reference, when some place tells it without sending the manifest.
async fn resolve(
    repositories: &[Repository],
    reference: &Reference,
) -> Result<Option<String>, RegistryError> {
    let mut last = RegistryError::NotFound(reference.to_string());
    for repository in repositories.iter().filter(|repository| repository.resolves()) {
        match repository.resolve(asked(reference)).await {
            Ok(digest) => {
                return Ok(reference.digest.clone().or(digest));
            }
            // Some places do not know HEAD.
            Err(RegistryError::Status(400..500, _)) => return Ok(reference.digest.clone()),
            Err(RegistryError::NotFound(_)) => {}
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn manifest(repositories: &[Repository], reference: &str) -> Result<Document, RegistryError> {
    let mut last = RegistryError::NotFound(reference.to_owned());
    for repository in repositories {
        match repository.manifest(reference).await {
            Ok(document) => return Ok(document),
            Err(error) => last = error,
        }
    }
    Err(last)
}

impl Pull {
    /// Reads manifest and configuration, and judges both before anything big is fetched.
    async fn plan(&self, digest: &str) -> Result<Plan, RegistryError> {
        let store = &self.inner.store;
        let manifest = self.image_manifest(digest, store.platform()).await?;
        let size = manifest.layers.iter().fold(0_u64, |sum, layer| sum.saturating_add(layer.size));
        if let Some(bad) = manifest.parts().find(|part| !is_digest(&part.digest)) {
            return Err(broken(format!("{:?} is no sha256 digest", bad.digest)));
        }
        if manifest.layers.len() > MAX_LAYERS || size > store.limits().bytes {
            let count = manifest.layers.len();
            return Err(broken(format!(
                "an image of {count} layers and {size} bytes is too large"
            )));
        }
        let config_bytes = self.config(&manifest.config).await?;
        let config: ImageConfig = serde_json::from_slice(&config_bytes).map_err(broken)?;
        config.check(store.platform(), manifest.layers.len()).map_err(broken)?;
        let (id, layers) = (manifest.config.digest, manifest.layers);
        Ok(Plan { config_bytes, id, layers, diff_ids: config.rootfs.diff_ids })
    }

    async fn image_manifest(
        &self,
        digest: &str,
        platform: &Platform,
    ) -> Result<Manifest, RegistryError> {
        let mut digest = digest.to_owned();
        for _ in 0..MAX_NESTING {
            let document = manifest(&self.repositories, &digest).await?;
            match document_kind(&document.bytes, &document.media_type) {
                Ok(DocumentKind::Manifest) => {
                    return serde_json::from_slice(&document.bytes).map_err(broken);
                }
                Ok(DocumentKind::Index) => {
                    let index: Index = serde_json::from_slice(&document.bytes).map_err(broken)?;
                    digest = index.choose(platform).map_err(broken)?.digest.clone();
                }
                Ok(DocumentKind::Schema1) => {
                    let text = "the image has docker's manifest schema 1, which is no longer \
                                supported: push it again with a tool of today";
                    return Err(broken(text));
                }
                Err(other) => return Err(broken(format!("{other:?} is no image manifest"))),
            }
        }
        Err(broken("its indexes are nested too deeply"))
    }

    async fn config(&self, config: &Descriptor) -> Result<Vec<u8>, RegistryError> {
        let mut last = RegistryError::NotFound(config.digest.clone());
        for repository in &self.repositories {
            match repository.document(&config.digest, MAX_DOCUMENT as usize).await {
                Ok(bytes) => return Ok(bytes.to_vec()),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Brings all layers; the first that fails ends the others.
    async fn layers(self: &Arc<Self>, plan: &Plan) -> Result<(), RegistryError> {
        let mut tasks = JoinSet::new();
        let rows = plan.layers.iter().zip(&plan.diff_ids).zip(chains(&plan.diff_ids));
        for ((layer, diff_id), chain) in rows {
            self.tell(layer, Stage::Waiting);
            tasks.spawn(self.clone().layer(layer.clone(), diff_id.clone(), chain));
        }
        while let Some(done) = tasks.join_next().await {
            done.map_err(broken)??;
        }
        Ok(())
    }

    async fn layer(
        self: Arc<Self>,
        layer: Descriptor,
        diff_id: String,
        chain: String,
    ) -> Result<(), RegistryError> {
        let inner = self.inner.clone();
        // In this order everywhere: chain, place in the pull, blob.
        let chain_lock = inner.locks.lock(&chain).await;
        if inner.has(&chain) {
            self.tell(&layer, Stage::Present);
            return Ok(());
        }
        let place = self.parallel.acquire().await.map_err(broken)?;
        let blob_lock = inner.locks.lock(&layer.digest).await;
        let progress = |length: u64| self.tell(&layer, Stage::Downloading(length));
        let paths = inner.blob_paths(&layer.digest);
        let blob = download(&self.repositories, &layer, paths, &progress).await?;
        drop(place);
        let unpacker = inner.unpackers.clone().acquire_owned().await.map_err(broken)?;
        self.tell(&layer, Stage::Unpacking);
        let stop = Stop(Arc::default());
        let stopped = stop.0.clone();
        let unpacked = blocking(move || {
            // Held by the thread, which goes on for a moment when the pull is dropped.
            let _held = (chain_lock, blob_lock, unpacker);
            inner.unpack(&blob, &diff_id, &chain, stopped)
        });
        unpacked.await.map_err(|error| broken(format!("failed to extract layer {error}")))?;
        self.tell(&layer, Stage::Done);
        Ok(())
    }
}

impl Inner {
    /// Whether a layer is in the store, or waits to be put there.
    fn has(&self, chain: &str) -> bool {
        self.store.has_layer(chain) || self.dir.path.join(chain).join("size").exists()
    }

    /// The file that a blob grows in, and the one for when another process fills that.
    fn blob_paths(&self, digest: &str) -> (PathBuf, PathBuf) {
        let private = self.dir.path.join(format!("{}.blob", digest.replace(':', "-")));
        (self.store.partial(digest), private)
    }

    fn forget_blob(&self, digest: &str) {
        let Some(_unused) = self.locks.try_lock(digest) else { return };
        let (shared, private) = self.blob_paths(digest);
        for path in [shared, private] {
            // It may be another process's by now, or never have been.
            let _ = std::fs::remove_file(path);
        }
    }

    fn unpack(
        &self,
        blob: &Path,
        diff_id: &str,
        chain: &str,
        stopped: Arc<AtomicBool>,
    ) -> Result<(), Error> {
        let refused = |error: io::Error| Error::Archive(format!("{diff_id}: {error}"));
        let file = std::fs::File::open(blob).map_err(refused)?;
        let stream = decompressed(Stoppable(file, stopped)).map_err(refused)?;
        let dir = self.dir.path.join(chain);
        let unpacked = self.store.unpack_layer(stream, diff_id, &dir);
        if unpacked.is_err() {
            // What is left of it would look like a layer on its way.
            let _ = std::fs::remove_dir_all(&dir);
        }
        unpacked.map(drop)
    }
}
