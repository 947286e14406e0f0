//! Pods whose node is gone have nobody who could stop them: they are removed at once.

use alloc::vec::Vec;

use knarr_api::ObjectKey;
use knarr_reconcile::{Controller, Ctx, Key, Plan, View, Wake, Watch, Write};
use serde_json::json;

use crate::claim::finished;
use crate::finder::{PODS, items};
use crate::node_ipam::NODES;
use crate::taint_eviction::disruption;

/// The row.
pub fn controller() -> Controller {
    Controller {
        name: "pod-garbage-collector-controller",
        user: "system:serviceaccount:kube-system:pod-garbage-collector",
        watches: Vec::from([
            Watch { resource: PODS, wake: Wake::Itself },
            Watch {
                resource: NODES,
                wake: Wake::With(|view, _, row| match view.get(NODES, &row.key) {
                    Some(_) => Vec::new(),
                    None => {
                        let pods = view.on_node(PODS, &row.key.name);
                        let key = |pod: &knarr_reconcile::Row| pod.key.clone();
                        pods.map(|pod| Key { resource: PODS, object: key(pod) }).collect()
                    }
                }),
            },
        ]),
        reconcile,
    }
}

fn reconcile(view: &View, key: &Key, ctx: &Ctx<'_>) -> Plan {
    let Some(row) = view.get(PODS, &key.object) else { return Plan::none() };
    let node = ObjectKey::new("", row.facts.node.as_str());
    if node.name.is_empty() || view.get(NODES, &node).is_some() {
        return Plan::none();
    }
    let tree = row.tree();
    let reason = "DeletionByPodGC";
    let mut conditions = items(&tree, "/status/conditions");
    let marked = conditions.any(|c| c["type"] == "DisruptionTarget" && c["reason"] == reason);
    if !marked {
        let mut write = disruption(row, &tree, reason, "PodGC: node no longer exists", ctx);
        if let Write::Patch { body, .. } = &mut write
            && !finished(&tree)
        {
            body["status"]["phase"] = "Failed".into();
        }
        // The watch of nodes may lag behind that of Pods.
        let absent = Write::Absent { resource: NODES, object: node, uid: Default::default() };
        return Plan::writes([absent].into()).then([write].into());
    }
    let options = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": row.facts.uid}});
    let delete = Write::Delete { resource: PODS, object: row.key.clone(), options };
    Plan::writes([delete].into())
}
