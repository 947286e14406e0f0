//! Events are news: they go an hour after they were last told (upstream's `--event-ttl`).

use alloc::vec::Vec;
use core::time::Duration;

use jiff::Timestamp;
use knarr_api::Resource;
use knarr_reconcile::{Controller, Ctx, Key, Plan, Row, View, Wake, Watch, Write};
use serde_json::Value;

const EVENTS: Resource = Resource::new("v1", "events");
const TTL: Duration = Duration::from_secs(3600);
/// Where an event says when it was told.
const TOLD: [&str; 4] =
    ["/lastTimestamp", "/series/lastObservedTime", "/eventTime", "/metadata/creationTimestamp"];

/// The row. Its user is the one that may delete anything.
pub fn controller() -> Controller {
    Controller {
        name: "event-ttl-controller",
        user: "system:serviceaccount:kube-system:generic-garbage-collector",
        watches: Vec::from([Watch { resource: EVENTS, wake: Wake::Itself }]),
        reconcile,
    }
}

fn reconcile(view: &View, key: &Key, ctx: &Ctx<'_>) -> Plan {
    let Some(row) = view.get(EVENTS, &key.object) else { return Plan::none() };
    let age = last_told(row).map(|at| ctx.now.duration_since(at)).unwrap_or_default();
    let age = Duration::try_from(age).unwrap_or_default();
    match TTL.checked_sub(age) {
        Some(left) if !left.is_zero() => Plan::none().again_after(left),
        _ => Plan::writes([Write::delete(EVENTS, row)].into()),
    }
}

fn last_told(row: &Row) -> Option<Timestamp> {
    let tree = row.tree();
    let at = |pointer: &&str| tree.pointer(pointer).and_then(Value::as_str)?.parse().ok();
    TOLD.iter().filter_map(at).max()
}
