//! What is mounted into a container, and where.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::RefCell;

use knarr_oci::cri;
use knarr_typed::k8s_openapi::api::core::v1::VolumeMount;
use knarr_typed::{Container, Pod};

use crate::config::{ConfigError, Given};
use crate::env::expand;
use crate::volumes::is_read_only;

/// The mounts of a container: files that all containers see, then its own in their order.
pub(crate) fn mounts(
    pod: &Pod,
    container: &Container,
    given: &Given,
) -> Result<Vec<cri::Mount>, ConfigError> {
    let own = container.volume_mounts.as_deref().unwrap_or_default();
    let taken = |inside: &str| own.iter().any(|mount| mount.mount_path == inside);
    let files = given.files.iter().filter(|(inside, _)| !taken(inside));
    let files = files.map(|(inside, outside)| cri::Mount {
        container_path: inside.clone(),
        host_path: outside.clone(),
        ..cri::Mount::default()
    });
    let mut mounts: Vec<cri::Mount> = files.collect();
    for mount in own {
        mounts.push(volume_mount(pod, container, mount, given)?);
    }
    Ok(mounts)
}

fn volume_mount(
    pod: &Pod,
    container: &Container,
    mount: &VolumeMount,
    given: &Given,
) -> Result<cri::Mount, ConfigError> {
    let volume = given.volumes.get(&mount.name).ok_or_else(|| {
        format!("cannot find volume {:?} to mount into container {:?}", mount.name, container.name)
    })?;
    let propagation = match mount.mount_propagation.as_deref() {
        None | Some("None") => cri::MountPropagation::Private,
        Some("Bidirectional") => cri::MountPropagation::Bidirectional,
        Some("HostToContainer") => cri::MountPropagation::HostToContainer,
        Some(other) => return Err(format!("invalid MountPropagation mode: {other:?}")),
    };
    Ok(cri::Mount {
        container_path: mount.mount_path.clone(),
        host_path: volume.clone(),
        sub_path: sub_path(mount, &given.envs)?,
        readonly: mount.read_only.unwrap_or(false) || is_read_only(pod, &mount.name),
        recursive_read_only: recursive_read_only(mount)
            .map_err(|why| format!("failed to resolve recursive read-only mode: {why}"))?,
        propagation,
    })
}

/// The part of the volume that is mounted, empty for all of it.
fn sub_path(mount: &VolumeMount, envs: &[(String, String)]) -> Result<String, ConfigError> {
    let mut path = mount.sub_path.clone().unwrap_or_default();
    if let Some(expr) = mount.sub_path_expr.as_ref().filter(|expr| !expr.is_empty()) {
        path = expanded(expr, envs)?;
    }
    if path.starts_with('/') {
        return Err(format!("error SubPath `{path}` must not be an absolute path"));
    }
    if path.split('/').any(|part| part == "..") {
        return Err(format!("unable to provision SubPath `{path}`: must not contain '..'"));
    }
    Ok(path)
}

fn expanded(expr: &str, envs: &[(String, String)]) -> Result<String, ConfigError> {
    let missing = RefCell::new(BTreeSet::new());
    let path = expand(expr, |name| {
        let value = envs.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        if value.as_ref().is_none_or(String::is_empty) {
            missing.borrow_mut().insert(name.to_owned());
        }
        value
    });
    let missing: Vec<String> = missing.into_inner().into_iter().collect();
    if missing.is_empty() {
        return Ok(path);
    }
    Err(format!("missing value for {}", missing.join(", ")))
}

fn recursive_read_only(mount: &VolumeMount) -> Result<bool, ConfigError> {
    let name = &mount.name;
    let asked = mount.recursive_read_only.as_deref().unwrap_or("Disabled");
    if asked == "Disabled" {
        return Ok(false);
    }
    if !mount.read_only.unwrap_or(false) {
        return Err(format!(
            "volume {name:?} requested recursive read-only mode, but it is not read-only"
        ));
    }
    match mount.mount_propagation.as_deref() {
        None | Some("None") if ["Enabled", "IfPossible"].contains(&asked) => Ok(true),
        None | Some("None") => Err(format!("unknown recursive read-only mode {asked:?}")),
        Some(other) => Err(format!(
            "volume {name:?} requested recursive read-only mode, but it is not compatible with \
             propagation {other:?}"
        )),
    }
}

/// What a person reads when a part of a volume cannot be mounted; nothing of the node is told.
pub fn sub_path_failed(container: &Container, mount: &cri::Mount, step: SubPathStep) -> String {
    let own = container.volume_mounts.iter().flatten();
    let own = { own }.find(|own| own.mount_path == mount.container_path);
    let volume = own.map_or("", |own| own.name.as_str());
    let what = match step {
        SubPathStep::Make => "failed to create subPath directory for",
        SubPathStep::Open => "failed to prepare subPath for",
    };
    format!("{what} volumeMount {volume:?} of container {:?}", container.name)
}

/// What is done about a part of a volume before it is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubPathStep {
    /// It is made, where it is missing.
    Make,
    /// It is opened.
    Open,
}
