//! Pods as Linux processes: namespaces, cgroups, mounts, seccomp, and the shim that holds them.
