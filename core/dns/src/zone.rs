//! The names of Services, of their endpoints and of Pods.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use knarr_api::Resource;
use knarr_api::ip::Cidr;
use knarr_netplan::{Endpoint, Key, Service, ServiceType, Services};
use knarr_reconcile::Change;

use crate::lookup::{Found, Record};
use crate::wire::{Code, Query, Reply};

/// How long an answer is good for, in seconds.
const TTL: u32 = 30;
const SCHEMA: &str = "1.1.0";

/// The zone of one cluster.
#[derive(Clone, Debug)]
pub struct Zone {
    domain: String,
    /// Whose reverse names are ours even while nobody has them.
    ranges: Vec<Cidr>,
    services: Services,
    /// Names by address.
    reverse: BTreeMap<IpAddr, BTreeSet<String>>,
    /// The addresses under which a Service stands in `reverse`.
    listed: BTreeMap<Key, Vec<(IpAddr, String)>>,
    /// Namespaces that have Services, and how many.
    namespaces: BTreeMap<String, usize>,
}

impl Zone {
    /// An empty zone for a domain (`cluster.local`); addresses in `ranges` are this cluster's.
    pub fn new(domain: &str, ranges: Vec<Cidr>) -> Self {
        Self {
            domain: domain.trim_matches('.').to_ascii_lowercase(),
            ranges,
            services: Services::default(),
            reverse: BTreeMap::new(),
            listed: BTreeMap::new(),
            namespaces: BTreeMap::new(),
        }
    }

    /// The domain.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Whether every Service has been told once.
    pub fn is_synced(&self) -> bool {
        self.services.is_synced()
    }

    /// Takes a watch item in.
    ///
    /// # Errors
    /// When an object is not what its resource says.
    pub fn apply(&mut self, resource: Resource, change: &Change) -> Result<(), serde_json::Error> {
        for key in self.services.apply(resource, change)? {
            self.relist(key);
        }
        Ok(())
    }

    /// Brings the reverse names of a Service up to date.
    fn relist(&mut self, key: Key) {
        let names = self.reverse_names(&key);
        let old = match names.is_empty() && self.services.get(&key).is_none() {
            true => self.listed.remove(&key),
            false => self.listed.insert(key.clone(), names.clone()),
        };
        match (&old, self.services.get(&key).is_some()) {
            (None, true) => *self.namespaces.entry(key.namespace.clone()).or_default() += 1,
            (Some(_), false) => {
                if let Some(count) = self.namespaces.get_mut(&key.namespace) {
                    *count -= 1;
                    if *count == 0 {
                        self.namespaces.remove(&key.namespace);
                    }
                }
            }
            _ => {}
        }
        for (address, name) in old.into_iter().flatten() {
            if let Some(known) = self.reverse.get_mut(&address) {
                known.remove(&name);
                if known.is_empty() {
                    self.reverse.remove(&address);
                }
            }
        }
        for (address, name) in names {
            self.reverse.entry(address).or_default().insert(name);
        }
    }

    fn reverse_names(&self, key: &Key) -> Vec<(IpAddr, String)> {
        let Some(service) = self.services.get(key) else { return Vec::new() };
        let own = service.cluster_ips.iter().map(|ip| (*ip, self.name_of(key)));
        let hosts = self.endpoints(key).filter(|(endpoint, _)| !endpoint.hostname.is_empty());
        let hosts =
            hosts.map(|(endpoint, _)| (endpoint.address, self.host_name(key, &endpoint.hostname)));
        own.chain(hosts).collect()
    }

    fn name_of(&self, key: &Key) -> String {
        format!("{}.{}.svc.{}", key.name, key.namespace, self.domain)
    }

    fn host_name(&self, key: &Key, host: &str) -> String {
        format!("{host}.{}", self.name_of(key))
    }

    /// The endpoints that are named: those that are ready.
    fn endpoints<'a>(
        &'a self,
        key: &'a Key,
    ) -> impl Iterator<Item = (&'a Endpoint, &'a [knarr_netplan::EndpointPort])> {
        let slices = self.services.slices(key);
        slices.flat_map(|(_, slice)| {
            let ready = slice.endpoints.iter().filter(|endpoint| endpoint.ready);
            ready.map(|endpoint| (endpoint, &slice.ports[..]))
        })
    }

    /// What is known about a name (in lower case, without the last dot).
    pub fn find(&self, name: &str) -> Found {
        if let Some(address) = reversed(name) {
            return self.pointer(address);
        }
        let inner = match name.strip_suffix(self.domain.as_str()) {
            Some("") => return Found::of(self.apex()),
            Some(inner) => inner.strip_suffix('.'),
            None => None,
        };
        let Some(inner) = inner else { return Found::Elsewhere };
        let labels: Vec<&str> = inner.split('.').collect();
        match labels[..] {
            ["dns-version"] => Found::of([Record::Text(SCHEMA.into())].into()),
            ["svc" | "pod"] => Found::place(),
            [namespace, "svc" | "pod"] => match self.namespaces.contains_key(namespace) {
                true => Found::place(),
                false => Found::Nothing,
            },
            [dashed, _, "pod"] => match undashed(dashed) {
                Some(address) => Found::of([Record::Address(address)].into()),
                None => Found::Nothing,
            },
            [ref rest @ .., name, namespace, "svc"] => {
                self.service(&Key::new(namespace, name), rest)
            }
            _ => Found::Nothing,
        }
    }

    fn apex(&self) -> Vec<Record> {
        [self.authority(), Record::NameServer(format!("ns.dns.{}", self.domain))].into()
    }

    fn authority(&self) -> Record {
        Record::Authority { domain: self.domain.clone(), serial: 1, least: TTL }
    }

    fn pointer(&self, address: IpAddr) -> Found {
        match self.reverse.get(&address) {
            Some(names) => Found::of(names.iter().cloned().map(Record::Pointer).collect()),
            None if self.ranges.iter().any(|range| range.contains(address)) => Found::Nothing,
            None => Found::Elsewhere,
        }
    }

    /// A Service, or what stands below its name.
    fn service(&self, key: &Key, below: &[&str]) -> Found {
        let Some(service) = self.services.get(key) else { return Found::Nothing };
        if service.kind == ServiceType::ExternalName {
            let alias = service.external_name.trim_end_matches('.').to_ascii_lowercase();
            return match below {
                [] => Found::of([Record::Alias(alias)].into()),
                _ => Found::Nothing,
            };
        }
        match below {
            [] if service.headless => self.headless(key, service),
            [] => {
                let own = service.cluster_ips.iter().copied().map(Record::Address);
                let ports = self.ports(key, service, |_, _| true);
                Found::of(own.chain(ports.0).collect())
            }
            [port, protocol] => self.named_port(key, service, port, protocol),
            ["_tcp" | "_udp" | "_sctp"] => Found::place(),
            [host] => self.host(key, host),
            _ => Found::Nothing,
        }
    }

    fn headless(&self, key: &Key, service: &Service) -> Found {
        let addresses: BTreeSet<IpAddr> =
            self.endpoints(key).map(|(endpoint, _)| endpoint.address).collect();
        if addresses.is_empty() {
            return Found::Nothing;
        }
        let (ports, hosts) = self.ports(key, service, |_, _| true);
        let records = addresses.into_iter().map(Record::Address).chain(ports).collect();
        Found::Name { records, hosts }
    }

    fn host(&self, key: &Key, host: &str) -> Found {
        let of_host = self.endpoints(key).filter(|(endpoint, _)| host_of(endpoint) == host);
        let addresses: BTreeSet<IpAddr> = of_host.map(|(endpoint, _)| endpoint.address).collect();
        match addresses.is_empty() {
            true => Found::Nothing,
            false => Found::of(addresses.into_iter().map(Record::Address).collect()),
        }
    }

    fn named_port(&self, key: &Key, service: &Service, port: &str, protocol: &str) -> Found {
        let (Some(port), Some(protocol)) = (port.strip_prefix('_'), protocol.strip_prefix('_'))
        else {
            return Found::Nothing;
        };
        let (records, hosts) = self.ports(key, service, |name, of| name == port && of == protocol);
        match records.is_empty() {
            true => Found::Nothing,
            false => Found::Name { records, hosts },
        }
    }

    /// Service records for the ports that are wanted (by name and protocol), and their hosts.
    fn ports(
        &self,
        key: &Key,
        service: &Service,
        wanted: impl Fn(&str, &str) -> bool,
    ) -> (Vec<Record>, Vec<(String, IpAddr)>) {
        let named = |name: &str, protocol: &str| !name.is_empty() && wanted(name, protocol);
        if !service.headless {
            let mut ports =
                service.ports.iter().filter(|p| named(&p.name, p.protocol.name())).peekable();
            if ports.peek().is_none() {
                return Default::default();
            }
            let name = self.name_of(key);
            let record = |port| Record::Service { weight: 100, port, target: name.clone() };
            let records: Vec<Record> = ports.map(|port| record(port.port)).collect();
            let hosts = service.cluster_ips.iter().map(|ip| (name.clone(), *ip));
            return (records, hosts.collect());
        }
        let mut found = BTreeSet::new();
        let mut hosts = BTreeSet::new();
        for (endpoint, ports) in self.endpoints(key) {
            for port in ports.iter().filter(|p| named(&p.name, p.protocol.name())) {
                let target = self.host_name(key, &host_of(endpoint));
                hosts.insert((target.clone(), endpoint.address));
                found.insert((target, port.port));
            }
        }
        let weight = u16::try_from(100 / found.len().max(1)).unwrap_or(1).max(1);
        let records = found.into_iter();
        let records = records.map(|(target, port)| Record::Service { weight, port, target });
        (records.collect(), hosts.into_iter().collect())
    }

    /// Writes what was found as the answer to a question; `limit` in bytes. Addresses of one name
    /// begin with the `turn`th, so that clients which take the first share the load.
    pub fn reply(&self, query: &Query, found: &Found, limit: usize, turn: usize) -> Vec<u8> {
        let Found::Name { records, hosts } = found else {
            return self.negative(query, Code::NxDomain, limit);
        };
        let mut wanted: Vec<&Record> =
            records.iter().filter(|record| record.is_wanted(query.kind)).collect();
        if wanted.is_empty() {
            return self.negative(query, Code::NoError, limit);
        }
        let places = wanted.len();
        wanted.rotate_left(turn % places);
        let mut reply = Reply::new(query, Code::NoError, limit);
        for record in &wanted {
            reply.answer(None, record, TTL);
        }
        let named = |host: &str| {
            wanted.iter().any(|r| matches!(r, Record::Service { target, .. } if target == host))
        };
        for (host, address) in hosts.iter().filter(|(host, _)| named(host)) {
            reply.additional(host, &Record::Address(*address), TTL);
        }
        reply.finish()
    }

    /// Answers that a name stands for another one, which has these addresses.
    pub fn alias(
        &self,
        query: &Query,
        target: &str,
        addresses: &[IpAddr],
        limit: usize,
    ) -> Vec<u8> {
        let mut reply = Reply::new(query, Code::NoError, limit);
        reply.answer(None, &Record::Alias(target.to_string()), TTL);
        for address in addresses {
            reply.answer(Some(target), &Record::Address(*address), TTL);
        }
        reply.finish()
    }

    fn negative(&self, query: &Query, code: Code, limit: usize) -> Vec<u8> {
        let mut reply = Reply::new(query, code, limit);
        reply.authority(&self.domain, &self.authority(), TTL);
        reply.finish()
    }
}

/// What an endpoint is called below its Service: the name it wants, or its address with dashes.
fn host_of(endpoint: &Endpoint) -> String {
    match endpoint.hostname.as_str() {
        "" => endpoint.address.to_string().replace(['.', ':'], "-"),
        name => name.to_string(),
    }
}

/// An address written with dashes.
fn undashed(label: &str) -> Option<IpAddr> {
    let v4 = label.replace('-', ".").parse::<Ipv4Addr>().map(IpAddr::V4);
    v4.or_else(|_| label.replace('-', ":").parse::<Ipv6Addr>().map(IpAddr::V6)).ok()
}

/// The address that a reverse name stands for.
fn reversed(name: &str) -> Option<IpAddr> {
    if let Some(octets) = name.strip_suffix(".in-addr.arpa") {
        let mut octets: Vec<&str> = octets.split('.').collect();
        octets.reverse();
        return octets.join(".").parse::<Ipv4Addr>().ok().map(IpAddr::V4);
    }
    let nibbles = name.strip_suffix(".ip6.arpa")?;
    let mut number = 0_u128;
    let mut count = 0;
    for nibble in nibbles.split('.').rev() {
        let digit = u8::from_str_radix(nibble, 16).ok().filter(|_| nibble.len() == 1)?;
        number = number << 4 | u128::from(digit);
        count += 1;
    }
    (count == 32).then(|| IpAddr::V6(number.into()))
}
