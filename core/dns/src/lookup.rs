//! What the zone says about a name.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;

use crate::kind;

/// One record, without its owner.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Record {
    /// A or AAAA.
    Address(IpAddr),
    /// CNAME.
    Alias(String),
    /// PTR.
    Pointer(String),
    /// NS.
    NameServer(String),
    /// TXT.
    Text(String),
    /// SRV, of priority 0.
    Service {
        /// Its share among its kin.
        weight: u16,
        /// The port.
        port: u16,
        /// The host.
        target: String,
    },
    /// SOA.
    Authority {
        /// The zone.
        domain: String,
        /// The version of the zone.
        serial: u32,
        /// For how long "no" is remembered, in seconds.
        least: u32,
    },
}

impl Record {
    /// Its type's number.
    pub fn kind(&self) -> u16 {
        match self {
            Self::Address(IpAddr::V4(_)) => kind::A,
            Self::Address(IpAddr::V6(_)) => kind::AAAA,
            Self::Alias(_) => kind::CNAME,
            Self::Pointer(_) => kind::PTR,
            Self::NameServer(_) => kind::NS,
            Self::Text(_) => kind::TXT,
            Self::Service { .. } => kind::SRV,
            Self::Authority { .. } => kind::SOA,
        }
    }

    /// Whether who asks for records of type `kind` wants this one.
    pub fn is_wanted(&self, wanted: u16) -> bool {
        matches!(wanted, kind::ANY) || self.kind() == wanted || matches!(self, Self::Alias(_))
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) if address.is_ipv4() => write!(f, "A {address}"),
            Self::Address(address) => write!(f, "AAAA {address}"),
            Self::Alias(name) => write!(f, "CNAME {name}"),
            Self::Pointer(name) => write!(f, "PTR {name}"),
            Self::NameServer(name) => write!(f, "NS {name}"),
            Self::Text(text) => write!(f, "TXT {text:?}"),
            Self::Service { weight, port, target } => {
                write!(f, "SRV 0 {weight} {port} {target}")
            }
            Self::Authority { domain, least, .. } => write!(f, "SOA {domain} {least}"),
        }
    }
}

/// What is known about a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// It is there; its records of every type (none: the name is only a place in the tree), and
    /// hosts that records name, with their addresses.
    Name {
        /// Its own.
        records: Vec<Record>,
        /// Those of the hosts it names.
        hosts: Vec<(String, IpAddr)>,
    },
    /// It is of the zone, and not there.
    Nothing,
    /// It is none of the zone's.
    Elsewhere,
}

impl Found {
    pub(crate) fn place() -> Self {
        Self::of(Vec::new())
    }

    pub(crate) fn of(records: Vec<Record>) -> Self {
        Self::Name { records, hosts: Vec::new() }
    }
}
