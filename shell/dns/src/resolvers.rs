//! Whom to ask about names that are not the cluster's.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use crate::DnsConfig;

const PORT: u16 = 53;

/// A domain that certain servers know (`stubDomains`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StubDomain {
    /// The domain, in lower case, without dots at its ends.
    pub domain: String,
    /// Who knows it.
    pub servers: Vec<SocketAddr>,
}

impl std::str::FromStr for StubDomain {
    type Err = String;

    /// `corp.example=192.0.2.1,192.0.2.2:5353`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (domain, servers) = text.split_once('=').ok_or("must be DOMAIN=SERVER[,SERVER]")?;
        let server = |text: &str| {
            let plain = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, PORT));
            plain
                .or_else(|_| text.parse())
                .map_err(|_| format!("{text:?} is no address of a server"))
        };
        let servers = servers.split(',').map(server).collect::<Result<_, _>>()?;
        let domain = domain.trim_matches('.').to_ascii_lowercase();
        match domain.is_empty() {
            true => Err("a stub domain needs a name".to_owned()),
            false => Ok(Self { domain, servers }),
        }
    }
}

#[derive(Debug, Default)]
struct Host {
    read_at: Option<SystemTime>,
    servers: Vec<SocketAddr>,
    search: Vec<String>,
}

/// The node's resolvers, as its `resolv.conf` names them at the moment, and stub domains.
#[derive(Debug)]
pub struct Resolvers {
    path: PathBuf,
    own: Vec<IpAddr>,
    stubs: Vec<StubDomain>,
    host: Mutex<Host>,
}

impl Resolvers {
    /// What a configuration says.
    pub fn new(config: &DnsConfig) -> Self {
        let mut stubs = config.stub_domains.clone();
        // The longest domain that fits is the one that counts.
        stubs.sort_by_key(|stub| std::cmp::Reverse(stub.domain.len()));
        Self {
            path: config.resolv_conf.clone(),
            own: config.addresses.clone(),
            stubs,
            host: Mutex::default(),
        }
    }

    /// Whom to ask about a name.
    pub fn servers_for(&self, name: &str) -> Vec<SocketAddr> {
        let below = |domain: &str| {
            name.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        match self.stubs.iter().find(|stub| below(&stub.domain)) {
            Some(stub) => stub.servers.clone(),
            None => self.host(|host| host.servers.clone()),
        }
    }

    /// The node's search domains.
    pub fn search(&self) -> Vec<String> {
        self.host(|host| host.search.clone())
    }

    /// Reads the file anew when it has changed.
    fn host<R>(&self, read: impl FnOnce(&Host) -> R) -> R {
        let mut host = self.host.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = std::fs::metadata(&self.path).and_then(|found| found.modified()).ok();
        if changed.is_none() || changed != host.read_at {
            let text = std::fs::read_to_string(&self.path).unwrap_or_default();
            *host = Host { read_at: changed, ..parse(&text, &self.own) };
        }
        read(&host)
    }
}

/// Reads a `resolv.conf`; whoever names us as the node's resolver is not asked again.
fn parse(text: &str, own: &[IpAddr]) -> Host {
    let mut host = Host::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => {
                let address = words.next().and_then(|word| word.parse::<IpAddr>().ok());
                let other = address.filter(|address| !own.contains(address));
                host.servers.extend(other.map(|address| SocketAddr::new(address, PORT)));
            }
            Some("search" | "domain") => {
                let domains = words.map(|word| word.trim_matches('.').to_ascii_lowercase());
                host.search = domains.filter(|domain| !domain.is_empty()).collect();
            }
            _ => {}
        }
    }
    host
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolv_conf_is_read_as_resolvers_do() {
        let own: IpAddr = "10.43.0.10".parse().expect("an address");
        let text = "# local\ndomain old.example\nsearch Corp.example. b.example\n\
                    nameserver 10.43.0.10\nnameserver 192.0.2.1\nnameserver fe80::1\noptions x\n";
        let host = parse(text, &[own]);
        let servers: Vec<String> = host.servers.iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["192.0.2.1:53", "[fe80::1]:53"]);
        assert_eq!(host.search, ["corp.example", "b.example"]);
    }

    #[test]
    fn stub_domains_are_read() {
        let stub: StubDomain = "Corp.Example.=192.0.2.1,192.0.2.2:5353".parse().expect("a stub");
        assert_eq!(stub.domain, "corp.example");
        let servers: Vec<String> = stub.servers.iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["192.0.2.1:53", "192.0.2.2:5353"]);
        for text in ["corp.example", "=192.0.2.1", "a=b"] {
            assert!(text.parse::<StubDomain>().is_err(), "{text}");
        }
    }
}
