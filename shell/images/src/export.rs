//! An image as an OCI archive.
//!
//! The store keeps layers unpacked and not the bytes they came in, so their tars are written anew,
//! with names in order. A layer from another tool may get another digest that way, and with it the
//! image another id; names, files, owners, times and attributes are the same.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use crate::blobs::{Hashing, digest_of};
use crate::store::{Store, parse};
use crate::{Error, io_error};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A layer's tar, to be put into the archive.
struct Layer {
    file: File,
    digest: String,
    size: u64,
}

fn failed(what: &str) -> impl FnOnce(io::Error) -> Error {
    io_error(format!("export: {what}"))
}

impl Store {
    /// Writes an image as an OCI archive.
    ///
    /// # Errors
    /// There is no such image; it cannot be read, or the archive not written.
    pub fn export(&self, reference: &str, out: impl Write) -> Result<(), Error> {
        let image = self.status(reference)?.ok_or_else(|| Error::NotFound(reference.into()))?;
        let unpacked = self.unpacked(reference)?;
        let layers = unpacked.rootfs.lower.iter().rev().map(|folder| self.layer_tar(folder));
        let layers = layers.collect::<Result<Vec<_>, _>>()?;
        let mut config: Value = serde_json::from_slice(&self.config_bytes(&image.id)?)
            .map_err(|error| Error::Io("the image's configuration".into(), error.into()))?;
        config["rootfs"]["diff_ids"] = layers.iter().map(|layer| layer.digest.as_str()).collect();
        let name = match parse(reference) {
            Ok(name) if image.repo_tags.contains(&name.to_string()) => Some(name.to_string()),
            _ => image.repo_tags.first().cloned(),
        };
        archive(out, layers, config.to_string().as_bytes(), name).map_err(failed("the archive"))
    }

    fn layer_tar(&self, folder: &str) -> Result<Layer, Error> {
        let write = || -> io::Result<Layer> {
            let file = self.scratch()?;
            let mut builder = Builder::new(Hashing::new(io::BufWriter::new(file)));
            builder.mode(tar::HeaderMode::Complete);
            LayerWriter {
                root: PathBuf::from(folder),
                builder: &mut builder,
                linked: BTreeMap::new(),
            }
            .folder(Path::new(""))?;
            let (out, digest) = builder.into_inner()?.into_parts();
            let mut file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
            let size = file.stream_position()?;
            file.rewind()?;
            Ok(Layer { file, digest, size })
        };
        write().map_err(failed("a layer"))
    }
}

struct LayerWriter<'a, W: Write> {
    root: PathBuf,
    builder: &'a mut Builder<W>,
    /// First names of files that have several, by inode.
    linked: BTreeMap<u64, PathBuf>,
}

impl<W: Write> LayerWriter<'_, W> {
    fn folder(&mut self, below: &Path) -> io::Result<()> {
        let mut names: Vec<_> = fs::read_dir(self.root.join(below))?
            .map(|entry| Ok(entry?.file_name()))
            .collect::<io::Result<_>>()?;
        names.sort();
        for name in names {
            let path = below.join(&name);
            let full = self.root.join(&path);
            let meta = fs::symlink_metadata(&full)?;
            let kind = meta.file_type();
            if kind.is_char_device() && meta.rdev() == 0 {
                let mut hidden = std::ffi::OsString::from(".wh.");
                hidden.push(&name);
                self.empty(&below.join(hidden))?;
                continue;
            }
            self.entry(&path, &full, &meta)?;
            if kind.is_dir() {
                if attribute(&full, "trusted.overlay.opaque")?.is_some() {
                    self.empty(&path.join(".wh..wh..opq"))?;
                }
                self.folder(&path)?;
            }
        }
        Ok(())
    }

    /// A mark for what a layer hides.
    fn empty(&mut self, path: &Path) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_size(0);
        header.set_mode(0o600);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        self.builder.append_data(&mut header, path, io::empty())
    }

    fn entry(&mut self, path: &Path, full: &Path, meta: &Metadata) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_metadata(meta);
        let kind = meta.file_type();
        if kind.is_file() && meta.nlink() > 1 {
            if let Some(first) = self.linked.get(&meta.ino()) {
                header.set_entry_type(EntryType::Link);
                header.set_size(0);
                return self.builder.append_link(&mut header, path, first);
            }
            self.linked.insert(meta.ino(), path.to_path_buf());
        }
        self.attributes(full, meta)?;
        if kind.is_symlink() {
            header.set_size(0);
            return self.builder.append_link(&mut header, path, fs::read_link(full)?);
        }
        if kind.is_file() {
            return self.builder.append_data(&mut header, path, File::open(full)?);
        }
        header.set_size(0);
        self.builder.append_data(&mut header, path, io::empty())
    }

    /// The attributes that an image may set.
    fn attributes(&mut self, full: &Path, meta: &Metadata) -> io::Result<()> {
        if meta.file_type().is_symlink() {
            return Ok(());
        }
        let mut names = vec![0; 1 << 16];
        let length = rustix::fs::llistxattr(full, &mut names[..])?;
        let mut records = Vec::new();
        for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let name = String::from_utf8_lossy(name).into_owned();
            if name == "security.capability" || name.starts_with("user.") {
                let value = attribute(full, &name)?.unwrap_or_default();
                records.push((format!("SCHILY.xattr.{name}"), value));
            }
        }
        if records.is_empty() {
            return Ok(());
        }
        let records = records.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
        self.builder.append_pax_extensions(records)
    }
}

fn attribute(path: &Path, name: &str) -> io::Result<Option<Vec<u8>>> {
    let mut value = vec![0; 1 << 16];
    match rustix::fs::lgetxattr(path.as_os_str().as_bytes(), name, &mut value[..]) {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(value))
        }
        Err(rustix::io::Errno::NODATA) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn archive(
    out: impl Write,
    layers: Vec<Layer>,
    config: &[u8],
    name: Option<String>,
) -> io::Result<()> {
    let mut builder = Builder::new(out);
    let describe = |kind: &str, digest: &str, size: u64| {
        let digest = digest.to_owned();
        json!({"mediaType": kind, "digest": digest, "size": size})
    };
    let rows: Vec<Value> =
        layers.iter().map(|layer| describe(LAYER, &layer.digest, layer.size)).collect();
    let document =
        |media_type, bytes: &[u8]| describe(media_type, &digest_of(bytes), bytes.len() as u64);
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST,
        "config": document(CONFIG, config), "layers": rows})
    .to_string();
    let mut row = document(MANIFEST, manifest.as_bytes());
    if let Some(name) = name {
        row["annotations"] = json!({"io.containerd.image.name": name,
            "org.opencontainers.image.ref.name": name});
    }
    let index = json!({"schemaVersion": 2, "manifests": [row]}).to_string();
    add(&mut builder, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    add(&mut builder, "index.json", index.as_bytes())?;
    for bytes in [config, manifest.as_bytes()] {
        add(&mut builder, &blob_name(&digest_of(bytes)), bytes)?;
    }
    let mut written = std::collections::BTreeSet::new();
    for layer in layers {
        if written.insert(layer.digest.clone()) {
            append(&mut builder, &blob_name(&layer.digest), layer.size, layer.file)?;
        }
    }
    builder.into_inner()?.flush()
}

fn blob_name(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

fn add(builder: &mut Builder<impl Write>, name: &str, bytes: &[u8]) -> io::Result<()> {
    append(builder, name, bytes.len() as u64, bytes)
}

fn append(
    builder: &mut Builder<impl Write>,
    name: &str,
    size: u64,
    data: impl io::Read,
) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    builder.append_data(&mut header, name, data)
}
