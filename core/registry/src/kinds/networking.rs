//! Endpoints, EndpointSlices, ServiceCIDRs, IPAddresses.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::vec::Vec;

use knarr_api::ip::{self, Cidr, Class, Family};
use knarr_api::{Cause, names};
use serde_json::Value;

use super::part::Part;

const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
const MAX_ENDPOINTS: usize = 1000;
const MAX_ADDRESSES: usize = 100;
const MAX_PORTS: usize = 20_000;
const MAX_HINTS: usize = 8;

/// An address that traffic can be sent to.
pub(super) fn endpoint_address(address: &Part<'_>, out: &mut Vec<Cause>) {
    match ip::parse(address.text()) {
        Err(why) => address.invalid(&why, out),
        Ok(parsed) if parsed.is_unspecified() => {
            address.invalid(&format!("may not be unspecified ({parsed})"), out);
        }
        Ok(parsed) => {
            let why = Class::of(parsed).no_endpoint();
            why.into_iter().for_each(|why| address.invalid(why, out));
        }
    }
}

pub(super) fn endpoints(tree: &Value, out: &mut Vec<Cause>) {
    for subset in Part::root(tree).get("subsets").items() {
        let (ready, not_ready) = (subset.get("addresses"), subset.get("notReadyAddresses"));
        if ready.is_empty() && not_ready.is_empty() {
            subset.required("must specify `addresses` or `notReadyAddresses`", out);
        }
        for address in ready.items().chain(not_ready.items()) {
            endpoint_address(&address.get("ip"), out);
            address.get("hostname").if_set_follows(names::dns1123_label, out);
            address.get("nodeName").if_set_follows(names::dns1123_subdomain, out);
        }
        let ports = subset.get("ports");
        let several = ports.items().count() > 1;
        for port in ports.items() {
            let name = port.get("name");
            if several || !name.is_empty() {
                name.must_follow(names::dns1123_label, out);
            }
            port.get("port").within(1, 65_535, out);
            port.get("protocol").one_of(&PROTOCOLS, out);
            port.get("appProtocol").if_set_follows(names::qualified_name, out);
        }
    }
}

/// A list that holds no more than so many; true if so.
fn few(list: &Part<'_>, max: usize, out: &mut Vec<Cause>) -> bool {
    let count = list.items().count();
    if count > max {
        list.too_many(count, max, out);
    }
    count <= max
}

pub(super) fn endpoint_slice(tree: &Value, live: Option<&Value>, out: &mut Vec<Cause>) {
    let root = Part::root(tree);
    let kind = root.get("addressType");
    kind.one_of(&["FQDN", "IPv4", "IPv6"], out);
    if let Some(live) = live {
        kind.immutable(&live["addressType"], out);
    }
    slice_ports(&root.get("ports"), out);
    let endpoints = root.get("endpoints");
    let unchanged = live.is_some_and(|live| live["endpoints"] == *endpoints.value);
    if !unchanged && few(&endpoints, MAX_ENDPOINTS, out) {
        endpoints.items().for_each(|endpoint| slice_endpoint(&endpoint, kind.text(), out));
    }
}

fn slice_ports(ports: &Part<'_>, out: &mut Vec<Cause>) {
    if !few(ports, MAX_PORTS, out) {
        return;
    }
    let mut seen = BTreeSet::new();
    for port in ports.items() {
        let name = port.get("name");
        name.if_set_follows(names::dns1123_label, out);
        if !seen.insert(name.text()) {
            name.duplicate(name.value, out);
        }
        port.get("protocol").one_of(&PROTOCOLS, out);
        port.get("appProtocol").if_set_follows(names::qualified_name, out);
    }
}

fn slice_endpoint(endpoint: &Part<'_>, kind: &str, out: &mut Vec<Cause>) {
    let addresses = endpoint.get("addresses");
    if addresses.is_empty() {
        addresses.required("must contain at least 1 address", out);
    }
    few(&addresses, MAX_ADDRESSES, out);
    for address in addresses.items() {
        match Family::parse(kind) {
            Some(family) => {
                let parsed = ip::parse(address.text());
                if parsed.is_ok_and(|parsed| Family::of(parsed) != family) {
                    address.invalid(&format!("must be an {kind} address"), out);
                }
                endpoint_address(&address, out);
            }
            None if kind == "FQDN" => address.follows(names::dns1123_subdomain, out),
            None => {}
        }
    }
    endpoint.get("nodeName").if_set_follows(names::dns1123_subdomain, out);
    endpoint.get("hostname").if_set_follows(names::dns1123_label, out);
    let hints = endpoint.get("hints");
    hint_names(&hints.get("forZones"), names::label_value, out);
    hint_names(&hints.get("forNodes"), names::dns1123_subdomain, out);
}

fn hint_names(list: &Part<'_>, rule: fn(&str) -> names::Verdict, out: &mut Vec<Cause>) {
    let mut seen = BTreeSet::new();
    if few(list, MAX_HINTS, out) {
        for name in list.items().map(|item| item.get("name")) {
            if !seen.insert(name.text()) {
                name.duplicate(name.value, out);
            }
            name.follows(rule, out);
        }
    }
}

pub(super) fn service_cidr(tree: &Value, live: Option<&Value>, out: &mut Vec<Cause>) {
    let list = Part::root(tree).get("spec").get("cidrs");
    let before = live.map(|live| crate::object::strings(live, "/spec/cidrs"));
    let now = list.texts();
    if let Some(before) = before {
        match before.len() == now.len() || (before.len(), now.len()) == (1, 2) {
            true => list
                .items()
                .zip(&before)
                .filter(|(item, old)| item.text() != *old)
                .for_each(|(item, _)| item.invalid("field is immutable", out)),
            false => list.invalid("field is immutable", out),
        }
    }
    match now.len() {
        0 => return list.required("at least one CIDR required", out),
        1 | 2 => {}
        _ => return list.invalid("may only hold up to 2 values", out),
    }
    let mut families = BTreeSet::new();
    for item in list.items() {
        match item.text().parse::<Cidr>() {
            Err(why) => item.invalid(&format!("{why}"), out),
            Ok(range) => {
                families.insert(range.family());
                let why = range.unusable();
                why.into_iter().for_each(|why| item.invalid(&why, out));
                if !item.text().starts_with(&format!("{}/", range.network())) {
                    let why =
                        format!("must not have bits set beyond the prefix length: use {range}");
                    item.invalid(&why, out);
                }
            }
        }
    }
    if now.len() == 2 && families.len() == 1 {
        let why = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and \
                   2001:db8::/64";
        list.invalid(why, out);
    }
}

pub(super) fn ip_address(tree: &Value, live: Option<&Value>, out: &mut Vec<Cause>) {
    let parent = Part::root(tree).get("spec").get("parentRef");
    if let Some(live) = live {
        parent.immutable(&live["spec"]["parentRef"], out);
    }
    if !parent.is_set() {
        return parent.required("", out);
    }
    parent.get("group").if_set_follows(names::dns1123_subdomain, out);
    for field in ["resource", "name"] {
        parent.get(field).must_follow(names::path_segment, out);
    }
    parent.get("namespace").if_set_follows(names::path_segment, out);
}
