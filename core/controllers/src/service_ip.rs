//! ServiceCIDRs and IPAddresses (KEP-1880): ranges are held while addresses of them are in use;
//! addresses that a write or an import left behind are brought in line with their Services.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::IpAddr;
use core::time::Duration;

use jiff::SignedDuration;
use knarr_api::ip::{Cidr, Family};
use knarr_api::{ObjectKey, Resource};
use knarr_reconcile::{Controller, Ctx, Key, Plan, Row, View, Wake, Watch, Write};
use serde_json::{Value, json};

use crate::finder::{SERVICES, items, stamp, text, time};

const RANGES: Resource = Resource::new("networking.k8s.io/v1", "servicecidrs");
const ADDRESSES: Resource = Resource::new("networking.k8s.io/v1", "ipaddresses");
const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
/// An address without a Service may be on its way to one for so long.
const GRACE: SignedDuration = SignedDuration::from_secs(60);

/// The row for ranges.
pub fn range_controller() -> Controller {
    let every = Wake::With(|view, _, _| {
        view.all(RANGES).map(|row| Key { resource: RANGES, object: row.key.clone() }).collect()
    });
    Controller {
        name: "service-cidr-controller",
        user: "system:serviceaccount:kube-system:service-cidrs-controller",
        watches: Vec::from([
            Watch { resource: RANGES, wake: every },
            Watch { resource: ADDRESSES, wake: Wake::With(|view, _, row| going(view, row)) },
        ]),
        reconcile: reconcile_range,
    }
}

/// The ranges that wait for this address to be gone.
fn going(view: &View, address: &Row) -> Vec<Key> {
    let Ok(address) = address.key.name.parse::<IpAddr>() else { return Vec::new() };
    let waiting = view.all(RANGES).filter(|row| row.facts.deleting());
    let waiting = waiting.filter(|row| cidrs(&row.tree()).iter().any(|c| c.contains(address)));
    waiting.map(|row| Key { resource: RANGES, object: row.key.clone() }).collect()
}

fn cidrs(range: &Value) -> Vec<Cidr> {
    let texts = items(range, "/spec/cidrs").filter_map(Value::as_str);
    texts.filter_map(|text| text.parse().ok()).collect()
}

fn reconcile_range(view: &View, key: &Key, ctx: &Ctx<'_>) -> Plan {
    let Some(row) = view.get(RANGES, &key.object) else { return Plan::none() };
    let tree = row.tree();
    let held = row.facts.finalizers.iter().any(|finalizer| finalizer == FINALIZER);
    if row.facts.deleting() {
        let used = in_use(view, row, &cidrs(&tree));
        let ready = condition(
            ctx,
            "False",
            "Terminating",
            "There are still IPAddresses \
            referencing the ServiceCIDR, please remove them or create a new ServiceCIDR",
        );
        return match (used, held) {
            (true, _) => report(row, &tree, ready),
            (false, true) => {
                let rest: Vec<&String> =
                    row.facts.finalizers.iter().filter(|name| *name != FINALIZER).collect();
                Plan::writes([finalizers(row, &json!(rest))].into())
            }
            (false, false) => Plan::none(),
        };
    }
    if !held {
        let mut all = row.facts.finalizers.clone();
        all.push(FINALIZER.to_string());
        return Plan::writes([finalizers(row, &json!(all))].into());
    }
    report(row, &tree, condition(ctx, "True", "", "Kubernetes Service CIDR is ready"))
}

/// Whether an address is of this range and of no other.
fn in_use(view: &View, row: &Row, own: &[Cidr]) -> bool {
    let others: Vec<Cidr> = view
        .all(RANGES)
        .filter(|other| other.key != row.key && !other.facts.deleting())
        .flat_map(|other| cidrs(&other.tree()))
        .collect();
    let of = |ranges: &[Cidr], address| ranges.iter().any(|range| range.contains(address));
    let mut addresses = view.all(ADDRESSES).filter_map(|row| row.key.name.parse().ok());
    addresses.any(|address| of(own, address) && !of(&others, address))
}

fn finalizers(row: &Row, list: &Value) -> Write {
    Write::patch_exact(RANGES, row, json!({"metadata": {"finalizers": list}}))
}

fn condition(ctx: &Ctx<'_>, status: &str, reason: &str, message: &str) -> Value {
    json!({"type": "Ready", "status": status, "reason": reason, "message": message,
        "lastTransitionTime": stamp(ctx)})
}

fn report(row: &Row, tree: &Value, ready: Value) -> Plan {
    let mut known = items(tree, "/status/conditions");
    if known.any(|c| c["type"] == "Ready" && c["status"] == ready["status"]) {
        return Plan::none();
    }
    let write = Write::status(RANGES, row, &json!({"conditions": [ready]}));
    Plan::writes(write.into_iter().collect())
}

/// The row that brings IPAddresses and Services in line.
pub fn repair_controller() -> Controller {
    let addresses = |view: &View, _: Resource, row: &Row| {
        let mut keys: Vec<Key> = addresses_of(&row.tree())
            .iter()
            .map(|address| Key { resource: ADDRESSES, object: ObjectKey::new("", address) })
            .collect();
        keys.retain(|key| view.get(SERVICES, &row.key).is_none() || !is_held(view, key, row));
        keys
    };
    Controller {
        name: "service-ip-repair",
        user: "system:serviceaccount:kube-system:service-ip-repair",
        watches: Vec::from([
            Watch { resource: ADDRESSES, wake: Wake::Itself },
            Watch { resource: SERVICES, wake: Wake::With(addresses) },
        ]),
        reconcile: reconcile_address,
    }
}

fn addresses_of(service: &Value) -> Vec<String> {
    let list = items(service, "/spec/clusterIPs").filter_map(Value::as_str);
    list.filter(|address| *address != "None").map(String::from).collect()
}

fn is_held(view: &View, key: &Key, service: &Row) -> bool {
    view.get(ADDRESSES, &key.object).is_some_and(|row| parent(&row.tree()) == service.key)
}

fn parent(address: &Value) -> ObjectKey {
    let word = |field: &str| text(&address["spec"]["parentRef"], field).to_string();
    ObjectKey::new(word("/namespace"), word("/name"))
}

fn reconcile_address(view: &View, key: &Key, ctx: &Ctx<'_>) -> Plan {
    match view.get(ADDRESSES, &key.object) {
        Some(row) => orphaned(view, row, ctx),
        None => missing(view, key),
    }
}

/// An address that its Service does not have goes, once it is certain that it is on no way to one.
fn orphaned(view: &View, row: &Row, ctx: &Ctx<'_>) -> Plan {
    let tree = row.tree();
    if tree["spec"]["parentRef"]["resource"] != "services" {
        return Plan::none();
    }
    let parent = parent(&tree);
    let service = view.get(SERVICES, &parent).map(Row::tree);
    if service.is_some_and(|service| addresses_of(&service).contains(&row.key.name)) {
        return Plan::none();
    }
    let age = time(&row.facts.creation_timestamp).map(|made| ctx.now.duration_since(made));
    match age.map(|age| GRACE - age) {
        Some(left) if left > SignedDuration::ZERO => {
            Plan::none().again_after(Duration::try_from(left).unwrap_or_default())
        }
        _ => Plan::writes([Write::delete(ADDRESSES, row)].into()),
    }
}

/// A Service's address that has no object (data of an older cluster) gets one.
fn missing(view: &View, key: &Key) -> Plan {
    let Ok(address) = key.object.name.parse::<IpAddr>() else { return Plan::none() };
    let mut services = view.all(SERVICES).filter(|row| !row.facts.deleting());
    let Some(owner) = services.find(|row| addresses_of(&row.tree()).contains(&key.object.name))
    else {
        return Plan::none();
    };
    let ObjectKey { namespace, name } = &owner.key;
    let object = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
        "metadata": {"name": key.object.name, "labels": {
            "ipaddress.kubernetes.io/ip-family": Family::of(address).word(),
            "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"}},
        "spec": {"parentRef":
            {"group": "", "resource": "services", "namespace": namespace, "name": name}}});
    // The view of addresses may be behind that of Services.
    let absent =
        Write::Absent { resource: ADDRESSES, object: key.object.clone(), uid: String::new() };
    let made = Write::Create { resource: ADDRESSES, namespace: String::new(), object };
    Plan::writes([absent].into()).then([made].into())
}
