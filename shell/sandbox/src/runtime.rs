//! The agent's side of the embedded runtime: CRI's RuntimeService as blocking calls.

use std::path::PathBuf;
use std::time::Duration;

use knarr_oci::cri;
use knarr_oci::image::ImageConfig;
use knarr_oci::spec::{NetworkNs, Rootfs};

use crate::Error;

/// Where a runtime keeps its state and how it starts shims.
#[derive(Clone, Debug)]
pub struct Config {
    /// State folder; everything below it belongs to this runtime.
    pub state_dir: PathBuf,
    /// Executable and leading arguments of a shim, normally `/proc/self/exe pod-shim`.
    pub shim: Vec<String>,
}

/// What happened without being asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A container's first process ended; the status says how.
    ContainerExited(Box<cri::ContainerStatus>),
    /// A sandbox is not ready any more, because its shim died.
    SandboxNotReady(String),
}

/// What `create_container` needs.
pub struct CreateContainer<'a> {
    /// Sandbox it goes into.
    pub sandbox_id: &'a str,
    /// What is asked for.
    pub config: &'a cri::ContainerConfig,
    /// Configuration of the image.
    pub image: &'a ImageConfig,
    /// Read-only layers of the image.
    pub rootfs: Rootfs,
}

/// The embedded runtime. Calls block; share it by `Arc` and call from blocking tasks.
pub struct Runtime {
    config: Config,
}

/// Receiving end of the events; blocking `recv`.
pub type Events = std::sync::mpsc::Receiver<Event>;

#[allow(unused_variables, missing_docs, clippy::missing_errors_doc)]
#[rustfmt::skip]
impl Runtime {
    /// Opens the state folder, adopts what runs, reports what ended meanwhile as events.
    pub fn open(config: Config) -> Result<(Runtime, Events), Error> { unreachable!() }
    pub fn run_pod_sandbox(&self, config: &cri::PodSandboxConfig, netns: NetworkNs) -> Result<String, Error> { unreachable!() }
    pub fn stop_pod_sandbox(&self, id: &str) -> Result<(), Error> { unreachable!() }
    pub fn remove_pod_sandbox(&self, id: &str) -> Result<(), Error> { unreachable!() }
    pub fn pod_sandbox_status(&self, id: &str) -> Result<cri::PodSandboxStatus, Error> { unreachable!() }
    pub fn list_pod_sandbox(&self) -> Vec<cri::PodSandboxStatus> { unreachable!() }
    pub fn create_container(&self, request: CreateContainer<'_>) -> Result<String, Error> { unreachable!() }
    pub fn start_container(&self, id: &str) -> Result<(), Error> { unreachable!() }
    pub fn stop_container(&self, id: &str, timeout: Duration) -> Result<(), Error> { unreachable!() }
    pub fn remove_container(&self, id: &str) -> Result<(), Error> { unreachable!() }
    pub fn container_status(&self, id: &str) -> Result<cri::ContainerStatus, Error> { unreachable!() }
    pub fn list_containers(&self) -> Vec<cri::ContainerStatus> { unreachable!() }
    pub fn update_container_resources(&self, id: &str, resources: &cri::LinuxContainerResources) -> Result<(), Error> { unreachable!() }
    pub fn reopen_container_log(&self, id: &str) -> Result<(), Error> { unreachable!() }
    pub fn exec_sync(&self, id: &str, command: &[String], timeout: Duration) -> Result<cri::ExecSyncResponse, Error> { unreachable!() }
}
