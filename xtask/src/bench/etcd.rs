//! The store as etcd's clients see it, beside a real etcd on the same disk: the workloads of etcd's
//! own `benchmark` tool, by a client that costs little itself.
//!
//! Both servers run all the time and take turns, so that what else the machine does meets both. A
//! ratio is of the two figures of one turn. `KNARR_ETCD` names another etcd than that of the PATH.

use std::fs;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::{Outcome, Row, Site, root};

/// Turns of each workload.
const TURNS: usize = 3;
/// How long one lasts, in seconds.
const SECONDS: &str = "3";
const THIRD: f64 = 1.0 / 3.0;

/// Workload, clients, bytes of a value, and what time per operation may be of etcd's.
const WORKLOADS: &[(&str, usize, usize, Option<f64>)] = &[
    ("put", 1, 256, Some(0.5)),
    ("put", 100, 256, Some(THIRD)),
    ("put", 1000, 256, Some(THIRD)),
    ("put", 100, 1024, Some(THIRD)),
    ("range", 1, 256, None),
    ("range", 100, 256, None),
    ("range", 1000, 256, None),
    ("txn-put", 100, 256, None),
    ("txn-mixed", 100, 256, None),
    ("watch", 1000, 256, None),
    ("watch-latency", 100, 256, None),
];

/// A server of the benchmark.
struct Server {
    child: Child,
    address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may be gone already, which is all that is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start(command: &mut Command, site: &Site, name: &str, port: u16) -> Outcome<Self> {
        let address = format!("127.0.0.1:{port}");
        let url = format!("http://{address}");
        command.arg("--data-dir").arg(site.dir.join(name));
        command.args(["--listen-client-urls", &url, "--advertise-client-urls", &url]);
        command.args(["--listen-peer-urls", "http://127.0.0.1:2390"]);
        let log = fs::File::create(site.dir.join(format!("{name}.log")))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let server = Self { child: command.spawn()?, address };
        // curl asks again until somebody listens.
        let ready = Command::new("curl")
            .args(["-s", "--retry", "50", "--retry-connrefused", "--retry-delay", "1"])
            .args(["-o", "/dev/null", &format!("{url}/health")])
            .status()?;
        ready.success().then_some(server).ok_or(format!("{name} does not serve").into())
    }

    fn load(&self, workload: &str, clients: usize, bytes: usize) -> Outcome<Value> {
        let program = root().join("target/release/examples/workloads");
        let mut load = Command::new(program);
        load.args([workload, &self.address, &clients.to_string(), &bytes.to_string(), SECONDS]);
        let output = load.arg(self.child.id().to_string()).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        serde_json::from_slice(&output.stdout).map_err(|_| format!("{load:?}: {said}").into())
    }
}

/// The benchmark.
pub(super) fn etcd(site: &Site) -> Outcome<Vec<Row>> {
    let knarr = Server::start(Command::new(&site.knarr).arg("etcd"), site, "knarr", 2401)?;
    let other = std::env::var("KNARR_ETCD").unwrap_or_else(|_| "etcd".to_owned());
    let etcd = Server::start(&mut Command::new(other), site, "etcd", 2402)?;
    let mut rows = Vec::new();
    for &(workload, clients, bytes, time) in WORKLOADS {
        let mut turns = Vec::new();
        for _ in 0..TURNS {
            turns.push((
                knarr.load(workload, clients, bytes)?,
                etcd.load(workload, clients, bytes)?,
            ));
        }
        rows.extend(rows_of(&format!("{workload} {clients} × {bytes} B"), &turns, time));
    }
    rows.push(slow_disk()?);
    Ok(rows)
}

/// What a durable write costs 16 clients whose disk takes a millisecond to sync.
fn slow_disk() -> Outcome<Row> {
    let program = root().join("target/release/examples/slow_disk");
    let output = Command::new(program).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let rate = text.split(' ').next().and_then(|word| word.parse::<f64>().ok());
    let rate = rate.ok_or(format!("no figure: {text}"))?;
    Ok(Row::new("a write of 16 clients, fdatasync of 1 ms", "ms", vec![1e3 / rate]).at_most(1.0))
}

fn rows_of(name: &str, turns: &[(Value, Value)], time: Option<f64>) -> Vec<Row> {
    let figure = |value: &Value, name: &str| value[name].as_f64().unwrap_or(f64::NAN);
    let each = |name: &str| -> (Vec<f64>, Vec<f64>) {
        turns.iter().map(|(ours, theirs)| (figure(ours, name), figure(theirs, name))).unzip()
    };
    let ratio = |name: &str| -> Vec<f64> {
        turns.iter().map(|(ours, theirs)| figure(ours, name) / figure(theirs, name)).collect()
    };
    let rate = turns
        .iter()
        .map(|(ours, theirs)| figure(theirs, "ops_per_second") / figure(ours, "ops_per_second"));
    let (ours, theirs) = each("ops_per_second");
    let (our_cpu, their_cpu) = each("cpu_us_per_op");
    let per_operation = Row::new(format!("{name}: time, of etcd's"), "ratio", rate.collect());
    let mut rows = vec![
        Row::new(format!("{name}, knarr"), "ops/s", ours),
        Row::new(format!("{name}, etcd"), "ops/s", theirs),
        match time {
            Some(time) => per_operation.at_most(time),
            None => per_operation,
        },
        Row::new(format!("{name}: server CPU, knarr"), "µs/op", our_cpu),
        Row::new(format!("{name}: server CPU, etcd"), "µs/op", their_cpu),
    ];
    let targets =
        [("cpu_us_per_op", "CPU", THIRD), ("p99_us", "p99", 0.5), ("memory_mb", "memory", 0.5)];
    rows.extend(targets.map(|(field, word, target)| {
        Row::new(format!("{name}: {word}, of etcd's"), "ratio", ratio(field)).at_most(target)
    }));
    rows
}
