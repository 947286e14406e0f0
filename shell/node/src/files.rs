//! A Pod's folders, volumes and the files that all its containers see.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use knarr_podlife::config::Paths;
use knarr_podlife::volumes::{Content, File};
use rustix::mount::{MountFlags, UnmountFlags};

fn dir(path: &Path, mode: u32) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(mode).create(path)
}

fn volume_dir(paths: &Paths, name: &str) -> PathBuf {
    Path::new(&paths.pod).join("volumes").join(name)
}

/// Makes a Pod's folders and volumes; the host path of each volume by name. Safe to repeat.
///
/// # Errors
/// The text says which volume and why.
pub(crate) fn prepare_pod(
    paths: &Paths,
    contents: &[(String, Content)],
) -> Result<BTreeMap<String, String>, String> {
    let folders =
        dir(Path::new(&paths.pod), 0o750).and_then(|()| dir(Path::new(&paths.logs), 0o755));
    folders.map_err(|error| error.to_string())?;
    let mut made = BTreeMap::new();
    for (name, content) in contents {
        let path = volume(paths, name, content)
            .map_err(|why| format!("MountVolume.SetUp failed for volume {name:?} : {why}"))?;
        made.insert(name.clone(), path.display().to_string());
    }
    Ok(made)
}

fn volume(paths: &Paths, name: &str, content: &Content) -> Result<PathBuf, String> {
    let own = volume_dir(paths, name);
    let text = |error: io::Error| error.to_string();
    match content {
        Content::Host(path, kind) => {
            host_path(Path::new(path), kind)?;
            return Ok(PathBuf::from(path));
        }
        Content::Empty { memory, limit } => {
            let fresh = !own.exists();
            dir(&own, 0o777).map_err(text)?;
            fs::set_permissions(&own, fs::Permissions::from_mode(0o777)).map_err(text)?;
            if *memory && fresh {
                let data = if *limit > 0 { format!("size={limit}") } else { String::new() };
                let data = std::ffi::CString::new(data).expect("digits have no NUL");
                let flags = MountFlags::NOSUID | MountFlags::NODEV;
                rustix::mount::mount("tmpfs", &own, "tmpfs", flags, data.as_c_str())
                    .map_err(|error| error.to_string())?;
            }
        }
        Content::Files(files) => {
            dir(&own, 0o755).map_err(text)?;
            replace_files(&own, files).map_err(text)?;
        }
    }
    Ok(own)
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
    use std::os::unix::fs::FileTypeExt;
    let kind_of = || fs::metadata(path).ok().map(|metadata| metadata.file_type());
    match kind {
        "DirectoryOrCreate" if !path.exists() => dir(path, 0o755).map_err(text),
        "FileOrCreate" if !path.exists() => fs::File::create(path).map(drop).map_err(text),
        "Directory" | "DirectoryOrCreate" => is("directory", path.is_dir()),
        "File" | "FileOrCreate" => is("file", path.is_file()),
        "Socket" => is("socket", kind_of().is_some_and(|kind| kind.is_socket())),
        "CharDevice" => is("character device", kind_of().is_some_and(|k| k.is_char_device())),
        "BlockDevice" => is("block device", kind_of().is_some_and(|kind| kind.is_block_device())),
        _ => Ok(()),
    }
}

/// Puts files into a volume so that readers see the old set or the new one, never a mixture: they
/// lie in a folder of their own, `..data` names it, and each visible name points through `..data`.
fn replace_files(volume: &Path, files: &[File]) -> io::Result<()> {
    let fresh = format!("..{}", crate::now().as_nanosecond());
    let folder = volume.join(&fresh);
    for file in files {
        let path = folder.join(&file.path);
        dir(path.parent().unwrap_or(&folder), 0o755)?;
        fs::write(&path, &file.bytes)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(file.mode))?;
    }
    dir(&folder, 0o755)?;
    let data = volume.join("..data");
    let old = fs::read_link(&data).ok();
    let next = volume.join("..data_tmp");
    fs::remove_file(&next).or_else(absent)?;
    symlink(&fresh, &next)?;
    fs::rename(&next, &data)?;
    for file in files {
        let first = file.path.split('/').next().unwrap_or_default();
        let visible = volume.join(first);
        if visible.symlink_metadata().is_err() {
            symlink(Path::new("..data").join(first), visible)?;
        }
    }
    match old {
        Some(old) if old != Path::new(&fresh) => {
            fs::remove_dir_all(volume.join(old)).or_else(absent)
        }
        _ => Ok(()),
    }
}

fn absent(error: io::Error) -> io::Result<()> {
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
    let volumes = Path::new(&paths.pod).join("volumes");
    for entry in fs::read_dir(&volumes).into_iter().flatten().flatten() {
        // Volumes in memory are mounts; on all others this does nothing.
        rustix::mount::unmount(entry.path(), UnmountFlags::DETACH).ok();
    }
    fs::remove_dir_all(&paths.pod).or_else(absent)?;
    fs::remove_dir_all(&paths.logs).or_else(absent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_a_volume_change_together() {
        let volume = tempfile::tempdir().expect("a folder");
        let file = |path: &str, text: &str| File {
            path: path.to_owned(),
            bytes: text.as_bytes().to_vec(),
            mode: 0o640,
        };
        let read = |name: &str| fs::read_to_string(volume.path().join(name)).ok();
        replace_files(volume.path(), &[file("a", "1"), file("d/b", "2")]).expect("written");
        assert_eq!((read("a"), read("d/b")), (Some("1".into()), Some("2".into())));
        let mode = fs::metadata(volume.path().join("a")).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        replace_files(volume.path(), &[file("a", "3")]).expect("written");
        assert_eq!((read("a"), read("d/b")), (Some("3".into()), None));
        let sets = fs::read_dir(volume.path()).expect("listed").flatten();
        let sets = sets.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir())).count();
        assert_eq!(sets, 1, "the old set is gone");
    }
}
