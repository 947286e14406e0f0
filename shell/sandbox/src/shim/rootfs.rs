//! The root file system of a container, built inside its own mount namespace.
//!
//! Nothing is ever mounted in the node's namespace, so nothing can be left there. Every place in
//! the container is looked up with the container's root as the limit (`RESOLVE_IN_ROOT`): a
//! symbolic link of an image leads to a place in the container, never on the node.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use knarr_oci::cri::MountPropagation;
use knarr_oci::spec::{ContainerSpec, DeviceKind, DeviceNode, MountFlag, MountKind, MountSpec};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags,
};

use crate::beneath;
use crate::cgroup::Hierarchies;
use crate::state::ContainerDir;
use crate::sys::{self, Recursion};

/// What failed, in words.
pub(super) type Failure = String;

/// Adds to an error what was being done.
pub(super) trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T, E: std::fmt::Display> Doing<T> for Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|error| format!("{}: {error}", what()))
    }
}

/// Builds the root of a container and makes it this process's.
pub(super) fn enter(
    dir: &ContainerDir,
    spec: &ContainerSpec,
    hierarchies: &Hierarchies,
) -> Result<(), Failure> {
    sys::clear_umask();
    // Opened before this namespace leaves the node's peer groups, which slaves must still find.
    let sources = spec.mounts.iter().map(open_source).collect::<Result<Vec<_>, _>>()?;
    let groups = hierarchies.views(&spec.cgroup);
    let host_devices = if spec.all_host_devices { host_devices() } else { Vec::new() };
    rustix::mount::mount_change(
        "/",
        rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC,
    )
    .doing(|| "make mounts private".into())?;
    let point = dir.0.join("rootfs");
    mount_overlay(dir, spec, &point)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(&point, flags, Mode::empty()).doing(|| "open the root".into())?;
    let root = Root(root);
    for (mount, source) in spec.mounts.iter().zip(sources) {
        root.mount(mount, source, &groups).doing(|| format!("mount {}", mount.target))?;
    }
    root.devices(spec.devices.iter().chain(&host_devices))?;
    root.links();
    spec.masked_paths.iter().try_for_each(|path| root.mask(path))?;
    spec.readonly_paths.iter().try_for_each(|path| root.freeze(path))?;
    root.pivot()?;
    if spec.readonly_rootfs {
        let top = rustix::fs::open("/", flags, Mode::empty()).doing(|| "open /".into())?;
        let readonly = u64::from(MountAttrFlags::MOUNT_ATTR_RDONLY.bits());
        sys::mount_setattr(top.as_fd(), readonly, 0, Recursion::Top)
            .doing(|| "make / read-only".into())?;
    }
    sys::usual_umask();
    Ok(())
}

/// A detached copy of the host path of a bind mount; the path is made when missing.
fn open_source(mount: &MountSpec) -> Result<Option<OwnedFd>, Failure> {
    let MountKind::Bind { source, sub_path, propagation, .. } = &mount.kind else {
        return Ok(None);
    };
    let tree = if sub_path.is_empty() {
        if fs::metadata(source).is_err() {
            fs::create_dir_all(source).doing(|| format!("make {source}"))?;
        }
        clone_tree(CWD, source)
    } else {
        beneath::open(Path::new(source), sub_path).and_then(|place| clone_tree(place.as_fd(), ""))
    };
    let tree = tree.doing(|| format!("open {source}"))?;
    let propagation = match propagation {
        MountPropagation::Private => libc::MS_PRIVATE,
        MountPropagation::HostToContainer => libc::MS_SLAVE,
        MountPropagation::Bidirectional => libc::MS_SHARED,
    };
    sys::mount_setattr(tree.as_fd(), 0, propagation, Recursion::Tree)
        .doing(|| format!("set the propagation of {source}"))?;
    Ok(Some(tree))
}

fn clone_tree(dir: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    rustix::mount::open_tree(dir, path, flags)
}

/// Lays the writable folder over the layers.
///
/// mount(2) takes one page of options; with more layers than fit, each is given on its own.
fn mount_overlay(dir: &ContainerDir, spec: &ContainerSpec, point: &Path) -> Result<(), Failure> {
    let escaped = |path: &str| path.replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,");
    let lower: Vec<String> = spec.rootfs.lower.iter().map(|path| escaped(path)).collect();
    let inside = |name: &str| dir.0.join(name).to_string_lossy().into_owned();
    let (upper, work) = (inside("upper"), inside("work"));
    // `volatile`: the writable layer is worth nothing after a crash of the node.
    let options = format!(
        "volatile,lowerdir={},upperdir={},workdir={}",
        lower.join(":"),
        escaped(&upper),
        escaped(&work)
    );
    if options.len() < 4096 {
        let data = std::ffi::CString::new(options).doing(|| "overlay options".into())?;
        return rustix::mount::mount("overlay", point, "overlay", MountFlags::empty(), &*data)
            .doing(|| "mount the overlay".into());
    }
    many_layers(&spec.rootfs.lower, &upper, &work, point).doing(|| "mount the overlay".into())
}

fn many_layers(lower: &[String], upper: &str, work: &str, point: &Path) -> Result<(), Errno> {
    use rustix::mount as m;
    let fs = m::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for layer in lower {
        m::fsconfig_set_string(fs.as_fd(), "lowerdir+", layer.as_str())?;
    }
    m::fsconfig_set_string(fs.as_fd(), "upperdir", upper)?;
    m::fsconfig_set_string(fs.as_fd(), "workdir", work)?;
    m::fsconfig_set_flag(fs.as_fd(), "volatile")?;
    m::fsconfig_create(fs.as_fd())?;
    let mount = m::fsmount(fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    m::move_mount(mount, "", CWD, point, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

fn attributes(flags: &[MountFlag]) -> MountAttrFlags {
    flags.iter().fold(MountAttrFlags::empty(), |set, flag| {
        set | match flag {
            MountFlag::ReadOnly => MountAttrFlags::MOUNT_ATTR_RDONLY,
            MountFlag::NoSuid => MountAttrFlags::MOUNT_ATTR_NOSUID,
            MountFlag::NoDev => MountAttrFlags::MOUNT_ATTR_NODEV,
            MountFlag::NoExec => MountAttrFlags::MOUNT_ATTR_NOEXEC,
        }
    })
}

/// A new file system that is not attached anywhere yet.
fn new_fs(fs_type: &str, data: &str, attributes: MountAttrFlags) -> Result<OwnedFd, Errno> {
    use rustix::mount as m;
    let fs = m::fsopen(fs_type, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for option in data.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some((key, value)) => m::fsconfig_set_string(fs.as_fd(), key, value)?,
            None => m::fsconfig_set_flag(fs.as_fd(), option)?,
        }
    }
    m::fsconfig_create(fs.as_fd())?;
    m::fsmount(fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

fn host_devices() -> Vec<DeviceNode> {
    let mut found = Vec::new();
    collect_devices(Path::new("/dev"), &mut found);
    found
}

/// The device nodes of a folder and those below it, but not those of file systems of their own.
fn collect_devices(dir: &Path, found: &mut Vec<DeviceNode>) {
    use std::os::unix::fs::FileTypeExt;
    const OWN: [&str; 5] = ["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/fd", "/dev/console"];
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path().to_string_lossy().into_owned();
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() && !OWN.contains(&path.as_str()) {
            collect_devices(&entry.path(), found);
        } else if kind.is_char_device() || kind.is_block_device() {
            found.push(DeviceNode {
                host_path: path.clone(),
                path,
                access: "rwm".into(),
                kind: DeviceKind::Char,
                major: 0,
                minor: 0,
                mode: 0o660,
            });
        }
    }
}

/// The kind, number and mode of a node.
pub(super) fn device_of(node: &DeviceNode) -> Result<(FileType, u64, Mode), Failure> {
    use rustix::fs::{makedev, stat};
    if node.host_path.is_empty() {
        let mode = Mode::from_raw_mode(node.mode);
        return Ok((FileType::CharacterDevice, makedev(node.major, node.minor), mode));
    }
    let found = stat(node.host_path.as_str()).doing(|| node.host_path.clone())?;
    let (kind, mode) = (FileType::from_raw_mode(found.st_mode), Mode::from_raw_mode(found.st_mode));
    Ok((kind, found.st_rdev, mode))
}

/// The container's root folder while it is built.
struct Root(OwnedFd);

impl Root {
    fn open(&self, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let limit = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let path = if path.is_empty() { "/" } else { path };
        crate::beneath::resolve(&self.0, path, flags | OFlags::CLOEXEC, limit)
    }

    /// Opens a folder, making it and its parents where missing.
    fn make_dir(&self, path: &str) -> Result<OwnedFd, Errno> {
        match self.open(path, OFlags::PATH) {
            Err(Errno::NOENT) => {
                let (parent, name) = split(path);
                let parent = self.make_dir(parent)?;
                match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(Errno::EXIST) => self.open(path, OFlags::PATH),
                    Err(error) => Err(error),
                }
            }
            other => other,
        }
    }

    /// Opens a file, making it (empty) and its parents where missing.
    fn make_file(&self, path: &str) -> Result<OwnedFd, Errno> {
        match self.open(path, OFlags::PATH) {
            Err(Errno::NOENT) => {
                let (parent, name) = split(path);
                let parent = self.make_dir(parent)?;
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW;
                let mode = Mode::from_raw_mode(0o644);
                rustix::fs::openat(&parent, name, flags | OFlags::CLOEXEC, mode)?;
                self.open(path, OFlags::PATH)
            }
            other => other,
        }
    }

    fn mount(
        &self,
        mount: &MountSpec,
        source: Option<OwnedFd>,
        groups: &[(Option<String>, std::path::PathBuf)],
    ) -> Result<(), Failure> {
        let attributes = attributes(&mount.flags);
        match (&mount.kind, source) {
            (MountKind::Bind { recursive_read_only, .. }, Some(tree)) => {
                let depth = if *recursive_read_only { Recursion::Tree } else { Recursion::Top };
                self.bind(&mount.target, &tree, attributes, depth).doing(|| "bind".into())
            }
            (MountKind::Fs { fs_type, data }, _) => {
                let fs = new_fs(fs_type, data, attributes).doing(|| format!("new {fs_type}"))?;
                let target = self.make_dir(&mount.target).doing(|| "target".into())?;
                attach(&fs, &target).doing(|| "attach".into())
            }
            (MountKind::Cgroup, _) => self.cgroups(&mount.target, attributes, groups),
            (MountKind::Bind { .. }, None) => Err("no source".into()),
        }
    }

    fn bind(
        &self,
        path: &str,
        tree: &OwnedFd,
        attributes: MountAttrFlags,
        depth: Recursion,
    ) -> Result<(), std::io::Error> {
        let stat = rustix::fs::statx(tree, "", AtFlags::EMPTY_PATH, StatxFlags::TYPE)?;
        let is_dir = FileType::from_raw_mode(stat.stx_mode.into()) == FileType::Directory;
        let target = if is_dir { self.make_dir(path)? } else { self.make_file(path)? };
        if !attributes.is_empty() {
            sys::mount_setattr(tree.as_fd(), u64::from(attributes.bits()), 0, depth)?;
        }
        Ok(attach(tree, &target)?)
    }

    /// Shows the container's own group: with version 2 a mount seen from a namespace of its own,
    /// with version 1 a folder per controller.
    fn cgroups(
        &self,
        path: &str,
        attributes: MountAttrFlags,
        groups: &[(Option<String>, std::path::PathBuf)],
    ) -> Result<(), Failure> {
        let target = self.make_dir(path).doing(|| "target".into())?;
        if let [(None, _)] = groups {
            sys::unshare(libc::CLONE_NEWCGROUP).doing(|| "cgroup namespace".into())?;
            let fs = new_fs("cgroup2", "", attributes).doing(|| "new cgroup2".into())?;
            return attach(&fs, &target).doing(|| "attach".into());
        }
        let fs = new_fs("tmpfs", "mode=755", attributes - MountAttrFlags::MOUNT_ATTR_RDONLY)
            .doing(|| "new tmpfs".into())?;
        attach(&fs, &target).doing(|| "attach".into())?;
        for (name, dir) in groups {
            let name = name.as_deref().unwrap_or("unified");
            let tree = clone_tree(CWD, &dir.to_string_lossy()).doing(|| format!("open {name}"))?;
            self.bind(&format!("{path}/{name}"), &tree, attributes, Recursion::Top)
                .doing(|| format!("bind {name}"))?;
        }
        sys::mount_setattr(fs.as_fd(), u64::from(attributes.bits()), 0, Recursion::Top)
            .doing(|| "attributes".into())
    }

    fn devices<'a>(&self, nodes: impl Iterator<Item = &'a DeviceNode>) -> Result<(), Failure> {
        for node in nodes {
            let (kind, number, mode) = device_of(node)?;
            let (parent, name) = split(&node.path);
            let parent = self.make_dir(parent).doing(|| node.path.clone())?;
            match rustix::fs::mknodat(&parent, name, kind, mode, number) {
                // The user may have mounted something over /dev.
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(format!("make {}: {error}", node.path)),
            }
        }
        Ok(())
    }

    /// The customary links; where a user's own /dev has something else, that stays.
    fn links(&self) {
        const LINKS: [(&str, &str); 5] = [
            ("fd", "/proc/self/fd"),
            ("stdin", "/proc/self/fd/0"),
            ("stdout", "/proc/self/fd/1"),
            ("stderr", "/proc/self/fd/2"),
            ("ptmx", "pts/ptmx"),
        ];
        let Ok(dev) = self.open("/dev", OFlags::PATH) else { return };
        for (name, target) in LINKS {
            let _ = rustix::fs::symlinkat(target, &dev, name);
        }
    }

    /// Hides a path behind nothing; a missing one is hidden already.
    fn mask(&self, path: &str) -> Result<(), Failure> {
        let Ok(target) = self.open(path, OFlags::PATH) else { return Ok(()) };
        let stat = rustix::fs::fstat(&target).doing(|| format!("mask {path}"))?;
        let cover = if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            new_fs("tmpfs", "nr_inodes=2", MountAttrFlags::MOUNT_ATTR_RDONLY)
        } else {
            self.open("/dev/null", OFlags::PATH).and_then(|null| clone_tree(null.as_fd(), ""))
        };
        cover.and_then(|cover| attach(&cover, &target)).doing(|| format!("mask {path}"))
    }

    /// Makes a path read-only; a missing one is left out.
    fn freeze(&self, path: &str) -> Result<(), Failure> {
        let Ok(target) = self.open(path, OFlags::PATH) else { return Ok(()) };
        let attach_frozen = || -> Result<(), std::io::Error> {
            let tree = clone_tree(target.as_fd(), "")?;
            let readonly = u64::from(MountAttrFlags::MOUNT_ATTR_RDONLY.bits());
            sys::mount_setattr(tree.as_fd(), readonly, 0, Recursion::Tree)?;
            Ok(attach(&tree, &target)?)
        };
        attach_frozen().doing(|| format!("make {path} read-only"))
    }

    /// Makes this folder the root and lets go of the old one.
    fn pivot(&self) -> Result<(), Failure> {
        rustix::process::fchdir(&self.0).doing(|| "enter the root".into())?;
        rustix::process::pivot_root(".", ".").doing(|| "change the root".into())?;
        rustix::mount::unmount(".", rustix::mount::UnmountFlags::DETACH)
            .doing(|| "let go of the old root".into())?;
        rustix::process::chdir("/").doing(|| "enter the root".into())
    }
}

fn attach(tree: &OwnedFd, target: &OwnedFd) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(tree, "", target, "", flags)
}

/// Parent and last part of a path.
fn split(path: &str) -> (&str, &str) {
    path.trim_end_matches('/').rsplit_once('/').unwrap_or(("", path))
}
