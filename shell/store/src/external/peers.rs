//! etcd's members, of which one is asked and followed at a time: the last that worked. Who finds
//! that it does not work ends its turn for everybody.
//!
//! Connections are made when they are needed. Between two calls nothing is asked: that the member
//! a watch hangs on is gone is told by the kernel, or by HTTP/2 pings on the watch's connection.
//! Those are rare, because etcd throws clients out that ping more often than every 5 s; what waits
//! for an answer finds out earlier, by asking the next.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Response, Status};

use crate::error::StoreError;
use crate::external::failure::{Failure, chain, refusal};

/// How long a member may take to answer what can be asked of another.
pub(crate) const ANSWER: Duration = Duration::from_secs(1);
/// How long is asked around before giving up; upstream's requests may take longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// The pause when all were asked in vain.
const PAUSE: Duration = Duration::from_millis(100);
const PING_EVERY: Duration = Duration::from_secs(6);

/// With what etcd and we prove who we are (PEM). Without an authority the system's are trusted.
#[derive(Clone, Default)]
pub struct Tls {
    /// The authority that signed etcd's certificates.
    pub authority: Option<Vec<u8>>,
    /// Our certificate and its key.
    pub client: Option<(Vec<u8>, Vec<u8>)>,
}

/// The members.
#[derive(Debug)]
pub(crate) struct Peers {
    list: Vec<(String, Channel)>,
    /// Counts up; which member's it is, is its rest.
    turn: watch::Sender<usize>,
}

/// Whether a question may be asked again when nobody knows what became of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// It only reads.
    Always,
    /// It writes: only when it certainly did not happen.
    Undone,
}

impl Peers {
    /// # Errors
    /// When an address or the key material is of no use.
    pub(crate) fn new(endpoints: &[String], tls: &Tls) -> Result<Self, String> {
        let list: Result<Vec<_>, String> = endpoints.iter().map(|name| peer(name, tls)).collect();
        let list = list?;
        if list.is_empty() {
            return Err("no etcd server is named".to_owned());
        }
        Ok(Self { list, turn: watch::Sender::new(0) })
    }

    /// The turn, and the member whose it is.
    pub(crate) fn current(&self) -> (usize, &str, Channel) {
        let turn = *self.turn.borrow();
        let (name, channel) = &self.list[turn % self.list.len()];
        (turn, name, channel.clone())
    }

    /// Ends a turn, if it lasts.
    pub(crate) fn leave(&self, turn: usize) {
        self.turn.send_if_modified(|now| {
            let lasts = *now == turn;
            *now += usize::from(lasts);
            lasts
        });
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
    /// What is wrong with the address, the authority or the certificate.
    pub fn endpoint(&self, name: &str) -> Result<Endpoint, String> {
        let refused =
            |error: tonic::transport::Error| format!("etcd server {name}: {}", chain(&error));
        let secure = name.starts_with("https://");
        if !secure && !name.starts_with("http://") {
            return Err(format!("etcd server {name}: must begin with https:// or http://"));
        }
        let endpoint = Endpoint::from_shared(name.to_owned()).map_err(refused)?.tcp_nodelay(true);
        if !secure {
            return Ok(endpoint);
        }
        let mut config = match &self.authority {
            Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        if let Some((certificate, key)) = &self.client {
            config = config.identity(Identity::from_pem(certificate, key));
        }
        endpoint.tls_config(config).map_err(refused)
    }
}

fn peer(name: &str, tls: &Tls) -> Result<(String, Channel), String> {
    let endpoint = tls
        .endpoint(name)?
        .connect_timeout(ANSWER)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(ANSWER);
    Ok((name.to_owned(), endpoint.connect_lazy()))
}
