//! Which IP families a Service has: from its policy, from the addresses it names, and from what
//! the cluster offers (KEP-563).

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use knarr_api::Cause;
use knarr_api::ip::{Family, parse};
use serde_json::{Value, json};

use super::intent::{is_headless, needs_cluster_ip};
use crate::object::{set, strings, text};

const SINGLE: &str = "SingleStack";
const PREFER: &str = "PreferDualStack";
const REQUIRE: &str = "RequireDualStack";

fn policy(service: &Value) -> &str {
    text(service, "/spec/ipFamilyPolicy")
}

fn addresses(service: &Value) -> Vec<String> {
    strings(service, "/spec/clusterIPs")
}

fn families(service: &Value) -> Vec<String> {
    strings(service, "/spec/ipFamilies")
}

fn selects(service: &Value) -> bool {
    service["spec"]["selector"].as_object().is_some_and(|selector| !selector.is_empty())
}

/// A Service that takes what it can get keeps what it has, whatever the cluster has become.
pub(super) fn is_settled(service: &Value, live: Option<&Value>) -> bool {
    let Some(live) = live else { return false };
    needs_cluster_ip(service)
        && text(live, "/spec/type") == text(service, "/spec/type")
        && policy(service) == PREFER
        && matches!(policy(live), PREFER | "")
        && addresses(live) == addresses(service)
        && families(live) == families(service)
}

/// Fills in policy and families; `offered` are the cluster's families, its own first.
pub(super) fn settle(
    service: &mut Value,
    live: Option<&Value>,
    offered: &[Family],
) -> Result<(), Vec<Cause>> {
    if !needs_cluster_ip(service) || is_settled(service, live) {
        return Ok(());
    }
    infer_policy(service, live);
    let wrong = super::addresses_wrong(service);
    if !wrong.is_empty() {
        return Err(wrong);
    }
    let mut causes = Vec::new();
    if let Some(live) = live {
        shrink(service, live, &mut causes);
    }
    too_many_for_one(service, &mut causes);
    infer_families(service, offered, &mut causes);
    if !causes.is_empty() {
        return Err(causes);
    }
    complete(service, offered)
}

fn infer_policy(service: &mut Value, live: Option<&Value>) {
    if !policy(service).is_empty() {
        return;
    }
    let before = live.map(policy).unwrap_or_default();
    let inferred = match before {
        "" if text(service, "/spec/clusterIP") == "None" && !selects(service) => REQUIRE,
        "" => SINGLE,
        before => before,
    };
    set(service, &["spec", "ipFamilyPolicy"], inferred.into());
}

/// Who asks for a single stack lets go of the second address; nobody else may drop it.
fn shrink(service: &mut Value, live: &Value, causes: &mut Vec<Cause>) {
    for (field, what) in [("clusterIPs", "cluster IP"), ("ipFamilies", "IP family")] {
        let path = format!("/spec/{field}");
        let (old, new) = (strings(live, &path), strings(service, &path));
        if policy(service) == SINGLE {
            if old == new && new.len() > 1 {
                set(service, &["spec", field], json!([new[0]]));
            }
        } else if !new.is_empty() && new.len() < old.len() {
            let why = format!("must be 'SingleStack' to release the secondary {what}");
            causes.push(wrong_policy(service, &why));
        }
    }
}

fn wrong_policy(service: &Value, why: &str) -> Cause {
    Cause::invalid("spec.ipFamilyPolicy", &policy(service).into(), why)
}

fn too_many_for_one(service: &Value, causes: &mut Vec<Cause>) {
    if policy(service) != SINGLE {
        return;
    }
    let lists = [
        (addresses(service), "cluster IPs are specified"),
        (families(service), "IP families are specified"),
    ];
    for (_, what) in lists.iter().filter(|(list, _)| list.len() == 2) {
        let why = format!("must be 'RequireDualStack' or 'PreferDualStack' when multiple {what}");
        causes.push(wrong_policy(service, &why));
    }
}

/// An address that was asked for brings its family along.
fn infer_families(service: &mut Value, offered: &[Family], causes: &mut Vec<Cause>) {
    let mut known = families(service);
    let asked = addresses(service);
    for (at, address) in asked.iter().enumerate().skip(known.len()) {
        let Ok(address) = parse(address) else { break };
        let family = Family::of(address);
        if offered.contains(&family) {
            known.push(family.word().to_owned());
        } else {
            let why = format!("{} is not configured on this cluster", family.word());
            causes.push(Cause::invalid(format!("spec.clusterIPs[{at}]"), &json!(asked), &why));
        }
    }
    if !known.is_empty() {
        set(service, &["spec", "ipFamilies"], json!(known));
    }
}

/// Adds the families that nobody named.
fn complete(service: &mut Value, offered: &[Family]) -> Result<(), Vec<Cause>> {
    let own = offered.first().copied().unwrap_or(Family::V4);
    let mut known = families(service);
    // Nobody knows what the endpoints of a headless Service without selector are.
    let anything = is_headless(service) && !selects(service);
    if !anything {
        not_offered(service, offered, &known)?;
    }
    if known.is_empty() {
        known.push(own.word().to_owned());
    }
    if known.len() == 1
        && policy(service) != SINGLE
        && (anything || offered.len() == 2)
        && let Some(family) = Family::parse(&known[0])
    {
        known.push(family.other().word().to_owned());
    }
    set(service, &["spec", "ipFamilies"], json!(known));
    Ok(())
}

fn not_offered(service: &Value, offered: &[Family], known: &[String]) -> Result<(), Vec<Cause>> {
    let mut causes = Vec::new();
    if policy(service) == REQUIRE && offered.len() < 2 {
        causes
            .push(wrong_policy(service, "this cluster is not configured for dual-stack services"));
    }
    for (at, family) in known.iter().enumerate() {
        if !Family::parse(family).is_some_and(|family| offered.contains(&family)) {
            let field = format!("spec.ipFamilies[{at}]");
            let why = "not configured on this cluster";
            causes.push(Cause::invalid(field, &family.as_str().into(), why));
        }
    }
    if causes.is_empty() { Ok(()) } else { Err(causes) }
}
