//! What a load balancer is told about a Service that only wants nodes with endpoints.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;

use crate::model::{Key, Services};
use knarr_api::ip::Family;

/// A Service's endpoints on this node, asked for at a port of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalEndpoints {
    /// The Service.
    pub service: Key,
    /// Ready ones, counted by address.
    pub count: usize,
}

impl LocalEndpoints {
    /// Those of a Service, and the port where it is asked for; `None` if it has no such port.
    pub fn of(services: &Services, key: &Key, node: &str) -> Option<(u16, Self)> {
        let service = services.get(key).filter(|service| service.is_proxied())?;
        let port = Some(service.health_check_node_port).filter(|port| *port != 0)?;
        let mut addresses = BTreeSet::new();
        for family in Family::ALL {
            for at in &service.ports {
                let found = services.endpoints(key, (&at.name, at.protocol), family);
                let here = found.into_iter().filter(|(_, e)| e.ready && e.node_name == node);
                addresses.extend(here.map(|((address, _), _)| address));
            }
        }
        Some((port, Self { service: key.clone(), count: addresses.len() }))
    }

    /// The status of the answer.
    pub fn status(&self) -> u16 {
        if self.count > 0 { 200 } else { 503 }
    }

    /// The answer, JSON, as upstream's.
    pub fn body(&self) -> String {
        let Key { namespace, name } = &self.service;
        let count = self.count;
        format!(
            "{{\"service\":{{\"namespace\":\"{namespace}\",\"name\":\"{name}\"}},\
             \"localEndpoints\":{count},\"serviceProxyHealthy\":true}}"
        )
    }
}
