//! Containers: names, images, ports, variables, mounts, resources, probes, hooks.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::vec::Vec;

use knarr_api::quantity::Quantity;
use knarr_api::{Cause, names};

use super::part::Part;
use super::words;

const MORE_THAN_ONE: &str = "may not have more than one field specified at a time";
const MAX_RULES: usize = 20;
const MAX_EXIT_CODES: usize = 255;
const ONLY_ALWAYS: &str = "may not be set for init containers without restartPolicy=Always";

/// What every kind of container has; `volumes` are the Pod's that are right.
pub(super) fn common(part: &Part<'_>, volumes: &BTreeSet<&str>, out: &mut Vec<Cause>) {
    part.get("name").must_follow(names::dns1123_label, out);
    part.get("image").must_be(out);
    part.get("terminationMessagePolicy").one_of(&["File", "FallbackToLogsOnError"], out);
    ports(&part.get("ports"), out);
    part.get("env").items().for_each(|variable| env(&variable, out));
    env_from(&part.get("envFrom"), out);
    mounts(part, volumes, out);
    part.get("imagePullPolicy").one_of(&["Always", "IfNotPresent", "Never"], out);
    resources(&part.get("resources"), out);
    security(&part.get("securityContext"), out);
}

/// Hooks and probes of what keeps running.
pub(super) fn lifecycle_and_probes(part: &Part<'_>, out: &mut Vec<Cause>) {
    let hooks = part.get("lifecycle");
    for hook in ["postStart", "preStop"].map(|name| hooks.get(name)) {
        if hook.is_set() {
            handler(&hook, out);
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let checked = part.get(name);
        if !checked.is_set() {
            continue;
        }
        probe(&checked, out);
        let grace = checked.get("terminationGracePeriodSeconds");
        if name == "readinessProbe" && grace.is_set() {
            grace.invalid("must not be set for readinessProbes", out);
        }
        let successes = checked.get("successThreshold");
        if name != "readinessProbe" && successes.int() != Some(1) {
            successes.invalid("must be 1", out);
        }
    }
}

/// When it runs again: a policy of its own, and rules that need one.
pub(super) fn restarts(part: &Part<'_>, out: &mut Vec<Cause>) {
    let (policy, rules) = (part.get("restartPolicy"), part.get("restartPolicyRules"));
    let count = rules.items().count();
    if policy.is_set() {
        policy.one_of(&["Always", "Never", "OnFailure"], out);
    } else if count > 0 {
        policy.required("must specify restartPolicy when restart rules are used", out);
    }
    if count > MAX_RULES {
        rules.too_many(count, MAX_RULES, out);
    }
    for rule in rules.items() {
        rule.get("action").one_of(&["Restart", "RestartAllContainers"], out);
        let codes = rule.get("exitCodes");
        if !codes.is_set() {
            codes.required("must be specified", out);
            continue;
        }
        codes.get("operator").one_of(&["In", "NotIn"], out);
        let listed = codes.get("values").items().count();
        if listed > MAX_EXIT_CODES {
            codes.get("values").too_many(listed, MAX_EXIT_CODES, out);
        }
    }
}

/// What an init container that ends may not have.
pub(super) fn nothing_running(part: &Part<'_>, out: &mut Vec<Cause>) {
    let fields = ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"];
    let set = fields.map(|name| part.get(name)).into_iter().filter(Part::is_set);
    set.for_each(|field| field.forbidden(ONLY_ALWAYS, out));
}

fn ports(list: &Part<'_>, out: &mut Vec<Cause>) {
    let mut taken = BTreeSet::new();
    for port in list.items() {
        let name = port.get("name");
        let right = !name.is_empty() && words::port_name(&name, out);
        if right && !taken.insert(name.text()) {
            name.duplicate(name.value, out);
        }
        match port.get("containerPort").int() {
            None | Some(0) => port.get("containerPort").required("", out),
            Some(_) => port.get("containerPort").within(1, 65_535, out),
        }
        if port.get("hostPort").int().is_some_and(|number| number != 0) {
            port.get("hostPort").within(1, 65_535, out);
        }
        port.get("protocol").one_of(&["SCTP", "TCP", "UDP"], out);
    }
}

/// Each port of the host at most once among these containers.
pub(super) fn host_ports<'v>(containers: impl Iterator<Item = Part<'v>>, out: &mut Vec<Cause>) {
    let mut taken = BTreeSet::new();
    for port in containers.flat_map(|c| c.get("ports").items().collect::<Vec<_>>()) {
        let number = port.get("hostPort").int().unwrap_or_default();
        let (protocol, ip) = (port.get("protocol").text(), port.get("hostIP").text());
        let key = format!("{protocol}/{ip}/{number}");
        if number != 0 && !taken.insert(key.clone()) {
            port.get("hostPort").duplicate(&key.into(), out);
        }
    }
}

fn env(variable: &Part<'_>, out: &mut Vec<Cause>) {
    variable.get("name").must_follow(words::variable, out);
    let from = variable.get("valueFrom");
    if !from.is_set() {
        return;
    }
    let names = ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"];
    let sources: Vec<Part<'_>> =
        names.map(|n| from.get(n)).into_iter().filter(Part::is_set).collect();
    field_ref(&from.get("fieldRef"), &FIELDS, out);
    for name in ["configMapKeyRef", "secretKeyRef"] {
        key_ref(&from.get(name), out);
    }
    let mut fault = |why: &str| from.invalid_as(&"".into(), why, out);
    match sources.len() {
        0 => fault(
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, \
             `secretKeyRef` or `fileKeyRef`",
        ),
        _ if !variable.get("value").is_empty() => {
            fault("may not be specified when `value` is not empty");
        }
        1 => {}
        _ => fault(MORE_THAN_ONE),
    }
}

const FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// What is known of a Pod beside those, but is no variable.
const KNOWN: [&str; 4] = ["metadata.labels", "metadata.annotations", "spec.host", "status.phase"];

/// A field of the Pod, one of `allowed`, or a label or annotation of it.
pub(super) fn field_ref(part: &Part<'_>, allowed: &[&str], out: &mut Vec<Cause>) {
    let path = part.get("fieldPath");
    if !part.is_set() || !part.get("apiVersion").must_be(out) || !path.must_be(out) {
        return;
    }
    let subscript = path.text().strip_suffix("']").and_then(|text| text.split_once("['"));
    let verdict = match (subscript, path.text()) {
        (Some(("metadata.labels", key)), _) => names::qualified_name(key),
        (Some(("metadata.annotations", key)), _) => {
            names::qualified_name(&key.to_ascii_lowercase())
        }
        (_, known) if allowed.contains(&known) => Ok(()),
        (_, known) if FIELDS.contains(&known) || KNOWN.contains(&known) => {
            return path.not_supported(allowed, out);
        }
        (_, unknown) => {
            let why = format!("error converting fieldPath: field label not supported: {unknown}");
            return path.invalid(&why, out);
        }
    };
    if let (Err(why), Some((_, key))) = (verdict, subscript) {
        part.invalid_as(&key.into(), &why, out);
    }
}

fn key_ref(part: &Part<'_>, out: &mut Vec<Cause>) {
    if part.is_set() {
        part.get("name").follows(names::dns1123_subdomain, out);
        part.get("key").must_follow(words::config_key, out);
    }
}

fn env_from(list: &Part<'_>, out: &mut Vec<Cause>) {
    for source in list.items() {
        source.get("prefix").if_set_follows(words::variable, out);
        let refs = ["configMapRef", "secretRef"].map(|name| source.get(name));
        let set: Vec<&Part<'_>> = refs.iter().filter(|part| part.is_set()).collect();
        set.iter().for_each(|part| part.get("name").must_follow(names::dns1123_subdomain, out));
        match set.len() {
            0 => list.invalid_as(
                &"".into(),
                "must specify one of: `configMapRef` or `secretRef`",
                out,
            ),
            1 => {}
            _ => list.invalid_as(&"".into(), MORE_THAN_ONE, out),
        }
    }
}

fn mounts(container: &Part<'_>, volumes: &BTreeSet<&str>, out: &mut Vec<Cause>) {
    let list = container.get("volumeMounts");
    let mut taken = BTreeSet::new();
    for mount in list.items() {
        let [name, path, sub, expr] =
            ["name", "mountPath", "subPath", "subPathExpr"].map(|field| mount.get(field));
        name.must_be(out);
        if !volumes.contains(name.text()) {
            name.not_found(out);
        }
        path.must_be(out);
        if !taken.insert(path.text()) {
            path.invalid("must be unique", out);
        }
        // Upstream names the list, not the mount, here.
        let of_list = |field: &Part<'_>, out: &mut Vec<Cause>| {
            let before = out.len();
            words::local_path(field, out);
            let name = if field.path().ends_with("Expr") { "subPathExpr" } else { "subPath" };
            for cause in &mut out[before..] {
                cause.field = list.get(name).path();
            }
        };
        of_list(&sub, out);
        if !expr.is_empty() && !sub.is_empty() {
            expr.invalid("subPathExpr and subPath are mutually exclusive", out);
        }
        of_list(&expr, out);
        propagation(container, &mount, out);
        recursive_read_only(&mount, out);
    }
}

fn propagation(container: &Part<'_>, mount: &Part<'_>, out: &mut Vec<Cause>) {
    let part = mount.get("mountPropagation");
    if !part.is_set() {
        return;
    }
    part.one_of(&["Bidirectional", "HostToContainer", "None"], out);
    let privileged = container.get("securityContext").get("privileged").value == true;
    if part.text() == "Bidirectional" && !privileged {
        let why = "Bidirectional mount propagation is available only to privileged containers";
        part.forbidden(why, out);
    }
}

fn recursive_read_only(mount: &Part<'_>, out: &mut Vec<Cause>) {
    let part = mount.get("recursiveReadOnly");
    if !part.is_set() {
        return;
    }
    part.one_of(&["Disabled", "Enabled", "IfPossible"], out);
    if !["Enabled", "IfPossible"].contains(&part.text()) {
        return;
    }
    if mount.get("readOnly").value != true {
        part.forbidden("may only be specified when readOnly is true", out);
    }
    if !["", "None"].contains(&mount.get("mountPropagation").text()) {
        let why = "may only be specified when mountPropagation is None or not specified";
        part.forbidden(why, out);
    }
}

/// Requests and limits.
pub(super) fn resources(part: &Part<'_>, out: &mut Vec<Cause>) {
    let (limits, requests) = (part.get("limits"), part.get("requests"));
    let read = |part: &Part<'_>| part.text().parse::<Quantity>().unwrap_or_default();
    for (name, amount) in limits.entries() {
        words::resource_name(&amount, name, out);
        quantity(&amount, name, &read(&amount), out);
    }
    for (name, amount) in requests.entries() {
        let wanted = read(&amount);
        words::resource_name(&amount, name, out);
        quantity(&amount, name, &wanted, out);
        let limit = limits.key(name);
        let overcommits = words::is_native(name) && !name.starts_with("hugepages-");
        if !limit.is_set() {
            if !overcommits {
                limits.required("Limit must be set for non overcommitable resources", out);
            }
        } else if wanted != read(&limit) && !overcommits {
            let why = format!("must be equal to {name} limit of {}", limit.text());
            requests.invalid_as(amount.value, &why, out);
        } else if wanted > read(&limit) {
            let why = format!("must be less than or equal to {name} limit of {}", limit.text());
            requests.invalid_as(amount.value, &why, out);
        }
    }
}

fn quantity(part: &Part<'_>, name: &str, value: &Quantity, out: &mut Vec<Cause>) {
    if value.signum() < 0 {
        part.invalid("must be greater than or equal to 0", out);
    }
    if words::is_extended(name) && value.milli_value() % 1000 != 0 {
        part.invalid("must be an integer", out);
    }
}

fn security(part: &Part<'_>, out: &mut Vec<Cause>) {
    for id in ["runAsUser", "runAsGroup"].map(|name| part.get(name)) {
        if id.is_set() {
            id.within(0, i64::from(i32::MAX), out);
        }
    }
    let denies = part.get("allowPrivilegeEscalation").value == false;
    if denies && part.get("privileged").value == true {
        let why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
        part.invalid(why, out);
    }
    let added = part.get("capabilities").get("add").texts();
    if denies && added.iter().any(|capability| capability == "CAP_SYS_ADMIN") {
        let why = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` \
                   CAP_SYS_ADMIN";
        part.invalid(why, out);
    }
}

fn probe(part: &Part<'_>, out: &mut Vec<Cause>) {
    handler(part, out);
    for name in [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ] {
        part.get(name).nonnegative(out);
    }
    let grace = part.get("terminationGracePeriodSeconds");
    if grace.int().is_some_and(|seconds| seconds <= 0) {
        grace.invalid("must be greater than 0", out);
    }
}

/// What a probe or hook does: one thing.
fn handler(part: &Part<'_>, out: &mut Vec<Cause>) {
    let kinds =
        ["exec", "httpGet", "tcpSocket", "grpc", "sleep"].map(|name| (name, part.get(name)));
    let mut set = kinds.into_iter().filter(|(_, action)| action.is_set());
    match set.next() {
        None => part.required("must specify a handler type", out),
        Some(("exec", action)) if action.get("command").is_empty() => {
            action.get("command").required("", out);
        }
        Some(("httpGet", action)) => http_get(&action, out),
        Some(("tcpSocket" | "grpc", action)) => words::port(&action.get("port"), out),
        Some(_) => {}
    }
    set.for_each(|(_, action)| action.forbidden("may not specify more than 1 handler type", out));
}

fn http_get(action: &Part<'_>, out: &mut Vec<Cause>) {
    action.get("path").must_be(out);
    words::port(&action.get("port"), out);
    if !matches!(action.get("scheme").text(), "HTTP" | "HTTPS") {
        action.get("scheme").not_supported(&["HTTP", "HTTPS"], out);
    }
    for header in action.get("httpHeaders").items() {
        let name = header.get("name");
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if name.is_empty() || !name.text().chars().all(fits) {
            action.get("httpHeaders").invalid_as(
                name.value,
                "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. \
                 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')",
                out,
            );
        }
    }
}
