//! The node's half of a Pod: (pod, observed, now) to actions and status.
//!
//! [`decide`] is a function of what the API wants, what the runtime shows and the time. The node's
//! pump carries out the actions in order, stops at the first that fails, observes again and asks
//! again; so every step is safe to repeat, and a restart of the agent is just another look.
#![no_std]

extern crate alloc;

mod backoff;
pub mod checks;
pub mod config;
mod decide;
mod draining;
pub mod env;
pub mod image_gc;
pub mod logs;
pub mod mounts;
pub mod naming;
pub mod probes;
pub mod pulls;
mod restart;
pub mod services;
mod status;
pub mod termination;
pub mod tokens;
pub mod volumes;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;

use jiff::Timestamp;
use knarr_oci::cri;
use serde_json::Value;

pub use decide::{decide, grace};
pub use draining::{Served, Standing};

use crate::backoff::Backoffs;
use crate::probes::{ProbeKind, Probes};

/// What is remembered of a Pod between looks at it. Soft state: it may be lost at any time.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    pub(crate) backoffs: Backoffs,
    /// What is known from its probes.
    pub probes: Probes,
    /// Since when it is seen to go.
    pub(crate) leaving: Option<Timestamp>,
}

/// The annotation of a container that holds what its image is reported as.
pub const IMAGE_REF: &str = "io.knarr.image-ref";

pub use pulls::{ImageState, Pull, PullOutcome};

/// A step that failed, and is not tried again before its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The container's waiting reason, such as `CreateContainerError`.
    pub reason: String,
    /// What went wrong.
    pub message: String,
    /// When.
    pub at: Timestamp,
    /// How often in a row.
    pub times: u32,
}

/// What the node sees of a Pod.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Its sandboxes.
    pub sandboxes: Vec<cri::PodSandboxStatus>,
    /// Its containers, of all sandboxes.
    pub containers: Vec<cri::ContainerStatus>,
    /// Addresses of its network namespace (the node's own with hostNetwork).
    pub addresses: Vec<String>,
    /// Images by the name that the Pod gives them.
    pub images: BTreeMap<String, ImageState>,
    /// The last pull of each image, by the same name.
    pub pulls: BTreeMap<String, Pull>,
    /// The node's addresses.
    pub node_addresses: Vec<String>,
    /// Containers that could not be started, by name; the sandbox itself under the empty name.
    pub failures: BTreeMap<String, Failure>,
    /// Whether volumes and log folder are there.
    pub prepared: bool,
    /// Names of containers whose start is under way, with what runs right after it.
    pub starting: BTreeSet<String>,
    /// Ids of containers whose end is under way, and when they are killed at the latest.
    pub stopping: BTreeMap<String, Timestamp>,
    /// Whether Services send new connections to it.
    pub standing: Standing,
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make folders and volumes.
    Prepare,
    /// Make a sandbox, with its network.
    RunSandbox {
        /// How many there were before.
        attempt: u32,
    },
    /// Begin to pull the image of a container; its end is news of its own.
    Pull {
        /// The image, as the Pod names it.
        image: String,
        /// The container.
        name: String,
        /// How many runs of it there were before.
        attempt: u32,
    },
    /// Make and start a container, with its hook; its end is news of its own. Those next to each
    /// other in the list start one after the other.
    StartContainer {
        /// Its name.
        name: String,
        /// The sandbox it goes into.
        sandbox: String,
        /// How many of it there were before.
        attempt: u32,
    },
    /// End a container: its hook, SIGTERM, and SIGKILL after the grace period; its end is news of
    /// its own.
    Kill {
        /// Its id.
        id: String,
        /// Its name, for people.
        name: String,
        /// Seconds.
        grace: u64,
    },
    /// Make a probe of a container; its end is news of its own.
    Probe {
        /// The container's name.
        name: String,
        /// Which probe.
        kind: ProbeKind,
        /// The container's id.
        id: String,
    },
    /// Remove what is left of a container.
    RemoveContainer {
        /// Its id.
        id: String,
    },
    /// End a sandbox and its network.
    StopSandbox {
        /// Its id.
        id: String,
    },
    /// Remove what is left of a sandbox.
    RemoveSandbox {
        /// Its id.
        id: String,
    },
    /// Remove volumes, folders and logs.
    CleanUp,
    /// Tell the API server that nothing is left.
    Forget,
}

/// An event to record about the Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodEvent {
    /// Whether something is wrong.
    pub warning: bool,
    /// Upstream's reason.
    pub reason: &'static str,
    /// What a person reads.
    pub message: String,
}

/// What comes of a look at a Pod.
#[derive(Clone, Debug, Default)]
pub struct Decision {
    /// What to do, in order.
    pub actions: Vec<Action>,
    /// The Pod's status as it should be reported.
    pub status: Value,
    /// When to look again although nothing happens.
    pub wake: Option<Timestamp>,
    /// What to tell people.
    pub events: Vec<PodEvent>,
}
