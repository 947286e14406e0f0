//! Routes to other nodes' Pods. They carry a protocol number of our own, and a metric of the
//! instance's own: so those of an earlier life are found, and nobody else's are touched.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use knarr_api::ip::Cidr;
use knarr_netplan::PodRoute;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope,
};
use rtnetlink::RouteMessageBuilder;

use crate::veth::{NetError, Network, during};

/// The protocol number of our routes (`ip route show proto 107`): `k`.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(b'k');
/// Routes of people, which have smaller metrics, come first.
const FIRST_METRIC: u32 = 1024;

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoutesChanged {
    /// New routes.
    pub added: usize,
    /// Routes that are no more.
    pub removed: usize,
}

/// The instance's letters as a number.
fn metric(instance: &str) -> u32 {
    FIRST_METRIC + u32::from_str_radix(instance, 36).unwrap_or(0)
}

impl Network {
    /// The ranges that this machine's links lead to without another machine between.
    ///
    /// # Errors
    /// [`NetError`].
    pub async fn neighbourhoods(&self) -> Result<Vec<Cidr>, NetError> {
        Ok(self.links_of_ranges().await?.into_iter().map(|(_, range)| range).collect())
    }

    /// The ranges that links lead to, each with the link's index.
    pub(crate) async fn links_of_ranges(&self) -> Result<Vec<(u32, Cidr)>, NetError> {
        let mut ranges = Vec::new();
        let mut all = self.host.address().get().execute();
        while let Some(message) = all.try_next().await.map_err(during("list addresses"))? {
            let (link, prefix) = (message.header.index, message.header.prefix_len);
            ranges.extend(message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(ip) => Some((link, Cidr::new(*ip, prefix)?)),
                _ => None,
            }));
        }
        Ok(ranges)
    }

    /// Makes an instance's routes exactly these.
    ///
    /// # Errors
    /// [`NetError`]; some may have been changed.
    pub async fn set_pod_routes(
        &self,
        instance: &str,
        wanted: &BTreeSet<PodRoute>,
    ) -> Result<RoutesChanged, NetError> {
        let metric = metric(instance);
        let mut done = RoutesChanged::default();
        let mut present = BTreeSet::new();
        for (route, message) in self.pod_routes(metric).await? {
            if wanted.contains(&route) {
                present.insert(route);
                continue;
            }
            let gone = self.host.route().del(message).execute().await;
            gone.map_err(during(format!("remove the route {route}")))?;
            done.removed += 1;
        }
        for route in wanted.difference(&present) {
            let added = self.host.route().add(message(route, metric)).replace().execute().await;
            added.map_err(during(format!("add the route {route}")))?;
            done.added += 1;
        }
        Ok(done)
    }

    async fn pod_routes(&self, metric: u32) -> Result<Vec<(PodRoute, RouteMessage)>, NetError> {
        let mut found = Vec::new();
        for family in [
            RouteMessageBuilder::<Ipv4Addr>::new().build(),
            RouteMessageBuilder::<Ipv6Addr>::new().build(),
        ] {
            let mut all = self.host.route().get(family).execute();
            while let Some(message) = all.try_next().await.map_err(during("list routes"))? {
                let ours = message.header.protocol == PROTOCOL
                    && message.attributes.contains(&RouteAttribute::Priority(metric));
                if let Some(route) = read(&message).filter(|_| ours) {
                    found.push((route, message));
                }
            }
        }
        Ok(found)
    }
}

fn message(route: &PodRoute, metric: u32) -> RouteMessage {
    let prefix = route.pods.prefix();
    match (route.pods.network(), route.via) {
        (IpAddr::V4(base), IpAddr::V4(via)) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(base, prefix)
            .gateway(via)
            .protocol(PROTOCOL)
            .priority(metric)
            .scope(RouteScope::Universe)
            .build(),
        (IpAddr::V6(base), IpAddr::V6(via)) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(base, prefix)
            .gateway(via)
            .protocol(PROTOCOL)
            .priority(metric)
            .build(),
        _ => unreachable!("a plan's routes are of one family each"),
    }
}

fn read(message: &RouteMessage) -> Option<PodRoute> {
    let address = |address: &RouteAddress| match address {
        RouteAddress::Inet(v4) => Some(IpAddr::from(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::from(*v6)),
        _ => None,
    };
    let (mut base, mut via) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(to) => base = address(to),
            RouteAttribute::Gateway(gateway) => via = address(gateway),
            _ => {}
        }
    }
    let pods = Cidr::new(base?, message.header.destination_prefix_length)?;
    Some(PodRoute { pods, via: via? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_have_different_metrics() {
        assert_ne!(metric("a0b1"), metric("a0b2"));
        assert!(metric("0000") >= FIRST_METRIC);
    }
}
