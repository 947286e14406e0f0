//! What Services mean for packets and names: the model that both are planned from.
//!
//! [`Services`] is fed with watch items and says which Services changed; who plans asks it for a
//! Service and its endpoints.
#![no_std]

extern crate alloc;

mod decode;
mod model;

pub use model::{
    Cidr, Endpoint, EndpointPort, Family, Key, Policy, Protocol, Service, ServicePort, ServiceType,
    Services, Slice, Target,
};
