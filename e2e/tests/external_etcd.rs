//! The control plane on an etcd of its own (`--etcd-servers`): two servers share three members, and
//! members die under load.
#![allow(clippy::unwrap_used)] // a test fails by panicking
#![allow(clippy::print_stdout)] // what it measured

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use knarr_e2e::{Etcd, Machine, Outcome, Running, alone};
use rustix::process::Signal;
use serde_json::Value;

/// A server on an etcd; `words` go on its command line.
fn serve(machine: &Machine, words: &str) -> Running {
    let server = machine.start(&format!("-v 1 server --bind-address 127.0.0.1 {words}"));
    server.line("Ready", |line| line.starts_with("Ready"));
    server
}

/// Two servers with one authority.
fn two_servers(machine: &Machine, etcd: &Etcd<'_>, words: &[String; 2]) -> [Running; 2] {
    let etcd = format!("--etcd-servers {}", etcd.servers());
    let one = serve(machine, &format!("@data @kubeconfig {etcd} {}", words[0]));
    let pki = machine.path("other/pki");
    fs::create_dir_all(pki.parent().unwrap()).unwrap();
    Outcome::of(Command::new("cp").arg("-r").arg(machine.path("data/pki")).arg(pki)).success();
    let place = "--data-dir @other --kubeconfig @other.kubeconfig --secure-port 6444";
    [one, serve(machine, &format!("{place} {etcd} {}", words[1]))]
}

/// A kubectl at the second server.
fn at_other(machine: &Machine, args: &str) -> Command {
    let mut command = machine.kubectl_command(args);
    command.env("KUBECONFIG", machine.path("other.kubeconfig"));
    command
}

#[test]
fn two_servers_are_one() {
    alone(|machine| {
        let etcd = Etcd::start(machine, 3, "http", "");
        let _servers = two_servers(machine, &etcd, &Default::default());
        let other = |args: &str| Outcome::of(&mut at_other(machine, args));
        for n in 0..10 {
            machine.kubectl(&format!("create configmap from-one-{n}"));
            other(&format!("get configmap from-one-{n}")).success();
            other(&format!("delete configmap from-one-{n}")).success();
            let gone = machine.try_kubectl(&format!("get configmap from-one-{n}")).failure();
            assert!(gone.contains("NotFound"), "{gone}");
        }
        // Rights count at once, whoever gave them.
        machine.kubectl("create clusterrolebinding viewer --clusterrole view --user eve");
        let can = other("auth can-i list pods --as eve");
        assert_eq!(can.out.trim(), "yes", "{can}");
        // The second server's beginning made nothing again, and one server leads.
        let holders = machine.values("leases -n kube-system", ".items[*].spec.holderIdentity");
        assert_eq!(holders.len(), 2);
        assert_eq!(holders[0], holders[1]);
        let started = |args: &str| machine.kubectl(args).lines().count();
        assert_eq!(started("get namespaces -o name"), 4);
        assert_eq!(started("get services -o name"), 1);
        // What upstream's API server writes is read, and its revision guards our writes.
        foreign(&etcd);
        assert_eq!(machine.value("configmap/foreign", ".data.k"), "v");
        machine.kubectl("label configmap foreign a=b");
        assert_eq!(machine.value("configmap/foreign", ".metadata.labels.a"), "b");
        assert!(!machine.path("data/store").exists(), "the state is etcd's alone");
    });
}

/// Where the Service `kubernetes` leads to: each server's address lasts as long as the server.
#[test]
fn the_servers_that_there_are() {
    alone(|machine| {
        let etcd = Etcd::start(machine, 1, "http", "");
        let [one, other] = ["198.51.100.10", "198.51.100.11"];
        let advertise = [one, other].map(|ip| format!("--advertise-address {ip}"));
        let [_one, mut other_runs] = two_servers(machine, &etcd, &advertise);
        let column = "custom-columns=A:.subsets[*].addresses[*].ip";
        let here = "-s https://127.0.0.1:6443";
        let leads = machine.follow(&format!("{here} get endpoints -w --no-headers -o {column}"));
        leads.line("both", |line| line == format!("{one},{other}"));
        other_runs.end(Signal::TERM);
        leads.line("the one that is left", |line| line == one);
        let slice = "get endpointslice kubernetes -o jsonpath={.endpoints[*].addresses[0]}";
        assert_eq!(machine.kubectl(&format!("{here} {slice}")), one);
    });
}

/// Writes a ConfigMap as upstream's API server does.
fn foreign(etcd: &Etcd<'_>) {
    let field = |tag: u8, parts: &[&[u8]]| {
        let body = parts.concat();
        [&[tag << 3 | 2, u8::try_from(body.len()).unwrap()][..], &body].concat()
    };
    let kind = field(1, &[&field(1, &[b"v1"]), &field(2, &[b"ConfigMap"])]);
    let metadata = field(1, &[&field(1, &[b"foreign"]), &field(3, &[b"default"])]);
    let data = field(2, &[&field(1, &[b"k"]), &field(2, &[b"v"])]);
    let value = [&b"k8s\0"[..], &kind, &field(2, &[&metadata, &data])].concat();
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), value).unwrap();
    let mut etcdctl = Command::new("etcdctl");
    etcdctl.env("ETCDCTL_API", "3").args(["--endpoints", &etcd.servers(), "put"]);
    etcdctl.arg("/registry/configmaps/default/foreign");
    etcdctl.stdin(fs::File::open(file.path()).unwrap());
    Outcome::of(&mut etcdctl).success();
}

/// What a watcher saw: names by revision, and when.
type Seen = Vec<(u64, String, Instant)>;

/// Follows all ConfigMaps until one is called "last".
fn follow(command: &mut Command) -> Seen {
    let watcher = Running::start("watcher", command);
    let mut seen = Seen::new();
    loop {
        let line = watcher.line("a change", |line| !line.is_empty());
        let event: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line}"));
        assert_eq!(event["type"], "ADDED", "{line}");
        let text = |pointer: &str| event.pointer(pointer).unwrap().as_str().unwrap().to_owned();
        let revision = text("/object/metadata/resourceVersion").parse().unwrap();
        seen.push((revision, text("/object/metadata/name"), Instant::now()));
        if seen.last().unwrap().1 == "last" {
            return seen;
        }
    }
}

/// Creates ConfigMaps, many with one command, until told to stop; those that were acknowledged.
fn write(make: impl Fn(&str) -> Command, writer: usize, stop: &AtomicBool) -> Vec<String> {
    let mut acknowledged = Vec::new();
    for round in (0..).take_while(|_| !stop.load(Ordering::Relaxed)) {
        let object = |n| {
            let name = format!("w{writer}-{round}-{n}");
            format!("kind: ConfigMap\napiVersion: v1\nmetadata: {{name: {name}}}\n---\n")
        };
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), (0..20).map(object).collect::<String>()).unwrap();
        let mut command = make("create -n load -f");
        let outcome = Outcome::of(command.arg(file.path()));
        let made = outcome.out.lines().filter_map(|line| line.strip_suffix(" created"));
        acknowledged.extend(made.map(|line| line.trim_start_matches("configmap/").to_owned()));
    }
    acknowledged
}

#[test]
fn members_die_under_load() {
    alone(|machine| {
        let mut etcd = Etcd::start(machine, 3, "http", "");
        let _servers = two_servers(machine, &etcd, &Default::default());
        machine.kubectl("create namespace load");
        machine.wait("configmap/kube-root-ca.crt -n load", "create");
        let path = "/api/v1/namespaces/load/configmaps";
        // The server's own list: the one that kubectl makes of it is of no revision, and a watch
        // from none begins with what there is, in the order of names.
        let list: Value = machine.kubectl(&format!("get --raw {path}")).parse().unwrap();
        let from = list["metadata"]["resourceVersion"].as_str().unwrap();
        assert!(!from.is_empty(), "{list}");
        let watch = format!("get --raw {path}?watch=true&resourceVersion={from}");
        let (one, other) =
            (|args: &str| machine.kubectl_command(args), |args: &str| at_other(machine, args));
        let stop = AtomicBool::new(false);
        let (acknowledged, seen) = thread::scope(|scope| {
            let watchers = [one(&watch), other(&watch)]
                .map(|mut command| scope.spawn(move || follow(&mut command)));
            let writers: Vec<_> = (0..4)
                .map(|n| {
                    let stop = &stop;
                    scope.spawn(move || match n % 2 {
                        0 => write(one, n, stop),
                        _ => write(other, n, stop),
                    })
                })
                .collect();
            let mut killed = Vec::new();
            for member in [0, 1, 2] {
                thread::sleep(Duration::from_secs(1));
                etcd.kill(member);
                killed.push(Instant::now());
                thread::sleep(Duration::from_secs(1));
                etcd.restart(member);
            }
            stop.store(true, Ordering::Relaxed);
            let acknowledged: Vec<String> =
                writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect();
            machine.kubectl("create configmap last -n load");
            let seen = watchers.map(|watcher| watcher.join().unwrap());
            seen.iter().for_each(|seen| report(seen, &killed));
            (acknowledged, seen)
        });
        assert!(acknowledged.len() > 50, "only {} writes", acknowledged.len());
        println!("{} writes acknowledged", acknowledged.len());
        check(&acknowledged, &seen);
        let there = machine.kubectl("get configmaps -n load -o name");
        for name in &acknowledged {
            assert!(
                there.lines().any(|line| line.ends_with(&format!("/{name}"))),
                "{name} is lost"
            );
        }
    });
}

/// How long nothing came after each kill.
fn report(seen: &Seen, killed: &[Instant]) {
    for at in killed {
        let next = seen.iter().find(|(.., when)| when > at).map(|(.., when)| *when - *at);
        println!("the first event after the kill came after {next:?}");
    }
}

/// Nothing lost, nothing doubled, in order, and both watchers saw the same.
fn check(acknowledged: &[String], seen: &[Seen; 2]) {
    let told = seen.each_ref().map(|seen| {
        assert!(seen.is_sorted_by(|a, b| a.0 < b.0), "out of order");
        let told: BTreeMap<&str, u64> = seen.iter().map(|(at, name, _)| (&**name, *at)).collect();
        assert_eq!(told.len(), seen.len(), "told twice");
        told
    });
    assert_eq!(told[0], told[1]);
    for name in acknowledged {
        assert!(told[0].contains_key(&**name), "nobody was told of {name}");
    }
}

#[test]
fn certificates_and_a_prefix_of_its_own() {
    alone(|machine| {
        let issue = |name: &str| {
            format!(
                "openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name} \
                 -keyout {name}.key -out {name}.csr && openssl x509 -req -in {name}.csr -CA ca.crt \
                 -CAkey ca.key -days 2 -extfile san -out {name}.crt"
            )
        };
        let make = format!(
            "cd {} && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \
             -days 2 -subj /CN=ca -keyout ca.key -out ca.crt && \
             echo subjectAltName=IP:127.0.0.1 > san && {} && {}",
            machine.path("").display(),
            issue("etcd"),
            issue("knarr"),
        );
        Outcome::of(Command::new("sh").args(["-c", &make])).success();
        let flags = "--cert-file @etcd.crt --key-file @etcd.key --trusted-ca-file @ca.crt \
                     --client-cert-auth";
        let etcd = Etcd::start(machine, 1, "https", flags);
        let servers = etcd.servers();
        let words = format!("server @data --bind-address 127.0.0.1 --etcd-servers {servers}");
        let stranger = machine.start(&format!("{words} --etcd-cafile @san"));
        stranger.line("why", |line| line.contains(&servers) && line.contains("certificate"));
        drop(stranger);
        let proof = "--etcd-cafile @ca.crt --etcd-certfile @knarr.crt --etcd-keyfile @knarr.key";
        let server = serve(
            machine,
            &format!(
                "@data @kubeconfig --etcd-servers {servers} {proof} --etcd-prefix elsewhere \
                 --etcd-compaction-interval 0"
            ),
        );
        machine.kubectl("create configmap a");
        assert!(!server.output().contains("PRIVATE"), "a key is logged");
        let mut etcdctl = Command::new("etcdctl");
        etcdctl.env("ETCDCTL_API", "3").current_dir(machine.path(""));
        etcdctl.args(["--endpoints", &servers, "--cacert=ca.crt", "--cert=knarr.crt"]);
        etcdctl.args(["--key=knarr.key", "get", "", "--from-key", "--keys-only"]);
        let keys = Outcome::of(&mut etcdctl).success();
        let mut keys = keys.lines().filter(|line| !line.is_empty());
        assert!(keys.all(|key| key.starts_with("/elsewhere/")), "a key is outside of the prefix");
    });
}
