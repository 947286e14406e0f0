//! How much memory a store may take when nobody says: half of what this process can have.

use std::fs;

/// When nothing can be found out, as etcd's largest recommended quota.
const FALLBACK: u64 = 8 << 30;

/// Half of the machine's memory, or of the cgroup's limit where that is less.
pub(crate) fn default_budget() -> usize {
    let machine = fs::read_to_string("/proc/meminfo").ok();
    let machine = machine.and_then(|text| total(&text));
    let bytes = machine.into_iter().chain(cgroup_limits()).min().unwrap_or(FALLBACK);
    usize::try_from(bytes / 2).unwrap_or(usize::MAX)
}

/// `MemTotal` in bytes.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// `memory.max` of this process's group and of those above it.
fn cgroup_limits() -> Vec<u64> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let path = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default();
    let groups = std::path::Path::new(path).ancestors().map(|group| {
        let group = group.strip_prefix("/").unwrap_or(group);
        fs::read_to_string(std::path::Path::new("/sys/fs/cgroup").join(group).join("memory.max"))
    });
    groups.filter_map(|text| text.ok()?.trim().parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        assert_eq!(total("MemTotal:        1024 kB\nMemFree: 1 kB\n"), Some(1 << 20));
        assert_eq!(total("MemTotal: much\n"), None);
        assert!(default_budget() > 1 << 20);
    }
}
