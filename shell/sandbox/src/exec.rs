//! Running a command in a container and waiting for it, with what it writes.
//!
//! The command's own end counts, not that of its streams: a child it leaves behind may hold them
//! for ever, and a probe must not hang on it.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use knarr_oci::cri::ExecSyncResponse;
use rustix::event::{PollFd, PollFlags, poll};

use crate::protocol::{self, Reply, Request};
use crate::state::SandboxDir;
use crate::{Error, runtime};

/// Most bytes kept of each stream; what is more is read and dropped.
const MAX_OUTPUT: usize = 16 << 20;

/// One output of the command.
struct Stream {
    /// `None` when it has ended.
    fd: Option<OwnedFd>,
    kept: Vec<u8>,
}

impl Stream {
    /// The stream, and the end that the command writes to.
    fn new() -> io::Result<(Stream, OwnedFd)> {
        let (ours, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        Ok((Stream { fd: Some(ours), kept: Vec::new() }, theirs))
    }

    /// Takes what is there.
    fn drain(&mut self) {
        let mut buffer = vec![0; 64 * 1024];
        while let Some(fd) = &self.fd {
            match rustix::io::read(fd, &mut buffer) {
                Ok(count @ 1..) => {
                    let room = MAX_OUTPUT - self.kept.len();
                    self.kept.extend_from_slice(&buffer[..count.min(room)]);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return,
                Ok(0) | Err(_) => self.fd = None,
            }
        }
    }
}

/// Asks the shim of a sandbox for an `Exec` and waits for its end.
pub(crate) fn run(dir: &SandboxDir, request: &Request) -> Result<ExecSyncResponse, Error> {
    let failed = |error: io::Error| Error::Io("exec".into(), error);
    let socket = protocol::connect(&dir.0).map_err(failed)?;
    let input: OwnedFd = fs::File::open("/dev/null").map_err(failed)?.into();
    let (mut stdout, their_out) = Stream::new().map_err(failed)?;
    let (mut stderr, their_err) = Stream::new().map_err(failed)?;
    let fds = [input.as_fd(), their_out.as_fd(), their_err.as_fd()];
    protocol::send(&socket, request, &fds).map_err(failed)?;
    drop((their_out, their_err));
    loop {
        if wait(&socket, [&stdout, &stderr]).map_err(failed)? == Ready::Socket {
            match runtime::hear(&socket)? {
                Reply::Started { .. } => {}
                Reply::ExecExited { timed_out: true, .. } => return Err(Error::Timeout),
                Reply::ExecExited { code: exit_code, .. } => {
                    stdout.drain();
                    stderr.drain();
                    let (stdout, stderr) = (stdout.kept, stderr.kept);
                    return Ok(ExecSyncResponse { stdout, stderr, exit_code });
                }
                other => return Err(runtime::unexpected(&other)),
            }
        }
        stdout.drain();
        stderr.drain();
    }
}

#[derive(PartialEq, Eq)]
enum Ready {
    Socket,
    Streams,
}

/// Waits until the shim or a stream has something.
fn wait(socket: &OwnedFd, streams: [&Stream; 2]) -> io::Result<Ready> {
    let mut fds = vec![PollFd::new(socket, PollFlags::IN)];
    let open = streams.iter().filter_map(|stream| stream.fd.as_ref());
    fds.extend(open.map(|fd| PollFd::new(fd, PollFlags::IN)));
    match poll(&mut fds, None) {
        Err(rustix::io::Errno::INTR) => Ok(Ready::Streams),
        Err(error) => Err(error.into()),
        Ok(_) if fds[0].revents().is_empty() => Ok(Ready::Streams),
        Ok(_) => Ok(Ready::Socket),
    }
}
