//! `port-forward`: connections to a Pod's ports, many on one WebSocket.
//!
//! kubectl tunnels SPDY through it and opens two streams for each connection, one for bytes and
//! one for what went wrong; other clients name their ports first and have two channels for each.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio_tungstenite::tungstenite::Message;
use tracing::debug;

use super::channels;
use super::remote::stalled;
use super::socket::Socket;
use super::spdy::{self, Frame, Reader, Writer};
use crate::agent::Node;

/// Most bytes of one message.
const CHUNK: usize = 32 << 10;
/// Messages that wait for a Pod to read them; then the client waits.
const WAITING: usize = 16;
/// Most connections of one client at a time.
const MAX_CONNECTIONS: usize = 1024;

/// How connections share a WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// SPDY/3.1 inside messages.
    Spdy,
    /// Two channels for each port (`v4.channel.k8s.io`).
    Channels,
}

/// The subprotocols served.
pub(crate) const PROTOCOLS: [(&str, Sharing); 2] =
    [("SPDY/3.1+portforward.k8s.io", Sharing::Spdy), ("v4.channel.k8s.io", Sharing::Channels)];

type Sink = Arc<Mutex<SplitSink<Socket, Message>>>;

/// Which Pod is meant.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// Its sandbox.
    pub(crate) sandbox: String,
    /// Its name, for messages.
    pub(crate) pod: String,
}

/// Where one connection's bytes go on the WebSocket.
struct Lane {
    sink: Sink,
    kind: Kind,
}

enum Kind {
    Spdy { data: u32, error: u32 },
    Channel(u8),
}

impl Lane {
    async fn send(&self, bytes: Bytes) -> Option<()> {
        self.sink.lock().await.send(Message::Binary(bytes)).await.ok()
    }

    async fn data(&self, bytes: &[u8]) -> Option<()> {
        self.send(match self.kind {
            Kind::Spdy { data, .. } => spdy::data(data, bytes, false),
            Kind::Channel(channel) => channels::message(channel, bytes),
        })
        .await
    }

    /// Ends the connection, with a word when something went wrong.
    async fn end(&self, failure: Option<String>) -> Option<()> {
        let word = failure.unwrap_or_default();
        match self.kind {
            Kind::Spdy { data, error } => {
                self.send(spdy::data(error, word.as_bytes(), true)).await?;
                self.send(spdy::data(data, &[], true)).await
            }
            Kind::Channel(_) if word.is_empty() => Some(()),
            Kind::Channel(channel) => {
                self.send(channels::message(channel + 1, word.as_bytes())).await
            }
        }
    }
}

/// Carries one connection.
async fn carry(
    node: Arc<Node>,
    target: Target,
    port: u16,
    lane: Lane,
    from_client: mpsc::Receiver<Bytes>,
) {
    let sandbox = target.sandbox.clone();
    let connected = node.blocking(move |node| node.runtime.connect(&sandbox, port)).await;
    let connected = connected.map_err(|error| error.to_string()).and_then(|stream| {
        stream.set_nonblocking(true).map_err(|error| error.to_string())?;
        TcpStream::from_std(stream).map_err(|error| error.to_string())
    });
    let failure = match connected {
        Ok(stream) => copy(stream, &lane, from_client).await.err(),
        Err(why) => Some(why),
    };
    let failure = failure
        .map(|why| format!("error forwarding port {port} to pod {}, uid : {why}", target.pod));
    lane.end(failure).await;
}

/// Copies until the Pod has no more to say; what the client has to say ends by itself.
async fn copy(
    stream: TcpStream,
    lane: &Lane,
    mut from_client: mpsc::Receiver<Bytes>,
) -> Result<(), String> {
    let (mut reading, mut writing) = stream.into_split();
    let to_pod = async {
        while let Some(bytes) = from_client.recv().await {
            if writing.write_all(&bytes).await.is_err() {
                break;
            }
        }
        writing.shutdown().await.ok();
        std::future::pending::<()>().await;
    };
    let to_client = async {
        let mut buffer = vec![0; CHUNK];
        loop {
            match reading.read(&mut buffer).await {
                Ok(0) => return Ok(()),
                Ok(count) if lane.data(&buffer[..count]).await.is_some() => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(error.to_string()),
            }
        }
    };
    tokio::select! {
        () = to_pod => Ok(()),
        copied = to_client => copied,
    }
}

/// Serves a client until it goes away.
pub(crate) async fn serve(
    node: Arc<Node>,
    target: Target,
    ports: Vec<u16>,
    sharing: Sharing,
    socket: Socket,
) {
    let (sink, source) = socket.split();
    let sink = Arc::new(Mutex::new(sink));
    let mut forwards =
        Forwards { node, target, sink, lanes: BTreeMap::new(), tasks: JoinSet::new() };
    let ended = match sharing {
        Sharing::Spdy => Tunnel::default().serve(&mut forwards, source).await,
        Sharing::Channels => by_channels(&mut forwards, &ports, source).await,
    };
    if let Err(error) = ended {
        debug!(%error, "a client forwards no more");
    }
    forwards.sink.lock().await.send(Message::Close(None)).await.ok();
}

/// The connections of one client.
struct Forwards {
    node: Arc<Node>,
    target: Target,
    sink: Sink,
    /// By the stream or channel on which the client sends.
    lanes: BTreeMap<u32, (mpsc::Sender<Bytes>, AbortHandle)>,
    tasks: JoinSet<u32>,
}

impl Forwards {
    fn open(&mut self, id: u32, port: u16, kind: Kind) {
        let (send, receive) = mpsc::channel(WAITING);
        let lane = Lane { sink: self.sink.clone(), kind };
        let carrying = carry(self.node.clone(), self.target.clone(), port, lane, receive);
        let task = self.tasks.spawn(async move {
            carrying.await;
            id
        });
        self.lanes.insert(id, (send, task));
    }

    /// Forgets connections that have ended.
    fn sweep(&mut self) {
        while let Some(ended) = self.tasks.try_join_next() {
            ended.ok().and_then(|id| self.lanes.remove(&id));
        }
    }

    /// Passes bytes on; waits while the Pod does not take them. Nothing when the client is gone.
    async fn give(&mut self, id: u32, bytes: Bytes) -> Option<()> {
        let Some((lane, _)) = self.lanes.get(&id) else { return Some(()) };
        tokio::select! {
            // A connection that has ended takes nothing, and that is no harm.
            _ = lane.send(bytes) => Some(()),
            () = stalled(&self.sink) => None,
        }
    }

    /// The client has no more to say on a connection.
    fn finish(&mut self, id: u32) {
        if let Some((lane, _)) = self.lanes.get_mut(&id) {
            // A channel whose other end is gone.
            *lane = mpsc::channel(1).0;
        }
    }

    fn abort(&mut self, id: u32) {
        if let Some((_, task)) = self.lanes.remove(&id) {
            task.abort();
        }
    }

    async fn tell(&self, bytes: Bytes) -> Option<()> {
        self.sink.lock().await.send(Message::Binary(bytes)).await.ok()
    }
}

/// The two streams of a connection that is being opened.
#[derive(Default)]
struct Pair {
    data: Option<u32>,
    error: Option<u32>,
}

/// SPDY in messages.
#[derive(Default)]
struct Tunnel {
    reader: Reader,
    writer: Writer,
    pairs: BTreeMap<String, Pair>,
}

impl Tunnel {
    async fn serve(
        &mut self,
        forwards: &mut Forwards,
        mut source: SplitStream<Socket>,
    ) -> Result<(), spdy::SpdyError> {
        while let Some(Ok(message)) = source.next().await {
            let Message::Binary(bytes) = message else { continue };
            self.reader.push(&bytes);
            while let Some(frame) = self.reader.next()? {
                forwards.sweep();
                if self.handle(forwards, frame).await.is_none() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Nothing when the client is gone.
    async fn handle(&mut self, forwards: &mut Forwards, frame: Frame) -> Option<()> {
        match frame {
            Frame::Open { stream, headers, .. } => self.open(forwards, stream, &headers).await,
            Frame::Data { stream, bytes, last } => {
                if !bytes.is_empty() {
                    forwards.give(stream, bytes).await?;
                }
                if last {
                    forwards.finish(stream);
                }
                Some(())
            }
            Frame::Reset(stream) => {
                forwards.abort(stream);
                Some(())
            }
            Frame::Ping(id) => forwards.tell(spdy::pong(id)).await,
            Frame::GoAway | Frame::Other => Some(()),
        }
    }

    async fn open(
        &mut self,
        forwards: &mut Forwards,
        stream: u32,
        headers: &BTreeMap<String, String>,
    ) -> Option<()> {
        let word = |name: &str| headers.get(name).map_or("", String::as_str);
        let port = word("port").parse::<u16>().ok().filter(|port| *port != 0);
        let known = matches!(word("streamtype"), "data" | "error");
        let full = forwards.lanes.len().max(self.pairs.len()) >= MAX_CONNECTIONS;
        let Some(port) = port.filter(|_| known && !full) else {
            return forwards.tell(spdy::reset(stream)).await;
        };
        forwards.tell(self.writer.reply(stream)).await?;
        let id = word("requestid").to_owned();
        let pair = self.pairs.entry(id.clone()).or_default();
        match word("streamtype") {
            "data" => pair.data = Some(stream),
            _ => pair.error = Some(stream),
        }
        if let Pair { data: Some(data), error: Some(error) } = *pair {
            self.pairs.remove(&id);
            forwards.open(data, port, Kind::Spdy { data, error });
        }
        Some(())
    }
}

/// Channels 2n and 2n+1 belong to the n-th port; each begins with the port's number.
async fn by_channels(
    forwards: &mut Forwards,
    ports: &[u16],
    mut source: SplitStream<Socket>,
) -> Result<(), spdy::SpdyError> {
    for (port, channel) in ports.iter().zip((0..=254u8).step_by(2)) {
        for channel in [channel, channel + 1] {
            forwards.tell(channels::message(channel, &port.to_le_bytes())).await;
        }
        forwards.open(channel.into(), *port, Kind::Channel(channel));
    }
    while let Some(Ok(message)) = source.next().await {
        let Message::Binary(bytes) = message else { continue };
        if let Some(channel) = bytes.first().copied().filter(|_| bytes.len() > 1)
            && forwards.give(channel.into(), bytes.slice(1..)).await.is_none()
        {
            return Ok(());
        }
    }
    Ok(())
}
