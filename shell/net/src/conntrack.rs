//! The kernel's table of tracked flows: UDP ones are listed and forgotten.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use knarr_netplan::{Family, Flow};
use rustix::io::Errno;

use crate::nfnetlink::{F_ACK, F_DUMP, Messages, NetfilterError, Socket, attributes};

const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
const UDP: u8 = 17;

const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;

/// Tracked flows of the calling thread's network namespace.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
}

fn family_number(family: Family) -> u8 {
    if family == Family::V4 { 2 } else { 10 }
}

fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(k, _)| *k == kind).map(|(_, value)| value)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        _ => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
    }
}

/// Source and destination of a tuple, if it is of UDP.
fn tuple(bytes: &[u8]) -> Option<[(IpAddr, u16); 2]> {
    let (ip, protocol) = (find(bytes, 1)?, find(bytes, 2)?);
    if find(protocol, 1)?.first() != Some(&UDP) {
        return None;
    }
    let side = |v4, v6, port| {
        let address = address(find(ip, v4).or_else(|| find(ip, v6))?)?;
        let port = find(protocol, port)?.first_chunk().copied()?;
        Some((address, u16::from_be_bytes(port)))
    };
    Some([side(1, 3, 2)?, side(2, 4, 3)?])
}

fn flow(bytes: &[u8]) -> Option<Flow> {
    let [source, destination] = tuple(find(bytes, TUPLE_ORIGINAL)?)?;
    let [answers, _] = tuple(find(bytes, TUPLE_REPLY)?)?;
    Some(Flow { source, destination, answers })
}

fn put_tuple(out: &mut Messages, flow: &Flow) {
    let octets = |ip: &IpAddr| match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let (from, to) = (flow.source, flow.destination);
    let (source, destination) = if from.0.is_ipv4() { (1, 2) } else { (3, 4) };
    out.nest(TUPLE_ORIGINAL, |out| {
        out.nest(1, |out| {
            out.put(source, &octets(&from.0));
            out.put(destination, &octets(&to.0));
        });
        out.nest(2, |out| {
            out.put(1, &[UDP]);
            out.put(2, &from.1.to_be_bytes());
            out.put(3, &to.1.to_be_bytes());
        });
    });
}

impl Conntrack {
    /// Opens it.
    ///
    /// # Errors
    /// [`NetfilterError::Socket`].
    pub fn open() -> Result<Self, NetfilterError> {
        Ok(Self { socket: Socket::open()? })
    }

    /// All tracked UDP flows.
    ///
    /// # Errors
    /// [`NetfilterError`].
    pub fn flows(&mut self) -> Result<Vec<Flow>, NetfilterError> {
        let mut flows = Vec::new();
        for family in Family::ALL {
            let mut ask = Messages::default();
            ask.begin(GET, F_DUMP, family_number(family), 0);
            ask.end();
            self.socket.exchange(&ask, |bytes| flows.extend(flow(bytes)))?;
        }
        Ok(flows)
    }

    /// Forgets a flow; one that is gone already is no error.
    ///
    /// # Errors
    /// [`NetfilterError`].
    pub fn forget(&mut self, flow: &Flow) -> Result<(), NetfilterError> {
        let family = Family::of(flow.source.0);
        let mut ask = Messages::default();
        ask.begin(DELETE, F_ACK, family_number(family), 0);
        put_tuple(&mut ask, flow);
        ask.end();
        match self.socket.exchange(&ask, |_| {}) {
            Err(NetfilterError::Refused(_, Errno::NOENT)) => Ok(()),
            other => other,
        }
    }
}
