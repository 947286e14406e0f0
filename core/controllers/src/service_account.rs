//! Every namespace that is not on its way out has a ServiceAccount `default`.

use alloc::vec::Vec;

use knarr_api::ObjectKey;
use knarr_reconcile::{Controller, Ctx, Key, Plan, Row, View, Wake, Watch, Write};
use serde_json::json;

use crate::finder::{NAMESPACES, SERVICE_ACCOUNTS, text};

const NAME: &str = "default";

/// The row.
pub fn controller() -> Controller {
    Controller {
        name: "serviceaccount-controller",
        user: "system:serviceaccount:kube-system:service-account-controller",
        watches: Vec::from([
            Watch { resource: NAMESPACES, wake: Wake::Itself },
            Watch {
                resource: SERVICE_ACCOUNTS,
                wake: Wake::With(|_, _, row| match row.key.name.as_str() {
                    NAME => Vec::from([namespace_of(row)]),
                    _ => Vec::new(),
                }),
            },
        ]),
        reconcile,
    }
}

/// The key of the namespace that an object is in.
pub(crate) fn namespace_of(row: &Row) -> Key {
    Key { resource: NAMESPACES, object: ObjectKey::new("", row.key.namespace.as_str()) }
}

/// Whether a namespace takes new objects.
pub(crate) fn active(view: &View, key: &Key) -> bool {
    let row = view.get(NAMESPACES, &key.object);
    row.is_some_and(|row| {
        !row.facts.deleting() && text(&row.tree(), "/status/phase") != "Terminating"
    })
}

fn reconcile(view: &View, key: &Key, _: &Ctx<'_>) -> Plan {
    let namespace = &key.object.name;
    if !active(view, key) || view.get(SERVICE_ACCOUNTS, &ObjectKey::new(namespace, NAME)).is_some()
    {
        return Plan::none();
    }
    let object = json!({"apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": NAME, "namespace": namespace}});
    let namespace = namespace.clone();
    Plan::writes([Write::Create { resource: SERVICE_ACCOUNTS, namespace, object }].into())
}
