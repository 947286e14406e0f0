//! Services and their EndpointSlices, compact, as the packet rules and the DNS zone need them.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;

use knarr_api::Resource;
use knarr_api::ip::{Cidr, Family};
use knarr_reconcile::Change;

use crate::decode;

/// A Service by namespace and name.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Key {
    /// A key from its words.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_string(), name: name.to_string() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A transport protocol that Services know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP, also where nothing is said.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The name in the API and in service records, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }

    /// The protocol number of IP.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// `spec.type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServiceType {
    /// A cluster address only.
    #[default]
    ClusterIp,
    /// A port on every node too.
    NodePort,
    /// Addresses of a load balancer too.
    LoadBalancer,
    /// A name for something elsewhere.
    ExternalName,
}

/// Which endpoints may be chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// All of the cluster's.
    #[default]
    Cluster,
    /// This node's only.
    Local,
}

/// One port of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name, empty where there is one port only.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port at the Service's addresses.
    pub port: u16,
    /// The port at every node's addresses, 0 for none.
    pub node_port: u16,
    /// What the endpoints' port is called or numbered; their slices say the number.
    pub target: String,
}

/// A Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// `spec.type`.
    pub kind: ServiceType,
    /// Its addresses, at most one of a family; empty while headless or external.
    pub cluster_ips: Vec<IpAddr>,
    /// Whether `clusterIP` is `None`.
    pub headless: bool,
    /// What an ExternalName Service stands for.
    pub external_name: String,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Whether it has a selector.
    pub selects: bool,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// Addresses of its load balancer that packets arrive with (ipMode VIP).
    pub ingress_ips: Vec<IpAddr>,
    /// For how many seconds a client keeps its endpoint, with ClientIP affinity.
    pub affinity: Option<u32>,
    /// For traffic to cluster addresses.
    pub internal_policy: Policy,
    /// For traffic to node ports, external and load balancer addresses.
    pub external_policy: Policy,
    /// Who may use the load balancer's addresses; empty for everybody.
    pub source_ranges: Vec<Cidr>,
    /// Whether endpoints are named before they are ready.
    pub publish_not_ready: bool,
    /// `spec.trafficDistribution`, empty for none.
    pub traffic_distribution: String,
    /// Where this node tells a load balancer whether it has endpoints; 0 for nowhere.
    pub health_check_node_port: u16,
    /// Whether another proxy takes care of it (label `service.kubernetes.io/service-proxy-name`),
    /// or its packets are nobody's business (label `service.kubernetes.io/headless`).
    pub unproxied: bool,
}

impl Service {
    /// Its cluster address of a family.
    pub fn cluster_ip(&self, family: Family) -> Option<IpAddr> {
        self.cluster_ips.iter().find(|ip| Family::of(**ip) == family).copied()
    }

    /// Whether packets to it are this proxy's work.
    pub fn is_proxied(&self) -> bool {
        !self.unproxied && self.kind != ServiceType::ExternalName && !self.cluster_ips.is_empty()
    }
}

/// A port that the endpoints of a slice have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointPort {
    /// The name of the Service's port.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number; 0 where the slice says none.
    pub port: u16,
}

/// The object behind an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// `Pod`, mostly.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address (the first that its slice names).
    pub address: IpAddr,
    /// The name it wants to have below the Service's, empty for none.
    pub hostname: String,
    /// The node it is on, empty when unknown.
    pub node_name: String,
    /// The zone it is in, empty when unknown.
    pub zone: String,
    /// What it is.
    pub target: Option<Target>,
    /// Whether it takes new connections (always, where its Service publishes who is not ready).
    pub ready: bool,
    /// Whether it would answer, terminating or not.
    pub serving: bool,
    /// Whether it is about to end.
    pub terminating: bool,
    /// Zones that should use it.
    pub for_zones: Vec<String>,
    /// Nodes that should use it.
    pub for_nodes: Vec<String>,
}

/// An EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The Service it belongs to, by its label `kubernetes.io/service-name`.
    pub service: Key,
    /// What all of its endpoints listen on.
    pub ports: Vec<EndpointPort>,
    /// Its endpoints; those without an IP address are left out.
    pub endpoints: Vec<Endpoint>,
    /// As [`Service::unproxied`].
    pub unproxied: bool,
}

/// Services and their endpoints.
#[derive(Clone, Debug, Default)]
pub struct Services {
    services: BTreeMap<Key, Service>,
    /// By Service, then by the slice's own name.
    slices: BTreeMap<Key, BTreeMap<String, Slice>>,
    /// Which Service a slice (by its own key) belongs to.
    owners: BTreeMap<Key, Key>,
    stale: [BTreeSet<Key>; 2],
    synced: [bool; 2],
}

const SERVICE: usize = 0;
const SLICE: usize = 1;

impl Services {
    /// Services, as `apply` takes them.
    pub const SERVICES: Resource = Resource::new("v1", "services");
    /// EndpointSlices, as `apply` takes them.
    pub const SLICES: Resource = Resource::new("discovery.k8s.io/v1", "endpointslices");

    /// Takes a watch item in and says which Services are different now; items of other resources
    /// change nothing.
    ///
    /// # Errors
    /// When an object is not what its resource says; nothing changes then.
    pub fn apply(
        &mut self,
        resource: Resource,
        change: &Change,
    ) -> Result<BTreeSet<Key>, serde_json::Error> {
        let table = match resource {
            Self::SERVICES => SERVICE,
            Self::SLICES => SLICE,
            _ => return Ok(BTreeSet::new()),
        };
        Ok(match change {
            Change::Restarted => {
                self.stale[table] = match table {
                    SERVICE => self.services.keys().cloned().collect(),
                    _ => self.owners.keys().cloned().collect(),
                };
                BTreeSet::new()
            }
            Change::Put(bytes, _) if table == SERVICE => {
                let (key, service) = decode::service(bytes)?;
                self.stale[table].remove(&key);
                self.put_service(key, service)
            }
            Change::Put(bytes, _) => {
                let (key, slice) = decode::slice(bytes)?;
                self.stale[table].remove(&key);
                self.put_slice(key, slice)
            }
            Change::Deleted(bytes, _) => {
                let key = decode::key(bytes)?;
                self.stale[table].remove(&key);
                self.remove(table, key)
            }
            Change::Synced(_) => {
                self.synced[table] = true;
                let stale = core::mem::take(&mut self.stale[table]);
                stale.into_iter().flat_map(|key| self.remove(table, key)).collect()
            }
        })
    }

    /// Whether everything there is has been told once.
    pub fn is_synced(&self) -> bool {
        self.synced == [true; 2]
    }

    /// All Services.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Service)> {
        self.services.iter()
    }

    /// A Service.
    pub fn get(&self, key: &Key) -> Option<&Service> {
        self.services.get(key)
    }

    /// The slices of a Service (which itself may not be there), by their own names.
    pub fn slices(&self, key: &Key) -> impl Iterator<Item = (&str, &Slice)> {
        let slices = self.slices.get(key).into_iter().flatten();
        slices.map(|(name, slice)| (name.as_str(), slice))
    }

    /// What packets to one port of a Service can go to, in a family: each address and port once,
    /// in order. Slices that are not the proxy's (those of headless Services) are left out here;
    /// [`Services::slices`] has them.
    /// While two slices name the same one, that which is not terminating counts.
    pub fn endpoints(
        &self,
        key: &Key,
        (port, protocol): (&str, Protocol),
        family: Family,
    ) -> BTreeMap<(IpAddr, u16), &Endpoint> {
        let mut found = BTreeMap::new();
        for slice in self.slices.get(key).into_iter().flat_map(BTreeMap::values) {
            let fits = |p: &&EndpointPort| p.name == port && p.protocol == protocol && p.port != 0;
            for listens in slice.ports.iter().filter(fits) {
                for endpoint in &slice.endpoints {
                    let at = (endpoint.address, listens.port);
                    let known = found.contains_key(&at) && endpoint.terminating;
                    if Family::of(endpoint.address) == family && !slice.unproxied && !known {
                        found.insert(at, endpoint);
                    }
                }
            }
        }
        found
    }

    fn put_service(&mut self, key: Key, service: Service) -> BTreeSet<Key> {
        if self.services.get(&key) == Some(&service) {
            return BTreeSet::new();
        }
        self.services.insert(key.clone(), service);
        BTreeSet::from([key])
    }

    fn put_slice(&mut self, key: Key, slice: Option<Slice>) -> BTreeSet<Key> {
        let Some(slice) = slice else { return self.remove(SLICE, key) };
        let old = self.owners.get(&key).and_then(|owner| self.slices.get(owner)?.get(&key.name));
        if old == Some(&slice) {
            return BTreeSet::new();
        }
        let owner = slice.service.clone();
        let mut changed = self.remove(SLICE, key.clone());
        self.slices.entry(owner.clone()).or_default().insert(key.name.clone(), slice);
        self.owners.insert(key, owner.clone());
        changed.insert(owner);
        changed
    }

    fn remove(&mut self, table: usize, key: Key) -> BTreeSet<Key> {
        if table == SERVICE {
            let gone = self.services.remove(&key);
            return gone.map(|_| key).into_iter().collect();
        }
        let Some(owner) = self.owners.remove(&key) else { return BTreeSet::new() };
        if let Some(slices) = self.slices.get_mut(&owner) {
            slices.remove(&key.name);
            if slices.is_empty() {
                self.slices.remove(&owner);
            }
        }
        BTreeSet::from([owner])
    }
}
