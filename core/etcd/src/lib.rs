//! What etcd has beyond the keyspace: who may do what, and a file for all of it.
//!
//! Pure: bytes in, values out. A file here is a snapshot without the sha256 that follows it, which
//! is the shell's to check and to add.
//!
//! * `auth` – users, roles and permissions, kept in the keyspace's settings.
//! * `bolt` – the database file that etcd's library bbolt makes: pages, trees, buckets.
//! * `image` – what etcd keeps in it, and how that is the items of a [`knarr_mvcc`] snapshot.
#![no_std]

extern crate alloc;

pub mod auth;
pub mod bolt;
mod crc;
mod image;
mod message;

pub use image::{Image, ReadError, read};
