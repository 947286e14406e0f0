//! Typed views of objects: the one place where the codecs of k8s-openapi are instantiated.
//!
//! A typed struct is for reading inside one call: it costs ten times the object's bytes and drops
//! fields that this build does not know. Writes are patches on trees.
#![no_std]

extern crate alloc;

use core::fmt;

use alloc::string::{String, ToString};
use serde_json::Value;

pub use k8s_openapi;
pub use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
pub use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
pub use k8s_openapi::api::core::v1::{
    ConfigMap, Container, ContainerStatus, Namespace, Node, Pod, PodSpec, PodStatus, Secret,
    ServiceAccount,
};

/// Bytes that are not an object of the wanted type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotTyped(String);

impl core::error::Error for NotTyped {}

impl fmt::Display for NotTyped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A type whose codec lives here.
pub trait Typed: Sized {
    /// Reads an object's JSON.
    ///
    /// # Errors
    /// [`NotTyped`] when it is something else.
    fn decode(bytes: &[u8]) -> Result<Self, NotTyped>;

    /// As a tree.
    fn to_tree(&self) -> Value;
}

macro_rules! typed {
    ($($kind:ty),* $(,)?) => {$(
        impl Typed for $kind {
            fn decode(bytes: &[u8]) -> Result<Self, NotTyped> {
                serde_json::from_slice(bytes).map_err(|error| NotTyped(error.to_string()))
            }

            fn to_tree(&self) -> Value {
                serde_json::to_value(self).expect("an object has a JSON form")
            }
        }
    )*};
}

typed!(
    CertificateSigningRequest,
    ConfigMap,
    Deployment,
    Namespace,
    Node,
    Pod,
    PodStatus,
    ReplicaSet,
    Secret,
    ServiceAccount,
);
