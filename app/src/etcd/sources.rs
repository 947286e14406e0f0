//! The command line of `knarr etcd` as etcd reads it: flags in Go's form, `ETCD_…` variables, or a
//! file that counts instead of both; brought into one form before anybody looks at them.

use std::collections::BTreeMap;
use std::fs;

use clap::{Arg, ArgAction, Args as _, CommandFactory as _};
use serde_json::{Map, Value};

use super::EtcdFlags;
use super::idle::is_duration;
use crate::flags::Cli;
use crate::process::Fatal;

/// The subcommand, and the name that starts it where the binary is called so.
const ETCD: &str = "etcd";
/// The flags that take a duration and mean something here.
const DURATIONS: &[&str] =
    &["grpc-keepalive-interval", "grpc-keepalive-timeout", "watch-progress-notify-interval"];

/// What was given, by the flags' names.
type Given = BTreeMap<String, String>;

/// A command line and what there is to say about it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct CommandLine {
    /// For the parser.
    pub(crate) args: Vec<String>,
    /// For the log, once there is one.
    pub(crate) notes: Vec<String>,
}

impl CommandLine {
    /// Reads the arguments of the process; those of other roles stay as they are.
    ///
    /// # Errors
    /// [`Fatal`] when sources contradict each other, or the file cannot be read.
    pub(crate) fn read(
        mut args: Vec<String>,
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, Fatal> {
        let called = args.first().and_then(|path| path.rsplit('/').next());
        if called == Some(ETCD) {
            args.insert(1, ETCD.to_owned());
        }
        let Some(at) = subcommand(&args) else { return Ok(Self { args, notes: Vec::new() }) };
        let (known, mut notes) = (Known::new(), Vec::new());
        let (mut given, rest) = known.flags(args.split_off(at + 1).into_iter());
        let env: Given = env.filter_map(|(name, value)| variable(&name, value)).collect();
        let file = given.remove("config-file").or_else(|| env.get("config-file").cloned());
        match file.filter(|file| !file.is_empty()) {
            Some(file) => {
                given = known.file(&file, &mut notes)?;
                notes.push(format!("{file} counts: other flags and ETCD_ variables do not"));
            }
            None => known.variables(env, &mut given, &mut notes)?,
        }
        given.retain(|_, value| !value.is_empty());
        args.extend(rest);
        args.extend(given.into_iter().map(|(name, value)| format!("--{name}={value}")));
        Ok(Self { args, notes })
    }
}

/// Where the subcommand stands, if it is this one.
fn subcommand(args: &[String]) -> Option<usize> {
    let at = args.iter().skip(1).position(|arg| arg == ETCD)? + 1;
    let matches = Cli::command().ignore_errors(true).try_get_matches_from(args).ok()?;
    (matches.subcommand_name() == Some(ETCD)).then_some(at)
}

/// The flag a variable stands for, and its value.
fn variable(name: &str, value: String) -> Option<(String, String)> {
    let name = name.strip_prefix("ETCD_")?;
    Some((name.to_lowercase().replace('_', "-"), value))
}

/// Flags by their names, with older names, and whether they take a value.
struct Known(BTreeMap<String, (String, bool)>);

impl Known {
    fn new() -> Self {
        let command = EtcdFlags::augment_args(clap::Command::new(ETCD));
        let switch = Arg::new("log-format").long("log-format");
        let args = command.get_arguments().chain([&switch]);
        let names = args.flat_map(|arg| {
            let name = arg.get_long().unwrap_or_default();
            let takes = arg.get_num_args().is_none_or(|range| range.min_values() > 0)
                && matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
            let aliases = arg.get_all_aliases().unwrap_or_default().into_iter();
            let names: Vec<_> = aliases.chain([name]).map(str::to_owned).collect();
            names.into_iter().map(move |alias| (alias, (name.to_owned(), takes)))
        });
        Self(names.collect())
    }

    /// The last value of each flag, and the words that are none of etcd's.
    fn flags(&self, mut words: impl Iterator<Item = String>) -> (Given, Vec<String>) {
        let (mut given, mut rest) = (Given::new(), Vec::new());
        while let Some(word) = words.next() {
            let flag = word.strip_prefix("--").or_else(|| word.strip_prefix('-'));
            let (name, value) = match flag.map(|flag| flag.split_once('=').unwrap_or((flag, ""))) {
                Some((name, value)) => (self.0.get(name), value.to_owned()),
                None => (None, String::new()),
            };
            match name {
                None => rest.push(word),
                Some((name, _)) if word.contains('=') => drop(given.insert(name.clone(), value)),
                Some((name, false)) => drop(given.insert(name.clone(), "true".to_owned())),
                Some((name, true)) => match words.next() {
                    Some(value) => drop(given.insert(name.clone(), value)),
                    None => rest.push(word),
                },
            }
        }
        (given, rest)
    }

    fn variables(
        &self,
        env: Given,
        given: &mut Given,
        notes: &mut Vec<String>,
    ) -> Result<(), Fatal> {
        let flags = given.clone();
        for (flag, value) in env {
            let variable = || format!("ETCD_{}", flag.to_uppercase().replace('-', "_"));
            // Images have the version they were made of in ETCD_VERSION.
            match self.0.get(&flag).filter(|(name, _)| name != "version") {
                None => notes.push(format!("{} is no variable of etcd's", variable())),
                Some((name, _)) if flags.contains_key(name) => {
                    return Err(Fatal(format!(
                        "{} and --{name} are both given: leave out one of them",
                        variable()
                    )));
                }
                Some((name, _)) => drop(given.insert(name.clone(), value)),
            }
        }
        Ok(())
    }

    fn file(&self, path: &str, notes: &mut Vec<String>) -> Result<Given, Fatal> {
        let bad = |why: String| Fatal(format!("--config-file {path}: {why}"));
        let text = fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
        let tree: Option<Map<String, Value>> =
            serde_saphyr::from_str(&text).map_err(|error| bad(error.to_string()))?;
        let mut given = Given::new();
        for (name, value) in tree.into_iter().flatten().flat_map(flat) {
            let Some((name, _)) = self.0.get(&name) else {
                notes.push(format!("{path}: {name} is not known to etcd"));
                continue;
            };
            let text = written(name, &value);
            let text = text.ok_or_else(|| bad(format!("{name}: {value} is no value")))?;
            given.insert(name.clone(), text);
        }
        Ok(given)
    }
}

/// An entry of the file under the flags' names: three sections have prefixes there.
fn flat((key, value): (String, Value)) -> Vec<(String, Value)> {
    let (prefix, allowed) = match key.as_str() {
        "client-transport-security" => ("", "client-cert-"),
        "peer-transport-security" => ("peer-", "peer-cert-"),
        "socket-options" => ("socket-", ""),
        _ => return vec![(key, value)],
    };
    let Value::Object(section) = value else { return vec![(key, value)] };
    let name = |key: String| match key.starts_with("allowed-") {
        true => format!("{allowed}{key}"),
        false => format!("{prefix}{key}"),
    };
    section.into_iter().map(|(key, value)| (name(key), value)).collect()
}

/// A value as a flag has it. A duration that is a number is one of nanoseconds.
fn written(name: &str, value: &Value) -> Option<String> {
    Some(match value {
        Value::Null => String::new(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) if is_duration(name) || DURATIONS.contains(&name) => {
            format!("{number}ns")
        }
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Array(values) => {
            let words: Option<Vec<_>> = values.iter().map(Value::as_str).collect();
            words?.join(",")
        }
        Value::Object(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(args: &str, env: &[(&str, &str)]) -> Result<CommandLine, String> {
        let args = args.split_whitespace().map(str::to_owned).collect();
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        CommandLine::read(args, env).map_err(|error| error.0)
    }

    fn args(args: &str, env: &[(&str, &str)]) -> String {
        read(args, env).expect("it is understood").args.join(" ")
    }

    #[test]
    fn flags_are_read_as_go_reads_them() {
        for (given, read) in [
            ("knarr etcd -name a --auto-tls", "knarr etcd --auto-tls=true --name=a"),
            ("knarr etcd --name=a --name b", "knarr etcd --name=b"),
            ("knarr etcd --auto-tls=false --cors=", "knarr etcd --auto-tls=false"),
            ("/bin/etcd --snapshot-count 7", "/bin/etcd etcd --snapshot-count=7"),
            ("knarr -v 2 etcd --log-format json", "knarr -v 2 etcd --log-format=json"),
            ("knarr etcd --nonsense 1 -v 3 --name", "knarr etcd --nonsense 1 -v 3 --name"),
            ("knarr server -name a", "knarr server -name a"),
            (
                "knarr etcd --experimental-watch-progress-notify-interval 5s",
                "knarr etcd --watch-progress-notify-interval=5s",
            ),
        ] {
            assert_eq!(args(given, &[]), read);
        }
    }

    #[test]
    fn variables_stand_for_flags_and_never_beside_them() {
        let env = [("ETCD_NAME", "b"), ("ETCD_NOTHING", "x"), ("ETCD_PROXY", ""), ("HOME", "/")];
        let env = [&env[..], &[("ETCD_VERSION", "3.5.9")]].concat();
        let read = read("knarr etcd", &env).expect("it is understood");
        assert_eq!(read.args.join(" "), "knarr etcd --name=b");
        let note = |name: &str| format!("{name} is no variable of etcd's");
        assert_eq!(read.notes, [note("ETCD_NOTHING"), note("ETCD_VERSION")]);
        let both = super::tests::read("knarr etcd --name a", &env);
        assert!(both.expect_err("they contradict").contains("ETCD_NAME and --name"));
        assert_eq!(args("knarr server", &env), "knarr server");
    }

    #[test]
    fn a_file_counts_instead_of_flags_and_variables() {
        let file = tempfile::NamedTempFile::new().expect("a file can be made");
        let text = "name: c\nlog-outputs: [stderr, /x]\nquota-backend-bytes: 5\nstrange: 1\n\
                    grpc-keepalive-interval: 7000\nclient-transport-security:\n  auto-tls: true\n  \
                    allowed-hostname: h\npeer-transport-security:\n  cert-file: /p\n";
        fs::write(file.path(), text).expect("it can be written");
        let path = file.path().display().to_string();
        let line = format!("knarr etcd --config-file {path} --name a --snapshot-count 1");
        let read = read(&line, &[("ETCD_NAME", "b")]).expect("it is understood");
        assert_eq!(
            read.args[2..].join(" "),
            "--auto-tls=true --client-cert-allowed-hostname=h --grpc-keepalive-interval=7000ns \
             --log-outputs=stderr,/x --name=c --peer-cert-file=/p --quota-backend-bytes=5"
        );
        assert_eq!(read.notes.len(), 2, "{:?}", read.notes);
        assert_eq!(args("knarr etcd", &[("ETCD_CONFIG_FILE", &path)])[..10], *"knarr etcd");
        fs::write(file.path(), "name: {a: b}").expect("it can be written");
        assert!(super::tests::read(&line, &[]).is_err());
    }
}
