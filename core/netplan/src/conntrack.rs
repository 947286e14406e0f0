//! Which tracked UDP flows must be forgotten.
//!
//! A UDP flow never ends by itself while its client sends: one that was begun before its Service
//! had endpoints, or goes to one that is gone, would stay wrong for good.

use alloc::collections::{BTreeMap, BTreeSet};
use core::net::IpAddr;

use crate::model::{Key, Protocol, Service, ServicePort, Services};
use knarr_api::ip::Family;

/// A tracked UDP flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// Who sends.
    pub source: (IpAddr, u16),
    /// Where to, as sent.
    pub destination: (IpAddr, u16),
    /// Who answers.
    pub answers: (IpAddr, u16),
}

type Frontends = BTreeMap<(Option<IpAddr>, u16), BTreeSet<(IpAddr, u16)>>;

/// Everybody who would answer for a port, whatever the policies: flows that exist may go on.
fn serving(services: &Services, key: &Key, port: &ServicePort) -> BTreeSet<(IpAddr, u16)> {
    let found = Family::ALL
        .into_iter()
        .flat_map(|family| services.endpoints(key, (&port.name, port.protocol), family));
    found.filter(|(_, endpoint)| endpoint.serving).map(|(at, _)| at).collect()
}

fn add(
    frontends: &mut Frontends,
    service: &Service,
    port: &ServicePort,
    to: &BTreeSet<(IpAddr, u16)>,
) {
    let ips = service.cluster_ips.iter().chain(&service.external_ips).chain(&service.ingress_ips);
    frontends.extend(ips.map(|ip| ((Some(*ip), port.port), to.clone())));
    if port.node_port != 0 {
        frontends.insert((None, port.node_port), to.clone());
    }
}

/// Those of `flows` that lead to nobody who serves, among the Services that changed. A Service
/// that has nobody at all keeps its flows, as upstream does.
pub fn stale<'a>(
    services: &Services,
    changed: impl IntoIterator<Item = &'a Key>,
    flows: impl IntoIterator<Item = Flow>,
) -> BTreeSet<Flow> {
    let mut frontends = Frontends::new();
    for key in changed {
        let Some(service) = services.get(key).filter(|service| service.is_proxied()) else {
            continue;
        };
        for port in service.ports.iter().filter(|port| port.protocol == Protocol::Udp) {
            let to = serving(services, key, port);
            if !to.is_empty() {
                add(&mut frontends, service, port, &to);
            }
        }
    }
    let wrong = |flow: &Flow| {
        let (ip, port) = flow.destination;
        let to = frontends.get(&(Some(ip), port)).or_else(|| frontends.get(&(None, port)));
        to.is_some_and(|to| !to.contains(&flow.answers))
    };
    flows.into_iter().filter(wrong).collect()
}
