//! Endpoints, EndpointSlices, ServiceCIDRs, IPAddresses.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::vec::Vec;

use knarr_api::ip::{self, Cidr, Class, Family};
use knarr_api::{Cause, names};
use serde_json::Value;

use super::part::Part;
use super::words;

const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
const MAX_ENDPOINTS: usize = 1000;
const MAX_ADDRESSES: usize = 100;
const MAX_PORTS: usize = 20_000;
const MAX_HINTS: usize = 8;
const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCH: usize = 32;
const MAX_SEARCH_CHARS: usize = 2048;

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

/// NetworkPolicies: peers, ports and ranges.
pub(super) fn network_policy(tree: &Value, out: &mut Vec<Cause>) {
    let spec = Part::root(tree).get("spec");
    spec.get("podSelector").label_selector(out);
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for rule in spec.get(direction).items() {
            rule.get("ports").items().for_each(|port| policy_port(&port, out));
            rule.get(peers).items().for_each(|peer| policy_peer(&peer, out));
        }
    }
    let kinds = spec.get("policyTypes");
    if kinds.items().count() > 2 {
        return kinds.invalid("may not specify more than two policyTypes", out);
    }
    for kind in kinds.items().filter(|kind| !["Egress", "Ingress"].contains(&kind.text())) {
        kind.not_supported(&["Egress", "Ingress"], out);
    }
}

fn policy_port(port: &Part<'_>, out: &mut Vec<Cause>) {
    let (protocol, number, end) = (port.get("protocol"), port.get("port"), port.get("endPort"));
    if protocol.is_set() && !PROTOCOLS.contains(&protocol.text()) {
        protocol.not_supported(&PROTOCOLS, out);
    }
    match number.int() {
        Some(first) => {
            words::port(&number, out);
            if end.int().is_some_and(|last| last < first) {
                end.invalid("must be greater than or equal to `port`", out);
            }
            if end.is_set() {
                end.within(1, 65_535, out);
            }
        }
        None if number.is_set() => {
            if end.is_set() {
                end.invalid("may not be specified when `port` is non-numeric", out);
            }
            words::port(&number, out);
        }
        None if end.is_set() => {
            end.invalid("may not be specified when `port` is not specified", out);
        }
        None => {}
    }
}

fn policy_peer(peer: &Part<'_>, out: &mut Vec<Cause>) {
    let selectors = [peer.get("podSelector"), peer.get("namespaceSelector")];
    let block = peer.get("ipBlock");
    let chosen = selectors.iter().filter(|selector| selector.is_set()).count();
    selectors.iter().for_each(|selector| selector.label_selector(out));
    match (chosen, block.is_set()) {
        (0, false) => peer.required("must specify a peer", out),
        (1.., true) => peer.forbidden("may not specify both ipBlock and another peer", out),
        _ => {}
    }
    if block.is_set() {
        ip_block(&block, out);
    }
}

fn ip_block(block: &Part<'_>, out: &mut Vec<Cause>) {
    let cidr = block.get("cidr");
    if !cidr.must_be(out) {
        return;
    }
    let whole = match cidr.text().parse::<Cidr>() {
        Ok(whole) => whole,
        Err(why) => return cidr.invalid(&format!("{why}"), out),
    };
    for except in block.get("except").items() {
        match except.text().parse::<Cidr>() {
            Err(why) => except.invalid(&format!("{why}"), out),
            Ok(part) if !whole.contains(part.network()) || whole.prefix() >= part.prefix() => {
                except.invalid("must be a strict subset of `cidr`", out);
            }
            Ok(_) => {}
        }
    }
}

/// A Pod's own wishes for the names of others: `hosts` entries and resolvers.
pub(super) fn pod_names(spec: &Part<'_>, out: &mut Vec<Cause>) {
    for alias in spec.get("hostAliases").items() {
        address(&alias.get("ip"), out);
        let names = alias.get("hostnames");
        names.items().for_each(|name| name.follows(names::dns1123_subdomain, out));
    }
    let config = spec.get("dnsConfig");
    let servers = config.get("nameservers");
    if spec.get("dnsPolicy").text() == "None" {
        if !config.is_set() {
            return config.required("must provide `dnsConfig` when `dnsPolicy` is None", out);
        }
        if servers.is_empty() {
            let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            return servers.required(why, out);
        }
    }
    if servers.items().count() > MAX_NAMESERVERS {
        servers.invalid(&format!("must not have more than {MAX_NAMESERVERS} nameservers"), out);
    }
    servers.items().for_each(|server| address(&server, out));
    let search = config.get("searches");
    if search.items().count() > MAX_SEARCH {
        search.invalid(&format!("must not have more than {MAX_SEARCH} search paths"), out);
    }
    if search.texts().join(" ").len() > MAX_SEARCH_CHARS {
        let why = format!(
            "must not have more than {MAX_SEARCH_CHARS} characters (including spaces) in the \
             search list"
        );
        search.invalid(&why, out);
    }
    for option in config.get("options").items().filter(|option| option.get("name").is_empty()) {
        option.required("must not be empty", out);
    }
}

/// An address of any class: it is only to be written right.
fn address(address: &Part<'_>, out: &mut Vec<Cause>) {
    if let Err(why) = ip::parse(address.text()) {
        address.invalid(&why, out);
    }
}

/// A node's ranges of Pod addresses: at most one of each family, none that Pods cannot have.
pub(super) fn pod_ranges(spec: &Part<'_>, live: Option<&Value>, out: &mut Vec<Cause>) {
    let list = spec.get("podCIDRs");
    let before = live.map(|live| crate::object::strings(live, "/spec/podCIDRs"));
    if before.is_some_and(|before| !before.is_empty() && before != list.texts()) {
        let why = "node updates may not change podCIDR except from \"\" to valid";
        return list.forbidden(why, out);
    }
    let mut families = BTreeSet::new();
    for item in list.items() {
        match item.text().parse::<Cidr>() {
            Err(why) => item.invalid(&format!("{why}"), out),
            Ok(range) => {
                let why = range.unusable();
                why.into_iter().for_each(|why| item.invalid(&why, out));
                if !families.insert(range.family()) {
                    let why = "may specify no more than one CIDR for each IP family";
                    list.invalid(why, out);
                }
            }
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
