//! Tar streams as entries with bounded headers.
//!
//! The library reads blocks; the extension headers (GNU long names, PAX records) are put together
//! here, because each of them may claim to be as long as it likes.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;

use tar::{Archive, EntryType, PaxExtensions};

/// Longest extension header: paths, links and attributes of one entry.
const MAX_EXTENSION: u64 = 1 << 20;

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Dir,
    Symlink(OsString),
    HardLink(OsString),
    Fifo,
    Device,
}

/// One entry; its contents are read beside it.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) path: OsString,
    pub(crate) kind: Kind,
    pub(crate) size: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since the epoch.
    pub(crate) mtime: i64,
    pub(crate) xattrs: BTreeMap<String, Vec<u8>>,
}

/// What extension headers say about the next entry.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: BTreeMap<String, Vec<u8>>,
}

fn bad(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}

/// Calls `each` for every entry, in order.
///
/// # Errors
/// The stream is no tar, has more than `limit` entries, or `each` fails.
pub(crate) fn read_entries(
    stream: impl Read,
    limit: u64,
    mut each: impl FnMut(Entry, &mut dyn Read) -> io::Result<()>,
) -> io::Result<()> {
    let mut archive = Archive::new(stream);
    let (mut extensions, mut count) = (Extensions::default(), 0);
    for entry in archive.entries()?.raw(true) {
        let mut entry = entry?;
        count += 1;
        if count > limit {
            return Err(bad(format!("more than {limit} entries")));
        }
        if extensions.take(&mut entry)? {
            continue;
        }
        let made = std::mem::take(&mut extensions).entry(entry.header())?;
        each(made, &mut entry)?;
    }
    Ok(())
}

impl Extensions {
    /// Reads an entry that is an extension header; whether it was one.
    fn take(&mut self, entry: &mut tar::Entry<'_, impl Read>) -> io::Result<bool> {
        let kind = entry.header().entry_type();
        let is_extension = kind.is_gnu_longname()
            || kind.is_gnu_longlink()
            || kind.is_pax_local_extensions()
            || kind.is_pax_global_extensions();
        if !is_extension {
            return Ok(false);
        }
        if entry.header().entry_size()? > MAX_EXTENSION {
            return Err(bad("an extension header is too long"));
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        let text = |bytes: &[u8]| bytes.split(|byte| *byte == 0).next().map(<[u8]>::to_vec);
        if kind.is_gnu_longname() {
            self.path = text(&bytes);
        } else if kind.is_gnu_longlink() {
            self.link = text(&bytes);
        } else if kind.is_pax_local_extensions() {
            for record in PaxExtensions::new(&bytes) {
                let record = record?;
                let key = record.key().map_err(|_| bad("a PAX key is no text"))?;
                self.pax.insert(key.to_string(), record.value_bytes().to_vec());
            }
        }
        Ok(true)
    }

    fn entry(mut self, header: &tar::Header) -> io::Result<Entry> {
        let size = header.entry_size()?;
        if self.pax.keys().any(|key| key.starts_with("GNU.sparse"))
            || header.entry_type().is_gnu_sparse()
        {
            return Err(bad("sparse files are not supported"));
        }
        if self.number("size")?.is_some_and(|said| u64::try_from(said) != Ok(size)) {
            return Err(bad("two sizes for one entry"));
        }
        let path = self.pax.remove("path").or(self.path.take());
        let link = self.pax.remove("linkpath").or(self.link.take());
        let link = link.or_else(|| header.link_name_bytes().map(|name| name.to_vec()));
        let kind = kind_of(header.entry_type(), OsString::from_vec(link.unwrap_or_default()))?;
        let id = |said: Option<i64>, held: u64| {
            let id = said.map_or(u32::try_from(held).ok(), |said| u32::try_from(said).ok());
            id.ok_or_else(|| bad("a user or group id is out of range"))
        };
        Ok(Entry {
            path: OsString::from_vec(path.unwrap_or_else(|| header.path_bytes().to_vec())),
            kind,
            size,
            mode: header.mode()? & 0o7777,
            uid: id(self.number("uid")?, header.uid()?)?,
            gid: id(self.number("gid")?, header.gid()?)?,
            mtime: self.number("mtime")?.unwrap_or(i64::try_from(header.mtime()?).unwrap_or(0)),
            xattrs: self.xattrs(),
        })
    }

    /// A PAX number; a fraction of a second is cut off.
    fn number(&self, key: &str) -> io::Result<Option<i64>> {
        let Some(value) = self.pax.get(key) else { return Ok(None) };
        let text = std::str::from_utf8(value).unwrap_or_default();
        let whole = text.split('.').next().unwrap_or_default();
        whole.parse().map(Some).map_err(|_| bad(format!("{key} is no number")))
    }

    /// Extended attributes that an image may set; those that steer overlayfs are not among them.
    fn xattrs(self) -> BTreeMap<String, Vec<u8>> {
        let named = self.pax.into_iter().filter_map(|(key, value)| {
            Some((key.strip_prefix("SCHILY.xattr.")?.to_string(), value))
        });
        named.filter(|(key, _)| key == "security.capability" || key.starts_with("user.")).collect()
    }
}

fn kind_of(kind: EntryType, link: OsString) -> io::Result<Kind> {
    Ok(match kind {
        EntryType::Regular | EntryType::Continuous => Kind::File,
        EntryType::Directory => Kind::Dir,
        EntryType::Symlink => Kind::Symlink(link),
        EntryType::Link => Kind::HardLink(link),
        EntryType::Fifo => Kind::Fifo,
        EntryType::Char | EntryType::Block => Kind::Device,
        other => return Err(bad(format!("entry type {:?} is not supported", other.as_byte()))),
    })
}
