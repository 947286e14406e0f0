//! nftables as values: what a table holds, in the words of the kernel, printable as `nft` would.
//!
//! Only what the packet path needs. A key is kept as the kernel's bytes: every field is padded to
//! whole registers of four bytes.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::{self, Display};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::ops::Deref;

use crate::model::Protocol;
use crate::sets::Set;
use knarr_api::ip::{Cidr, Family};

/// One field of a set's key or of a map's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// An address.
    Address(Family),
    /// A transport protocol's number.
    Protocol,
    /// A port.
    Port,
    /// A number in host order.
    Index,
}

impl Field {
    /// Bytes that it takes, padded.
    pub fn size(self) -> usize {
        if self == Self::Address(Family::V6) { 16 } else { 4 }
    }

    /// Bytes that count.
    pub fn length(self) -> usize {
        match self {
            Self::Protocol => 1,
            Self::Port => 2,
            _ => self.size(),
        }
    }

    /// The name that `nft` has for its type.
    pub fn name(self) -> &'static str {
        match self {
            Self::Address(Family::V4) => "ipv4_addr",
            Self::Address(Family::V6) => "ipv6_addr",
            Self::Protocol => "inet_proto",
            Self::Port => "inet_service",
            Self::Index => "mark",
        }
    }
}

/// Bytes of the longest key: two addresses, a protocol and a port.
const LONGEST: usize = 40;

/// A key or data, in place: a table of many thousands is planned without asking for memory for
/// each. Shorter ones are followed by zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes {
    bytes: [u8; LONGEST],
    length: usize,
}

impl Default for Bytes {
    fn default() -> Self {
        Self { bytes: [0; LONGEST], length: 0 }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Bytes {
    fn push<const N: usize>(mut self, bytes: [u8; N]) -> Self {
        self.bytes[self.length..self.length + N].copy_from_slice(&bytes);
        self.length += N;
        self
    }

    pub(crate) fn address(self, address: &IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => self.push(v4.octets()),
            IpAddr::V6(v6) => self.push(v6.octets()),
        }
    }

    pub(crate) fn protocol(self, protocol: Protocol) -> Self {
        self.push([protocol.number(), 0, 0, 0])
    }

    pub(crate) fn port(self, port: u16) -> Self {
        let [high, low] = port.to_be_bytes();
        self.push([high, low, 0, 0])
    }

    pub(crate) fn index(self, index: u32) -> Self {
        self.push(index.to_ne_bytes())
    }
}

fn show_field(field: Field, bytes: &[u8]) -> String {
    let array = |n: usize| bytes.get(n).copied().unwrap_or_default();
    match field {
        Field::Address(Family::V4) => {
            Ipv4Addr::from([array(0), array(1), array(2), array(3)]).to_string()
        }
        Field::Address(Family::V6) => {
            Ipv6Addr::from(core::array::from_fn::<u8, 16, _>(array)).to_string()
        }
        Field::Protocol => match array(0) {
            6 => "tcp".to_string(),
            17 => "udp".to_string(),
            132 => "sctp".to_string(),
            other => other.to_string(),
        },
        Field::Port => u16::from_be_bytes([array(0), array(1)]).to_string(),
        Field::Index => u32::from_ne_bytes(core::array::from_fn(array)).to_string(),
    }
}

/// Fields of a key, as `nft` writes them.
pub fn show(fields: &[Field], mut bytes: &[u8]) -> String {
    let mut parts = Vec::new();
    for field in fields {
        let (one, rest) = bytes.split_at(field.size().min(bytes.len()));
        parts.push(show_field(*field, one));
        bytes = rest;
    }
    parts.join(" . ")
}

/// What a packet meets next.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// It is dropped.
    Drop,
    /// It goes through a chain and comes back.
    Jump(String),
    /// It goes through a chain and does not come back.
    Goto(String),
}

impl Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drop => f.write_str("drop"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

/// Which address of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Where it comes from.
    Source,
    /// Where it goes.
    Destination,
}

/// Whether a match is meant as it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sense {
    /// It is.
    Is,
    /// Its opposite is.
    IsNot,
}

impl Sense {
    fn sign(self) -> &'static str {
        if self == Self::Is { "" } else { "!= " }
    }
}

/// Where a register gets its content from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// An address of the packet.
    Address(Family, Side),
    /// The unspecified address: it stands for all of the node's.
    AnyAddress(Family),
    /// The transport protocol.
    Protocol,
    /// The destination port.
    Port,
    /// A random number from `base` to below `base + count`.
    Random {
        /// How many.
        count: u32,
        /// The smallest.
        base: u32,
    },
    /// What was noted with the packet.
    Noted,
}

impl Load {
    /// The field that it fills.
    pub fn field(self) -> Field {
        match self {
            Self::Address(family, _) | Self::AnyAddress(family) => Field::Address(family),
            Self::Protocol => Field::Protocol,
            Self::Port => Field::Port,
            Self::Random { .. } | Self::Noted => Field::Index,
        }
    }
}

fn ip(family: Family) -> &'static str {
    if family == Family::V4 { "ip" } else { "ip6" }
}

impl Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Source { "saddr" } else { "daddr" })
    }
}

impl Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(family, side) => write!(f, "{} {side}", ip(*family)),
            Self::AnyAddress(Family::V4) => f.write_str("ip daddr & 0.0.0.0"),
            Self::AnyAddress(Family::V6) => f.write_str("ip6 daddr & ::"),
            Self::Protocol => f.write_str("meta l4proto"),
            Self::Port => f.write_str("th dport"),
            Self::Random { count, base: 0 } => write!(f, "numgen random mod {count}"),
            Self::Random { count, base } => {
                write!(f, "numgen random mod {count} offset {base}")
            }
            Self::Noted => f.write_str("meta priority"),
        }
    }
}

fn join(loads: &[Load]) -> String {
    loads.iter().map(ToString::to_string).collect::<Vec<_>>().join(" . ")
}

/// One step of a rule: a match or an act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    /// The packet is of a family.
    Family(Family),
    /// It opens a connection.
    NewConnection,
    /// Its destination was translated.
    Translated,
    /// One of its addresses is this node's.
    LocalAddress(Family, Side),
    /// One of its addresses lies in a range.
    Range(Side, Sense, Cidr),
    /// The loaded key is in a set.
    Member(Vec<Load>, Sense, Set),
    /// The loaded key's verdict.
    Dispatch(Vec<Load>, Set),
    /// Some of these bits of its mark are set.
    Marked(u32),
    /// These bits of its mark are set from here on.
    Mark(u32),
    /// These bits of its mark, which are set, are not from here on.
    Unmark(u32),
    /// Its destination becomes what the map has for the loaded key.
    Translate(Family, Vec<Load>, Set),
    /// What the map has for the loaded key is noted with the packet, as its priority: that is a
    /// place which nobody asks about the one packet that opens a connection.
    Note(Vec<Load>, Set),
    /// What is noted becomes what the map has for the loaded key, for so many seconds. What the
    /// map has already stays and only gets the time.
    Remember(Vec<Load>, Set, u32),
    /// What the map has for the loaded key is forgotten.
    Forget(Vec<Load>, Set),
    /// Its source becomes the outgoing link's address.
    Masquerade,
    /// If it is of TCP, it is answered with a reset: that is not rationed as errors are.
    Reset,
    /// It is answered with "port unreachable".
    Reject,
    /// A verdict.
    Go(Verdict),
}

impl Display for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Family(Family::V4) => f.write_str("meta nfproto ipv4"),
            Self::Family(Family::V6) => f.write_str("meta nfproto ipv6"),
            Self::NewConnection => f.write_str("ct state new"),
            Self::Translated => f.write_str("ct status dnat"),
            Self::LocalAddress(_, side) => write!(f, "fib {side} type local"),
            Self::Range(side, sense, cidr) => {
                write!(f, "{} {side} {}{cidr}", ip(cidr.family()), sense.sign())
            }
            Self::Member(key, sense, set) => write!(f, "{} {}@{set}", join(key), sense.sign()),
            Self::Dispatch(key, set) => write!(f, "{} vmap @{set}", join(key)),
            Self::Marked(bits) => write!(f, "meta mark & {bits:#x} != 0"),
            Self::Mark(bits) => write!(f, "meta mark set meta mark | {bits:#x}"),
            Self::Unmark(bits) => write!(f, "meta mark set meta mark ^ {bits:#x}"),
            Self::Translate(family, key, set) => {
                write!(f, "dnat {} to {} map @{set}", ip(*family), join(key))
            }
            Self::Note(key, set) => write!(f, "{} set {} map @{set}", Load::Noted, join(key)),
            Self::Remember(key, set, seconds) => {
                let key = join(key);
                write!(f, "update @{set} {{ {key} timeout {seconds}s : {} }}", Load::Noted)
            }
            Self::Forget(key, set) => {
                write!(f, "delete @{set} {{ {} : {} }}", join(key), Load::Noted)
            }
            Self::Masquerade => f.write_str("masquerade fully-random"),
            Self::Reset => f.write_str("meta l4proto tcp reject with tcp reset"),
            Self::Reject => f.write_str("reject"),
            Self::Go(verdict) => verdict.fmt(f),
        }
    }
}

/// A rule: its steps in order.
pub type Rule = Vec<Statement>;

/// A rule as `nft` writes it.
pub fn show_rule(rule: &Rule) -> String {
    rule.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// Where a base chain is hooked in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Before routing.
    Prerouting,
    /// On the way to this machine.
    Input,
    /// On the way through this machine.
    Forward,
    /// From this machine.
    Output,
    /// After routing.
    Postrouting,
}

impl Hook {
    /// The kernel's number and `nft`'s name.
    pub fn row(self) -> (u32, &'static str) {
        match self {
            Self::Prerouting => (0, "prerouting"),
            Self::Input => (1, "input"),
            Self::Forward => (2, "forward"),
            Self::Output => (3, "output"),
            Self::Postrouting => (4, "postrouting"),
        }
    }
}

/// What a base chain is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To let pass or not.
    Filter,
    /// To translate; only what opens a connection comes here.
    Nat,
}

impl Purpose {
    /// The kernel's name.
    pub fn name(self) -> &'static str {
        if self == Self::Nat { "nat" } else { "filter" }
    }
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// Where it is hooked in, with what priority; `None` for one that others send to.
    pub base: Option<(Purpose, Hook, i32)>,
    /// Its rules, in order.
    pub rules: Vec<Rule>,
}

impl Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "chain {} {{", self.name)?;
        if let Some((purpose, hook, priority)) = self.base {
            let (purpose, hook) = (purpose.name(), hook.row().1);
            writeln!(f, "  type {purpose} hook {hook} priority {priority}")?;
        }
        self.rules.iter().try_for_each(|rule| writeln!(f, "  {}", show_rule(rule)))?;
        f.write_str("}")
    }
}

/// What an element says beside being there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    /// Nothing: it is in a set.
    Member,
    /// Data of a map.
    Data(Bytes),
    /// A verdict of a map.
    Verdict(Verdict),
    /// The last key of the range that the key begins.
    Until(Bytes),
}

/// The key of an element, in its set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ElementKey {
    /// The set or map.
    pub set: Set,
    /// The key's fields.
    pub key: Bytes,
}

/// An element of a set or map.
pub type Element = (ElementKey, Value);

/// An element as `nft` writes it.
pub fn show_element((ElementKey { set, key }, value): &Element) -> String {
    let row = set.row();
    let key = show(&row.key, key);
    let text = match value {
        Value::Member => key,
        Value::Data(data) => format!("{key} : {}", show(&row.data, data)),
        Value::Verdict(verdict) => format!("{key} : {verdict}"),
        Value::Until(last) => format!("{key} - {}", show(&row.key, last)),
    };
    format!("@{set} {{ {text} }}")
}
