//! Tables in a real kernel, as Debian's `nft` lists them. Needs root (network namespaces).

use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use knarr_net::Table;
use knarr_netplan::{Config, Key, Nodes, Place, Rules, Services};
use knarr_reconcile::Change;
use rustix::thread::UnshareFlags;

/// Runs a job in a new network namespace, which is gone afterwards.
fn in_namespace<R: Send + 'static>(job: impl FnOnce() -> R + Send + 'static) -> R {
    let thread = std::thread::spawn(|| {
        // SAFETY: only the network namespace of this thread changes; no file descriptors are
        // unshared.
        #[allow(unsafe_code, reason = "unshare is unsafe for its file descriptor flags")]
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.expect("root");
        job()
    });
    thread.join().expect("the job ends well")
}

fn nft(args: &str) -> String {
    let done = Command::new("nft").args(args.split(' ')).output().expect("nftables is there");
    assert!(done.status.success(), "nft {args}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// What is listed, in an order that is not the hash's.
fn sorted(listed: &str) -> String {
    let mut parts: Vec<&str> = listed.split([',', '\n', '{', '}']).map(str::trim).collect();
    parts.retain(|part| !part.is_empty());
    parts.sort_unstable();
    parts.join("\n") + "\n"
}

fn put(services: &mut Services, resource: knarr_api::Resource, text: &str) {
    let change = Change::Put(Bytes::copy_from_slice(text.as_bytes()), 1);
    services.apply(resource, &change).expect("it is well formed");
}

fn service(name: &str, spec: &str, status: &str) -> String {
    format!(
        r#"{{"metadata":{{"namespace":"a","name":"{name}"}},
        "spec":{{{spec}}},"status":{{{status}}}}}"#
    )
}

fn slice(service: &str, name: &str, kind: &str, endpoints: &str) -> String {
    format!(
        r#"{{"metadata":{{"namespace":"a","name":"{name}",
        "labels":{{"kubernetes.io/service-name":"{service}"}}}},"addressType":"{kind}",
        "ports":[{{"name":"","port":8080,"protocol":"TCP"}}],"endpoints":[{endpoints}]}}"#
    )
}

fn rules() -> (Rules, Services) {
    let mut services = Services::default();
    let web = r#""type":"LoadBalancer","clusterIPs":["10.96.0.1","fd00::1"],"clusterIP":"10.96.0.1",
        "externalTrafficPolicy":"Local",
        "loadBalancerSourceRanges":["192.0.2.0/24","2001:db8::/32"],
        "ports":[{"port":80,"nodePort":30080,"protocol":"TCP"}]"#;
    let ingress = r#""loadBalancer":{"ingress":[{"ip":"198.51.100.1"},{"ip":"2001:db8::5"}]}"#;
    let api = r#""clusterIP":"10.96.0.2","ports":[{"port":443,"protocol":"TCP"}]"#;
    let none = r#""clusterIP":"10.96.0.3","ports":[{"port":53,"protocol":"UDP"}]"#;
    put(&mut services, Services::SERVICES, &service("web", web, ingress));
    put(&mut services, Services::SERVICES, &service("api", api, ""));
    put(&mut services, Services::SERVICES, &service("none", none, ""));
    let kept = r#""type":"NodePort","clusterIPs":["10.96.0.4","fd00::4"],"clusterIP":"10.96.0.4",
        "externalTrafficPolicy":"Local","sessionAffinity":"ClientIP",
        "ports":[{"port":80,"nodePort":30082}]"#;
    put(&mut services, Services::SERVICES, &service("kept", kept, ""));
    let v4 = r#"{"addresses":["10.0.0.1"],"nodeName":"n1"},{"addresses":["10.0.0.2"]}"#;
    let v6 = r#"{"addresses":["fd01::1"],"nodeName":"n1"},{"addresses":["fd01::2"]}"#;
    put(&mut services, Services::SLICES, &slice("web", "web-4", "IPv4", v4));
    put(&mut services, Services::SLICES, &slice("web", "web-6", "IPv6", v6));
    put(&mut services, Services::SLICES, &slice("api", "api-4", "IPv4", v4));
    put(&mut services, Services::SLICES, &slice("kept", "kept-4", "IPv4", v4));
    put(&mut services, Services::SLICES, &slice("kept", "kept-6", "IPv6", v6));
    let cidrs = ["10.0.0.0/16", "fd01::/64"].map(|cidr| cidr.parse().expect("a range"));
    let mut rules =
        Rules::new(Config { cluster_cidrs: cidrs.to_vec(), node_port_addresses: Vec::new() });
    let place = Place { node: "n1".to_owned(), zone: String::new() };
    let own = "192.0.2.7".parse().expect("an address");
    let nodes = Nodes { place, own: [own].into(), all: [own].into() };
    rules.set_nodes(nodes, &services);
    let keys: Vec<Key> = services.iter().map(|(key, _)| key.clone()).collect();
    rules.plan(&services, &keys);
    (rules, services)
}

#[test]
fn the_kernel_has_what_was_planned() {
    let listed = in_namespace(|| {
        let (rules, _) = rules();
        let mut table = Table::open("test").expect("netfilter");
        table.replace(&rules.everything()).expect("loaded");
        let first = nft("list ruleset");
        table.replace(&rules.everything()).expect("loaded over itself");
        assert_eq!(sorted(&nft("list ruleset")), sorted(&first));
        assert!(nft("-j list ruleset").contains("names-4"), "the same for programs");
        table.remove().expect("removed");
        table.remove().expect("removed again");
        assert_eq!(nft("list ruleset"), "");
        first
    });
    let listed = sorted(&listed);
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/listed.txt");
    if std::env::var("KNARR_BLESS").is_ok() {
        std::fs::write(&golden, listed).expect("written");
    } else {
        assert_eq!(listed, std::fs::read_to_string(golden).expect("it is there"));
    }
}

#[test]
fn every_kind_of_rule_is_taken() {
    in_namespace(|| {
        let (mut rules, mut services) = rules();
        let mut table = Table::open("test").expect("netfilter");
        table.replace(&rules.everything()).expect("loaded");
        let ips = r#""clusterIPs":["10.96.0.7","fd00::7"],"clusterIP":"10.96.0.7""#;
        let sticky = format!(
            r#"{ips},"type":"NodePort","externalTrafficPolicy":"Local",
            "sessionAffinity":"ClientIP","ports":[{{"port":80,"nodePort":30081}}]"#
        );
        put(&mut services, Services::SERVICES, &service("sticky", &sticky, ""));
        let v4 = r#"{"addresses":["10.0.0.1"],"nodeName":"n1"},{"addresses":["10.0.0.2"]}"#;
        let v6 = r#"{"addresses":["fd01::1"],"nodeName":"n1"},{"addresses":["fd01::2"]}"#;
        put(&mut services, Services::SLICES, &slice("sticky", "sticky-4", "IPv4", v4));
        put(&mut services, Services::SLICES, &slice("sticky", "sticky-6", "IPv6", v6));
        let key = Key::new("a", "sticky");
        table.change(&rules.plan(&services, [&key])).expect("added");
        assert!(nft("list map inet knarr-test services-6").contains("30081"));
        let gone = service("sticky", r#""clusterIP":"None""#, "");
        put(&mut services, Services::SERVICES, &gone);
        let delta = rules.plan(&services, [&key]);
        table.change(&delta).expect("removed");
        assert!(!nft("list map inet knarr-test services-6").contains("30081"));
        assert!(table.change(&delta).is_err(), "what is not there cannot be removed");
    });
}
