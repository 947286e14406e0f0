//! IP addresses and ranges: how they are written, and what each class of them is good for.
//!
//! Classes are those of RFC 791 (A to E) and the special-purpose registries of RFC 6890; a field or
//! flag that takes an address asks [`Class::of`] what it got.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::str::FromStr;

/// IPv4 or IPv6, in the API's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// `IPv4`.
    V4,
    /// `IPv6`.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// Of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// `IPv4` or `IPv6`.
    pub fn word(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// From `IPv4` or `IPv6`.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.word() == word)
    }

    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        if self == Self::V4 { Self::V6 } else { Self::V4 }
    }

    /// Length of its addresses in bits.
    pub fn bits(self) -> u8 {
        if self == Self::V4 { 32 } else { 128 }
    }
}

/// What an address is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// 0.0.0.0 and the rest of its network, `::`.
    Unspecified,
    /// 127/8, `::1`.
    Loopback,
    /// 169.254/16, `fe80::/10`.
    LinkLocal,
    /// 10/8, 172.16/12, 192.168/16, `fc00::/7`.
    Private,
    /// 100.64/10: between a provider and its customers (RFC 6598).
    Shared,
    /// 224.0.0/24, `ff02::/16`: never forwarded.
    LocalMulticast,
    /// The rest of class D, the rest of `ff00::/8`.
    Multicast,
    /// 240/4: class E.
    Reserved,
    /// 255.255.255.255.
    Broadcast,
    /// A public address of class A.
    A,
    /// A public address of class B.
    B,
    /// A public address of class C.
    C,
    /// Any other IPv6 address.
    Global,
}

impl Class {
    /// Which class an address is of.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::of_v4(address),
            IpAddr::V6(address) => Self::of_v6(address),
        }
    }

    fn of_v4(address: Ipv4Addr) -> Self {
        match address.octets() {
            [0, ..] => Self::Unspecified,
            [127, ..] => Self::Loopback,
            [169, 254, ..] => Self::LinkLocal,
            [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Self::Private,
            [100, 64..=127, ..] => Self::Shared,
            [224, 0, 0, _] => Self::LocalMulticast,
            [224..=239, ..] => Self::Multicast,
            [255, 255, 255, 255] => Self::Broadcast,
            [240..=255, ..] => Self::Reserved,
            [1..=126, ..] => Self::A,
            [128..=191, ..] => Self::B,
            _ => Self::C,
        }
    }

    fn of_v6(address: Ipv6Addr) -> Self {
        if let Some(mapped) = address.to_ipv4_mapped() {
            return Self::of_v4(mapped);
        }
        match address.segments() {
            [0, 0, 0, 0, 0, 0, 0, 0] => Self::Unspecified,
            [0, 0, 0, 0, 0, 0, 0, 1] => Self::Loopback,
            [0xfe80..=0xfebf, ..] => Self::LinkLocal,
            [0xfc00..=0xfdff, ..] => Self::Private,
            [0xff02, ..] => Self::LocalMulticast,
            [0xff00..=0xffff, ..] => Self::Multicast,
            _ => Self::Global,
        }
    }

    /// Why no machine, Pod or Service can have an address of this class.
    pub fn unusable(self) -> Option<&'static str> {
        Some(match self {
            Self::Unspecified => "0.0.0.0/8 and :: are no address of anybody",
            Self::Loopback => "loopback addresses (127.0.0.0/8, ::1) lead to oneself only",
            Self::LinkLocal => "link-local addresses (169.254.0.0/16, fe80::/10) are not routed",
            Self::LocalMulticast | Self::Multicast => {
                "multicast addresses (class D, 224.0.0.0/4, ff00::/8) belong to groups"
            }
            Self::Reserved => "class E addresses (240.0.0.0/4) are reserved",
            Self::Broadcast => "255.255.255.255 is everybody's address",
            _ => return None,
        })
    }

    /// Why an endpoint or an external address cannot be of this class, in upstream's words.
    pub fn no_endpoint(self) -> Option<&'static str> {
        Some(match self {
            Self::Loopback => "may not be in the loopback range (127.0.0.0/8, ::1/128)",
            Self::LinkLocal => "may not be in the link-local range (169.254.0.0/16, fe80::/10)",
            Self::LocalMulticast => {
                "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"
            }
            _ => return None,
        })
    }
}

/// Reads an address: no leading zeros, no IPv4 inside IPv6.
///
/// # Errors
/// Upstream's text.
pub fn parse(text: &str) -> Result<IpAddr, String> {
    let no_address = || "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned();
    let address: IpAddr = text.parse().map_err(|_| no_address())?;
    match address {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            Err("must not be an IPv4-mapped IPv6 address".to_owned())
        }
        _ => Ok(address),
    }
}

/// A range of addresses, `10.0.0.0/8`; the bits behind the prefix are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cidr {
    network: IpAddr,
    prefix: u8,
}

/// The text is no range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoCidr;

impl core::error::Error for NoCidr {}

impl fmt::Display for NoCidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)")
    }
}

impl FromStr for Cidr {
    type Err = NoCidr;

    fn from_str(text: &str) -> Result<Self, NoCidr> {
        let (address, prefix) = text.split_once('/').ok_or(NoCidr)?;
        let plain = prefix == "0" || !prefix.starts_with(['0', '+']);
        let prefix = prefix.parse().ok().filter(|_| plain).ok_or(NoCidr)?;
        let address = parse(address).map_err(|_| NoCidr)?;
        Self::new(address, prefix).ok_or(NoCidr)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

/// An address as a number, left-aligned in nothing: IPv4 uses the low 32 bits.
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

fn address(family: Family, number: u128) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::from(number as u32)),
        Family::V6 => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

impl Cidr {
    /// The range of all addresses that share the first `prefix` bits with `of`.
    pub fn new(of: IpAddr, prefix: u8) -> Option<Self> {
        let family = Family::of(of);
        let host = family.bits().checked_sub(prefix)?;
        let mask = u128::MAX.checked_shl(host.into()).unwrap_or(0);
        Some(Self { network: address(family, number(of) & mask), prefix })
    }

    /// Its first address, the network's own.
    pub fn network(&self) -> IpAddr {
        self.network
    }

    /// How many leading bits are fixed.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Its family.
    pub fn family(&self) -> Family {
        Family::of(self.network)
    }

    /// Its last address.
    pub fn last(&self) -> IpAddr {
        let host = u32::from(self.family().bits() - self.prefix);
        let low = 1u128.checked_shl(host).map_or(u128::MAX, |size| size - 1);
        address(self.family(), number(self.network) | low)
    }

    /// The address `offset` behind the first, if it is in the range.
    pub fn nth(&self, offset: u128) -> Option<IpAddr> {
        let at = number(self.network).checked_add(offset)?;
        (at <= number(self.last())).then(|| address(self.family(), at))
    }

    /// How far behind the first address this one lies.
    pub fn offset(&self, of: IpAddr) -> Option<u128> {
        self.contains(of).then(|| number(of) - number(self.network))
    }

    /// Whether an address is in it.
    pub fn contains(&self, other: IpAddr) -> bool {
        Family::of(other) == self.family()
            && (number(self.network)..=number(self.last())).contains(&number(other))
    }

    /// Whether some address is in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.network) || other.contains(self.network)
    }

    /// Why Pods or Services cannot have their addresses from this range.
    pub fn unusable(&self) -> Option<String> {
        let ends = [self.network, self.last()];
        let why = ends.into_iter().find_map(|end| Class::of(end).unusable())?;
        Some(format!("{self} cannot be used: {why}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    fn class(text: &str) -> Class {
        Class::of(text.parse().expect("an address"))
    }

    #[test]
    fn every_address_has_a_class() {
        let table = [
            ("0.0.0.0", Class::Unspecified),
            ("9.9.9.9", Class::A),
            ("10.1.2.3", Class::Private),
            ("100.64.0.1", Class::Shared),
            ("100.127.255.255", Class::Shared),
            ("100.128.0.1", Class::A),
            ("127.9.9.9", Class::Loopback),
            ("128.0.0.1", Class::B),
            ("169.254.1.1", Class::LinkLocal),
            ("172.15.0.1", Class::B),
            ("172.31.0.1", Class::Private),
            ("192.0.2.1", Class::C),
            ("192.168.0.1", Class::Private),
            ("224.0.0.5", Class::LocalMulticast),
            ("239.1.1.1", Class::Multicast),
            ("240.0.0.1", Class::Reserved),
            ("255.255.255.255", Class::Broadcast),
            ("::", Class::Unspecified),
            ("::1", Class::Loopback),
            ("fe80::1", Class::LinkLocal),
            ("fd00::1", Class::Private),
            ("ff02::1", Class::LocalMulticast),
            ("ff0e::1", Class::Multicast),
            ("2001:db8::1", Class::Global),
            ("::ffff:127.0.0.1", Class::Loopback),
        ];
        for (text, wanted) in table {
            assert_eq!(class(text), wanted, "{text}");
        }
    }

    #[test]
    fn addresses_are_written_in_one_way() {
        assert!(parse("10.0.0.1").is_ok() && parse("2001:db8::1").is_ok());
        for text in ["010.0.0.1", "10.0.1", "::ffff:10.0.0.1", "", "10.0.0.1 ", "a"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn ranges_know_their_ends() {
        let range: Cidr = "10.43.7.9/16".parse().expect("a range");
        assert_eq!(range.to_string(), "10.43.0.0/16");
        assert_eq!(range.last().to_string(), "10.43.255.255");
        assert_eq!(range.nth(10).map(|a| a.to_string()).as_deref(), Some("10.43.0.10"));
        assert_eq!(range.nth(65_536), None);
        assert_eq!(range.offset("10.43.1.0".parse().expect("address")), Some(256));
        let all: Cidr = "::/0".parse().expect("a range");
        assert_eq!(number(all.last()), u128::MAX);
        for text in ["10.0.0.0", "10.0.0.0/33", "10.0.0.0/08", "10.0.0.0/+8", "::/129", "x/8"] {
            assert_eq!(text.parse::<Cidr>(), Err(NoCidr), "{text}");
        }
    }

    #[test]
    fn ranges_that_cannot_work_are_named() {
        let unusable = |text: &str| text.parse::<Cidr>().expect("a range").unusable();
        assert_eq!(unusable("10.0.0.0/8"), None);
        assert_eq!(unusable("fd00::/108"), None);
        for text in [
            "240.0.0.0/16",
            "127.0.0.0/24",
            "169.254.0.0/16",
            "224.0.0.0/8",
            "0.0.0.0/8",
            "ff00::/8",
        ] {
            assert!(unusable(text).is_some_and(|why| why.starts_with(text)), "{text}");
        }
        let (a, b): (Cidr, Cidr) =
            ("10.0.0.0/8".parse().expect("a"), "10.9.0.0/16".parse().expect("b"));
        assert!(a.overlaps(&b) && b.overlaps(&a));
    }
}
