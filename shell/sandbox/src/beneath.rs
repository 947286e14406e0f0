//! Paths inside a volume, whatever its containers put in their way.
//!
//! A container may replace any part of such a path by a symbolic link, at any moment. So the
//! kernel resolves the whole path in one step and refuses to leave the volume
//! (`RESOLVE_BENEATH`), and what it found is used by its descriptor, never by its name.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Opens a path beneath a volume, for use as the source of a mount.
pub(crate) fn open(volume: &Path, path: &str) -> Result<OwnedFd, Errno> {
    find(&root(volume)?, path)
}

/// Makes folders beneath a volume, where they are missing, with the mode of the volume.
///
/// # Errors
/// The path leads out of the volume, or through something that is no folder.
pub fn make_dir(volume: &Path, path: &str) -> std::io::Result<()> {
    let root = root(volume)?;
    let mode = Mode::from_raw_mode(rustix::fs::fstat(&root)?.st_mode & 0o7777);
    Ok(make(&root, path.trim_end_matches('/'), mode).map(drop)?)
}

/// Whether a path beneath a volume can be opened.
///
/// # Errors
/// It leads out of the volume, or nowhere.
pub fn check(volume: &Path, path: &str) -> std::io::Result<()> {
    Ok(open(volume, path).map(drop)?)
}

/// How often the kernel is asked to resolve a path while the machine renames and mounts.
const MAX_ASKED: usize = 1_000;

fn root(volume: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, volume, flags, Mode::empty())
}

fn find(root: impl AsFd, path: &str) -> Result<OwnedFd, Errno> {
    let limit = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let path = if path.is_empty() { "." } else { path };
    resolve(&root, path, flags, limit)
}

/// openat2 with a limit. A rename or mount anywhere on the machine makes the kernel give up on a
/// `..` with EAGAIN (openat2(2)): it is to be asked again, and is, so often.
pub(crate) fn resolve(
    root: impl AsFd,
    path: &str,
    flags: OFlags,
    limit: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let ask = || rustix::fs::openat2(&root, path, flags, Mode::empty(), limit);
    let mut asked = (0..MAX_ASKED).map(|_| ask());
    asked.find(|found| !matches!(found, Err(Errno::AGAIN))).unwrap_or(Err(Errno::AGAIN))
}

fn make(root: &OwnedFd, path: &str, mode: Mode) -> Result<OwnedFd, Errno> {
    match find(root, path) {
        Err(Errno::NOENT) => {}
        other => return other,
    }
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    let parent = make(root, parent.trim_end_matches('/'), mode)?;
    match rustix::fs::mkdirat(&parent, name, mode) {
        Ok(()) => {
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let made = rustix::fs::openat(&parent, name, flags, Mode::empty())?;
            rustix::fs::fchmod(&made, mode)?;
        }
        Err(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    find(root, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    /// A volume beside a folder that its paths must not reach.
    fn volume() -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().expect("a folder");
        let volume = dir.path().join("volume");
        fs::create_dir_all(volume.join("a/b")).expect("made");
        fs::create_dir(dir.path().join("outside")).expect("made");
        fs::write(volume.join("a/file"), "x").expect("written");
        (dir, volume)
    }

    #[test]
    fn links_inside_a_volume_are_followed_and_no_others() {
        let (dir, volume) = volume();
        let outside = dir.path().join("outside").display().to_string();
        let inside = volume.join("a").display().to_string();
        for (name, target) in [
            ("near", "a/b"),
            ("chain", "near"),
            ("back", "a/../a"),
            ("root", "/"),
            ("host", outside.as_str()),
            ("own", inside.as_str()),
            ("up", "../outside"),
            ("far", "a/../../outside"),
            ("hop", "up"),
            ("proc", "/proc/self/root"),
            ("loop", "loop"),
        ] {
            symlink(target, volume.join(name)).expect("linked");
        }
        for good in ["", "a", "a/b", "a//b/", "./a", "near", "chain", "back/b", "a/file"] {
            check(&volume, good).unwrap_or_else(|error| panic!("{good}: {error}"));
        }
        let bad =
            ["root", "host", "own", "up", "far", "hop", "proc", "loop", "..", "a/../..", "/etc"];
        for bad in bad {
            check(&volume, bad).expect_err(bad);
            make_dir(&volume, bad).expect_err(bad);
            make_dir(&volume, &format!("{bad}/new")).expect_err(bad);
        }
        let touched = fs::read_dir(dir.path().join("outside")).expect("listed").count();
        assert_eq!(touched, 0);
    }

    #[test]
    fn missing_folders_are_made_like_the_volume() {
        let (_dir, volume) = volume();
        fs::set_permissions(&volume, fs::Permissions::from_mode(0o2777)).expect("changed");
        make_dir(&volume, "x/y//z/").expect("made");
        make_dir(&volume, "x/y/z").expect("again");
        for path in ["x", "x/y", "x/y/z"] {
            let mode = fs::metadata(volume.join(path)).expect("there").permissions().mode();
            assert_eq!(mode & 0o7777, 0o2777, "{path}");
        }
        symlink("nowhere", volume.join("dangling")).expect("linked");
        make_dir(&volume, "dangling").expect_err("a dangling link");
        make_dir(&volume, "a/file/x").expect_err("a file in the way");
        assert!(!volume.join("nowhere").exists());
    }

    #[test]
    fn renames_elsewhere_do_not_stand_in_the_way() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let dir = tempfile::tempdir().expect("a folder");
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("volume/x")).expect("a folder");
        std::fs::write(at("one"), "").expect("a file");
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    std::fs::rename(at("one"), at("two")).expect("renamed");
                    std::fs::rename(at("two"), at("one")).expect("renamed");
                }
            });
            let found = (0..5_000).try_for_each(|_| check(&at("volume"), "x/../x"));
            done.store(true, Ordering::Relaxed);
            found.expect("the path is there all the time");
        });
    }
}
