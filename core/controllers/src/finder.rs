//! Finding things in trees, and the names of the resources that controllers share.

use alloc::string::{String, ToString};

use jiff::Timestamp;
use knarr_api::Resource;
use knarr_reconcile::Ctx;
use serde_json::Value;

pub(crate) const PODS: Resource = Resource::new("v1", "pods");
pub(crate) const NAMESPACES: Resource = Resource::new("v1", "namespaces");
pub(crate) const CONFIG_MAPS: Resource = Resource::new("v1", "configmaps");
pub(crate) const SERVICE_ACCOUNTS: Resource = Resource::new("v1", "serviceaccounts");
pub(crate) const SERVICES: Resource = Resource::new("v1", "services");
pub(crate) const ENDPOINTS: Resource = Resource::new("v1", "endpoints");
pub(crate) const ENDPOINT_SLICES: Resource = Resource::new("discovery.k8s.io/v1", "endpointslices");
pub(crate) const REPLICATION_CONTROLLERS: Resource = Resource::new("v1", "replicationcontrollers");
pub(crate) const REPLICA_SETS: Resource = Resource::new("apps/v1", "replicasets");
pub(crate) const DEPLOYMENTS: Resource = Resource::new("apps/v1", "deployments");

/// The number at a JSON pointer.
pub(crate) fn int(tree: &Value, pointer: &str) -> Option<i64> {
    tree.pointer(pointer).and_then(Value::as_i64)
}

/// The text at a JSON pointer, empty when there is none.
pub(crate) fn text<'a>(tree: &'a Value, pointer: &str) -> &'a str {
    tree.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The elements of the list at a JSON pointer.
pub(crate) fn items<'a>(tree: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> {
    tree.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

/// A count as upstream's status has it: left out when it is zero.
pub(crate) fn count(number: i64) -> Value {
    if number == 0 { Value::Null } else { number.into() }
}

/// The time as the API writes it, whole seconds.
pub(crate) fn stamp(ctx: &Ctx<'_>) -> String {
    ctx.now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Reads a time of the API.
pub(crate) fn time(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

/// Letters of generated names: no vowels (no words come out), nothing that looks like another.
const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// Upstream's five random letters, from a seed.
pub(crate) fn suffix(seed: u64) -> String {
    // SplitMix64: neighbouring seeds give unrelated names.
    let mut mixed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^= mixed >> 31;
    let mut out = String::new();
    for _ in 0..5 {
        out.push(char::from(LETTERS[(mixed % 27) as usize]));
        mixed /= 27;
    }
    out
}

/// Spells a number with the letters of generated names, as upstream's SafeEncodeString does.
pub(crate) fn safe_encode(number: u32) -> String {
    let digits = number.to_string();
    digits.bytes().map(|digit| char::from(LETTERS[usize::from(digit) % 27])).collect()
}
