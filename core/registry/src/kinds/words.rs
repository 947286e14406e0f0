//! Rules for single values that names alone do not cover: ports, variables, keys, paths.

use alloc::format;
use alloc::vec::Vec;

use knarr_api::names::Verdict;
use knarr_api::{Cause, names};
use serde_json::Value;

use super::part::Part;

/// A key of a ConfigMap or Secret.
pub(super) fn config_key(key: &str) -> Verdict {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    match key {
        key if key.len() > 253 => Err("must be no more than 253 characters".into()),
        key if key.is_empty() || !key.chars().all(fits) => Err("a valid config key must consist \
            of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or \
            'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
            .into()),
        "." => Err("must not be '.'".into()),
        ".." => Err("must not be '..'".into()),
        key if key.starts_with("..") => Err("must not start with '..'".into()),
        _ => Ok(()),
    }
}

/// The name of an environment variable.
pub(super) fn variable(name: &str) -> Verdict {
    let fits = |c: char| matches!(c, ' '..='~') && c != '=';
    match name.chars().all(fits) {
        true => Ok(()),
        false => Err("a valid environment variable name must consist only of printable ASCII \
            characters other than '='"
            .into()),
    }
}

/// A path inside a volume.
pub(super) fn local_path(part: &Part<'_>, out: &mut Vec<Cause>) {
    if part.text().starts_with('/') {
        part.invalid("must be a relative path", out);
    }
    no_backsteps(part, out);
}

/// A path that does not go up.
pub(super) fn no_backsteps(part: &Part<'_>, out: &mut Vec<Cause>) {
    if part.text().split('/').any(|step| step == "..") {
        part.invalid("must not contain '..'", out);
    }
}

/// The bits of a file's mode.
pub(super) fn file_mode(part: &Part<'_>, out: &mut Vec<Cause>) {
    if part.int().is_some_and(|mode| !(0..=0o777).contains(&mode)) {
        part.invalid("must be a number between 0 and 0777 (octal), both inclusive", out);
    }
}

/// A port by number or name; true if it is right.
pub(super) fn port(part: &Part<'_>, out: &mut Vec<Cause>) {
    match part.value {
        Value::String(_) => drop(port_name(part, out)),
        _ => part.within(1, 65_535, out),
    }
}

/// The name of a port (RFC 6335); true if it is right.
pub(super) fn port_name(part: &Part<'_>, out: &mut Vec<Cause>) -> bool {
    let name = part.text();
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let before = out.len();
    for (wrong, why) in [
        (name.len() > 15, "must be no more than 15 characters"),
        (
            name.is_empty() || !name.chars().all(fits),
            "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
        ),
        (
            !name.contains(|c: char| c.is_ascii_lowercase()),
            "must contain at least one letter (a-z)",
        ),
        (name.contains("--"), "must not contain consecutive hyphens"),
        (name.starts_with('-') || name.ends_with('-'), "must not begin or end with a hyphen"),
    ] {
        if wrong {
            part.invalid(why, out);
        }
    }
    out.len() == before
}

/// A count or a share (`25%`), neither below zero.
pub(super) fn count_or_percent(part: &Part<'_>, out: &mut Vec<Cause>) {
    match part.value {
        Value::String(text) if percent(text).is_none() => part.invalid(
            "a valid percent string must be a numeric string followed by an ending '%' (e.g. \
             '1%',  or '93%', regex used for validation is '[0-9]+%')",
            out,
        ),
        _ => part.nonnegative(out),
    }
}

/// `25` of `25%`.
pub(super) fn percent(text: &str) -> Option<i64> {
    let digits = text.strip_suffix('%')?;
    let all = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    all.then(|| digits.parse().unwrap_or(i64::MAX))
}

const STANDARD: &str = " cpu memory ephemeral-storage requests.cpu requests.memory \
requests.ephemeral-storage limits.cpu limits.memory limits.ephemeral-storage pods resourcequotas \
services replicationcontrollers secrets configmaps persistentvolumeclaims storage \
requests.storage services.nodeports services.loadbalancers ";

/// The name of a resource that a container may ask for.
pub(super) fn resource_name(at: &Part<'_>, name: &str, out: &mut Vec<Cause>) {
    let mut fault = |why: &str| at.invalid_as(&name.into(), why, out);
    let plain = !name.contains('/');
    let huge = name.starts_with("hugepages-");
    match names::qualified_name(name) {
        Err(why) => fault(&why),
        Ok(()) if plain && !huge && !STANDARD.contains(&format!(" {name} ")) => {
            fault("must be a standard resource type or fully qualified");
        }
        Ok(()) => {}
    }
    if plain && !huge && !matches!(name, "cpu" | "memory" | "ephemeral-storage") {
        fault("must be a standard resource for containers");
    } else if !is_native(name) && !is_extended(name) {
        fault("doesn't follow extended resource name standard");
    }
}

/// Whether Kubernetes itself counts it.
pub(super) fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// Whether a node's device plugins count it; such are whole numbers and never overcommitted.
pub(super) fn is_extended(name: &str) -> bool {
    let quota = format!("requests.{name}");
    !is_native(name) && !name.starts_with("requests.") && names::qualified_name(&quota).is_ok()
}
