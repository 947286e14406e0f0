//! The network between nodes of one machine: a bridge, which is the first node's link, and a veth
//! to each further node's network namespace.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;

use knarr_api::ip::Cidr;
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder};

use crate::namespace::Namespace;
use crate::veth::{NetError, Network, add_address, during, find, forward, lost, up, within};

/// What a further node calls its link.
const INSIDE: &str = "eth0";

/// A node's address on the network between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    /// The address.
    pub address: IpAddr,
    /// Leading bits that all nodes share.
    pub prefix: u8,
    /// The first node, where everything else is.
    pub gateway: IpAddr,
}

impl Network {
    /// Makes the bridge `name` with the first node's addresses. Safe to repeat.
    ///
    /// # Errors
    /// [`NetError`].
    pub async fn bridge(&self, name: &str, seats: &[Seat]) -> Result<(), NetError> {
        if find(&self.host, name).await?.is_none() {
            let made = self.host.link().add(LinkBridge::new(name).build()).execute().await;
            made.map_err(during(format!("make link {name}")))?;
        }
        let (index, _) = find(&self.host, name).await?.ok_or_else(|| lost(name))?;
        up(&self.host, name).await?;
        for seat in seats {
            add_address(&self.host, index, seat.address, seat.prefix).await?;
        }
        forward(name, seats.iter().any(|seat| seat.address.is_ipv6()))
    }

    /// Connects a namespace with the bridge by a veth whose end here is `link`. Safe to repeat.
    ///
    /// # Errors
    /// [`NetError`].
    pub async fn plug(
        &self,
        bridge: &str,
        link: &str,
        space: &Namespace,
        seats: &[Seat],
    ) -> Result<(), NetError> {
        if find(&self.host, link).await?.is_some() {
            return up(&self.host, link).await;
        }
        let path = space.path();
        let inside = File::open(path).map_err(during(format!("open {}", path.display())))?;
        let (bridge, _) = find(&self.host, bridge).await?.ok_or_else(|| lost(bridge))?;
        let peer = format!("p{}", &link[..link.len().min(14)]);
        let links = self.host.link();
        let made = links.add(LinkVeth::new(link, &peer).build()).execute().await;
        made.map_err(during(format!("make link {link}")))?;
        let (outer, _) = find(&self.host, link).await?.ok_or_else(|| lost(link))?;
        let (inner, _) = find(&self.host, &peer).await?.ok_or_else(|| lost(&peer))?;
        let moved = LinkUnspec::new_with_index(inner).setns_by_fd(inside.as_raw_fd()).build();
        links.set(moved).execute().await.map_err(during("move a link to a node"))?;
        let ported = LinkUnspec::new_with_index(outer).controller(bridge).up().build();
        links.set(ported).execute().await.map_err(during(format!("plug {link} in")))?;
        let seats = seats.to_vec();
        within(inside, move |handle| Box::pin(set_up_node(handle, peer, seats))).await
    }

    /// Whether one of the machine's addresses or links is in a range, but for the link `but`.
    ///
    /// # Errors
    /// [`NetError`].
    pub async fn is_used(&self, range: &Cidr, but: &str) -> Result<bool, NetError> {
        let own = find(&self.host, but).await?.map(|(index, _)| index);
        let near = self.links_of_ranges().await?;
        Ok(near.iter().any(|(link, other)| Some(*link) != own && range.overlaps(other)))
    }
}

async fn set_up_node(handle: Handle, peer: String, seats: Vec<Seat>) -> Result<(), NetError> {
    up(&handle, "lo").await?;
    let (index, _) = find(&handle, &peer).await?.ok_or_else(|| lost(&peer))?;
    let named = LinkUnspec::new_with_index(index).name(INSIDE).build();
    handle.link().set(named).execute().await.map_err(during("name a link"))?;
    up(&handle, INSIDE).await?;
    for seat in &seats {
        add_address(&handle, index, seat.address, seat.prefix).await?;
        let route = match seat.gateway {
            IpAddr::V4(via) => RouteMessageBuilder::<Ipv4Addr>::new().gateway(via).build(),
            IpAddr::V6(via) => RouteMessageBuilder::<Ipv6Addr>::new().gateway(via).build(),
        };
        let added = handle.route().add(route).replace().execute().await;
        added.map_err(during(format!("add the default route by {}", seat.gateway)))?;
    }
    forward(INSIDE, seats.iter().any(|seat| seat.address.is_ipv6()))
}
