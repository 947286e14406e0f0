//! The `RuntimeDefault` profile, as data: the calls that containerd's and docker's default allow.
//!
//! Calls newer than both lists stay refused (EPERM), except `clone3`, which answers ENOSYS so that
//! C libraries fall back to `clone`, whose flags a filter can see.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use crate::capability;
use crate::seccomp::{Action, Condition, Operator, Profile, Rule};

/// `CLONE_NEW*` flags that make namespaces.
const NAMESPACE_FLAGS: u64 = 0x7e02_0000;
const AF_VSOCK: u64 = 40;
const ENOSYS: u16 = 38;
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The profile for a container whose bounding set is `bounding`.
#[must_use]
pub fn runtime_default(bounding: u64) -> Profile {
    let mut syscalls: Vec<Rule> = groups()
        .filter(|(needs, _)| needs.is_none_or(|cap| bounding >> cap & 1 == 1))
        .map(|(_, names)| allow(names))
        .collect();
    syscalls.extend(PERSONALITIES.map(|value| when(&["personality"], equal(value))));
    syscalls.push(when(
        &["socket"],
        Condition { index: 0, value: AF_VSOCK, value_two: 0, op: Operator::NotEqual },
    ));
    syscalls.push(when(
        &["clone"],
        Condition { index: 0, value: NAMESPACE_FLAGS, value_two: 0, op: Operator::MaskedEqual },
    ));
    syscalls.push(Rule {
        action: Action::Errno,
        errno_ret: Some(ENOSYS),
        ..allow(vec![String::from("clone3")])
    });
    Profile { default_action: Action::Errno, default_errno_ret: None, syscalls }
}

/// The rows of the data file: the capability needed, and the calls it opens.
fn groups() -> impl Iterator<Item = (Option<u8>, Vec<String>)> {
    let mut rows: Vec<(Option<u8>, Vec<String>)> = Vec::new();
    for line in include_str!("seccomp_default.txt").lines().filter(|line| !line.starts_with('#')) {
        match line.strip_prefix("    ") {
            None => rows.push((capability::number(line), Vec::new())),
            Some(names) => {
                let row = rows.last_mut().expect("the file starts with a heading");
                row.1.extend(names.split(' ').map(String::from));
            }
        }
    }
    rows.into_iter()
}

fn allow(names: Vec<String>) -> Rule {
    Rule { names, action: Action::Allow, errno_ret: None, args: Vec::new() }
}

fn when(names: &[&str], condition: Condition) -> Rule {
    let names = names.iter().copied().map(String::from).collect();
    Rule { args: vec![condition], ..allow(names) }
}

fn equal(value: u64) -> Condition {
    Condition { index: 0, value, value_two: 0, op: Operator::Equal }
}
