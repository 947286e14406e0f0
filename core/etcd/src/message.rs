//! The protobuf messages in etcd's database, but for those of `auth`.

use bytes::Bytes;
use knarr_mvcc::{Item, KeyValue, LeaseId, Revision};
use prost::Message;

/// `mvccpb.KeyValue`; of a key that was deleted, nothing but the key.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Version {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) key: Bytes,
    #[prost(uint64, tag = "2")]
    create_revision: u64,
    #[prost(uint64, tag = "3")]
    mod_revision: u64,
    #[prost(uint64, tag = "4")]
    version: u64,
    #[prost(bytes = "bytes", tag = "5")]
    value: Bytes,
    #[prost(int64, tag = "6")]
    lease: i64,
}

/// `leasepb.Lease`; what was left of it at some checkpoint is not asked for.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Lease {
    #[prost(int64, tag = "1")]
    pub(crate) id: i64,
    #[prost(int64, tag = "2")]
    pub(crate) ttl_secs: i64,
}

impl From<KeyValue> for Version {
    fn from(kv: KeyValue) -> Self {
        Self {
            key: kv.key,
            create_revision: kv.create_revision.0,
            mod_revision: kv.mod_revision.0,
            version: kv.version,
            value: kv.value,
            lease: kv.lease.0,
        }
    }
}

impl From<Version> for KeyValue {
    fn from(version: Version) -> Self {
        Self {
            key: version.key,
            value: version.value,
            create_revision: Revision(version.create_revision),
            mod_revision: Revision(version.mod_revision),
            version: version.version,
            lease: LeaseId(version.lease),
        }
    }
}

impl Version {
    /// What is kept of a key's end.
    pub(crate) fn deleted(key: Bytes) -> Self {
        Self { key, ..Self::default() }
    }
}

impl From<Lease> for Item {
    fn from(lease: Lease) -> Self {
        Self::Lease { id: LeaseId(lease.id), ttl_secs: lease.ttl_secs }
    }
}
