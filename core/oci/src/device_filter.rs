//! Device rules as an eBPF program, for version 2 control groups, which have no other way.
//!
//! The program reads the kernel's `struct bpf_cgroup_dev_ctx` and answers 1 (allowed) or 0. The
//! last rule that matches decides, so the rules are laid out from the last to the first.

use alloc::vec::Vec;

use crate::spec::{DeviceKind, DeviceRule};

const BLOCK: i32 = 1;
const CHAR: i32 = 2;
/// All of mknod, read and write.
const EVERY_ACCESS: i32 = 7;

const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xbf;
const MOVE_NUMBER: u8 = 0xb7;
const AND_NUMBER: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_UNEQUAL: u8 = 0x5d;
const JUMP_UNEQUAL_NUMBER: u8 = 0x55;
const EXIT: u8 = 0x95;

/// Registers: the result, scratch, and what is asked for.
const RESULT: u8 = 0;
const SCRATCH: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// One instruction, as the kernel's `struct bpf_insn` read as a little-endian number.
fn op(code: u8, to: u8, from: u8, offset: i16, number: i32) -> u64 {
    u64::from(code)
        | u64::from(from << 4 | to) << 8
        | u64::from(offset.cast_unsigned()) << 16
        | u64::from(number.cast_unsigned()) << 32
}

/// The program for some rules; what no rule matches is refused.
#[must_use]
pub fn program(rules: &[DeviceRule]) -> Vec<u64> {
    let mut code = alloc::vec![
        op(LOAD_WORD, KIND, SCRATCH, 0, 0),
        op(LOAD_WORD, MAJOR, SCRATCH, 4, 0),
        op(LOAD_WORD, MINOR, SCRATCH, 8, 0),
        op(MOVE, ACCESS, KIND, 0, 0),
        op(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        op(AND_NUMBER, KIND, 0, 0, 0xffff),
    ];
    // The kernel refuses unreachable code, so nothing follows a rule that always matches.
    let last = rules.iter().rposition(always_matches);
    for rule in rules[last.unwrap_or(0)..].iter().rev() {
        code.extend(lay_out(rule));
    }
    if last.is_none() {
        code.extend(answer(false));
    }
    code
}

fn always_matches(rule: &DeviceRule) -> bool {
    rule.kind == DeviceKind::All
        && (rule.major, rule.minor) == (None, None)
        && access_mask(&rule.access) == EVERY_ACCESS
}

fn answer(allow: bool) -> [u64; 2] {
    [op(MOVE_NUMBER, RESULT, 0, 0, i32::from(allow)), op(EXIT, 0, 0, 0, 0)]
}

/// A rule that matches when every access asked for is among its own.
fn lay_out(rule: &DeviceRule) -> Vec<u64> {
    let mut conditions: Vec<(u8, u8, u8, i32)> = Vec::new();
    let mut code = Vec::new();
    let access = access_mask(&rule.access);
    if access != EVERY_ACCESS {
        code.push(op(MOVE, SCRATCH, ACCESS, 0, 0));
        code.push(op(AND_NUMBER, SCRATCH, 0, 0, access));
        conditions.push((JUMP_UNEQUAL, SCRATCH, ACCESS, 0));
    }
    match rule.kind {
        DeviceKind::All => {}
        DeviceKind::Char => conditions.push((JUMP_UNEQUAL_NUMBER, KIND, 0, CHAR)),
        DeviceKind::Block => conditions.push((JUMP_UNEQUAL_NUMBER, KIND, 0, BLOCK)),
    }
    let numbers = [(MAJOR, rule.major), (MINOR, rule.minor)];
    for (register, number) in numbers.into_iter().filter_map(|(r, n)| Some((r, n?))) {
        conditions.push((JUMP_UNEQUAL_NUMBER, register, 0, number.cast_signed()));
    }
    for (at, &(code_of, to, from, number)) in conditions.iter().enumerate() {
        // Over the conditions left and the answer, to the next rule.
        let skip = i16::try_from(conditions.len() - at - 1 + 2).expect("a rule is short");
        code.push(op(code_of, to, from, skip, number));
    }
    code.extend(answer(rule.allow));
    code
}

fn access_mask(text: &str) -> i32 {
    text.bytes().fold(0, |mask, byte| {
        mask | match byte {
            b'm' => 1,
            b'r' => 2,
            b'w' => 4,
            _ => 0,
        }
    })
}
