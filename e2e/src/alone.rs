//! A machine of its own for each test: the test's executable runs itself again inside new
//! namespaces. The first process of the new process namespace is a shell, which reaps orphans as
//! any init does; when it ends, the kernel ends everything that the test left behind.

use std::any::type_name;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Machine;
use crate::machine::noted_clusters;
use crate::snapshot::cgroups;

/// Set inside; holds the test's folder.
const INSIDE: &str = "KNARR_E2E_INSIDE";

/// Runs `test` on a machine of its own. Needs root, and says so.
///
/// # Panics
/// The test failed, or there is no root.
pub fn alone<F: FnOnce(&Machine)>(test: F) {
    let name = test_name(type_name::<F>());
    if let Some(dir) = std::env::var_os(INSIDE) {
        prepare();
        return test(&Machine::new(PathBuf::from(dir)));
    }
    assert!(
        rustix::process::geteuid().is_root(),
        "end-to-end tests start containers: run them as root"
    );
    let dir = tempfile::Builder::new().prefix("knarr-e2e-").tempdir_in("/var/tmp").unwrap();
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    // Ended from here, before the test runner would end us, the test is cleaned up after.
    let status = Command::new("timeout")
        .args([
            "--foreground",
            "--kill-after=5",
            "200",
            "unshare",
            "--mount",
            "--net",
            "--pid",
            "--ipc",
            "--uts",
            "--fork",
            "--mount-proc",
        ])
        .args(["--kill-child", "sh", "-c", r#""$0" "$@"; exit $?"#])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--include-ignored"])
        .env(INSIDE, dir.path())
        .status()
        .expect("coreutils has timeout");
    remove_cgroups(dir.path());
    assert!(status.success(), "{name} failed on its machine: {status}");
}

/// The test that a closure was written in: `deploy::scales::{{closure}}` is `scales`.
fn test_name(closure: &str) -> &str {
    let function = closure.strip_suffix("::{{closure}}").unwrap_or(closure);
    function.split_once("::").map_or(function, |(_, path)| path)
}

/// Loopback, and a link with an address and the default route, as a machine has.
fn prepare() {
    for line in [
        "link set lo up",
        "link add uplink type bridge",
        // Without this the kernel adds addresses and routes of its own in its own time.
        "link set uplink addrgenmode none",
        "address add 198.51.100.10/24 dev uplink",
        "link set uplink up",
        "route add default via 198.51.100.1",
    ] {
        let status = Command::new("ip").args(line.split(' ')).status().unwrap();
        assert!(status.success(), "ip {line}: {status}");
    }
}

/// Control groups are the one thing that no namespace takes along.
fn remove_cgroups(dir: &Path) {
    for group in cgroups(&noted_clusters(dir)) {
        fs::remove_dir(group).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_test_comes_from_its_closure() {
        assert_eq!(test_name("deploy::scales::{{closure}}"), "scales");
        assert_eq!(test_name("deploy::inner::scales::{{closure}}"), "inner::scales");
    }
}
