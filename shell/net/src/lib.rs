//! Links, addresses and routes of Pods, packet rules and tracked flows, by netlink.
//!
//! The default link is a routed veth: each Pod has its addresses as /32 (or /128), the node has a
//! route to each over the host end, and the Pod's default gateway is a link-local address that no
//! machine has (its neighbour entry is permanent and names the host end's MAC). Nothing is bridged,
//! no machine-wide setting is touched, and every link carries the instance's name.

mod anchor;
mod bridge;
mod conntrack;
mod ipam;
mod namespace;
mod nfnetlink;
mod nft;
mod routes;
mod veth;

pub use bridge::Seat;
pub use conntrack::Conntrack;
pub use ipam::{Pool, PoolError, Subnet};
pub use namespace::Namespace;
pub use nfnetlink::NetfilterError;
pub use nft::Table;
pub use routes::RoutesChanged;
pub use veth::{Attachment, NetError, Network};
