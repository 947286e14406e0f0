//! What a Pod says about its network.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use knarr_api::quantity::Quantity;
use knarr_typed::Pod;

use crate::call::{Bandwidth, PortMapping, Wanted};
use crate::list::Refused;

/// The name of a Pod's link.
const INTERFACE: &str = "eth0";
/// What upstream lets flow at once where a rate is given.
const BURST: u64 = u32::MAX as u64;

impl Wanted {
    /// The connection of a Pod's sandbox, whose network namespace a path names.
    ///
    /// # Errors
    /// An annotation about bandwidth is no quantity between 1k and 1P.
    pub fn of(pod: &Pod, sandbox: &str, netns: &str) -> Result<Self, Refused> {
        let word = |text: &Option<String>| text.clone().unwrap_or_default();
        let metadata = &pod.metadata;
        Ok(Self {
            sandbox: sandbox.into(),
            netns: netns.into(),
            interface: INTERFACE.into(),
            namespace: word(&metadata.namespace),
            name: word(&metadata.name),
            uid: word(&metadata.uid),
            port_mappings: port_mappings(pod),
            bandwidth: bandwidth(pod)?,
        })
    }
}

fn port_mappings(pod: &Pod) -> Vec<PortMapping> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    let mapped = ports.filter_map(|port| {
        Some(PortMapping {
            host_port: port.host_port.filter(|number| *number > 0)?,
            container_port: port.container_port,
            protocol: port.protocol.as_deref().unwrap_or("TCP").to_ascii_lowercase(),
            host_ip: port.host_ip.clone().unwrap_or_default(),
        })
    });
    mapped.collect()
}

fn bandwidth(pod: &Pod) -> Result<Option<Bandwidth>, Refused> {
    let rate = |direction: &str| {
        let key = format!("kubernetes.io/{direction}-bandwidth");
        let text = pod.metadata.annotations.as_ref().and_then(|all| all.get(&key));
        text.map(|text| bits(&key, text)).transpose()
    };
    let (ingress, egress) = (rate("ingress")?, rate("egress")?);
    let burst = |rate: Option<u64>| rate.map_or(0, |_| BURST);
    Ok((ingress.is_some() || egress.is_some()).then(|| Bandwidth {
        ingress_rate: ingress.unwrap_or(0),
        ingress_burst: burst(ingress),
        egress_rate: egress.unwrap_or(0),
        egress_burst: burst(egress),
    }))
}

/// Bits per second.
fn bits(key: &str, text: &str) -> Result<u64, Refused> {
    let quantity: Quantity = text
        .parse()
        .map_err(|_| Refused::from(format!("the annotation {key} is no quantity: {text:?}")))?;
    let bits = u64::try_from(quantity.value()).unwrap_or(0);
    match bits {
        1_000..=1_000_000_000_000_000 => Ok(bits),
        0..1_000 => Err(Refused::from("resource is unreasonably small (< 1kbit)".to_string())),
        _ => Err(Refused::from("resource is unreasonably large (> 1Pbit)".to_string())),
    }
}
