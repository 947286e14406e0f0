//! Whether a container that ended runs again: its own rules, its own policy, the Pod's policy.

use knarr_typed::Container;
use knarr_typed::k8s_openapi::api::core::v1::ContainerRestartRule;

/// Whether a run that ended with `code` is followed by another (KEP-5307); `policy` is what holds
/// where the container has none of its own.
pub(crate) fn restarts(container: &Container, policy: &str, code: i32) -> bool {
    let mut rules = container.restart_policy_rules.iter().flatten();
    if rules.any(|rule| rule.action == "Restart" && matches(rule, code)) {
        return true;
    }
    match container.restart_policy.as_deref().unwrap_or(policy) {
        "Never" => false,
        "OnFailure" => code != 0,
        _ => true,
    }
}

fn matches(rule: &ContainerRestartRule, code: i32) -> bool {
    let Some(codes) = &rule.exit_codes else { return false };
    let listed = codes.values.iter().flatten().any(|listed| *listed == code);
    match codes.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        _ => false,
    }
}
