//! What the Pods heard, and what of the nine principles it shows. No IO: values in, reasons out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use knarr_api::ip::Cidr;
use serde_json::Value;

use super::objects::{HOST, PEER, Target, WEB};
use super::{ready, text};

/// A node, as the API has it.
#[derive(Clone, Debug, Default)]
pub(super) struct NodeFacts {
    pub(super) name: String,
    pub(super) ready: bool,
    /// Its InternalIPs.
    pub(super) addresses: Vec<IpAddr>,
    pub(super) pod_cidrs: Vec<Cidr>,
}

/// A Pod of the check.
#[derive(Clone, Debug, Default)]
pub(super) struct Probe {
    pub(super) name: String,
    pub(super) node: String,
    pub(super) addresses: Vec<IpAddr>,
    /// Whether it lives in the node's network.
    pub(super) host: bool,
}

/// What a client wrote down.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// The addresses it sees for itself.
    own: BTreeSet<IpAddr>,
    /// Answers by target.
    got: BTreeMap<String, String>,
}

/// Everything that was found.
#[derive(Clone, Debug, Default)]
pub(super) struct Findings {
    pub(super) nodes: Vec<NodeFacts>,
    pub(super) servers: Vec<Probe>,
    pub(super) clients: Vec<(Probe, Seen)>,
    /// The Service's cluster IPs.
    pub(super) services: Vec<String>,
    pub(super) node_port: u16,
}

impl NodeFacts {
    pub(super) fn read(node: &Value) -> Self {
        let list = |pointer: &str| {
            node.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default()
        };
        let addresses = list("/status/addresses");
        let internal = addresses.iter().filter(|row| row["type"] == "InternalIP");
        let ranges = list("/spec/podCIDRs");
        Self {
            name: text(node, "/metadata/name").to_owned(),
            ready: ready(node),
            addresses: internal.filter_map(|row| address(text(row, "/address"))).collect(),
            pod_cidrs: ranges.iter().filter_map(|range| range.as_str()?.parse().ok()).collect(),
        }
    }
}

impl Probe {
    pub(super) fn read(pod: &Value) -> Self {
        let ips = pod.pointer("/status/podIPs").and_then(Value::as_array);
        Self {
            name: text(pod, "/metadata/name").to_owned(),
            node: text(pod, "/spec/nodeName").to_owned(),
            addresses: ips
                .into_iter()
                .flatten()
                .filter_map(|ip| address(text(ip, "/ip")))
                .collect(),
            host: pod.pointer("/spec/hostNetwork") == Some(&Value::Bool(true)),
        }
    }
}

/// An address as programs print it: `10.0.0.1/32`, `[::ffff:10.0.0.1]`.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.trim().split('/').next()?.trim_matches(['[', ']']);
    bare.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

impl Seen {
    /// Reads lines `own ADDRESS` and `got TARGET ANSWER`.
    pub(super) fn read(log: &str) -> Self {
        let mut seen = Self::default();
        for line in log.lines() {
            let mut words = line.splitn(3, ' ');
            let (verb, word) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            let rest = words.next().unwrap_or_default().trim().to_owned();
            match verb {
                "own" => seen.own.extend(address(word)),
                "got" => drop(seen.got.insert(word.to_owned(), rest)),
                _ => {}
            }
        }
        seen
    }

    fn answer(&self, key: &str) -> Result<&str, String> {
        self.got.get(key).map(String::as_str).ok_or_else(|| "no answer".to_owned())
    }
}

impl Findings {
    /// The nodes that can be tried.
    pub(super) fn usable(&self) -> impl Iterator<Item = &NodeFacts> {
        self.nodes.iter().filter(|node| node.ready)
    }

    /// Everybody that every client asks.
    pub(super) fn targets(&self) -> Vec<Target> {
        let mut targets = Vec::new();
        let mut add = |key: String, host: &dyn ToString, port: u16, page: &'static str| {
            let by_name = key == "name";
            targets.push(Target { key, host: host.to_string(), port, page, by_name });
        };
        for server in &self.servers {
            let name = &server.name;
            for ip in &server.addresses {
                add(format!("pod/{name}/{ip}"), ip, WEB, "who");
            }
            let Some(ip) = server.addresses.first() else { continue };
            add(format!("own/{name}/web"), ip, WEB, "own");
            add(format!("own/{name}/peer"), ip, PEER, "own");
            add(format!("local/{name}"), ip, PEER, "local");
        }
        for ip in self.usable().flat_map(|node| &node.addresses) {
            add(format!("node/{ip}"), ip, HOST, "who");
            add(format!("nodeport/{ip}"), ip, self.node_port, "who");
        }
        for ip in &self.services {
            add(format!("service/{ip}"), ip, 80, "who");
        }
        add("name".to_owned(), &"web", 80, "who");
        targets
    }

    /// Each principle with the reasons why it does not hold; none when it does.
    pub(super) fn verdicts(&self) -> [(&'static str, Vec<String>); 9] {
        [
            ("every Pod has an IP of its own", self.own_ip()),
            ("the address space is one and flat", self.flat()),
            ("the Pod is the smallest unit with an IP", self.smallest()),
            ("containers of a Pod share one network stack", self.shared()),
            ("containers reach containers without NAT", self.containers()),
            ("nodes reach containers without NAT, and back", self.between()),
            ("a container sees the address that others see", self.same_address()),
            ("Pod network over node network, Services over both", self.services()),
            ("from outside to inside: node port, cluster IP, Pod IP, port", self.inward()),
        ]
    }

    fn pod_clients(&self) -> impl Iterator<Item = &(Probe, Seen)> {
        self.clients.iter().filter(|(client, _)| !client.host)
    }

    fn host_clients(&self) -> impl Iterator<Item = &(Probe, Seen)> {
        self.clients.iter().filter(|(client, _)| client.host)
    }

    fn pods(&self) -> impl Iterator<Item = &Probe> {
        self.servers.iter().chain(self.pod_clients().map(|(client, _)| client))
    }

    /// The names and addresses at which servers are asked.
    fn pod_targets(&self) -> impl Iterator<Item = (&Probe, String)> {
        let keys = |server: &Probe| -> Vec<String> {
            server.addresses.iter().map(|ip| format!("pod/{}/{ip}", server.name)).collect()
        };
        self.servers.iter().flat_map(move |s| keys(s).into_iter().map(move |key| (s, key)))
    }

    fn own_ip(&self) -> Vec<String> {
        let mut why = Vec::new();
        let mut seen: BTreeMap<IpAddr, &str> = BTreeMap::new();
        let nodes: BTreeSet<IpAddr> =
            self.nodes.iter().flat_map(|node| node.addresses.iter().copied()).collect();
        for pod in self.servers.iter() {
            if pod.addresses.is_empty() {
                why.push(format!("{} has no address", pod.name));
            }
            for ip in &pod.addresses {
                if let Some(other) = seen.insert(*ip, &pod.name) {
                    why.push(format!("{} and {other} have the same address {ip}", pod.name));
                }
                if nodes.contains(ip) {
                    why.push(format!("{} has a node's address {ip}", pod.name));
                }
            }
        }
        why
    }

    fn flat(&self) -> Vec<String> {
        let mut why = Vec::new();
        for (at, node) in self.nodes.iter().enumerate() {
            let others = self.nodes[at + 1..].iter();
            for other in others {
                let overlap =
                    |range: &&Cidr| other.pod_cidrs.iter().any(|theirs| theirs.overlaps(range));
                let overlap = node.pod_cidrs.iter().find(overlap);
                why.extend(
                    overlap.map(|range| {
                        format!("{} and {} overlap in {range}", node.name, other.name)
                    }),
                );
            }
            for pod in self.pods().filter(|pod| pod.node == node.name) {
                let inside = |ip: &IpAddr| node.pod_cidrs.iter().any(|range| range.contains(*ip));
                if let Some(ip) = pod.addresses.iter().find(|ip| !inside(ip)) {
                    why.push(format!("{} has {ip}, outside its node's range", pod.name));
                }
            }
        }
        for (client, seen) in self.pod_clients() {
            for (server, key) in self.pod_targets() {
                if let Err(what) = seen.answer(&key) {
                    why.push(format!("{}: {what}", way(client, server)));
                }
            }
        }
        why
    }

    /// Whom anybody heard.
    fn heard(&self, key: &str) -> Result<&str, String> {
        let mut answers = self.clients.iter().map(|(_, seen)| seen.answer(key));
        let first = answers.next().unwrap_or(Err("nobody asked".to_owned()));
        if first.is_ok() { first } else { answers.find(Result::is_ok).unwrap_or(first) }
    }

    fn smallest(&self) -> Vec<String> {
        let own = |server: &Probe, container: &str| -> Result<BTreeSet<IpAddr>, String> {
            let answer = self.heard(&format!("own/{}/{container}", server.name))?;
            Ok(answer.split_whitespace().filter_map(address).collect())
        };
        let one = |server: &Probe| -> Option<String> {
            match (own(server, "web"), own(server, "peer")) {
                (Ok(web), Ok(peer)) if web == peer => {
                    let missing = server.addresses.iter().find(|ip| !web.contains(*ip));
                    missing.map(|ip| format!("{}: {ip} is on none of its links", server.name))
                }
                (Ok(_), Ok(_)) => Some(format!("{}: containers differ in addresses", server.name)),
                (Err(what), _) | (_, Err(what)) => Some(format!("{}: {what}", server.name)),
            }
        };
        self.servers.iter().filter_map(one).collect()
    }

    fn shared(&self) -> Vec<String> {
        let one = |server: &Probe| match self.heard(&format!("local/{}", server.name)) {
            Ok(answer) if address(answer).is_some_and(|ip| ip.is_loopback()) => None,
            Ok(answer) => Some(format!("{}: loopback leads to {answer:?}", server.name)),
            Err(what) => Some(format!("{}: {what} over loopback", server.name)),
        };
        self.servers.iter().filter_map(one).collect()
    }

    fn containers(&self) -> Vec<String> {
        let mut why = Vec::new();
        for (client, seen) in self.pod_clients() {
            for (server, key) in self.pod_targets() {
                let as_it_is = |ip| client.addresses.contains(&ip);
                why.extend(unchanged(seen.answer(&key), as_it_is, &way(client, server)));
            }
        }
        why
    }

    fn between(&self) -> Vec<String> {
        let mut why = Vec::new();
        for (client, seen) in self.host_clients() {
            for (server, key) in self.pod_targets() {
                let as_it_is = |ip| seen.own.contains(&ip);
                why.extend(unchanged(seen.answer(&key), as_it_is, &way(client, server)));
            }
        }
        for (client, seen) in self.pod_clients() {
            for node in self.usable() {
                for ip in &node.addresses {
                    let as_it_is = |ip| client.addresses.contains(&ip);
                    let way = format!("{} on {} to node {}", client.name, client.node, node.name);
                    why.extend(unchanged(seen.answer(&format!("node/{ip}")), as_it_is, &way));
                }
            }
        }
        why
    }

    fn same_address(&self) -> Vec<String> {
        let mut why = Vec::new();
        for (client, seen) in self.pod_clients() {
            if let Some(ip) = client.addresses.iter().find(|ip| !seen.own.contains(ip)) {
                why.push(format!("{}: the API says {ip}, which it does not see", client.name));
            }
            for (server, key) in self.pod_targets() {
                let as_it_is = |ip| seen.own.contains(&ip);
                why.extend(unchanged(seen.answer(&key), as_it_is, &way(client, server)));
            }
        }
        why
    }

    fn services(&self) -> Vec<String> {
        let mut why = Vec::new();
        for (client, seen) in &self.clients {
            let ips = self.services.iter().map(|ip| format!("service/{ip}"));
            for key in ips.chain((!client.host).then(|| "name".to_owned())) {
                if let Err(error) = seen.answer(&key) {
                    let Probe { name, node, .. } = client;
                    why.push(format!("{name} on {node} to a Service ({key}): {error}"));
                }
            }
        }
        why
    }

    fn inward(&self) -> Vec<String> {
        let mut why = Vec::new();
        for (client, seen) in &self.clients {
            for node in self.usable() {
                for ip in &node.addresses {
                    if let Err(error) = seen.answer(&format!("nodeport/{ip}")) {
                        let Probe { name, node: own, .. } = client;
                        let port = self.node_port;
                        why.push(format!("{name} on {own} to {}:{port}: {error}", node.name));
                    }
                }
            }
        }
        let inner = self.services().into_iter().chain(self.flat());
        why.extend(inner.take(1).map(|first| format!("a step further in: {first}")));
        why
    }
}

fn way(client: &Probe, server: &Probe) -> String {
    format!("{} on {} to {} on {}", client.name, client.node, server.name, server.node)
}

/// Why an answer does not show that the asker's address was left as it is.
fn unchanged(
    answer: Result<&str, String>,
    as_it_is: impl Fn(IpAddr) -> bool,
    way: &str,
) -> Option<String> {
    match answer {
        Err(what) => Some(format!("{way}: {what}")),
        Ok(text) => match address(text) {
            Some(ip) if as_it_is(ip) => None,
            Some(ip) => Some(format!("{way}: seen as {ip} (NAT)")),
            None => Some(format!("{way}: answered {text:?}")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn probe(name: &str, node: &str, address: &str, host: bool) -> Probe {
        let addresses = vec![ip(address)];
        Probe { name: name.to_owned(), node: node.to_owned(), addresses, host }
    }

    /// Two nodes on which everything holds.
    fn sound() -> Findings {
        let node = |name: &str, n: u8| NodeFacts {
            name: name.to_owned(),
            ready: true,
            addresses: vec![ip(&format!("10.44.0.{n}"))],
            pod_cidrs: vec![format!("10.42.{n}.0/24").parse().expect("a range")],
        };
        let mut findings = Findings {
            nodes: vec![node("a", 1), node("b", 2)],
            servers: vec![
                probe("server-0", "a", "10.42.1.2", false),
                probe("server-1", "b", "10.42.2.2", false),
            ],
            services: vec!["10.43.0.9".to_owned()],
            node_port: 30000,
            clients: Vec::new(),
        };
        for client in [
            probe("client-0", "a", "10.42.1.3", false),
            probe("client-1", "b", "10.42.2.3", false),
            probe("hostclient-0", "a", "10.44.0.1", true),
            probe("hostclient-1", "b", "10.44.0.2", true),
        ] {
            let own = client.addresses[0];
            let mut log = format!("own 127.0.0.1/8\nown {own}/32\n");
            for target in findings.targets() {
                let parts: Vec<&str> = target.key.split('/').collect();
                let answer = match parts[0] {
                    "own" => format!(
                        "127.0.0.1/8 10.42.{}.2/32",
                        if parts[1] == "server-0" { 1 } else { 2 }
                    ),
                    "local" => "[::ffff:127.0.0.1]".to_owned(),
                    _ => own.to_string(),
                };
                log += &format!("got {} {answer}\n", target.key);
            }
            findings.clients.push((client, Seen::read(&log)));
        }
        findings
    }

    fn failing(findings: &Findings) -> Vec<usize> {
        let verdicts = findings.verdicts().into_iter().enumerate();
        verdicts.filter(|(_, (_, why))| !why.is_empty()).map(|(at, _)| at + 1).collect()
    }

    #[test]
    fn a_sound_network_passes() {
        assert_eq!(failing(&sound()), [0; 0], "{:?}", sound().verdicts());
    }

    #[test]
    fn each_principle_fails_for_its_own_reason() {
        let heard = |key: &str, answer: Option<&str>, of: usize| {
            let mut findings = sound();
            for (at, (_, seen)) in findings.clients.iter_mut().enumerate() {
                if of == at || of == 9 {
                    seen.got.remove(key);
                    seen.got.extend(answer.map(|answer| (key.to_owned(), answer.to_owned())));
                }
            }
            failing(&findings)
        };
        let mut same = sound();
        same.servers[1].addresses = same.servers[0].addresses.clone();
        assert!(failing(&same).contains(&1));
        let mut overlap = sound();
        overlap.nodes[1].pod_cidrs = vec!["10.42.0.0/16".parse().expect("a range")];
        assert_eq!(failing(&overlap), [2, 9]);
        assert_eq!(heard("own/server-0/peer", Some("10.42.1.9"), 9), [3]);
        assert_eq!(heard("local/server-0", None, 9), [4]);
        assert_eq!(heard("pod/server-1/10.42.2.2", Some("10.44.0.1"), 0), [5, 7]);
        assert_eq!(heard("pod/server-1/10.42.2.2", None, 0), [2, 5, 7, 9]);
        assert_eq!(heard("pod/server-1/10.42.2.2", Some("10.42.1.1"), 2), [6]);
        assert_eq!(heard("node/10.44.0.2", Some("10.44.0.1"), 0), [6]);
        assert_eq!(heard("name", None, 0), [8, 9]);
        assert_eq!(heard("service/10.43.0.9", None, 2), [8, 9]);
        assert_eq!(heard("nodeport/10.44.0.2", None, 0), [9]);
        let mut blind = sound();
        blind.clients[0].1.own.clear();
        assert_eq!(failing(&blind), [7]);
    }
}
