//! Sessions with a container: a command with live streams, what already runs, or a port.
//!
//! A session owns the near ends of its streams and a connection to the shim for each thing that
//! must end with it: dropping it kills the command, ends the attachment, hangs up the terminal.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use knarr_oci::spec::Stdio;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::Error;
use crate::protocol::{self, AtEnd, Reply, Request};
use crate::runtime::{Runtime, io_error, unexpected};
use crate::state::SandboxDir;

/// How long a server in a Pod may take to accept; it is on this machine.
const ACCEPTS: Duration = Duration::from_secs(10);

/// Which streams a session is to have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Standard input.
    pub input: bool,
    /// Standard output.
    pub output: bool,
    /// Standard error; a terminal has none of its own.
    pub error: bool,
    /// A terminal instead of pipes.
    pub terminal: bool,
}

/// The near ends, none of which blocks.
#[derive(Debug, Default)]
pub struct Session {
    /// Where to write its standard input.
    pub input: Option<OwnedFd>,
    /// Where to read its standard output; EOF or EIO is its end.
    pub output: Option<OwnedFd>,
    /// Where to read its standard error.
    pub error: Option<OwnedFd>,
    /// The terminal, for its size.
    pub terminal: Option<OwnedFd>,
    /// Connections that end with it.
    links: Vec<OwnedFd>,
}

impl Session {
    /// The connection on which a command's end is told, to wait for and [`Session::hear_exit`].
    ///
    /// # Panics
    /// On a session that no runtime has opened.
    #[must_use]
    pub fn control(&self) -> BorrowedFd<'_> {
        self.links.first().expect("a session has a connection to its shim").as_fd()
    }

    /// How the command ended; `None` while it runs. Does not block.
    ///
    /// # Errors
    /// The shim is gone.
    pub fn hear_exit(control: BorrowedFd<'_>) -> Result<Option<i32>, Error> {
        match protocol::receive(control) {
            Ok(Some((Reply::ExecExited { code, .. }, _))) => Ok(Some(code)),
            Ok(Some((other, _))) => Err(unexpected(&other)),
            Ok(None) => Err(gone()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(Error::Io("hear from the pod shim".into(), error)),
        }
    }

    /// A session with a terminal by its master.
    fn of_terminal(master: OwnedFd, wanted: Wanted) -> io::Result<Session> {
        unblock(&master)?;
        let input = if wanted.input { Some(master.try_clone()?) } else { None };
        let terminal = Some(master.try_clone()?);
        Ok(Session { input, output: Some(master), terminal, ..Session::default() })
    }
}

/// A pipe from or to a container: the end kept, which does not block, and the other.
fn near_and_far(way: Way) -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    let (near, far) = if way == Way::In { (write, read) } else { (read, write) };
    unblock(&near)?;
    Ok((near, far))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    In,
    Out,
}

fn unblock(fd: &OwnedFd) -> io::Result<()> {
    Ok(rustix::io::ioctl_fionbio(fd, true)?)
}

/// A stream that is wanted as a pipe, any other as the null device.
fn stream(wanted: bool, way: Way) -> io::Result<(Option<OwnedFd>, OwnedFd)> {
    if wanted {
        return near_and_far(way).map(|(near, far)| (Some(near), far));
    }
    let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    Ok((None, null.into()))
}

impl Runtime {
    /// Starts a command in a container.
    ///
    /// # Errors
    /// [`Error::Start`] when the command cannot be run.
    pub fn exec(&self, id: &str, command: &[String], wanted: Wanted) -> Result<Session, Error> {
        let failed = |error: io::Error| Error::Io("exec".into(), error);
        let stdio = if wanted.terminal { Stdio::Terminal } else { Stdio::Pipes };
        let (dir, process) = self.process_in(id, command, stdio)?;
        let request = Request::Exec { id: id.to_string(), process, timeout_ms: None };
        if wanted.terminal {
            let (link, mut fds) = ask(&dir, &request, &[])?;
            let master = fds.pop().ok_or_else(|| Error::Invalid("no terminal came".into()))?;
            let session = Session::of_terminal(master, wanted).map_err(failed)?;
            return Ok(Session { links: vec![link], ..session });
        }
        let (input, far_input) = stream(wanted.input, Way::In).map_err(failed)?;
        let (output, far_output) = stream(wanted.output, Way::Out).map_err(failed)?;
        let (error, far_error) = stream(wanted.error, Way::Out).map_err(failed)?;
        let fds = [far_input.as_fd(), far_output.as_fd(), far_error.as_fd()];
        let (link, _) = ask(&dir, &request, &fds)?;
        Ok(Session { input, output, error, terminal: None, links: vec![link] })
    }

    /// Attaches to a container that runs. Its outputs end when it has ended.
    ///
    /// # Errors
    /// It does not run.
    pub fn attach(&self, id: &str, wanted: Wanted) -> Result<Session, Error> {
        let failed = |error: io::Error| Error::Io("attach".into(), error);
        let (dir, config) = self.folder_and_config(id)?;
        let wanted = Wanted { terminal: wanted.terminal && config.tty, ..wanted };
        let once = wanted.input && config.stdin_once;
        let (output, far_output) = near_and_far(Way::Out).map_err(failed)?;
        let (error, far_error) = near_and_far(Way::Out).map_err(failed)?;
        let request = Request::AttachOutput { id: id.to_string() };
        let (link, _) = ask(&dir, &request, &[far_output.as_fd(), far_error.as_fd()])?;
        let mut session = Session { links: vec![link], ..Session::default() };
        (session.output, session.error) = (Some(output), Some(error));
        if wanted.input || wanted.terminal {
            let at_end = if once { AtEnd::CloseInput } else { AtEnd::KeepInput };
            let request = Request::AttachInput { id: id.to_string(), at_end };
            let (link, mut fds) = ask(&dir, &request, &[])?;
            session.links.push(link);
            if let Some(fd) = fds.pop() {
                unblock(&fd).map_err(failed)?;
                if wanted.terminal {
                    session.terminal = Some(fd.try_clone().map_err(failed)?);
                }
                session.input = wanted.input.then_some(fd);
            }
        }
        Ok(session)
    }

    /// Ends an attachment's part in the container's standard input.
    pub fn close_input(session: &mut Session) {
        session.input = None;
        session.links.truncate(1);
    }

    /// Connects to a port on a sandbox's own loopback, IPv4 before IPv6.
    ///
    /// # Errors
    /// Nobody listens there; the text says what was tried.
    pub fn connect(&self, sandbox: &str, port: u16) -> Result<TcpStream, Error> {
        let netns = self.pod_sandbox_status(sandbox)?.netns;
        let four = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let six = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
        // A thread of its own: it does not come back out of the namespace.
        let dialling = std::thread::Builder::new().name("port-forward".into()).spawn(move || {
            if let Some(path) = netns {
                let space = fs::File::open(&path)?;
                move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network))?;
            }
            TcpStream::connect_timeout(&four, ACCEPTS).or_else(|first| {
                TcpStream::connect_timeout(&six, ACCEPTS).map_err(|second| {
                    let text = format!(
                        "failed to connect to localhost:{port} inside namespace, IPv4: dial tcp4 \
                         {four}: {} IPv6: dial tcp6 {six}: {}",
                        words(&first),
                        words(&second)
                    );
                    io::Error::new(first.kind(), text)
                })
            })
        });
        let dialled = dialling.map(std::thread::JoinHandle::join);
        match dialled.map_err(io_error("start a thread"))? {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(Error::Invalid(error.to_string())),
            Err(_) => Err(Error::Invalid("the dialling thread panicked".into())),
        }
    }
}

/// An error as Go words it.
fn words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connect: connection refused".into(),
        _ => format!("connect: {error}"),
    }
}

/// Asks a shim, and keeps the connection: what was asked for ends with it.
fn ask(
    dir: &SandboxDir,
    request: &Request,
    fds: &[BorrowedFd<'_>],
) -> Result<(OwnedFd, Vec<OwnedFd>), Error> {
    let link = protocol::connect(&dir.0).map_err(io_error("connect to the pod shim"))?;
    protocol::send(&link, request, fds).map_err(io_error("ask the pod shim"))?;
    let heard = protocol::receive(&link).map_err(io_error("hear from the pod shim"))?;
    match heard {
        Some((Reply::Started { .. } | Reply::Attached, fds)) => {
            unblock(&link).map_err(io_error("pod shim"))?;
            Ok((link, fds))
        }
        Some((other, _)) => Err(unexpected(&other)),
        None => Err(gone()),
    }
}

fn gone() -> Error {
    Error::Io("pod shim".into(), io::ErrorKind::UnexpectedEof.into())
}
