//! One HTTP/2 connection, one task: its calls are polled where its frames are read and written.
//!
//! A task for each call would cost a call more than all else that is done for it. So whatever takes
//! long inside a call has a task of its own (a watch), or a thread (a password).

use std::future::poll_fn;
use std::io;
use std::mem;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use futures_util::task::AtomicWaker;
use h2::server::{Builder, SendResponse};
use h2::{RecvStream, SendStream};
use http::{Request, Response};
use http_body::{Body as _, Frame};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::task::unconstrained;
use tonic::Status;
use tonic::body::Body;

use crate::alive::{Heard, Pulse};
use crate::face::PeerName;
use crate::metrics::{Calls, Meter};
use crate::serve::{Broken, Services};
use crate::unary;

/// What may be on its way to this server: of one call, and of one connection.
const WINDOWS: (u32, u32) = (1 << 20, 4 << 20);
/// The largest headers of a call, in bytes.
const HEADERS: u32 = 16 << 10;
/// What waits to be sent before a connection is held up, in bytes.
const OUTBOX: usize = 64 << 10;
/// How often a connection's task looks for more to do before it lets others have their turn.
const ROUNDS: usize = 32;

/// Serves one connection until it ends; once `drained`, calls in flight are finished.
pub(crate) async fn serve(
    services: &Arc<Services>,
    read: impl AsyncRead + Unpin,
    mut write: impl AsyncWrite + Unpin,
    peer: Option<PeerName>,
    drained: impl Future<Output = ()>,
) -> Result<(), Broken> {
    let (outbox, pulse) = (Outbox::default(), Arc::<Pulse>::default());
    let mut connection = Builder::new()
        .initial_window_size(WINDOWS.0)
        .initial_connection_window_size(WINDOWS.1)
        .max_header_list_size(HEADERS)
        .max_concurrent_streams(services.face.config.max_streams)
        .handshake(tokio::io::join(Heard(read, pulse.clone()), outbox.clone()))
        .await?;
    let pings = connection.ping_pong().expect("nobody else takes it");
    let mut calls = FuturesUnordered::new();
    let (mut drained, mut draining) = (pin!(drained), false);
    let ear = Arc::<Ear>::default();
    let served = unconstrained(poll_fn(|cx| {
        ear.task.register(cx.waker());
        let waker = Waker::from(ear.clone());
        let inner = &mut Context::from_waker(&waker);
        for _ in 0..ROUNDS {
            ear.attend();
            let cx = &mut *inner;
            if !draining && drained.as_mut().poll(cx).is_ready() {
                draining = true;
                connection.graceful_shutdown();
            }
            while let Poll::Ready(next) = connection.poll_accept(cx) {
                let Some(next) = next else { return Poll::Ready(Ok(())) };
                let (mut request, respond) = next?;
                if let Some(peer) = &peer {
                    request.extensions_mut().insert(peer.clone());
                }
                calls.push(call(services.clone(), request, respond));
            }
            // All calls that can go on do so before anything is sent.
            let (mut again, committed) = services.face.store.together(|| {
                let mut again = false;
                while let Poll::Ready(Some(_)) = calls.poll_next_unpin(cx) {
                    again = true;
                }
                again
            });
            again |= committed;
            again |= outbox.poll_send(&mut write, cx)?;
            if !again && ear.rest() {
                return Poll::Pending;
            }
        }
        // Others want to have their turn.
        cx.waker().wake_by_ref();
        Poll::Pending
    }));
    let served = tokio::select! {
        biased;
        served = served => served,
        // No last words: nobody takes them.
        nobody = services.face.config.keepalive.silence(&pulse, pings) => return Err(nobody),
    };
    // The last words, to a client that may have gone.
    let rest = mem::take(&mut *outbox.held());
    let _ = write.write_all(&rest).await;
    let _ = write.shutdown().await;
    served
}

/// Hears that a connection's task has something to do. While the task is at work nobody needs to
/// wake it: most of it comes from what it does itself.
#[derive(Default)]
struct Ear {
    task: AtomicWaker,
    state: AtomicU8,
}

const RESTING: u8 = 0;
const AT_WORK: u8 = 1;
const CALLED: u8 = 2;

impl Ear {
    /// All that was heard is looked after now.
    fn attend(&self) {
        self.state.store(AT_WORK, Ordering::SeqCst);
    }

    /// Whether nothing was heard meanwhile; from now on the task is woken.
    fn rest(&self) -> bool {
        let (order, otherwise) = (Ordering::SeqCst, Ordering::SeqCst);
        self.state.compare_exchange(AT_WORK, RESTING, order, otherwise).is_ok()
    }
}

impl Wake for Ear {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.swap(CALLED, Ordering::SeqCst) == RESTING {
            self.task.wake();
        }
    }
}

/// What a connection has to say, until all calls have had their turn: then it goes in one piece,
/// where h2 alone would send every message by itself.
#[derive(Clone, Default)]
struct Outbox(Arc<Mutex<BytesMut>>);

impl Outbox {
    fn held(&self) -> MutexGuard<'_, BytesMut> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what the other side takes. Whether all of that went, and somebody was held up.
    fn poll_send(
        &self,
        write: &mut (impl AsyncWrite + Unpin),
        cx: &mut Context<'_>,
    ) -> io::Result<bool> {
        let mut held = self.held();
        let was_full = held.len() >= OUTBOX;
        while !held.is_empty() {
            match Pin::new(&mut *write).poll_write(cx, &held) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(sent) => held.advance(sent?),
                Poll::Pending => return Ok(false),
            }
        }
        // What cannot be flushed now will be before more is written.
        if let Poll::Ready(flushed) = Pin::new(write).poll_flush(cx) {
            flushed?;
        }
        Ok(was_full)
    }
}

impl AsyncWrite for Outbox {
    /// Nobody is woken when there is room again: the one who makes it goes on by itself.
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut held = self.held();
        if held.len() >= OUTBOX {
            return Poll::Pending;
        }
        held.extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Answers one call. An error is the client's: it has gone, or does not want the answer any more.
async fn call(
    services: Arc<Services>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) -> Result<(), h2::Error> {
    if let Some(method) = services.quick_method(&request) {
        let mut answer = pin!(services.quick(method, request));
        let answer = poll_fn(|cx| unless_left(answer.as_mut().poll(cx), || respond.poll_reset(cx)));
        return match answer.await? {
            Ok(message) => {
                let mut out = respond.send_response(unary::head(), false)?;
                out.send_data(message, false)?;
                out.send_trailers(unary::trailers())
            }
            Err(status) => respond.send_response(status.into_http(), true).map(drop),
        };
    }
    // Boxed: it is large, and the quick ones would carry the room for it.
    Box::pin(call_slowly(services, request, respond)).await
}

/// Answers a call through the generated services.
async fn call_slowly(
    services: Arc<Services>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) -> Result<(), h2::Error> {
    let calls = services.face.metrics.calls(request.uri().path()).cloned();
    let counted = calls.clone().map(|calls| (calls, Meter::default()));
    let mut answer = pin!(services.answer(request.map(|body| Body::new(Received(body, counted)))));
    let answer = poll_fn(|cx| unless_left(answer.as_mut().poll(cx), || respond.poll_reset(cx)));
    let (head, body) = answer.await?.into_parts();
    let ends = body.is_end_stream();
    let out = respond.send_response(Response::from_parts(head, ()), ends)?;
    if ends { Ok(()) } else { send(body, out, calls).await }
}

/// Sends a body, each piece when there is room for the one before.
async fn send(
    mut body: Body,
    mut out: SendStream<Bytes>,
    calls: Option<Arc<Calls>>,
) -> Result<(), h2::Error> {
    let mut meter = Meter::default();
    loop {
        let frame =
            poll_fn(|cx| unless_left(poll_next(&mut body, &mut out, cx), || out.poll_reset(cx)));
        match frame.await??.map(Frame::into_data) {
            None => return out.send_data(Bytes::new(), true),
            Some(Ok(data)) => {
                if let Some(calls) = &calls {
                    meter.take(&data, |length| calls.sent(length));
                }
                out.send_data(data, body.is_end_stream())?;
            }
            Some(Err(frame)) => {
                return out.send_trailers(frame.into_trailers().unwrap_or_default());
            }
        }
        if body.is_end_stream() {
            return Ok(());
        }
    }
}

/// The next piece of a body, once the client takes more.
fn poll_next(
    body: &mut Body,
    out: &mut SendStream<Bytes>,
    cx: &mut Context<'_>,
) -> Poll<Result<Option<Frame<Bytes>>, h2::Error>> {
    out.reserve_capacity(1);
    while out.capacity() == 0 {
        match ready!(out.poll_capacity(cx)) {
            Some(room) => drop(room?),
            None => return Poll::Ready(Err(h2::Reason::CANCEL.into())),
        }
    }
    Pin::new(body).poll_frame(cx).map(|frame| match frame {
        Some(Err(_)) => Err(h2::Reason::INTERNAL_ERROR.into()),
        other => Ok(other.and_then(Result::ok)),
    })
}

/// What was waited for, or that the client has left the call meanwhile.
fn unless_left<T>(
    waited: Poll<T>,
    left: impl FnOnce() -> Poll<Result<h2::Reason, h2::Error>>,
) -> Poll<Result<T, h2::Error>> {
    match waited {
        Poll::Ready(found) => Poll::Ready(Ok(found)),
        Poll::Pending => left().map(|reason| Err(reason.map_or_else(|error| error, Into::into))),
    }
}

/// The body of a request, as it comes; its messages are counted where it is a call's.
struct Received(RecvStream, Option<(Arc<Calls>, Meter)>);

impl http_body::Body for Received {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let broken = |error: h2::Error| Status::from_error(Box::new(error));
        if let Some(data) = ready!(self.0.poll_data(cx)) {
            let data = data.and_then(|data| {
                self.0.flow_control().release_capacity(data.len())?;
                if let Some((calls, meter)) = &mut self.1 {
                    meter.take(&data, |length| calls.received(length));
                }
                Ok(Frame::data(data))
            });
            return Poll::Ready(Some(data.map_err(broken)));
        }
        let trailers = ready!(self.0.poll_trailers(cx)).map_err(broken);
        Poll::Ready(trailers.transpose().map(|trailers| trailers.map(Frame::trailers)))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    #[test]
    fn an_ear_wakes_who_rests() {
        #[derive(Default)]
        struct Woken(AtomicU8);
        impl Wake for Woken {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let (ear, woken) = (Arc::<Ear>::default(), Arc::<Woken>::default());
        let times = || woken.0.load(Ordering::SeqCst);
        ear.task.register(&woken.clone().into());
        ear.attend();
        ear.wake_by_ref();
        assert!(!ear.rest(), "there is more to do");
        ear.attend();
        assert!(ear.rest());
        assert_eq!(times(), 0, "who is at work need not be woken");
        ear.wake_by_ref();
        ear.wake_by_ref();
        assert_eq!(times(), 1);
    }

    #[test]
    fn an_outbox_is_held_up_until_it_was_sent() {
        let (mut outbox, cx) = (Outbox::default(), &mut Context::from_waker(Waker::noop()));
        let piece = [7; OUTBOX / 2];
        for held_up in [false, false, true] {
            assert_eq!(Pin::new(&mut outbox).poll_write(cx, &piece).is_pending(), held_up);
        }
        let mut sent = Vec::new();
        assert!(outbox.poll_send(&mut sent, cx).unwrap(), "there is room again");
        assert!(!outbox.poll_send(&mut sent, cx).unwrap(), "there was room");
        assert_eq!(sent.len(), OUTBOX);
    }
}
