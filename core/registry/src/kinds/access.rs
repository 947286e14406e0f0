//! Who may do what, and who goes first: roles, bindings, priority classes.

use alloc::format;
use alloc::vec::Vec;

use knarr_api::{Cause, names};
use serde_json::Value;

use super::part::Part;

const GROUP: &str = "rbac.authorization.k8s.io";
const HIGHEST: i64 = 1_000_000_000;

pub(super) fn role(tree: &Value, namespaced: bool, out: &mut Vec<Cause>) {
    let root = Part::root(tree);
    root.get("rules").items().for_each(|rule| policy_rule(&rule, namespaced, out));
    let aggregation = root.get("aggregationRule");
    let selectors = aggregation.get("clusterRoleSelectors");
    if aggregation.is_set() && selectors.is_empty() {
        let why = "at least one clusterRoleSelector required if aggregationRule is non-nil";
        selectors.required(why, out);
    }
    selectors.items().for_each(|selector| selector.label_selector(out));
}

fn policy_rule(rule: &Part<'_>, namespaced: bool, out: &mut Vec<Cause>) {
    let [verbs, urls, groups, resources] =
        ["verbs", "nonResourceURLs", "apiGroups", "resources"].map(|name| rule.get(name));
    if verbs.is_empty() {
        verbs.required("verbs must contain at least one value", out);
    }
    if !urls.is_empty() {
        if namespaced {
            urls.invalid("namespaced rules cannot apply to non-resource URLs", out);
        }
        if !groups.is_empty() || !resources.is_empty() || !rule.get("resourceNames").is_empty() {
            let why = "rules cannot apply to both regular resources and non-resource URLs";
            urls.invalid(why, out);
        }
        return;
    }
    if groups.is_empty() {
        groups.required("resource rules must supply at least one api group", out);
    }
    if resources.is_empty() {
        resources.required("resource rules must supply at least one resource", out);
    }
}

pub(super) fn binding(tree: &Value, live: Option<&Value>, namespaced: bool, out: &mut Vec<Cause>) {
    let root = Part::root(tree);
    let role = root.get("roleRef");
    let kinds: &[&str] = if namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    if role.get("apiGroup").text() != GROUP {
        role.get("apiGroup").not_supported(&[GROUP], out);
    }
    if !kinds.contains(&role.get("kind").text()) {
        role.get("kind").not_supported(kinds, out);
    }
    role.get("name").must_follow(names::path_segment, out);
    root.get("subjects").items().for_each(|who| subject(&who, namespaced, out));
    if live.is_some_and(|live| live["roleRef"] != *role.value) {
        role.invalid("cannot change roleRef", out);
    }
}

fn subject(who: &Part<'_>, namespaced: bool, out: &mut Vec<Cause>) {
    let [name, group, namespace] = ["name", "apiGroup", "namespace"].map(|field| who.get(field));
    name.must_be(out);
    match who.get("kind").text() {
        "ServiceAccount" => {
            name.if_set_follows(names::dns1123_subdomain, out);
            if !group.is_empty() {
                group.not_supported(&[""], out);
            }
            if !namespaced {
                namespace.must_be(out);
            }
        }
        "User" | "Group" if group.text() == GROUP => {}
        "User" | "Group" => group.not_supported(&[GROUP], out),
        _ => who.get("kind").not_supported(&["ServiceAccount", "User", "Group"], out),
    }
}

pub(super) fn priority_class(tree: &Value, live: Option<&Value>, out: &mut Vec<Cause>) {
    let root = Part::root(tree);
    let (value, policy) = (root.get("value"), root.get("preemptionPolicy"));
    if let Some(live) = live {
        if value.int() != live["value"].as_i64() {
            value.forbidden("may not be changed in an update.", out);
        }
        policy.immutable(&live["preemptionPolicy"], out);
        return;
    }
    let name = root.get("metadata").get("name");
    let number = value.int().unwrap_or_default();
    let known = [("system-cluster-critical", 2 * HIGHEST), ("system-node-critical", 2_000_001_000)];
    if name.text().starts_with("system-") {
        if !known.contains(&(name.text(), number)) {
            name.forbidden(
                &format!(
                    "priority class names with 'system-' prefix are reserved for system use \
                     only. error: {} is not a known system priority class",
                    name.text()
                ),
                out,
            );
        }
    } else if number > HIGHEST {
        let why = format!("maximum allowed value of a user defined priority is {HIGHEST}");
        value.forbidden(&why, out);
    }
    if policy.is_set() {
        policy.one_of(&["PreemptLowerPriority", "Never"], out);
    }
}
