//! The model: what of Services and EndpointSlices it keeps, and which changes it tells.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use knarr_netplan::{Family, Key, Policy, Protocol, ServiceType, Services};
use knarr_reconcile::Change;

fn put(text: &str) -> Change {
    Change::Put(Bytes::copy_from_slice(text.as_bytes()), 1)
}

fn gone(text: &str) -> Change {
    Change::Deleted(Bytes::copy_from_slice(text.as_bytes()), 1)
}

const WEB: &str = r#"{"metadata":{"namespace":"a","name":"web"},"spec":{"clusterIP":"10.96.0.9",
 "clusterIPs":["10.96.0.9","fd00::9"],"type":"LoadBalancer","externalTrafficPolicy":"Local",
 "healthCheckNodePort":31000,"sessionAffinity":"ClientIP","selector":{"a":"b"},
 "sessionAffinityConfig":{"clientIP":{"timeoutSeconds":60}},
 "loadBalancerSourceRanges":[" 10.1.2.3/8 ","fd00::/8","::/0"],
 "ports":[{"name":"http","port":80,"targetPort":"web","nodePort":30080},
          {"name":"dns","port":53,"targetPort":5353,"protocol":"UDP"}]},
 "status":{"loadBalancer":{"ingress":[{"ip":"192.0.2.1"},{"ip":"192.0.2.2","ipMode":"Proxy"}]}}}"#;

fn slice(name: &str, service: &str, endpoints: &str) -> String {
    let labels = format!(r#"{{"kubernetes.io/service-name":"{service}"}}"#);
    format!(
        r#"{{"metadata":{{"namespace":"a","name":"{name}","labels":{labels}}},"addressType":"IPv4",
        "ports":[{{"name":"http","port":8080,"protocol":"TCP"}}],"endpoints":[{endpoints}]}}"#
    )
}

fn changed(services: &mut Services, kind: &str, change: &Change) -> Vec<String> {
    let resource = if kind == "service" { Services::SERVICES } else { Services::SLICES };
    let keys = services.apply(resource, change).unwrap();
    keys.iter().map(ToString::to_string).collect()
}

#[test]
fn a_service_is_read_as_the_api_means_it() {
    let mut services = Services::default();
    assert_eq!(changed(&mut services, "service", &put(WEB)), ["a/web"]);
    assert!(changed(&mut services, "service", &put(WEB)).is_empty(), "nothing is new");
    let web = services.get(&Key::new("a", "web")).unwrap();
    assert_eq!(web.kind, ServiceType::LoadBalancer);
    assert_eq!(web.cluster_ip(Family::V6).unwrap().to_string(), "fd00::9");
    assert_eq!((web.external_policy, web.internal_policy), (Policy::Local, Policy::Cluster));
    assert_eq!((web.affinity, web.health_check_node_port, web.selects), (Some(60), 31000, true));
    let ranges: Vec<String> = web.source_ranges.iter().map(ToString::to_string).collect();
    assert_eq!(ranges, ["10.0.0.0/8"], "a range of everything opens its family");
    assert_eq!(web.ingress_ips.len(), 1, "ipMode Proxy is not a packet's destination");
    let ports: Vec<_> = web.ports.iter().map(|p| (p.protocol, &*p.target)).collect();
    assert_eq!(ports, [(Protocol::Tcp, "web"), (Protocol::Udp, "5353")]);
    assert!(services.apply(Services::SERVICES, &put("[]")).is_err());
}

#[test]
fn an_endpoint_in_two_slices_counts_once_and_the_living_one_wins() {
    let mut services = Services::default();
    let old = r#"{"addresses":["10.0.0.1"],"conditions":{"ready":false,"terminating":true}}"#;
    let new = r#"{"addresses":["10.0.0.1"]},{"addresses":["10.0.0.2"]}"#;
    for (first, second) in [(old, new), (new, old)] {
        changed(&mut services, "slice", &put(&slice("s1", "web", first)));
        changed(&mut services, "slice", &put(&slice("s2", "web", second)));
        let key = Key::new("a", "web");
        let found = services.endpoints(&key, ("http", Protocol::Tcp), Family::V4);
        assert_eq!(found.len(), 2);
        assert!(found.values().all(|endpoint| endpoint.ready && !endpoint.terminating));
        assert!(services.endpoints(&key, ("http", Protocol::Udp), Family::V4).is_empty());
    }
}

#[test]
fn a_slice_that_moves_changes_both_services() {
    let mut services = Services::default();
    assert_eq!(changed(&mut services, "slice", &put(&slice("s", "web", ""))), ["a/web"]);
    let moved = slice("s", "api", "");
    assert_eq!(changed(&mut services, "slice", &put(&moved)), ["a/api", "a/web"]);
    assert_eq!(changed(&mut services, "slice", &gone(&moved)), ["a/api"]);
    assert!(changed(&mut services, "slice", &gone(&moved)).is_empty());
}

#[test]
fn what_a_new_watch_does_not_tell_is_gone() {
    let mut services = Services::default();
    changed(&mut services, "service", &put(WEB));
    changed(&mut services, "slice", &put(&slice("s", "web", "")));
    changed(&mut services, "slice", &put(&slice("t", "api", "")));
    assert!(!services.is_synced());
    assert!(changed(&mut services, "service", &Change::Synced(1)).is_empty());
    changed(&mut services, "slice", &Change::Synced(1));
    assert!(services.is_synced());
    changed(&mut services, "slice", &Change::Restarted);
    changed(&mut services, "slice", &put(&slice("t", "api", "")));
    assert_eq!(changed(&mut services, "slice", &Change::Synced(2)), ["a/web"]);
    assert!(services.is_synced(), "a view that was complete once is never taken back");
}

#[test]
fn labels_take_a_slice_or_a_service_away_from_the_proxy() {
    let mut services = Services::default();
    let one = slice("s", "web", r#"{"addresses":["10.0.0.1"]}"#);
    let label = r#""labels":{"service.kubernetes.io/headless":"","#;
    let marked = one.replace(r#""labels":{"#, label);
    changed(&mut services, "slice", &put(&marked));
    let key = Key::new("a", "web");
    assert!(services.endpoints(&key, ("http", Protocol::Tcp), Family::V4).is_empty());
    assert_eq!(services.slices(&key).count(), 1, "who else asks sees it");
    let other = r#""name":"web","labels":{"service.kubernetes.io/service-proxy-name":"x"}"#;
    changed(&mut services, "service", &put(&WEB.replace(r#""name":"web""#, other)));
    assert!(!services.get(&key).unwrap().is_proxied());
}
