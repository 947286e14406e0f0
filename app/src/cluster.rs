//! What a node must know of its cluster besides objects: a ConfigMap says it, so that a node that
//! joins need not be told by hand.

use knarr_api::ip::Cidr;
use knarr_api::{ObjectKey, Reason, Resource};
use knarr_client::{Client, ClientError};
use serde_json::{Value, json};
use tracing::warn;

use crate::process::Fatal;

const CONFIG_MAPS: Resource = Resource::new("v1", "configmaps");
const ROLES: Resource = Resource::new("rbac.authorization.k8s.io/v1", "roles");
const BINDINGS: Resource = Resource::new("rbac.authorization.k8s.io/v1", "rolebindings");
const NAMESPACE: &str = "kube-system";
const NAME: &str = "knarr-node-config";
/// The domain of a cluster that says nothing of it.
pub(crate) const DOMAIN: &str = "cluster.local";

/// The cluster's ranges and names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Where Pods get their addresses from, one range per family.
    pub(crate) cluster_cidrs: Vec<Cidr>,
    /// Where Services get their cluster IPs from, one range per family.
    pub(crate) service_cidrs: Vec<Cidr>,
    /// The domain of cluster names.
    pub(crate) domain: String,
}

impl Facts {
    fn data(&self) -> Value {
        let words =
            |ranges: &[Cidr]| ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        json!({"clusterCIDRs": words(&self.cluster_cidrs),
            "serviceCIDRs": words(&self.service_cidrs), "clusterDomain": self.domain})
    }

    fn read(map: &Value) -> Self {
        let text = |key: &str| map["data"][key].as_str().unwrap_or_default();
        let ranges = |key: &str| -> Vec<Cidr> {
            text(key).split(',').filter_map(|word| word.trim().parse().ok()).collect()
        };
        let domain = Some(text("clusterDomain")).filter(|domain| !domain.is_empty());
        Self {
            cluster_cidrs: ranges("clusterCIDRs"),
            service_cidrs: ranges("serviceCIDRs"),
            domain: domain.unwrap_or(DOMAIN).to_owned(),
        }
    }

    /// Tells nodes; what was said at an earlier start is replaced.
    pub(crate) async fn publish(&self, client: &Client) -> Result<(), ClientError> {
        let metadata = json!({"name": NAME, "namespace": NAMESPACE});
        let rule = json!({"apiGroups": [""], "resources": ["configmaps"],
            "resourceNames": [NAME], "verbs": ["get"]});
        let group = "rbac.authorization.k8s.io";
        for (resource, object) in [
            (
                CONFIG_MAPS,
                json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata,
                "data": self.data()}),
            ),
            (
                ROLES,
                json!({"apiVersion": ROLES.api_version, "kind": "Role",
                "metadata": metadata, "rules": [rule]}),
            ),
            (
                BINDINGS,
                json!({"apiVersion": BINDINGS.api_version, "kind": "RoleBinding",
                "metadata": metadata,
                "roleRef": {"apiGroup": group, "kind": "Role", "name": NAME},
                "subjects": [{"apiGroup": group, "kind": "Group", "name": "system:nodes"}]}),
            ),
        ] {
            put(client, resource, &object).await?;
        }
        Ok(())
    }

    /// Asks the cluster. One that says nothing (upstream's) is known by the flags alone.
    pub(crate) async fn learn(client: &Client) -> Result<Self, Fatal> {
        match client.get(CONFIG_MAPS, &ObjectKey::new(NAMESPACE, NAME)).await {
            Ok(map) => Ok(Self::read(&map)),
            Err(error) if error.is(Reason::NotFound) || error.is(Reason::Forbidden) => {
                warn!("the cluster has no ConfigMap {NAMESPACE}/{NAME}: use --cluster-cidr");
                Ok(Self::read(&Value::Null))
            }
            Err(error) => Err(error.into()),
        }
    }
}

async fn put(client: &Client, resource: Resource, object: &Value) -> Result<(), ClientError> {
    match client.create(resource, NAMESPACE, object).await {
        Err(error) if error.is(Reason::AlreadyExists) => {
            client.update(resource, &ObjectKey::new(NAMESPACE, NAME), "", object).await.map(drop)
        }
        other => other.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_read_what_the_control_plane_wrote() {
        let ranges =
            |texts: &[&str]| texts.iter().map(|text| text.parse().expect("a range")).collect();
        let facts = Facts {
            cluster_cidrs: ranges(&["10.42.0.0/16", "fd42::/48"]),
            service_cidrs: ranges(&["10.43.0.0/16"]),
            domain: "example.org".to_owned(),
        };
        assert_eq!(Facts::read(&json!({"data": facts.data()})), facts);
        assert_eq!(Facts::read(&Value::Null).domain, DOMAIN);
    }
}
