//! Addresses that a node itself answers at, on a link that is there for nothing else.

use std::net::IpAddr;

use netlink_packet_route::address::AddressAttribute;
use rtnetlink::LinkBridge;

use crate::veth::{NetError, Network, add_address, during, find, lost, up};

impl Network {
    /// Makes a link (a bridge without ports) that holds exactly these addresses, so that packets
    /// to them end on this machine. Safe to repeat.
    ///
    /// # Errors
    /// [`NetError`].
    pub async fn anchor(&self, link: &str, addresses: &[IpAddr]) -> Result<(), NetError> {
        if find(&self.host, link).await?.is_none() {
            let made = self.host.link().add(LinkBridge::new(link).build()).execute().await;
            made.map_err(during(format!("make link {link}")))?;
        }
        let (index, _) = find(&self.host, link).await?.ok_or_else(|| lost(link))?;
        self.drop_addresses(index, addresses).await?;
        for address in addresses {
            let bits = if address.is_ipv4() { 32 } else { 128 };
            add_address(&self.host, index, *address, bits).await?;
        }
        up(&self.host, link).await
    }

    /// Takes away the addresses of an earlier life.
    async fn drop_addresses(&self, index: u32, kept: &[IpAddr]) -> Result<(), NetError> {
        use futures_util::TryStreamExt;
        let mut found = self.host.address().get().set_link_index_filter(index).execute();
        while let Some(message) = found.try_next().await.map_err(during("list addresses"))? {
            let is_kept = message.attributes.iter().any(
                |attribute| matches!(attribute, AddressAttribute::Address(ip) if kept.contains(ip)),
            );
            if !is_kept {
                let gone = self.host.address().del(message).execute().await;
                gone.map_err(during("remove an address"))?;
            }
        }
        Ok(())
    }
}
