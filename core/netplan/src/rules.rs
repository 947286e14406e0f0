//! Services into elements of the table, and what changes of them.
//!
//! [`Rules`] holds what the kernel has been told. A change of one EndpointSlice plans one Service
//! anew and compares its elements with those it had; the table is never planned whole again.
//! Two Services may claim the same element (an external address, say): the older claim counts
//! until it is given up. Shared chains are made when first needed and stay until the table is
//! loaded anew; there are only as many as there are different numbers of endpoints.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::net::IpAddr;

use crate::chains::{self, Frontend, LOCAL_BASE, Local, Pick, Shared};
use crate::choose::{Backend, Choice, Place, choose, is_external};
use crate::model::{Key, Policy, Service, ServicePort, Services};
use crate::nft::{Bytes, Chain, Element, ElementKey, Value, Verdict};
use crate::sets::{Role, Set};
use knarr_api::ip::{Cidr, Family};

/// What does not change while a proxy runs.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Where Pods get their addresses from.
    pub cluster_cidrs: Vec<Cidr>,
    /// Which of the node's addresses have node ports; empty for all.
    pub node_port_addresses: Vec<Cidr>,
}

impl Config {
    pub(crate) fn cidrs(&self, family: Family) -> impl Iterator<Item = Cidr> {
        self.cluster_cidrs.iter().filter(move |cidr| cidr.family() == family).copied()
    }
}

/// What the cluster's nodes say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nodes {
    /// This one.
    pub place: Place,
    /// Its addresses.
    pub own: BTreeSet<IpAddr>,
    /// Addresses of all.
    pub all: BTreeSet<IpAddr>,
}

/// What is to be done to the table, in this order, as one transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// Elements that go.
    pub remove: Vec<Element>,
    /// Chains that are new.
    pub chains: Vec<Chain>,
    /// Elements that come.
    pub add: Vec<Element>,
}

impl Delta {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.chains.is_empty() && self.add.is_empty()
    }
}

/// Who wants an element, oldest first.
type Claims = Vec<(u32, Value)>;

/// What the kernel has been told.
#[derive(Debug, Default)]
pub struct Rules {
    config: Config,
    nodes: Nodes,
    elements: BTreeMap<ElementKey, Claims>,
    claims: BTreeMap<Key, (u32, Vec<ElementKey>)>,
    chains: BTreeSet<Shared>,
    next: u32,
}

/// Claimant of what no Service asks for.
const FRAME: u32 = 0;

impl Rules {
    /// An empty table.
    pub fn new(config: Config) -> Self {
        Self { config, next: FRAME + 1, ..Self::default() }
    }

    /// Everything, for a kernel that has nothing: the frame's chains, shared chains, elements.
    pub fn everything(&self) -> Delta {
        let shared = self.chains.iter().map(|shared| shared.chain(&self.config));
        let mut chains = chains::frame(&self.config);
        // Those who are sent to come first, and the frame sends to none of the shared ones.
        chains.extend(shared);
        let add = self
            .elements
            .iter()
            .map(|(key, claims)| (*key, claims.first().expect("unclaimed ones go").1.clone()));
        Delta { remove: Vec::new(), chains, add: add.collect() }
    }

    /// Takes in what the nodes say; all Services that depend on it are planned anew.
    pub fn set_nodes(&mut self, nodes: Nodes, services: &Services) -> Delta {
        let mut touched = Vec::new();
        let touch = &mut |key, before| touched.push((key, before));
        let keys = self.take_nodes(nodes, services, touch);
        self.replan(services, &keys, touched)
    }

    /// Takes in what the nodes say; the Services that depend on it.
    fn take_nodes(
        &mut self,
        nodes: Nodes,
        services: &Services,
        touch: &mut impl FnMut(ElementKey, Option<Value>),
    ) -> BTreeSet<Key> {
        let replan = self.nodes.place != nodes.place || self.nodes.own != nodes.own;
        let wanted: Vec<Element> = nodes.all.iter().map(node_ip).collect();
        let old: Vec<ElementKey> = self.nodes.all.iter().map(|ip| node_ip(ip).0).collect();
        self.nodes = nodes;
        self.claim(FRAME, &old, wanted, touch);
        let all = self.claims.keys().chain(services.iter().map(|(key, _)| key));
        all.filter(|_| replan).cloned().collect()
    }

    /// Takes everything in at once, for a kernel that is told [`Rules::everything`] next: what
    /// changes is not worked out. No `nodes`: they say what they said.
    pub fn learn(&mut self, nodes: Option<Nodes>, services: &Services, changed: &BTreeSet<Key>) {
        let untold = &mut |_, _| {};
        let keys = nodes.map_or_else(BTreeSet::new, |n| self.take_nodes(n, services, untold));
        let keys = keys.iter().chain(changed.difference(&keys));
        let needed = self.take(services, keys, untold);
        self.chains.extend(chains::with_targets(needed));
    }

    /// Plans Services anew.
    pub fn plan<'a>(
        &mut self,
        services: &Services,
        changed: impl IntoIterator<Item = &'a Key>,
    ) -> Delta {
        self.replan(services, changed, Vec::new())
    }

    fn replan<'a>(
        &mut self,
        services: &Services,
        changed: impl IntoIterator<Item = &'a Key>,
        mut touched: Vec<(ElementKey, Option<Value>)>,
    ) -> Delta {
        let needed = self.take(services, changed, &mut |key, before| touched.push((key, before)));
        let mut delta = self.settle(touched);
        let new = chains::with_targets(needed).into_iter().filter(|one| self.chains.insert(*one));
        delta.chains = new.map(|shared| shared.chain(&self.config)).collect();
        delta
    }

    /// Takes in what Services want now; the chains that they need.
    fn take<'a>(
        &mut self,
        services: &Services,
        changed: impl IntoIterator<Item = &'a Key>,
        touch: &mut impl FnMut(ElementKey, Option<Value>),
    ) -> BTreeSet<Shared> {
        let mut needed = BTreeSet::new();
        for key in changed {
            let (id, old) = self.claims.remove(key).unwrap_or_else(|| {
                self.next += 1;
                (self.next, Vec::new())
            });
            let plan = ServicePlan::of(services, key, &self.nodes);
            needed.extend(plan.chains);
            let keys: Vec<ElementKey> = plan.elements.iter().map(|(key, _)| *key).collect();
            self.claim(id, &old, plan.elements, touch);
            if !keys.is_empty() {
                self.claims.insert(key.clone(), (id, keys));
            }
        }
        needed
    }

    /// Replaces what one claimant wants; `touch` is told what counted before.
    fn claim(
        &mut self,
        id: u32,
        old: &[ElementKey],
        new: Vec<Element>,
        touch: &mut impl FnMut(ElementKey, Option<Value>),
    ) {
        let kept: BTreeSet<ElementKey> = match old {
            [] => BTreeSet::new(),
            _ => new.iter().map(|(key, _)| *key).collect(),
        };
        for key in old.iter().filter(|key| !kept.contains(key)) {
            let Some(claims) = self.elements.get_mut(key) else { continue };
            touch(*key, claims.first().map(|(_, value)| value.clone()));
            claims.retain(|(claimant, _)| *claimant != id);
            if claims.is_empty() {
                self.elements.remove(key);
            }
        }
        for (key, value) in new {
            let claims = self.elements.entry(key).or_default();
            let before = claims.first().map(|(_, value)| value.clone());
            match claims.iter_mut().find(|(claimant, _)| *claimant == id) {
                Some((_, own)) if *own == value => continue,
                Some((_, own)) => *own = value,
                None => {
                    // By age of the Service, not of the claim: all of one port's elements must
                    // be the same Service's.
                    let at = claims.partition_point(|(claimant, _)| *claimant < id);
                    claims.insert(at, (id, value));
                }
            }
            touch(key, before);
        }
    }

    /// Compares what counted before with what counts now.
    fn settle(&self, mut touched: Vec<(ElementKey, Option<Value>)>) -> Delta {
        touched.sort_by_key(|(key, _)| *key);
        touched.dedup_by(|(later, _), (first, _)| later == first);
        let mut delta = Delta::default();
        for (key, before) in touched {
            let claims = self.elements.get(&key);
            let after = claims.and_then(|claims| claims.first()).map(|(_, value)| value.clone());
            if before == after {
                continue;
            }
            delta.remove.extend(before.map(|value| (key, value)));
            delta.add.extend(after.map(|value| (key, value)));
        }
        delta
    }
}

fn node_ip(address: &IpAddr) -> Element {
    let set = Set { role: Role::NodeIps, family: Family::of(*address) };
    (ElementKey { set, key: Bytes::default().address(address) }, Value::Member)
}

/// What one Service wants.
#[derive(Default)]
struct ServicePlan {
    elements: Vec<Element>,
    chains: Vec<Shared>,
}

impl ServicePlan {
    fn of(services: &Services, key: &Key, nodes: &Nodes) -> Self {
        let mut plan = Self::default();
        let Some(service) = services.get(key).filter(|service| service.is_proxied()) else {
            return plan;
        };
        let own = nodes.place.node.as_str();
        for family in Family::ALL {
            let Some(cluster_ip) = service.cluster_ip(family) else { continue };
            plan.put(
                family,
                Role::ClusterIps,
                Bytes::default().address(&cluster_ip),
                Value::Member,
            );
            for port in &service.ports {
                let found = services.endpoints(key, (&port.name, port.protocol), family);
                let choice = choose(service, port, &found, &nodes.place);
                let here = found.iter().filter(|(at, endpoint)| {
                    let chosen = choice.cluster.contains(at) || choice.local.contains(at);
                    chosen && !endpoint.node_name.is_empty() && endpoint.node_name == own
                });
                let here: Vec<Backend> = here.map(|(at, _)| *at).collect();
                let want = PortPlan { service, port, family, choice: &choice, nodes };
                want.plan(cluster_ip, &here, &mut plan);
            }
        }
        plan
    }

    fn put(&mut self, family: Family, role: Role, key: Bytes, value: Value) {
        let key = ElementKey { set: Set { role, family }, key };
        self.elements.push((key, value));
    }

    fn send(&mut self, shared: Shared) -> Value {
        self.chains.push(shared);
        shared.value()
    }
}

/// One port of a Service in one family.
struct PortPlan<'a> {
    service: &'a Service,
    port: &'a ServicePort,
    family: Family,
    choice: &'a Choice,
    nodes: &'a Nodes,
}

fn count(backends: &[Backend]) -> u32 {
    u32::try_from(backends.len()).unwrap_or(u32::MAX)
}

/// The name of an endpoint for the clients that keep it: FNV-1a of it, the same whoever else is
/// there. Should two of a Service ever share one, their clients share the later.
fn name(endpoint: &[u8]) -> u32 {
    endpoint
        .iter()
        .fold(0x811c_9dc5, |name, byte| (name ^ u32::from(*byte)).wrapping_mul(0x100_0193))
}

impl PortPlan<'_> {
    fn plan(&self, cluster_ip: IpAddr, here: &[Backend], plan: &mut ServicePlan) {
        for (address, port) in here {
            let key = Bytes::default().address(address).address(address);
            let key = key.protocol(self.port.protocol).port(*port);
            plan.put(self.family, Role::Hairpin, key, Value::Member);
        }
        self.internal(cluster_ip, plan);
        if is_external(self.service, self.port) {
            let own = |ip: &&IpAddr| Family::of(**ip) == self.family;
            let ips = self.service.external_ips.iter().chain(&self.service.ingress_ips);
            for ip in ips.filter(own) {
                self.external(Frontend::Address, *ip, self.port.port, plan);
            }
            if self.port.node_port != 0 {
                let any = chains::any_address(self.family);
                self.external(Frontend::Node, any, self.port.node_port, plan);
            }
            self.guard(plan);
        }
    }

    fn key(&self, address: IpAddr, port: u16) -> Bytes {
        Bytes::default().address(&address).protocol(self.port.protocol).port(port)
    }

    fn pick(&self, frontend: Frontend, policy: Policy) -> Pick {
        let backends = self.backends(policy);
        let (family, affinity) = (self.family, self.service.affinity);
        Pick { family, frontend, policy: Local::from(policy), count: count(backends), affinity }
    }

    fn backends(&self, policy: Policy) -> &[Backend] {
        if policy == Policy::Local { &self.choice.local } else { &self.choice.cluster }
    }

    /// Whether packets under a policy have somewhere to go; else what becomes of them.
    fn lost(&self, policy: Policy) -> Option<Value> {
        if !self.choice.anybody {
            Some(chains::refused())
        } else if self.backends(policy).is_empty() {
            Some(Value::Verdict(Verdict::Drop))
        } else {
            None
        }
    }

    fn internal(&self, cluster_ip: IpAddr, plan: &mut ServicePlan) {
        let (policy, port) = (self.service.internal_policy, self.port.port);
        let key = self.key(cluster_ip, port);
        if let Some(value) = self.lost(policy) {
            return plan.put(self.family, Role::NoEndpoints, key, value);
        }
        let to = plan.send(Shared::Pick(self.pick(Frontend::Address, policy)));
        plan.put(self.family, Role::Services, key, to);
        self.numbers(cluster_ip, port, policy, plan);
    }

    /// Packets from outside. Where only local endpoints count and there are none, those from
    /// inside still have somewhere to go.
    fn external(&self, at: Frontend, address: IpAddr, port: u16, plan: &mut ServicePlan) {
        let policy = self.service.external_policy;
        if let Some(value) = self.lost(policy) {
            plan.put(self.family, Role::NoEndpoints, self.key(address, port), value);
        }
        if !self.choice.anybody {
            return;
        }
        let everyone = self.pick(at, Policy::Cluster);
        let shared = match policy {
            Policy::Cluster => Shared::Outside(everyone),
            Policy::Local => Shared::OutsideLocal(everyone, count(&self.choice.local)),
        };
        let to = plan.send(shared);
        plan.put(self.family, Role::Services, self.key(address, port), to);
        self.numbers(address, port, Policy::Cluster, plan);
        if policy == Policy::Local {
            self.numbers(address, port, Policy::Local, plan);
        }
    }

    /// The numbered endpoints behind an address and port.
    fn numbers(&self, address: IpAddr, port: u16, policy: Policy, plan: &mut ServicePlan) {
        let (base, kept) = match policy {
            Policy::Cluster => (0, Role::Kept),
            Policy::Local => (LOCAL_BASE, Role::KeptLocal),
        };
        for (number, (to, at)) in (base..).zip(self.backends(policy)) {
            let key = |number| self.key(address, port).index(number);
            let endpoint = Bytes::default().address(to).port(*at);
            if self.service.affinity.is_none() {
                plan.put(self.family, Role::Endpoints, key(number), Value::Data(endpoint));
                continue;
            }
            let name = name(&endpoint);
            let named = Value::Data(Bytes::default().index(name));
            plan.put(self.family, Role::Names, key(number), named);
            plan.put(self.family, kept, key(name), Value::Data(endpoint));
        }
    }

    /// Who may use the load balancer's addresses. Where this node may, so may the addresses
    /// themselves: what the node sends there has them as its source.
    fn guard(&self, plan: &mut ServicePlan) {
        let own = |cidr: &&Cidr| cidr.family() == self.family;
        let mut sources: Vec<Cidr> =
            self.service.source_ranges.iter().filter(own).copied().collect();
        if sources.is_empty() {
            return;
        }
        let ips = self.service.ingress_ips.iter().filter(|ip| Family::of(**ip) == self.family);
        if sources.iter().any(|cidr| self.nodes.own.iter().any(|ip| cidr.contains(*ip))) {
            let prefix = self.family.bits();
            sources.extend(ips.clone().filter_map(|ip| Cidr::new(*ip, prefix)));
        }
        for ip in ips {
            let key = self.key(*ip, self.port.port);
            plan.put(self.family, Role::Firewall, key, Value::Member);
            for cidr in outermost(&sources) {
                let last = key.address(&cidr.last());
                let first = key.address(&cidr.network());
                plan.put(self.family, Role::Sources, first, Value::Until(last));
            }
        }
    }
}

/// Ranges without those that lie in others: the kernel wants no overlaps.
fn outermost(ranges: &[Cidr]) -> BTreeSet<Cidr> {
    let inside = |a: &Cidr, b: &Cidr| a != b && b.contains(a.network()) && b.prefix() <= a.prefix();
    ranges.iter().filter(|a| !ranges.iter().any(|b| inside(a, b))).copied().collect()
}
