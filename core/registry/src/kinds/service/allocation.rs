//! Cluster IPs and node ports: given in the Service's own transaction, out of ServiceCIDR objects
//! and the port range (KEP-1880, KEP-3070, KEP-3668).

use alloc::borrow::ToOwned;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::IpAddr;

use bytes::Bytes;
use knarr_api::ip::{Cidr, Family, parse};
use knarr_api::{Cause, GroupResource, Kind, ObjectKey, Status};
use serde_json::{Value, json};

use super::{families, intent};
use crate::call::World;
use crate::claims::{Claims, Taken};
use crate::object::{set, strings, text, tree};

/// Who manages the IPAddress objects that stand for cluster IPs.
const MANAGER: &str = "ipallocator.k8s.io";
/// A key per node port lies below this.
const PORTS: &str = "/registry/ranges/servicenodeports/";
/// So many addresses of a range are tried, from a random one on.
const MAX_TRIES: u128 = 1 << 16;

type Wrong = Vec<Cause>;

/// Fills in families, cluster IPs and node ports, and says what that takes and frees.
pub(crate) fn allocate(
    world: &World<'_>,
    kind: &Kind,
    service: &mut Value,
    live: Option<&Value>,
) -> Result<Claims, Status> {
    let name = text(service, "/metadata/name").to_owned();
    let invalid = |causes: Wrong| Status::invalid(kind, &name, &causes);
    let mut pool = Pool::of(world, service)?;
    let settled = families::is_settled(service, live);
    families::settle(service, live, &pool.offered).map_err(invalid)?;
    if !settled {
        pool.addresses(service, live)?.map_err(invalid)?;
    }
    pool.ports(service, live)?.map_err(invalid)?;
    if let Some(live) = live {
        pool.free(service, live);
    }
    Ok(pool.claims)
}

/// What a Service that is gone gives back.
pub(crate) fn release(world: &World<'_>, service: &Value) -> Result<Claims, Status> {
    let mut pool = Pool::of(world, service)?;
    pool.free(&Value::Null, service);
    Ok(pool.claims)
}

/// The keys that stand for the node ports a Service has.
pub(crate) fn port_claims(service: &Value) -> Vec<(String, Bytes)> {
    let word = |pointer| text(service, pointer);
    let owner = ObjectKey::new(word("/metadata/namespace"), word("/metadata/name"));
    held_ports(service).into_iter().map(|port| port_claim(port, &owner)).collect()
}

fn port_claim(port: u16, owner: &ObjectKey) -> (String, Bytes) {
    (format!("{PORTS}{port}"), owner.to_string().into())
}

fn cluster_ips(service: &Value) -> Vec<String> {
    let mut addresses = strings(service, "/spec/clusterIPs");
    addresses.retain(|address| address != "None");
    addresses
}

/// Node ports, that of the health check included.
fn held_ports(service: &Value) -> BTreeSet<u16> {
    let mut ports = intent::node_ports(service);
    let health = service["spec"]["healthCheckNodePort"].as_u64();
    ports.extend(health.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0));
    ports
}

/// How much of a range is kept for those who ask for a certain place: one `step`th, within bounds.
fn kept_for_static(size: u128, max: u128, step: u128) -> u128 {
    if size <= 16 { 0 } else { (size / step).clamp(16, max) }
}

/// Positions of a range in the order they are tried: its upper part from a random place on, round;
/// then its lower part.
fn order(size: u128, lower: u128, seed: u128) -> impl Iterator<Item = u128> {
    let upper = size - lower;
    let first = (0..upper.min(MAX_TRIES)).map(move |at| lower + (seed + at) % upper);
    first.chain(0..lower)
}

struct Pool<'a> {
    world: World<'a>,
    addresses: &'a Kind,
    ranges: Vec<Cidr>,
    offered: Vec<Family>,
    parent: ObjectKey,
    claims: Claims,
}

impl<'a> Pool<'a> {
    fn of(world: &World<'a>, service: &Value) -> Result<Self, Status> {
        let find = |resource| {
            let found = world.catalog().preferred(GroupResource { group: NETWORKING, resource });
            found.ok_or_else(|| Status::internal(format!("{resource} are not served")))
        };
        let (addresses, ranges) = (find("ipaddresses")?, find("servicecidrs")?);
        let mut found: Vec<Value> = world
            .snapshot
            .prefix(&ranges.prefix())
            .iter()
            .filter_map(|kv| tree(&kv.value).ok())
            .filter(is_usable)
            .collect();
        // The cluster's own range is the first choice, and its first family the cluster's.
        found.sort_by_key(|range| text(range, "/metadata/name") != "kubernetes");
        let ranges: Vec<Cidr> = found
            .iter()
            .flat_map(|range| strings(range, "/spec/cidrs"))
            .filter_map(|cidr| cidr.parse().ok())
            .collect();
        let mut offered: Vec<Family> = Vec::new();
        for range in &ranges {
            if !offered.contains(&range.family()) {
                offered.push(range.family());
            }
        }
        let word = |pointer| text(service, pointer).to_owned();
        let parent = ObjectKey::new(word("/metadata/namespace"), word("/metadata/name"));
        let world = *world;
        Ok(Self { world, addresses, ranges, offered, parent, claims: Claims::default() })
    }

    fn address_key(&self, address: IpAddr) -> String {
        self.addresses.key(&ObjectKey::new("", address.to_string()))
    }

    /// Whose an address is; `None` when it is free.
    fn owner(&self, address: IpAddr) -> Option<ObjectKey> {
        let held = self.world.snapshot.key(&self.address_key(address))?;
        let held = tree(&held.value).unwrap_or_default();
        let word = |field: &str| text(&held, &format!("/spec/parentRef/{field}")).to_owned();
        Some(ObjectKey::new(word("namespace"), word("name")))
    }

    /// Completes `clusterIPs`, one for each family.
    fn addresses(
        &mut self,
        service: &mut Value,
        live: Option<&Value>,
    ) -> Result<Result<(), Wrong>, Status> {
        if !intent::needs_cluster_ip(service) || intent::is_headless(service) {
            return Ok(Ok(()));
        }
        let before = live.map(cluster_ips).unwrap_or_default();
        let asked = cluster_ips(service);
        let mut given = Vec::new();
        for (at, family) in strings(service, "/spec/ipFamilies").iter().enumerate() {
            let Some(family) = Family::parse(family) else { continue };
            let address = match asked.get(at) {
                Some(text) if before.contains(text) => text.clone(),
                Some(text) => match self.take_asked(text) {
                    Ok(()) => text.clone(),
                    Err(why) => return Ok(Err([refusal(text, &asked, why)].into())),
                },
                None => self.take_any(family)?,
            };
            given.push(address);
        }
        if let Some(first) = given.first() {
            set(service, &["spec", "clusterIP"], first.as_str().into());
            set(service, &["spec", "clusterIPs"], json!(given));
        }
        Ok(Ok(()))
    }

    fn take_asked(&mut self, text: &str) -> Result<(), String> {
        let address = parse(text)?;
        let range = self.ranges.iter().find(|range| range.contains(address));
        let range = range.ok_or("the provided network does not match the current range")?;
        if !usable(range, address) {
            return Err(format!(
                "the provided IP ({text}) is not in the valid range. The range of valid IPs is \
                 {range}"
            ));
        }
        match self.owner(address) {
            Some(owner) if owner != self.parent => {
                Err("provided IP is already allocated".to_owned())
            }
            Some(_) => Ok(()),
            None => {
                self.take_address(address);
                Ok(())
            }
        }
    }

    fn take_any(&mut self, family: Family) -> Result<String, Status> {
        for range in self.ranges.clone().iter().filter(|range| range.family() == family) {
            let host = u32::from(family.bits() - range.prefix());
            let size = 1u128.checked_shl(host).unwrap_or(u128::MAX);
            let lower = kept_for_static(size, 256, 16);
            let places = order(size, lower, self.world.seed >> 64);
            let addresses = places.filter_map(|at| range.nth(at));
            let mut free = addresses.filter(|address| {
                usable(range, *address) && self.owner(*address).is_none_or(|own| own == self.parent)
            });
            if let Some(address) = free.next() {
                drop(free);
                if self.owner(address).is_none() {
                    self.take_address(address);
                }
                return Ok(address.to_string());
            }
        }
        let name = &self.parent.name;
        let why = format!("failed to allocate a serviceIP for Service {name:?}: range is full");
        Err(Status::internal(why))
    }

    /// Claims an address by the IPAddress object of its name.
    fn take_address(&mut self, address: IpAddr) {
        let world = self.world;
        let ObjectKey { namespace, name } = &self.parent;
        let mut object = json!({
            "metadata": {"name": address.to_string(), "labels": {
                "ipaddress.kubernetes.io/ip-family": Family::of(address).word(),
                "ipaddress.kubernetes.io/managed-by": MANAGER}},
            "spec": {"parentRef":
                {"group": "", "resource": "services", "namespace": namespace, "name": name}},
        });
        // Its uid must differ from the Service's, and from that of a second address.
        let salt = (self.claims.before.len() + self.claims.take.len() + 1) as u128;
        let seed = world.seed.rotate_left(32) ^ salt;
        crate::meta::prepare_create(self.addresses, &mut object, "", world.now, seed);
        let Kind { group, version, kind, .. } = self.addresses;
        if let Some(id) = world.schema().kind_type(group, version, kind) {
            world.schema().normalize(id, &mut object);
        }
        let value: Bytes =
            knarr_schema::encode(kind, &self.addresses.api_version(), &object).into();
        let taken = Taken { key: self.address_key(address), value };
        // One object of a resource a transaction: see `claims`.
        let addresses = self.addresses.prefix();
        match self.claims.take.iter().any(|taken| taken.key.starts_with(&addresses)) {
            true => self.claims.before.push(taken),
            false => self.claims.take.push(taken),
        }
    }

    /// Completes node ports.
    fn ports(
        &mut self,
        service: &mut Value,
        live: Option<&Value>,
    ) -> Result<Result<(), Wrong>, Status> {
        let mut held = live.map(held_ports).unwrap_or_default();
        if intent::needs_node_ports(service) {
            let gives = intent::allocates(service);
            let ports = service["spec"]["ports"].as_array().cloned().unwrap_or_default();
            // Ports of one number (TCP and UDP) share the node port that one of them names.
            for (at, port) in ports.iter().enumerate() {
                let asked = port["nodePort"].as_u64().unwrap_or_default();
                let number = match (asked, twin(service, at)) {
                    (0, _) if !gives => continue,
                    (0, Some(twin)) => twin,
                    (0, None) => self.take_any_port(&mut held)?,
                    (asked, _) => u16::try_from(asked).unwrap_or_default(),
                };
                if let Err(why) = self.take_port(number, &mut held) {
                    let field = format!("spec.ports[{at}].nodePort");
                    return Ok(Err([Cause::invalid(field, &number.into(), &why)].into()));
                }
                service["spec"]["ports"][at]["nodePort"] = number.into();
            }
        }
        if intent::needs_health_port(service) {
            let asked = service["spec"]["healthCheckNodePort"].as_u64().unwrap_or_default();
            let number = match asked {
                0 => self.take_any_port(&mut held)?,
                asked => u16::try_from(asked).unwrap_or_default(),
            };
            self.take_port(number, &mut held).map_err(|why| {
                let text = "failed to allocate requested HealthCheck NodePort";
                Status::internal(format!("{text} {number}: {why}"))
            })?;
            set(service, &["spec", "healthCheckNodePort"], number.into());
        }
        Ok(Ok(()))
    }

    fn port_owner(&self, port: u16) -> bool {
        self.world.snapshot.key(&format!("{PORTS}{port}")).is_some()
    }

    fn take_port(&mut self, port: u16, held: &mut BTreeSet<u16>) -> Result<(), String> {
        let range = &self.world.config.node_ports;
        if held.contains(&port) {
            return Ok(());
        }
        if !range.contains(&port) {
            return Err(format!(
                "provided port is not in the valid range. The range of valid ports is {}-{}",
                range.start(),
                range.end()
            ));
        }
        if self.port_owner(port) {
            return Err("provided port is already allocated".to_owned());
        }
        held.insert(port);
        let (key, value) = port_claim(port, &self.parent);
        self.claims.take.push(Taken { key, value });
        Ok(())
    }

    /// A port that is free; the caller takes it.
    fn take_any_port(&self, held: &mut BTreeSet<u16>) -> Result<u16, Status> {
        let range = &self.world.config.node_ports;
        let (start, size) = (u128::from(*range.start()), range.len() as u128);
        let places = order(size, kept_for_static(size, 128, 32), self.world.seed);
        let ports = places.filter_map(|at| u16::try_from(start + at).ok());
        let mut free = ports.filter(|port| !held.contains(port) && !self.port_owner(*port));
        let why = "failed to allocate a nodePort: range is full";
        free.next().ok_or_else(|| Status::internal(why))
    }

    /// Gives back what `live` has and `service` has not.
    fn free(&mut self, service: &Value, live: &Value) {
        let kept = cluster_ips(service);
        let gone = cluster_ips(live).into_iter().filter(|address| !kept.contains(address));
        let mine = gone
            .filter_map(|address| parse(&address).ok())
            .filter(|address| self.owner(*address).is_some_and(|owner| owner == self.parent));
        // One object of a resource a transaction; the controller frees a second one.
        let address = mine.into_iter().next().map(|address| self.address_key(address));
        let (held, before) = (held_ports(service), held_ports(live));
        let ports = before.difference(&held).map(|port| format!("{PORTS}{port}"));
        for key in address.into_iter().chain(ports) {
            if let Some(kv) = self.world.snapshot.key(&key) {
                self.claims.free.push((key, kv.mod_revision));
            }
        }
    }
}

const NETWORKING: &str = "networking.k8s.io";

/// Whether new Services may take from a ServiceCIDR: it is not going, and not found unfit.
fn is_usable(range: &Value) -> bool {
    let conditions = range.pointer("/status/conditions").and_then(Value::as_array);
    let unfit = conditions
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "False");
    text(range, "/metadata/deletionTimestamp").is_empty() && !unfit
}

/// Neither the network's own address nor, in IPv4, its broadcast address.
fn usable(range: &Cidr, address: IpAddr) -> bool {
    address != range.network() && (address.is_ipv6() || address != range.last())
}

fn refusal(address: &str, asked: &[String], why: String) -> Cause {
    let why = format!("failed to allocate IP {address}: {why}");
    Cause::invalid("spec.clusterIPs", &json!(asked), &why)
}

/// The node port of another port of the same number.
fn twin(service: &Value, at: usize) -> Option<u16> {
    let ports = service["spec"]["ports"].as_array()?;
    let number = &ports.get(at)?["port"];
    let of = |port: &Value| port["nodePort"].as_u64().filter(|node| *node != 0);
    let twins = ports.iter().filter(|port| port["port"] == *number);
    twins.into_iter().find_map(of).and_then(|node| u16::try_from(node).ok())
}
