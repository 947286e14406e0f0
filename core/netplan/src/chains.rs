//! The chains of the table: the frame that every node has, and the few that Services share.
//!
//! No Service has a chain of its own. Where a packet goes is an element of a map; the chain it is
//! sent to only knows *how many* endpoints there are, draws a number and asks the next map. So a
//! change of a Service is a change of elements, and ten thousand Services have a handful of chains.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::fmt::{self, Display};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::model::Policy;
use crate::nft::{Chain, Hook, Load, Purpose, Rule, Sense, Side, Statement, Value, Verdict};
use crate::rules::Config;
use crate::sets::{Role, Set};
use knarr_api::ip::{Cidr, Family};

/// The packet's mark that asks for masquerading; upstream's bit.
const MASQUERADE: u32 = 0x4000;
/// Where numbers of endpoints for policy Local begin.
pub(crate) const LOCAL_BASE: u32 = 1 << 16;
const REJECT: &str = "refuse";

/// What a packet was sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Frontend {
    /// An address of the Service.
    Address,
    /// An address of the node.
    Node,
}

/// A chain that Services share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Shared {
    /// Chooses an endpoint.
    Pick(Pick),
    /// Handles packets from outside: policy Cluster.
    Outside(Pick),
    /// Handles packets from outside: policy Local, with the endpoints of the cluster for who is in
    /// it, and this many of the node's.
    OutsideLocal(Pick, u32),
}

/// A choice among endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Pick {
    pub family: Family,
    pub frontend: Frontend,
    /// Which endpoints.
    pub policy: Local,
    /// How many.
    pub count: u32,
    /// For how many seconds clients keep theirs.
    pub affinity: Option<u32>,
}

/// As [`Policy`], in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Local {
    No,
    Yes,
}

impl From<Policy> for Local {
    fn from(policy: Policy) -> Self {
        if policy == Policy::Local { Self::Yes } else { Self::No }
    }
}

fn digit(family: Family) -> u8 {
    if family == Family::V4 { 4 } else { 6 }
}

impl Display for Pick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let frontend = if self.frontend == Frontend::Node { "-node" } else { "" };
        let local = if self.policy == Local::Yes { "-local" } else { "" };
        write!(f, "{}{frontend}{local}-{}", digit(self.family), self.count)?;
        self.affinity.map_or(Ok(()), |seconds| write!(f, "-{seconds}s"))
    }
}

impl Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pick(pick) => write!(f, "pick-{pick}"),
            Self::Outside(pick) => write!(f, "outside-{pick}"),
            Self::OutsideLocal(pick, here) => write!(f, "outside-{pick}-local-{here}"),
        }
    }
}

impl Pick {
    fn frontend(&self) -> Load {
        match self.frontend {
            Frontend::Address => Load::Address(self.family, Side::Destination),
            Frontend::Node => Load::AnyAddress(self.family),
        }
    }

    /// Frontend, protocol, port and a number.
    fn numbered(&self, number: Load) -> Vec<Load> {
        vec![self.frontend(), Load::Protocol, Load::Port, number]
    }

    fn rules(&self) -> Vec<Rule> {
        let base = if self.policy == Local::Yes { LOCAL_BASE } else { 0 };
        let key = self.numbered(Load::Random { count: self.count, base });
        match self.affinity {
            Some(seconds) => self.sticky(key, seconds),
            None => {
                let endpoints = Set { role: Role::Endpoints, family: self.family };
                vec![vec![Statement::Translate(self.family, key, endpoints)]]
            }
        }
    }

    /// A client has the name of its endpoint, which leads on as long as the endpoint may be kept.
    /// The name goes by way of the packet and not from one lookup to the next, since `nft` cannot
    /// read a key that was looked up, and lists no table that has one.
    fn sticky(&self, choice: Vec<Load>, seconds: u32) -> Vec<Rule> {
        let set = |role| Set { role, family: self.family };
        let client = vec![
            Load::Address(self.family, Side::Source),
            self.frontend(),
            Load::Protocol,
            Load::Port,
        ];
        let clients = set(Role::Clients);
        let kept = set(if self.policy == Local::Yes { Role::KeptLocal } else { Role::Kept });
        let go = Statement::Translate(self.family, self.numbered(Load::Noted), kept);
        let remember = Statement::Remember(client.clone(), clients, seconds);
        vec![
            vec![Statement::Note(client.clone(), clients), remember.clone(), go.clone()],
            vec![Statement::Forget(client, clients)],
            vec![Statement::Note(choice, set(Role::Names)), remember],
            // Where no more clients can be remembered, they are served all the same.
            vec![go],
        ]
    }
}

fn goto(shared: Shared) -> Statement {
    Statement::Go(Verdict::Goto(shared.to_string()))
}

impl Shared {
    /// The chain to choose with, which this one sends to.
    pub(crate) fn sends_to(self) -> Vec<Self> {
        match self {
            Self::Pick(_) => Vec::new(),
            Self::Outside(pick) => vec![Self::Pick(pick)],
            Self::OutsideLocal(pick, 0) => vec![Self::Pick(pick)],
            Self::OutsideLocal(pick, here) => {
                let local = Pick { policy: Local::Yes, count: here, ..pick };
                vec![Self::Pick(pick), Self::Pick(local)]
            }
        }
    }

    /// The chain itself.
    pub(crate) fn chain(self, config: &Config) -> Chain {
        let (family, rules) = match self {
            Self::Pick(pick) => (pick.family, pick.rules()),
            Self::Outside(pick) => {
                let rules = [Statement::Mark(MASQUERADE), goto(Self::Pick(pick))];
                (pick.family, vec![rules.into()])
            }
            Self::OutsideLocal(pick, here) => (pick.family, outside_local(pick, here, config)),
        };
        chain(self.to_string(), family, rules)
    }

    /// The verdict that sends to it.
    pub(crate) fn value(self) -> Value {
        Value::Verdict(Verdict::Goto(self.to_string()))
    }
}

/// Pods and the node itself are not "outside": the policy does not hold for them. The rest keeps
/// its source and stays on this node.
fn outside_local(pick: Pick, here: u32, config: &Config) -> Vec<Rule> {
    let cluster = goto(Shared::Pick(pick));
    let inside = config
        .cidrs(pick.family)
        .map(|cidr| vec![Statement::Range(Side::Source, Sense::Is, cidr), cluster.clone()]);
    let own = Statement::LocalAddress(pick.family, Side::Source);
    let mut rules: Vec<Rule> = inside.collect();
    rules.push(vec![own.clone(), Statement::Mark(MASQUERADE)]);
    rules.push(vec![own, cluster]);
    if here > 0 {
        let local = Pick { policy: Local::Yes, count: here, ..pick };
        rules.push(vec![goto(Shared::Pick(local))]);
    }
    rules
}

/// The value of a Service that has nobody at all.
pub(crate) fn refused() -> Value {
    Value::Verdict(Verdict::Goto(REJECT.to_string()))
}

/// The unspecified address of a family: it stands for the node's addresses in keys.
pub(crate) fn any_address(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn range(first: impl Into<IpAddr>, prefix: u8) -> Cidr {
    Cidr::new(first.into(), prefix).expect("no prefix here is longer than its address")
}

fn loopback(family: Family) -> Cidr {
    match family {
        Family::V4 => range([127, 0, 0, 0], 8),
        Family::V6 => range(Ipv6Addr::LOCALHOST, 128),
    }
}

fn multicast(family: Family) -> Cidr {
    match family {
        Family::V4 => range([224, 0, 0, 0], 4),
        Family::V6 => range([0xff00, 0, 0, 0, 0, 0, 0, 0_u16], 8),
    }
}

/// What the chains of one family have in common.
struct Frame<'a> {
    config: &'a Config,
    family: Family,
}

/// Hooks, in order of the packet's way: name, purpose, hook, priority, whether only new
/// connections matter, and the chains of each family it sends to.
type HookRow = (&'static str, Purpose, Hook, i32, bool, &'static [&'static str]);

const HOOKS: [HookRow; 8] = [
    ("filter-prerouting", Purpose::Filter, Hook::Prerouting, -110, true, &["firewall"]),
    ("filter-output-first", Purpose::Filter, Hook::Output, -110, true, &["firewall"]),
    ("nat-prerouting", Purpose::Nat, Hook::Prerouting, -100, false, &["services"]),
    ("nat-output", Purpose::Nat, Hook::Output, -100, false, &["services"]),
    ("filter-input", Purpose::Filter, Hook::Input, 0, true, &["no-node-port", "no-endpoint"]),
    ("filter-forward", Purpose::Filter, Hook::Forward, 0, true, &["no-endpoint", "no-port"]),
    ("filter-output", Purpose::Filter, Hook::Output, 0, true, &["no-endpoint", "no-port"]),
    ("nat-postrouting", Purpose::Nat, Hook::Postrouting, 100, false, &["masquerade"]),
];

/// A chain for packets of one family. Every rule says so again, since that is what `nft` needs to
/// show its addresses as such.
fn chain(name: String, family: Family, rules: Vec<Rule>) -> Chain {
    let with_family = |mut rule: Rule| {
        rule.insert(0, Statement::Family(family));
        rule
    };
    Chain { name, base: None, rules: rules.into_iter().map(with_family).collect() }
}

/// The chains of every node, each after those it sends to.
pub(crate) fn frame(config: &Config) -> Vec<Chain> {
    let refuse = vec![vec![Statement::Reset], vec![Statement::Reject]];
    let mut chains = vec![Chain { name: REJECT.to_string(), base: None, rules: refuse }];
    for family in Family::ALL {
        let frame = Frame { config, family };
        let rows: [(&str, Vec<Rule>); 6] = [
            ("firewall", frame.firewall()),
            ("services", frame.services()),
            ("no-node-port", frame.no_node_port()),
            ("no-endpoint", vec![vec![frame.dispatch(Role::NoEndpoints)]]),
            ("no-port", frame.no_port()),
            ("masquerade", frame.masquerade()),
        ];
        let named = rows.map(|(name, rules)| chain(frame.name(name), family, rules));
        chains.extend(named);
    }
    chains.extend(HOOKS.iter().map(|(name, purpose, hook, priority, new, to)| {
        let base = Some((*purpose, *hook, *priority));
        Chain { name: (*name).to_string(), base, rules: hook_rules(*new, to) }
    }));
    chains
}

fn hook_rules(only_new: bool, to: &[&str]) -> Vec<Rule> {
    let rule = |name: &&str, family: Family| {
        let jump = Verdict::Jump(format!("{name}-{}", digit(family)));
        let mut rule = vec![Statement::Family(family), Statement::Go(jump)];
        if only_new {
            rule.insert(0, Statement::NewConnection);
        }
        rule
    };
    Family::ALL.into_iter().flat_map(|family| to.iter().map(move |to| rule(to, family))).collect()
}

impl Frame<'_> {
    fn name(&self, name: &str) -> String {
        format!("{name}-{}", digit(self.family))
    }

    fn set(&self, role: Role) -> Set {
        Set { role, family: self.family }
    }

    fn address(&self, side: Side) -> Load {
        Load::Address(self.family, side)
    }

    fn member(&self, side: Side, sense: Sense, role: Role) -> Statement {
        Statement::Member(vec![self.address(side)], sense, self.set(role))
    }

    /// Destination, protocol and port.
    fn to(&self) -> Vec<Load> {
        vec![self.address(Side::Destination), Load::Protocol, Load::Port]
    }

    fn dispatch(&self, role: Role) -> Statement {
        Statement::Dispatch(self.to(), self.set(role))
    }

    /// The same for a port at any of the node's addresses.
    fn dispatch_node(&self, role: Role) -> Statement {
        let key = vec![Load::AnyAddress(self.family), Load::Protocol, Load::Port];
        Statement::Dispatch(key, self.set(role))
    }

    fn outside_cluster(&self, side: Side) -> impl Iterator<Item = Statement> {
        self.config.cidrs(self.family).map(move |c| Statement::Range(side, Sense::IsNot, c))
    }

    fn firewall(&self) -> Vec<Rule> {
        let guarded = Statement::Member(self.to(), Sense::Is, self.set(Role::Firewall));
        let mut from = self.to();
        from.push(self.address(Side::Source));
        let stranger = Statement::Member(from, Sense::IsNot, self.set(Role::Sources));
        vec![vec![guarded, stranger, Statement::Go(Verdict::Drop)]]
    }

    /// Who comes from outside the cluster to a cluster address is masqueraded, since its endpoint
    /// may be on another node.
    fn services(&self) -> Vec<Rule> {
        let mut rules = Vec::new();
        let outside: Vec<Statement> = self.outside_cluster(Side::Source).collect();
        if !outside.is_empty() {
            let mut rule = vec![self.member(Side::Destination, Sense::Is, Role::ClusterIps)];
            rule.extend(outside);
            rule.push(Statement::Mark(MASQUERADE));
            rules.push(rule);
        }
        rules.push(vec![self.dispatch(Role::Services)]);
        let services = self.dispatch_node(Role::Services);
        rules.extend(self.node_port(services));
        rules
    }

    /// A port of the node: at its addresses, or those of them that were chosen.
    fn node_port(&self, then: Statement) -> Vec<Rule> {
        let not_loopback = Statement::Range(Side::Destination, Sense::IsNot, loopback(self.family));
        let own = [Statement::LocalAddress(self.family, Side::Destination), not_loopback];
        let with = |range: Option<Cidr>| {
            let range = range.map(|cidr| Statement::Range(Side::Destination, Sense::Is, cidr));
            own.iter().cloned().chain(range).chain([then.clone()]).collect()
        };
        let ranges = &self.config.node_port_addresses;
        if ranges.is_empty() {
            return vec![with(None)];
        }
        let ranges = ranges.iter().filter(|cidr| cidr.family() == self.family);
        ranges.map(|cidr| with(Some(*cidr))).collect()
    }

    fn no_node_port(&self) -> Vec<Rule> {
        self.node_port(self.dispatch_node(Role::NoEndpoints))
    }

    /// What is left for a cluster address here goes to a port that its Service does not have.
    fn no_port(&self) -> Vec<Rule> {
        let cluster_ip = self.member(Side::Destination, Sense::Is, Role::ClusterIps);
        vec![vec![cluster_ip, Statement::Go(Verdict::Goto(REJECT.to_string()))]]
    }

    fn masquerade(&self) -> Vec<Rule> {
        let marked = vec![
            Statement::Marked(MASQUERADE),
            Statement::Unmark(MASQUERADE),
            Statement::Masquerade,
        ];
        let itself = vec![
            self.address(Side::Source),
            self.address(Side::Destination),
            Load::Protocol,
            Load::Port,
        ];
        let hairpin = vec![
            Statement::Translated,
            Statement::Member(itself, Sense::Is, self.set(Role::Hairpin)),
            Statement::Masquerade,
        ];
        let egress = self.config.cidrs(self.family).map(|cidr| self.egress(cidr));
        [marked, hairpin].into_iter().chain(egress).collect()
    }

    /// Pods that leave the cluster take the node's address.
    fn egress(&self, pods: Cidr) -> Rule {
        let mut rule = vec![Statement::Range(Side::Source, Sense::Is, pods)];
        rule.extend(self.outside_cluster(Side::Destination));
        let multicast = multicast(self.family);
        rule.push(Statement::Range(Side::Destination, Sense::IsNot, multicast));
        rule.push(self.member(Side::Destination, Sense::IsNot, Role::NodeIps));
        rule.push(Statement::Masquerade);
        rule
    }
}

/// The chains that some shared ones need, themselves included, each after those it sends to.
pub(crate) fn with_targets(shared: impl IntoIterator<Item = Shared>) -> BTreeSet<Shared> {
    // `Pick` sorts before both others, which is the order that the kernel wants.
    shared.into_iter().flat_map(|one| one.sends_to().into_iter().chain([one])).collect()
}
