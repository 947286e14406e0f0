//! A light client with the workloads of etcd's own `benchmark` tool, for any server that speaks
//! etcd's API: it writes HTTP/2 frames by itself, so that what is measured is the server.
//!
//! `workloads WORKLOAD ADDRESS CLIENTS VALUE_BYTES SECONDS [SERVER_PID]`; WORKLOAD is put, range,
//! txn-put, txn-mixed, watch or watch-latency. Prints one line of JSON: operations per second,
//! latencies in microseconds, and the server's CPU per operation and memory where its process is
//! named.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a measuring program may fail where it stands"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use knarr_etcdpb::etcdserverpb as pb;
use prost::Message;

/// Clients of one connection.
const PER_CONNECTION: usize = 100;
/// Keys that are put and read.
const KEYS: u64 = 100_000;
/// Streams and watches of the watch workload.
const STREAMS: usize = 10;

struct Load {
    workload: String,
    address: String,
    clients: usize,
    value: Bytes,
    time: Duration,
    next: AtomicU64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| args[at].parse::<usize>().unwrap();
    let load = Arc::new(Load {
        workload: args[0].clone(),
        address: args[1].clone(),
        clients: number(2),
        value: vec![b'v'; number(3)].into(),
        time: Duration::from_secs(number(4) as u64),
        next: AtomicU64::new(0),
    });
    let pid = args.get(5).map(String::as_str);
    let before = pid.map(cpu_micros);
    let began = Instant::now();
    let mut took = match args[0].as_str() {
        "watch" | "watch-latency" => watch(&load).await,
        _ => unary(&load).await,
    };
    let seconds = began.elapsed().as_secs_f64();
    let cpu = pid.zip(before).map_or(0, |(pid, before)| cpu_micros(pid) - before);
    took.sort_unstable();
    let at = |part: f64| took[((took.len() - 1) as f64 * part) as usize];
    println!(
        "{{\"ops\":{},\"ops_per_second\":{:.0},\"p50_us\":{},\"p99_us\":{},\"cpu_us_per_op\":{:.1},\
         \"memory_mb\":{:.1}}}",
        took.len(),
        took.len() as f64 / seconds,
        at(0.5),
        at(0.99),
        cpu as f64 / took.len() as f64,
        pid.map_or(0.0, memory_mb),
    );
}

/// Processor time of a process, in microseconds; a tick is 10 ms.
fn cpu_micros(pid: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let words: Vec<&str> = text.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks = |at: usize| words[at].parse::<u64>().unwrap();
    (ticks(11) + ticks(12)) * 10_000
}

/// The proportional set size of a process.
fn memory_mb(pid: &str) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("Pss:")).unwrap_or("Pss: 0 kB");
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

async fn connect(address: &str) -> SendRequest<Bytes> {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (send, connection) = h2::client::Builder::new()
        .initial_window_size(1 << 20)
        .initial_connection_window_size(16 << 20)
        .handshake::<_, Bytes>(stream)
        .await
        .unwrap();
    tokio::spawn(async move {
        // It ends with the program.
        let _ = connection.await;
    });
    send
}

fn framed(message: &impl Message) -> Bytes {
    let len = message.encoded_len();
    let mut out = BytesMut::with_capacity(5 + len);
    out.put_u8(0);
    out.put_u32(len as u32);
    message.encode(&mut out).unwrap();
    out.freeze()
}

async fn open(
    send: &SendRequest<Bytes>,
    method: &str,
) -> (h2::client::ResponseFuture, SendStream<Bytes>) {
    let request = http::Request::post(format!("http://etcd/etcdserverpb.{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let mut send = send.clone().ready().await.unwrap();
    send.send_request(request, false).unwrap()
}

async fn call(send: &SendRequest<Bytes>, method: &str, message: Bytes) {
    let (response, mut body) = open(send, method).await;
    body.send_data(message, true).unwrap();
    let mut body = response.await.unwrap().into_body();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
    }
    let trailers = body.trailers().await.unwrap().unwrap_or_default();
    let status = trailers.get("grpc-status").expect("a status");
    assert_eq!(status, "0", "{trailers:?}");
}

fn key(number: u64) -> Bytes {
    format!("{:08}", number % KEYS).into()
}

fn put(number: u64, value: &Bytes) -> pb::PutRequest {
    pb::PutRequest { key: key(number), value: value.clone(), ..Default::default() }
}

fn range(number: u64) -> pb::RangeRequest {
    pb::RangeRequest { key: key(number), ..Default::default() }
}

fn txn(request: pb::request_op::Request) -> pb::TxnRequest {
    let success = vec![pb::RequestOp { request: Some(request) }];
    pb::TxnRequest { success, ..Default::default() }
}

impl Load {
    /// The next operation: its method and message.
    fn operation(&self) -> (&'static str, Bytes) {
        use pb::request_op::Request;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        // Keys in an order that is not theirs.
        let number = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
        match self.workload.as_str() {
            "put" => ("KV/Put", framed(&put(number, &self.value))),
            "range" => ("KV/Range", framed(&range(number))),
            "txn-put" => ("KV/Txn", framed(&txn(Request::RequestPut(put(number, &self.value))))),
            "txn-mixed" if number.is_multiple_of(2) => {
                ("KV/Txn", framed(&txn(Request::RequestRange(range(number)))))
            }
            "txn-mixed" => ("KV/Txn", framed(&txn(Request::RequestPut(put(number, &self.value))))),
            other => panic!("unknown workload {other}"),
        }
    }
}

async fn unary(load: &Arc<Load>) -> Vec<u64> {
    let ends = Instant::now() + load.time;
    let mut tasks = tokio::task::JoinSet::new();
    let mut send = None;
    for client in 0..load.clients {
        if client % PER_CONNECTION == 0 {
            send = Some(connect(&load.address).await);
        }
        let (send, load) = (send.clone().unwrap(), load.clone());
        tasks.spawn(async move {
            let mut took = Vec::new();
            while Instant::now() < ends {
                let began = Instant::now();
                let (method, message) = load.operation();
                call(&send, method, message).await;
                took.push(began.elapsed().as_micros() as u64);
            }
            took
        });
    }
    tasks.join_all().await.concat()
}

/// Watches of single keys, spread over streams; puts to these keys, and how long each takes to be
/// seen.
async fn watch(load: &Arc<Load>) -> Vec<u64> {
    let per_stream = (load.clients / STREAMS).max(1);
    let streams = load.clients.min(STREAMS);
    let seen = Arc::new(AtomicU64::new(0));
    let (news, mut heard) = tokio::sync::mpsc::unbounded_channel();
    for stream in 0..streams {
        let send = connect(&load.address).await;
        let (response, mut body) = open(&send, "Watch/Watch").await;
        for watch in 0..per_stream {
            let key = key((stream * per_stream + watch) as u64);
            let create = pb::WatchCreateRequest { key, ..Default::default() };
            let request_union = Some(pb::watch_request::RequestUnion::CreateRequest(create));
            body.send_data(framed(&pb::WatchRequest { request_union }), false).unwrap();
        }
        let answers = response.await.unwrap().into_body();
        tokio::spawn(follow(answers, body, news.clone(), seen.clone()));
    }
    let watches = (streams * per_stream) as u64;
    while seen.load(Ordering::Relaxed) < watches {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let ends = Instant::now() + load.time;
    let send = connect(&load.address).await;
    let mut took = Vec::new();
    let mut number = 0;
    while Instant::now() < ends {
        let began = Instant::now();
        let message = framed(&put(number % watches, &load.value));
        number += 1;
        let (_, seen) = tokio::join!(call(&send, "KV/Put", message), heard.recv());
        seen.unwrap();
        took.push(began.elapsed().as_micros() as u64);
        if load.workload == "watch-latency" {
            // A put every two milliseconds: nothing waits behind anything.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    took
}

/// Counts the answers of one stream: creations, then events.
async fn follow(
    mut answers: RecvStream,
    _open: SendStream<Bytes>,
    news: tokio::sync::mpsc::UnboundedSender<()>,
    created: Arc<AtomicU64>,
) {
    let mut read = BytesMut::new();
    while let Some(Ok(data)) = answers.data().await {
        answers.flow_control().release_capacity(data.len()).unwrap();
        read.extend_from_slice(&data);
        while read.len() >= 5 {
            let len = u32::from_be_bytes(read[1..5].try_into().unwrap()) as usize;
            if read.len() < 5 + len {
                break;
            }
            let message = read.split_to(5 + len).freeze().slice(5..);
            let response = pb::WatchResponse::decode(message).unwrap();
            if response.created {
                created.fetch_add(1, Ordering::Relaxed);
            }
            for _ in &response.events {
                // Nobody listens any more at the end.
                let _ = news.send(());
            }
        }
    }
}
