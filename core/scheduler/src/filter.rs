//! Where a Pod may run: upstream's filter plugins, in their order, with their words.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use knarr_api::LabelSelector;
use knarr_reconcile::{HostPort, Load};
use serde_json::{Value, json};

use crate::node::{NodeState, Taint};

/// A reason why a node is out of the question.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Misfit {
    pub(crate) reason: String,
    /// Whether it stays so even if other Pods go.
    pub(crate) unresolvable: bool,
}

/// One alternative of a node affinity: all of it must hold.
struct Term {
    labels: LabelSelector,
    fields: LabelSelector,
}

impl Term {
    /// `None` when nothing satisfies it: upstream says so of an empty term.
    fn read(term: &Value) -> Option<Self> {
        let part = |field: &str| {
            let list = term[field].as_array().cloned().unwrap_or_default();
            LabelSelector::from_object(&json!({"matchExpressions": list}))
        };
        let (labels, fields) = (part("matchExpressions")?, part("matchFields")?);
        (!labels.is_empty() || !fields.is_empty()).then_some(Self { labels, fields })
    }

    fn holds(&self, node: &NodeState<'_>) -> bool {
        self.labels.matches_map(node.labels())
            && self.fields.matches_with(|key| (key == "metadata.name").then_some(node.name()))
    }
}

/// A taint that a Pod puts up with.
struct Toleration {
    key: String,
    value: String,
    effect: String,
    exists: bool,
}

impl Toleration {
    fn read(tree: &Value) -> Self {
        let word = |key: &str| tree[key].as_str().unwrap_or_default().into();
        let exists = tree["operator"] == "Exists";
        Self { key: word("key"), value: word("value"), effect: word("effect"), exists }
    }

    fn tolerates(&self, taint: &Taint) -> bool {
        (self.effect.is_empty() || self.effect == taint.effect)
            && (self.key.is_empty() || self.key == taint.key)
            && (self.exists || (!self.key.is_empty() && self.value == taint.value))
    }
}

/// What a Pod says about its node.
pub(crate) struct Wish {
    node: String,
    selector: LabelSelector,
    /// Alternatives, of which one must hold; `None`: anything goes.
    required: Option<Vec<Term>>,
    preferred: Vec<(i64, Term)>,
    tolerations: Vec<Toleration>,
}

impl Wish {
    pub(crate) fn read(pod: &Value) -> Self {
        let spec = &pod["spec"];
        let affinity = &spec["affinity"]["nodeAffinity"];
        let required = &affinity["requiredDuringSchedulingIgnoredDuringExecution"];
        let preferred = affinity["preferredDuringSchedulingIgnoredDuringExecution"].as_array();
        let terms = required["nodeSelectorTerms"].as_array();
        let tolerations = spec["tolerations"].as_array();
        Self {
            node: spec["nodeName"].as_str().unwrap_or_default().into(),
            selector: LabelSelector::from_map(&spec["nodeSelector"]),
            required: terms.map(|terms| terms.iter().filter_map(Term::read).collect()),
            preferred: preferred
                .into_iter()
                .flatten()
                .filter_map(|p| Some((p["weight"].as_i64()?, Term::read(&p["preference"])?)))
                .collect(),
            tolerations: tolerations.into_iter().flatten().map(Toleration::read).collect(),
        }
    }

    pub(crate) fn tolerates(&self, taint: &Taint) -> bool {
        self.tolerations.iter().any(|toleration| toleration.tolerates(taint))
    }

    /// How much it would like this node.
    pub(crate) fn preference(&self, node: &NodeState<'_>) -> i64 {
        let held = self.preferred.iter().filter(|(_, term)| term.holds(node));
        held.map(|(weight, _)| weight).sum()
    }

    fn selects(&self, node: &NodeState<'_>) -> bool {
        let required = self.required.as_ref();
        self.selector.matches_map(node.labels())
            && required.is_none_or(|terms| terms.iter().any(|term| term.holds(node)))
    }

    fn accepts_cordon(&self) -> bool {
        let key = "node.kubernetes.io/unschedulable".into();
        self.tolerates(&Taint { key, value: String::new(), effect: "NoSchedule".into() })
    }
}

/// Why a Pod may not run on a node: what the first plugin that objects says; nothing if it may.
pub(crate) fn misfits(wish: &Wish, load: &Load, node: &NodeState<'_>) -> Vec<Misfit> {
    let lasting = |reason: &str| Vec::from([Misfit { reason: reason.into(), unresolvable: true }]);
    let kept_off = |taint: &&Taint| {
        matches!(&*taint.effect, "NoSchedule" | "NoExecute") && !wish.tolerates(taint)
    };
    if node.unschedulable && !wish.accepts_cordon() {
        lasting("node(s) were unschedulable")
    } else if !wish.node.is_empty() && wish.node != node.name() {
        lasting("node(s) didn't match the requested node name")
    } else if node.taints.iter().any(|taint| kept_off(&taint)) {
        lasting("node(s) had untolerated taint(s)")
    } else if !wish.selects(node) {
        lasting("node(s) didn't match Pod's node affinity/selector")
    } else if load.ports.iter().any(|port| node.ports.iter().any(|taken| conflict(port, taken))) {
        let reason = "node(s) didn't have free ports for the requested pod ports".into();
        Vec::from([Misfit { reason, unresolvable: false }])
    } else {
        shortages(load, node)
    }
}

fn conflict(a: &HostPort, b: &HostPort) -> bool {
    let any = |ip: &str| ip == "0.0.0.0";
    a.port == b.port && a.protocol == b.protocol && (a.ip == b.ip || any(&a.ip) || any(&b.ip))
}

/// What the node has too little of.
fn shortages(load: &Load, node: &NodeState<'_>) -> Vec<Misfit> {
    let mut out = Vec::new();
    if node.pods + 1 > node.has("pods") {
        out.push(Misfit { reason: "Too many pods".into(), unresolvable: false });
    }
    // The three that every node has come first, as upstream.
    const FIRST: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];
    let rest = load.requests.keys().map(|name| &**name).filter(|name| !FIRST.contains(name));
    for name in FIRST.into_iter().chain(rest) {
        let wanted = load.requests.get(name).copied().unwrap_or(0);
        let taken = node.requested.get(name).copied().unwrap_or(0);
        if wanted > 0 && wanted > node.has(name) - taken {
            let unresolvable = wanted > node.has(name);
            out.push(Misfit { reason: format!("Insufficient {name}"), unresolvable });
        }
    }
    out
}
