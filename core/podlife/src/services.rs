//! Services as a container's environment shows them: `REDIS_SERVICE_HOST` and the link variables.

use alloc::borrow::ToOwned;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use knarr_typed::Pod;
use serde_json::Value;

/// The Service that every container is told of, of the namespace `default`.
const MASTER: (&str, &str) = ("default", "kubernetes");

/// Why no container may begin yet; upstream's text.
pub const UNREAD: &str = "services have not yet been read at least once, cannot construct envvars";

type Key = (String, String);

/// The Services of a cluster, as far as containers are told of them.
#[derive(Clone, Debug, Default)]
pub struct Services {
    services: BTreeMap<Key, Service>,
    /// Not seen again since the list began anew.
    stale: BTreeSet<Key>,
    synced: bool,
}

#[derive(Clone, Debug)]
struct Service {
    address: String,
    ports: Vec<Port>,
}

#[derive(Clone, Debug)]
struct Port {
    name: String,
    number: i64,
    protocol: String,
}

fn key(object: &Value) -> Key {
    let word = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
    (word("namespace"), word("name"))
}

impl Service {
    /// `None` without an address of its own.
    fn read(object: &Value) -> Option<Self> {
        let spec = &object["spec"];
        let address = spec["clusterIP"].as_str().filter(|ip| !ip.is_empty() && *ip != "None")?;
        let ports = spec["ports"].as_array().into_iter().flatten().map(|port| Port {
            name: port["name"].as_str().unwrap_or_default().to_owned(),
            number: port["port"].as_i64().unwrap_or_default(),
            protocol: port["protocol"].as_str().unwrap_or("TCP").to_owned(),
        });
        Some(Self { address: address.to_owned(), ports: ports.collect() })
    }
}

impl Services {
    /// Takes in a Service that is new or different.
    pub fn put(&mut self, object: &Value) {
        let key = key(object);
        self.stale.remove(&key);
        match Service::read(object) {
            Some(service) => drop(self.services.insert(key, service)),
            None => drop(self.services.remove(&key)),
        }
    }

    /// Takes in that a Service is gone.
    pub fn remove(&mut self, object: &Value) {
        self.services.remove(&key(object));
    }

    /// The list begins anew: what is not put until [`Self::synced`] is gone.
    pub fn restarted(&mut self) {
        self.stale = self.services.keys().cloned().collect();
    }

    /// All of the list is here.
    pub fn synced(&mut self) {
        for key in core::mem::take(&mut self.stale) {
            self.services.remove(&key);
        }
        self.synced = true;
    }

    /// Whether the Services were read at least once.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// The variables that a Pod's containers are given.
    pub fn variables(&self, pod: &Pod) -> BTreeMap<String, String> {
        let own = pod.metadata.namespace.as_deref().unwrap_or_default();
        let links = pod.spec.as_ref().and_then(|spec| spec.enable_service_links).unwrap_or(true);
        let mut chosen: BTreeMap<&str, &Service> = BTreeMap::new();
        for ((namespace, name), service) in &self.services {
            let master = (namespace.as_str(), name.as_str()) == MASTER;
            let linked = namespace == own && links;
            // One of the own namespace wins over the other of the same name.
            if linked && !master || master && !chosen.contains_key(name.as_str()) {
                chosen.insert(name, service);
            }
        }
        chosen.into_iter().flat_map(|(name, service)| service.variables(name)).collect()
    }
}

/// A name as variables have it.
fn variable(name: &str) -> String {
    name.replace('-', "_").to_uppercase()
}

impl Service {
    fn variables(&self, name: &str) -> Vec<(String, String)> {
        let name = variable(name);
        let mut all = alloc::vec![(format!("{name}_SERVICE_HOST"), self.address.clone())];
        let Some(first) = self.ports.first() else { return all };
        all.push((format!("{name}_SERVICE_PORT"), first.number.to_string()));
        for port in self.ports.iter().filter(|port| !port.name.is_empty()) {
            let variable = format!("{name}_SERVICE_PORT_{}", variable(&port.name));
            all.push((variable, port.number.to_string()));
        }
        // The links of old Docker.
        all.push((format!("{name}_PORT"), self.url(first)));
        all.extend(self.ports.iter().flat_map(|port| self.link(&name, port)));
        all
    }

    fn link(&self, name: &str, port: &Port) -> [(String, String); 4] {
        let prefix = format!("{name}_PORT_{}_{}", port.number, port.protocol.to_uppercase());
        [
            (format!("{prefix}_PROTO"), port.protocol.to_lowercase()),
            (format!("{prefix}_PORT"), port.number.to_string()),
            (format!("{prefix}_ADDR"), self.address.clone()),
            (prefix, self.url(port)),
        ]
    }

    fn url(&self, port: &Port) -> String {
        let address = match self.address.contains(':') {
            true => format!("[{}]", self.address),
            false => self.address.clone(),
        };
        format!("{}://{address}:{}", port.protocol.to_lowercase(), port.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(namespace: &str, name: &str, ip: &str, ports: Value) -> Value {
        json!({"metadata": {"namespace": namespace, "name": name},
            "spec": {"clusterIP": ip, "ports": ports}})
    }

    fn cluster() -> Services {
        let mut services = Services::default();
        let https = json!([{"name": "https", "port": 443, "protocol": "TCP"}]);
        services.put(&service("default", "kubernetes", "10.96.0.1", https));
        let redis =
            json!([{"port": 6379}, {"name": "sen-tinel", "port": 26379, "protocol": "UDP"}]);
        services.put(&service("d", "redis-master", "10.96.0.9", redis));
        services.put(&service("d", "headless", "None", json!([{"port": 1}])));
        services.put(&service("e", "other", "10.96.0.7", json!([{"port": 1}])));
        services
    }

    fn told(services: &Services, namespace: &str, links: bool) -> String {
        let pod = json!({"metadata": {"namespace": namespace, "name": "p"},
            "spec": {"enableServiceLinks": links, "containers": []}});
        let pod = serde_json::from_value(pod).expect("a Pod");
        let all = services.variables(&pod);
        all.into_iter().map(|(key, value)| format!("{key}={value}\n")).collect()
    }

    const MASTERS: &str = "KUBERNETES_PORT=tcp://10.96.0.1:443
KUBERNETES_PORT_443_TCP=tcp://10.96.0.1:443
KUBERNETES_PORT_443_TCP_ADDR=10.96.0.1
KUBERNETES_PORT_443_TCP_PORT=443
KUBERNETES_PORT_443_TCP_PROTO=tcp
KUBERNETES_SERVICE_HOST=10.96.0.1
KUBERNETES_SERVICE_PORT=443
KUBERNETES_SERVICE_PORT_HTTPS=443
";

    #[test]
    fn services_of_the_namespace_are_shown_and_the_api_always() {
        let own = "REDIS_MASTER_PORT=tcp://10.96.0.9:6379
REDIS_MASTER_PORT_26379_UDP=udp://10.96.0.9:26379
REDIS_MASTER_PORT_26379_UDP_ADDR=10.96.0.9
REDIS_MASTER_PORT_26379_UDP_PORT=26379
REDIS_MASTER_PORT_26379_UDP_PROTO=udp
REDIS_MASTER_PORT_6379_TCP=tcp://10.96.0.9:6379
REDIS_MASTER_PORT_6379_TCP_ADDR=10.96.0.9
REDIS_MASTER_PORT_6379_TCP_PORT=6379
REDIS_MASTER_PORT_6379_TCP_PROTO=tcp
REDIS_MASTER_SERVICE_HOST=10.96.0.9
REDIS_MASTER_SERVICE_PORT=6379
REDIS_MASTER_SERVICE_PORT_SEN_TINEL=26379
";
        assert_eq!(told(&cluster(), "d", true), [MASTERS, own].concat());
        assert_eq!(told(&cluster(), "d", false), MASTERS);
    }

    #[test]
    fn a_service_of_the_own_namespace_hides_the_api() {
        let mut services = cluster();
        services.put(&service("e", "kubernetes", "fd00::1", json!([{"port": 80}])));
        services.put(&service("a", "kubernetes", "10.96.0.3", json!([{"port": 80}])));
        assert!(told(&services, "e", true).contains("KUBERNETES_PORT=tcp://[fd00::1]:80\n"));
        assert!(told(&services, "a", true).contains("KUBERNETES_SERVICE_HOST=10.96.0.3\n"));
        assert_eq!(told(&services, "e", false), MASTERS);
    }

    #[test]
    fn what_a_new_list_does_not_have_is_gone() {
        let mut services = cluster();
        services.restarted();
        let https = json!([{"name": "https", "port": 443, "protocol": "TCP"}]);
        services.put(&service("default", "kubernetes", "10.96.0.1", https));
        assert!(!services.is_synced());
        services.synced();
        assert!(services.is_synced());
        assert_eq!(told(&services, "d", true), MASTERS);
    }
}
