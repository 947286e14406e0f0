//! `knarr etcd` as those who run an etcd meet it: flags, manifests, logs, health, metrics.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::{Duration, Instant};

use knarr_e2e::{Etcd, Machine, Outcome, PATIENCE, Running, alone};
use knarr_pki::{Authority, Identity, Usage};
use serde_json::Value;

const URL: &str = "http://127.0.0.1:2379";

fn serve(machine: &Machine, flags: &str) -> Running {
    let running = machine.start(&format!("etcd {flags}"));
    running.line("that it serves", |line| line.starts_with("Ready"));
    running
}

fn etcdctl(line: &str) -> Outcome {
    Outcome::of(Command::new("etcdctl").env("ETCDCTL_API", "3").args(line.split_whitespace()))
}

/// The code and the body of a page.
fn page(url: &str) -> (u16, String) {
    let mut command = Command::new("curl");
    let out = Outcome::of(command.args(["-s", "-m", "5", "-w", "\n%{http_code}", url])).out;
    let (body, code) = out.rsplit_once('\n').unwrap();
    (code.parse().unwrap(), body.to_owned())
}

/// The flags in etcd's help, each with its default.
fn flags_in_help() -> Vec<String> {
    let help = Outcome::of(Command::new("etcd").arg("--help"));
    let lines = help.out.lines().chain(help.err.lines());
    let flag = |line: &str| {
        let line = line.strip_prefix("  --")?;
        let (name, default) = line.split_once(' ').unwrap_or((line, ""));
        (!matches!(name, "version" | "config-file" | "data-dir")).then(|| {
            let default = default.trim_matches('\'').replace("math.MaxUint32", "4294967295");
            format!("--{name}={default}")
        })
    };
    lines.filter_map(flag).collect()
}

#[test]
fn every_flag_of_etcd_is_taken() {
    alone(|machine| {
        let known = flags_in_help();
        assert!(known.len() > 70, "{known:?}");
        let newer = include_str!("etcdctl/flags.txt").lines().filter(|line| line.starts_with("--"));
        let mut command = machine.command("etcd @data");
        command.args(known.iter().map(String::as_str).chain(newer));
        let running = Running::start("etcd", &mut command);
        running.line("that it serves", |line| line.starts_with("Ready"));
        let told = running.output();
        let told = |what: &str| told.lines().filter(|line| line.contains(what)).count();
        assert_eq!(told("--heartbeat-interval=100 changes nothing: a group of one"), 1);
        assert_eq!(told("changes nothing: \""), 0);
        assert!(told("changes nothing") > 60);
    });
}

#[test]
fn what_would_be_dangerous_to_ignore_is_refused() {
    alone(|machine| {
        for (flags, why) in [
            ("--initial-cluster a=http://h:1,b=http://h:2", "group of one"),
            ("--initial-cluster other=http://h:1", "does not name"),
            ("--force-new-cluster", "knarr store restore"),
            ("--discovery http://h", "group of one"),
            ("--proxy on", "no proxy"),
            ("--client-crl-file /x", "revoked"),
            ("--client-cert-allowed-hostname h", "would be let in"),
            ("--host-whitelist h", "would be let in"),
            ("--tls-min-version TLS1.3", "TLS 1.2 is spoken too"),
            ("--snapshot-count many", "no whole number"),
            ("--pre-vote=perhaps", "neither true nor false"),
            ("--raft-read-timeout 5", "no duration"),
            ("--initial-cluster-state old", "new, existing"),
            ("--listen-metrics-urls https://127.0.0.1:2381", "needs a certificate"),
            ("--unknown", "unexpected argument"),
        ] {
            let refused = machine.knarr(&format!("etcd @data {flags}")).failure();
            assert!(refused.contains(why), "{flags}: {refused}");
        }
        fs::create_dir_all(machine.path("theirs/member/snap")).unwrap();
        fs::write(machine.path("theirs/member/snap/db"), "").unwrap();
        let refused = machine.knarr("etcd --data-dir @theirs").failure();
        assert!(refused.contains("has the data of an etcd"), "{refused}");
        let version = machine.knarr("etcd --version").success();
        assert!(version.starts_with("etcd Version: 3."), "{version}");
    });
}

/// What a server says to one who begins to speak HTTP/2 and is silent then, until it ends that.
fn told_in_silence() -> Vec<u8> {
    let mut stream = TcpStream::connect("127.0.0.1:2379").unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    let mut told = Vec::new();
    stream.read_to_end(&mut told).unwrap();
    told
}

#[test]
fn what_flags_say_of_connections_holds() {
    alone(|machine| {
        let times = "--grpc-keepalive-interval 1s --grpc-keepalive-timeout 1s";
        let limits = "--max-concurrent-streams 7 --enable-grpc-gateway=false";
        let _knarr = serve(machine, &format!("@data {times} {limits}"));
        let begun = Instant::now();
        let told = told_in_silence();
        assert!(begun.elapsed() >= Duration::from_secs(2));
        let (ping, limit) = (&[0, 0, 8, 6, 0][..], &[0, 3, 0, 0, 0, 7][..]);
        for part in [ping, limit] {
            assert!(told.windows(part.len()).any(|said| said == part), "{part:?} in {told:?}");
        }
        assert_eq!(page(&format!("{URL}/v3/kv/range")).0, 404);
    });
}

#[test]
fn the_static_pod_of_kubeadm_runs() {
    alone(|machine| {
        let pki = machine.path("pki");
        let authority = Authority::load_or_create(&pki).unwrap();
        let identity = Identity {
            name: "node-1".to_owned(),
            addresses: vec![[127, 0, 0, 1].into(), [198, 51, 100, 10].into()],
            ..Identity::default()
        };
        authority.issue_to(&pki, "server", &identity, Usage::Server).unwrap();
        authority.issue_to(&pki, "client", &identity, Usage::Client).unwrap();
        let at = |name: &str| machine.path(name).display().to_string();
        let manifest = include_str!("manifests/kubeadm-etcd.yaml")
            .replace("/etc/kubernetes/pki/etcd", &at("pki"))
            .replace("/var/lib/etcd", &at("data"));
        let pod: Value = serde_saphyr::from_str(&manifest).unwrap();
        let container = &pod["spec"]["containers"][0];
        let words: Vec<&str> =
            container["command"].as_array().unwrap().iter().map(|w| w.as_str().unwrap()).collect();
        symlink(machine.command("").get_program(), machine.path(words[0])).unwrap();
        let mut command = Command::new(machine.path(words[0]));
        let running = Running::start("etcd", command.args(&words[1..]));
        running.line("that it serves", |line| line.starts_with("Ready"));
        for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
            let get = &container[probe]["httpGet"];
            let url = format!("http://127.0.0.1:{}{}", get["port"], get["path"].as_str().unwrap());
            assert_eq!(page(&url), (200, "ok\n".to_owned()), "{probe}");
        }
        let tls = ["--cacert", "ca.crt", "--cert", "client.crt", "--key", "client.key"];
        let mut secured = Command::new("etcdctl");
        secured.current_dir(&pki).env("ETCDCTL_API", "3").args(tls);
        secured.args(["--endpoints", "https://198.51.100.10:2379", "put", "a", "1"]);
        Outcome::of(&mut secured).success();
        // What is shown to everybody is the pages, and never a key.
        assert!(page("http://127.0.0.1:2381/metrics").1.contains("\netcd_server_has_leader 1\n"));
        assert_eq!(page("http://127.0.0.1:2381/health").0, 200);
        assert_eq!(page("http://127.0.0.1:2381/v3/kv/range").0, 404);
        assert_eq!(page("http://127.0.0.1:2381/version").0, 404);
        let plain = etcdctl("--endpoints 127.0.0.1:2381 --command-timeout 1s get a");
        assert!(!plain.status.success());
    });
}

#[test]
fn variables_a_file_and_logs_are_as_with_etcd() {
    alone(|machine| {
        let (log, data) = (machine.path("log"), machine.path("named"));
        let mut command = machine.command("etcd");
        command.env("ETCD_NAME", "by-variable").env("ETCD_DATA_DIR", &data);
        command.env("ETCD_LOG_OUTPUTS", format!("stderr,{}", log.display()));
        command.env("ETCD_LOG_FORMAT", "json").env("ETCD_NONSENSE", "1");
        let running = Running::start("etcd", &mut command);
        running.line("that it serves", |line| line.starts_with("Ready"));
        assert!(etcdctl("member list").success().contains("by-variable"));
        let lines = fs::read_to_string(&log).unwrap();
        assert!(lines.contains("ETCD_NONSENSE is no variable of etcd's"), "{lines}");
        lines.lines().for_each(|line| drop(serde_json::from_str::<Value>(line).unwrap()));
        assert!(running.output().contains("ETCD_NONSENSE"));
        drop(running);

        let file = machine.path("etcd.yaml");
        let text = format!(
            "name: by-file\ndata-dir: {}\nlog-level: error\nlisten-client-urls: {URL}\n\
             log-outputs: [stdout]\ngrpc-keepalive-min-time: 5000000000\nmax-txn-ops: 2\n",
            data.display()
        );
        fs::write(&file, text).unwrap();
        let mut command = machine.command("etcd --config-file @etcd.yaml --name by-flag");
        let running = Running::start("etcd", command.env("ETCD_NAME", "by-variable"));
        running.line("that it serves", |line| line.starts_with("Ready"));
        assert_eq!(running.output().lines().count(), 1, "{}", running.output());
        assert!(etcdctl("member list").success().contains("by-file"));
    });
}

/// Metrics of a page: by name their kind and the names of their labels.
fn metrics(page: &str) -> BTreeMap<String, (String, BTreeSet<String>)> {
    let mut metrics: BTreeMap<String, (String, BTreeSet<String>)> = BTreeMap::new();
    for line in page.lines() {
        if let Some(family) = line.strip_prefix("# TYPE ") {
            let (name, kind) = family.split_once(' ').unwrap();
            metrics.entry(name.to_owned()).or_default().0 = kind.to_owned();
        } else if let Some((row, labels)) = line.split_once('{') {
            let family = row.strip_suffix("_bucket").unwrap_or(row);
            let labels = labels.split('}').next().unwrap().split(',');
            let names = labels.map(|label| label.split('=').next().unwrap().to_owned());
            metrics.entry(family.to_owned()).or_default().1.extend(names);
        }
    }
    metrics
}

/// What the documentation says is not there, with `*` for the rest of a name.
fn said_to_be_missing(name: &str) -> bool {
    let text = include_str!("../../docs/etcd.md");
    let table = text.split("| not there | because |").nth(1).unwrap().split("\n\n").next().unwrap();
    let first = table.lines().filter_map(|row| row.split('|').nth(1));
    let mut names = first.flat_map(|cell| cell.split('`').skip(1).step_by(2));
    names.any(|said| match said.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => said == name,
    })
}

/// What the alerts and dashboards of etcd's own mixin read.
const MIXIN: &[&str] = &[
    "etcd_disk_backend_commit_duration_seconds",
    "etcd_disk_wal_fsync_duration_seconds",
    "etcd_mvcc_db_total_size_in_bytes",
    "etcd_mvcc_db_total_size_in_use_in_bytes",
    "etcd_network_client_grpc_received_bytes_total",
    "etcd_network_client_grpc_sent_bytes_total",
    "etcd_network_peer_received_bytes_total",
    "etcd_network_peer_round_trip_time_seconds",
    "etcd_network_peer_sent_bytes_total",
    "etcd_network_peer_sent_failures_total",
    "etcd_server_has_leader",
    "etcd_server_leader_changes_seen_total",
    "etcd_server_proposals_applied_total",
    "etcd_server_proposals_committed_total",
    "etcd_server_proposals_failed_total",
    "etcd_server_proposals_pending",
    "etcd_server_quota_backend_bytes",
    "grpc_server_handled_total",
    "grpc_server_handling_seconds",
    "grpc_server_started_total",
    "process_resident_memory_bytes",
];

#[test]
fn metrics_have_the_names_kinds_and_labels_of_etcds() {
    alone(|machine| {
        let use_it = || {
            etcdctl("put a 1").success();
            etcdctl("get a").success();
            etcdctl("lease grant 100").success();
            assert!(!etcdctl("compact 99").status.success());
            page(&format!("{URL}/metrics")).1
        };
        let etcd = Etcd::start(machine, 1, "http", "--metrics extensive");
        let their_text = use_it();
        drop(etcd);
        let _knarr = serve(machine, "@data --metrics extensive");
        let text = use_it();
        let (theirs, ours) = (metrics(&their_text), metrics(&text));
        for (name, metric) in &theirs {
            match said_to_be_missing(name) {
                true => assert_eq!(ours.get(name), None, "{name} is there"),
                false => assert_eq!(ours.get(name), Some(metric), "{name}"),
            }
        }
        for name in MIXIN {
            assert!(ours.contains_key(*name) != said_to_be_missing(name), "{name}");
        }
        let value_in = |text: &str, row: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(row)).expect(row);
            line.trim().parse::<f64>().unwrap()
        };
        let value = |row: &str| value_in(&text, row);
        for row in ["etcd_network_client_grpc_received_bytes_total ", "etcd_mvcc_put_total "] {
            assert_eq!(value(row), value_in(&their_text, row), "{row}");
        }
        for (row, least, most) in [
            ("etcd_mvcc_put_total ", 1.0, 1.0),
            ("etcd_debugging_lease_granted_total ", 1.0, 1.0),
            ("etcd_disk_wal_fsync_duration_seconds_count ", 2.0, 9.0),
            ("etcd_disk_wal_fsync_duration_seconds_bucket{le=\"+Inf\"} ", 2.0, 9.0),
            ("etcd_disk_wal_fsync_duration_seconds_sum ", 1e-9, 60.0),
            // How long an answer is depends on the random numbers of cluster and member in it.
            ("etcd_network_client_grpc_sent_bytes_total ", 60.0, 200.0),
            ("process_open_fds ", 5.0, 1000.0),
            ("process_start_time_seconds ", 1.7e9, 1e11),
            ("process_cpu_seconds_total ", 0.0, 60.0),
        ] {
            let value = value(row);
            assert!((least..=most).contains(&value), "{row}{value}");
        }
        for method in ["KV\",grpc_method=\"Put", "Lease\",grpc_method=\"LeaseGrant"] {
            let labels = format!("grpc_service=\"etcdserverpb.{method}\",grpc_type=\"unary\"");
            for way in ["received", "sent"] {
                assert_eq!(value(&format!("grpc_server_msg_{way}_total{{{labels}}} ")), 1.0);
            }
            assert_eq!(value(&format!("grpc_server_handling_seconds_count{{{labels}}} ")), 1.0);
        }
    });
}
