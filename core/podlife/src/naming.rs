//! What a Pod's containers call the world: `resolv.conf` and `hosts`.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

use knarr_typed::Pod;

use crate::config::{host_network, hostname};

/// Resolvers look at no more than so many servers (MAXNS).
const MAX_SERVERS: usize = 3;
const MAX_SEARCH: usize = 32;
const MAX_SEARCH_BYTES: usize = 2048;

/// Where the cluster's names are answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterDns {
    /// The addresses; none when the cluster has no DNS.
    pub servers: Vec<String>,
    /// The cluster's domain, `cluster.local`.
    pub domain: String,
}

/// The lines of a `resolv.conf`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Resolver {
    servers: Vec<String>,
    search: Vec<String>,
    /// Name, and value where there is one.
    options: Vec<(String, Option<String>)>,
}

impl Resolver {
    fn parse(text: &str) -> Self {
        let mut out = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace().map(str::to_owned);
            match words.next().as_deref() {
                Some("nameserver") => out.servers.extend(words.next()),
                Some("search") => out.search = words.collect(),
                Some("options") => out.options = words.map(|word| option(&word)).collect(),
                _ => {}
            }
        }
        out
    }

    fn text(mut self) -> String {
        self.servers.truncate(MAX_SERVERS);
        self.search.truncate(MAX_SEARCH);
        while self.search.join(" ").len() > MAX_SEARCH_BYTES {
            self.search.pop();
        }
        let mut out = String::new();
        let mut line = |text: String| writeln!(out, "{text}").expect("a String takes everything");
        if !self.search.is_empty() {
            line(format!("search {}", self.search.join(" ")));
        }
        self.servers.iter().for_each(|server| line(format!("nameserver {server}")));
        let words = self.options.iter().map(|(name, value)| match value {
            Some(value) => format!("{name}:{value}"),
            None => name.clone(),
        });
        let words: Vec<String> = words.collect();
        if !words.is_empty() {
            line(format!("options {}", words.join(" ")));
        }
        out
    }
}

fn option(word: &str) -> (String, Option<String>) {
    match word.split_once(':') {
        Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
        None => (word.to_owned(), None),
    }
}

/// The `resolv.conf` of a Pod's containers; `host` is the node's own.
pub fn resolv_conf(pod: &Pod, cluster: &ClusterDns, host: &str) -> String {
    let spec = pod.spec.clone().unwrap_or_default();
    let host = Resolver::parse(host);
    let wanted = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let in_cluster = match wanted {
        "ClusterFirstWithHostNet" => true,
        "ClusterFirst" => !host_network(pod),
        _ => false,
    };
    let mut resolver = match wanted {
        "None" => Resolver::default(),
        _ if in_cluster && !cluster.servers.is_empty() => inside(pod, cluster, &host),
        _ => host,
    };
    let config = spec.dns_config.unwrap_or_default();
    add_new(&mut resolver.servers, config.nameservers.into_iter().flatten());
    add_new(&mut resolver.search, config.searches.into_iter().flatten());
    for wish in config.options.into_iter().flatten() {
        let Some(name) = wish.name else { continue };
        match resolver.options.iter_mut().find(|(known, _)| *known == name) {
            Some(known) => known.1 = wish.value,
            None => resolver.options.push((name, wish.value)),
        }
    }
    resolver.text()
}

fn inside(pod: &Pod, cluster: &ClusterDns, host: &Resolver) -> Resolver {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let domain = &cluster.domain;
    let own = [format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
    let mut search = Vec::new();
    add_new(&mut search, own.into_iter().chain(host.search.iter().cloned()));
    let options = [("ndots".to_owned(), Some("5".to_owned()))].into();
    Resolver { servers: cluster.servers.clone(), search, options }
}

fn add_new(list: &mut Vec<String>, more: impl Iterator<Item = String>) {
    for word in more {
        if !list.contains(&word) {
            list.push(word);
        }
    }
}

/// The `hosts` of a Pod's containers; `host` is the node's own.
pub fn hosts(pod: &Pod, addresses: &[String], cluster: &ClusterDns, host: &str) -> String {
    let mut out = String::new();
    if host_network(pod) {
        out.push_str("# Kubernetes-managed hosts file (host network).\n");
        out.push_str(host);
    } else {
        out.push_str(
            "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost \
             ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\n\
             fe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
        );
        let own = own_names(pod, cluster);
        addresses.iter().for_each(|address| entry(&mut out, address, &own));
    }
    let aliases = pod.spec.iter().flat_map(|spec| spec.host_aliases.iter().flatten());
    let mut aliases = aliases.peekable();
    if aliases.peek().is_some() {
        out.push_str("\n# Entries added by HostAliases.\n");
    }
    for alias in aliases {
        entry(&mut out, &alias.ip, alias.hostnames.as_deref().unwrap_or_default());
    }
    out
}

fn entry(out: &mut String, address: &str, names: &[String]) {
    writeln!(out, "{address}\t{}", names.join("\t")).expect("a String takes everything");
}

/// The Pod's name in full, where it has one, and in short.
fn own_names(pod: &Pod, cluster: &ClusterDns) -> Vec<String> {
    let short = hostname(pod);
    let subdomain = pod.spec.as_ref().and_then(|spec| spec.subdomain.clone()).unwrap_or_default();
    if subdomain.is_empty() {
        return [short].into();
    }
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    [format!("{short}.{subdomain}.{namespace}.svc.{}", cluster.domain), short].into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const HOST: &str = "nameserver 192.0.2.1\nsearch corp.example\noptions timeout:1\n";

    fn pod(spec: Value) -> Pod {
        let tree = json!({"metadata": {"name": "p", "namespace": "a"}, "spec": spec});
        serde_json::from_value(tree).expect("a Pod")
    }

    fn cluster() -> ClusterDns {
        ClusterDns { servers: ["10.43.0.10".to_owned()].into(), domain: "cluster.local".to_owned() }
    }

    fn conf(spec: Value) -> String {
        resolv_conf(&pod(spec), &cluster(), HOST)
    }

    #[test]
    fn the_cluster_comes_first() {
        let inside = "search a.svc.cluster.local svc.cluster.local cluster.local corp.example\n\
                      nameserver 10.43.0.10\noptions ndots:5\n";
        assert_eq!(conf(json!({"containers": []})), inside);
        let host = "search corp.example\nnameserver 192.0.2.1\noptions timeout:1\n";
        assert_eq!(conf(json!({"containers": [], "hostNetwork": true})), host);
        assert_eq!(conf(json!({"containers": [], "dnsPolicy": "Default"})), host);
        let policy = "ClusterFirstWithHostNet";
        let both = json!({"containers": [], "hostNetwork": true, "dnsPolicy": policy});
        assert_eq!(conf(both), inside);
    }

    #[test]
    fn a_pods_own_wishes_are_added() {
        let wishes = json!({"nameservers": ["192.0.2.9"],
            "searches": ["x.example", "svc.cluster.local"],
            "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]});
        let alone = json!({"containers": [], "dnsPolicy": "None", "dnsConfig": wishes});
        assert_eq!(
            conf(alone),
            "search x.example svc.cluster.local\nnameserver 192.0.2.9\noptions ndots:2 edns0\n"
        );
        assert_eq!(
            conf(json!({"containers": [], "dnsConfig": wishes})),
            "search a.svc.cluster.local svc.cluster.local cluster.local corp.example x.example\n\
             nameserver 10.43.0.10\nnameserver 192.0.2.9\noptions ndots:2 edns0\n"
        );
    }

    #[test]
    fn hosts_name_the_pod_and_its_aliases() {
        let aliases = json!([{"ip": "192.0.2.7", "hostnames": ["x", "y"]}]);
        let named = pod(json!({"containers": [], "hostname": "h", "subdomain": "s",
            "hostAliases": aliases}));
        let text = hosts(&named, &["10.42.0.2".to_owned()], &cluster(), "");
        assert!(text.ends_with(
            "\n10.42.0.2\th.s.a.svc.cluster.local\th\n\n# Entries added by HostAliases.\n\
             192.0.2.7\tx\ty\n"
        ));
        let host = pod(json!({"containers": [], "hostNetwork": true}));
        let text = hosts(&host, &[], &cluster(), "127.0.0.1\tme\n");
        assert_eq!(text, "# Kubernetes-managed hosts file (host network).\n127.0.0.1\tme\n");
    }
}
