//! Every namespace has a ConfigMap `kube-root-ca.crt`: what Pods trust the API server by.

use alloc::vec::Vec;

use knarr_api::ObjectKey;
use knarr_reconcile::{Controller, Ctx, Key, Plan, View, Wake, Watch, Write};
use serde_json::json;

use crate::finder::{CONFIG_MAPS, NAMESPACES};
use crate::service_account::{active, namespace_of};

const NAME: &str = "kube-root-ca.crt";
const ABOUT: &str = "kubernetes.io/description";
const DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver \
when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other \
usage is guaranteed across distributions of Kubernetes clusters.";

/// The row.
pub fn controller() -> Controller {
    Controller {
        name: "root-ca-certificate-publisher-controller",
        user: "system:serviceaccount:kube-system:root-ca-cert-publisher",
        watches: Vec::from([
            Watch { resource: NAMESPACES, wake: Wake::Itself },
            Watch {
                resource: CONFIG_MAPS,
                wake: Wake::With(|_, _, row| match row.key.name.as_str() {
                    NAME => Vec::from([namespace_of(row)]),
                    _ => Vec::new(),
                }),
            },
        ]),
        reconcile,
    }
}

fn reconcile(view: &View, key: &Key, ctx: &Ctx<'_>) -> Plan {
    if !active(view, key) || ctx.config.root_ca.is_empty() {
        return Plan::none();
    }
    let data = json!({"ca.crt": ctx.config.root_ca});
    let namespace = key.object.name.clone();
    let write = match view.get(CONFIG_MAPS, &ObjectKey::new(namespace.as_str(), NAME)) {
        Some(row) => {
            let mut tree = row.tree();
            if tree["data"] == data && tree["metadata"]["annotations"][ABOUT].is_string() {
                return Plan::none();
            }
            tree["data"] = data;
            tree["metadata"]["annotations"][ABOUT] = DESCRIPTION.into();
            Write::put_exact(CONFIG_MAPS, row, "", tree)
        }
        None => {
            let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": data, "metadata":
                {"name": NAME, "namespace": namespace, "annotations": {ABOUT: DESCRIPTION}}});
            Write::Create { resource: CONFIG_MAPS, namespace, object }
        }
    };
    Plan::writes([write].into())
}
