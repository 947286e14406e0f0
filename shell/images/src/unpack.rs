//! One layer, from a tar stream to a folder that overlayfs can stack.
//!
//! The stream is hostile until its digest has been checked, and for its maker's purposes after
//! that too. Every path is looked up with the layer's folder as the limit, so a symbolic link in
//! the layer leads nowhere else; names with `..` and absolute names are refused, because no
//! honest tool writes them. Device nodes are left out: every container gets its own /dev.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use crate::Limits;
use crate::tarball::{self, Entry, Kind};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other names of this form belong to aufs and mean nothing here.
const AUFS: &[u8] = b".wh..wh.";

fn bad(path: &Path, why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {why}", path.display()))
}

/// Unpacks a layer into an empty folder; the bytes of its files.
///
/// # Errors
/// The layer is broken, hostile or larger than the limits. The folder is left as it is then.
pub(crate) fn unpack(stream: impl Read, into: &Path, limits: Limits) -> io::Result<u64> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(into, flags, Mode::empty())?;
    let mut layer = Layer { root, left: limits.bytes, times: Vec::new() };
    tarball::read_entries(stream, limits.entries, |entry, data| layer.add(&entry, data))?;
    // Last, and in reverse: filling a folder changes its time.
    for (dir, mtime) in layer.times.iter().rev() {
        if let Ok(fd) = layer.open(dir, OFlags::PATH | OFlags::DIRECTORY) {
            set_times(&fd, OsStr::new(""), AtFlags::EMPTY_PATH, *mtime)?;
        }
    }
    Ok(limits.bytes - layer.left)
}

struct Layer {
    root: OwnedFd,
    /// Bytes that files may still take.
    left: u64,
    /// Times of folders, to be set at the end.
    times: Vec<(PathBuf, i64)>,
}

/// The parts of a name in an archive, checked; empty for the root itself.
fn clean(name: &OsStr) -> io::Result<PathBuf> {
    let path = Path::new(name);
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => clean.push(part),
            Component::CurDir => {}
            _ => return Err(bad(path, "the name is absolute or has \"..\"")),
        }
    }
    Ok(clean)
}

/// How often the kernel is asked to resolve a path while the machine renames and mounts.
const MAX_ASKED: usize = 1_000;

impl Layer {
    fn open(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let limit = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = flags | OFlags::CLOEXEC;
        let ask = || rustix::fs::openat2(&self.root, path, flags, Mode::empty(), limit);
        // A rename or mount anywhere makes the kernel give up on a `..` (openat2(2)).
        let mut asked = (0..MAX_ASKED).map(|_| ask());
        asked.find(|found| !matches!(found, Err(Errno::AGAIN))).unwrap_or(Err(Errno::AGAIN))
    }

    /// Opens a folder, making it and its parents where missing.
    fn make_dir(&self, path: &Path) -> Result<OwnedFd, Errno> {
        match (self.open(path, OFlags::PATH | OFlags::DIRECTORY), path.file_name()) {
            (Err(Errno::NOENT), Some(name)) => {
                let parent = self.make_dir(path.parent().unwrap_or(Path::new("")))?;
                rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755))?;
                self.open(path, OFlags::PATH | OFlags::DIRECTORY)
            }
            (opened, _) => opened,
        }
    }

    fn add(&mut self, entry: &Entry, data: &mut dyn Read) -> io::Result<()> {
        let path = clean(&entry.path)?;
        let Some(name) = path.file_name().map(OsStr::to_os_string) else {
            return self.add_root(entry);
        };
        let parent = self.make_dir(path.parent().unwrap_or(Path::new("")))?;
        let added = match name.as_bytes() {
            OPAQUE => set_opaque(&parent),
            aufs if aufs.starts_with(AUFS) => Ok(()),
            hidden if hidden.starts_with(WHITEOUT) => {
                add_whiteout(&parent, OsStr::from_bytes(&hidden[WHITEOUT.len()..]))
            }
            _ => self.add_named(entry, data, &path, &parent, &name),
        };
        added.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
    }

    fn add_root(&mut self, entry: &Entry) -> io::Result<()> {
        if entry.kind != Kind::Dir {
            return Err(bad(Path::new(&entry.path), "the root is no folder"));
        }
        let root = self.open(Path::new(""), OFlags::RDONLY | OFlags::DIRECTORY)?;
        self.times.push((PathBuf::new(), entry.mtime));
        set_metadata(&root, entry)
    }

    fn add_named(
        &mut self,
        entry: &Entry,
        data: &mut dyn Read,
        path: &Path,
        parent: &OwnedFd,
        name: &OsStr,
    ) -> io::Result<()> {
        match &entry.kind {
            Kind::Dir => {
                self.times.push((path.to_path_buf(), entry.mtime));
                return add_dir(parent, name, entry);
            }
            Kind::Device => return Ok(()),
            _ => make_room(parent, name)?,
        }
        match &entry.kind {
            Kind::File => self.add_file(parent, name, entry, data)?,
            Kind::Symlink(target) => rustix::fs::symlinkat(target.as_os_str(), parent, name)?,
            // A link is the same file: it has its owner, mode and times already.
            Kind::HardLink(target) => return self.add_link(target, parent, name),
            _ => {
                let mode = Mode::from_raw_mode(entry.mode);
                rustix::fs::mknodat(parent, name, FileType::Fifo, mode, 0)?;
            }
        }
        let keep_link = AtFlags::SYMLINK_NOFOLLOW;
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        rustix::fs::chownat(parent, name, Some(uid), Some(gid), keep_link)?;
        if entry.kind == Kind::Fifo {
            rustix::fs::chmodat(parent, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())?;
        }
        set_times(parent, name, keep_link, entry.mtime)
    }

    fn add_file(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        entry: &Entry,
        data: &mut dyn Read,
    ) -> io::Result<()> {
        self.left = self
            .left
            .checked_sub(entry.size)
            .ok_or_else(|| bad(Path::new(name), "the layer is too large"))?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW;
        let mode = Mode::from_raw_mode(0o600);
        let fd = rustix::fs::openat(parent, name, flags | OFlags::CLOEXEC, mode)?;
        let mut file = std::fs::File::from(fd.try_clone()?);
        if io::copy(data, &mut file)? != entry.size {
            return Err(bad(Path::new(name), "the file is cut off"));
        }
        file.flush()?;
        set_metadata(&fd, entry)
    }

    fn add_link(&self, target: &OsString, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
        let target = clean(target)?;
        let file = self.open(&target, OFlags::PATH | OFlags::NOFOLLOW)?;
        Ok(rustix::fs::linkat(&file, "", parent, name, AtFlags::EMPTY_PATH)?)
    }
}

/// Owner before mode (a change of owner clears set-user-id), attributes last (so does writing).
fn set_metadata(fd: &OwnedFd, entry: &Entry) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    rustix::fs::fchown(fd, Some(uid), Some(gid))?;
    rustix::fs::fchmod(fd, Mode::from_raw_mode(entry.mode))?;
    for (key, value) in &entry.xattrs {
        rustix::fs::fsetxattr(fd, key.as_str(), value, XattrFlags::empty())?;
    }
    Ok(())
}

fn set_times(dir: &OwnedFd, name: &OsStr, flags: AtFlags, mtime: i64) -> io::Result<()> {
    let time = Timespec { tv_sec: mtime, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(rustix::fs::utimensat(dir, name, &times, flags)?)
}

fn kind_at(parent: &OwnedFd, name: &OsStr) -> io::Result<Option<FileType>> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Removes what an earlier entry of the same layer put at a name.
fn make_room(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match kind_at(parent, name)? {
        None => Ok(()),
        Some(FileType::Directory) => remove_dir(parent, name),
        Some(_) => Ok(rustix::fs::unlinkat(parent, name, AtFlags::empty())?),
    }
}

fn remove_dir(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    for entry in rustix::fs::Dir::read_from(&dir)? {
        let entry = entry?;
        let child = OsStr::from_bytes(entry.file_name().to_bytes());
        if child != "." && child != ".." {
            make_room(&dir, child)?;
        }
    }
    Ok(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

fn add_dir(parent: &OwnedFd, name: &OsStr, entry: &Entry) -> io::Result<()> {
    let found = kind_at(parent, name)?;
    if found != Some(FileType::Directory) {
        make_room(parent, name)?;
        rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    if found == Some(FileType::CharacterDevice) {
        // It was hidden and is there anew: nothing of the lower folder shows through.
        set_opaque(&dir)?;
    }
    set_metadata(&dir, entry)
}

/// Marks a folder as showing nothing of the layers below.
fn set_opaque(dir: &OwnedFd) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(dir.as_fd(), ".", flags, Mode::empty())?;
    Ok(rustix::fs::fsetxattr(&dir, "trusted.overlay.opaque", b"y", XattrFlags::empty())?)
}

/// Hides a name of the layers below; what this layer itself has there stays.
fn add_whiteout(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    if matches!(name.as_bytes(), b"" | b"." | b"..") {
        return Err(bad(Path::new(name), "hides no name"));
    }
    match kind_at(parent, name)? {
        None => {
            let mode = Mode::empty();
            Ok(rustix::fs::mknodat(parent, name, FileType::CharacterDevice, mode, 0)?)
        }
        Some(FileType::Directory) => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            set_opaque(&rustix::fs::openat(parent, name, flags, Mode::empty())?)
        }
        Some(_) => Ok(()),
    }
}
