//! Probes: when each is due, and what their results say of a container.
//!
//! A probe belongs to one run of a container; the next run begins anew. What the API was told of a
//! run is where a new agent goes on from, so that a restart of the agent makes nothing unready.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use jiff::{SignedDuration, Timestamp};
use knarr_oci::cri::{ContainerState, ContainerStatus};
use knarr_typed::k8s_openapi::api::core::v1::{ContainerStatus as Told, Probe};
use knarr_typed::{Container, Pod};

use crate::checks::{self, Check};
use crate::decide::is_sidecar;
use crate::{Action, Observed, PodEvent};

/// What is asked of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProbeKind {
    /// Whether it is through with starting; the others wait for that.
    Startup,
    /// Whether it works at all.
    Liveness,
    /// Whether it takes requests.
    Readiness,
}

impl fmt::Display for ProbeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What came of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Well.
    Success,
    /// Well, with something a person should know.
    Warning(String),
    /// Not well, and why.
    Failure(String),
    /// The probe itself could not be made; it says nothing of the container.
    Error(String),
}

/// A probe of a container's run.
#[derive(Clone, Debug)]
struct Record {
    /// The container's id.
    id: String,
    /// Whether it is taken to be well, once that is known.
    well: Option<bool>,
    /// The last answer, and how often in a row it came.
    last: Option<bool>,
    times: i32,
    /// Nothing is asked any more of this run.
    done: bool,
    /// An answer is on its way.
    asked: bool,
    /// When it is asked next.
    next: Timestamp,
}

/// What is known from probes. Soft state: lost, it goes on from what the API was told.
#[derive(Clone, Debug, Default)]
pub struct Probes {
    records: BTreeMap<(String, ProbeKind), Record>,
}

/// What follows from a look at the probes.
#[derive(Default)]
pub(crate) struct Due {
    pub(crate) actions: Vec<Action>,
    pub(crate) wake: Option<Timestamp>,
}

pub(crate) fn of(container: &Container, kind: ProbeKind) -> Option<&Probe> {
    match kind {
        ProbeKind::Startup => container.startup_probe.as_ref(),
        ProbeKind::Liveness => container.liveness_probe.as_ref(),
        ProbeKind::Readiness => container.readiness_probe.as_ref(),
    }
}

fn seconds(count: Option<i32>, default: i32) -> SignedDuration {
    SignedDuration::from_secs(i64::from(count.filter(|count| *count > 0).unwrap_or(default)))
}

fn after(at: Timestamp, wait: SignedDuration) -> Timestamp {
    at.saturating_add(wait).unwrap_or(at)
}

/// What a probe does, and within how many seconds it must be through.
///
/// # Errors
/// When it cannot be made, in words.
pub fn check(
    pod: &Pod,
    container: &str,
    kind: ProbeKind,
    addresses: &[String],
) -> Result<(Check, u64), String> {
    let found = checks::find(pod, container);
    let found = found.and_then(|container| Some((container, of(container, kind)?)));
    let Some((container, probe)) = found else { return Err("no such probe".to_owned()) };
    let address = addresses.first().map(String::as_str).unwrap_or_default();
    let timeout = seconds(probe.timeout_seconds, 1).as_secs().unsigned_abs();
    Ok((checks::of_probe(pod, container, probe, address)?, timeout))
}

const KINDS: [ProbeKind; 3] = [ProbeKind::Startup, ProbeKind::Liveness, ProbeKind::Readiness];

impl Probes {
    /// Whether a run is through with starting.
    pub(crate) fn started(&self, container: &Container, run: &ContainerStatus) -> bool {
        container.startup_probe.is_none() || self.well(container, run, ProbeKind::Startup)
    }

    /// Whether a run takes requests.
    pub(crate) fn ready(&self, container: &Container, run: &ContainerStatus) -> bool {
        container.readiness_probe.is_none() || self.well(container, run, ProbeKind::Readiness)
    }

    fn well(&self, container: &Container, run: &ContainerStatus, kind: ProbeKind) -> bool {
        self.record(container, run, kind).and_then(|record| record.well).unwrap_or(false)
    }

    /// The probe that a run failed so that it has to end.
    pub(crate) fn failed(&self, container: &Container, run: &ContainerStatus) -> Option<ProbeKind> {
        let bad = |kind: &ProbeKind| {
            self.record(container, run, *kind).is_some_and(|record| record.well == Some(false))
        };
        [ProbeKind::Startup, ProbeKind::Liveness].into_iter().find(bad)
    }

    fn record(
        &self,
        container: &Container,
        run: &ContainerStatus,
        kind: ProbeKind,
    ) -> Option<&Record> {
        let record = self.records.get(&(container.name.clone(), kind))?;
        (record.id == run.id && of(container, kind).is_some()).then_some(record)
    }

    /// Takes in what runs, and says which probes are due.
    pub(crate) fn look(&mut self, pod: &Pod, observed: &Observed, now: Timestamp) -> Due {
        let mut due = Due::default();
        let Some(spec) = &pod.spec else { return due };
        let sidecars = spec.init_containers.iter().flatten().filter(|init| is_sidecar(init));
        for container in sidecars.chain(&spec.containers) {
            let newest = observed.containers.iter().filter(|c| c.metadata.name == container.name);
            let Some(run) = newest.max_by_key(|run| run.metadata.attempt) else { continue };
            let lives = run.state == ContainerState::Running
                && !observed.starting.contains(&container.name);
            if lives {
                self.note(pod, container, run);
                self.ask(pod, container, run, now, &mut due);
            }
        }
        due
    }

    /// Makes the records of a run that was not seen before.
    fn note(&mut self, pod: &Pod, container: &Container, run: &ContainerStatus) {
        let told = told(pod, run);
        for kind in KINDS {
            let Some(probe) = of(container, kind) else { continue };
            let key = (container.name.clone(), kind);
            if self.records.get(&key).is_some_and(|record| record.id == run.id) {
                continue;
            }
            let well = match (kind, told) {
                (ProbeKind::Startup, Some(told)) if told.started == Some(true) => Some(true),
                (ProbeKind::Readiness, told) => Some(told.is_some_and(|told| told.ready)),
                _ => None,
            };
            let began = Timestamp::from_nanosecond(run.started_at.into()).unwrap_or_default();
            let next = after(began, seconds(probe.initial_delay_seconds, 0));
            let done = kind == ProbeKind::Startup && well == Some(true);
            let (id, last, times, asked) = (run.id.clone(), None, 0, false);
            self.records.insert(key, Record { id, well, last, times, done, asked, next });
        }
    }

    /// Adds what is to be asked of a run, or when.
    fn ask(
        &mut self,
        pod: &Pod,
        container: &Container,
        run: &ContainerStatus,
        now: Timestamp,
        due: &mut Due,
    ) {
        let deleting = pod.metadata.deletion_timestamp.is_some();
        for kind in KINDS {
            let started = self.started(container, run);
            let Some(probe) = of(container, kind) else { continue };
            let Some(record) = self.records.get_mut(&(container.name.clone(), kind)) else {
                continue;
            };
            if deleting && kind != ProbeKind::Readiness {
                // What is on its way out is left in peace.
                (record.well, record.done) = (Some(true), true);
            }
            let waits = kind != ProbeKind::Startup && !started;
            if record.done || record.asked || waits {
                continue;
            }
            if record.next > now {
                due.wake = Some(due.wake.map_or(record.next, |wake| wake.min(record.next)));
                continue;
            }
            record.asked = true;
            // Not from when it was due: what was missed is not made up for.
            record.next = after(now, seconds(probe.period_seconds, 10));
            let (name, id) = (container.name.clone(), run.id.clone());
            due.actions.push(Action::Probe { name, kind, id });
        }
    }

    /// Takes in what came of a probe of the run with that id; what people are told of it.
    pub fn heard(
        &mut self,
        pod: &Pod,
        (name, kind, id): (&str, ProbeKind, &str),
        outcome: &Outcome,
    ) -> Option<PodEvent> {
        let container = checks::find(pod, name)?;
        let probe = of(container, kind)?;
        let record = self.records.get_mut(&(name.to_owned(), kind))?;
        if record.id != id {
            return None;
        }
        record.asked = false;
        let well = match outcome {
            Outcome::Success | Outcome::Warning(_) => Some(true),
            Outcome::Failure(_) => Some(false),
            Outcome::Error(_) => None,
        };
        if let Some(well) = well.filter(|_| !record.done) {
            record.take(kind, well, probe);
        }
        event(kind, outcome)
    }

    /// Takes back that an answer was on its way: nobody will bring it.
    pub fn unasked(&mut self) {
        self.records.values_mut().for_each(|record| record.asked = false);
    }
}

impl Record {
    fn take(&mut self, kind: ProbeKind, well: bool, probe: &Probe) {
        self.times = if self.last == Some(well) { self.times.saturating_add(1) } else { 1 };
        self.last = Some(well);
        let needed = if well { probe.success_threshold } else { probe.failure_threshold };
        let default = if well { 1 } else { 3 };
        if self.times < needed.filter(|count| *count > 0).unwrap_or(default) {
            return;
        }
        self.well = Some(well);
        let settles = kind == ProbeKind::Startup || kind == ProbeKind::Liveness && !well;
        self.done = settles;
    }
}

fn event(kind: ProbeKind, outcome: &Outcome) -> Option<PodEvent> {
    let (reason, message) = match outcome {
        Outcome::Success => return None,
        Outcome::Warning(text) => ("ProbeWarning", format!("{kind} probe warning: {text}")),
        Outcome::Failure(text) => ("Unhealthy", format!("{kind} probe failed: {text}")),
        Outcome::Error(text) => {
            let text = format!("{kind} probe errored and resulted in unknown state: {text}");
            ("Unhealthy", text)
        }
    };
    Some(PodEvent { warning: true, reason, message })
}

/// What the API was told of a run.
fn told<'a>(pod: &'a Pod, run: &ContainerStatus) -> Option<&'a Told> {
    let status = pod.status.as_ref()?;
    let lists = [&status.init_container_statuses, &status.container_statuses];
    let mut all = lists.into_iter().flatten().flatten();
    let its = |told: &&Told| told.container_id.as_ref().is_some_and(|id| id.ends_with(&run.id));
    all.find(its)
}
