//! Connections as a server of HTTP/2 meets them: many calls at once, large answers to slow readers,
//! clients that leave, and what is no HTTP/2 at all.
#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::client::SendRequest;
use http::{HeaderMap, Request};
use knarr_etcd::{Face, FaceConfig, Keepalive, Listener, serve};
use knarr_etcdpb::etcdserverpb as pb;
use knarr_mvcc::{KeyRange, Op, Revision, Txn};
use knarr_store::sim::{SimClock, SimDisk};
use knarr_store::{Store, StoreConfig};
use prost::Message;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

/// Nothing here takes long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
const PING: u8 = 6;

/// A face that is served until `drain` says so.
struct Served {
    store: Store,
    address: std::net::SocketAddr,
    drain: watch::Sender<bool>,
    serving: JoinHandle<()>,
}

impl Served {
    async fn new() -> Self {
        Self::told(FaceConfig::default()).await
    }

    async fn told(told: FaceConfig) -> Self {
        let disk = Arc::new(SimDisk::default());
        let config = StoreConfig::default();
        let store = Store::open(disk, Arc::<SimClock>::default(), config).unwrap();
        let face = Face::new(store.clone(), told).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (drain, drained) = watch::channel(false);
        let serving = tokio::spawn(serve(face, Listener::Tcp(listener, None), drained));
        Self { store, address, drain, serving }
    }

    /// A connection on which each call may be sent `window` bytes before it says that it read them.
    async fn connect(&self, window: u32) -> SendRequest<Bytes> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(window);
        let (send, connection) = builder.handshake(stream).await.unwrap();
        tokio::spawn(async move {
            // It ends with the test.
            let _ = connection.await;
        });
        send
    }

    async fn put(&self, key: &str, value: Bytes) {
        let put = Op::Put { key: key.to_owned().into(), value, lease: Default::default() };
        self.store.txn(Txn { success: vec![put], ..Txn::default() }).await.unwrap();
    }
}

/// A message as it goes over the wire.
fn framed(message: &impl Message) -> Bytes {
    prefixed(0, message.encoded_len(), &message.encode_to_vec())
}

fn prefixed(compressed: u8, len: usize, message: &[u8]) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(compressed);
    out.put_u32(u32::try_from(len).unwrap());
    out.put_slice(message);
    out.freeze()
}

async fn open(
    send: SendRequest<Bytes>,
    method: &str,
) -> (h2::client::ResponseFuture, h2::SendStream<Bytes>) {
    let request = Request::post(format!("http://etcd/etcdserverpb.{method}"))
        .header("content-type", "application/grpc")
        .body(())
        .unwrap();
    send.ready().await.unwrap().send_request(request, false).unwrap()
}

/// Sends one message in `pieces`; the answer's message without its prefix, and what the server said
/// at the end.
async fn call(
    mut send: SendRequest<Bytes>,
    method: &str,
    pieces: Vec<Bytes>,
) -> (Bytes, HeaderMap) {
    let request = Request::post(format!("http://etcd/etcdserverpb.{method}"))
        .header("content-type", "application/grpc")
        .body(())
        .unwrap();
    send = send.ready().await.unwrap();
    let (response, mut body) = send.send_request(request, false).unwrap();
    let last = pieces.len() - 1;
    for (at, piece) in pieces.into_iter().enumerate() {
        body.send_data(piece, at == last).unwrap();
    }
    let response = response.await.unwrap();
    let head = response.headers().clone();
    let mut body = response.into_body();
    let mut read = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        read.extend_from_slice(&data);
    }
    let end = body.trailers().await.unwrap().unwrap_or(head);
    let prefix = if end["grpc-status"] == "0" { 5 } else { 0 };
    (read.freeze().slice(prefix..), end)
}

fn range(key: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: key.to_owned().into(), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_answers_to_slow_readers_arrive_whole() {
    let served = Served::new().await;
    let value = |number: usize| Bytes::from(vec![b'a' + (number % 20) as u8; 200_000 + number]);
    for number in 0..20 {
        served.put(&format!("k{number}"), value(number)).await;
    }
    // Of each answer a hundredth fits: all of them wait for their readers, and for the socket.
    let send = served.connect(2_000).await;
    let mut calls = JoinSet::new();
    for number in 0..100 {
        let (send, key) = (send.clone(), format!("k{}", number % 20));
        calls.spawn(async move {
            let (message, _) = call(send, "KV/Range", vec![framed(&range(&key))]).await;
            (number % 20, pb::RangeResponse::decode(message).unwrap())
        });
    }
    for (number, answer) in timeout(PATIENCE, calls.join_all()).await.unwrap() {
        assert_eq!(answer.kvs[0].value, value(number), "k{number}");
    }
}

/// Who lets everything come and reads late holds up the answers that come after it, not for ever.
#[tokio::test]
async fn a_socket_that_is_full_is_waited_for() {
    let served = Served::new().await;
    served.put("k", Bytes::from(vec![7; 1 << 20])).await;
    let (mut reader, writer) = tokio::io::duplex(1 << 20);
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    // All that the server sends waits here until it is let through.
    let (open, mut opened) = watch::channel(false);
    tokio::spawn(async move {
        let (mut from, mut to) = stream.split();
        let (mut asked, mut told) = tokio::io::split(writer);
        let answers = async {
            opened.wait_for(|open| *open).await.unwrap();
            tokio::io::copy(&mut from, &mut told).await
        };
        tokio::join!(tokio::io::copy(&mut asked, &mut to), answers)
    });
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(1 << 30).initial_connection_window_size(1 << 30);
    let (send, connection) = builder.handshake(&mut reader).await.unwrap();
    let calls = async {
        let mut calls = JoinSet::new();
        for _ in 0..30 {
            calls.spawn(call(send.clone(), "KV/Range", vec![framed(&range("k"))]));
        }
        // Until the server has read and answered as much as it can.
        let kv = served.connect(65_535).await;
        for _ in 0..10 {
            call(kv.clone(), "KV/Range", vec![framed(&range("none"))]).await;
        }
        open.send(true).unwrap();
        calls.join_all().await
    };
    tokio::select! {
        answers = timeout(PATIENCE, calls) => {
            let len = answers.unwrap().iter().map(|(message, _)| message.len()).sum::<usize>();
            assert!(len > 30 << 20, "{len}");
        }
        ended = connection => panic!("{ended:?}"),
    }
}

/// A connection takes more than what may be on its way at once.
#[tokio::test]
async fn room_for_requests_is_given_back() {
    let served = Served::new().await;
    let send = served.connect(65_535).await;
    let value = Bytes::from(vec![7; 1 << 20]);
    let put = pb::PutRequest { key: "k".into(), value, ..Default::default() };
    for _ in 0..10 {
        let answer = call(send.clone(), "KV/Put", vec![framed(&put)]);
        assert_eq!(timeout(PATIENCE, answer).await.unwrap().1["grpc-status"], "0");
    }
    let watch = pb::WatchCreateRequest { key: vec![7; 100_000].into(), ..Default::default() };
    let union = pb::watch_request::RequestUnion::CreateRequest(watch);
    let create = framed(&pb::WatchRequest { request_union: Some(union) });
    let (response, mut asked) = open(send, "Watch/Watch").await;
    for _ in 0..50 {
        asked.send_data(create.clone(), false).unwrap();
    }
    let mut answers = timeout(PATIENCE, response).await.unwrap().unwrap().into_body();
    let mut read = BytesMut::new();
    let created = |read: &[u8]| read.windows(2).filter(|field| *field == [0x18, 1]).count();
    while created(&read) < 50 {
        read.extend_from_slice(&timeout(PATIENCE, answers.data()).await.unwrap().unwrap().unwrap());
    }
}

#[tokio::test]
async fn a_message_may_come_in_pieces() {
    let served = Served::new().await;
    served.put("k", "v".into()).await;
    let message = framed(&range("k"));
    let pieces = (0..message.len()).map(|at| message.slice(at..=at)).collect();
    let (answer, end) = call(served.connect(65_535).await, "KV/Range", pieces).await;
    assert_eq!(end["grpc-status"], "0");
    assert_eq!(pb::RangeResponse::decode(answer).unwrap().kvs[0].value, "v");
}

#[tokio::test]
async fn what_is_no_message_is_refused_and_the_connection_goes_on() {
    let served = Served::new().await;
    let send = served.connect(65_535).await;
    let too_large = 10 << 20;
    let cases = [
        ("compressed", prefixed(1, 2, b"xx"), "12"),
        ("too large", prefixed(0, too_large, b""), "11"),
        ("cut off", prefixed(0, 9, b"xx"), "13"),
        ("nothing", Bytes::new(), "13"),
        ("no protobuf", prefixed(0, 2, b"\xff\xff"), "13"),
        ("a key is missing", framed(&pb::RangeRequest::default()), "3"),
    ];
    for (name, message, status) in cases {
        let (_, end) = call(send.clone(), "KV/Range", vec![message]).await;
        assert_eq!(end["grpc-status"], status, "{name}: {end:?}");
    }
    let (_, end) = call(send, "KV/Range", vec![framed(&range("k"))]).await;
    assert_eq!(end["grpc-status"], "0");
}

/// What is to be known of a connection is in its first bytes, in however many pieces they come.
#[tokio::test]
async fn both_versions_of_http_are_told_apart_byte_by_byte() {
    let served = Served::new().await;
    let said = [PREFACE, &SETTINGS].concat();
    let version = b"PUT /version HTTP/1.1\r\nhost: etcd\r\nconnection: close\r\n\r\n";
    for (said, answer) in [(&said[..], &SETTINGS[3..4]), (version, b"HTTP/1.1 200 OK")] {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        for byte in said {
            stream.write_all(&[*byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        let mut read = vec![0; 64];
        let len = timeout(PATIENCE, stream.read(&mut read)).await.unwrap().unwrap();
        let read = &read[..len];
        assert!(read.starts_with(answer) || read[3..].starts_with(answer), "{read:?}");
    }
}

/// A call that nobody waits for any more is let go, and the connection with it.
#[tokio::test]
async fn a_client_may_leave_in_the_middle() {
    let served = Served::new().await;
    served.put("k", Bytes::from(vec![7; 1 << 20])).await;
    let send = served.connect(1_000).await;
    for _ in 0..50 {
        let (response, mut body) = open(send.clone(), "KV/Range").await;
        body.send_data(framed(&range("k")), true).unwrap();
        let answer = response.await.unwrap();
        drop((answer, body));
    }
    let (_, end) = call(send, "KV/Range", vec![framed(&range("none"))]).await;
    assert_eq!(end["grpc-status"], "0");
}

/// Who is served when the server drains gets the answer; then the connection ends.
#[tokio::test]
async fn draining_finishes_what_was_begun() {
    let served = Served::new().await;
    served.put("k", Bytes::from(vec![7; 1 << 20])).await;
    let send = served.connect(1_000).await;
    let (response, mut body) = open(send.clone(), "KV/Range").await;
    body.send_data(framed(&range("k")), true).unwrap();
    let mut answer = response.await.unwrap().into_body();
    served.drain.send(true).unwrap();
    timeout(PATIENCE, served.serving).await.unwrap().unwrap();
    let mut len = 0;
    while let Some(data) = timeout(PATIENCE, answer.data()).await.unwrap() {
        let data = data.unwrap();
        len += data.len();
        answer.flow_control().release_capacity(data.len()).unwrap();
    }
    assert!(len > 1 << 20, "{len}");
    assert_eq!(answer.trailers().await.unwrap().unwrap()["grpc-status"], "0");
    // No more calls: the connection is at its end.
    assert!(send.ready().await.is_err());
    let all = KeyRange::prefix(Bytes::new());
    assert_eq!(served.store.read(|keyspace, _| keyspace.count(&all, Revision(0))).unwrap(), 1);
}

/// The next frame: its kind, its flags, its payload; none at the end.
async fn frame(stream: &mut TcpStream) -> Option<(u8, u8, Vec<u8>)> {
    let mut head = [0; 9];
    timeout(PATIENCE, stream.read_exact(&mut head)).await.unwrap().ok()?;
    let mut payload = vec![0; usize::from(head[2])];
    stream.read_exact(&mut payload).await.ok()?;
    Some((head[3], head[4], payload))
}

async fn next_ping(stream: &mut TcpStream) -> Option<Vec<u8>> {
    loop {
        if let (PING, 0, payload) = frame(stream).await? {
            return Some(payload);
        }
    }
}

/// Who begins more calls than a connection may have is told so, and that they were not begun.
#[tokio::test]
async fn calls_beyond_the_limit_are_refused() {
    let served = Served::told(FaceConfig { max_streams: 2, ..FaceConfig::default() }).await;
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    let (path, content) = (b"\x04\x19/etcdserverpb.Watch/Watch", b"\x0f\x10\x10application/grpc");
    let fields = [&b"\x83\x86"[..], path, content].concat();
    let call = |id: u8| [&[0, 0, fields.len() as u8, 1, 4, 0, 0, 0, id], &fields[..]].concat();
    let calls = [1, 3, 5].map(call).concat();
    stream.write_all(&[PREFACE, &SETTINGS, &calls].concat()).await.unwrap();
    let (kind, _, settings) = frame(&mut stream).await.unwrap();
    assert_eq!(kind, SETTINGS[3]);
    assert!(settings.chunks(6).any(|row| row == [0, 3, 0, 0, 0, 2]), "{settings:?}");
    let (reset, refused) = (3, [0, 0, 0, 7]);
    loop {
        if let (kind, _, why) = frame(&mut stream).await.unwrap()
            && kind == reset
        {
            return assert_eq!(why, refused);
        }
    }
}

/// A client that answers is kept, and asked again; one that does not is let go.
#[tokio::test]
async fn who_does_not_answer_is_let_go() {
    let [interval, timeout] = [20, 1_000].map(Duration::from_millis);
    let keepalive = Keepalive { interval, timeout };
    let served = Served::told(FaceConfig { keepalive, ..FaceConfig::default() }).await;
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    let mut heard = Instant::now();
    stream.write_all(&[PREFACE, &SETTINGS].concat()).await.unwrap();
    for _ in 0..5 {
        let asked = next_ping(&mut stream).await.expect("it lives");
        assert!(heard.elapsed() >= interval);
        heard = Instant::now();
        let pong = [&[0, 0, 8, PING, 1, 0, 0, 0, 0], &asked[..]].concat();
        stream.write_all(&pong).await.unwrap();
    }
    assert!(next_ping(&mut stream).await.is_some());
    assert_eq!(next_ping(&mut stream).await, None);
    assert!(heard.elapsed() >= interval + timeout);
}

/// Where nothing is asked for long the kernel asks.
#[tokio::test]
async fn the_kernel_looks_after_silent_sockets() {
    let served = Served::new().await;
    let silent = TcpStream::connect(served.address).await.unwrap();
    // Who came later has been answered: the first was taken up.
    call(served.connect(65_535).await, "KV/Range", vec![framed(&range("k"))]).await;
    let port = |address: std::net::SocketAddr| format!("0100007F:{:04X}", address.port());
    let ends = [served.address, silent.local_addr().unwrap()].map(port).join(" ");
    let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let row = sockets.lines().find(|row| row.contains(&ends)).expect("it is open");
    let timer = row.split_whitespace().nth(5).unwrap();
    assert!(timer.starts_with("02:"), "{row}");
    let _still_open = silent;
}
