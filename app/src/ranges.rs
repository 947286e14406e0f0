//! Address planning: which ranges Pods, Services and nodes have, and what of it cannot work.

use std::net::IpAddr;

use knarr_api::ip::{Cidr, Class, Family};

use crate::flags::ServerFlags;
use crate::process::Fatal;

/// Few enough that an address can be found by looking; KEP-1880's bound.
const SMALLEST_V6_PREFIX: u8 = 64;

/// The cluster's ranges, one per family, its own family first.
pub(crate) struct Ranges {
    pub(crate) services: Vec<Cidr>,
    pub(crate) pods: Vec<Cidr>,
}

impl Ranges {
    /// Refuses what cannot work, with the reason.
    pub(crate) fn check(flags: &ServerFlags, advertise: IpAddr) -> Result<Self, Fatal> {
        let services = services(&flags.service_cluster_ip_range)?;
        let pods = pods(&flags.cluster_cidr)?;
        for (service, pod) in services.iter().flat_map(|s| pods.iter().map(move |p| (s, p))) {
            if service.overlaps(pod) {
                return Err(Fatal(format!(
                    "--service-cluster-ip-range {service} and --cluster-cidr {pod} overlap: an \
                     address would be both a Service's and a Pod's"
                )));
            }
        }
        for (flag, ranges) in [("service-cluster-ip-range", &services), ("cluster-cidr", &pods)] {
            if let Some(range) = ranges.iter().find(|range| range.contains(advertise)) {
                return Err(Fatal(format!(
                    "--{flag} {range} contains this machine's own address {advertise}: use a \
                     range that no machine has addresses of"
                )));
            }
        }
        // Loopback will do for a control plane that only this machine talks to.
        let class = Class::of(advertise);
        if let Some(why) = class.unusable().filter(|_| class != Class::Loopback) {
            return Err(Fatal(format!("--advertise-address {advertise} cannot be used: {why}")));
        }
        Ok(Self { services, pods })
    }
}

/// At most one range per family, each of them of use.
fn usable(flag: &str, ranges: &[Cidr]) -> Result<Vec<Cidr>, Fatal> {
    if let Some(why) = ranges.iter().find_map(Cidr::unusable) {
        return Err(Fatal(format!("--{flag}: {why}")));
    }
    match ranges {
        [_] => {}
        [a, b] if a.family() != b.family() => {}
        _ => return Err(Fatal(format!("--{flag} takes one range, or one of each IP family"))),
    }
    Ok(ranges.to_vec())
}

fn services(ranges: &[Cidr]) -> Result<Vec<Cidr>, Fatal> {
    let flag = "service-cluster-ip-range";
    for range in ranges {
        let largest = if range.family() == Family::V6 { SMALLEST_V6_PREFIX } else { 8 };
        if range.prefix() < largest || range.nth(11).is_none() {
            return Err(Fatal(format!(
                "--{flag} {range}: between 16 and 2^{} addresses are wanted",
                range.family().bits() - largest
            )));
        }
    }
    usable(flag, ranges)
}

/// Refuses an address that a node was given and that nobody can reach it at (the kubelet's
/// `--node-ip` has the same rules).
pub(crate) fn node_ips(given: &[IpAddr]) -> Result<(), Fatal> {
    let why = |address: &IpAddr| Some((*address, Class::of(*address).unusable()?));
    match given.iter().find_map(why) {
        Some((address, why)) => Err(Fatal(format!("--node-ip {address} cannot be used: {why}"))),
        None => Ok(()),
    }
}

/// Ranges of Pods.
pub(crate) fn pods(ranges: &[Cidr]) -> Result<Vec<Cidr>, Fatal> {
    usable("cluster-cidr", ranges)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::flags::{Cli, Command};

    fn check(line: &str) -> Result<(), String> {
        let words = ["knarr", "server"].into_iter().chain(line.split_whitespace());
        let cli = Cli::try_parse_from(words).map_err(|error| error.to_string())?;
        let Command::Server(flags) = cli.command else { panic!("a server") };
        let own = "192.168.7.1".parse().expect("an address");
        Ranges::check(&flags, own).map(drop).map_err(|error| error.to_string())
    }

    #[test]
    fn addresses_that_nobody_reaches_are_refused() {
        let own = |text: &str| text.parse::<IpAddr>().expect("an address");
        assert!(node_ips(&[]).is_ok());
        assert!(node_ips(&["192.168.7.1", "2001:db8::1", "100.64.0.1"].map(own)).is_ok());
        let wrong = ["127.0.0.1", "::1", "0.0.0.0", "224.0.0.9", "169.254.1.1", "fe80::1"];
        for text in wrong.into_iter().chain(["255.255.255.255", "240.0.0.1"]) {
            let refused = node_ips(&[own(text)]).expect_err(text).to_string();
            assert!(refused.contains(text), "{refused}");
        }
    }

    #[test]
    fn ranges_that_cannot_work_are_refused_with_the_reason() {
        assert_eq!(check(""), Ok(()));
        assert_eq!(
            check("--cluster-cidr 10.42.0.0/16,fd42::/48 --service-cidr fd43::/108"),
            Ok(())
        );
        for (line, why) in [
            ("--service-cidr 240.0.0.0/16", "class E"),
            ("--service-cidr 127.8.0.0/16", "loopback"),
            ("--cluster-cidr 224.1.0.0/16", "class D"),
            ("--cluster-cidr 169.254.0.0/16", "link-local"),
            ("--cluster-cidr 0.0.0.0/8", "no address of anybody"),
            ("--cluster-cidr 10.43.128.0/17", "overlap"),
            ("--cluster-cidr 192.168.0.0/16", "this machine's own address"),
            ("--cluster-cidr 10.1.0.0/16,10.2.0.0/16", "one of each IP family"),
            ("--service-cidr fd43::/40", "between 16 and 2^64"),
            ("--service-cidr 10.43.0.0/30", "between 16 and"),
            ("--service-cidr 10.43.0.0/33", "must be a valid CIDR"),
            ("--service-node-port-range 5-1", "not behind the last"),
        ] {
            let refused = check(line).expect_err(line);
            assert!(refused.contains(why), "{line}: {refused}");
        }
    }
}
