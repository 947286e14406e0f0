//! Questions that others answer: asked once for all who wait, remembered while they are good.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use knarr_dns_zone::{Query, least_ttl, set_ttls};
use tokio::net::UdpSocket;
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::timeout;

use crate::resolvers::Resolvers;
use crate::tcp;

/// How long one server is given for an answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// The list of servers is gone through so often.
const ROUNDS: usize = 2;
/// Answers that are remembered.
const MAX_CACHED: usize = 10_000;
/// No answer is remembered for longer, in seconds.
const MAX_LIFE: u32 = 300;
/// Questions on their way at a time; more wait.
const MAX_ASKING: usize = 1_000;
const MAX_MESSAGE: usize = 4_096;
const TRUNCATED: u8 = 0x02;
const SERVFAIL: u8 = 2;
const REFUSED: u8 = 5;

type QuestionKey = (String, u16, u16);
type Message = Arc<Vec<u8>>;

struct Cached {
    message: Message,
    at: Instant,
    life: u32,
}

#[derive(Default)]
struct Cache {
    answers: HashMap<QuestionKey, Cached>,
    /// Oldest first.
    order: VecDeque<QuestionKey>,
}

impl Cache {
    fn get(&self, key: &QuestionKey, now: Instant) -> Option<(Message, u32)> {
        let cached = self.answers.get(key)?;
        let age = u32::try_from(now.duration_since(cached.at).as_secs()).unwrap_or(u32::MAX);
        (age < cached.life).then(|| (cached.message.clone(), age))
    }

    fn put(&mut self, key: QuestionKey, message: Message, life: u32, now: Instant) {
        if self.answers.insert(key.clone(), Cached { message, at: now, life }).is_none() {
            self.order.push_back(key);
        }
        while self.order.len() > MAX_CACHED {
            let oldest = self.order.pop_front();
            oldest.map(|oldest| self.answers.remove(&oldest));
        }
    }
}

/// Asks others.
pub struct Forwarder {
    pub(crate) resolvers: Resolvers,
    cache: Mutex<Cache>,
    asking: Mutex<HashMap<QuestionKey, Arc<OnceCell<Option<Message>>>>>,
    slots: Semaphore,
}

impl Forwarder {
    /// A forwarder that remembers nothing yet.
    pub fn new(resolvers: Resolvers) -> Self {
        Self {
            resolvers,
            cache: Mutex::default(),
            asking: Mutex::default(),
            slots: Semaphore::new(MAX_ASKING),
        }
    }

    /// The answer to a question, made out to who asked; `None` when nobody has one.
    pub async fn ask(&self, query: &Query) -> Option<Vec<u8>> {
        let (name, kind, flags) = query.key();
        let key = (name.to_owned(), kind, flags);
        let known = lock(&self.cache).get(&key, Instant::now());
        if let Some((message, age)) = known {
            let mut message = query.adopt(&message);
            set_ttls(&mut message, age);
            return Some(message);
        }
        let cell = lock(&self.asking).entry(key.clone()).or_default().clone();
        let found = cell.get_or_init(|| self.fetch(query, &key)).await.clone();
        lock(&self.asking).remove(&key);
        found.map(|message| query.adopt(&message))
    }

    async fn fetch(&self, query: &Query, key: &QuestionKey) -> Option<Message> {
        let _slot = self.slots.acquire().await.ok()?;
        let servers = self.resolvers.servers_for(&query.name);
        let mut last = None;
        for server in servers.iter().cycle().take(servers.len() * ROUNDS) {
            let Some(message) = exchange(query, *server).await else { continue };
            let code = message[3] & 15;
            let message = Arc::new(message);
            if matches!(code, SERVFAIL | REFUSED) {
                last = Some(message);
                continue;
            }
            let life = least_ttl(&message).unwrap_or(0).min(MAX_LIFE);
            if life > 0 {
                lock(&self.cache).put(key.clone(), message.clone(), life, Instant::now());
            }
            return Some(message);
        }
        last
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asks one server: by UDP, and by TCP where the answer is too long for that. A socket, a port and
/// a number of its own for each question make answers hard to forge (RFC 5452).
async fn exchange(query: &Query, server: SocketAddr) -> Option<Vec<u8>> {
    let mut own = query.clone();
    let mut id = [0; 2];
    getrandom::fill(&mut id).ok()?;
    own.id = u16::from_ne_bytes(id);
    let answered = timeout(PATIENCE, by_udp(&own, server)).await.ok()?.ok()?;
    if answered[2] & TRUNCATED == 0 {
        return Some(answered);
    }
    let longer = timeout(PATIENCE, tcp::exchange(&own, server)).await.ok()?.ok();
    longer.filter(|message| own.is_answered_by(message)).or(Some(answered))
}

async fn by_udp(query: &Query, server: SocketAddr) -> std::io::Result<Vec<u8>> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(&query.bytes()).await?;
    let mut buffer = vec![0; MAX_MESSAGE];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if query.is_answered_by(&buffer[..length]) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}
