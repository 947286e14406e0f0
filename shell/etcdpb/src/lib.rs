//! etcd's wire format: messages, clients and servers, generated from `proto/` when building.
//!
//! A crate of its own because generated code is slow to build and never changes; the faces and the
//! backend that speak it are in `knarr-etcd` and `knarr-store`.

#[allow(clippy::all, missing_docs, reason = "generated")]
mod generated {
    pub mod authpb {
        tonic::include_proto!("authpb");
    }
    pub mod etcdserverpb {
        tonic::include_proto!("etcdserverpb");
    }
    pub mod mvccpb {
        tonic::include_proto!("mvccpb");
    }
    pub mod v3electionpb {
        tonic::include_proto!("v3electionpb");
    }
    pub mod v3lockpb {
        tonic::include_proto!("v3lockpb");
    }
}

mod codec;

pub use codec::Codec;
pub use generated::{authpb, etcdserverpb, mvccpb, v3electionpb, v3lockpb};

/// The description of all of it: an encoded `google.protobuf.FileDescriptorSet`.
pub const DESCRIPTION: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/etcd.bin"));
