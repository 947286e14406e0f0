//! Taking down what is left: of one sandbox, or of a whole instance after any kind of death.
//!
//! Processes are found by control group, never by a remembered process id.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use knarr_oci::spec::SandboxSpec;
use rustix::mount::UnmountFlags;

use crate::cgroup::Hierarchies;
use crate::state::{self, SandboxDir, SandboxRecord};

/// Kills and removes all sandboxes of a state folder, and the folder.
///
/// For use when no runtime has the folder open.
///
/// # Errors
/// Something does not end or cannot be removed.
pub fn cleanup(state_dir: &Path) -> io::Result<()> {
    let hierarchies = Hierarchies::detect()?;
    for id in state::folder_names(&state_dir.join("sandboxes")) {
        remove_sandbox(&hierarchies, &SandboxDir::new(state_dir, &id))?;
    }
    unmount_below(state_dir)?;
    state::remove_dir(state_dir)
}

/// Kills and removes a sandbox, however much of it was made.
pub(crate) fn remove_sandbox(hierarchies: &Hierarchies, dir: &SandboxDir) -> io::Result<()> {
    // Without its record nothing but the folder has been made.
    if let Ok(record) = state::read::<SandboxRecord>(&dir.record()) {
        take_down(hierarchies, dir, &record.spec)?;
    }
    unmount_below(&dir.0)?;
    state::remove_dir(&dir.0)
}

/// Kills all processes of a sandbox, the shim last, and removes its groups.
///
/// The Pod's group stays while another sandbox of the same Pod lives in it.
pub(crate) fn take_down(
    hierarchies: &Hierarchies,
    dir: &SandboxDir,
    spec: &SandboxSpec,
) -> io::Result<()> {
    let containers = dir.container_ids().into_iter();
    let mut groups: Vec<String> =
        containers.map(|id| format!("{}/{id}", spec.cgroup_parent)).collect();
    groups.push(spec.cgroup.clone());
    for group in &groups {
        hierarchies.kill(group)?;
        hierarchies.remove(group)?;
    }
    hierarchies.remove_if_empty(&spec.cgroup_parent);
    Ok(())
}

/// Unmounts everything at or below a folder, the latest first.
pub fn unmount_below(dir: &Path) -> io::Result<()> {
    let Ok(dir) = fs::canonicalize(dir) else { return Ok(()) };
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    let mut ours: Vec<PathBuf> = points.filter(|point| point.starts_with(&dir)).collect();
    ours.reverse();
    ours.iter().try_for_each(|point| {
        Ok(rustix::mount::unmount(point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?)
    })
}

/// Undoes the octal escapes of the mount table.
fn unescape(text: &str) -> PathBuf {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    let plain = escapes.iter().fold(text.to_string(), |text, (from, to)| text.replace(from, to));
    PathBuf::from(plain)
}
