//! Golden scripts: objects in, questions asked, answers read off the wire.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fmt::Write;
use std::net::IpAddr;
use std::path::Path as File;

use bytes::Bytes;
use knarr_dns_zone::{
    Code, Found, Query, Reply, Zone, addresses_in, kind, least_ttl, search_path, set_ttls,
};
use knarr_netplan::Services;
use knarr_reconcile::Change;
use proptest::prelude::*;
use serde_json::Value;

fn zone() -> Zone {
    let ranges = ["10.42.0.0/16", "10.43.0.0/16", "fd43::/112"];
    Zone::new("cluster.local.", ranges.iter().map(|range| range.parse().unwrap()).collect())
}

fn resource(kind: &str) -> knarr_api::Resource {
    if kind == "Service" { Services::SERVICES } else { Services::SLICES }
}

fn kind_of(word: &str) -> u16 {
    match word {
        "A" => kind::A,
        "AAAA" => kind::AAAA,
        "NS" => kind::NS,
        "CNAME" => kind::CNAME,
        "SOA" => kind::SOA,
        "PTR" => kind::PTR,
        "TXT" => kind::TXT,
        "SRV" => kind::SRV,
        "ANY" => kind::ANY,
        other => panic!("{other}"),
    }
}

/// What the zone says, in words; and the message must say as many records.
fn ask(zone: &Zone, name: &str, kind: u16) -> String {
    let query = Query::new(7, name, kind);
    let query = Query::parse(&query.bytes()).unwrap();
    let found = zone.find(&query.name);
    let message = zone.reply(&query, &found, 1232, 0);
    let code = message[3] & 15;
    let answers = usize::from(u16::from_be_bytes([message[6], message[7]]));
    match &found {
        Found::Elsewhere => "elsewhere".into(),
        Found::Nothing => {
            assert_eq!((code, answers), (Code::NxDomain as u8, 0));
            "NXDOMAIN".into()
        }
        Found::Name { records, hosts } => {
            let wanted: Vec<String> =
                records.iter().filter(|r| r.is_wanted(kind)).map(|r| r.to_string()).collect();
            assert_eq!((code, answers), (0, wanted.len()));
            let hosts: Vec<String> = hosts.iter().map(|(h, a)| format!("{h}={a}")).collect();
            match (wanted.is_empty(), kind) {
                (true, _) => "nothing of that kind".into(),
                (false, kind::SRV) => format!("{} + {}", wanted.join(", "), hosts.join(", ")),
                (false, _) => wanted.join(", "),
            }
        }
    }
}

fn play(script: &str) -> String {
    let mut zone = zone();
    let mut out = String::new();
    let mut yaml = String::new();
    let take = |zone: &mut Zone, yaml: &mut String| {
        for tree in serde_saphyr::from_multiple::<Value>(yaml).unwrap() {
            let bytes = Bytes::from(tree.to_string());
            let resource = resource(tree["kind"].as_str().unwrap());
            zone.apply(resource, &Change::Put(bytes, 1)).unwrap();
        }
        yaml.clear();
    };
    for line in script.lines().filter(|line| !line.starts_with("= ")) {
        writeln!(out, "{line}").unwrap();
        if line.starts_with(['{', '-']) {
            writeln!(yaml, "{line}").unwrap();
        } else if let Some(which) = line.strip_prefix("gone ") {
            let (kind, name) = which.split_once(' ').unwrap();
            let (namespace, name) = name.split_once('/').unwrap();
            let object = format!(r#"{{"metadata":{{"name":"{name}","namespace":"{namespace}"}}}}"#);
            zone.apply(resource(kind), &Change::Deleted(object.into(), 2)).unwrap();
        } else if let Some(question) = line.strip_prefix("? ") {
            take(&mut zone, &mut yaml);
            let (name, kind) = question.split_once(' ').unwrap();
            writeln!(out, "= {}", ask(&zone, name, kind_of(kind))).unwrap();
        }
    }
    out
}

#[test]
fn names() {
    let path = File::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/names.txt");
    let script = std::fs::read_to_string(&path).unwrap();
    let played = play(&script);
    if std::env::var_os("KNARR_BLESS").is_some() {
        std::fs::write(&path, played).unwrap();
    } else {
        assert_eq!(script, played);
    }
}

fn headless(count: u8) -> Zone {
    let mut zone = zone();
    let service =
        r#"{"metadata":{"name":"s","namespace":"n"},"spec":{"clusterIP":"None","ports":[]}}"#;
    zone.apply(Services::SERVICES, &Change::Put(service.into(), 1)).unwrap();
    let endpoints: Vec<Value> = (0..count)
        .map(|at| serde_json::json!({"addresses": [format!("10.42.1.{at}")], "conditions": {}}))
        .collect();
    let slice = serde_json::json!({"metadata": {"name": "s-1", "namespace": "n",
        "labels": {"kubernetes.io/service-name": "s"}}, "addressType": "IPv4",
        "endpoints": endpoints, "ports": []});
    zone.apply(Services::SLICES, &Change::Put(slice.to_string().into(), 1)).unwrap();
    zone
}

#[test]
fn addresses_take_turns_at_the_front() {
    let zone = headless(3);
    let query = Query::new(1, "s.n.svc.cluster.local", kind::A);
    let found = zone.find(&query.name);
    let firsts: Vec<IpAddr> =
        (0..3).map(|turn| addresses_in(&zone.reply(&query, &found, 1232, turn))[0]).collect();
    let firsts: Vec<String> = firsts.iter().map(ToString::to_string).collect();
    assert_eq!(firsts, ["10.42.1.0", "10.42.1.1", "10.42.1.2"]);
}

#[test]
fn what_does_not_fit_is_cut_and_said_to_be() {
    let zone = headless(200);
    let query = Query::new(1, "s.n.svc.cluster.local", kind::A);
    let found = zone.find(&query.name);
    let short = zone.reply(&query, &found, 512, 0);
    assert!(short.len() <= 512 && short[2] & 2 != 0);
    let long = zone.reply(&query, &found, 65_535, 0);
    assert!(long[2] & 2 == 0);
    assert_eq!(addresses_in(&long).len(), 200);
}

#[test]
fn the_case_of_the_question_comes_back() {
    let mut message = Query::new(9, "web.example", kind::A).bytes();
    message[13] = b'W';
    let query = Query::parse(&message).unwrap();
    assert_eq!(query.name, "web.example");
    let reply = Reply::new(&query, Code::NoError, 512).finish();
    assert_eq!(reply[13], b'W');
    assert!(query.is_answered_by(&reply));
    assert!(!Query::new(8, "web.example", kind::A).is_answered_by(&reply));
    assert!(!Query::new(9, "wob.example", kind::A).is_answered_by(&reply));
}

#[test]
fn lives_of_records_are_read_and_shortened() {
    let zone = headless(2);
    let query = Query::new(1, "s.n.svc.cluster.local", kind::A);
    let mut message = zone.reply(&query, &zone.find(&query.name), 1232, 0);
    assert_eq!(least_ttl(&message), Some(30));
    set_ttls(&mut message, 12);
    assert_eq!(least_ttl(&message), Some(18));
    set_ttls(&mut message, 100);
    assert_eq!(least_ttl(&message), Some(0));
    let nothing = zone.reply(&query, &Found::Nothing, 1232, 0);
    assert_eq!(least_ttl(&nothing), Some(30));
}

#[test]
fn the_search_path_is_walked_for_its_own_namespace_only() {
    let outer = ["corp.example".to_string()];
    let path = |name: &str| search_path(name, "a", "cluster.local", &outer);
    let steps = path("x.y.a.svc.cluster.local").unwrap();
    assert_eq!(steps, ["x.y.svc.cluster.local", "x.y.cluster.local", "x.y.corp.example", "x.y"]);
    assert_eq!(path("x.b.svc.cluster.local"), None);
    assert_eq!(path("a.svc.cluster.local"), None);
}

#[test]
fn odd_messages_are_refused_or_left_alone() {
    let good = Query::new(3, "a.b", kind::A).bytes();
    let refused = |message: &[u8]| {
        let why = Query::parse(message).unwrap_err();
        Reply::refusal(message, why).map(|reply| (reply[1], reply[2] >> 7, reply[3]))
    };
    assert_eq!(refused(&good[..11]), None);
    let with = |at: usize, byte: u8| {
        let mut message = good.clone();
        message[at] = byte;
        message
    };
    assert_eq!(refused(&with(2, 0x80)), None, "an answer is not answered");
    assert_eq!(refused(&with(2, 0x28)), Some((3, 1, Code::NotImp as u8)));
    assert_eq!(refused(&with(5, 2)), Some((3, 1, Code::FormErr as u8)));
    assert_eq!(refused(&with(12, 0xc0)), Some((3, 1, Code::FormErr as u8)), "no pointers");
    assert_eq!(refused(&with(20, 3)), Some((3, 1, Code::Refused as u8)), "not of the internet");
}

proptest! {
    #[test]
    fn no_message_breaks_the_reader(message in proptest::collection::vec(any::<u8>(), 0..600)) {
        let mut message = message;
        match Query::parse(&message) {
            Ok(query) => {
                let zone = headless(2);
                let reply = zone.reply(&query, &zone.find(&query.name), query.udp_limit, 0);
                prop_assert!(reply.len() <= query.udp_limit);
            }
            Err(why) => drop(Reply::refusal(&message, why)),
        }
        addresses_in(&message);
        least_ttl(&message);
        set_ttls(&mut message, 1);
    }

    #[test]
    fn questions_survive_the_wire(
        name in "([a-z0-9_-]{1,20}\\.){0,8}[a-z]{1,9}",
        kind in any::<u16>(),
    ) {
        let query = Query::new(5, &name, kind);
        let read = Query::parse(&query.bytes()).unwrap();
        prop_assert_eq!(&read.name, &name);
        prop_assert_eq!(read.kind, kind);
        prop_assert!(read.edns);
    }
}
