//! Conditions of a status: a list with one entry per type.

use alloc::string::String;
use alloc::vec::Vec;

use knarr_reconcile::Ctx;
use serde_json::{Value, json};

use crate::finder::stamp;

/// The condition of a type.
pub(crate) fn find<'a>(conditions: &'a [Value], kind: &str) -> Option<&'a Value> {
    conditions.iter().find(|condition| condition["type"] == kind)
}

/// Removes the condition of a type.
pub(crate) fn remove(conditions: &mut Vec<Value>, kind: &str) {
    conditions.retain(|condition| condition["type"] != kind);
}

/// A condition that begins now.
pub(crate) fn new(ctx: &Ctx<'_>, kind: &str, status: &str, reason: &str, message: &str) -> Value {
    let now = stamp(ctx);
    json!({"type": kind, "status": status, "lastUpdateTime": now, "lastTransitionTime": now,
        "reason": reason, "message": message})
}

/// Sets a condition unless one with its status and reason is there; it moves to the end, and
/// keeps the time of the last transition when its status stays.
pub(crate) fn set(conditions: &mut Vec<Value>, mut condition: Value) {
    let kind = String::from(condition["type"].as_str().unwrap_or_default());
    if let Some(old) = find(conditions, &kind)
        && old["status"] == condition["status"]
    {
        if old["reason"] == condition["reason"] {
            return;
        }
        condition["lastTransitionTime"] = old["lastTransitionTime"].clone();
    }
    remove(conditions, &kind);
    conditions.push(condition);
}
