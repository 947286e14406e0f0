//! What a Pod asks of a node, read once when it comes in: no pass over all Pods parses them.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use knarr_api::quantity::Quantity;
use serde::Deserialize;

/// Amounts by resource name: thousandths of a CPU, whole units of everything else.
pub type Amounts = BTreeMap<String, i64>;

/// What counts for a container that asks for nothing, when nodes are compared: 100m, 200 MiB.
const DEFAULTS: [(&str, i64); 2] = [("cpu", 100), ("memory", 200 << 20)];

/// A port on the node itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostPort {
    /// The address; `0.0.0.0` is every one.
    pub ip: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// The port.
    pub port: i64,
}

/// What a Pod asks of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// What it asks for.
    pub requests: Amounts,
    /// The same with defaults for containers that do not say.
    pub assumed: Amounts,
    /// Ports of the node that it takes.
    pub ports: Vec<HostPort>,
    /// Its priority.
    pub priority: i64,
    /// Whether it neither runs nor will run: it asks for nothing any more.
    pub finished: bool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Pod {
    spec: Spec,
    status: Status,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    phase: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    containers: Vec<Container>,
    init_containers: Vec<Container>,
    overhead: Option<BTreeMap<String, String>>,
    resources: Option<Resources>,
    priority: i64,
    host_network: bool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    resources: Resources,
    ports: Vec<Port>,
    restart_policy: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Resources {
    requests: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    #[serde(default)]
    host_port: i64,
    container_port: i64,
    #[serde(default, rename = "hostIP")]
    host_ip: String,
    #[serde(default)]
    protocol: String,
}

impl Load {
    /// Reads a Pod's JSON; `None` when it is no Pod.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let Pod { spec, status } = serde_json::from_slice(bytes).ok()?;
        let of = |container: &Container| amounts(container.resources.requests.as_ref());
        let assumed = |container: &Container| {
            let mut amounts = of(container);
            for (name, amount) in DEFAULTS {
                amounts.entry(name.into()).or_insert(amount);
            }
            amounts
        };
        Some(Self {
            requests: total(&spec, of),
            assumed: total(&spec, assumed),
            ports: ports(&spec),
            priority: spec.priority,
            finished: matches!(&*status.phase, "Succeeded" | "Failed"),
        })
    }
}

fn amounts(requests: Option<&BTreeMap<String, String>>) -> Amounts {
    let parsed = requests.into_iter().flatten().filter_map(|(name, text)| {
        let quantity: Quantity = text.parse().ok()?;
        let amount = if name == "cpu" { quantity.milli_value() } else { quantity.value() };
        Some((name.clone(), amount))
    });
    parsed.collect()
}

/// Adds amounts.
pub fn add(to: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let sum = to.entry(name.clone()).or_default();
        *sum = sum.saturating_add(*amount);
    }
}

fn at_least(this: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        let most = this.entry(name.clone()).or_default();
        *most = (*most).max(*amount);
    }
}

/// Containers run together; init containers run before them, one after the other, each beside the
/// sidecars (init containers that go on) that came before it.
fn total(spec: &Spec, of: impl Fn(&Container) -> Amounts) -> Amounts {
    let mut sum = Amounts::new();
    spec.containers.iter().for_each(|container| add(&mut sum, &of(container)));
    let (mut sidecars, mut peak) = (Amounts::new(), Amounts::new());
    for container in &spec.init_containers {
        let mut now = sidecars.clone();
        add(&mut now, &of(container));
        at_least(&mut peak, &now);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars = now;
        }
    }
    add(&mut sum, &sidecars);
    at_least(&mut sum, &peak);
    // What is asked for the Pod as a whole overrides what its containers add up to.
    let whole = spec.resources.as_ref();
    sum.extend(amounts(whole.and_then(|resources| resources.requests.as_ref())));
    add(&mut sum, &amounts(spec.overhead.as_ref()));
    sum
}

fn ports(spec: &Spec) -> Vec<HostPort> {
    let sidecar = |c: &&Container| c.restart_policy.as_deref() == Some("Always");
    let containers = spec.containers.iter().chain(spec.init_containers.iter().filter(sidecar));
    let taken = containers.flat_map(|container| &container.ports).filter_map(|port| {
        let number = match port.host_port {
            0 if spec.host_network => port.container_port,
            number => number,
        };
        let or = |word: &str, other: &str| if word.is_empty() { other } else { word }.into();
        let (ip, protocol) = (or(&port.host_ip, "0.0.0.0"), or(&port.protocol, "TCP"));
        (number > 0).then_some(HostPort { ip, protocol, port: number })
    });
    taken.collect()
}
