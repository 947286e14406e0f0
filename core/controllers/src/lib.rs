//! The controllers: each file is one row of the ring, a pure function from the view to a plan.
#![no_std]

extern crate alloc;

mod claim;
mod conditions;
pub mod deployment;
mod finder;
pub mod replica_set;
pub mod root_ca;
pub mod service_account;

use alloc::vec::Vec;

use knarr_reconcile::Controller;

/// Every controller that needs no list of kinds.
pub fn all() -> Vec<Controller> {
    Vec::from([
        deployment::controller(),
        replica_set::controller(),
        replica_set::replication_controller(),
        root_ca::controller(),
        service_account::controller(),
    ])
}
