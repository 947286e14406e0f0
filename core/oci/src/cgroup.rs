//! Limits as the files of a cgroup: which file gets which text, for version 1 and version 2.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::cri::LinuxContainerResources;
use crate::spec::{DeviceKind, DeviceRule};

/// A text to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Version 1 controller; empty for version 2.
    pub controller: &'static str,
    /// File name.
    pub file: String,
    /// Contents.
    pub value: String,
    /// Whether a kernel without this file is accepted (swap accounting, mostly).
    pub optional: bool,
}

fn setting(controller: &'static str, file: &str, value: impl ToString) -> Setting {
    Setting { controller, file: file.to_string(), value: value.to_string(), optional: false }
}

fn positive(value: i64) -> Option<i64> {
    (value > 0).then_some(value)
}

/// A limit where -1 means none and 0 means unset.
fn limit(value: i64) -> Option<i64> {
    (value != 0).then_some(value)
}

fn text(value: &str) -> Option<&str> {
    (!value.is_empty()).then_some(value)
}

/// The settings of version 1 hierarchies, in the order to write them.
#[must_use]
pub fn v1(resources: &LinuxContainerResources) -> Vec<Setting> {
    let r = resources;
    let memsw = "memory.memsw.limit_in_bytes";
    let rows = [
        positive(r.cpu_shares).map(|v| setting("cpu", "cpu.shares", v)),
        positive(r.cpu_period).map(|v| setting("cpu", "cpu.cfs_period_us", v)),
        limit(r.cpu_quota).map(|v| setting("cpu", "cpu.cfs_quota_us", v)),
        text(&r.cpuset_cpus).map(|v| setting("cpuset", "cpuset.cpus", v)),
        text(&r.cpuset_mems).map(|v| setting("cpuset", "cpuset.mems", v)),
        limit(r.memory_limit_in_bytes).map(|v| setting("memory", "memory.limit_in_bytes", v)),
        limit(r.memory_swap_limit_in_bytes)
            .map(|v| Setting { optional: true, ..setting("memory", memsw, v) }),
        limit(r.pids_limit).map(|v| setting("pids", "pids.max", or_max(v))),
    ];
    rows.into_iter().flatten().collect()
}

/// The settings of the unified hierarchy, in the order to write them.
#[must_use]
pub fn v2(resources: &LinuxContainerResources) -> Vec<Setting> {
    let r = resources;
    let period = positive(r.cpu_period).unwrap_or(100_000);
    let swap = limit(r.memory_swap_limit_in_bytes).map(|total| match total {
        -1 => -1,
        total => (total - r.memory_limit_in_bytes.max(0)).max(0),
    });
    let rows = [
        positive(r.cpu_shares).map(|v| setting("", "cpu.weight", weight(v))),
        limit(r.cpu_quota).map(|v| setting("", "cpu.max", format!("{} {period}", or_max(v)))),
        text(&r.cpuset_cpus).map(|v| setting("", "cpuset.cpus", v)),
        text(&r.cpuset_mems).map(|v| setting("", "cpuset.mems", v)),
        limit(r.memory_limit_in_bytes).map(|v| setting("", "memory.max", or_max(v))),
        swap.map(|v| Setting { optional: true, ..setting("", "memory.swap.max", or_max(v)) }),
        limit(r.pids_limit).map(|v| setting("", "pids.max", or_max(v))),
    ];
    let unified = r.unified.iter().map(|(file, value)| setting("", file, value));
    rows.into_iter().flatten().chain(unified).collect()
}

fn or_max(value: i64) -> String {
    if value < 0 { "max".to_string() } else { value.to_string() }
}

/// Shares (2..=262144) as a weight (1..=10000), by Kubernetes' linear mapping.
fn weight(shares: i64) -> i64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// The writes to version 1's `devices.allow` and `devices.deny` that amount to `rules`.
#[must_use]
pub fn v1_devices(rules: &[DeviceRule]) -> Vec<Setting> {
    let number = |n: Option<u32>| n.map_or("*".to_string(), |n| n.to_string());
    rules
        .iter()
        .map(|rule| {
            let file = if rule.allow { "devices.allow" } else { "devices.deny" };
            let kind = match rule.kind {
                DeviceKind::All => return setting("devices", file, "a"),
                DeviceKind::Char => 'c',
                DeviceKind::Block => 'b',
            };
            let (major, minor) = (number(rule.major), number(rule.minor));
            setting("devices", file, format!("{kind} {major}:{minor} {}", rule.access))
        })
        .collect()
}
