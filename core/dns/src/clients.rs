//! Who asks: the namespaces of the Pods on a node, by their addresses.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::IpAddr;

use knarr_reconcile::Change;
use serde::Deserialize;

#[derive(Deserialize)]
struct Pod {
    metadata: Metadata,
    #[serde(default)]
    status: Status,
}

#[derive(Deserialize)]
struct Metadata {
    uid: String,
    namespace: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    pod_i_ps: Vec<Address>,
    phase: String,
}

#[derive(Deserialize)]
struct Address {
    ip: IpAddr,
}

/// The Pods of a node, as far as DNS needs to know them.
#[derive(Clone, Debug, Default)]
pub struct Clients {
    by_uid: BTreeMap<String, (String, Vec<IpAddr>)>,
    by_address: BTreeMap<IpAddr, String>,
}

impl Clients {
    /// Takes a watch item of the node's Pods in.
    ///
    /// # Errors
    /// When an object is no Pod.
    pub fn apply(&mut self, change: &Change) -> Result<(), serde_json::Error> {
        match change {
            Change::Put(bytes, _) => {
                let pod: Pod = serde_json::from_slice(bytes)?;
                self.forget(&pod.metadata.uid);
                let ended = matches!(pod.status.phase.as_str(), "Succeeded" | "Failed");
                if !ended {
                    self.learn(pod);
                }
            }
            Change::Deleted(bytes, _) => {
                self.forget(&serde_json::from_slice::<Pod>(bytes)?.metadata.uid);
            }
            Change::Restarted => *self = Self::default(),
            Change::Synced(_) => {}
        }
        Ok(())
    }

    fn learn(&mut self, pod: Pod) {
        let Metadata { uid, namespace } = pod.metadata;
        let addresses: Vec<IpAddr> = pod.status.pod_i_ps.iter().map(|address| address.ip).collect();
        for address in &addresses {
            self.by_address.insert(*address, namespace.clone());
        }
        self.by_uid.insert(uid, (namespace, addresses));
    }

    fn forget(&mut self, uid: &str) {
        let Some((_, addresses)) = self.by_uid.remove(uid) else { return };
        for address in addresses {
            self.by_address.remove(&address);
        }
    }

    /// The namespace of the Pod with this address. Pods on the node's own network have none.
    pub fn namespace_of(&self, address: IpAddr) -> Option<&str> {
        self.by_address.get(&address).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    #[test]
    fn an_address_belongs_to_the_pod_that_has_it_now() {
        let mut clients = Clients::default();
        let pod = |uid: &str, namespace: &str, phase: &str| {
            let text = format!(
                r#"{{"metadata":{{"uid":"{uid}","namespace":"{namespace}"}},
                    "status":{{"phase":"{phase}","podIPs":[{{"ip":"10.42.0.2"}}]}}}}"#
            );
            Change::Put(text.into(), 1)
        };
        let address = "10.42.0.2".parse().expect("an address");
        clients.apply(&pod("1", "a", "Running")).expect("a Pod");
        assert_eq!(clients.namespace_of(address), Some("a"));
        clients.apply(&pod("1", "a", "Succeeded")).expect("a Pod");
        assert_eq!(clients.namespace_of(address), None);
        clients.apply(&pod("2", "b", "Running")).expect("a Pod");
        assert_eq!(clients.namespace_of(address), Some("b"));
    }
}
