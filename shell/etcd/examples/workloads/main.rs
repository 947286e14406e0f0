//! A light client with the workloads of etcd's own `benchmark` tool, for any server that speaks
//! etcd's API: it writes HTTP/2 frames by itself, so that what is measured is the server.
//!
//! `workloads WORKLOAD ADDRESS CLIENTS VALUE_BYTES SECONDS [SERVER_PID]`; WORKLOAD is put, range,
//! txn-put, txn-mixed, watch or watch-latency. Prints one line of JSON: operations per second,
//! latencies in microseconds, and the CPU per operation, the client's own and the server's, and the
//! server's memory, where its process is named.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a measuring program may fail where it stands"
)]

mod connection;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use connection::{Connection, Heard};
use futures_util::future::join_all;
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
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| args[at].parse::<usize>().unwrap();
    let load = Load {
        workload: args[0].clone(),
        address: args[1].clone(),
        clients: number(2),
        value: vec![b'v'; number(3)].into(),
        time: Duration::from_secs(number(4) as u64),
    };
    let pid = args.get(5).map(String::as_str);
    let cpu = || ["self"].into_iter().chain(pid).map(cpu_micros).collect::<Vec<_>>();
    let before = cpu();
    let began = Instant::now();
    let mut took = match load.workload.as_str() {
        "watch" | "watch-latency" => watch(&load).await,
        _ => unary(&load).await,
    };
    let seconds = began.elapsed().as_secs_f64();
    let cpu: Vec<_> = cpu().iter().zip(before).map(|(after, before)| after - before).collect();
    took.sort_unstable();
    let ops = took.len();
    let at = |part: f64| took[((ops - 1) as f64 * part) as usize];
    println!(
        "{{\"ops\":{ops},\"ops_per_second\":{:.0},\"p50_us\":{},\"p99_us\":{},\
         \"client_cpu_us_per_op\":{:.1},\"cpu_us_per_op\":{:.1},\"memory_mb\":{:.1}}}",
        ops as f64 / seconds,
        at(0.5),
        at(0.99),
        cpu[0] as f64 / ops as f64,
        cpu.get(1).map_or(0.0, |cpu| *cpu as f64 / ops as f64),
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
    fn method(&self) -> &'static str {
        match self.workload.as_str() {
            "put" => "etcdserverpb.KV/Put",
            "range" => "etcdserverpb.KV/Range",
            "txn-put" | "txn-mixed" => "etcdserverpb.KV/Txn",
            other => panic!("unknown workload {other}"),
        }
    }

    /// Sends an operation.
    fn operation(&self, number: u64, to: &mut Connection) -> u32 {
        use pb::request_op::Request;
        // Keys in an order that is not theirs.
        let number = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
        let stream = to.call();
        match self.workload.as_str() {
            "put" => to.send(stream, &put(number, &self.value), true),
            "range" => to.send(stream, &range(number), true),
            "txn-mixed" if number.is_multiple_of(2) => {
                to.send(stream, &txn(Request::RequestRange(range(number))), true);
            }
            _ => to.send(stream, &txn(Request::RequestPut(put(number, &self.value))), true),
        }
        stream
    }
}

/// Clients that each call again as soon as they are answered.
async fn unary(load: &Load) -> Vec<u64> {
    let connections = load.clients.div_ceil(PER_CONNECTION);
    let clients = |at| PER_CONNECTION.min(load.clients - at * PER_CONNECTION);
    let all = (0..connections).map(|at| some_clients(load, at as u64, clients(at)));
    join_all(all).await.concat()
}

async fn some_clients(load: &Load, connection: u64, clients: usize) -> Vec<u64> {
    let ends = Instant::now() + load.time;
    let mut to = Connection::open(&load.address, load.method()).await;
    let mut next = connection << 32;
    let mut took = Vec::new();
    // The calls on their way: when they began, and whether a message answered them. What went
    // wrong is told by fields alone.
    let mut calls = HashMap::new();
    for _ in 0..clients {
        next += 1;
        calls.insert(load.operation(next, &mut to), (Instant::now(), false));
    }
    while !calls.is_empty() {
        for heard in to.hear().await {
            match heard {
                Heard::Data(stream, _) => calls.get_mut(&stream).unwrap().1 = true,
                Heard::End(stream) => {
                    let (began, answered) = calls.remove(&stream).unwrap();
                    assert!(answered, "{} was refused", load.method());
                    let now = Instant::now();
                    took.push((now - began).as_micros() as u64);
                    if now < ends {
                        next += 1;
                        calls.insert(load.operation(next, &mut to), (now, false));
                    }
                }
            }
        }
    }
    took
}

/// Watches of single keys, spread over streams; puts to these keys, and how long each takes to be
/// seen.
async fn watch(load: &Load) -> Vec<u64> {
    let per_stream = (load.clients / STREAMS).max(1);
    let streams = load.clients.min(STREAMS);
    let (news, mut heard) = tokio::sync::mpsc::unbounded_channel();
    for stream in 0..streams {
        let first = (stream * per_stream) as u64;
        let mut watcher = Watcher::open(load, first..first + per_stream as u64).await;
        let news = news.clone();
        tokio::spawn(async move {
            loop {
                for _ in 0..watcher.hear().await {
                    // Nobody listens any more at the end.
                    let _ = news.send(());
                }
            }
        });
    }
    let watches = (streams * per_stream) as u64;
    let ends = Instant::now() + load.time;
    let mut to = Connection::open(&load.address, "etcdserverpb.KV/Put").await;
    let mut took = Vec::new();
    for number in 0.. {
        let began = Instant::now();
        if began >= ends {
            break;
        }
        let stream = to.call();
        to.send(stream, &put(number % watches, &load.value), true);
        tokio::join!(ended(&mut to), heard.recv());
        took.push(began.elapsed().as_micros() as u64);
        if load.workload == "watch-latency" {
            // A put every two milliseconds: nothing waits behind anything.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    took
}

/// Waits for the end of the one call of a connection.
async fn ended(to: &mut Connection) {
    while !to.hear().await.iter().any(|heard| matches!(heard, Heard::End(_))) {}
}

/// A stream of watches.
struct Watcher {
    from: Connection,
    read: BytesMut,
}

impl Watcher {
    /// Returns when all watches stand.
    async fn open(load: &Load, keys: std::ops::Range<u64>) -> Self {
        let mut from = Connection::open(&load.address, "etcdserverpb.Watch/Watch").await;
        let stream = from.call();
        let mut created = keys.end - keys.start;
        for number in keys {
            let create = pb::WatchCreateRequest { key: key(number), ..Default::default() };
            let request_union = Some(pb::watch_request::RequestUnion::CreateRequest(create));
            from.send(stream, &pb::WatchRequest { request_union }, false);
        }
        let mut watcher = Self { from, read: BytesMut::new() };
        while created > 0 {
            created -=
                watcher.responses().await.iter().filter(|answer| answer.created).count() as u64;
        }
        watcher
    }

    /// Waits for the next events.
    async fn hear(&mut self) -> usize {
        self.responses().await.iter().map(|response| response.events.len()).sum()
    }

    async fn responses(&mut self) -> Vec<pb::WatchResponse> {
        for heard in self.from.hear().await {
            let Heard::Data(stream, data) = heard else { panic!("the watch ended") };
            self.from.welcome(stream, data.len());
            self.read.extend_from_slice(&data);
        }
        let mut responses = Vec::new();
        while self.read.len() >= 5 {
            let len = (&self.read[1..]).get_u32() as usize;
            if self.read.len() < 5 + len {
                break;
            }
            let message = self.read.split_to(5 + len).freeze().slice(5..);
            responses.push(pb::WatchResponse::decode(message).unwrap());
        }
        responses
    }
}
