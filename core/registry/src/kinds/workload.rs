//! What keeps Pods running: Deployments and ReplicaSets, and the template they share.

use alloc::vec::Vec;

use knarr_api::{Cause, LabelSelector};
use serde_json::Value;

use super::part::Part;
use super::pod_spec;
use super::words::{count_or_percent, percent};
use crate::meta::validate_words;

pub(super) fn deployment(tree: &Value, live: Option<&Value>, out: &mut Vec<Cause>) {
    let spec = Part::root(tree).get("spec");
    spec.get("replicas").nonnegative(out);
    selector_and_template(&spec, out);
    strategy(&spec.get("strategy"), out);
    let ready = spec.get("minReadySeconds");
    ready.nonnegative(out);
    spec.get("revisionHistoryLimit").nonnegative(out);
    let deadline = spec.get("progressDeadlineSeconds");
    deadline.nonnegative(out);
    if deadline.int().is_some_and(|deadline| deadline <= ready.int().unwrap_or_default()) {
        deadline.invalid("must be greater than minReadySeconds", out);
    }
    selector_stays(&spec, live, out);
}

pub(super) fn replica_set(tree: &Value, live: Option<&Value>, out: &mut Vec<Cause>) {
    let spec = Part::root(tree).get("spec");
    spec.get("replicas").nonnegative(out);
    spec.get("minReadySeconds").nonnegative(out);
    selector_and_template(&spec, out);
    selector_stays(&spec, live, out);
}

fn selector_stays(spec: &Part<'_>, live: Option<&Value>, out: &mut Vec<Cause>) {
    if let Some(live) = live {
        spec.get("selector").immutable(&live["spec"]["selector"], out);
    }
}

fn selector_and_template(spec: &Part<'_>, out: &mut Vec<Cause>) {
    let (selector, template) = (spec.get("selector"), spec.get("template"));
    let before = out.len();
    if selector.is_set() {
        selector.label_selector(out);
        if selector.get("matchLabels").is_empty() && selector.get("matchExpressions").is_empty() {
            selector.invalid("empty selector is invalid for deployment", out);
        }
    } else {
        selector.required("", out);
    }
    let labels = template.get("metadata").get("labels");
    let matcher = LabelSelector::from_object(selector.value).filter(|_| out.len() == before);
    if matcher.is_some_and(|matcher| !matcher.matches(labels.value)) {
        labels.invalid("`selector` does not match template `labels`", out);
    }
    pod_template(&template, out);
    let pod = template.get("spec");
    if pod.get("restartPolicy").text() != "Always" {
        pod.get("restartPolicy").not_supported(&["Always"], out);
    }
    if pod.get("activeDeadlineSeconds").is_set() {
        let why = "activeDeadlineSeconds in ReplicaSet is not Supported";
        pod.get("activeDeadlineSeconds").forbidden(why, out);
    }
}

/// The Pods to be made, whoever makes them.
pub(super) fn pod_template(template: &Part<'_>, out: &mut Vec<Cause>) {
    validate_words(template.get("metadata").value, &template.path(), out);
    let spec = template.get("spec");
    pod_spec::validate(&spec, out);
    if !spec.get("ephemeralContainers").is_empty() {
        let why = "ephemeral containers not allowed in pod template";
        spec.get("ephemeralContainers").forbidden(why, out);
    }
}

fn strategy(strategy: &Part<'_>, out: &mut Vec<Cause>) {
    let rolling = strategy.get("rollingUpdate");
    match strategy.get("type").text() {
        "Recreate" if rolling.is_set() => {
            rolling.forbidden("may not be specified when strategy `type` is 'Recreate'", out);
        }
        "Recreate" => {}
        "RollingUpdate" if !rolling.is_set() => {
            rolling.required("this should be defaulted and never be nil", out);
        }
        "RollingUpdate" => rolling_update(&rolling, out),
        _ => strategy.not_supported(&["Recreate", "RollingUpdate"], out),
    }
}

fn rolling_update(rolling: &Part<'_>, out: &mut Vec<Cause>) {
    let (unavailable, surge) = (rolling.get("maxUnavailable"), rolling.get("maxSurge"));
    count_or_percent(&unavailable, out);
    count_or_percent(&surge, out);
    let amount = |part: &Part<'_>| part.int().or_else(|| percent(part.text())).unwrap_or(0);
    if amount(&unavailable) == 0 && amount(&surge) == 0 {
        unavailable.invalid("may not be 0 when `maxSurge` is 0", out);
    }
    if percent(unavailable.text()).is_some_and(|share| share > 100) {
        unavailable.invalid("must not be greater than 100%", out);
    }
}
