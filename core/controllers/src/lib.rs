//! The controllers: each file is one row of the ring, a pure function from the view to a plan.
#![no_std]

extern crate alloc;

pub mod certificates;
mod claim;
mod conditions;
pub mod deployment;
pub mod endpoint_slice;
pub mod endpoint_slice_mirroring;
pub mod endpoints;
pub mod event_ttl;
mod finder;
pub mod garbage_collector;
pub mod namespace;
pub mod node_ipam;
pub mod node_lifecycle;
pub mod pkcs10;
pub mod pod_gc;
pub mod replica_set;
pub mod root_ca;
mod selected;
pub mod service_account;
pub mod service_ip;
mod slices;
pub mod taint_eviction;

use alloc::vec::Vec;

use knarr_reconcile::{Config, Controller};

/// Every controller. `config.kinds` says what the garbage collector and the namespace controller
/// watch: each kind that can be watched and deleted, at one version.
pub fn all(config: &Config) -> Vec<Controller> {
    let every: Vec<_> = config.kinds.iter().map(|kind| kind.resource).collect();
    let namespaced = config.kinds.iter().filter(|kind| kind.namespaced);
    let namespaced: Vec<_> = namespaced.map(|kind| kind.resource).collect();
    Vec::from([
        certificates::controller(),
        deployment::controller(),
        endpoint_slice::controller(),
        endpoint_slice_mirroring::controller(),
        endpoints::controller(),
        event_ttl::controller(),
        garbage_collector::controller(&every),
        namespace::controller(&namespaced),
        node_ipam::controller(),
        node_lifecycle::controller(),
        pod_gc::controller(),
        replica_set::controller(),
        replica_set::replication_controller(),
        root_ca::controller(),
        service_account::controller(),
        service_ip::range_controller(),
        service_ip::repair_controller(),
        taint_eviction::controller(),
    ])
}
