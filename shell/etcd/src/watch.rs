//! The Watch service: one stream, many watches, one bell.
//!
//! It holds cursors and no events: it reads a batch of one watch, sends it, and goes on only
//! when the client has room. So a slow client costs no memory, and its watches fall off the history
//! only when the history they still need is compacted.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use knarr_etcd_model::auth::{Need, Right, range};
use knarr_etcdpb::etcdserverpb as pb;
use knarr_etcdpb::mvccpb::{self, event::EventType};
use knarr_mvcc::{Event, EventBatch, Revision};
use knarr_store::{Bell, Watch, WatchError};
use pb::watch_create_request::FilterType;
use pb::watch_request::RequestUnion;
use pb::watch_server::Watch as Service;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tonic::{Request, Response, Status, Streaming};

use crate::face::{Caller, Face};
use crate::wire::{key_value, revision, signed};

/// The id in answers that are about no watch, or about all.
const NO_WATCH: i64 = -1;
/// Answers that wait for a slow client.
const ROOM: usize = 4;

/// The service needs to outlive a call for its streams.
#[derive(Clone, Debug)]
pub(crate) struct Watches(pub(crate) Arc<Face>);

#[tonic::async_trait]
impl Service for Watches {
    type WatchStream = BoxStream<'static, Result<pb::WatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<pb::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let caller = self.0.caller(&request)?;
        let (out, answers) = mpsc::channel(ROOM);
        let session = Session {
            face: self.0.clone(),
            caller,
            out,
            bell: Arc::default(),
            watches: BTreeMap::new(),
            next_id: 0,
        };
        Ok(Response::new(driven(session.run(request.into_inner()), answers).boxed()))
    }
}

/// What is sent by something that runs whenever somebody listens. It needs no task of its own: to
/// wake that would cost as much as an event does.
fn driven<T>(run: impl Future<Output = ()>, mut sent: mpsc::Receiver<T>) -> impl Stream<Item = T> {
    let mut run = Box::pin(run.fuse());
    stream::poll_fn(move |cx| {
        // When it has ended, so has what it sends.
        let _ = run.as_mut().poll(cx);
        sent.poll_recv(cx)
    })
}

/// One stream of a client.
struct Session {
    face: Arc<Face>,
    caller: Caller,
    out: mpsc::Sender<Result<pb::WatchResponse, Status>>,
    bell: Arc<Bell>,
    watches: BTreeMap<u64, Watched>,
    next_id: u64,
}

/// One watch of a stream.
struct Watched {
    watch: Watch,
    /// Where it begins; 0 is with the next change.
    from: Revision,
    prev_kv: bool,
    fragment: bool,
    no_put: bool,
    no_delete: bool,
    /// When it is told how far it has come, if it wants to be.
    progress_at: Option<Instant>,
}

/// The client is gone, or the store is: there is nobody to tell.
struct Gone;

impl Session {
    async fn run(mut self, mut requests: Streaming<pb::WatchRequest>) {
        let mut open = true;
        loop {
            let progress_at = self.watches.values().filter_map(|watched| watched.progress_at).min();
            let done = tokio::select! {
                request = requests.next(), if open => match request {
                    Some(Ok(request)) => self.handle(request).await,
                    // Who has said everything may go on listening.
                    None => {
                        open = false;
                        Ok(())
                    }
                    Some(Err(status)) => {
                        // It may be the client's connection that is broken.
                        let _ = self.out.send(Err(status)).await;
                        Err(Gone)
                    }
                },
                tokens = self.bell.wait() => self.deliver(tokens).await,
                () = sleep_until(progress_at.unwrap_or_else(Instant::now)),
                    if progress_at.is_some() => self.tell_progress().await,
            };
            if done.is_err() {
                return;
            }
        }
    }

    async fn handle(&mut self, request: pb::WatchRequest) -> Result<(), Gone> {
        match request.request_union {
            Some(RequestUnion::CreateRequest(request)) => self.create(request).await,
            Some(RequestUnion::CancelRequest(request)) => self.cancel(request.watch_id).await,
            Some(RequestUnion::ProgressRequest(_)) => self.progress_of_all().await,
            None => Ok(()),
        }
    }

    async fn create(&mut self, request: pb::WatchCreateRequest) -> Result<(), Gone> {
        let (id, refused) = match self.admit(&request) {
            Ok(id) => (id, None),
            Err(why) => (NO_WATCH, Some(why)),
        };
        let now = self.face.store.durable();
        let made = refused.is_none().then(|| self.open(id, &request, now));
        self.send(pb::WatchResponse {
            header: Some(self.face.header(now)),
            watch_id: id,
            created: true,
            canceled: refused.is_some(),
            cancel_reason: refused.unwrap_or_default(),
            ..Default::default()
        })
        .await?;
        match made {
            Some(token) => self.deliver(vec![token]).await,
            None => Ok(()),
        }
    }

    /// The id of a watch that may be made, or the reason why it may not.
    fn admit(&mut self, request: &pb::WatchCreateRequest) -> Result<i64, String> {
        let range = watched_range(request);
        let need = Need { right: Right::Read, range };
        let judged = self.face.judge(&self.face.auth(), &self.caller, &[need]);
        judged.map_err(|status| status.message().to_owned())?;
        match u64::try_from(request.watch_id) {
            Err(_) => Err("etcdserver: the watch's ID is below zero".to_owned()),
            Ok(0) => {
                while self.watches.contains_key(&self.next_id) {
                    self.next_id += 1;
                }
                self.next_id += 1;
                Ok(signed(self.next_id - 1))
            }
            Ok(id) if self.watches.contains_key(&id) => {
                Err("mvcc: duplicate watch ID provided on the WatchStream".to_owned())
            }
            Ok(_) => Ok(request.watch_id),
        }
    }

    fn open(&mut self, id: i64, request: &pb::WatchCreateRequest, now: Revision) -> u64 {
        let token = revision(id).0;
        let from = revision(request.start_revision);
        let after = if from == Revision(0) { now } else { from.previous() };
        let interval = self.face.config.progress_interval;
        let filtered = |filter: FilterType| request.filters.contains(&filter.into());
        let watched = Watched {
            watch: self.face.store.watch_with(watched_range(request), after, &self.bell, token),
            from,
            prev_kv: request.prev_kv,
            fragment: request.fragment,
            no_put: filtered(FilterType::Noput),
            no_delete: filtered(FilterType::Nodelete),
            progress_at: request.progress_notify.then(|| Instant::now() + interval),
        };
        self.watches.insert(token, watched);
        token
    }

    async fn cancel(&mut self, id: i64) -> Result<(), Gone> {
        match self.watches.remove(&revision(id).0) {
            Some(_) => {
                let header = self.face.header_now();
                let canceled = true;
                self.send(pb::WatchResponse {
                    header,
                    watch_id: id,
                    canceled,
                    ..Default::default()
                })
                .await
            }
            None => Ok(()),
        }
    }

    /// Sends what the watches that rang have to tell.
    async fn deliver(&mut self, tokens: Vec<u64>) -> Result<(), Gone> {
        if tokens.is_empty() {
            return Err(Gone);
        }
        for token in tokens {
            self.drain(token).await?;
        }
        Ok(())
    }

    async fn drain(&mut self, token: u64) -> Result<(), Gone> {
        while let Some(watched) = self.watches.get_mut(&token) {
            let batch = match watched.watch.try_next().await {
                Ok(Some(batch)) => batch,
                Ok(None) => return Ok(()),
                Err(WatchError::Closed | WatchError::Past(_)) => return Err(Gone),
                Err(WatchError::Compacted(gone)) => {
                    return self.compacted(token, gone.oldest).await;
                }
            };
            for response in watched.responses(token, batch, &self.face) {
                self.send(response).await?;
            }
        }
        Ok(())
    }

    async fn compacted(&mut self, token: u64, oldest: Revision) -> Result<(), Gone> {
        self.watches.remove(&token);
        self.send(pb::WatchResponse {
            header: Some(self.face.header(Revision(0))),
            watch_id: signed(token),
            canceled: true,
            compact_revision: signed(oldest.0),
            ..Default::default()
        })
        .await
    }

    /// Answers a request for progress: every watch of the stream has told all up to here. While one
    /// waits for the future there is no answer, as with etcd.
    async fn progress_of_all(&mut self) -> Result<(), Gone> {
        for token in self.watches.keys().copied().collect::<Vec<_>>() {
            self.drain(token).await?;
        }
        let reached = self.watches.values().map(Watched::progress).min();
        let Some(reached) = reached.unwrap_or_else(|| Some(self.face.store.durable())) else {
            return Ok(());
        };
        let header = Some(self.face.header(reached));
        self.send(pb::WatchResponse { header, watch_id: NO_WATCH, ..Default::default() }).await
    }

    /// Tells the watches that want it, and have been quiet, how far they have come.
    async fn tell_progress(&mut self) -> Result<(), Gone> {
        let now = Instant::now();
        let due = |watched: &Watched| watched.progress_at.is_some_and(|at| at <= now);
        let due: Vec<u64> = self.watches.iter().filter(|(_, w)| due(w)).map(|(t, _)| *t).collect();
        for token in due {
            self.drain(token).await?;
            let Some(watched) = self.watches.get_mut(&token) else { continue };
            let told = watched.progress_at.is_some_and(|at| at > now);
            watched.progress_at = Some(now + self.face.config.progress_interval);
            if let Some(reached) = watched.progress().filter(|_| !told) {
                let header = Some(self.face.header(reached));
                let watch_id = signed(token);
                self.send(pb::WatchResponse { header, watch_id, ..Default::default() }).await?;
            }
        }
        Ok(())
    }

    async fn send(&self, response: pb::WatchResponse) -> Result<(), Gone> {
        self.out.send(Ok(response)).await.map_err(|_| Gone)
    }
}

impl Watched {
    /// How far it has come; nothing while it waits for a revision that is not there yet.
    fn progress(&self) -> Option<Revision> {
        Some(self.watch.progress()).filter(|reached| *reached >= self.from)
    }

    /// A batch as the watch wants it: filtered, with or without what was before, in one piece or in
    /// pieces that a request may be large.
    fn responses(&mut self, token: u64, batch: EventBatch, face: &Face) -> Vec<pb::WatchResponse> {
        let events = batch.events.into_iter();
        let events: Vec<_> = events.filter_map(|event| self.event(event)).collect();
        if events.is_empty() {
            return Vec::new();
        }
        if let Some(at) = &mut self.progress_at {
            *at = Instant::now() + face.config.progress_interval;
        }
        let limit = if self.fragment { face.config.max_request_bytes } else { usize::MAX };
        let pieces = pieces(events, limit);
        let last = pieces.len() - 1;
        let response = |(at, events)| pb::WatchResponse {
            header: Some(face.header(batch.next)),
            watch_id: signed(token),
            fragment: at < last,
            events,
            ..Default::default()
        };
        pieces.into_iter().enumerate().map(response).collect()
    }

    fn event(&self, event: Event) -> Option<mvccpb::Event> {
        let dropped = if event.new.is_some() { self.no_put } else { self.no_delete };
        if dropped {
            return None;
        }
        let prev_kv = event.old.filter(|_| self.prev_kv).map(key_value);
        Some(match event.new {
            Some(kv) => {
                mvccpb::Event { r#type: EventType::Put.into(), kv: Some(key_value(kv)), prev_kv }
            }
            None => mvccpb::Event {
                r#type: EventType::Delete.into(),
                kv: Some(mvccpb::KeyValue {
                    key: event.key,
                    mod_revision: signed(event.revision.0),
                    ..Default::default()
                }),
                prev_kv,
            },
        })
    }
}

/// Events in pieces of about `limit` bytes; an event larger than that is a piece of its own.
fn pieces(events: Vec<mvccpb::Event>, limit: usize) -> Vec<Vec<mvccpb::Event>> {
    let mut pieces = vec![Vec::new()];
    let mut size = 0;
    for event in events {
        let len = event.encoded_len();
        let piece = pieces.last_mut().expect("there is always one");
        if size + len > limit && !piece.is_empty() {
            size = 0;
            pieces.push(vec![event]);
        } else {
            piece.push(event);
        }
        size += len;
    }
    pieces
}

/// What a request watches; without a key, everything.
fn watched_range(request: &pb::WatchCreateRequest) -> knarr_mvcc::KeyRange {
    let key = match request.key.is_empty() {
        true => Bytes::from_static(&[0]),
        false => request.key.clone(),
    };
    range(key, request.range_end.clone())
}
