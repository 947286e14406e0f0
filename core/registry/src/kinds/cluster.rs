//! Kinds that a whole cluster shares: Nodes, certificate requests, definitions of custom kinds.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::vec::Vec;

use knarr_api::{Cause, names};
use serde_json::Value;

use super::part::Part;
use super::pod_spec::EFFECTS;

pub(super) fn node(tree: &Value, live: Option<&Value>, out: &mut Vec<Cause>) {
    super::networking::pod_ranges(&Part::root(tree).get("spec"), live, out);
    let mut taken = BTreeSet::new();
    for taint in Part::root(tree).get("spec").get("taints").items() {
        let [key, value, effect] = ["key", "value", "effect"].map(|name| taint.get(name));
        key.follows(names::qualified_name, out);
        value.if_set_follows(names::label_value, out);
        effect.one_of(&EFFECTS, out);
        if !taken.insert((effect.text(), key.text())) {
            taint.duplicate(taint.value, out);
            if let Some(cause) = out.last_mut() {
                cause.message += ": taints must be unique by key and effect pair";
            }
        }
    }
}

pub(super) fn certificate_request(tree: &Value, out: &mut Vec<Cause>) {
    use base64::Engine;
    let spec = Part::root(tree).get("spec");
    let [request, usages, signer, seconds] =
        ["request", "usages", "signerName", "expirationSeconds"].map(|name| spec.get(name));
    let pem = base64::engine::general_purpose::STANDARD.decode(request.text()).unwrap_or_default();
    let begin: &[u8] = b"-----BEGIN CERTIFICATE REQUEST-----";
    if !pem.windows(begin.len()).any(|part| part == begin) {
        request.invalid("PEM block type must be CERTIFICATE REQUEST", out);
    }
    usages.must_be(out);
    let mut taken = BTreeSet::new();
    for usage in usages.items().filter(|usage| !taken.insert(usage.text())) {
        usage.duplicate(usage.value, out);
    }
    if signer.must_be(out) && signer.text().split('/').count() != 2 {
        let why = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        signer.invalid(why, out);
    }
    if seconds.int().is_some_and(|seconds| seconds < 600) {
        seconds.invalid("may not specify a duration less than 600 seconds (10 minutes)", out);
    }
}

pub(super) fn definition(tree: &Value, live: Option<&Value>, out: &mut Vec<Cause>) {
    let root = Part::root(tree);
    let (name, spec) = (root.get("metadata").get("name"), root.get("spec"));
    let (group, plural) = (spec.get("group"), spec.get("names").get("plural"));
    if name.text() != format!("{}.{}", plural.text(), group.text()) {
        name.invalid("must be spec.names.plural+\".\"+spec.group", out);
    }
    group.must_follow(names::dns1123_subdomain, out);
    if !group.is_empty() && !group.text().contains('.') {
        group.invalid("should be a domain with at least one dot", out);
    }
    spec.get("scope").one_of(&["Cluster", "Namespaced"], out);
    let versions = spec.get("versions");
    for version in versions.items() {
        version.get("name").follows(names::dns1035_label, out);
        let schema = version.get("schema").get("openAPIV3Schema");
        if !schema.is_set() {
            schema.required("schemas are required", out);
        }
    }
    if versions.items().filter(|version| version.get("storage").value == true).count() != 1 {
        versions.invalid("must have exactly one version marked as storage version", out);
    }
    plural.must_follow(names::dns1035_label, out);
    spec.get("names").get("kind").must_be(out);
    if let Some(live) = live {
        group.immutable(&live["spec"]["group"], out);
        plural.immutable(&live["spec"]["names"]["plural"], out);
        spec.get("scope").immutable(&live["spec"]["scope"], out);
    }
}
