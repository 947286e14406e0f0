//! etcd's members, of which one is asked and followed at a time: the last that worked. Who finds
//! that it does not work ends its turn for everybody.
//!
//! Connections are made when they are needed. Between two calls nothing is asked: that the member
//! a watch hangs on is gone is told by the kernel, or by HTTP/2 pings on the watch's connection.
//! Those are rare, because etcd throws clients out that ping more often than every 5 s; what waits
//! for an answer finds out earlier, by asking the next.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Response, Status};

use crate::error::StoreError;
use crate::external::failure::{Failure, chain, refusal};

/// How long a member may take to answer what can be asked of another: whoever waits for one that
/// hangs has been answered by the next within a second.
pub(crate) const ANSWER: Duration = Duration::from_millis(600);
/// The same where the answer is large.
const LARGE: Duration = Duration::from_secs(5);
/// How long a connection may take to come about, and to answer a ping: else it is given up, and
/// nobody knows what became of the writes on it.
const CONNECTION: Duration = Duration::from_secs(1);
/// How long is asked around before giving up; upstream's requests may take longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// The pause when all were asked in vain.
const PAUSE: Duration = Duration::from_millis(100);
const PING_EVERY: Duration = Duration::from_secs(6);
/// What the address of a member with TLS begins with.
const SECURE: &str = "https://";

/// With what etcd and we prove who we are: files (PEM), which are read again when a member no
/// longer answers. Without an authority the system's are trusted.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// The authority that signed etcd's certificates.
    pub authority: Option<PathBuf>,
    /// Our certificate and its key.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// The members.
#[derive(Debug)]
pub(crate) struct Peers {
    list: Vec<(String, Mutex<Channel>)>,
    tls: Tls,
    /// Counts up; which member's it is, is its rest.
    turn: watch::Sender<usize>,
}

/// Whether a question may be asked again when nobody knows what became of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// It only reads.
    Always,
    /// It only reads, and much.
    Large,
    /// It writes: only when it certainly did not happen.
    Undone,
}

impl Peers {
    /// # Errors
    /// When an address or the key material is of no use.
    pub(crate) fn new(endpoints: &[String], tls: &Tls) -> Result<Self, String> {
        let member = |name: &String| Ok((name.clone(), Mutex::new(channel(name, tls)?)));
        let list = endpoints.iter().map(member).collect::<Result<Vec<_>, String>>()?;
        if list.is_empty() {
            return Err("no etcd server is named".to_owned());
        }
        Ok(Self { list, tls: tls.clone(), turn: watch::Sender::new(0) })
    }

    /// The turn, and the member whose it is.
    pub(crate) fn current(&self) -> (usize, &str, Channel) {
        let turn = *self.turn.borrow();
        let (name, channel) = &self.list[turn % self.list.len()];
        (turn, name, lock(channel).clone())
    }

    /// Ends a turn, if it lasts.
    pub(crate) fn leave(&self, turn: usize) {
        self.turn.send_if_modified(|now| {
            let lasts = *now == turn;
            if lasts {
                self.renew(turn);
            }
            *now += usize::from(lasts);
            lasts
        });
    }

    /// The member may not answer because certificates were changed: next time they are as the files
    /// are now.
    fn renew(&self, turn: usize) {
        let (name, old) = &self.list[turn % self.list.len()];
        if !name.starts_with(SECURE) {
            return;
        }
        match channel(name, &self.tls) {
            Ok(new) => *lock(old) = new,
            Err(why) => tracing::warn!(%why, "the certificates stay as they were"),
        }
    }

    /// Waits for the end of a turn.
    pub(crate) async fn left(&self, turn: usize) {
        // The sender is here.
        let _ = self.turn.subscribe().wait_for(|now| *now != turn).await;
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.list.len()
    }

    /// Asks one member after the other until one answers.
    pub(crate) async fn ask<T, F>(
        &self,
        repeat: Repeat,
        call: impl Fn(Channel) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let deadline = Instant::now() + PATIENCE;
        for asked in 1.. {
            let (turn, name, channel) = self.current();
            let limit = match repeat {
                Repeat::Always => deadline.min(Instant::now() + ANSWER),
                Repeat::Large => deadline.min(Instant::now() + LARGE),
                Repeat::Undone => deadline,
            };
            let late = |_| Err(Status::new(Code::DeadlineExceeded, "no answer in time"));
            let answer = timeout_at(limit, call(channel)).await.unwrap_or_else(late);
            let status = match answer {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) => status,
            };
            let failure = Failure::of(&status);
            if failure == Failure::Refused {
                return Err(refusal(&status));
            }
            self.leave(turn);
            let why: Arc<str> = format!("{name}: {}", chain(&status)).into();
            tracing::debug!(%why, "etcd did not answer");
            if failure == Failure::Unknown && repeat == Repeat::Undone {
                return Err(StoreError::Unknown(why));
            }
            if asked % self.count() == 0 {
                sleep(PAUSE).await;
            }
            if Instant::now() >= deadline {
                return Err(StoreError::Unreachable(why));
            }
        }
        unreachable!("the loop ends by its deadline")
    }
}

impl Tls {
    /// The way to a member, by its address as upstream's `--etcd-servers` has it.
    ///
    /// # Errors
    /// What is wrong with the address, or with which file.
    pub fn endpoint(&self, name: &str) -> Result<Endpoint, String> {
        let refused =
            |error: tonic::transport::Error| format!("etcd server {name}: {}", chain(&error));
        let secure = name.starts_with(SECURE);
        if !secure && !name.starts_with("http://") {
            return Err(format!("etcd server {name}: must begin with https:// or http://"));
        }
        let endpoint = Endpoint::from_shared(name.to_owned()).map_err(refused)?.tcp_nodelay(true);
        if !secure {
            return Ok(endpoint);
        }
        let mut config = match &self.authority {
            Some(file) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(file)?)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        if let Some((certificate, key)) = &self.client {
            config = config.identity(Identity::from_pem(read(certificate)?, read(key)?));
        }
        endpoint.tls_config(config).map_err(refused)
    }
}

fn read(file: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(file).map_err(|error| format!("cannot read {}: {error}", file.display()))
}

fn lock(channel: &Mutex<Channel>) -> MutexGuard<'_, Channel> {
    channel.lock().unwrap_or_else(PoisonError::into_inner)
}

fn channel(name: &str, tls: &Tls) -> Result<Channel, String> {
    let endpoint = tls
        .endpoint(name)?
        .connect_timeout(CONNECTION)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(CONNECTION);
    Ok(endpoint.connect_lazy())
}
