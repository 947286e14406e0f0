//! The disk seam: one flat directory, and the few calls whose order decides what survives.

use std::fmt::Debug;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FallocateFlags, FlockOperation, OFlags, StatxFlags, fallocate, fcntl_getfl,
    fcntl_setfl, flock, statx,
};
use rustix::io::Errno;

use crate::error::OpenError;

/// A directory that only this process writes.
pub trait Disk: Debug + Send + Sync + 'static {
    /// Names of all files, sorted.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Opens an existing file.
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;
    /// Makes an empty file, or empties an existing one.
    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;
    /// Renames, replacing what is there. Durable after [`Disk::sync_dir`].
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file. Durable after [`Disk::sync_dir`].
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes creations, renames and removals durable.
    fn sync_dir(&self) -> io::Result<()>;
}

/// An open file.
pub trait DiskFile: Debug + Send {
    /// Size in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether it has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Fills `buf` from `offset` on; a shorter file is an error.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
    /// Writes all of `data` at `offset`. Durable after [`DiskFile::sync_data`].
    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Lets reads and writes pass the page cache from now on, where the file system can do that.
    /// Returns the bytes at whose multiples they have to begin and end, of which [`BLOCK`] is one:
    /// 1 where nothing changed. The size of such a file is not looked at any more.
    fn direct(&mut self) -> io::Result<usize> {
        Ok(1)
    }
    /// Makes the file `len` bytes of allocated zeros, so that later writes need no new space and
    /// their sync no metadata.
    fn preallocate(&mut self, len: u64) -> io::Result<()>;
    /// fdatasync: all earlier writes and the size survive a power cut.
    fn sync_data(&mut self) -> io::Result<()>;
}

/// What direct writes are aligned to: a page, which is what the cache would have written.
pub const BLOCK: usize = 4096;

/// A directory of this machine, locked against other processes for as long as this value lives.
#[derive(Debug)]
pub struct RealDisk {
    dir: PathBuf,
    /// Holds the lock.
    _lock: File,
}

/// The file that holds the lock; it has no state.
pub(crate) const LOCK: &str = "LOCK";
/// Zeros are written in pieces of this size.
const ZEROS: usize = 256 << 10;
/// Memory that a file keeps for what it writes.
const KEPT: usize = 64 << 10;

impl RealDisk {
    /// Makes the directory if needed and locks it.
    ///
    /// # Errors
    /// [`OpenError::Locked`] when another process has it.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, OpenError> {
        let dir = dir.into();
        let failed = |source| OpenError::Io { file: dir.display().to_string(), source };
        create_durably(&dir).map_err(failed)?;
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(dir.join(LOCK))
            .map_err(failed)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                // Without a pid the message is shorter.
                let _ = lock.read_to_string(&mut pid);
                let pid = pid.trim().parse().ok();
                return Err(OpenError::Locked { dir: dir.display().to_string(), pid });
            }
            Err(error) => return Err(failed(error.into())),
        }
        let pid = std::process::id();
        lock.set_len(0).and_then(|()| writeln!(lock, "{pid}")).map_err(failed)?;
        Ok(Self { dir, _lock: lock })
    }
}

/// Makes a directory, and what is missing above it, so that a power cut does not take it back.
fn create_durably(dir: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = dir.ancestors().take_while(|dir| !dir.exists()).collect();
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    for parent in missing.into_iter().filter_map(Path::parent) {
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

impl Disk for RealDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        list(&self.dir)
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).open(self.dir.join(name))?;
        Ok(Box::new(RealFile::from(file)))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        Ok(Box::new(RealFile::from(options.open(self.dir.join(name))?)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.dir.join(from), self.dir.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.dir.join(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }
}

/// A directory that is only read, whoever owns it.
#[derive(Debug)]
pub struct ReadDisk(PathBuf);

impl ReadDisk {
    /// A directory that is there.
    ///
    /// # Errors
    /// When it is not.
    pub fn open(dir: impl Into<PathBuf>) -> io::Result<Self> {
        let dir = dir.into();
        if fs::metadata(&dir)?.is_dir() {
            Ok(Self(dir))
        } else {
            Err(io::ErrorKind::NotADirectory.into())
        }
    }
}

impl Disk for ReadDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        list(&self.0)
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(RealFile::from(File::open(self.0.join(name))?)))
    }

    fn create(&self, _: &str) -> io::Result<Box<dyn DiskFile>> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn remove(&self, _: &str) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync_dir(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Names of all files of a directory, sorted.
fn list(dir: &Path) -> io::Result<Vec<String>> {
    let names = fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name()));
    let names: io::Result<Vec<_>> = names.collect();
    let mut names: Vec<String> =
        names?.into_iter().filter_map(|name| name.into_string().ok()).collect();
    names.sort();
    Ok(names)
}

/// Memory that begins at a block, as direct reads and writes want it.
#[derive(Debug, Default)]
pub(crate) struct Aligned {
    memory: Vec<u8>,
    len: usize,
}

impl Aligned {
    /// Room for so many bytes, whatever they are.
    pub(crate) fn room(&mut self, len: usize) -> &mut [u8] {
        self.len = len;
        if self.memory.len() < len + BLOCK {
            self.memory = vec![0; len + BLOCK];
        }
        let start = self.start();
        &mut self.memory[start..start + len]
    }

    /// The bytes that room was made for last.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.memory[self.start()..self.start() + self.len]
    }

    fn start(&self) -> usize {
        self.memory.as_ptr().align_offset(BLOCK)
    }
}

/// A file of this machine.
#[derive(Debug)]
struct RealFile {
    file: File,
    /// Whether reads and writes pass the page cache.
    is_direct: bool,
    /// Where what is written lies as the device can take it.
    aligned: Aligned,
}

impl From<File> for RealFile {
    fn from(file: File) -> Self {
        Self { file, is_direct: false, aligned: Aligned::default() }
    }
}

impl DiskFile for RealFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if !self.is_direct || buf.as_ptr().align_offset(BLOCK) == 0 {
            return self.file.read_exact_at(buf, offset);
        }
        let mut aligned = Aligned::default();
        self.file.read_exact_at(aligned.room(buf.len()), offset)?;
        buf.copy_from_slice(aligned.bytes());
        Ok(())
    }

    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        if !self.is_direct {
            return self.file.write_all_at(data, offset);
        }
        self.aligned.room(data.len()).copy_from_slice(data);
        self.file.write_all_at(self.aligned.bytes(), offset)?;
        if data.len() > KEPT {
            self.aligned = Aligned::default();
        }
        Ok(())
    }

    fn direct(&mut self) -> io::Result<usize> {
        let known =
            statx(&self.file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN | StatxFlags::SIZE)?;
        let fits = |align: u32| align != 0 && (BLOCK as u32).is_multiple_of(align);
        let aligns = [known.stx_dio_mem_align, known.stx_dio_offset_align];
        if aligns.into_iter().all(fits) && known.stx_size.is_multiple_of(BLOCK as u64) {
            fcntl_setfl(&self.file, fcntl_getfl(&self.file)? | OFlags::DIRECT)?;
            self.is_direct = true;
        }
        Ok(if self.is_direct { BLOCK } else { 1 })
    }

    fn preallocate(&mut self, len: u64) -> io::Result<()> {
        // Fails at once when there is no space; written zeros then turn the extents into plain
        // data, so that a later fdatasync has no metadata to write.
        match fallocate(&self.file, FallocateFlags::empty(), 0, len) {
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
        let zeros = vec![0; ZEROS];
        for offset in (0..len).step_by(ZEROS) {
            let piece = (len - offset).min(ZEROS as u64) as usize;
            self.write_at(offset, &zeros[..piece])?;
        }
        Ok(())
    }

    fn sync_data(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }
}
