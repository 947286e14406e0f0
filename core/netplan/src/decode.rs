//! Objects of the API into the model: only the fields that count are read.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::IpAddr;

use serde::{Deserialize, Deserializer};

use crate::model::{
    Endpoint, EndpointPort, Key, Policy, Protocol, Service, ServicePort, ServiceType, Slice, Target,
};
use knarr_api::ip::{Cidr, Family};

const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Objects with one of these labels are not the proxy's.
const UNPROXIED: [&str; 2] =
    ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"];
/// The default of `sessionAffinityConfig.clientIP.timeoutSeconds`.
const AFFINITY_SECONDS: u32 = 10_800;

/// `null` is the same as nothing.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    from: D,
) -> Result<T, D::Error> {
    Option::<T>::deserialize(from).map(Option::unwrap_or_default)
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Metadata {
    namespace: String,
    name: String,
    #[serde(deserialize_with = "or_default")]
    labels: BTreeMap<String, String>,
}

impl Metadata {
    fn key(&self) -> Key {
        Key { namespace: self.namespace.clone(), name: self.name.clone() }
    }

    fn unproxied(&self) -> bool {
        UNPROXIED.iter().any(|label| self.labels.contains_key(*label))
    }
}

#[derive(Deserialize)]
struct RawObject {
    metadata: Metadata,
}

/// Namespace and name of any object.
pub(crate) fn key(bytes: &[u8]) -> Result<Key, serde_json::Error> {
    Ok(serde_json::from_slice::<RawObject>(bytes)?.metadata.key())
}

#[derive(Deserialize)]
struct RawService {
    metadata: Metadata,
    #[serde(default)]
    spec: RawSpec,
    #[serde(default)]
    status: RawStatus,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawSpec {
    #[serde(rename = "type")]
    kind: String,
    #[serde(rename = "clusterIP")]
    cluster_ip: String,
    #[serde(rename = "clusterIPs", deserialize_with = "or_default")]
    cluster_ips: Vec<String>,
    external_name: String,
    #[serde(deserialize_with = "or_default")]
    ports: Vec<RawPort>,
    #[serde(deserialize_with = "or_default")]
    selector: BTreeMap<String, String>,
    #[serde(rename = "externalIPs", deserialize_with = "or_default")]
    external_ips: Vec<String>,
    session_affinity: String,
    #[serde(deserialize_with = "or_default")]
    session_affinity_config: RawAffinity,
    internal_traffic_policy: Option<String>,
    external_traffic_policy: Option<String>,
    #[serde(deserialize_with = "or_default")]
    load_balancer_source_ranges: Vec<String>,
    publish_not_ready_addresses: bool,
    traffic_distribution: Option<String>,
    health_check_node_port: u16,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawPort {
    name: String,
    protocol: String,
    port: u16,
    node_port: u16,
    target_port: RawTargetPort,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawTargetPort {
    Number(i64),
    Name(String),
}

impl Default for RawTargetPort {
    fn default() -> Self {
        Self::Name(String::new())
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawAffinity {
    #[serde(rename = "clientIP", deserialize_with = "or_default")]
    client_ip: RawClientIp,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawClientIp {
    timeout_seconds: Option<u32>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawStatus {
    load_balancer: RawBalancer,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawBalancer {
    #[serde(deserialize_with = "or_default")]
    ingress: Vec<RawIngress>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawIngress {
    ip: String,
    ip_mode: Option<String>,
}

fn protocol(name: &str) -> Protocol {
    match name {
        "UDP" => Protocol::Udp,
        "SCTP" => Protocol::Sctp,
        _ => Protocol::Tcp,
    }
}

fn policy(name: Option<&str>) -> Policy {
    if name == Some("Local") { Policy::Local } else { Policy::Cluster }
}

fn addresses<'a>(texts: impl IntoIterator<Item = &'a str>) -> Vec<IpAddr> {
    texts.into_iter().filter_map(|text| text.trim().parse().ok()).collect()
}

impl RawSpec {
    fn kind(&self) -> ServiceType {
        match self.kind.as_str() {
            "NodePort" => ServiceType::NodePort,
            "LoadBalancer" => ServiceType::LoadBalancer,
            "ExternalName" => ServiceType::ExternalName,
            _ => ServiceType::ClusterIp,
        }
    }

    fn cluster_ips(&self) -> Vec<IpAddr> {
        match self.cluster_ips.is_empty() {
            true => addresses([self.cluster_ip.as_str()]),
            false => addresses(self.cluster_ips.iter().map(String::as_str)),
        }
    }

    /// A range that holds a whole family allows everybody of it, so it says nothing: it and its
    /// family's others are left out.
    fn source_ranges(&self) -> Vec<Cidr> {
        let texts = self.load_balancer_source_ranges.iter();
        let all: Vec<Cidr> = texts.filter_map(|text| text.trim().parse().ok()).collect();
        let open = |family: Family| all.iter().any(|c| c.family() == family && c.prefix() == 0);
        all.iter().filter(|cidr| !open(cidr.family())).copied().collect()
    }

    fn affinity(&self) -> Option<u32> {
        let seconds = self.session_affinity_config.client_ip.timeout_seconds;
        (self.session_affinity == "ClientIP").then(|| seconds.unwrap_or(AFFINITY_SECONDS))
    }

    /// Only where a load balancer has to be told.
    fn health_check_node_port(&self) -> u16 {
        let asks = self.kind() == ServiceType::LoadBalancer
            && policy(self.external_traffic_policy.as_deref()) == Policy::Local;
        if asks { self.health_check_node_port } else { 0 }
    }
}

fn service_port(raw: RawPort) -> ServicePort {
    let target = match raw.target_port {
        RawTargetPort::Number(number) => number.to_string(),
        RawTargetPort::Name(name) => name,
    };
    let RawPort { name, port, node_port, .. } = raw;
    ServicePort { name, protocol: protocol(&raw.protocol), port, node_port, target }
}

/// A Service.
pub(crate) fn service(bytes: &[u8]) -> Result<(Key, Service), serde_json::Error> {
    let RawService { metadata, spec, status } = serde_json::from_slice(bytes)?;
    let vip = |ingress: &&RawIngress| ingress.ip_mode.as_deref().is_none_or(|mode| mode == "VIP");
    let ingress = status.load_balancer.ingress.iter().filter(vip);
    let kind = spec.kind();
    // What is not for outside has no external policy, as the API's accessors say.
    let external = match kind {
        ServiceType::NodePort | ServiceType::LoadBalancer => true,
        _ => !spec.external_ips.is_empty(),
    };
    let external_policy = policy(spec.external_traffic_policy.as_deref().filter(|_| external));
    let service = Service {
        kind,
        cluster_ips: spec.cluster_ips(),
        headless: spec.cluster_ip == "None",
        external_policy,
        internal_policy: policy(spec.internal_traffic_policy.as_deref()),
        source_ranges: spec.source_ranges(),
        affinity: spec.affinity(),
        health_check_node_port: spec.health_check_node_port(),
        external_ips: addresses(spec.external_ips.iter().map(String::as_str)),
        ingress_ips: addresses(ingress.map(|ingress| ingress.ip.as_str())),
        selects: !spec.selector.is_empty(),
        publish_not_ready: spec.publish_not_ready_addresses,
        traffic_distribution: spec.traffic_distribution.unwrap_or_default(),
        external_name: spec.external_name,
        ports: spec.ports.into_iter().map(service_port).collect(),
        unproxied: metadata.unproxied(),
    };
    Ok((metadata.key(), service))
}

#[derive(Deserialize)]
struct RawSlice {
    metadata: Metadata,
    #[serde(default, deserialize_with = "or_default")]
    endpoints: Vec<RawEndpoint>,
    #[serde(default, deserialize_with = "or_default")]
    ports: Vec<RawEndpointPort>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawEndpoint {
    #[serde(deserialize_with = "or_default")]
    addresses: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    conditions: RawConditions,
    hostname: Option<String>,
    node_name: Option<String>,
    zone: Option<String>,
    target_ref: Option<RawTarget>,
    #[serde(deserialize_with = "or_default")]
    hints: RawHints,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawConditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawTarget {
    kind: String,
    namespace: String,
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawHints {
    #[serde(deserialize_with = "or_default")]
    for_zones: Vec<RawHint>,
    #[serde(deserialize_with = "or_default")]
    for_nodes: Vec<RawHint>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawHint {
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawEndpointPort {
    name: Option<String>,
    protocol: Option<String>,
    port: Option<u16>,
}

fn endpoint(raw: RawEndpoint) -> Option<Endpoint> {
    let names = |hints: Vec<RawHint>| hints.into_iter().map(|hint| hint.name).collect();
    Some(Endpoint {
        address: raw.addresses.first()?.parse().ok()?,
        hostname: raw.hostname.unwrap_or_default(),
        node_name: raw.node_name.unwrap_or_default(),
        zone: raw.zone.unwrap_or_default(),
        target: raw.target_ref.map(|RawTarget { kind, namespace, name }| Target {
            kind,
            namespace,
            name,
        }),
        ready: raw.conditions.ready.unwrap_or(true),
        serving: raw.conditions.serving.unwrap_or(true),
        terminating: raw.conditions.terminating.unwrap_or(false),
        for_zones: names(raw.hints.for_zones),
        for_nodes: names(raw.hints.for_nodes),
    })
}

fn endpoint_port(raw: RawEndpointPort) -> EndpointPort {
    EndpointPort {
        name: raw.name.unwrap_or_default(),
        protocol: protocol(raw.protocol.as_deref().unwrap_or("TCP")),
        port: raw.port.unwrap_or(0),
    }
}

/// An EndpointSlice, by its own key; `None` for one that belongs to no Service.
pub(crate) fn slice(bytes: &[u8]) -> Result<(Key, Option<Slice>), serde_json::Error> {
    let RawSlice { metadata, endpoints, ports } = serde_json::from_slice(bytes)?;
    let service = metadata.labels.get(SERVICE_NAME).filter(|name| !name.is_empty());
    let slice = service.map(|name| Slice {
        service: Key { namespace: metadata.namespace.clone(), name: name.clone() },
        ports: ports.into_iter().map(endpoint_port).collect(),
        endpoints: endpoints.into_iter().filter_map(endpoint).collect(),
        unproxied: metadata.unproxied(),
    });
    Ok((metadata.key(), slice))
}
