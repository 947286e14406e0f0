//! The log file of a container: what its pipes bring, in CRI's format, straight to the disk.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use knarr_oci::log::{LogStream, rfc3339_nanos};

use super::attach::Tap;
use crate::state;

/// Most bytes taken from one stream before others have their turn.
const TURN: usize = 64 * 1024;

/// The log file of one container.
pub(super) struct Log {
    path: PathBuf,
    file: Option<File>,
}

impl Log {
    /// An empty path keeps nothing.
    pub(super) fn open(path: &str) -> io::Result<Log> {
        let mut log = Log { path: PathBuf::from(path), file: None };
        log.reopen()?;
        Ok(log)
    }

    /// Opens the file by its path again, after a rotation.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        if self.path.as_os_str().is_empty() {
            return Ok(());
        }
        std::fs::create_dir_all(self.path.parent().unwrap_or(Path::new("/")))?;
        let mut options = OpenOptions::new();
        self.file = Some(options.create(true).append(true).mode(0o640).open(&self.path)?);
        Ok(())
    }

    fn write(&mut self, lines: &[u8]) {
        // A full disk loses lines; the container goes on.
        let _ = self.file.as_mut().map(|file| file.write_all(lines));
    }
}

/// One output stream of a container.
pub(super) struct Output {
    fd: OwnedFd,
    stream: LogStream,
    /// Its number in the epoll.
    pub(super) source: u64,
    /// Not listened to, because somebody attached is behind.
    pub(super) paused: bool,
    /// Who else gets what it brings.
    pub(super) taps: Vec<Tap>,
}

/// Whether a stream may bring more.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum More {
    /// Later.
    Later,
    /// Never.
    Ended,
}

impl Output {
    /// `fd` must not block.
    pub(super) fn new(fd: OwnedFd, name: &'static str) -> Output {
        let stream = LogStream::new(name);
        Output { fd, stream, source: 0, paused: false, taps: Vec::new() }
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Moves what is there to the log, at most one turn of it.
    pub(super) fn pump(&mut self, log: &mut Log) -> More {
        let mut buffer = vec![0; TURN];
        let more = match rustix::io::read(self.fd.as_fd(), &mut buffer) {
            Ok(0) => More::Ended,
            Ok(count) => {
                let mut lines = Vec::with_capacity(count + 64);
                let time = rfc3339_nanos(state::now());
                self.stream.feed(&buffer[..count], &time, &mut lines);
                log.write(&lines);
                self.taps.retain_mut(|tap| tap.give(&buffer[..count]).is_ok());
                More::Later
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => More::Later,
            // A terminal whose other side is closed says EIO.
            Err(_) => More::Ended,
        };
        if more == More::Ended {
            self.finish(log);
        }
        more
    }

    /// Takes all that is left, after the container has ended.
    pub(super) fn drain(mut self, log: &mut Log) {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let readable = |fd: &OwnedFd| {
            let mut fds = [PollFd::new(fd, PollFlags::IN)];
            let _ = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
            fds[0].revents().contains(PollFlags::IN)
        };
        // Nobody waits for who is behind any more: all that is left has to fit their pipes.
        self.taps.iter_mut().for_each(Tap::widen);
        while readable(&self.fd) {
            if self.pump(log) == More::Ended {
                return;
            }
        }
        self.finish(log);
    }

    fn finish(&mut self, log: &mut Log) {
        let mut lines = Vec::new();
        self.stream.finish(&rfc3339_nanos(state::now()), &mut lines);
        log.write(&lines);
    }
}
