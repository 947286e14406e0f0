//! Measures the real binary against the project's targets; `docs/benchmarks.md` tells the story.
//!
//! All happens in namespaces of its own: fixed ports and addresses, the processes of the cluster
//! are those of the namespace, and whatever is left when a benchmark fails ends with it.

mod api;
mod cluster;
mod etcd;
mod network;
mod pull;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use cluster::Site;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// A benchmark: its name, what it measures, and what does it.
type Benchmark = (&'static str, &'static str, fn(&Site) -> Outcome<Vec<Row>>);

const BENCHMARKS: &[Benchmark] = &[
    ("start", "process start to Ready, on nothing and on the state of a run before", start),
    ("first-pod", "process start to the first Pod Running, its image present", first_pod),
    ("memory", "PSS of all knarr processes, idle and with 30 Pods", memory),
    ("pod-latency", "a Pod's creation to Running, one at a time and 30 at once", pod_latency),
    ("container", "create, start, end, delete of a container, beside crun", container),
    ("pull", "a 200 MB image from a registry on the loopback, beside containerd", pull::pull),
    ("proxy", "packet rules of 1,000 and 10,000 Services and a change, beside nft -f", proxy),
    ("network", "throughput between Pods: one node, a Service, two nodes", network::network),
    ("etcd", "etcd's workloads by its API, beside etcd on the same disk", etcd::etcd),
    ("dns", "questions for the addresses of 1,000 Services, beside unbound", dns),
];

const RUNS: usize = 10;
const PODS_ONE_BY_ONE: usize = 100;
const PODS_AT_ONCE: usize = 30;
const CONTAINERS: usize = 200;

/// Set in the namespaces; holds the folder.
const INSIDE: &str = "KNARR_BENCH_INSIDE";

/// Runs the chore: `[NAME…] [--knarr PATH] [--json FILE]`.
pub(crate) fn run(args: &[String]) -> Result<(), String> {
    let (names, wanted) =
        (names(args), |name: &str| BENCHMARKS.iter().any(|known| known.0 == name));
    if let Some(unknown) = names.iter().find(|name| !wanted(name)) {
        let known = BENCHMARKS.iter().map(|(name, about, _)| format!("\n  {name:<12} {about}"));
        return Err(format!("no benchmark {unknown}; there are:{}", known.collect::<String>()));
    }
    let ran = match std::env::var_os(INSIDE) {
        Some(dir) => measure(args, &names, PathBuf::from(dir)),
        None => alone(&names),
    };
    ran.map_err(|error| error.to_string())
}

/// The arguments that are neither flags nor their values.
fn names(args: &[String]) -> Vec<&str> {
    let is_flag = |at: usize| args[at].starts_with("--");
    let free = |at: &usize| !is_flag(*at) && (*at == 0 || !is_flag(at - 1));
    (0..args.len()).filter(free).map(|at| args[at].as_str()).collect()
}

/// Runs this program again in new namespaces, in a folder that is removed afterwards.
fn alone(names: &[&str]) -> Outcome<()> {
    if names.is_empty() || names.contains(&"container") {
        build_example("knarr-sandbox", "bench")?;
    }
    if names.is_empty() || names.contains(&"proxy") {
        build_example("knarr-proxy", "load")?;
    }
    if names.is_empty() || names.contains(&"etcd") {
        build_example("knarr-etcd", "workloads")?;
        build_example("knarr-store", "slow_disk")?;
    }
    if names.is_empty() || names.contains(&"dns") {
        build_example("knarr-dns", "questions")?;
    }
    // Not in /tmp, which may be memory: syncing to the disk is part of what is measured.
    let dir = Path::new("/var/tmp").join(format!("knarr-bench-{}", std::process::id()));
    fs::create_dir_all(&dir)?;
    let status = Command::new("unshare")
        .args(["--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--mount-proc"])
        .args(["--kill-child", "sh", "-c", r#"ip link set lo up; "$0" "$@"; exit $?"#])
        .arg(std::env::current_exe()?)
        .args(std::env::args().skip(1))
        .env(INSIDE, &dir)
        .status();
    fs::remove_dir_all(&dir)?;
    status?.success().then_some(()).ok_or("a benchmark failed (they need root)".into())
}

fn measure(args: &[String], names: &[&str], dir: PathBuf) -> Outcome<()> {
    let knarr = fs::canonicalize(crate::flag(args, "--knarr").map_or_else(|_| built(), Into::into))
        .map_err(|error| format!("no binary ({error}); run `cargo build --release`"))?;
    let site = Site { knarr, dir };
    let mut all = Vec::new();
    println!("{HEAD}");
    for (name, _, benchmark) in BENCHMARKS {
        if names.is_empty() || names.contains(name) {
            let rows = benchmark(&site).map_err(|error| format!("{name}: {error}"))?;
            rows.iter().for_each(|row| println!("{}", row.line()));
            all.extend(rows);
        }
    }
    if let Ok(file) = crate::flag(args, "--json") {
        let rows: Vec<Value> = all.iter().map(Row::json).collect();
        fs::write(file, serde_json::to_vec_pretty(&rows)?)?;
    }
    Ok(())
}

/// The release binary of this workspace, the static one if it was built.
fn built() -> PathBuf {
    let target = root().join("target");
    let fixed = target.join("x86_64-unknown-linux-gnu/release/knarr");
    if fixed.exists() { fixed } else { target.join("release/knarr") }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the root")
}

const HEAD: &str = "\
| benchmark | unit | min | median | p90 | max | target | |
| --- | --- | --: | --: | --: | --: | --: | --- |";

/// A line of the table. A program that tells only some of its figures leaves the others empty.
struct Row {
    name: String,
    unit: &'static str,
    min: Option<f64>,
    median: f64,
    p90: f64,
    max: Option<f64>,
    /// What the median may be at most.
    target: Option<f64>,
}

impl Row {
    fn new(name: impl Into<String>, unit: &'static str, mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        let at = |percent: usize| samples[(samples.len() - 1) * percent / 100];
        let (min, max) = (Some(at(0)), Some(at(100)));
        let name = name.into();
        Self { name, unit, min, median: at(50), p90: at(90), max, target: None }
    }

    fn at_most(self, target: f64) -> Self {
        Self { target: Some(target), ..self }
    }

    fn verdict(&self) -> &'static str {
        match self.target {
            Some(target) if self.median > target => "over",
            Some(_) => "ok",
            None => "",
        }
    }

    fn line(&self) -> String {
        let places = if self.unit == "ratio" { 2 } else { 1 };
        let show =
            |figure: Option<f64>| figure.map(|it| format!("{it:.places$}")).unwrap_or_default();
        let figures = [self.min, Some(self.median), Some(self.p90), self.max].map(show).join(" | ");
        let target = match self.unit {
            "ratio" => show(self.target),
            _ => self.target.map(|target| format!("{target}")).unwrap_or_default(),
        };
        format!("| {} | {} | {figures} | {target} | {} |", self.name, self.unit, self.verdict())
    }

    fn json(&self) -> Value {
        json!({
            "benchmark": self.name, "unit": self.unit, "min": self.min, "median": self.median,
            "p90": self.p90, "max": self.max, "target": self.target, "verdict": self.verdict(),
        })
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn start(site: &Site) -> Outcome<Vec<Row>> {
    let (mut fresh, mut again) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let mut cluster = site.up()?;
        fresh.push(ms(cluster.ready));
        cluster.restart()?;
        again.push(ms(cluster.ready));
    }
    Ok(vec![
        Row::new("start to Ready", "ms", fresh).at_most(500.0),
        Row::new("start to Ready, state of a run before", "ms", again).at_most(500.0),
    ])
}

fn first_pod(site: &Site) -> Outcome<Vec<Row>> {
    let mut times = Vec::new();
    for _ in 0..RUNS {
        site.import()?;
        let cluster = site.up()?;
        let mut pods = cluster.pods()?;
        pods.create("first")?;
        pods.running("first")?;
        times.push(ms(cluster.started.elapsed()));
    }
    Ok(vec![Row::new("start to first Pod Running", "ms", times).at_most(1000.0)])
}

/// Five looks at a cluster, a second apart, after it had time to come to rest.
fn memory(site: &Site) -> Outcome<Vec<Row>> {
    let look = |cluster: &cluster::Cluster<'_>| -> Outcome<(Vec<f64>, Vec<f64>)> {
        std::thread::sleep(Duration::from_secs(4));
        let looks = (0..5).map(|_| {
            std::thread::sleep(Duration::from_secs(1));
            cluster.memory()
        });
        Ok(looks.collect::<Outcome<Vec<_>>>()?.into_iter().unzip())
    };
    site.import()?;
    let cluster = site.up()?;
    let (idle, idle_anonymous) = look(&cluster)?;
    let mut pods = cluster.pods()?;
    (0..PODS_AT_ONCE).try_for_each(|n| pods.create(&format!("pod-{n}")))?;
    pods.all_running(PODS_AT_ONCE)?;
    let (busy, busy_anonymous) = look(&cluster)?;
    Ok(vec![
        Row::new("memory, idle", "MB", idle).at_most(50.0),
        Row::new("memory, idle, without pages of files", "MB", idle_anonymous),
        Row::new("memory, 30 Pods", "MB", busy),
        Row::new("memory, 30 Pods, without pages of files", "MB", busy_anonymous),
    ])
}

fn pod_latency(site: &Site) -> Outcome<Vec<Row>> {
    site.import()?;
    let cluster = site.up()?;
    let mut pods = cluster.pods()?;
    let (mut times, mut ends, mut rates) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..PODS_ONE_BY_ONE {
        let name = format!("one-{n}");
        let before = Instant::now();
        pods.create(&name)?;
        pods.running(&name)?;
        times.push(ms(before.elapsed()));
        let before = Instant::now();
        pods.delete(&name)?;
        ends.push(ms(before.elapsed()));
    }
    for round in 0..3 {
        let name = |n: usize| format!("round-{round}-{n}");
        let before = Instant::now();
        (0..PODS_AT_ONCE).try_for_each(|n| pods.create(&name(n)))?;
        pods.all_running(PODS_AT_ONCE)?;
        rates.push(PODS_AT_ONCE as f64 / before.elapsed().as_secs_f64());
        pods.delete_all(PODS_AT_ONCE)?;
    }
    Ok(vec![
        Row::new("Pod creation to Running", "ms", times).at_most(100.0),
        Row::new("Pod deletion to gone", "ms", ends),
        Row::new("30 Pods at once", "Pods/s", rates),
    ])
}

fn build_example(package: &str, name: &str) -> Outcome<()> {
    let mut command = Command::new("cargo");
    command.args(["build", "--quiet", "--release", "-p", package, "--example", name]);
    let status = command.current_dir(root()).status()?;
    status.success().then_some(()).ok_or("cargo build failed".into())
}

/// The sandbox crate's own example, with the shim of the binary under measurement.
fn container(site: &Site) -> Outcome<Vec<Row>> {
    let (shim, program) = (site.dir.join("shim"), site.dir.join("true"));
    let knarr = site.knarr.display();
    fs::write(&shim, format!("#!/bin/sh\nexec '{knarr}' pod-shim \"$@\"\n"))?;
    fs::set_permissions(&shim, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let source = site.dir.join("true.c");
    fs::write(&source, "int main(void) { return 0; }\n")?;
    let built = Command::new("cc").arg("-static").arg("-o").args([&program, &source]).status()?;
    built.success().then_some(()).ok_or("cc cannot make a static program")?;
    let mut bench = Command::new(root().join("target/release/examples/bench"));
    let output = bench.args([&shim, &program]).arg(CONTAINERS.to_string()).output()?;
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    let row = |name: &str, word: &str| -> Outcome<Row> {
        let (median, p90) = percentiles(&text, word).ok_or(format!("no figures: {text}"))?;
        Ok(Row { name: name.into(), unit: "ms", min: None, median, p90, max: None, target: None })
    };
    let ours = row("container's life, knarr", "knarr")?;
    let crun = row("container's life, crun run", "crun")?;
    Ok(vec![ours.at_most(crun.median), crun])
}

/// The proxy crate's own example, in the namespaces that all benchmarks are in.
fn proxy(_: &Site) -> Outcome<Vec<Row>> {
    let mut load = Command::new(root().join("target/release/examples/load"));
    let output = load.arg(RUNS.to_string()).output()?;
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    let rows = [
        ("rules of 1,000 Services", "load-1000", "ms", None),
        ("rules of 10,000 Services", "load-10000", "ms", Some(200.0)),
        ("a change among 1,000", "change-1000", "µs", None),
        ("a change among 10,000", "change-10000", "µs", Some(2000.0)),
        ("the same 1,000, nft -f", "nft-1000", "ms", None),
        ("the same 10,000, nft -f", "nft-10000", "ms", None),
    ];
    let row = |(name, word, unit, target): (&str, _, _, _)| -> Outcome<Row> {
        let (median, p90) = percentiles(&text, word).ok_or(format!("no figures: {text}"))?;
        let factor = if unit == "µs" { 1e3 } else { 1.0 };
        let (median, p90) = (median * factor, p90 * factor);
        Ok(Row { name: name.into(), unit, min: None, median, p90, max: None, target })
    };
    rows.into_iter().map(row).collect()
}

/// The DNS crate's own example.
fn dns(_: &Site) -> Outcome<Vec<Row>> {
    let output =
        Command::new(root().join("target/release/examples/questions")).arg("5").output()?;
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    let rate = |word: &str| -> Outcome<f64> {
        let line = text.lines().find(|line| line.starts_with(word));
        let figure = line.and_then(|line| line.split(" rate ").nth(1));
        Ok(figure.ok_or(format!("no figures: {text}"))?.trim().parse()?)
    };
    let row = |name: &str, unit, median, p90| Row {
        name: name.into(),
        unit,
        min: None,
        median,
        p90,
        max: None,
        target: None,
    };
    let mut rows = Vec::new();
    for (word, rates, waits) in [
        ("knarr", "DNS questions, knarr", "wait for DNS, knarr"),
        ("unbound", "DNS questions, unbound", "wait for DNS, unbound"),
    ] {
        let rate = rate(word)? / 1e3;
        rows.push(row(rates, "k/s", rate, rate));
        let (p50, p90) = percentiles(&text, word).ok_or(format!("no figures: {text}"))?;
        rows.push(row(waits, "µs", p50 * 1e3, p90 * 1e3));
    }
    Ok(rows)
}

/// Median and p90 in milliseconds from a line like `crun: p50 5.3ms p90 812.5µs p99 1.2s of 200`.
fn percentiles(text: &str, name: &str) -> Option<(f64, f64)> {
    let line = text.lines().find(|line| line.starts_with(&format!("{name}: p50")))?;
    let after = |word: &str| {
        let figure = line.split(' ').skip_while(|it| *it != word).nth(1)?;
        let (number, unit) = figure.split_at(figure.find(|c: char| c.is_alphabetic())?);
        let factor = match unit {
            "ns" => 1e-6,
            "µs" => 1e-3,
            "ms" => 1.0,
            "s" => 1e3,
            _ => return None,
        };
        Some(number.parse::<f64>().ok()? * factor)
    };
    Some((after("p50")?, after("p90")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_no_flag_takes() {
        let args = ["start", "--json", "file", "memory"].map(str::to_owned);
        assert_eq!(names(&args), ["start", "memory"]);
    }

    #[test]
    fn a_row_tells_order_statistics_and_whether_the_median_is_over() {
        let samples = (1..=11).rev().map(f64::from).collect();
        let row = Row::new("it", "ms", samples).at_most(5.0);
        assert_eq!(row.line(), "| it | ms | 1.0 | 6.0 | 10.0 | 11.0 | 5 | over |");
        assert_eq!(row.at_most(6.0).verdict(), "ok");
    }

    #[test]
    fn figures_of_the_example_are_read_in_any_unit() {
        let text =
            "sandbox: 9ms\ncrun: p50 5.5ms p90 1.5s p99 2s of 9\nknarr: p50 500µs p90 7ns p99";
        assert_eq!(percentiles(text, "crun"), Some((5.5, 1500.0)));
        assert_eq!(percentiles(text, "knarr").map(|it| it.0), Some(0.5));
        assert_eq!(percentiles(text, "runc"), None);
    }

    #[test]
    fn memory_is_counted_in_megabytes() {
        let rollup = "head\nRss:  9 kB\nPss:   1000 kB\nPss_Anon:  500 kB\n";
        assert_eq!(cluster::megabytes(rollup, "Pss:").ok(), Some(1.024));
        assert_eq!(cluster::megabytes(rollup, "Pss_Anon:").ok(), Some(0.512));
        assert!(cluster::megabytes("", "Pss:").is_err());
    }
}
