//! Certificate requests: nodes get what is theirs without asking a person, approved requests are
//! signed.
//!
//! Approved are client certificates for kubelets (asked for by a bootstrap token or by the node
//! itself) and serving certificates of nodes (asked for by the node itself; upstream leaves these
//! to a person). Who may ask is decided by group here; RBAC admits the request itself.

use alloc::string::String;
use alloc::vec::Vec;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use knarr_api::Resource;
use knarr_reconcile::{Controller, Ctx, Key, Plan, Row, Usage, View, Wake, Watch, Write};
use serde_json::{Value, json};

use crate::finder::{int, items, stamp, text};
use crate::pkcs10::Request;

const CSRS: Resource = Resource::new("certificates.k8s.io/v1", "certificatesigningrequests");
const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
/// A year, unless less is asked for; never less than ten minutes.
const LONGEST: i64 = 365 * 24 * 3600;
const SHORTEST: i64 = 600;

/// The row.
pub fn controller() -> Controller {
    Controller {
        name: "certificate-controller",
        user: "system:serviceaccount:kube-system:certificate-controller",
        watches: Vec::from([Watch { resource: CSRS, wake: Wake::Itself }]),
        reconcile,
    }
}

fn reconcile(view: &View, key: &Key, ctx: &Ctx<'_>) -> Plan {
    let Some(row) = view.get(CSRS, &key.object) else { return Plan::none() };
    let tree = row.tree();
    let has = |kind: &str| {
        items(&tree, "/status/conditions").any(|c| c["type"] == kind && c["status"] != "False")
    };
    let issued = !text(&tree, "/status/certificate").is_empty();
    if issued || has("Denied") || has("Failed") || row.facts.deleting() {
        return Plan::none();
    }
    let Some(pem) = pem(&tree) else { return Plan::none() };
    let request = Request::from_pem(&pem);
    if has("Approved") {
        return sign(row, &tree, pem, request, ctx);
    }
    match request.and_then(|request| approval(&tree, &request)) {
        Some(message) => approve(row, tree, message, ctx),
        None => Plan::none(),
    }
}

fn pem(tree: &Value) -> Option<String> {
    String::from_utf8(STANDARD.decode(text(tree, "/spec/request")).ok()?).ok()
}

/// Why a request may be approved at once, if it may.
fn approval(tree: &Value, request: &Request) -> Option<&'static str> {
    let user = text(tree, "/spec/username");
    let itself = user == request.common_name;
    let in_group = |group: &str| items(tree, "/spec/groups").any(|g| g == group);
    let signer = text(tree, "/spec/signerName");
    fault(tree, signer, request).map_or(Some(()), |_| None)?;
    match signer {
        KUBELET_CLIENT if itself && in_group("system:nodes") => {
            Some("Auto approving self kubelet client certificate after SubjectAccessReview.")
        }
        KUBELET_CLIENT if in_group("system:bootstrappers") => {
            Some("Auto approving kubelet client certificate after SubjectAccessReview.")
        }
        KUBELET_SERVING if itself && in_group("system:nodes") => {
            Some("Auto approving self kubelet serving certificate.")
        }
        _ => None,
    }
}

/// What is wrong with a request for its signer, in upstream's words.
fn fault(tree: &Value, signer: &str, request: &Request) -> Option<String> {
    let auth = match signer {
        KUBELET_SERVING => "server auth",
        _ => "client auth",
    };
    if signer == CLIENT {
        let known = ["digital signature", "key encipherment", "client auth"];
        let all = items(tree, "/spec/usages").all(|u| known.iter().any(|known| u == known));
        let wanted = items(tree, "/spec/usages").any(|usage| usage == auth);
        return (!all || !wanted).then(|| usages_fault(auth));
    }
    if request.organizations != ["system:nodes"] {
        return Some("subject organization is not system:nodes".into());
    }
    let names = match signer {
        KUBELET_SERVING if request.dns_names + request.addresses == 0 => {
            Some("DNS or IP subjectAltName is required")
        }
        KUBELET_CLIENT if request.dns_names > 0 => Some("DNS subjectAltNames are not allowed"),
        KUBELET_CLIENT if request.addresses > 0 => Some("IP subjectAltNames are not allowed"),
        _ if request.other_names > 0 => Some("URI subjectAltNames are not allowed"),
        _ => None,
    };
    if let Some(why) = names {
        return Some(why.into());
    }
    if !request.common_name.starts_with("system:node:") {
        return Some("subject common name does not begin with system:node:".into());
    }
    let mut usages: Vec<&str> = items(tree, "/spec/usages").filter_map(Value::as_str).collect();
    usages.sort_unstable();
    usages.dedup();
    let mut with_rsa = [auth, "digital signature", "key encipherment"];
    let mut without = [auth, "digital signature"];
    with_rsa.sort_unstable();
    without.sort_unstable();
    (usages != with_rsa && usages != without).then(|| usages_fault(auth))
}

fn usages_fault(auth: &str) -> String {
    let mut all = ["digital signature", "key encipherment", auth];
    all.sort_unstable();
    alloc::format!("usages did not match [{}]", all.join(" "))
}

fn approve(row: &Row, mut tree: Value, message: &str, ctx: &Ctx<'_>) -> Plan {
    let now = stamp(ctx);
    let condition = json!({"type": "Approved", "status": "True", "reason": "AutoApproved",
        "message": message, "lastUpdateTime": now, "lastTransitionTime": now});
    let mut conditions: Vec<Value> = items(&tree, "/status/conditions").cloned().collect();
    conditions.push(condition);
    tree["status"]["conditions"] = conditions.into();
    Plan::writes([Write::put_exact(CSRS, row, "approval", tree)].into())
}

/// Signs what was approved, by whomever; what no node should have fails for good.
fn sign(
    row: &Row,
    tree: &Value,
    request_pem: String,
    request: Option<Request>,
    ctx: &Ctx<'_>,
) -> Plan {
    let signer = text(tree, "/spec/signerName");
    let usage = match signer {
        KUBELET_SERVING => Usage::Server,
        CLIENT | KUBELET_CLIENT => Usage::Client,
        _ => return Plan::none(),
    };
    let fault = match request {
        Some(request) => fault(tree, signer, &request),
        None => Some("the request cannot be read".into()),
    };
    if let Some(message) = fault {
        let now = stamp(ctx);
        let mut conditions: Vec<Value> = items(tree, "/status/conditions").cloned().collect();
        conditions.push(json!({"type": "Failed", "status": "True", "message": message,
            "reason": "SignerValidationFailure", "lastUpdateTime": now,
            "lastTransitionTime": now}));
        let write = Write::status(CSRS, row, &json!({"conditions": conditions}));
        return Plan::writes(write.into_iter().collect());
    }
    let asked = int(tree, "/spec/expirationSeconds").unwrap_or(LONGEST);
    let seconds = asked.clamp(SHORTEST, LONGEST).unsigned_abs();
    Plan::writes([Write::Sign { object: row.key.clone(), request_pem, usage, seconds }].into())
}
