//! What etcd's API says beyond the keyspace: who may do what.
//!
//! * `auth` – users, roles and permissions, kept in the keyspace's settings.
#![no_std]

extern crate alloc;

pub mod auth;
