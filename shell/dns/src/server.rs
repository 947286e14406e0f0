//! Who answers: what the zone knows at once, the rest when others have said it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::available_parallelism;

use knarr_dns_zone::{
    Code, Found, Malformed, Query, Record, Reply, addresses_in, kind, search_path,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::forward::Forwarder;
use crate::{Known, tcp};

/// Names that stand for names are followed so often.
const MAX_ALIASES: usize = 8;
const MAX_QUERY: usize = 4_096;
/// Questions for others that wait at a time; more are dropped, and the client asks again.
const MAX_WAITING: usize = 4_096;
const BACKLOG: i32 = 512;
const SOCKET_BUFFER: usize = 1 << 20;

/// How many questions there were.
#[derive(Debug, Default)]
pub struct Counters {
    /// All.
    pub requests: AtomicU64,
    /// Those that were passed on.
    pub forwarded: AtomicU64,
}

/// Answers questions.
pub struct Answerer {
    known: Arc<RwLock<Known>>,
    forwarder: Forwarder,
    turn: AtomicUsize,
    waiting: Arc<Semaphore>,
    /// For metrics.
    pub counters: Counters,
}

/// What the zone alone makes of a question.
enum First {
    Reply(Vec<u8>),
    /// Whatever others say.
    Forward,
    /// The name stands for another one, which others know.
    Alias(String),
    /// It is not there under this name: these come next.
    Path(Vec<String>),
}

impl Answerer {
    /// An answerer for what is known and what others know.
    pub fn new(known: Arc<RwLock<Known>>, forwarder: Forwarder) -> Self {
        Self {
            known,
            forwarder,
            turn: AtomicUsize::new(0),
            waiting: Arc::new(Semaphore::new(MAX_WAITING)),
            counters: Counters::default(),
        }
    }

    fn known<R>(&self, read: impl FnOnce(&Known) -> R) -> R {
        read(&self.known.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Answers a message; `limit` in bytes where the client does not say. `None` for no answer.
    pub async fn answer(
        &self,
        message: &[u8],
        client: IpAddr,
        limit: Option<usize>,
    ) -> Option<Vec<u8>> {
        let query = match self.read(message) {
            Ok(query) => query,
            Err(why) => return Reply::refusal(message, why),
        };
        let limit = limit.unwrap_or(query.udp_limit);
        match self.first(&query, client, limit) {
            First::Reply(reply) => Some(reply),
            rest => Some(self.rest(&query, rest, limit).await),
        }
    }

    fn read(&self, message: &[u8]) -> Result<Query, Malformed> {
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        Query::parse(message)
    }

    /// What can be said without asking anybody.
    fn first(&self, query: &Query, client: IpAddr, limit: usize) -> First {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        self.known(|known| {
            let found = known.zone.find(&query.name);
            let for_addresses = matches!(query.kind, kind::A | kind::AAAA);
            match &found {
                Found::Elsewhere => return First::Forward,
                Found::Name { records, .. } if for_addresses => {
                    if let Some(Record::Alias(target)) = records.first() {
                        return First::Alias(target.clone());
                    }
                }
                Found::Nothing if for_addresses => {
                    if let Some(path) = self.path(known, query, client) {
                        return First::Path(path);
                    }
                }
                _ => {}
            }
            First::Reply(known.zone.reply(query, &found, limit, turn))
        })
    }

    fn path(&self, known: &Known, query: &Query, client: IpAddr) -> Option<Vec<String>> {
        let namespace = known.clients.namespace_of(client)?;
        let outer = self.forwarder.resolvers.search();
        search_path(&query.name, namespace, known.zone.domain(), &outer)
    }

    /// What others have to say first.
    async fn rest(&self, query: &Query, first: First, limit: usize) -> Vec<u8> {
        let fail = |code| Reply::new(query, code, limit).finish();
        match first {
            First::Reply(reply) => reply,
            First::Forward => match self.forward(query).await {
                Some(reply) => fit(query, reply, limit),
                None => fail(Code::ServFail),
            },
            First::Alias(target) => match self.addresses(&target, query.kind).await {
                Some(found) => self.alias(query, &target, found.as_deref(), limit),
                None => fail(Code::ServFail),
            },
            First::Path(names) => {
                for name in names {
                    if let Some(Some(found)) = self.addresses(&name, query.kind).await {
                        return self.alias(query, &name, Some(&found), limit);
                    }
                }
                self.known(|known| known.zone.reply(query, &Found::Nothing, limit, 0))
            }
        }
    }

    fn alias(&self, query: &Query, to: &str, found: Option<&[IpAddr]>, limit: usize) -> Vec<u8> {
        let found = found.unwrap_or_default();
        self.known(|known| known.zone.alias(query, to, found, limit))
    }

    async fn forward(&self, query: &Query) -> Option<Vec<u8>> {
        self.counters.forwarded.fetch_add(1, Ordering::Relaxed);
        self.forwarder.ask(query).await
    }

    /// The addresses of a name, wherever it is known: `None` when nobody could say, `Some(None)`
    /// when it is not there.
    async fn addresses(&self, name: &str, wanted: u16) -> Option<Option<Vec<IpAddr>>> {
        let mut name = name.to_owned();
        for _ in 0..MAX_ALIASES {
            match self.known(|known| known.zone.find(&name)) {
                Found::Nothing => return Some(None),
                Found::Elsewhere => {
                    let reply = self.forward(&Query::new(0, &name, wanted)).await?;
                    let there = reply[3] & 15 == Code::NoError as u8;
                    let failed = !there && reply[3] & 15 != Code::NxDomain as u8;
                    if failed {
                        return None;
                    }
                    return Some(there.then(|| addresses_in(&reply)));
                }
                Found::Name { records, .. } => {
                    if let Some(Record::Alias(next)) = records.first() {
                        name.clone_from(next);
                        continue;
                    }
                    let wanted = records.iter().filter(|record| record.is_wanted(wanted));
                    return Some(Some(wanted.filter_map(address).collect()));
                }
            }
        }
        None
    }
}

fn address(record: &Record) -> Option<IpAddr> {
    match record {
        Record::Address(address) => Some(*address),
        _ => None,
    }
}

/// Somebody's answer that is too long for this client: it has to ask by TCP.
fn fit(query: &Query, reply: Vec<u8>, limit: usize) -> Vec<u8> {
    if reply.len() <= limit {
        return reply;
    }
    let mut cut = Reply::new(query, Code::NoError, limit).finish();
    cut[2] |= 0x02;
    cut
}

/// Listens at an address, by UDP (one socket a core) and TCP.
///
/// # Errors
/// When the address cannot be had.
pub fn serve(
    answerer: &Arc<Answerer>,
    address: SocketAddr,
    tasks: &mut JoinSet<()>,
) -> io::Result<()> {
    let cores = available_parallelism().map_or(1, usize::from);
    let listener = listening(address)?;
    for _ in 0..cores {
        let socket = receiving(address)?;
        tasks.spawn(receive(answerer.clone(), socket));
    }
    tasks.spawn(tcp::serve(answerer.clone(), listener));
    Ok(())
}

fn receiving(address: SocketAddr) -> io::Result<Arc<UdpSocket>> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_port(true)?;
    // A smaller buffer than wished for is still one.
    socket.set_recv_buffer_size(SOCKET_BUFFER).ok();
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(Arc::new(UdpSocket::from_std(socket.into())?))
}

fn listening(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

async fn receive(answerer: Arc<Answerer>, socket: Arc<UdpSocket>) {
    let mut buffer = vec![0; MAX_QUERY];
    loop {
        // An error here is an ICMP message about an answer that nobody waited for.
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
        let message = &buffer[..length];
        let query = match answerer.read(message) {
            Ok(query) => query,
            Err(why) => {
                if let Some(reply) = Reply::refusal(message, why) {
                    socket.send_to(&reply, client).await.ok();
                }
                continue;
            }
        };
        let limit = query.udp_limit;
        match answerer.first(&query, client.ip(), limit) {
            // A full socket buffer drops the answer, as the network may.
            First::Reply(reply) => drop(socket.send_to(&reply, client).await),
            rest => wait(&answerer, &socket, client, query, rest),
        }
    }
}

/// Answers when others have.
fn wait(
    answerer: &Arc<Answerer>,
    socket: &Arc<UdpSocket>,
    client: SocketAddr,
    query: Query,
    rest: First,
) {
    let Ok(slot) = answerer.waiting.clone().try_acquire_owned() else { return };
    let (answerer, socket) = (answerer.clone(), socket.clone());
    drop(tokio::spawn(async move {
        let limit = query.udp_limit;
        let reply = answerer.rest(&query, rest, limit).await;
        socket.send_to(&reply, client).await.ok();
        drop(slot);
    }));
}
