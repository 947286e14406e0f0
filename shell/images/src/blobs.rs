//! Files on their way into the store: what an archive brings, each with its digest.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use sha2::{Digest, Sha256};

/// Longest document (index, manifest, configuration) that is read into memory.
pub(crate) const MAX_DOCUMENT: u64 = 8 << 20;

/// `sha256:…` of what has been hashed.
pub(crate) fn digest_text(hash: Sha256) -> String {
    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// `sha256:…` of some bytes.
pub(crate) fn digest_of(bytes: &[u8]) -> String {
    digest_text(Sha256::new_with_prefix(bytes))
}

/// Passes bytes on and hashes them.
pub(crate) struct Hashing<T> {
    inner: T,
    hash: Sha256,
}

impl<T> Hashing<T> {
    pub(crate) fn new(inner: T) -> Hashing<T> {
        Hashing { inner, hash: Sha256::new() }
    }

    /// What lies below, and `sha256:…` of all that has passed.
    pub(crate) fn into_parts(self) -> (T, String) {
        (self.inner, digest_text(self.hash))
    }

    /// `sha256:…` of all that has passed.
    pub(crate) fn digest(self) -> String {
        digest_text(self.hash)
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// One file.
#[derive(Clone, Debug)]
pub(crate) struct Blob {
    path: PathBuf,
    /// `sha256:…` of its bytes.
    pub(crate) digest: String,
}

/// Files by their name in the archive.
pub(crate) struct Blobs {
    dir: PathBuf,
    by_name: BTreeMap<String, Blob>,
    /// Names that are links to other names.
    links: BTreeMap<String, String>,
}

impl Blobs {
    /// Keeps the files in an existing folder.
    pub(crate) fn new(dir: &Path) -> Blobs {
        Blobs { dir: dir.to_path_buf(), by_name: BTreeMap::new(), links: BTreeMap::new() }
    }

    /// Takes a file in.
    pub(crate) fn add(&mut self, name: String, data: &mut dyn Read) -> io::Result<u64> {
        let path = self.dir.join(format!("blob{}", self.by_name.len()));
        let mut out = Hashing::new(File::create_new(&path)?);
        let size = io::copy(data, &mut out)?;
        self.by_name.insert(name, Blob { path, digest: out.digest() });
        Ok(size)
    }

    /// Notes that a name stands for another one (old docker archives link equal layers).
    pub(crate) fn link(&mut self, name: String, target: String) {
        self.links.insert(name, target);
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Blob> {
        let target = self.links.get(name).map_or(name, String::as_str);
        self.by_name.get(target)
    }

    /// The file of a digest, if its bytes have that digest.
    pub(crate) fn by_digest(&self, digest: &str) -> io::Result<&Blob> {
        let bad = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        let hex = digest.strip_prefix("sha256:").unwrap_or_default();
        if !knarr_oci::reference::is_digest(digest) {
            return Err(bad(format!("{digest:?} is no sha256 digest")));
        }
        let blob = self.get(&format!("blobs/sha256/{hex}"));
        let blob = blob.ok_or_else(|| bad(format!("{digest} is missing")))?;
        if blob.digest != digest {
            return Err(bad(format!("{digest} has other contents: {}", blob.digest)));
        }
        Ok(blob)
    }
}

impl Blob {
    /// Its bytes, of a document.
    pub(crate) fn read(&self) -> io::Result<Vec<u8>> {
        let file = File::open(&self.path)?;
        if file.metadata()?.len() > MAX_DOCUMENT {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a document is too long"));
        }
        let mut bytes = Vec::new();
        file.take(MAX_DOCUMENT).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Its bytes, decompressed.
    pub(crate) fn unpacked(&self) -> io::Result<Box<dyn Read>> {
        decompressed(File::open(&self.path)?)
    }
}

/// A stream as it is without gzip or zstd, told by its first bytes.
pub(crate) fn decompressed<'a>(mut stream: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut magic = Vec::new();
    stream.by_ref().take(4).read_to_end(&mut magic)?;
    let whole = io::Cursor::new(magic.clone()).chain(stream);
    Ok(match magic[..] {
        [0x1f, 0x8b, ..] => {
            Box::new(MultiGzDecoder::new(io::BufReader::with_capacity(1 << 16, whole)))
        }
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::stream::read::Decoder::new(whole)?),
        _ => Box::new(whole),
    })
}
