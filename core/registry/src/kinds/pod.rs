//! Pods: phase and quality of service at creation, and what may change later.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use knarr_api::Cause;
use serde_json::{Value, json};

use super::part::Part;
use super::pod_spec;
use crate::object::text;

/// A new Pod waits, and its quality of service is settled.
pub(super) fn prepare(pod: &mut Value) {
    let class = qos_class(pod);
    pod["status"] = json!({"phase": "Pending", "qosClass": class});
}

/// Guaranteed, Burstable or BestEffort, by the requests and limits of all containers.
fn qos_class(pod: &Value) -> &'static str {
    let (mut any, mut guaranteed) = (false, true);
    for list in ["containers", "initContainers"] {
        for container in pod["spec"][list].as_array().into_iter().flatten() {
            let of = |what: &str| amounts(&container["resources"][what]);
            let (requests, limits) = (of("requests"), of("limits"));
            any |= !requests.is_empty() || !limits.is_empty();
            for resource in ["cpu", "memory"] {
                let limit = limits.get(resource);
                let request = requests.get(resource).or(limit);
                guaranteed &= limit.is_some() && request == limit;
            }
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// The cpu and memory amounts that are not zero.
fn amounts(list: &Value) -> BTreeMap<&str, &str> {
    let list = list.as_object().into_iter().flatten();
    list.filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
        .filter(|(key, value)| matches!(*key, "cpu" | "memory") && *value != "0")
        .collect()
}

/// What is wrong with a Pod.
pub(super) fn validate(pod: &Value, live: Option<&Value>, out: &mut Vec<Cause>) {
    pod_spec::validate(&Part::root(pod).get("spec"), out);
    if let Some(live) = live {
        out.extend(validate_update(pod, live));
    }
}

const MAY_CHANGE: &str = "pod updates may not change fields other than \
`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,\
`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` \
(allow it to be set to 1 if it was previously negative)";

fn validate_update(pod: &Value, live: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let bound = text(live, "/spec/nodeName");
    if fixed(pod, bound.is_empty()) != fixed(live, bound.is_empty()) {
        causes.push(Cause::forbidden("spec", MAY_CHANGE));
    }
    causes
}

/// The part of a Pod's spec that an update may not touch.
fn fixed(pod: &Value, unbound: bool) -> Value {
    let mut spec = pod["spec"].clone();
    for list in ["containers", "initContainers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            for field in ["image", "resources"] {
                container.as_object_mut().map(|container| container.remove(field));
            }
        }
    }
    let mut open: Vec<String> =
        ["activeDeadlineSeconds", "tolerations", "ephemeralContainers"].map(String::from).to_vec();
    if unbound {
        open.extend(["nodeName", "schedulingGates", "nodeSelector", "affinity"].map(String::from));
    }
    for field in open {
        spec.as_object_mut().map(|spec| spec.remove(&field));
    }
    spec
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quality_of_service_follows_requests_and_limits() {
        let pod = |resources: Value| json!({"spec": {"containers": [{"resources": resources}]}});
        let both = json!({"cpu": "1", "memory": "1Gi"});
        assert_eq!(qos_class(&pod(json!({}))), "BestEffort");
        assert_eq!(qos_class(&pod(json!({"limits": both}))), "Guaranteed");
        assert_eq!(qos_class(&pod(json!({"requests": both}))), "Burstable");
        assert_eq!(
            qos_class(&pod(json!({"requests": {"cpu": "1"}, "limits": both}))),
            "Guaranteed"
        );
    }

    #[test]
    fn a_bound_pod_changes_only_its_images() {
        let live = json!({"spec": {"nodeName": "n", "containers": [{"name": "a", "image": "x"}]}});
        let mut image = live.clone();
        image["spec"]["containers"][0]["image"] = "y".into();
        assert!(validate_update(&image, &live).is_empty());
        let mut name = live.clone();
        name["spec"]["containers"][0]["name"] = "b".into();
        assert_eq!(validate_update(&name, &live).len(), 1);
        let mut node = live.clone();
        node["spec"]["nodeName"] = "m".into();
        assert_eq!(validate_update(&node, &live).len(), 1);
    }
}
