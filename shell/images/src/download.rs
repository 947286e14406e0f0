//! One blob, from a registry to a file that survives whatever happens.
//!
//! The file grows as bytes come; its digest is taken on the way, by the thread that writes. After a
//! broken connection, or in the next process, the rest is asked for by `Range`.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use knarr_oci::image::Descriptor;
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::blobs::digest_text;
use crate::registry::{ATTEMPTS, RegistryError, Repository, pause};
use crate::transport::causes;

/// Chunks on their way to the disk.
const MAX_CHUNKS: usize = 32;
/// How long a connection may be silent.
const SILENCE: Duration = Duration::from_secs(60);

/// What has come so far.
struct Partial {
    file: File,
    hash: Sha256,
    length: u64,
}

fn disk(error: &dyn std::fmt::Display) -> RegistryError {
    RegistryError::Config(format!("cannot keep a layer: {error}"))
}

impl Partial {
    /// Takes up a file where it was left. One that another process is filling is left alone, and a
    /// private one filled instead.
    fn open(path: &Path, private: &Path) -> io::Result<(Partial, PathBuf)> {
        let open = |path: &Path| {
            File::options().read(true).write(true).create(true).truncate(false).open(path)
        };
        let mut path = path.to_path_buf();
        let mut file = open(&path)?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            path = private.to_path_buf();
            file = open(&path)?;
        }
        let mut partial = Partial { file, hash: Sha256::new(), length: 0 };
        partial.rehash()?;
        Ok((partial, path))
    }

    fn rehash(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; 1 << 17];
        loop {
            match self.file.read(&mut buffer)? {
                0 => return Ok(()),
                count => {
                    self.hash.update(&buffer[..count]);
                    self.length += count as u64;
                }
            }
        }
    }

    fn clear(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        (self.hash, self.length) = (Sha256::new(), 0);
        Ok(())
    }

    fn push(&mut self, chunk: &[u8]) -> io::Result<()> {
        self.file.write_all(chunk)?;
        self.hash.update(chunk);
        self.length += chunk.len() as u64;
        Ok(())
    }
}

/// A thread that writes what it is sent, and gives the file back.
struct Writer {
    chunks: mpsc::Sender<Bytes>,
    thread: JoinHandle<io::Result<Partial>>,
}

impl Writer {
    fn start(mut partial: Partial) -> Writer {
        let (chunks, mut queue) = mpsc::channel::<Bytes>(MAX_CHUNKS);
        let thread = spawn_blocking(move || {
            while let Some(chunk) = queue.blocking_recv() {
                partial.push(&chunk)?;
            }
            Ok(partial)
        });
        Writer { chunks, thread }
    }

    async fn end(self) -> Result<Partial, RegistryError> {
        drop(self.chunks);
        joined(self.thread).await
    }
}

async fn joined<T>(thread: JoinHandle<io::Result<T>>) -> Result<T, RegistryError> {
    thread.await.map_err(|error| disk(&error))?.map_err(|error| disk(&error))
}

/// Fetches a blob from the first repository that has it; the file with its bytes, checked.
///
/// # Errors
/// No repository gives it, or it has another digest or length; only what is right so far is kept.
pub(crate) async fn download(
    repositories: &[Repository],
    blob: &Descriptor,
    (path, private): (PathBuf, PathBuf),
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<PathBuf, RegistryError> {
    let opened = spawn_blocking(move || Partial::open(&path, &private));
    let (mut partial, path) = joined(opened).await?;
    let mut last = RegistryError::NotFound(blob.digest.clone());
    for repository in repositories {
        let mut failures = 0;
        while partial.length < blob.size && failures < ATTEMPTS {
            let before = partial.length;
            let (next, outcome) = advance(repository, blob, partial, progress).await?;
            partial = next;
            let Err(error) = outcome else { continue };
            let passing = error.is_passing();
            // A connection that brought something counts as none that failed.
            failures = if partial.length > before { 1 } else { failures + 1 };
            last = error;
            if !passing {
                break;
            }
            tokio::time::sleep(pause(failures - 1)).await;
        }
        if partial.length >= blob.size {
            return finished(partial, blob, path);
        }
    }
    Err(last)
}

fn finished(partial: Partial, blob: &Descriptor, path: PathBuf) -> Result<PathBuf, RegistryError> {
    let length = partial.length;
    let digest = digest_text(partial.hash);
    if length == blob.size && digest == blob.digest {
        return Ok(path);
    }
    // Nothing of it can be trusted.
    std::fs::remove_file(&path).map_err(|error| disk(&error))?;
    let (wanted, size) = (&blob.digest, blob.size);
    let text =
        format!("blob {wanted} ({size} bytes) has other contents: {digest} ({length} bytes)");
    Err(RegistryError::Broken(text))
}

/// Lets one answer fill the file as far as it goes.
async fn advance(
    repository: &Repository,
    blob: &Descriptor,
    mut partial: Partial,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<(Partial, Result<(), RegistryError>), RegistryError> {
    let (response, continues) = match repository.blob(&blob.digest, partial.length).await {
        Ok(answer) => answer,
        Err(error) => return Ok((partial, Err(error))),
    };
    if !continues {
        partial.clear().map_err(|error| disk(&error))?;
    }
    let mut length = partial.length;
    let writer = Writer::start(partial);
    let mut body = response.into_body();
    let broken = |why: String| RegistryError::Unreachable(format!("blob {}: {why}", blob.digest));
    let outcome = loop {
        match tokio::time::timeout(SILENCE, body.frame()).await {
            Ok(None) if length < blob.size => break Err(broken("it broke off".to_owned())),
            Ok(None) => break Ok(()),
            Ok(Some(Ok(frame))) => {
                let Ok(chunk) = frame.into_data() else { continue };
                length += chunk.len() as u64;
                progress(length);
                // One chunk beyond the end is enough to know; a failed write is told at the end.
                if writer.chunks.send(chunk).await.is_err() || length > blob.size {
                    break Ok(());
                }
            }
            Ok(Some(Err(error))) => break Err(broken(causes(&error))),
            Err(_) => break Err(broken("it fell silent".to_owned())),
        }
    };
    Ok((writer.end().await?, outcome))
}
