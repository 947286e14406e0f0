//! What an agent and a shim say to each other: JSON, one message per packet of a Unix socket.
//!
//! A connection carries one request and its answer, except after [`Request::Subscribe`], which is
//! answered by [`Reply::Hello`] and then by [`Reply::Exited`] for every exit. Standard streams of
//! an `Exec` travel beside the request as descriptors, so the shim moves no bytes of them; a
//! terminal's master travels back beside [`Reply::Started`]. So do those of an attachment, which
//! lasts as long as its connection. A shim of an older build answers what it does not know with
//! [`Reply::Refused`]; [`VERSION`] is told in `Hello`, and an agent must speak to every version it
//! may find.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use knarr_oci::spec::Process;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Version of this protocol; 2 knows attachments.
pub(crate) const VERSION: u32 = 2;
/// Largest message.
const MAX_MESSAGE: usize = 128 * 1024;
/// Most descriptors beside a message.
const MAX_FDS: usize = 3;

/// What an agent asks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Tell of exits from now on.
    Subscribe,
    /// Start a container, whose specification lies in the state folder.
    Start { id: String },
    /// Send `signal`, after `timeout_ms` SIGKILL; answered when the container has ended.
    Stop { id: String, signal: i32, timeout_ms: u64 },
    /// Open the log file again by its path.
    ReopenLog { id: String },
    /// Run a process in a container, with the streams given beside; answered by `Started`, then by
    /// `ExecExited`. Closing the connection kills it.
    Exec { id: String, process: Box<Process>, timeout_ms: Option<u64> },
    /// Copy what the container writes from now on into the two pipes given beside, for its standard
    /// output and error; answered by `Attached`. Whoever does not read holds the container up.
    AttachOutput { id: String },
    /// Hand out the writing end of the container's standard input, or its terminal; answered by
    /// `Attached` with the descriptor beside it, if there is one.
    AttachInput { id: String, at_end: AtEnd },
    /// End the shim; all containers must have ended.
    Shutdown,
}

/// What becomes of a container's standard input when an attachment to it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum AtEnd {
    /// It stays open for the next.
    KeepInput,
    /// It ends (`stdinOnce`).
    CloseInput,
}

/// What a shim answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// The subscription holds; these containers run.
    Hello { version: u32, running: Vec<Running> },
    /// The process runs.
    Started { pid: i32, at: i64 },
    /// The process could not be started; the text is for the user.
    StartFailed { message: String },
    /// A container ended.
    Exited { id: String, exit: Exit },
    /// The process of an exec ended.
    ExecExited { code: i32, timed_out: bool },
    /// The attachment holds until its connection is closed.
    Attached,
    /// Done.
    Done,
    /// No such container runs.
    NotRunning,
    /// The shim does not know such a request, or cannot do it now.
    Refused { why: String },
}

/// A running container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Running {
    pub(crate) id: String,
    pub(crate) pid: i32,
    pub(crate) started_at: i64,
}

/// How a container ended, as the shim keeps it in `exit.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Exit {
    /// Nanoseconds since the epoch; 0 when it never ran.
    pub(crate) started_at: i64,
    /// Nanoseconds since the epoch.
    pub(crate) finished_at: i64,
    /// Exit code, 128 + signal when killed.
    pub(crate) code: i32,
    /// CRI's reason.
    pub(crate) reason: String,
    /// More words.
    pub(crate) message: String,
}

/// Sends a message with descriptors beside it.
pub(crate) fn send(
    socket: impl AsFd,
    message: &impl Serialize,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    let flags = SendFlags::NOSIGNAL;
    let sent = rustix::net::sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, flags)?;
    if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Receives a message and the descriptors beside it; `None` at the end of the connection.
pub(crate) fn receive<T: DeserializeOwned>(
    socket: impl AsFd,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let got = rustix::net::recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if got.bytes == 0 {
        return Ok(None);
    }
    if got.flags.contains(ReturnFlags::TRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the message is too long"));
    }
    Ok(Some((serde_json::from_slice(&bytes[..got.bytes])?, fds)))
}

fn socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    let flags = flags | SocketFlags::CLOEXEC;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// The address of `shim.sock` in a folder of any length: by way of a descriptor of the folder.
fn address(dir: &OwnedFd) -> io::Result<SocketAddrUnix> {
    use std::os::fd::AsRawFd;
    Ok(SocketAddrUnix::new(format!("/proc/self/fd/{}/shim.sock", dir.as_raw_fd()))?)
}

fn open_dir(dir: &Path) -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    Ok(rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Connects to the shim of a sandbox folder.
pub(crate) fn connect(dir: &Path) -> io::Result<OwnedFd> {
    let dir = open_dir(dir)?;
    let socket = socket(SocketFlags::empty())?;
    rustix::net::connect(&socket, &address(&dir)?)?;
    Ok(socket)
}

/// Listens in a sandbox folder.
pub(crate) fn listen(dir: &Path) -> io::Result<OwnedFd> {
    let dir = open_dir(dir)?;
    let socket = socket(SocketFlags::NONBLOCK)?;
    rustix::net::bind(&socket, &address(&dir)?)?;
    rustix::net::listen(&socket, 64)?;
    Ok(socket)
}

/// A connected pair, between a shim and a process it starts.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC;
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}
