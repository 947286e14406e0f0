//! The sets and maps of the table: a row each, for both families.

use alloc::vec::Vec;
use core::fmt::{self, Display};

use crate::nft::Field;
use knarr_api::ip::Family;

/// What a set or map is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Cluster addresses of Services.
    ClusterIps,
    /// Addresses of the cluster's nodes.
    NodeIps,
    /// Where packets to a Service go.
    Services,
    /// The endpoints of Services, numbered.
    Endpoints,
    /// What becomes of packets to Services that have nobody for them.
    NoEndpoints,
    /// Load balancer addresses that not everybody may use.
    Firewall,
    /// Who may use them.
    Sources,
    /// Connections of an endpoint with itself.
    Hairpin,
    /// The names of endpoints that clients keep, numbered as the endpoints.
    Names,
    /// Clients that keep their endpoint, by its name.
    Clients,
    /// Endpoints that may be kept, by name.
    Kept,
    /// Endpoints of this node that may be kept where only those count.
    KeptLocal,
}

/// A set or map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Set {
    /// What it is for.
    pub role: Role,
    /// The family of its addresses.
    pub family: Family,
}

/// What holds a set's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A set.
    Set,
    /// A set of ranges in each field.
    Ranges,
    /// A map to data.
    Map,
    /// A map to data that packets write, for a time.
    Dynamic,
    /// A map to verdicts.
    Verdicts,
}

/// What the kernel is told about a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Fields of the key.
    pub key: Vec<Field>,
    /// Fields of the data, if it has some.
    pub data: Vec<Field>,
    /// What holds its elements.
    pub shape: Shape,
}

const ROLES: [(Role, &str); 12] = [
    (Role::ClusterIps, "cluster-ips"),
    (Role::NodeIps, "node-ips"),
    (Role::Services, "services"),
    (Role::Endpoints, "endpoints"),
    (Role::NoEndpoints, "no-endpoints"),
    (Role::Firewall, "firewall"),
    (Role::Sources, "sources"),
    (Role::Hairpin, "hairpin"),
    (Role::Names, "names"),
    (Role::Clients, "clients"),
    (Role::Kept, "kept"),
    (Role::KeptLocal, "kept-local"),
];

impl Set {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        let roles = ROLES.iter().map(|(role, _)| *role);
        roles.flat_map(|role| Family::ALL.map(|family| Self { role, family }))
    }

    /// What the kernel is told about it.
    pub fn row(self) -> Row {
        use Field::{Index, Port, Protocol};
        let address = Field::Address(self.family);
        let (key, data, shape): (&[Field], &[Field], Shape) = match self.role {
            Role::ClusterIps | Role::NodeIps => (&[address], &[], Shape::Set),
            Role::Services | Role::NoEndpoints => {
                (&[address, Protocol, Port], &[], Shape::Verdicts)
            }
            Role::Endpoints | Role::Kept | Role::KeptLocal => {
                (&[address, Protocol, Port, Index], &[address, Port], Shape::Map)
            }
            Role::Names => (&[address, Protocol, Port, Index], &[Index], Shape::Map),
            Role::Firewall => (&[address, Protocol, Port], &[], Shape::Set),
            Role::Sources => (&[address, Protocol, Port, address], &[], Shape::Ranges),
            Role::Hairpin => (&[address, address, Protocol, Port], &[], Shape::Set),
            Role::Clients => (&[address, address, Protocol, Port], &[Index], Shape::Dynamic),
        };
        Row { key: key.to_vec(), data: data.to_vec(), shape }
    }
}

impl Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = ROLES.iter().find(|(role, _)| *role == self.role).map_or("", |(_, name)| name);
        write!(f, "{name}-{}", if self.family == Family::V4 { 4 } else { 6 })
    }
}
