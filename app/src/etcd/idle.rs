//! Flags of etcd that change nothing here, so that unit files and manifests need not be rewritten:
//! a table of names, kinds and reasons, and one engine. A value is checked as etcd checks it; that
//! it has no effect is said in a line of the log; and where it would be dangerous to go on without
//! it, it is refused with the reason.

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};
use tracing::info;

use crate::flags::{duration_or_zero, truth};

/// What a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Bool,
    Number,
    Duration,
    Text,
    /// One of these words.
    Word(&'static [&'static str]),
}

/// Flags that have the same reason.
#[derive(Debug)]
struct Row {
    kind: Kind,
    /// The values that may be given; none: all of the kind.
    harmless: &'static [&'static str],
    why: &'static str,
    names: &'static [&'static str],
}

const fn idle(kind: Kind, why: &'static str, names: &'static [&'static str]) -> Row {
    Row { kind, harmless: &[], why, names }
}

const fn only(
    kind: Kind,
    harmless: &'static [&'static str],
    why: &'static str,
    names: &'static [&'static str],
) -> Row {
    Row { kind, harmless, why, names }
}

const ALONE: &str = "a group of one has no peers and no elections";
const FILES: &str = "the store's files are not etcd's, and keep their own measure";
const CHECKED: &str = "every record's sum is checked at each start, and there are no peers to \
                       compare with";
const PACE: &str = "what was compacted leaves in pieces while writes go on";
const NOWHERE: &str = "members would be looked for elsewhere, but this store is a group of one";
const NO_V2: &str = "the second version of the API is not served";
const NO_PROXY: &str = "there is no proxy for the second version of the API";
const NO_TRACES: &str = "no traces are sent";
const SLOW: &str = "slow requests are not logged";

/// All of them.
const ROWS: &[Row] = &[
    idle(
        Kind::Number,
        ALONE,
        &[
            "heartbeat-interval",
            "election-timeout",
            "max-learners",
            "snapshot-catchup-entries",
            "experimental-snapshot-catchup-entries",
            "experimental-snapshot-catch-up-entries",
        ],
    ),
    idle(
        Kind::Bool,
        ALONE,
        &[
            "initial-election-tick-advance",
            "pre-vote",
            "strict-reconfig-check",
            "peer-client-cert-auth",
            "peer-auto-tls",
            "peer-skip-client-san-verification",
            "experimental-peer-skip-client-san-verification",
            "experimental-enable-lease-checkpoint",
            "experimental-enable-lease-checkpoint-persist",
        ],
    ),
    idle(
        Kind::Duration,
        ALONE,
        &[
            "raft-read-timeout",
            "raft-write-timeout",
            "downgrade-check-time",
            "experimental-downgrade-check-time",
        ],
    ),
    idle(
        Kind::Text,
        ALONE,
        &[
            "listen-peer-urls",
            "initial-cluster-token",
            "peer-cert-file",
            "peer-key-file",
            "peer-trusted-ca-file",
            "peer-client-cert-file",
            "peer-client-key-file",
            "peer-crl-file",
            "peer-cert-allowed-cn",
            "peer-cert-allowed-hostname",
        ],
    ),
    idle(Kind::Word(&["new", "existing"]), ALONE, &["initial-cluster-state"]),
    idle(
        Kind::Number,
        FILES,
        &[
            "snapshot-count",
            "max-snapshots",
            "max-wals",
            "backend-batch-limit",
            "bootstrap-defrag-threshold-megabytes",
            "experimental-bootstrap-defrag-threshold-megabytes",
        ],
    ),
    idle(Kind::Duration, FILES, &["backend-batch-interval"]),
    idle(
        Kind::Word(&["array", "map"]),
        FILES,
        &["backend-bbolt-freelist-type", "experimental-backend-bbolt-freelist-type"],
    ),
    idle(
        Kind::Bool,
        FILES,
        &[
            "experimental-txn-mode-write-with-shared-buffer",
            "experimental-stop-grpc-service-on-defrag",
        ],
    ),
    idle(Kind::Text, "the log lies in --data-dir with everything else", &["wal-dir"]),
    idle(Kind::Bool, "every write is on the disk before it is answered", &["unsafe-no-fsync"]),
    idle(Kind::Bool, "no memory is locked", &["memory-mlock", "experimental-memory-mlock"]),
    idle(
        Kind::Bool,
        CHECKED,
        &["experimental-initial-corrupt-check", "experimental-compact-hash-check-enabled"],
    ),
    idle(
        Kind::Duration,
        CHECKED,
        &[
            "corrupt-check-time",
            "experimental-corrupt-check-time",
            "compact-hash-check-time",
            "experimental-compact-hash-check-time",
        ],
    ),
    idle(Kind::Text, "there are no experiments to be switched", &["feature-gates"]),
    idle(Kind::Number, PACE, &["compaction-batch-limit", "experimental-compaction-batch-limit"]),
    idle(
        Kind::Duration,
        PACE,
        &["compaction-sleep-interval", "experimental-compaction-sleep-interval"],
    ),
    only(
        Kind::Bool,
        &["false"],
        "the state of an etcd that lost its members is taken over by `knarr store restore`; this \
         store has always one member",
        &["force-new-cluster"],
    ),
    only(
        Kind::Text,
        &[""],
        NOWHERE,
        &[
            "discovery",
            "discovery-srv",
            "discovery-srv-name",
            "discovery-token",
            "discovery-endpoints",
        ],
    ),
    idle(Kind::Word(&["exit", "proxy"]), NOWHERE, &["discovery-fallback"]),
    idle(
        Kind::Text,
        NOWHERE,
        &[
            "discovery-proxy",
            "discovery-cert",
            "discovery-key",
            "discovery-cacert",
            "discovery-user",
            "discovery-password",
        ],
    ),
    idle(
        Kind::Duration,
        NOWHERE,
        &[
            "discovery-dial-timeout",
            "discovery-request-timeout",
            "discovery-keepalive-time",
            "discovery-keepalive-timeout",
        ],
    ),
    idle(
        Kind::Bool,
        NOWHERE,
        &["discovery-insecure-transport", "discovery-insecure-skip-tls-verify"],
    ),
    idle(Kind::Bool, NO_V2, &["enable-v2"]),
    idle(Kind::Text, NO_V2, &["experimental-enable-v2v3", "v2-deprecation"]),
    only(Kind::Text, &["off"], NO_PROXY, &["proxy"]),
    idle(
        Kind::Number,
        NO_PROXY,
        &[
            "proxy-failure-wait",
            "proxy-refresh-interval",
            "proxy-dial-timeout",
            "proxy-write-timeout",
            "proxy-read-timeout",
        ],
    ),
    only(Kind::Text, &[""], "certificates that were revoked would be let in", &["client-crl-file"]),
    only(
        Kind::Text,
        &[""],
        "the names in clients' certificates are not compared, so others would be let in",
        &["client-cert-allowed-hostname", "client-cert-allowed-cn"],
    ),
    only(
        Kind::Text,
        &["*"],
        "the Host of requests is not compared, so web pages of others would be let in",
        &["host-whitelist"],
    ),
    only(Kind::Text, &["TLS1.2"], "TLS 1.2 is spoken too", &["tls-min-version"]),
    only(Kind::Text, &["TLS1.3"], "TLS 1.3 is spoken too", &["tls-max-version"]),
    idle(
        Kind::Text,
        "TLS 1.3 and, of TLS 1.2, ECDHE with AES-GCM or ChaCha20 are spoken, nothing weaker",
        &["cipher-suites"],
    ),
    idle(Kind::Text, "nothing is allowed to scripts of other origins", &["cors"]),
    idle(
        Kind::Text,
        "the store asks nothing of itself over the network",
        &["client-cert-file", "client-key-file"],
    ),
    idle(
        Kind::Number,
        "a certificate made here is valid for as long as its authority",
        &["self-signed-cert-validity"],
    ),
    idle(
        Kind::Duration,
        "a client's pings are answered, however many",
        &["grpc-keepalive-min-time"],
    ),
    idle(
        Kind::Bool,
        "an address is taken up again at once, and is never shared",
        &["socket-reuse-port", "socket-reuse-address"],
    ),
    idle(Kind::Bool, "there is no profile to be read", &["enable-pprof"]),
    idle(
        Kind::Duration,
        SLOW,
        &[
            "warning-apply-duration",
            "experimental-warning-apply-duration",
            "warning-unary-request-duration",
            "experimental-warning-unary-request-duration",
        ],
    ),
    idle(Kind::Word(&["zap", "capnslog"]), "lines look as --log-format says", &["logger"]),
    idle(Kind::Text, "one level counts for everything: --log-level", &["log-package-levels"]),
    idle(
        Kind::Bool,
        "a log file is only added to; rename it, and start again",
        &["enable-log-rotation"],
    ),
    idle(Kind::Text, "log files are not rotated", &["log-rotation-config-json"]),
    idle(
        Kind::Bool,
        NO_TRACES,
        &["enable-distributed-tracing", "experimental-enable-distributed-tracing"],
    ),
    idle(
        Kind::Number,
        NO_TRACES,
        &["distributed-tracing-sampling-rate", "experimental-distributed-tracing-sampling-rate"],
    ),
    idle(
        Kind::Text,
        NO_TRACES,
        &[
            "distributed-tracing-address",
            "experimental-distributed-tracing-address",
            "distributed-tracing-service-name",
            "experimental-distributed-tracing-service-name",
            "distributed-tracing-instance-id",
            "experimental-distributed-tracing-instance-id",
        ],
    ),
];

/// Whether a flag takes a duration.
pub(super) fn is_duration(name: &str) -> bool {
    let row = ROWS.iter().find(|row| row.names.contains(&name));
    row.is_some_and(|row| row.kind == Kind::Duration)
}

impl Row {
    /// A value, if it is of the kind and harmless.
    fn check(&self, text: &str) -> Result<String, String> {
        let checked = match self.kind {
            Kind::Bool => truth(text).map(drop),
            Kind::Number => {
                text.parse::<i64>().map(drop).map_err(|_| format!("{text:?} is no whole number"))
            }
            Kind::Duration => duration_or_zero(text).map(drop),
            Kind::Word(words) if !words.contains(&text) => {
                Err(format!("must be one of {}", words.join(", ")))
            }
            Kind::Word(_) | Kind::Text => Ok(()),
        };
        checked?;
        match self.harmless.is_empty() || self.harmless.contains(&text) {
            true => Ok(text.to_owned()),
            false => Err(self.why.to_owned()),
        }
    }

    fn arg(&'static self, name: &'static str) -> Arg {
        let arg = Arg::new(name).long(name).hide(true);
        let arg = arg.value_parser(move |text: &str| self.check(text));
        if self.kind == Kind::Bool { arg.num_args(0..=1).require_equals(true) } else { arg }
    }
}

/// Those that were given: name, value, and why it changes nothing.
#[derive(Clone, Debug)]
pub(crate) struct IdleFlags(Vec<(&'static str, String, &'static str)>);

impl IdleFlags {
    /// Says that they change nothing.
    pub(super) fn tell(&self) {
        for (name, value, why) in &self.0 {
            info!("--{name}={value} changes nothing: {why}");
        }
    }
}

impl Args for IdleFlags {
    fn augment_args(command: Command) -> Command {
        let args = ROWS.iter().flat_map(|row| row.names.iter().map(|name| row.arg(name)));
        command.args(args)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for IdleFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |row: &'static Row, name: &'static str| {
            Some((name, matches.get_one::<String>(name)?.clone(), row.why))
        };
        let rows = ROWS.iter().flat_map(|row| row.names.iter().map(move |name| given(row, name)));
        Ok(Self(rows.flatten().collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
