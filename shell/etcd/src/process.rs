//! What the kernel says of this process, under the names that Prometheus has for it.

use std::fs;

/// Jiffies of a second and bytes of a page, as Linux tells them to processes.
const TICKS: f64 = 100.0;
const PAGE: u64 = 4096;

/// What a metric is called, its kind, what it means, its value.
pub(crate) type Row = (&'static str, &'static str, &'static str, f64);

/// What can be found out.
pub(crate) fn rows() -> Vec<Row> {
    let open = fs::read_dir("/proc/self/fd").map(Iterator::count).ok().map(number);
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let [most, space] = ["Max open files", "Max address space"].map(|name| limit(&limits, name));
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name, in parentheses, may have blanks.
    let fields: Vec<&str> =
        stat.rsplit_once(") ").map_or(Vec::new(), |(_, fields)| fields.split(' ').collect());
    let field = |n: usize| fields.get(n - 3).and_then(|text| text.parse::<f64>().ok());
    let cpu = field(14).zip(field(15)).map(|(user, system)| (user + system) / TICKS);
    let started = booted().zip(field(22)).map(|(boot, ticks)| boot + ticks / TICKS);
    let resident = field(24).map(|pages| pages * PAGE as f64);
    let known = [
        ("os_fd_limit", "gauge", "The most files that may be open.", most),
        ("os_fd_used", "gauge", "Files that are open.", open),
        ("process_cpu_seconds_total", "counter", "Time of processors spent, in seconds.", cpu),
        ("process_max_fds", "gauge", "The most files that may be open.", most),
        ("process_open_fds", "gauge", "Files that are open.", open),
        ("process_resident_memory_bytes", "gauge", "Memory that is held.", resident),
        ("process_start_time_seconds", "gauge", "When it began, in seconds since 1970.", started),
        ("process_virtual_memory_bytes", "gauge", "Addresses that are taken.", field(23)),
        ("process_virtual_memory_max_bytes", "gauge", "The most that may be taken.", space),
    ];
    let row = |(name, kind, help, value): (_, _, _, Option<f64>)| Some((name, kind, help, value?));
    known.into_iter().filter_map(row).collect()
}

fn number(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

/// The soft limit of a row; without one it is what Go makes of it.
fn limit(limits: &str, name: &str) -> Option<f64> {
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(18_446_744_073_709_551_615.0),
        text => text.parse().ok(),
    }
}

fn booted() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}
