//! `knarr store log|show|diff`: what was, read out of the data directory without changing it,
//! beside a running server or without one. All that was acknowledged is there.

mod diff;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use knarr_registry::{Moment, pieces};
use knarr_store::mvcc::{Event, Item, KeyRange, KeyValue, Revision};
use knarr_store::{Past, PastError, ReadDisk};
use serde_json::Value;

use crate::paths;
use crate::process::Fatal;

/// Keys of objects begin with this; a key that does not begin with `/` is below it.
const REGISTRY: &str = "/registry/";
/// How many bytes of changes are read at a time.
const BATCH: usize = 1 << 20;

/// Looking into the past of a control plane.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum PastCommand {
    /// List changes: revision, time, verb and key of each.
    #[command(after_help = MOMENTS)]
    Log {
        /// From when until when [default: all that is known].
        #[arg(long, value_name = "MOMENT[..MOMENT]", allow_hyphen_values = true)]
        at: Option<String>,
        #[command(flatten)]
        place: PastFlags,
    },
    /// Print objects as they were.
    #[command(after_help = MOMENTS)]
    Show {
        /// When [default: now].
        #[arg(long, value_name = "MOMENT", allow_hyphen_values = true)]
        at: Option<String>,
        /// How to print them.
        #[arg(long, short = 'o', value_enum, default_value_t = Form::Yaml)]
        output: Form,
        #[command(flatten)]
        place: PastFlags,
    },
    /// Say what changed between two moments, field by field.
    #[command(after_help = MOMENTS)]
    Diff {
        /// From when until when; without an end, until now.
        #[arg(long, value_name = "MOMENT[..MOMENT]", allow_hyphen_values = true)]
        at: String,
        #[command(flatten)]
        place: PastFlags,
    },
}

/// Where the past is, and what of it is meant.
#[derive(Clone, Debug, Args)]
pub(crate) struct PastFlags {
    /// Where the control plane keeps its state.
    #[arg(long, default_value = "/var/lib/knarr", value_name = "DIR")]
    data_dir: PathBuf,
    /// Keys such as pods/default/web, or pods/default/ for all below it [default: all].
    #[arg(value_name = "KEY")]
    keys: Vec<String>,
}

/// How objects are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// For people.
    Yaml,
    /// One object a line.
    Json,
}

const MOMENTS: &str = "A MOMENT is a revision (1234), a time (2026-11-28T12:00:00Z), or how long \
                       ago (-10m, \"1h30m ago\"). Times are known to the second.";

/// Carries out a command.
pub(crate) fn run(command: PastCommand) -> Result<(), Fatal> {
    let out = &mut io::BufWriter::new(io::stdout().lock());
    let done = match command {
        PastCommand::Log { at, place } => log(&place, at.as_deref().unwrap_or_default(), out),
        PastCommand::Show { at, output, place } => show(&place, at.as_deref(), output, out),
        PastCommand::Diff { at, place } => diff(&place, &at, out),
    };
    match done.and_then(|()| out.flush().map_err(Failure::Output)) {
        // Whoever reads has seen enough.
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(Failure::Output(error)) => Err(Fatal(format!("cannot write: {error}"))),
        Err(Failure::Told(why)) => Err(Fatal(why)),
        Ok(()) => Ok(()),
    }
}

/// Why a command did not work.
#[derive(Debug)]
enum Failure {
    Told(String),
    Output(io::Error),
}

impl From<PastError> for Failure {
    fn from(error: PastError) -> Self {
        Self::Told(error.to_string())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

fn open(data: &Path) -> Result<Past, Failure> {
    let dir = paths::store(data);
    let told = |why: &dyn std::fmt::Display| {
        Failure::Told(format!("cannot read the store in {}: {why}", dir.display()))
    };
    let disk = ReadDisk::open(&dir).map_err(|error| told(&error))?;
    Past::open(Arc::new(disk)).map_err(|error| told(&error))
}

/// The whole state of a data directory at a moment, for a new one that is to go on from there.
pub(crate) fn items(data: &Path, at: &str) -> Result<Vec<Item>, Fatal> {
    let read = || {
        let past = open(data)?;
        Ok(past.items(resolve(&past, at)?)?)
    };
    read().map_err(|failure| match failure {
        Failure::Told(why) => Fatal(why),
        Failure::Output(error) => Fatal(error.to_string()),
    })
}

/// The revision of a moment, and the revision that ends a range of them.
fn resolve(past: &Past, text: &str) -> Result<Revision, Failure> {
    let ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let now = i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    match Moment::parse(text, now.unwrap_or(Timestamp::MAX)).map_err(Failure::Told)? {
        Moment::Revision(at) if at > past.newest() => Err(PastError::Future(past.newest()).into()),
        Moment::Revision(at) => Ok(at),
        Moment::Time(time) => Ok(past.before(u64::try_from(time.as_millisecond()).unwrap_or(0))?),
    }
}

/// `FROM..TO`, `FROM` (until now), or nothing (all there is).
fn resolve_range(past: &Past, text: &str) -> Result<(Revision, Revision), Failure> {
    let (from, to) = text.split_once("..").unwrap_or((text, ""));
    let from = if from.is_empty() { past.oldest() } else { resolve(past, from)? };
    let to = if to.is_empty() { past.newest() } else { resolve(past, to)? };
    if from > to {
        return Err(Failure::Told(format!("revision {} comes after {}", from.0, to.0)));
    }
    Ok((from, to))
}

/// The ranges that are meant.
fn ranges(keys: &[String]) -> Vec<KeyRange> {
    if keys.is_empty() {
        return vec![KeyRange::prefix("")];
    }
    let whole = |key: &str| match key.starts_with('/') {
        true => key.to_owned(),
        false => format!("{REGISTRY}{key}"),
    };
    let ranges = keys.iter().map(|key| match key.ends_with('/') {
        true => KeyRange::prefix(whole(key)),
        false => KeyRange::single(whole(key)),
    });
    ranges.collect()
}

fn log(place: &PastFlags, at: &str, out: &mut impl Write) -> Result<(), Failure> {
    let past = open(&place.data_dir)?;
    let (from, to) = resolve_range(&past, at)?;
    let ranges = ranges(&place.keys);
    let all = KeyRange::prefix("");
    let mut cursor = from;
    while cursor < to {
        let batch = past.events(&all, cursor, to, BATCH)?;
        let wanted = |event: &&Event| ranges.iter().any(|range| range.contains(&event.key));
        for event in batch.events.iter().filter(wanted) {
            let time = past.time_of(event.revision)?;
            let key = String::from_utf8_lossy(&event.key);
            writeln!(out, "{:<10} {:<20} {:<6} {key}", event.revision.0, wall(time), verb(event))?;
        }
        cursor = batch.next;
    }
    Ok(())
}

fn verb(event: &Event) -> &'static str {
    match &event.new {
        None => "delete",
        Some(kv) if kv.version == 1 => "create",
        Some(_) => "update",
    }
}

/// A moment to the second.
fn wall(ms: Option<u64>) -> String {
    let seconds = ms.and_then(|ms| i64::try_from(ms / 1000).ok());
    let time = seconds.and_then(|seconds| Timestamp::from_second(seconds).ok());
    time.map_or("-".to_owned(), |time| time.to_string())
}

fn state(
    past: &Past,
    ranges: &[KeyRange],
    at: Revision,
) -> Result<BTreeMap<Bytes, KeyValue>, Failure> {
    let mut state = BTreeMap::new();
    for range in ranges {
        state.extend(past.state(range, at)?.kvs.into_iter().map(|kv| (kv.key.clone(), kv)));
    }
    Ok(state)
}

fn show(
    place: &PastFlags,
    at: Option<&str>,
    form: Form,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let past = open(&place.data_dir)?;
    let at = at.map_or(Ok(past.newest()), |at| resolve(&past, at))?;
    let found = state(&past, &ranges(&place.keys), at)?;
    if found.is_empty() {
        return Err(Failure::Told(format!("there was nothing of that at revision {}", at.0)));
    }
    for kv in found.values() {
        let text = match (object(kv), form) {
            (Some(tree), Form::Json) => tree.to_string() + "\n",
            (Some(tree), Form::Yaml) => format!("---\n{}", yaml(&tree)),
            (None, _) => format!("# {}\n{}\n", lossy(&kv.key), lossy(&kv.value)),
        };
        out.write_all(text.as_bytes())?;
    }
    Ok(())
}

fn yaml(tree: &Value) -> String {
    serde_saphyr::to_string(tree).unwrap_or_else(|_| format!("{tree:#}\n"))
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A value as the API showed it.
fn object(kv: &KeyValue) -> Option<Value> {
    let mut chunks = Vec::new();
    pieces(&kv.value, kv.mod_revision, &mut chunks);
    serde_json::from_slice(&chunks.concat()).ok()
}

fn diff(place: &PastFlags, at: &str, out: &mut impl Write) -> Result<(), Failure> {
    let past = open(&place.data_dir)?;
    let (from, to) = resolve_range(&past, at)?;
    let ranges = ranges(&place.keys);
    let (mut before, after) = (state(&past, &ranges, from)?, state(&past, &ranges, to)?);
    for (key, new) in &after {
        match before.remove(key) {
            None => writeln!(out, "+ {}", lossy(key))?,
            Some(old) if old.mod_revision == new.mod_revision => {}
            Some(old) => {
                writeln!(out, "~ {}", lossy(key))?;
                changes(&old, new, out)?;
            }
        }
    }
    for key in before.keys() {
        writeln!(out, "- {}", lossy(key))?;
    }
    Ok(())
}

fn changes(old: &KeyValue, new: &KeyValue, out: &mut impl Write) -> io::Result<()> {
    match (object(old), object(new)) {
        (Some(old), Some(new)) => {
            diff::fields(&old, &new).iter().try_for_each(|line| writeln!(out, "    {line}"))
        }
        _ => writeln!(out, "    {} bytes -> {} bytes", old.value.len(), new.value.len()),
    }
}
