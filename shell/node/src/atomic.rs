//! Files of a volume that change together, in upstream's layout.
//!
//! They lie in a folder of their own, `..data` names it, and each visible name points through
//! `..data`: a reader sees the old set or the new one, never a mixture.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use knarr_podlife::volumes::File;

use crate::files::{absent, dir, give_to};

/// Puts files into a volume, for a group if one is named; whether there was something to change.
pub(crate) fn replace(
    volume: &Path,
    files: &[File],
    group: Option<u32>,
    now: Timestamp,
) -> io::Result<bool> {
    let data = volume.join("..data");
    let old = fs::read_link(&data).ok();
    if old.is_some() && found(&data)? == wanted(files) {
        return Ok(false);
    }
    let fresh = now.strftime("..%Y_%m_%d_%H_%M_%S.%9f").to_string();
    let folder = volume.join(&fresh);
    // What was broken off is no part of the new set.
    fs::remove_dir_all(&folder).or_else(absent)?;
    write(&folder, files)?;
    if let Some(group) = group {
        give_to(&folder, group, 0o440)?;
    }
    let next = volume.join("..data_tmp");
    fs::remove_file(&next).or_else(absent)?;
    symlink(&fresh, &next)?;
    fs::rename(&next, &data)?;
    show(volume, files)?;
    match old {
        Some(old) if old != Path::new(&fresh) => {
            fs::remove_dir_all(volume.join(old)).or_else(absent)?;
        }
        _ => {}
    }
    Ok(true)
}

fn write(folder: &Path, files: &[File]) -> io::Result<()> {
    dir(folder, 0o755)?;
    for file in files {
        let path = folder.join(&file.path);
        dir(path.parent().unwrap_or(folder), 0o755)?;
        fs::write(&path, &file.bytes)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(file.mode))?;
        if file.owner.is_some() {
            chown(&path, file.owner, None)?;
        }
    }
    Ok(())
}

fn first(path: &str) -> &str {
    path.split('/').next().unwrap_or_default()
}

/// Makes the links of what is there now, and removes those of what is not.
fn show(volume: &Path, files: &[File]) -> io::Result<()> {
    let visible: BTreeSet<&str> = files.iter().map(|file| first(&file.path)).collect();
    for name in &visible {
        let link = volume.join(name);
        if link.symlink_metadata().is_err() {
            symlink(Path::new("..data").join(name), link)?;
        }
    }
    for entry in fs::read_dir(volume)? {
        let entry = entry?;
        let name = entry.file_name();
        let shown = name.to_str().is_some_and(|name| visible.contains(name));
        let target = fs::read_link(entry.path()).unwrap_or_default();
        if !shown && target.starts_with("..data") && target != Path::new("..data") {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn wanted(files: &[File]) -> BTreeMap<PathBuf, Vec<u8>> {
    files.iter().map(|file| (PathBuf::from(&file.path), file.bytes.clone())).collect()
}

/// The files below a folder, by their paths from there.
fn found(top: &Path) -> io::Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut files = BTreeMap::new();
    let mut left = vec![PathBuf::new()];
    while let Some(folder) = left.pop() {
        for entry in fs::read_dir(top.join(&folder))? {
            let entry = entry?;
            let path = folder.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                left.push(path);
            } else {
                files.insert(path, fs::read(entry.path())?);
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn file(path: &str, text: &str) -> File {
        File { path: path.into(), bytes: text.as_bytes().to_vec(), mode: 0o640, owner: None }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn names(volume: &Path) -> Vec<String> {
        let entries = fs::read_dir(volume).expect("listed").flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    #[test]
    fn files_of_a_volume_change_together() {
        let dir = tempfile::tempdir().expect("a folder");
        let volume = dir.path();
        let read = |name: &str| fs::read_to_string(volume.join(name)).ok();
        let put = |files: &[File], second| replace(volume, files, None, at(second)).expect("put");
        assert!(put(&[file("a", "1"), file("d/b", "2"), file("d/c", "3")], 0));
        assert_eq!((read("a"), read("d/b"), read("d/c")), (some("1"), some("2"), some("3")));
        let mode = fs::metadata(volume.join("a")).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        let first = "..1970_01_01_00_00_00.000000000";
        assert_eq!(names(volume), [first, "..data", "a", "d"]);
        let open = fs::File::open(volume.join("..data")).expect("open");
        assert!(put(&[file("a", "3")], 1));
        assert_eq!((read("a"), read("d/b")), (some("3"), None));
        let second = "..1970_01_01_00_00_01.000000000";
        assert_eq!(names(volume), [second, "..data", "a"], "nothing old is left");
        assert_eq!(open.metadata().expect("known").nlink(), 0, "the old set was not written to");
        assert!(put(&[], 2), "an optional source that is gone");
        assert_eq!(names(volume), ["..1970_01_01_00_00_02.000000000", "..data"]);
    }

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn what_did_not_change_is_not_written() {
        let dir = tempfile::tempdir().expect("a folder");
        let put =
            |files: &[File], second| replace(dir.path(), files, None, at(second)).expect("put");
        let files = [file("a", "1"), file("d/b", "2")];
        assert!(put(&files, 0));
        assert!(!put(&files, 1));
        assert_eq!(names(dir.path())[0], "..1970_01_01_00_00_00.000000000");
        assert!(put(&[file("a", "1")], 2), "a file less is a change");
    }

    #[test]
    fn what_was_broken_off_does_no_harm() {
        let dir = tempfile::tempdir().expect("a folder");
        let volume = dir.path();
        fs::create_dir_all(volume.join("..1970_01_01_00_00_00.000000000/old")).expect("made");
        symlink("nowhere", volume.join("..data_tmp")).expect("linked");
        assert!(replace(volume, &[file("a", "1")], None, at(0)).expect("put"));
        assert_eq!(fs::read_to_string(volume.join("a")).expect("there"), "1");
        assert!(!volume.join("..data/old").exists());
    }
}
