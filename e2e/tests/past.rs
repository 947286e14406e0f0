//! Looking back: an object that was changed and deleted, read as it was, by kubectl and by knarr,
//! beside the running server, after a restart, and without a server.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::process::Command;

use knarr_e2e::{Machine, Outcome, Running, alone};
use rustix::process::Signal;

const SERVER: &str = "kube-apiserver @data @kubeconfig --bind-address 127.0.0.1";

fn server(machine: &Machine) -> Running {
    let server = machine.start(SERVER);
    server.line("Ready", |line| line.starts_with("Ready"));
    server
}

/// kubectl, looking at a moment.
fn kubectl_at(machine: &Machine, at: &str, args: &str) -> String {
    machine.kubectl(&format!("--server https://127.0.0.1:6443/at/{at} {args}"))
}

/// The code and the body of a request of the administrator's that names the moment in its head.
fn asked_at(machine: &Machine, at: &str, path: &str, args: &[&str]) -> (String, String) {
    let pki = |name: &str| machine.path("data/pki").join(name);
    let mut curl = Command::new("curl");
    curl.arg("--cacert").arg(pki("ca.crt")).arg("--cert").arg(pki("admin.crt"));
    curl.arg("--key").arg(pki("admin.key")).args(["-s", "-w", "\n%{http_code}"]).args(args);
    curl.args(["-H", &format!("Knarr-At: {at}"), &format!("https://127.0.0.1:6443{path}")]);
    let out = Outcome::of(&mut curl).success();
    let (body, code) = out.rsplit_once('\n').unwrap();
    (code.to_owned(), body.to_owned())
}

/// The revision of a ConfigMap.
fn revision(machine: &Machine, name: &str) -> String {
    machine.value(&format!("configmap/{name}"), ".metadata.resourceVersion")
}

/// What `m` was when `k` was `one`.
fn as_it_was(machine: &Machine, first: &str) {
    let data = "get configmap m -o jsonpath={.data.k}";
    assert_eq!(kubectl_at(machine, first, data), "one");
    let table = kubectl_at(machine, first, "get configmaps");
    assert!(table.lines().any(|line| line.starts_with("m ")), "{table}");
    let all = kubectl_at(machine, first, "get configmaps -A --chunk-size=1 -o name");
    assert!(all.contains("configmap/m"), "{all}");
    let shown = machine.knarr(&format!("store show --at {first} configmaps/default/m @data"));
    assert!(shown.success().contains("k: one"));
}

#[test]
fn a_deleted_object_is_read_as_it_was() {
    alone(|machine| {
        let mut up = server(machine);
        machine.kubectl("create configmap m --from-literal=k=one");
        let first = revision(machine, "m");
        machine
            .kubectl_with("patch configmap m --patch-file /dev/stdin", r#"{"data":{"k":"two"}}"#);
        let second = revision(machine, "m");
        machine.kubectl("create configmap other");
        machine.kubectl("delete configmap m");
        let last = revision(machine, "other");
        as_it_was(machine, &first);
        let data = "get configmap m -o jsonpath={.data.k}";
        assert_eq!(kubectl_at(machine, &second, data), "two");
        let raw = format!("get --raw /at/{first}/api/v1/namespaces/default/configmaps/m");
        assert!(machine.kubectl(&raw).contains("\"k\":\"one\""));
        let path = "/api/v1/namespaces/default/configmaps/m";
        let (code, then) = asked_at(machine, &first, path, &[]);
        assert_eq!((&code[..], then.contains(r#""k":"one""#)), ("200", true), "{then}");
        assert!(asked_at(machine, &second, path, &[]).1.contains(r#""k":"two""#));
        assert_eq!(asked_at(machine, "-0s", path, &[]).0, "404");
        let (code, why) = asked_at(machine, "some day", path, &[]);
        assert_eq!(code, "400", "{why}");
        let (code, why) = asked_at(machine, &first, path, &["-X", "DELETE"]);
        assert_eq!((&code[..], why.contains("the past cannot be changed")), ("405", true), "{why}");
        // No time ago everything is as it is, and nothing can be changed there.
        let now = "--server https://127.0.0.1:6443/at/-0s get configmap m";
        assert!(machine.try_kubectl(now).failure().contains("NotFound"));
        let past = format!("--server https://127.0.0.1:6443/at/{first} delete configmap m");
        let refused = machine.try_kubectl(&past).failure();
        assert!(refused.contains("the past cannot be changed"), "{refused}");

        let log = machine.knarr("store log configmaps/default/m @data").success();
        let verbs: Vec<&str> =
            log.lines().filter_map(|line| line.split_whitespace().nth(2)).collect();
        assert_eq!(verbs, ["create", "update", "delete"], "{log}");
        let range = format!("store diff --at {first}..{second} configmaps/ @data");
        assert!(machine.knarr(&range).success().contains("data.k: \"one\" -> \"two\""));
        let range = format!("store diff --at {second}..{last} configmaps/ @data");
        assert!(machine.knarr(&range).success().contains("+ /registry/configmaps/default/other"));

        up.end(Signal::TERM);
        let offline = machine.knarr(&format!("store show --at {first} configmaps/default/m @data"));
        assert!(offline.success().contains("k: one"));
        // A new store that goes on from there.
        let back = format!("store restore --from=@data --at {first} --data-dir=@restored");
        machine.knarr(&back).success();
        let shown = machine.knarr("store show configmaps/default/m --data-dir=@restored");
        assert!(shown.success().contains("k: one"));
        let _up = server(machine);
        as_it_was(machine, &first);
        let future = machine.knarr("store show --at 999999 configmaps/default/m @data").failure();
        assert!(future.contains("required revision is a future revision"), "{future}");
    });
}
