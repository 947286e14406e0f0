//! `knarr etcd` as etcd's own tools see it: everything that Debian's etcdctl and curl can ask is
//! asked of Debian's etcd too, and the answers are compared.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::fs;
use std::process::{Command, Stdio};
use std::time::Instant;

use knarr_e2e::{Machine, Outcome, PATIENCE, Running, alone};
use knarr_pki::{Authority, Identity, Usage};
use rustix::process::Signal;
use serde_json::Value;

const URL: &str = "http://127.0.0.1:2379";
const URL_TLS: &str = "https://127.0.0.1:2379";

/// One of the two that have to be the same.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    Etcd,
    Knarr,
}

fn serve(machine: &Machine, which: Which, name: &str, flags: &str) -> Running {
    let line = format!(
        "--data-dir @{name} --listen-client-urls {URL} --advertise-client-urls {URL} \
         --max-txn-ops 16 --bcrypt-cost 4 {flags}"
    );
    match which {
        Which::Knarr => {
            let running = machine.start(&format!("etcd {line}"));
            running.line("that it serves", |line| line.starts_with("Ready"));
            running
        }
        Which::Etcd => {
            let mut command = Command::new("etcd");
            let at = machine.path("").display().to_string();
            command.args(line.split_whitespace().map(|word| word.replace('@', &at)));
            command.args(["--listen-peer-urls", "http://127.0.0.1:2380"]);
            let running = Running::start("etcd", &mut command);
            running.line("that it serves", |line| line.contains("ready to serve"));
            running
        }
    }
}

fn etcdctl(words: &[&str], input: &str) -> Outcome {
    let stdin = tempfile::NamedTempFile::new().unwrap();
    fs::write(stdin.path(), input).unwrap();
    let mut command = Command::new("timeout");
    command.args(["20", "etcdctl"]).args(words).env("ETCDCTL_API", "3");
    command.stdin(fs::File::open(stdin.path()).unwrap());
    Outcome::of(&mut command)
}

/// The words of a line; `''` is the empty one, and `\x` stands for a zero byte.
fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().map(|word| if word == "''" { "" } else { word }).collect()
}

/// What one line of a script gives: standard output, and errors without what only logs say.
fn answer(line: &str) -> String {
    if let Some(rest) = line.strip_prefix("curl ") {
        return curl(rest);
    }
    let (line, input) = line.split_once(" <<< ").unwrap_or((line, ""));
    let outcome = etcdctl(&words(line), &input.replace("\\n", "\n"));
    let errors: String =
        outcome.err.lines().filter(|line| !line.starts_with('{')).collect::<Vec<_>>().join("\n");
    format!("{}{errors}", outcome.out)
}

/// `PATH BODY`: the answer's code and body.
fn curl(rest: &str) -> String {
    let (path, body) = rest.split_once(' ').unwrap();
    let mut command = Command::new("curl");
    command.args(["-s", "-m", "2", "-w", "\n%{http_code}", "-d", body]);
    command.arg(format!("{URL}{path}"));
    Outcome::of(&mut command).out
}

/// What differs between any two servers is replaced: identities, terms, sizes and times, and lease
/// IDs by the order in which they appear.
fn plain(text: &str, leases: &mut Vec<String>) -> String {
    let mut json = |line: &str| match serde_json::from_str::<Value>(line) {
        // The gateway of later versions answers 400 where that of 3.4 did 412.
        Ok(value) if value == 412 => "400".to_owned(),
        Ok(mut value) => {
            blank(&mut value, leases);
            value.to_string()
        }
        Err(_) => line.to_owned(),
    };
    // Of binary answers the end, which is the last key and value; the head says who answers.
    let text = text.rsplit('\u{12}').next().unwrap_or_default();
    let hidden = [
        "\"ClusterID\"",
        "\"MemberID\"",
        "\"RaftTerm\"",
        "\"ID\"",
        "\"Leader\"",
        "\"Version\" : \"",
        "\"DBSize\"",
        "\"RaftIndex\"",
        "\"RaftAppliedIndex\"",
        "+-", // a table is as wide as what is in it
    ];
    let lines = text.lines().filter(|line| !hidden.iter().any(|name| line.starts_with(name)));
    let text = lines.map(&mut json).collect::<Vec<_>>().join("\n");
    let text = text.split(" took = ").next().unwrap_or_default().to_owned();
    let mut word = |word: &str| {
        let lease = word.trim_matches(|c: char| !c.is_ascii_hexdigit());
        if lease.len() == 16 && lease.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return word.replace(lease, &numbered(lease, leases));
        }
        if word.starts_with("remaining(") { "remaining".to_owned() } else { word.to_owned() }
    };
    let line = |line: &str| line.split_whitespace().map(&mut word).collect::<Vec<_>>().join(" ");
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

fn numbered(lease: &str, leases: &mut Vec<String>) -> String {
    let at = leases.iter().position(|known| known == lease).unwrap_or_else(|| {
        leases.push(lease.to_owned());
        leases.len() - 1
    });
    format!("LEASE-{at}")
}

fn blank(value: &mut Value, leases: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match name.as_str() {
                    "cluster_id" | "member_id" | "raft_term" | "version" if value.is_string() => {
                        *value = Value::Null;
                    }
                    "cluster_id" | "member_id" | "raft_term" | "token" | "leader" | "raftTerm"
                    | "raftIndex" | "raftAppliedIndex" | "dbSize" | "dbSizeInUse" | "took" => {
                        *value = Value::Null;
                    }
                    // What the store chose itself is large; what a client chose is told as it is.
                    "ID" | "id" | "lease" => {
                        let number = value.to_string();
                        let number = number.trim_matches('"');
                        if number.parse::<i64>().is_ok_and(|id| id > 0 && id != 7 && id != 77) {
                            *value = numbered(number, leases).into();
                        }
                    }
                    _ => blank(value, leases),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| blank(value, leases)),
        _ => {}
    }
}

/// Plays a script on both; every answer must be the same.
fn compare(machine: &Machine, script: &str, flags: &str) {
    let play = |which: Which, name: &str| {
        let mut running = serve(machine, which, name, flags);
        let member: Value = serde_json::from_str(&must("member list -w json")).unwrap();
        let member = member["members"][0]["ID"].as_u64().unwrap();
        let hidden = |text: String| {
            text.replace(&format!("{member:x}"), "MEMBER").replace(&member.to_string(), "0")
        };
        let mut leases = Vec::new();
        let lines = script.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let answers: Vec<(String, String)> = lines
            .map(|line| (line.to_owned(), plain(&hidden(answer(line)), &mut leases)))
            .collect();
        running.end(Signal::TERM);
        answers
    };
    let theirs = play(Which::Etcd, "theirs");
    let ours = play(Which::Knarr, "ours");
    let differing: Vec<String> = theirs
        .iter()
        .zip(&ours)
        .filter(|(theirs, ours)| theirs != ours)
        .map(|((line, theirs), (_, ours))| format!("> {line}\netcd:\n{theirs}\nknarr:\n{ours}\n"))
        .collect();
    assert!(differing.is_empty(), "{} answers differ:\n{}", differing.len(), differing.join("\n"));
}

#[test]
fn keys_and_transactions_are_as_with_etcd() {
    alone(|machine| compare(machine, include_str!("etcdctl/keys.txt"), ""));
}

#[test]
fn leases_are_as_with_etcd() {
    alone(|machine| compare(machine, include_str!("etcdctl/leases.txt"), ""));
}

#[test]
fn users_and_roles_are_as_with_etcd() {
    alone(|machine| compare(machine, include_str!("etcdctl/auth.txt"), ""));
}

#[test]
fn the_rest_of_etcdctl_is_as_with_etcd() {
    alone(|machine| compare(machine, include_str!("etcdctl/rest.txt"), ""));
}

#[test]
fn curl_gets_the_same_json() {
    alone(|machine| compare(machine, include_str!("etcdctl/curl.txt"), ""));
}

/// Starts an etcdctl that goes on by itself.
fn follow(line: &str) -> Running {
    let mut command = Command::new("etcdctl");
    command.args(words(line)).env("ETCDCTL_API", "3").stdin(Stdio::null());
    Running::start(line, &mut command)
}

#[track_caller]
fn must(line: &str) -> String {
    etcdctl(&words(line), "").success()
}

#[test]
fn watches_tell_everything_in_order() {
    alone(|machine| {
        let mut told = Vec::new();
        for (which, name) in [(Which::Etcd, "theirs"), (Which::Knarr, "ours")] {
            let mut running = serve(machine, which, name, "");
            must("put a 1");
            must("put b 1");
            must("put a 2");
            must("del a");
            let old = follow("watch a --rev 2 --prev-kv");
            let all = follow("watch '' --prefix --rev 3");
            old.line("the last of the past", |line| line == "DELETE");
            must("put a 3");
            etcdctl(&["txn"], "\nput a 4\nput c 1\n\n\n").success();
            must("put end 1");
            old.line("what came later", |line| line == "4");
            all.line("what came later", |line| line == "end");
            // It leaves once it has read everything, whether that is answered or not.
            let mut asks = Command::new("sh");
            asks.args(["-c", "(printf 'watch a\nprogress\n'; sleep 30) | etcdctl watch -i"]);
            let asks = Running::start("watch -i", asks.env("ETCDCTL_API", "3"));
            asks.line("how far it has come", |line| line == "progress notify: 8");
            must("compact 7");
            let gone = etcdctl(&words("watch a --rev 3"), "");
            told.push((old.output(), all.output(), gone.out, gone.err.contains("compacted")));
            drop((old, all));
            running.end(Signal::TERM);
        }
        assert_eq!(told[0], told[1]);
        assert!(told[0].3, "{told:?}");
    });
}

#[test]
fn a_lease_is_kept_alive_for_as_long_as_somebody_asks() {
    alone(|machine| {
        let _knarr = serve(machine, Which::Knarr, "ours", "");
        let lease = must("lease grant 2");
        let lease = lease.split_whitespace().nth(1).unwrap();
        must(&format!("put a 1 --lease {lease}"));
        let mut kept = follow(&format!("lease keep-alive {lease}"));
        // A third of its life passes between two.
        for _ in 0..5 {
            kept.line("that it is kept", |line| line.contains("keepalived with TTL(2)"));
        }
        assert_eq!(must("get a --print-value-only"), "1\n");
        let watch = follow("watch a");
        kept.end(Signal::INT);
        watch.line("its end", |line| line == "DELETE");
        assert!(must("get a").is_empty());
        let once = etcdctl(&["lease", "keep-alive", "--once", lease], "");
        assert!(once.failure().contains("requested lease not found"));
    });
}

#[test]
fn etcdctl_measures_the_memory_of_its_data() {
    alone(|machine| {
        let _knarr = serve(machine, Which::Knarr, "ours", "");
        let told = must("check datascale --load s --auto-compact --auto-defrag");
        assert!(told.contains("PASS: Approximate system memory used : "), "{told}");
        assert!(told.contains("Compacted with revision 100"), "{told}");
    });
}

#[test]
fn a_socket_in_the_file_system_speaks_everything() {
    alone(|machine| {
        let line = format!("etcd @data --listen-client-urls unix://@s.sock,{URL}");
        let knarr = machine.start(&line);
        knarr.line("that it serves", |line| line.starts_with("Ready"));
        let socket = machine.path("s.sock").display().to_string();
        must(&format!("--endpoints unix://{socket} put a 1"));
        let mut curl = Command::new("curl");
        curl.args(["-s", "--unix-socket", &socket, "http://x/v3/kv/range", "-d"]);
        let kv = Outcome::of(curl.arg(r#"{"key":"YQ=="}"#)).success();
        assert!(kv.contains(r#""value":"MQ==""#), "{kv}");
        let told = must("endpoint status --cluster");
        assert_eq!(told.lines().count(), 2, "{told}");
    });
}

#[test]
fn a_certificate_is_made_where_none_is_named() {
    alone(|machine| {
        let start = || {
            let line = format!("etcd @data --listen-client-urls {URL_TLS} --auto-tls");
            let knarr = machine.start(&line);
            knarr.line("that it serves", |line| line.starts_with("Ready"));
            knarr
        };
        let ca = machine.path("data/fixtures/client/ca.crt");
        let ask = |line: &str| {
            let tls = ["--endpoints", URL_TLS, "--cacert", ca.to_str().unwrap()];
            etcdctl(&[&tls[..], &words(line)].concat(), "")
        };
        let first = start();
        ask("put a 1").success();
        let unchecked = "--insecure-transport=false --insecure-skip-tls-verify get a";
        etcdctl(&[&["--endpoints", URL_TLS][..], &words(unchecked)].concat(), "").success();
        let plain = ["--endpoints", URL, "--command-timeout", "1s", "get", "a"];
        assert!(!etcdctl(&plain, "").status.success());
        let made = fs::read(&ca).unwrap();
        drop(first);
        let _again = start();
        assert_eq!(ask("get a --print-value-only").success(), "1\n");
        assert_eq!(fs::read(&ca).unwrap(), made);
    });
}

#[test]
fn locks_and_elections_have_one_owner() {
    alone(|machine| {
        let _knarr = serve(machine, Which::Knarr, "ours", "");
        let mut first = follow("lock mutex");
        let key = first.line("its key", |line| line.starts_with("mutex/"));
        let mut second = follow("lock mutex true");
        let _waiting = follow("watch mutex/ --prefix --rev 1");
        _waiting.line("the second in the queue", |line| line.starts_with("mutex/") && line != key);
        first.end(Signal::INT);
        assert!(second.wait().success(), "{}", second.output());
        let mut leader = follow("elect crown one");
        leader.line("its key", |line| line.starts_with("crown/"));
        let observer = follow("elect -l crown");
        observer.line("the leader", |line| line == "one");
        let next = follow("elect crown two");
        leader.end(Signal::INT);
        next.line("its turn", |line| line.starts_with("crown/"));
        observer.line("the next leader", |line| line == "two");
    });
}

#[test]
fn a_mirror_goes_both_ways() {
    alone(|machine| {
        let _knarr = serve(machine, Which::Knarr, "ours", "");
        let mut other = Command::new("etcd");
        let (client, peer) = ("http://127.0.0.1:3379", "http://127.0.0.1:3380");
        other.arg("--data-dir").arg(machine.path("other"));
        other.args(["--listen-client-urls", client, "--advertise-client-urls", client]);
        other.args(["--listen-peer-urls", peer]);
        let other = Running::start("etcd", &mut other);
        other.line("that it serves", |line| line.contains("ready to serve"));
        must("put there/1 x");
        let there = follow("make-mirror --prefix there/ 127.0.0.1:3379");
        let seen = follow("--endpoints 127.0.0.1:3379 watch there/ --prefix --rev 1");
        seen.line("the key that was there", |line| line == "there/1");
        must("put there/2 y");
        seen.line("the new key", |line| line == "there/2");
        let back = follow("--endpoints 127.0.0.1:3379 make-mirror --prefix back/ 127.0.0.1:2379");
        let seen = follow("watch back/ --prefix --rev 1");
        must("--endpoints 127.0.0.1:3379 put back/1 z");
        seen.line("the key from there", |line| line == "back/1");
        drop((there, back));
    });
}

/// An authority in a folder of the test's, and a certificate of its below that.
fn certificate(machine: &Machine, authority: &str, name: &str, usage: Usage) -> (String, String) {
    let dir = machine.path(authority);
    let identity = Identity {
        name: name.to_owned(),
        addresses: vec![[127, 0, 0, 1].into()],
        ..Identity::default()
    };
    Authority::load_or_create(&dir).unwrap().issue_to(&dir, name, &identity, usage).unwrap();
    let file = |kind: &str| dir.join(format!("{name}.{kind}")).display().to_string();
    (file("crt"), file("key"))
}

#[test]
fn certificates_say_who_asks_and_may_be_replaced() {
    alone(|machine| {
        let ca = |name: &str| machine.path(name).join("ca.crt").display().to_string();
        let (crt, key) = certificate(machine, "first", "server", Usage::Server);
        let (used_crt, used_key) = (machine.path("tls.crt"), machine.path("tls.key"));
        let use_files = |crt: &str, key: &str| {
            fs::copy(crt, &used_crt).unwrap();
            fs::copy(key, &used_key).unwrap();
        };
        use_files(&crt, &key);
        let url = URL_TLS;
        let knarr = machine.start(&format!(
            "etcd @data --listen-client-urls {url} --cert-file @tls.crt --key-file \
             @tls.key --client-cert-auth --trusted-ca-file {} --bcrypt-cost 4",
            ca("first")
        ));
        knarr.line("that it serves", |line| line.starts_with("Ready"));
        let with = |authority: &str, user: &str, line: &str| {
            let (crt, key) = certificate(machine, "first", user, Usage::Client);
            let tls =
                ["--endpoints", url, "--cacert", &ca(authority), "--cert", &crt, "--key", &key];
            etcdctl(&[&tls[..], &words(line)].concat(), "")
        };
        let bare = ["--endpoints", url, "--cacert", &ca("first"), "put", "a", "1"];
        assert!(!etcdctl(&bare, "").status.success(), "no certificate, no access");
        with("first", "root", "put a 1").success();
        for line in [
            "user add root --no-password",
            "user grant-role root root",
            "user add eva --no-password",
            "role add r",
            "role grant-permission r read a",
            "user grant-role eva r",
            "auth enable",
        ] {
            with("first", "root", line).success();
        }
        assert_eq!(with("first", "eva", "get a --print-value-only").success(), "1\n");
        assert!(with("first", "eva", "put a 2").failure().contains("permission denied"));
        assert!(with("first", "mallory", "get a").failure().contains("permission denied"));
        with("first", "root", "put a 2").success();

        let (crt, key) = certificate(machine, "second", "server", Usage::Server);
        fs::write(&used_crt, "half").unwrap();
        with("first", "root", "get a").success();
        use_files(&crt, &key);
        assert!(!with("first", "root", "get a").status.success(), "the old one is gone");
        assert_eq!(with("second", "eva", "get a --print-value-only").success(), "2\n");
    });
}

#[test]
fn a_clusters_store_is_read_and_saved_but_not_written() {
    alone(|machine| {
        let refused = machine.knarr(
            "server @data @kubeconfig --bind-address 127.0.0.1 --etcd-listen-client-urls \
             http://127.0.0.1:2379",
        );
        assert!(refused.failure().contains("every Secret"));
        let server = machine.start(
            "server @data @kubeconfig --bind-address 127.0.0.1 --etcd-listen-client-urls \
             https://127.0.0.1:2379,unix://@etcd.sock",
        );
        server.line("Ready", |line| line.starts_with("Ready"));
        let file = |name: &str| machine.path("data/pki/etcd").join(name).display().to_string();
        let ask = |line: &str| {
            let (ca, crt, key) = (file("ca.crt"), file("client.crt"), file("client.key"));
            let at = ["--endpoints", URL_TLS, "--cacert", &ca, "--cert", &crt, "--key", &key];
            etcdctl(&[&at[..], &words(line)].concat(), "")
        };
        let namespaces = ask("get /registry/namespaces/ --prefix --keys-only").success();
        assert!(namespaces.contains("/registry/namespaces/kube-system"), "{namespaces}");
        for line in
            ["put /registry/configmaps/default/a x", "del /registry/ --prefix", "del + --from-key"]
        {
            assert!(ask(line).failure().contains("--unsafe-registry-writes"), "{line}");
        }
        ask("put elsewhere x").success();
        let saved = machine.path("saved.db").display().to_string();
        ask(&format!("snapshot save {saved}")).success();
        assert!(ask(&format!("snapshot status {saved}")).status.success());
        // The certificates of the cluster's own authority are not enough here.
        let cluster = machine.path("data/pki");
        let (crt, key) = (cluster.join("admin.crt"), cluster.join("admin.key"));
        let (crt, key) = (crt.display().to_string(), key.display().to_string());
        let ca = file("ca.crt");
        let at = ["--endpoints", URL_TLS, "--cacert", &ca, "--cert", &crt, "--key", &key];
        assert!(!etcdctl(&[&at[..], &["get", "a"]].concat(), "").status.success());
        let mode = fs::metadata(machine.path("etcd.sock")).unwrap();
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777, 0o600);
    });
}

#[test]
fn a_full_store_empties_itself_without_an_operator() {
    alone(|machine| {
        let _knarr = serve(machine, Which::Knarr, "ours", "--quota-backend-bytes 4000000");
        let value = "v".repeat(100_000);
        let put = |n: usize| etcdctl(&["put", &format!("key{n}")], &value);
        let full = (0..60).find(|&n| !put(n).status.success()).expect("the quota is reached");
        assert!(put(full).failure().contains("database space exceeded"));
        assert!(must("alarm list").contains("NOSPACE"));
        assert!(must("endpoint status").contains("NOSPACE"));
        assert!(curl("/health x").contains("ALARM NOSPACE"));
        must("get key0");
        must("del key --prefix");
        // What was deleted is written down and leaves the memory; nobody has to ask for it.
        let deadline = Instant::now() + PATIENCE;
        while !must("alarm list").is_empty() {
            assert!(Instant::now() < deadline, "the store is still full");
        }
        put(0).success();
        assert!(curl("/health x").contains(r#""health":"true""#));
    });
}
