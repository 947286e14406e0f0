//! The compiled filter against the profile read literally, on every call and many arguments.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use knarr_oci::capability;
use knarr_oci::seccomp::{Action, Arch, Condition, Instruction, Operator, Profile, Rule};
use knarr_oci::seccomp_default::runtime_default;
use proptest::prelude::*;

/// The kernel's interpreter, as far as these programs need it.
fn run(program: &[Instruction], nr: u32, arch: u32, args: [u64; 6]) -> u32 {
    let mut words = vec![nr, arch, 0, 0];
    words.extend(args.iter().flat_map(|arg| [*arg as u32, (*arg >> 32) as u32]));
    let (mut at, mut a) = (0, 0u32);
    loop {
        let Instruction { code, jt, jf, k } = program[at];
        at += 1;
        let branch = |holds: bool| usize::from(if holds { jt } else { jf });
        match code {
            0x20 => a = words[k as usize / 4],
            0x54 => a &= k,
            0x05 => at += k as usize,
            0x15 => at += branch(a == k),
            0x25 => at += branch(a > k),
            0x35 => at += branch(a >= k),
            0x06 => return k,
            other => panic!("unknown code {other:#x}"),
        }
    }
}

const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = 0x0005_0001;
const ENOSYS: u32 = 0x0005_0026;
const X86_64: u32 = 0xc000_003e;
const X86: u32 = 0x4000_0003;

fn default_for(extra: &[&str]) -> Vec<Instruction> {
    let sets = knarr_oci::cri::Capability {
        add_capabilities: extra.iter().map(|name| (*name).into()).collect(),
        ..Default::default()
    };
    let bounding = capability::sets(&sets, false).unwrap().bounding;
    runtime_default(bounding).compile(Arch::X86_64)
}

#[test]
fn the_default_allows_and_refuses_what_it_should() {
    let (plain, admin) = (default_for(&[]), default_for(&["SYS_ADMIN"]));
    let none = [0; 6];
    for (nr, expected, why) in [
        (0, ALLOW, "read"),
        (59, ALLOW, "execve"),
        (165, EPERM, "mount"),
        (272, EPERM, "unshare"),
        (435, ENOSYS, "clone3"),
        (425, EPERM, "io_uring_setup"),
        (250, EPERM, "keyctl"),
        (161, ALLOW, "chroot, for CAP_SYS_CHROOT is there"),
        (169, EPERM, "reboot"),
        (0x4000_0000, EPERM, "read by the x32 numbers"),
        (9999, EPERM, "a call nobody knows"),
    ] {
        assert_eq!(run(&plain, nr, X86_64, none), expected, "{why}");
    }
    assert_eq!(run(&admin, 165, X86_64, none), ALLOW);
    assert_eq!(run(&admin, 435, X86_64, none), ALLOW);
    let clone = |flags| run(&plain, 56, X86_64, [flags, 0, 0, 0, 0, 0]);
    assert_eq!((clone(0x0120_0011), clone(0x1000_0000)), (ALLOW, EPERM), "clone and CLONE_NEWUSER");
    let socket = |family| run(&plain, 41, X86_64, [family, 0, 0, 0, 0, 0]);
    assert_eq!((socket(2), socket(40)), (ALLOW, EPERM), "AF_INET and AF_VSOCK");
    let personality = |value| run(&plain, 135, X86_64, [value, 0, 0, 0, 0, 0]);
    assert_eq!((personality(8), personality(9)), (ALLOW, EPERM));
    assert_eq!(run(&plain, 3, X86, none), ALLOW, "read of a 32-bit program");
    assert_eq!(run(&plain, 21, X86, none), EPERM, "mount of a 32-bit program");
    assert_eq!(run(&plain, 0, 0x1234, none), EPERM, "another machine's call");
    assert!(plain.len() < 4096, "the kernel takes no more than 4096: {}", plain.len());
}

fn operator() -> impl Strategy<Value = Operator> {
    prop::sample::select(vec![
        Operator::NotEqual,
        Operator::Less,
        Operator::LessOrEqual,
        Operator::Equal,
        Operator::GreaterOrEqual,
        Operator::Greater,
        Operator::MaskedEqual,
    ])
}

/// Values that meet: few, with equal halves here and there.
fn value() -> impl Strategy<Value = u64> {
    let half = prop::sample::select(vec![0u64, 1, 0xffff_ffff]);
    (half.clone(), half).prop_map(|(high, low)| high << 32 | low)
}

fn condition() -> impl Strategy<Value = Condition> {
    (0u32..2, value(), value(), operator()).prop_map(|(index, value, value_two, op)| Condition {
        index,
        value,
        value_two,
        op,
    })
}

fn rule() -> impl Strategy<Value = Rule> {
    let names = prop::collection::vec(prop::sample::select(vec!["read", "write", "open"]), 1..3);
    (names, any::<bool>(), 1u16..5, prop::collection::vec(condition(), 0..3)).prop_map(
        |(names, allow, errno, args)| Rule {
            names: names.into_iter().map(Into::into).collect(),
            action: if allow { Action::Allow } else { Action::Errno },
            errno_ret: (!allow).then_some(errno),
            args,
        },
    )
}

fn holds(condition: &Condition, args: [u64; 6]) -> bool {
    let (arg, value) = (args[condition.index as usize], condition.value);
    match condition.op {
        Operator::NotEqual => arg != value,
        Operator::Less => arg < value,
        Operator::LessOrEqual => arg <= value,
        Operator::Equal => arg == value,
        Operator::GreaterOrEqual => arg >= value,
        Operator::Greater => arg > value,
        Operator::MaskedEqual => arg & value == condition.value_two,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]
    #[test]
    fn the_first_rule_that_matches_decides(
        syscalls in prop::collection::vec(rule(), 0..6),
        nr in 0u32..4,
        first in value(),
        second in value(),
    ) {
        let args = [first, second, 0, 0, 0, 0];
        let default_action = Action::KillProcess;
        let profile = Profile { default_action, default_errno_ret: None, syscalls };
        let name = ["read", "write", "open", "close"][nr as usize];
        let matches = |rule: &&Rule| {
            rule.names.iter().any(|known| known == name) && rule.args.iter().all(|c| holds(c, args))
        };
        let expected = match profile.syscalls.iter().find(matches) {
            None => 0x8000_0000,
            Some(rule) if rule.action == Action::Allow => ALLOW,
            Some(rule) => 0x0005_0000 | u32::from(rule.errno_ret.unwrap()),
        };
        prop_assert_eq!(run(&profile.compile(Arch::X86_64), nr, X86_64, args), expected);
    }
}
