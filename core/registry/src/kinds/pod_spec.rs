//! The rules of a PodSpec, of Pods and of templates alike, in upstream's order.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use knarr_api::{Cause, names};

use super::container;
use super::part::Part;
use super::volume;

/// What a taint may do.
pub(super) const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// Everything that is wrong with a spec.
pub(super) fn validate(spec: &Part<'_>, out: &mut Vec<Cause>) {
    super::networking::pod_names(spec, out);
    let volumes = volume::all(&spec.get("volumes"), out);
    containers(spec, &volumes, out);
    host_network(spec, out);
    spec.get("restartPolicy").one_of(&["Always", "OnFailure", "Never"], out);
    let policies = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    spec.get("dnsPolicy").one_of(&policies, out);
    spec.get("nodeSelector").labels(out);
    affinity(&spec.get("affinity"), out);
    words_of(spec, out);
    spec.get("tolerations").items().for_each(|item| toleration(&item, out));
    spec.get("priorityClassName").if_set_follows(names::dns1123_subdomain, out);
    spec.get("runtimeClassName").if_set_follows(names::dns1123_subdomain, out);
    if spec.get("preemptionPolicy").is_set() {
        spec.get("preemptionPolicy").one_of(&["PreemptLowerPriority", "Never"], out);
    }
}

fn words_of(spec: &Part<'_>, out: &mut Vec<Cause>) {
    spec.get("serviceAccountName").if_set_follows(names::dns1123_subdomain, out);
    spec.get("nodeName").if_set_follows(names::dns1123_subdomain, out);
    if spec.get("activeDeadlineSeconds").is_set() {
        spec.get("activeDeadlineSeconds").within(1, i64::from(i32::MAX), out);
    }
    spec.get("hostname").if_set_follows(names::dns1123_label, out);
    spec.get("subdomain").if_set_follows(names::dns1123_label, out);
}

fn containers(spec: &Part<'_>, volumes: &BTreeSet<&str>, out: &mut Vec<Cause>) {
    let mut taken = BTreeSet::new();
    let list = spec.get("containers");
    list.must_be(out);
    for part in list.items() {
        container::common(&part, volumes, out);
        unique(&part, &mut taken, out);
        container::lifecycle_and_probes(&part, out);
        container::restarts(&part, out);
    }
    container::host_ports(list.items(), out);
    for part in spec.get("initContainers").items() {
        container::common(&part, volumes, out);
        unique(&part, &mut taken, out);
        container::host_ports(core::iter::once(part.clone()), out);
        match part.get("restartPolicy").text() {
            "Always" => container::lifecycle_and_probes(&part, out),
            _ => container::nothing_running(&part, out),
        }
        container::restarts(&part, out);
    }
}

fn unique<'v>(part: &Part<'v>, taken: &mut BTreeSet<&'v str>, out: &mut Vec<Cause>) {
    let name = part.get("name");
    if !taken.insert(name.text()) && !name.is_empty() {
        name.duplicate(name.value, out);
    }
}

/// Whoever shares the host's network has its ports, too.
fn host_network(spec: &Part<'_>, out: &mut Vec<Cause>) {
    if spec.get("hostNetwork").value != true {
        return;
    }
    for container in spec.get("containers").items() {
        for port in container.get("ports").items() {
            let host = port.get("hostPort");
            if host.int().is_some() && host.int() != port.get("containerPort").int() {
                host.invalid("must match `containerPort` when `hostNetwork` is true", out);
            }
        }
    }
}

fn affinity(part: &Part<'_>, out: &mut Vec<Cause>) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    let node = part.get("nodeAffinity");
    let terms = node.get(REQUIRED).get("nodeSelectorTerms");
    if node.get(REQUIRED).is_set() && terms.is_empty() {
        terms.required("must have at least one node selector term", out);
    }
    terms.items().for_each(|term| node_term(&term, out));
    for term in node.get(PREFERRED).items() {
        weight(&term, out);
        node_term(&term.get("preference"), out);
    }
    for pods in ["podAffinity", "podAntiAffinity"].map(|name| part.get(name)) {
        pods.get(REQUIRED).items().for_each(|term| pod_term(&term, out));
        for term in pods.get(PREFERRED).items() {
            weight(&term, out);
            pod_term(&term.get("podAffinityTerm"), out);
        }
    }
}

fn weight(term: &Part<'_>, out: &mut Vec<Cause>) {
    let weight = term.get("weight");
    if !(1..=100).contains(&weight.int().unwrap_or_default()) {
        let shown = weight.int().unwrap_or_default().into();
        weight.invalid_as(&shown, "must be in the range 1-100", out);
    }
}

fn node_term(term: &Part<'_>, out: &mut Vec<Cause>) {
    for rule in term.get("matchExpressions").items() {
        let values = rule.get("values");
        match rule.get("operator").text() {
            "In" | "NotIn" if values.is_empty() => {
                values.required("must be specified when `operator` is 'In' or 'NotIn'", out);
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                values.forbidden(why, out);
            }
            "Gt" | "Lt" if values.items().count() != 1 => {
                let why = "must be specified single value when `operator` is 'Lt' or 'Gt'";
                values.required(why, out);
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            _ => rule.get("operator").invalid("not a valid selector operator", out),
        }
        rule.get("key").follows(names::qualified_name, out);
    }
}

fn pod_term(term: &Part<'_>, out: &mut Vec<Cause>) {
    term.get("labelSelector").label_selector(out);
    term.get("namespaceSelector").label_selector(out);
    for name in term.get("namespaces").items() {
        if let Err(why) = names::dns1123_label(name.text()) {
            term.get("namespace").invalid_as(name.value, &why, out);
        }
    }
    let key = term.get("topologyKey");
    if key.is_empty() {
        key.required("can not be empty", out);
    }
    key.follows(names::qualified_name, out);
}

fn toleration(part: &Part<'_>, out: &mut Vec<Cause>) {
    let [key, operator, value, effect] =
        ["key", "operator", "value", "effect"].map(|name| part.get(name));
    key.if_set_follows(names::qualified_name, out);
    if key.is_empty() && operator.text() != "Exists" {
        operator.invalid_as(
            &operator.text().into(),
            "operator must be Exists when `key` is empty, which means \"match all values and all \
             keys\"",
            out,
        );
    }
    if part.get("tolerationSeconds").is_set() && effect.text() != "NoExecute" {
        let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
        effect.invalid_as(&effect.text().into(), why, out);
    }
    match operator.text() {
        "Equal" | "" => {
            if let Err(why) = names::label_value(value.text()) {
                operator.invalid_as(value.value, &why, out);
            }
        }
        "Exists" if !value.is_empty() => {
            let why = "value must be empty when `operator` is 'Exists'";
            operator.invalid_as(value.value, why, out);
        }
        "Exists" => {}
        "Lt" | "Gt" => operator.not_supported(&["Equal", "Exists", "Lt", "Gt"], out),
        _ => operator.not_supported(&["Equal", "Exists"], out),
    }
    if !effect.is_empty() && !EFFECTS.contains(&effect.text()) {
        effect.not_supported(&EFFECTS, out);
    }
}
