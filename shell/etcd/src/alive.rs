//! Whether the other side of a connection is still there: one that left without a word, as by a
//! power cut, would keep its connection and its watches for ever.
//!
//! HTTP/2 is asked as gRPC asks: a ping after some silence, and the end when nothing at all comes
//! after it. What speaks HTTP/1 has no pings; there the kernel asks, as it does for etcd.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::{Ping, PingPong};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::serve::Broken;

/// How long a TCP connection is silent before the kernel asks, and how often it asks then.
const TCP_SILENCE: Duration = Duration::from_secs(30);

/// When a connection is asked whether somebody is there. gRPC's own times are the default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// How long it may be silent before that.
    pub interval: Duration,
    /// How long it may be silent after that.
    pub timeout: Duration,
}

impl Default for Keepalive {
    fn default() -> Self {
        Self { interval: Duration::from_hours(2), timeout: Duration::from_secs(20) }
    }
}

/// What is to be done about a silent connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Ask,
    End,
}

impl Keepalive {
    /// What is due, and when, by when something was heard last, and asked.
    fn due(self, last: Duration, asked: Option<Duration>) -> (Duration, Due) {
        match asked.filter(|asked| *asked > last) {
            None => (last + self.interval, Due::Ask),
            Some(asked) => (asked + self.timeout, Due::End),
        }
    }

    /// Ends when nobody is there.
    pub(crate) async fn silence(self, pulse: &Pulse, mut pings: PingPong) -> Broken {
        let mut asked = None;
        loop {
            let (at, due) = self.due(pulse.last(), asked);
            let early = pulse.now() < at;
            match due {
                Due::Ask if early => sleep_until(pulse.began + at).await,
                Due::Ask => {
                    asked = Some(pulse.now());
                    // Where one is on its way still, that is as good.
                    let _ = pings.send_ping(Ping::opaque());
                }
                Due::End if early => {
                    let pong = poll_fn(|cx| pings.poll_pong(cx));
                    // With it something was heard.
                    let _ = timeout_at(pulse.began + at, pong).await;
                }
                Due::End => return "nobody is there".into(),
            }
        }
    }
}

/// The time since a connection began, and when something was heard last.
#[derive(Debug)]
pub(crate) struct Pulse {
    began: Instant,
    /// In nanoseconds after it began.
    last: AtomicU64,
}

impl Default for Pulse {
    fn default() -> Self {
        Self { began: Instant::now(), last: AtomicU64::new(0) }
    }
}

impl Pulse {
    fn last(&self) -> Duration {
        Duration::from_nanos(self.last.load(Ordering::Relaxed))
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn beat(&self) {
        let nanos = u64::try_from(self.now().as_nanos()).unwrap_or(u64::MAX);
        self.last.store(nanos, Ordering::Relaxed);
    }
}

/// What is read, and that it is.
pub(crate) struct Heard<R>(pub(crate) R, pub(crate) Arc<Pulse>);

impl<R: AsyncRead + Unpin> AsyncRead for Heard<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.0).poll_read(cx, buf))?;
        self.1.beat();
        Poll::Ready(Ok(()))
    }
}

/// Lets the kernel ask whether the other side of a socket is there.
pub(crate) fn keep_tcp(stream: &TcpStream) -> io::Result<()> {
    let times = TcpKeepalive::new().with_time(TCP_SILENCE).with_interval(TCP_SILENCE);
    SockRef::from(stream).set_tcp_keepalive(&times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_silent_is_asked_and_then_let_go() {
        let second = Duration::from_secs;
        let keepalive = Keepalive { interval: second(60), timeout: second(20) };
        for (last, asked, at, due) in [
            (0, None, 60, Due::Ask),
            (50, None, 110, Due::Ask), // what says something need not be asked
            (50, Some(110), 130, Due::End),
            (111, Some(110), 171, Due::Ask), // whatever comes is an answer
        ] {
            let (last, asked, at) = (second(last), asked.map(second), second(at));
            assert_eq!(keepalive.due(last, asked), (at, due), "{last:?} {asked:?}");
        }
    }
}
