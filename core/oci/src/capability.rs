//! Capabilities by name and number, and the sets a container starts with.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::cri::Capability;
use crate::spec::CapabilitySets;

/// Names in the order of their numbers (linux/capability.h), without `CAP_`.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What a container has without being asked, as with containerd and docker.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// Every capability known here.
pub const ALL: u64 = (1 << NAMES.len()) - 1;

/// The number of a capability, named with or without `CAP_`, in any case.
#[must_use]
pub fn number(name: &str) -> Option<u8> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    NAMES.iter().position(|known| *known == short).and_then(|at| u8::try_from(at).ok())
}

/// The mask of some names; `ALL` is every one.
///
/// # Errors
/// The first name that is none.
pub fn mask<S: AsRef<str>>(names: &[S]) -> Result<u64, String> {
    names.iter().try_fold(0, |mask, name| match name.as_ref() {
        all if all.eq_ignore_ascii_case("ALL") => Ok(ALL),
        name => number(name).map(|bit| mask | 1 << bit).ok_or_else(|| name.to_string()),
    })
}

/// The sets of a container: the default ones, or all for a privileged one, changed as asked.
///
/// # Errors
/// The first name that is no capability.
pub fn sets(asked: &Capability, privileged: bool) -> Result<CapabilitySets, String> {
    let (add, drop) = (mask(&asked.add_capabilities)?, mask(&asked.drop_capabilities)?);
    let start = if privileged { ALL } else { mask(&DEFAULT)? };
    let is_all = |names: &Vec<String>| names.iter().any(|name| name.eq_ignore_ascii_case("ALL"));
    // "ALL" is applied before single names, whichever list it is in.
    let mut held = start;
    if is_all(&asked.add_capabilities) {
        held = ALL;
    }
    if is_all(&asked.drop_capabilities) {
        held = 0;
    }
    if !is_all(&asked.add_capabilities) {
        held |= add;
    }
    if !is_all(&asked.drop_capabilities) {
        held &= !drop;
    }
    let ambient = mask(&asked.add_ambient_capabilities)?;
    Ok(CapabilitySets { bounding: held | ambient, permitted: held | ambient, ambient })
}
