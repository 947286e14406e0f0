//! The cluster's DNS zone (Kubernetes DNS specification 1.1.0): questions in, answers out.
//!
//! [`Query`] is a question off the wire; [`Zone`] holds the Services and says what is known about
//! a name, or that somebody else has to be asked; [`Reply`] is an answer on its way to the wire.
//! Sockets, forwarding and the cache of what others answered are the caller's.
#![no_std]

extern crate alloc;

mod clients;
mod lookup;
mod search;
mod wire;
mod zone;

pub use clients::Clients;
pub use lookup::{Found, Record};
pub use search::search_path;
pub use wire::{Code, Malformed, Query, Reply, addresses_in, least_ttl, set_ttls};
pub use zone::Zone;

/// Record types that the zone knows.
pub mod kind {
    /// IPv4 address.
    pub const A: u16 = 1;
    /// Name server.
    pub const NS: u16 = 2;
    /// Another name.
    pub const CNAME: u16 = 5;
    /// Start of authority.
    pub const SOA: u16 = 6;
    /// Name of an address.
    pub const PTR: u16 = 12;
    /// Text.
    pub const TXT: u16 = 16;
    /// IPv6 address.
    pub const AAAA: u16 = 28;
    /// Host and port of a service.
    pub const SRV: u16 = 33;
    /// EDNS.
    pub const OPT: u16 = 41;
    /// Everything.
    pub const ANY: u16 = 255;
}
