//! A Pod's folders, volumes and the files that all its containers see.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use knarr_oci::cri::Mount;
use knarr_podlife::config::Paths;
use knarr_podlife::mounts::{SubPathStep, sub_path_failed};
use knarr_podlife::volumes::{Content, File};
use knarr_sandbox::{beneath, unmount_below};
use knarr_typed::Container;
use rustix::mount::MountFlags;
use tracing::warn;

use crate::atomic;

pub(crate) fn dir(path: &Path, mode: u32) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(mode).create(path)
}

fn volume_dir(paths: &Paths, name: &str) -> PathBuf {
    Path::new(&paths.pod).join("volumes").join(name)
}

fn failed(name: &str) -> impl Fn(String) -> String {
    move |why| format!("MountVolume.SetUp failed for volume {name:?} : {why}")
}

/// Makes a Pod's folders and volumes, for a group if one is named; the host path of each volume by
/// name. Safe to repeat.
///
/// # Errors
/// The text says which volume and why.
pub(crate) fn prepare_pod(
    paths: &Paths,
    contents: &[(String, Content)],
    group: Option<u32>,
) -> Result<BTreeMap<String, String>, String> {
    let folders =
        dir(Path::new(&paths.pod), 0o750).and_then(|()| dir(Path::new(&paths.logs), 0o755));
    folders.map_err(|error| error.to_string())?;
    let mut made = BTreeMap::new();
    for (name, content) in contents {
        let path = volume(&volume_dir(paths, name), content, group).map_err(failed(name))?;
        made.insert(name.clone(), path.display().to_string());
    }
    Ok(made)
}

/// Writes anew what changed of a Pod's volumes; the names of those volumes.
///
/// # Errors
/// The text says which volume and why.
pub(crate) fn rewrite(
    paths: &Paths,
    contents: &[(String, Content)],
    group: Option<u32>,
) -> Result<Vec<String>, String> {
    let mut changed = Vec::new();
    for (name, content) in contents {
        let Content::Files(files, _) = content else { continue };
        let written = atomic::replace(&volume_dir(paths, name), files, group, crate::now());
        if written.map_err(|error| failed(name)(error.to_string()))? {
            changed.push(name.clone());
        }
    }
    Ok(changed)
}

fn volume(own: &Path, content: &Content, group: Option<u32>) -> Result<PathBuf, String> {
    let made = match content {
        Content::Host(path, kind) => {
            host_path(Path::new(path), kind)?;
            return Ok(PathBuf::from(path));
        }
        Content::Empty { memory, limit } => empty(own, memory.then_some(*limit), group),
        Content::Files(files, folders) => written(own, files, folders, group),
    };
    made.map_err(|error| error.to_string())?;
    Ok(own.to_owned())
}

/// An empty folder, in memory when a bound is given (0 for none).
fn empty(own: &Path, memory: Option<i64>, group: Option<u32>) -> io::Result<()> {
    let fresh = !own.exists();
    dir(own, 0o777)?;
    if let Some(limit) = memory {
        if is_mount(own)? {
            return Ok(());
        }
        let data = if limit > 0 { format!("size={limit}") } else { String::new() };
        let data = std::ffi::CString::new(data).expect("digits have no NUL");
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        rustix::mount::mount("tmpfs", own, "tmpfs", flags, data.as_c_str())?;
    } else if !fresh {
        return Ok(());
    }
    fs::set_permissions(own, fs::Permissions::from_mode(0o777))?;
    group.map_or(Ok(()), |group| give_to(own, group, 0o660))
}

fn is_mount(path: &Path) -> io::Result<bool> {
    let above = path.parent().unwrap_or(path);
    Ok(fs::metadata(path)?.dev() != fs::metadata(above)?.dev())
}

fn written(own: &Path, files: &[File], folders: &[String], group: Option<u32>) -> io::Result<()> {
    dir(own, 0o755)?;
    atomic::replace(own, files, group, crate::now())?;
    folders.iter().try_for_each(|folder| dir(&own.join(folder), 0o755))?;
    group.map_or(Ok(()), |group| give(own, group, 0o440))
}

/// Gives a folder and all in it to a group, with these permissions for files at least.
pub(crate) fn give_to(path: &Path, group: u32, files: u32) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            give_to(&entry?.path(), group, files)?;
        }
    }
    give(path, group, files)
}

/// What is made in such a folder belongs to the group, too (the set-group-id bit).
fn give(path: &Path, group: u32, files: u32) -> io::Result<()> {
    lchown(path, None, Some(group))?;
    let found = fs::symlink_metadata(path)?;
    if found.is_symlink() {
        return Ok(());
    }
    let more = if found.is_dir() { files | 0o2110 } else { files };
    let mode = found.permissions().mode() | more;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Checks (or makes) what a hostPath volume asks for.
fn host_path(path: &Path, kind: &str) -> Result<(), String> {
    let is = |wanted: &str, found: bool| {
        let shown = path.display();
        if found {
            Ok(())
        } else {
            Err(format!("hostPath type check failed: {shown} is not a {wanted}"))
        }
    };
    let text = |error: io::Error| error.to_string();
    let kind_of = fs::metadata(path).ok().map(|metadata| metadata.file_type());
    match kind {
        "DirectoryOrCreate" if !path.exists() => dir(path, 0o755).map_err(text),
        "FileOrCreate" if !path.exists() => fs::File::create(path).map(drop).map_err(text),
        "Directory" | "DirectoryOrCreate" => is("directory", path.is_dir()),
        "File" | "FileOrCreate" => is("file", path.is_file()),
        "Socket" => is("socket file", kind_of.is_some_and(|kind| kind.is_socket())),
        "CharDevice" => is("character device", kind_of.is_some_and(|kind| kind.is_char_device())),
        "BlockDevice" => is("block device", kind_of.is_some_and(|kind| kind.is_block_device())),
        "" => Ok(()),
        other => Err(format!("{other} is an invalid volume type")),
    }
}

/// Makes the parts of volumes that a container mounts, as far as they are missing.
///
/// # Errors
/// Such a part cannot be had; the text tells nothing of the node.
pub(crate) fn prepare_sub_paths(container: &Container, mounts: &[Mount]) -> Result<(), String> {
    for mount in mounts.iter().filter(|mount| !mount.sub_path.is_empty()) {
        let (volume, sub_path) = (Path::new(&mount.host_path), &mount.sub_path);
        let missing = matches!(beneath::check(volume, sub_path),
            Err(error) if error.kind() == io::ErrorKind::NotFound);
        let (step, result) = match missing {
            true => (SubPathStep::Make, beneath::make_dir(volume, sub_path)),
            false => (SubPathStep::Open, beneath::check(volume, sub_path)),
        };
        result.map_err(|error| {
            warn!(container = container.name, sub_path, %error, "a part of a volume is of no use");
            sub_path_failed(container, mount, step)
        })?;
    }
    Ok(())
}

pub(crate) fn absent(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// What a Pod's containers find below `/etc`.
pub(crate) struct Names {
    pub(crate) hostname: String,
    pub(crate) hosts: String,
    pub(crate) resolv_conf: String,
}

/// Writes `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` of a Pod's containers.
pub(crate) fn write_names(paths: &Paths, names: &Names) -> io::Result<()> {
    let pod = Path::new(&paths.pod);
    fs::write(pod.join("hosts"), &names.hosts)?;
    fs::write(pod.join("hostname"), format!("{}\n", names.hostname))?;
    fs::write(pod.join("resolv.conf"), &names.resolv_conf)
}

/// The files that every container of a Pod sees: (path inside, path outside).
pub(crate) fn shared(paths: &Paths) -> Vec<(String, String)> {
    [("/etc/hosts", "hosts"), ("/etc/hostname", "hostname"), ("/etc/resolv.conf", "resolv.conf")]
        .map(|(inside, name)| (inside.to_owned(), format!("{}/{name}", paths.pod)))
        .to_vec()
}

/// Removes a Pod's folders, volumes and logs. Safe to repeat.
pub(crate) fn remove_pod(paths: &Paths) -> io::Result<()> {
    // Volumes in memory, and what containers mounted in theirs for the node to see: nothing below
    // a mount is the Pod's to remove.
    unmount_below(Path::new(&paths.pod))?;
    fs::remove_dir_all(&paths.pod).or_else(absent)?;
    fs::remove_dir_all(&paths.logs).or_else(absent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_path_is_what_it_is_said_to_be() {
        let dir = tempfile::tempdir().expect("a folder");
        let place = |name: &str| dir.path().join(name);
        fs::write(place("file"), "").expect("written");
        let _socket = std::os::unix::net::UnixListener::bind(place("socket")).expect("bound");
        let (file, socket) = (place("file"), place("socket"));
        let null = PathBuf::from("/dev/null");
        for (path, kind, wrong) in [
            (dir.path(), "Directory", None),
            (dir.path(), "DirectoryOrCreate", None),
            (dir.path(), "File", Some("a file")),
            (&file, "File", None),
            (&file, "FileOrCreate", None),
            (&file, "Directory", Some("a directory")),
            (&file, "DirectoryOrCreate", Some("a directory")),
            (dir.path(), "FileOrCreate", Some("a file")),
            (&socket, "Socket", None),
            (&file, "Socket", Some("a socket file")),
            (&null, "CharDevice", None),
            (&file, "CharDevice", Some("a character device")),
            (&null, "BlockDevice", Some("a block device")),
            (&place("none"), "", None),
            (&place("none"), "Directory", Some("a directory")),
            (&place("new/folder"), "DirectoryOrCreate", None),
            (&place("new/folder"), "Directory", None),
            (&place("new/file"), "FileOrCreate", None),
            (&place("new/file"), "File", None),
        ] {
            let shown = path.display();
            let text = |wrong| format!("hostPath type check failed: {shown} is not {wrong}");
            assert_eq!(host_path(path, kind).err(), wrong.map(text), "{shown} {kind}");
        }
        assert_eq!(host_path(&file, "Odd").unwrap_err(), "Odd is an invalid volume type");
        assert!(!place("none").exists());
    }

    #[test]
    fn a_group_may_read_what_it_is_given() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("file");
        fs::write(&file, "").expect("written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("changed");
        fs::create_dir(dir.path().join("folder")).expect("made");
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).expect("linked");
        let before = fs::metadata("/etc/passwd").expect("there");
        let own = fs::metadata(dir.path()).expect("there").gid();
        give_to(dir.path(), own, 0o440).expect("given");
        let mode = |name: &str| fs::metadata(dir.path().join(name)).expect("there").mode() & 0o7777;
        assert_eq!((mode("file"), mode("folder")), (0o640, 0o2755));
        let after = fs::metadata("/etc/passwd").expect("there");
        assert_eq!((before.mode(), before.gid()), (after.mode(), after.gid()));
    }
}
