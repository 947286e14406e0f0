//! What a plugin is told: its environment and its standard input.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::list::{List, Plugin};

/// What a plugin is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Connect a Pod.
    Add,
    /// Undo that.
    Del,
}

impl Verb {
    fn command(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
        }
    }

    /// How errors call it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Del => "delete",
        }
    }
}

/// The connection that a Pod wants.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Wanted {
    /// The sandbox.
    pub sandbox: String,
    /// A path that names its network namespace; empty when that is gone.
    pub netns: String,
    /// The name of the link inside.
    pub interface: String,
    /// The Pod's namespace.
    pub namespace: String,
    /// The Pod's name.
    pub name: String,
    /// The Pod's uid.
    pub uid: String,
    /// Ports of the node that lead to the Pod.
    pub port_mappings: Vec<PortMapping>,
    /// How much may flow.
    pub bandwidth: Option<Bandwidth>,
}

/// A port of the node that leads to the Pod, as the capability `portMappings` spells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// On the node.
    pub host_port: i32,
    /// In the Pod.
    pub container_port: i32,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// The node's address; all of them when empty.
    #[serde(rename = "hostIP", default)]
    pub host_ip: String,
}

/// Bits per second and bits, as the capability `bandwidth` spells it; 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bandwidth {
    /// Towards the Pod.
    pub ingress_rate: u64,
    /// Towards the Pod, at once.
    pub ingress_burst: u64,
    /// From the Pod.
    pub egress_rate: u64,
    /// From the Pod, at once.
    pub egress_burst: u64,
}

/// A connection that was begun: all that is needed to undo it, whatever the configuration says by
/// then.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attachment {
    /// The network.
    pub list: List,
    /// Whose connection.
    pub wanted: Wanted,
    /// Where its plugins were looked for.
    pub bin_dirs: Vec<String>,
    /// Which namespace the path named: the same path may name another one's later.
    pub netns_inode: u64,
    /// What the last plugin said; nothing while the connection is not complete.
    pub result: Option<Value>,
}

impl Wanted {
    /// The environment of a plugin, all of it but `PATH`. `bin_dirs` is where plugins find others.
    pub fn environment(&self, verb: Verb, bin_dirs: &[String]) -> Vec<(&'static str, String)> {
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};\
             K8S_POD_UID={}",
            self.namespace, self.name, self.sandbox, self.uid
        );
        Vec::from([
            ("CNI_COMMAND", verb.command().into()),
            ("CNI_CONTAINERID", self.sandbox.clone()),
            ("CNI_NETNS", self.netns.clone()),
            ("CNI_IFNAME", self.interface.clone()),
            ("CNI_ARGS", args),
            ("CNI_PATH", bin_dirs.join(":")),
        ])
    }

    /// What of the Pod the capabilities of a plugin let it be told.
    fn runtime_config(&self, plugin: &Plugin) -> Map<String, Value> {
        let mappings = (!self.port_mappings.is_empty()).then(|| json!(self.port_mappings));
        let bandwidth = self.bandwidth.map(|bandwidth| json!(bandwidth));
        let known = [("portMappings", mappings), ("bandwidth", bandwidth)];
        let told = known.into_iter().filter(|(capability, _)| plugin.is_capable(capability));
        told.filter_map(|(capability, value)| Some((capability.into(), value?))).collect()
    }
}

impl Attachment {
    /// The standard input of one of the plugins.
    pub fn input(&self, plugin: &Plugin, verb: Verb) -> Vec<u8> {
        let List { name, version, .. } = &self.list;
        let mut config = plugin.config.clone();
        config.remove("cniVersions");
        config.insert("name".into(), name.clone().into());
        config.insert("cniVersion".into(), version.clone().into());
        let told = self.wanted.runtime_config(plugin);
        if !told.is_empty() {
            config.insert("runtimeConfig".into(), told.into());
        }
        let previous = match verb {
            Verb::Add => true,
            Verb::Del => self.list.undoes_with_result(),
        };
        if let Some(result) = self.result.as_ref().filter(|_| previous) {
            config.insert("prevResult".into(), result.clone());
        }
        serde_json::to_vec(&config).expect("keys are strings")
    }
}
