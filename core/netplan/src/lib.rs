//! What Services mean for packets and names: the model that both are planned from.
//!
//! [`Services`] is fed with watch items and says which Services changed; who plans asks it for a
//! Service and its endpoints. [`Rules`] holds what the kernel has been told of them and says,
//! change by change, what is to be added and removed, as values that print like `nft`.
//!
//! The caller's duties: carry each [`Delta`] out as one transaction, in order; when one fails, load
//! [`Rules::everything`] anew.
#![no_std]

extern crate alloc;

mod chains;
mod choose;
mod conntrack;
mod decode;
mod health;
mod model;
pub mod nft;
mod nodes;
mod routes;
mod rules;
pub mod sets;

pub use choose::Place;
pub use conntrack::{Flow, stale};
pub use health::LocalEndpoints;
pub use knarr_api::ip::{Cidr, Family};
pub use model::{
    Endpoint, EndpointPort, Key, Policy, Protocol, Service, ServicePort, ServiceType, Services,
    Slice, Target,
};
pub use nodes::NodeTable;
pub use routes::{NoRoute, PodRoute, RoutePlan, Unrouted};
pub use rules::{Config, Delta, Nodes, Rules};
