//! Filters of system calls: profiles as data, and their translation into classic BPF.
//!
//! A [`Profile`] has the JSON shape of the OCI runtime specification (which `localhostProfile`
//! files have too). [`Profile::compile`] lays the rules out in order, so that the first matching
//! rule of a system call decides, as libseccomp does for the actions used here.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

/// A filter: what happens by default, and to which calls something else happens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Profile {
    /// For calls that no rule names.
    pub default_action: Action,
    /// Error number of the default action when it is `Errno`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_errno_ret: Option<u16>,
    /// Rules in order.
    #[serde(default)]
    pub syscalls: Vec<Rule>,
}

/// What happens to some calls.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// Names of the calls; names this architecture lacks are skipped.
    pub names: Vec<String>,
    /// What happens.
    pub action: Action,
    /// Error number for `Errno`, else EPERM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno_ret: Option<u16>,
    /// Conditions, all of which must hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<Condition>,
}

/// A condition on one argument, compared as 64 bits unsigned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Argument number, 0..=5.
    pub index: u32,
    /// The value compared with; the mask for `MaskedEqual`.
    pub value: u64,
    /// The value compared with for `MaskedEqual`.
    #[serde(default)]
    pub value_two: u64,
    /// How.
    pub op: Operator,
}

/// Comparisons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operator {
    /// `!=`
    #[serde(rename = "SCMP_CMP_NE")]
    NotEqual,
    /// `<`
    #[serde(rename = "SCMP_CMP_LT")]
    Less,
    /// `<=`
    #[serde(rename = "SCMP_CMP_LE")]
    LessOrEqual,
    /// `==`
    #[serde(rename = "SCMP_CMP_EQ")]
    Equal,
    /// `>=`
    #[serde(rename = "SCMP_CMP_GE")]
    GreaterOrEqual,
    /// `>`
    #[serde(rename = "SCMP_CMP_GT")]
    Greater,
    /// `argument & value == value_two`
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    MaskedEqual,
}

/// What can happen to a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// It goes on.
    #[default]
    #[serde(rename = "SCMP_ACT_ALLOW")]
    Allow,
    /// It fails with an error number.
    #[serde(rename = "SCMP_ACT_ERRNO")]
    Errno,
    /// The process dies.
    #[serde(rename = "SCMP_ACT_KILL_PROCESS")]
    KillProcess,
    /// The thread dies.
    #[serde(rename = "SCMP_ACT_KILL_THREAD", alias = "SCMP_ACT_KILL")]
    KillThread,
    /// SIGSYS.
    #[serde(rename = "SCMP_ACT_TRAP")]
    Trap,
    /// It goes on and is logged.
    #[serde(rename = "SCMP_ACT_LOG")]
    Log,
}

/// An architecture that a filter can be made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// 64-bit x86, with 32-bit programs.
    X86_64,
    /// 64-bit ARM.
    Aarch64,
}

/// One instruction of classic BPF, as the kernel's `struct sock_filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions skipped when true.
    pub jt: u8,
    /// Instructions skipped when false.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// The kernel's `AUDIT_ARCH_*` number and the column of `syscalls.txt`.
type AbiRow = (u32, usize);

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JEQ: u16 = 0x15;
const JGT: u16 = 0x25;
const JGE: u16 = 0x35;
const RETURN: u16 = 0x06;
/// Stands for "the condition does not hold" until the length of the rule is known.
const FAIL: u8 = u8::MAX;
/// Offsets in the kernel's `struct seccomp_data`.
const OFFSET_NR: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const OFFSET_ARGS: u32 = 16;
const EPERM: u16 = 1;

fn abis(arch: Arch) -> &'static [AbiRow] {
    match arch {
        Arch::X86_64 => &[(0xc000_003e, 1), (0x4000_0003, 3)],
        Arch::Aarch64 => &[(0xc000_00b7, 2)],
    }
}

fn op(code: u16, k: u32) -> Instruction {
    Instruction { code, jt: 0, jf: 0, k }
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction { code, jt, jf, k }
}

fn action_value(action: Action, errno: Option<u16>) -> u32 {
    match action {
        Action::Allow => 0x7fff_0000,
        Action::Errno => 0x0005_0000 | u32::from(errno.unwrap_or(EPERM)),
        Action::KillProcess => 0x8000_0000,
        Action::KillThread => 0,
        Action::Trap => 0x0003_0000,
        Action::Log => 0x7ffc_0000,
    }
}

/// What happens to one number: conditional rules in order, then the last word.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
struct Verdict<'a> {
    guarded: Vec<(&'a [Condition], u32)>,
    settled: Option<u32>,
}

impl Profile {
    /// Translates the profile for `arch`: a binary search over the call numbers of each ABI.
    ///
    /// Calls of an ABI that the architecture does not have get the default action.
    #[must_use]
    pub fn compile(&self, arch: Arch) -> Vec<Instruction> {
        let default = action_value(self.default_action, self.default_errno_ret);
        let mut program = alloc::vec![op(LOAD, OFFSET_ARCH)];
        for &(audit, column) in abis(arch) {
            let mut body = alloc::vec![op(LOAD, OFFSET_NR)];
            body.extend(search(&self.ranges(column, default), default));
            program.push(jump(JEQ, audit, 1, 0));
            program.push(op(JUMP, length(&body)));
            program.extend(body);
        }
        program.push(op(RETURN, default));
        program
    }

    /// Runs of numbers with equal verdicts, as (first number, verdict); the first starts at 0.
    fn ranges(&self, column: usize, default: u32) -> Vec<(u32, Verdict<'_>)> {
        let mut verdicts: BTreeMap<u32, Verdict<'_>> = BTreeMap::new();
        let numbers = numbers(column);
        for rule in &self.syscalls {
            let value = action_value(rule.action, rule.errno_ret);
            for nr in rule.names.iter().filter_map(|name| numbers.get(name.as_str())) {
                let verdict = verdicts.entry(*nr).or_default();
                match (verdict.settled, rule.args.is_empty()) {
                    (Some(_), _) => {}
                    (None, true) => verdict.settled = Some(value),
                    (None, false) => verdict.guarded.push((&rule.args, value)),
                }
            }
        }
        let plain = Verdict { guarded: Vec::new(), settled: Some(default) };
        let mut ranges = alloc::vec![(0, plain.clone())];
        for (nr, verdict) in verdicts {
            push_range(&mut ranges, nr, verdict);
            push_range(&mut ranges, nr + 1, plain.clone());
        }
        ranges
    }
}

/// Appends a range, replacing an empty one and merging equal neighbours.
fn push_range<'a>(ranges: &mut Vec<(u32, Verdict<'a>)>, start: u32, verdict: Verdict<'a>) {
    ranges.pop_if(|(first, _)| *first == start);
    if ranges.last().is_none_or(|(_, last)| *last != verdict) {
        ranges.push((start, verdict));
    }
}

fn numbers(column: usize) -> BTreeMap<&'static str, u32> {
    let rows = include_str!("syscalls.txt").lines().filter(|line| !line.starts_with('#'));
    rows.filter_map(|line| {
        let number = line.split(' ').nth(column)?.parse().ok()?;
        Some((line.split(' ').next()?, number))
    })
    .collect()
}

fn length(code: &[Instruction]) -> u32 {
    u32::try_from(code.len()).expect("a filter has at most some thousand instructions")
}

/// Code that finds the range of the number in the accumulator and returns its verdict.
fn search(ranges: &[(u32, Verdict<'_>)], default: u32) -> Vec<Instruction> {
    if let [(_, verdict)] = ranges {
        return leaf(verdict, default);
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let (below, above) = (search(low, default), search(high, default));
    let mut code = match u8::try_from(below.len()) {
        Ok(skip) => alloc::vec![jump(JGE, high[0].0, skip, 0)],
        Err(_) => alloc::vec![jump(JGE, high[0].0, 0, 1), op(JUMP, length(&below))],
    };
    code.extend(below);
    code.extend(above);
    code
}

fn leaf(verdict: &Verdict<'_>, default: u32) -> Vec<Instruction> {
    let mut code = Vec::new();
    for (conditions, value) in &verdict.guarded {
        let mut rule: Vec<Instruction> = conditions.iter().flat_map(check).collect();
        rule.push(op(RETURN, *value));
        let end = rule.len();
        for (at, instruction) in rule.iter_mut().enumerate() {
            let out = u8::try_from(end - at - 1).expect("six arguments make a short rule");
            for offset in [&mut instruction.jt, &mut instruction.jf] {
                if *offset == FAIL {
                    *offset = out;
                }
            }
        }
        code.extend(rule);
    }
    code.push(op(RETURN, verdict.settled.unwrap_or(default)));
    code
}

/// Code that falls through when the condition holds and jumps to `FAIL` when not.
fn check(condition: &Condition) -> Vec<Instruction> {
    let low = OFFSET_ARGS + 8 * condition.index.min(5);
    let (load_low, load_high) = (op(LOAD, low), op(LOAD, low + 4));
    let halves = |value: u64| ((value >> 32) as u32, value as u32);
    let (high, lower) = halves(condition.value);
    // Ordered comparisons: decided by the high half unless it is equal.
    let ordered = |code: u16, pass: (u8, u8), decided: (u8, u8)| {
        alloc::vec![
            load_high,
            jump(JGT, high, decided.0, 0),
            jump(JEQ, high, 0, decided.1),
            load_low,
            jump(code, lower, pass.0, pass.1),
        ]
    };
    match condition.op {
        Operator::Equal => {
            alloc::vec![load_high, jump(JEQ, high, 0, FAIL), load_low, jump(JEQ, lower, 0, FAIL),]
        }
        Operator::NotEqual => {
            alloc::vec![load_high, jump(JEQ, high, 0, 2), load_low, jump(JEQ, lower, FAIL, 0),]
        }
        Operator::MaskedEqual => {
            let (want_high, want_low) = halves(condition.value_two);
            alloc::vec![
                load_high,
                op(AND, high),
                jump(JEQ, want_high, 0, FAIL),
                load_low,
                op(AND, lower),
                jump(JEQ, want_low, 0, FAIL),
            ]
        }
        Operator::Greater => ordered(JGT, (0, FAIL), (3, FAIL)),
        Operator::GreaterOrEqual => ordered(JGE, (0, FAIL), (3, FAIL)),
        Operator::Less => ordered(JGE, (FAIL, 0), (FAIL, 2)),
        Operator::LessOrEqual => ordered(JGT, (FAIL, 0), (FAIL, 2)),
    }
}
