//! `exec` and `attach`: a session's streams on the channels of a WebSocket.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use knarr_sandbox::{Error, Runtime, Session, Wanted};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::sync::Mutex;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::channels::{self, ERROR, Input, STDERR, STDOUT, Version};
use super::socket::Socket;
use crate::agent::Node;

/// Most bytes of one message.
const CHUNK: usize = 32 << 10;
/// How often a client is asked whether it is there while a command does not take its input.
const STALLED: Duration = Duration::from_secs(2);
/// How long a client may take to close what is over.
const CLOSING: Duration = Duration::from_secs(10);

type Sink = Mutex<SplitSink<Socket, Message>>;

/// What a session is for.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    /// Run this command.
    Exec(Vec<String>),
    /// Join what runs.
    Attach,
}

/// A session to be.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The container's id.
    pub(crate) container: String,
    /// What to do there.
    pub(crate) work: Work,
    /// With which streams.
    pub(crate) wanted: Wanted,
}

/// Serves a session until it ends or the client goes away.
pub(crate) async fn serve(node: Arc<Node>, plan: Plan, version: Version, socket: Socket) {
    let (sink, mut source) = socket.split();
    let sink = Mutex::new(sink);
    let Plan { wanted, work, .. } = plan.clone();
    let opening = node.blocking(move |node| open(node, &plan));
    let status = match opening.await {
        Err(why) => channels::failed(&why),
        Ok(session) => {
            // Clients wait for a first word.
            let first = if wanted.output { STDOUT } else { ERROR };
            if tell(&sink, first, &[]).await.is_none() {
                return;
            }
            match converse(session, &work, wanted, version, &sink, &mut source).await {
                Some(status) => status,
                None => return,
            }
        }
    };
    let status = serde_json::to_vec(&status).expect("a tree has a JSON form");
    if tell(&sink, ERROR, &status).await.is_some()
        && let Ok(socket) = sink.into_inner().reunite(source)
    {
        close(socket).await;
    }
}

/// Ends a WebSocket from this side, and waits until the client has done so too: what is on its way
/// would be lost if the connection were closed before. A client that looks at its connection only
/// when something comes on it is woken by the end of this half.
async fn close(mut socket: Socket) {
    let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    socket.send(Message::Close(Some(normal))).await.ok();
    let connection = socket.get_mut();
    connection.shutdown().await.ok();
    let mut rest = tokio::io::sink();
    tokio::time::timeout(CLOSING, tokio::io::copy(connection, &mut rest)).await.ok();
}

fn open(node: &Node, plan: &Plan) -> Result<Session, String> {
    let Plan { container, work, wanted } = plan;
    let (what, opened) = match work {
        Work::Exec(command) => {
            ("error executing command in container", node.runtime.exec(container, command, *wanted))
        }
        Work::Attach => ("error attaching to container", node.runtime.attach(container, *wanted)),
    };
    let told = |error: Error| match error {
        Error::Start(why) => format!("{what}: failed to exec in container: {why}"),
        other => format!("{what}: {other}"),
    };
    opened.map_err(told)
}

/// Moves bytes until the session is over: its `Status`, or nothing when the client is gone.
async fn converse(
    mut session: Session,
    work: &Work,
    wanted: Wanted,
    version: Version,
    sink: &Sink,
    source: &mut SplitStream<Socket>,
) -> Option<serde_json::Value> {
    let output = pump(session.output.take(), wanted.output.then_some(STDOUT), sink);
    let error = pump(session.error.take(), wanted.error.then_some(STDERR), sink);
    let control = session.control().try_clone_to_owned().ok()?;
    let ended = async {
        let (output, error) = tokio::join!(output, error);
        output.and(error)?;
        let code = match work {
            Work::Exec(_) => exit_code(control).await,
            Work::Attach => Ok(0),
        };
        Some(code.map_or_else(|why| channels::failed(&why.to_string()), channels::exited))
    };
    tokio::select! {
        status = ended => status,
        () = listen(session, version, sink, source) => None,
    }
}

/// Sends on a channel; nothing when the client is gone.
async fn tell(sink: &Sink, channel: u8, data: &[u8]) -> Option<()> {
    let message = Message::Binary(channels::message(channel, data));
    sink.lock().await.send(message).await.ok()
}

/// Sends what a stream brings, until it ends; without a channel it is dropped.
async fn pump(from: Option<OwnedFd>, channel: Option<u8>, sink: &Sink) -> Option<()> {
    let Some(from) = from else { return Some(()) };
    let mut from = pipe::Receiver::from_owned_fd_unchecked(from).ok()?;
    let mut buffer = vec![0; CHUNK];
    // A terminal that nobody holds any more ends with EIO.
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if let Some(channel) = channel {
            tell(sink, channel, &buffer[..count]).await?;
        }
    }
    Some(())
}

/// Listens to the client until it is gone.
async fn listen(
    mut session: Session,
    version: Version,
    sink: &Sink,
    source: &mut SplitStream<Socket>,
) {
    let input = session.input.take();
    let mut input = input.and_then(|fd| pipe::Sender::from_owned_fd_unchecked(fd).ok());
    while let Some(Ok(message)) = source.next().await {
        let data = match message {
            Message::Binary(data) => data,
            Message::Text(text) => Bytes::from(text),
            Message::Close(_) => return,
            _ => continue,
        };
        match channels::input(version, &data) {
            Input::Bytes(bytes) => {
                let Some(open) = &mut input else { continue };
                let taken = tokio::select! {
                    written = open.write_all(&bytes) => written.is_ok(),
                    () = stalled(sink) => return,
                };
                if !taken {
                    input = None;
                }
            }
            Input::End => {
                input = None;
                Runtime::close_input(&mut session);
            }
            Input::Size(columns, rows) => resize(&session, columns, rows),
            Input::Nothing => {}
        }
    }
}

/// Ends when a client that is not listened to is gone.
pub(crate) async fn stalled(sink: &Sink) {
    loop {
        tokio::time::sleep(STALLED).await;
        if sink.lock().await.send(Message::Ping(Bytes::new())).await.is_err() {
            return;
        }
    }
}

fn resize(session: &Session, columns: u16, rows: u16) {
    if let Some(terminal) = &session.terminal {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // A terminal that is closed already needs no size.
        let _ = tcsetwinsize(terminal, size);
    }
}

/// Waits for a command's end.
async fn exit_code(control: OwnedFd) -> Result<i32, Error> {
    let failed = |error| Error::Io("exec".into(), error);
    let control = UnixStream::from_std(control.into()).map_err(failed)?;
    loop {
        control.readable().await.map_err(failed)?;
        let hear = || would_block(Session::hear_exit(control.as_fd()));
        if let Ok(exit) = control.try_io(Interest::READABLE, hear) {
            return exit;
        }
    }
}

/// Tells tokio that there was nothing yet.
fn would_block(heard: Result<Option<i32>, Error>) -> std::io::Result<Result<i32, Error>> {
    heard.transpose().ok_or_else(|| std::io::ErrorKind::WouldBlock.into())
}
