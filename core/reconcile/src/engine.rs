//! Which key runs when.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use jiff::{SignedDuration, Timestamp};
use knarr_api::{ObjectKey, Resource};

use crate::gate::{Gate, Written};
use crate::plan::Plan;
use crate::view::{Change, Row, View};
use crate::{Config, Ctx};

/// A key that failed runs again after 5 ms, then 10, 20, … as upstream's queues do.
const FIRST_RETRY: Duration = Duration::from_millis(5);
const LAST_RETRY: Duration = Duration::from_secs(1000);

/// What a controller works on: one object, or whatever its wake functions name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// The resource.
    pub resource: Resource,
    /// The object; empty for a controller that works on everything at once.
    pub object: ObjectKey,
}

/// Which keys a change of a watched object wakes.
#[derive(Clone, Copy)]
pub enum Wake {
    /// The object itself.
    Itself,
    /// Its controller, if that is an object of this resource and kind.
    Controller(Resource, &'static str),
    /// The one key of a controller that works on everything at once.
    Everything(Resource),
    /// What this function says; it sees the view after the change.
    With(fn(&View, Resource, &Row) -> Vec<Key>),
}

impl Wake {
    /// The keys that a change of this row wakes.
    pub fn keys(&self, view: &View, resource: Resource, row: &Row) -> Vec<Key> {
        match self {
            Self::Itself => [Key { resource, object: row.key.clone() }].into(),
            Self::Controller(owner, kind) => {
                let group_version = |owner: &crate::view::Owner| owner.kind == *kind;
                let found = row.facts.controller().filter(|owner| group_version(owner));
                let object = found.map(|o| ObjectKey::new(&row.key.namespace, &o.name));
                object.map(|object| Key { resource: *owner, object }).into_iter().collect()
            }
            Self::Everything(resource) => {
                [Key { resource: *resource, object: ObjectKey::default() }].into()
            }
            Self::With(function) => function(view, resource, row),
        }
    }
}

/// A resource that a controller watches, and whom its changes wake.
#[derive(Clone, Copy)]
pub struct Watch {
    /// The resource.
    pub resource: Resource,
    /// Who wakes.
    pub wake: Wake,
}

/// One row of the ring.
#[derive(Clone)]
pub struct Controller {
    /// Its name, as upstream has it.
    pub name: &'static str,
    /// The user it acts as.
    pub user: &'static str,
    /// What it watches.
    pub watches: Vec<Watch>,
    /// What it does about a key.
    pub reconcile: fn(&View, &Key, &Ctx<'_>) -> Plan,
}

/// A plan to be carried out.
#[derive(Clone, Debug)]
pub struct Job {
    /// Index of the controller.
    pub controller: usize,
    /// The key it is about.
    pub key: Key,
    /// What to do.
    pub plan: Plan,
}

/// How carrying out a plan went.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Every write succeeded.
    Done(Vec<Written>),
    /// Something was refused: what was written before that, and what the answer said (`None` for
    /// a conflict, which is only a lost race).
    Failed(Vec<Written>, Option<String>),
    /// Nobody knows: these resources must be read anew before the key runs again.
    Unknown(Vec<Resource>),
}

#[derive(Default)]
struct State {
    running: bool,
    gate: Gate,
    failures: u32,
    not_before: Option<Timestamp>,
    refused: Option<String>,
}

/// One controller's queue.
#[derive(Default)]
struct Queue {
    ready: VecDeque<Key>,
    queued: BTreeSet<Key>,
    gated: BTreeSet<Key>,
    timed: BTreeSet<(Timestamp, Key)>,
    timers: BTreeMap<Key, Timestamp>,
    states: BTreeMap<Key, State>,
}

impl Queue {
    fn push(&mut self, key: Key) {
        if self.queued.insert(key.clone()) {
            self.ready.push_back(key);
        }
    }

    /// Runs the key as soon as the view has seen its own writes.
    fn push_gated(&mut self, key: Key, view: &View) {
        let state = self.states.entry(key.clone()).or_default();
        if state.gate.open(view) {
            self.push(key);
        } else {
            self.gated.insert(key);
        }
    }

    /// Wakes the key at that time, and not at the time it had before.
    fn set_timer(&mut self, key: Key, at: Timestamp) {
        if let Some(old) = self.timers.insert(key.clone(), at) {
            self.timed.remove(&(old, key.clone()));
        }
        self.timed.insert((at, key));
    }

    /// Takes the next key whose time has come.
    fn due(&mut self, now: Timestamp) -> Option<Key> {
        if self.timed.first()?.0 > now {
            return None;
        }
        let (_, key) = self.timed.pop_first()?;
        self.timers.remove(&key);
        Some(key)
    }
}

/// All controllers of one process, over one view.
pub struct Engine {
    controllers: Vec<Controller>,
    queues: Vec<Queue>,
    view: View,
    config: Config,
    since: Option<Timestamp>,
    turn: usize,
}

impl Engine {
    /// An engine for these rows; nothing runs before the resources it watches are synced.
    pub fn new(controllers: Vec<Controller>, config: Config) -> Self {
        let watches = controllers.iter().flat_map(|controller| &controller.watches);
        let view = View::new(watches.map(|watch| watch.resource));
        let queues = controllers.iter().map(|_| Queue::default()).collect();
        Self { controllers, queues, view, config, since: None, turn: 0 }
    }

    /// What must be watched for it.
    pub fn resources(&self) -> BTreeSet<Resource> {
        let watches = self.controllers.iter().flat_map(|controller| &controller.watches);
        watches.map(|watch| watch.resource).collect()
    }

    /// The view as it is.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// The rows.
    pub fn controllers(&self) -> &[Controller] {
        &self.controllers
    }

    /// Takes up what a watch told.
    pub fn handle(&mut self, resource: Resource, change: &Change) {
        for (old, new) in self.view.apply(resource, change) {
            for (controller, queue) in self.controllers.iter().zip(&mut self.queues) {
                for watch in controller.watches.iter().filter(|w| w.resource == resource) {
                    for row in old.iter().chain(&new) {
                        for key in watch.wake.keys(&self.view, resource, row) {
                            wake(queue, key);
                        }
                    }
                }
            }
        }
        for queue in &mut self.queues {
            for key in core::mem::take(&mut queue.gated) {
                queue.push_gated(key, &self.view);
            }
        }
    }

    /// The next plan to carry out, if a key is ready; empty plans are finished here.
    pub fn poll(&mut self, now: Timestamp, seed: u64) -> Option<Job> {
        for queue in &mut self.queues {
            while let Some(key) = queue.due(now) {
                queue.states.entry(key.clone()).or_default().not_before = None;
                wake(queue, key);
            }
        }
        for _ in 0..self.controllers.len() {
            self.turn = (self.turn + 1) % self.controllers.len();
            if let Some(job) = self.poll_controller(self.turn, now, seed) {
                return Some(job);
            }
        }
        None
    }

    fn poll_controller(&mut self, at: usize, now: Timestamp, seed: u64) -> Option<Job> {
        let controller = &self.controllers[at];
        if !controller.watches.iter().all(|watch| self.view.synced(watch.resource)) {
            return None;
        }
        while let Some(key) = self.queues[at].ready.pop_front() {
            self.queues[at].queued.remove(&key);
            let state = self.queues[at].states.entry(key.clone()).or_default();
            if !state.gate.open(&self.view) {
                self.queues[at].gated.insert(key);
                continue;
            }
            let refused = state.refused.as_deref();
            let since = *self.since.get_or_insert(now);
            let ctx = Ctx { now, since, seed, config: &self.config, refused };
            let plan = (controller.reconcile)(&self.view, &key, &ctx);
            if plan.is_empty() {
                finished(&mut self.queues[at], &key, plan.retry_after, now);
                continue;
            }
            state.running = true;
            return Some(Job { controller: at, key, plan });
        }
        None
    }

    /// Takes up how a job went; its key may run again once its gate is open.
    pub fn finish(&mut self, job: &Job, outcome: Outcome, now: Timestamp) {
        let queue = &mut self.queues[job.controller];
        let state = queue.states.entry(job.key.clone()).or_default();
        state.running = false;
        let (written, failed, refused) = match outcome {
            Outcome::Done(written) => (written, false, None),
            Outcome::Failed(written, why) => (written, true, why),
            // The driver restarts those watches, and nothing of this controller runs before they
            // are synced again.
            Outcome::Unknown(_) => (Vec::new(), true, None),
        };
        state.refused = refused;
        state.gate = Gate::new(written);
        if failed {
            state.failures += 1;
            let doublings = (state.failures - 1).min(20);
            let at = later(now, FIRST_RETRY.saturating_mul(1 << doublings).min(LAST_RETRY));
            state.not_before = Some(at);
            queue.set_timer(job.key.clone(), at);
            return;
        }
        state.failures = 0;
        // A look at what came of it: plans are carried out in steps, each on a fresh view.
        queue.push_gated(job.key.clone(), &self.view);
        if let Some(wait) = job.plan.retry_after {
            queue.set_timer(job.key.clone(), later(now, wait));
        }
    }

    /// When [`Engine::poll`] is next worth calling although nothing happens.
    pub fn deadline(&self) -> Option<Timestamp> {
        self.queues.iter().filter_map(|queue| Some(queue.timed.first()?.0)).min()
    }

    /// Keys waiting, by controller (for metrics).
    pub fn depths(&self) -> Vec<(&'static str, usize)> {
        let depth = |queue: &Queue| queue.ready.len() + queue.gated.len();
        self.controllers.iter().zip(&self.queues).map(|(c, q)| (c.name, depth(q))).collect()
    }

    /// Says why a key does not run, for people.
    pub fn explain(&self, controller: &str, key: &Key) -> Option<String> {
        let at = self.controllers.iter().position(|row| row.name == controller)?;
        let state = self.queues[at].states.get(key)?;
        Some(alloc::format!("running: {}, failures: {}", state.running, state.failures))
    }
}

fn later(now: Timestamp, wait: Duration) -> Timestamp {
    let wait = SignedDuration::try_from(wait).unwrap_or(SignedDuration::MAX);
    now.saturating_add(wait).unwrap_or(Timestamp::MAX)
}

/// Marks a key as having something to look at.
fn wake(queue: &mut Queue, key: Key) {
    let state = queue.states.entry(key.clone()).or_default();
    // A running key looks again when it is done; a failed one when its time has come.
    if state.running || state.not_before.is_some() {
        return;
    }
    if !queue.gated.contains(&key) {
        queue.push(key);
    }
}

/// A key with nothing to do is forgotten until something wakes it.
fn finished(queue: &mut Queue, key: &Key, again: Option<Duration>, now: Timestamp) {
    queue.states.remove(key);
    if let Some(wait) = again {
        queue.set_timer(key.clone(), later(now, wait));
    }
}
