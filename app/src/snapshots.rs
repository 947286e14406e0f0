//! `knarr store`: the state of a new control plane, made of a snapshot or of a running etcd.

mod fetch;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use knarr_registry::{Report, Takeover, everything};
use knarr_schema::Schema;
use knarr_store::mvcc::{Item, Keyspace, Restore};
use knarr_store::{HashCheck, RealDisk, RestoreError, read_etcd_snapshot, restore};

use crate::flags::{ImportFlags, NewStoreFlags, StoreCommand, StoreFlags};
use crate::process::Fatal;
use crate::{backend, history, paths};

/// How often a long run says where it is.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Carries out a store command.
pub(crate) fn run(flags: StoreFlags) -> Result<(), Fatal> {
    match flags.command {
        StoreCommand::Restore { snapshot: Some(snapshot), target, .. } => {
            restore_snapshot(&snapshot, &target)
        }
        StoreCommand::Restore { from, at, target, .. } => {
            let items = history::items(&from.unwrap_or_default(), &at.unwrap_or_default())?;
            println!("{}", summary(&write(items, &target)?, &target));
            Ok(())
        }
        StoreCommand::Past(command) => history::run(command),
        StoreCommand::Import(flags) => import(&flags),
    }
}

/// Says where a long run is, on standard error, at most once a second.
struct Progress(Instant);

impl Progress {
    fn new() -> Self {
        Self(Instant::now())
    }

    fn tell(&mut self, what: impl FnOnce() -> String) {
        if self.0.elapsed() >= TELL_EVERY {
            eprintln!("{}", what());
            self.0 = Instant::now();
        }
    }
}

fn restore_snapshot(snapshot: &Path, target: &NewStoreFlags) -> Result<(), Fatal> {
    let items = read(&read_file(snapshot)?, target, &snapshot.display())?;
    let foreign = items.iter().filter(|item| is_protobuf(item)).count();
    let state = write(items, target)?;
    println!("{}", summary(&state, target));
    if foreign > 0 {
        println!(
            "{foreign} values are in the form of upstream's API server. An upstream API server \
             can go on with them; for knarr's own use `knarr store import --snapshot`."
        );
    }
    Ok(())
}

fn is_protobuf(item: &Item) -> bool {
    let value = match item {
        Item::Base(version) => version.value(),
        Item::Change { new: Some(kv), .. } => &kv.value,
        _ => return false,
    };
    value.starts_with(b"k8s\0")
}

fn import(flags: &ImportFlags) -> Result<(), Fatal> {
    let target = &flags.target;
    let items = match &flags.snapshot {
        Some(file) => read(&read_file(file)?, target, &file.display())?,
        None => {
            let file = fetch::snapshot(flags)?;
            let always = NewStoreFlags { skip_hash_check: false, ..target.clone() };
            read(&file, &always, &"what etcd sent")?
        }
    };
    let state = state(items)?;
    let mut takeover = Takeover::new(Schema::builtin(), &flags.prefix);
    let mut progress = Progress::new();
    for (done, kv) in everything(&state).enumerate() {
        takeover.take(&kv);
        progress.tell(|| format!("{done} keys read"));
    }
    tell(takeover.report());
    if !flags.keep_unreadable && !takeover.report().unreadable.is_empty() {
        return Err(Fatal(format!(
            "{} values cannot be read here (see above), and nothing was written: have the old \
             cluster write them anew, unencrypted or in a served version, or keep them as they \
             are with --keep-unreadable",
            takeover.report().unreadable.len()
        )));
    }
    if flags.dry_run {
        return Ok(());
    }
    let state = write(takeover.items(&state), target)?;
    println!("{}", summary(&state, target));
    Ok(())
}

fn read_file(path: &Path) -> Result<Vec<u8>, Fatal> {
    std::fs::read(path).map_err(|error| Fatal(format!("cannot read {}: {error}", path.display())))
}

fn read(file: &[u8], flags: &NewStoreFlags, name: &dyn Display) -> Result<Vec<Item>, Fatal> {
    let check = if flags.skip_hash_check { HashCheck::Skipped } else { HashCheck::Required };
    read_etcd_snapshot(file, check).map_err(|error| Fatal(format!("{name}: {error}")))
}

fn state(items: Vec<Item>) -> Result<Keyspace, Fatal> {
    let mut restore = Restore::new();
    items.into_iter().try_for_each(|item| restore.push(item))?;
    Ok(restore.finish()?)
}

/// Makes the store; the state that it has.
fn write(items: Vec<Item>, target: &NewStoreFlags) -> Result<Keyspace, Fatal> {
    let dir = paths::store(&target.data_dir);
    let cannot = |error: &dyn Display| Fatal(format!("cannot use {}: {error}", dir.display()));
    let disk = RealDisk::open(&dir).map_err(|error| cannot(&error))?;
    restore(Arc::new(disk), &backend::new_store()?, items).map_err(|error| match error {
        RestoreError::NotEmpty => cannot(&format!("{error}: choose another --data-dir")),
        error => cannot(&format!("{error}. What is there now is no store: remove it")),
    })
}

fn summary(state: &Keyspace, target: &NewStoreFlags) -> String {
    format!(
        "{} keys at revision {} in {}: `knarr server --data-dir {}` goes on from there",
        everything(state).count(),
        state.revision().0,
        paths::store(&target.data_dir).display(),
        target.data_dir.display()
    )
}

/// Says what became of a state.
fn tell(report: &Report) {
    println!("{:<60} {:>10} {:>10}", "KIND", "CONVERTED", "AS IT WAS");
    for (kind, tally) in &report.kinds {
        println!("{kind:<60} {:>10} {:>10}", tally.converted, tally.passed);
    }
    for (what, count) in &report.left_out {
        println!("left out: {count} of {what}");
    }
    for (from, to) in &report.moved {
        println!("moved: {from} is {to} here");
    }
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for (key, why) in &report.unreadable {
        println!("unreadable: {key}: {why}");
        *reasons.entry(why).or_default() += 1;
    }
    for (why, count) in reasons {
        println!("{count} unreadable: {why}");
    }
}
