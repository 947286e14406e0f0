//! Links, addresses and routes of Pods, by netlink.
