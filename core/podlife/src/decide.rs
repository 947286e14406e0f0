//! The decision: what a Pod needs next.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use jiff::{SignedDuration, Timestamp};
use knarr_oci::cri::{ContainerState, ContainerStatus, PodSandboxState, PodSandboxStatus};
use knarr_typed::{Container, Pod, PodSpec};

use crate::backoff::{Backoffs, retry_at};
use crate::draining;
use crate::probes::{self, ProbeKind, Probes};
use crate::pulls::{self, Verdict, Wait};
use crate::restart::restarts;
use crate::status::{self, Waiting};
use crate::{Action, Decision, Memory, Observed, PodEvent};

const DEFAULT_GRACE_SECONDS: i64 = 30;
/// What a sidecar has at least, if there is a grace period at all.
const MIN_GRACE_SECONDS: i64 = 2;
/// The exit code of a process that was killed.
const KILLED: i32 = 137;

/// A Pod as the decision sees it.
pub(crate) struct Look<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) spec: &'a PodSpec,
    pub(crate) observed: &'a Observed,
    pub(crate) now: Timestamp,
    pub(crate) probes: &'a Probes,
}

/// Decides what a Pod needs next and what is to be reported of it. `None` when the Pod has no spec.
pub fn decide(
    pod: &Pod,
    observed: &Observed,
    memory: &mut Memory,
    now: Timestamp,
) -> Option<Decision> {
    let spec = pod.spec.as_ref()?;
    let due = memory.probes.look(pod, observed, now);
    let Memory { backoffs, probes, leaving } = memory;
    let look = Look { pod, spec, observed, now, probes };
    let mut steps = Steps { backoffs, decision: Decision::default(), waiting: Waiting::default() };
    steps.decision.actions = due.actions;
    steps.decision.wake = due.wake;
    if look.deleting() {
        let since = *leaving.get_or_insert(now);
        steps.terminate(&look, since);
    } else if look.over() {
        steps.wind_up(&look);
    } else {
        steps.run(&look);
    }
    let Steps { mut decision, waiting, .. } = steps;
    decision.status = status::status(&look, &waiting);
    Some(decision)
}

impl<'a> Look<'a> {
    pub(crate) fn deleting(&self) -> bool {
        self.pod.metadata.deletion_timestamp.is_some()
    }

    pub(crate) fn inits(&self) -> &'a [Container] {
        self.spec.init_containers.as_deref().unwrap_or_default()
    }

    pub(crate) fn restart_policy(&self) -> &'a str {
        self.spec.restart_policy.as_deref().unwrap_or("Always")
    }

    /// Containers of that name, newest first.
    pub(crate) fn runs(&self, name: &str) -> Vec<&'a ContainerStatus> {
        let all = self.observed.containers.iter();
        let mut runs: Vec<_> = all.filter(|c| c.metadata.name == name).collect();
        runs.sort_by_key(|run| core::cmp::Reverse(run.metadata.attempt));
        runs
    }

    pub(crate) fn newest(&self, name: &str) -> Option<&'a ContainerStatus> {
        self.runs(name).into_iter().next()
    }

    pub(crate) fn sandbox(&self) -> Option<&'a PodSandboxStatus> {
        self.observed.sandboxes.iter().find(|s| s.state == PodSandboxState::Ready)
    }

    fn runs_something(&self) -> bool {
        self.observed.containers.iter().any(|run| run.state == ContainerState::Running)
    }

    fn grace(&self) -> u64 {
        grace(self.pod)
    }

    /// The grace period of a container that failed a probe: the probe may have its own.
    fn grace_after(&self, container: &Container, failed: ProbeKind) -> u64 {
        let probe = probes::of(container, failed);
        let own = probe.and_then(|probe| probe.termination_grace_period_seconds);
        own.map_or_else(|| self.grace(), |own| own.max(0).unsigned_abs())
    }

    /// What the others left of the grace period to the sidecars.
    fn grace_left(&self) -> u64 {
        let Some(end) = &self.pod.metadata.deletion_timestamp else { return self.grace() };
        let left = end.0.duration_since(self.now).as_secs().max(MIN_GRACE_SECONDS);
        self.grace().min(left.unsigned_abs())
    }

    /// Whether the Pod has done all it ever will.
    pub(crate) fn over(&self) -> bool {
        self.final_phase().is_some() || self.expired() || self.all_ended()
    }

    /// When the Pod has been active for as long as it may be.
    pub(crate) fn deadline(&self) -> Option<Timestamp> {
        let seconds = self.spec.active_deadline_seconds?;
        let began = self.pod.status.as_ref()?.start_time.as_ref()?.0;
        began.checked_add(SignedDuration::from_secs(seconds)).ok()
    }

    /// Whether that is behind it.
    pub(crate) fn expired(&self) -> bool {
        self.deadline().is_some_and(|deadline| deadline <= self.now)
    }

    /// The phase that was reported, if a Pod never leaves it.
    pub(crate) fn final_phase(&self) -> Option<&'static str> {
        let told = self.pod.status.as_ref()?.phase.as_deref()?;
        ["Succeeded", "Failed"].into_iter().find(|phase| *phase == told)
    }

    fn all_ended(&self) -> bool {
        let ended = |container: &Container| {
            let run = self.newest(&container.name);
            let ended = |run: &ContainerStatus| run.state == ContainerState::Exited;
            run.is_some_and(|run| ended(run) && !self.restarts(container, run))
        };
        self.init_failed() || self.spec.containers.iter().all(ended)
    }

    /// Whether an init container failed that is not tried again.
    pub(crate) fn init_failed(&self) -> bool {
        let failed = |container: &Container| {
            let run = self.newest(&container.name);
            let over = |run: &ContainerStatus| {
                let failed = run.state == ContainerState::Exited && run.exit_code != 0;
                failed && !self.restarts(container, run)
            };
            run.is_some_and(over)
        };
        let inits = self.inits().iter().filter(|container| !is_sidecar(container));
        { inits }.any(failed)
    }

    /// Whether a run that ended is to be followed by another.
    pub(crate) fn restarts(&self, container: &Container, run: &ContainerStatus) -> bool {
        let policy = match (is_init(self.spec, container), self.restart_policy()) {
            (true, "Always") => "OnFailure",
            (_, policy) => policy,
        };
        // One that was killed for a probe it failed did not end well, whatever it says.
        let code = match self.probes.failed(container, run) {
            Some(_) if run.exit_code == 0 => KILLED,
            _ => run.exit_code,
        };
        restarts(container, policy, code)
    }

    /// Whether a run's process runs and what belongs to its start is through.
    pub(crate) fn lives(&self, run: &ContainerStatus) -> bool {
        run.state == ContainerState::Running && !self.observed.starting.contains(&run.metadata.name)
    }

    /// Whether a run is through with starting.
    pub(crate) fn started(&self, container: &Container, run: &ContainerStatus) -> bool {
        self.lives(run) && self.probes.started(container, run)
    }

    /// Whether a run takes requests.
    pub(crate) fn ready(&self, container: &Container, run: &ContainerStatus) -> bool {
        self.started(container, run) && self.probes.ready(container, run)
    }
}

/// Whether it is an init container, and no sidecar.
fn is_init(spec: &PodSpec, container: &Container) -> bool {
    let mut inits = spec.init_containers.iter().flatten();
    !is_sidecar(container) && inits.any(|init| init.name == container.name)
}

/// Seconds that a Pod's containers have to end.
pub fn grace(pod: &Pod) -> u64 {
    let asked = pod.metadata.deletion_grace_period_seconds;
    let own = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
    asked.or(own).unwrap_or(DEFAULT_GRACE_SECONDS).max(0).unsigned_abs()
}

/// Whether an init container goes on beside the others (KEP-753).
pub(crate) fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// `NAME pod=POD_NAMESPACE(UID)`, with the word that goes before the Pod.
fn pod_of(look: &Look<'_>, name: &str, before: &str) -> String {
    let metadata = &look.pod.metadata;
    let word = |word: &Option<String>| word.clone().unwrap_or_default();
    let (pod, namespace) = (word(&metadata.name), word(&metadata.namespace));
    format!("{name} {before}{pod}_{namespace}({})", word(&metadata.uid))
}

/// A decision in the making.
struct Steps<'b> {
    backoffs: &'b mut Backoffs,
    decision: Decision,
    waiting: Waiting,
}

impl Steps<'_> {
    fn act(&mut self, action: Action) {
        self.decision.actions.push(action);
    }

    fn wake_at(&mut self, at: Timestamp) {
        let wake = self.decision.wake.map_or(at, |old| old.min(at));
        self.decision.wake = Some(wake);
    }

    /// On its way out: containers first, sidecars after the others, then all the rest.
    fn terminate(&mut self, look: &Look<'_>, since: Timestamp) {
        let standing = look.observed.standing;
        let held = draining::hold(look.pod, standing, look.grace(), since, look.now);
        if let Some(until) = held.filter(|_| look.runs_something()) {
            return self.wake_at(until);
        }
        if self.kill_running(look) || !look.observed.starting.is_empty() {
            return;
        }
        for sandbox in look.observed.sandboxes.iter().filter(|s| s.state == PodSandboxState::Ready)
        {
            self.act(Action::StopSandbox { id: sandbox.id.clone() });
        }
        for container in &look.observed.containers {
            self.act(Action::RemoveContainer { id: container.id.clone() });
        }
        for sandbox in &look.observed.sandboxes {
            self.act(Action::RemoveSandbox { id: sandbox.id.clone() });
        }
        self.act(Action::CleanUp);
        self.act(Action::Forget);
    }

    /// Ends what runs, the sidecars last and backwards; whether there was something.
    fn kill_running(&mut self, look: &Look<'_>) -> bool {
        let active = |c: &&ContainerStatus| c.state == ContainerState::Running;
        let place = |c: &ContainerStatus| {
            let is_it = |init: &Container| is_sidecar(init) && init.name == c.metadata.name;
            look.inits().iter().position(is_it).unwrap_or(usize::MAX)
        };
        let running = || look.observed.containers.iter().filter(active);
        let Some(last) = running().map(place).max() else { return false };
        let grace = if last == usize::MAX { look.grace() } else { look.grace_left() };
        for container in running().filter(|c| grace == 0 || place(c) == last) {
            let text = format!("Stopping container {}", container.metadata.name);
            self.kill(look, container, grace, text);
        }
        true
    }

    /// Has a container end, unless that is under way and no later than it would be now.
    fn kill(&mut self, look: &Look<'_>, run: &ContainerStatus, grace: u64, text: String) {
        let seconds = SignedDuration::from_secs(i64::try_from(grace).unwrap_or(i64::MAX));
        let by = look.now.saturating_add(seconds).unwrap_or(Timestamp::MAX);
        let under_way = look.observed.stopping.get(&run.id);
        if under_way.is_some_and(|end| *end <= by) {
            return;
        }
        if under_way.is_none() {
            self.event(false, "Killing", text);
        }
        let name = run.metadata.name.clone();
        self.act(Action::Kill { id: run.id.clone(), name, grace });
    }

    /// Ends a run that failed its startup or liveness probe.
    fn kill_unwell(&mut self, look: &Look<'_>, container: &Container, run: &ContainerStatus) {
        let Some(failed) = look.probes.failed(container, run).filter(|_| look.lives(run)) else {
            return;
        };
        let what = match failed {
            ProbeKind::Startup => "startup",
            ProbeKind::Liveness | ProbeKind::Readiness => "liveness",
        };
        let mut text = format!("Container {} failed {what} probe", container.name);
        if look.restarts(container, run) {
            text.push_str(", will be restarted");
        }
        self.kill(look, run, look.grace_after(container, failed), text);
    }

    /// Done for good: nothing keeps running, the logs stay until the Pod is deleted.
    fn wind_up(&mut self, look: &Look<'_>) {
        let expired = look.expired() && look.final_phase().is_none();
        if expired && self.backoffs.first_telling("", status::EXPIRED) {
            self.event(false, "DeadlineExceeded", status::EXPIRED.to_owned());
        }
        if self.kill_running(look) || !look.observed.starting.is_empty() {
            return;
        }
        for sandbox in look.observed.sandboxes.iter().filter(|s| s.state == PodSandboxState::Ready)
        {
            self.act(Action::StopSandbox { id: sandbox.id.clone() });
        }
    }

    fn run(&mut self, look: &Look<'_>) {
        look.deadline().into_iter().for_each(|deadline| self.wake_at(deadline));
        let Some(sandbox) = look.sandbox() else { return self.make_sandbox(look) };
        if !look.observed.prepared {
            // After a restart of the agent: volumes are checked, not made anew.
            self.act(Action::Prepare);
        }
        if !self.run_inits(look, &sandbox.id) {
            return;
        }
        for container in &look.spec.containers {
            self.keep(look, &sandbox.id, container);
        }
    }

    fn make_sandbox(&mut self, look: &Look<'_>) {
        // What was in a lost sandbox is gone with it.
        let attempt = look.observed.sandboxes.iter().map(|s| s.metadata.attempt + 1).max();
        for sandbox in &look.observed.sandboxes {
            self.act(Action::StopSandbox { id: sandbox.id.clone() });
        }
        if self.held_back(look, "") {
            return;
        }
        self.act(Action::Prepare);
        self.act(Action::RunSandbox { attempt: attempt.unwrap_or(0) });
    }

    /// Whether a step that failed has to wait before it is tried again.
    fn held_back(&mut self, look: &Look<'_>, name: &str) -> bool {
        let Some(failure) = look.observed.failures.get(name) else { return false };
        let at = retry_at(failure.at, failure.times);
        if at <= look.now {
            return false;
        }
        self.wake_at(at);
        true
    }

    /// Runs init containers one after the other; whether all are through.
    fn run_inits(&mut self, look: &Look<'_>, sandbox: &str) -> bool {
        // An application container that ran proves that they were through, even if they are gone.
        let begun = look
            .spec
            .containers
            .iter()
            .any(|c| look.newest(&c.name).is_some_and(|run| run.pod_sandbox_id == sandbox));
        for container in look.inits() {
            if is_sidecar(container) {
                self.keep(look, sandbox, container);
                let run = look.newest(&container.name);
                if !begun && !run.is_some_and(|run| look.started(container, run)) {
                    return false;
                }
                continue;
            }
            let run = look.newest(&container.name).filter(|run| run.pod_sandbox_id == sandbox);
            let through =
                run.is_some_and(|run| run.state == ContainerState::Exited && run.exit_code == 0);
            if !begun && !through {
                self.keep(look, sandbox, container);
                return false;
            }
        }
        true
    }

    /// Keeps a container going as its policy says.
    fn keep(&mut self, look: &Look<'_>, sandbox: &str, container: &Container) {
        let name = container.name.as_str();
        let runs = look.runs(name);
        let own = runs.first().filter(|run| run.pod_sandbox_id == sandbox);
        let mut attempt = runs.first().map_or(0, |run| run.metadata.attempt + 1);
        match own {
            Some(run) if run.state == ContainerState::Running => {
                return self.kill_unwell(look, container, run);
            }
            // What begins goes first, with all that belongs to it.
            _ if !look.observed.starting.is_empty() => return,
            Some(run) if run.state == ContainerState::Created => {
                // Made but never started: the agent stopped in between. Made anew.
                attempt = run.metadata.attempt;
                self.act(Action::RemoveContainer { id: run.id.clone() });
            }
            Some(run) => {
                if !look.restarts(container, run) {
                    return;
                }
                let (at, wait) = self.backoffs.next_start(name, run);
                if at > look.now {
                    if self.backoffs.first_wait(name, run) {
                        let whose = pod_of(look, name, "in pod ");
                        let text = format!("Back-off restarting failed container {whose}");
                        self.event(true, "BackOff", text);
                    }
                    self.waiting.crash_loop(name, self.crash_text(look, name, wait));
                    self.wake_at(at);
                    return;
                }
            }
            None => {}
        }
        if !self.may_start(look, container, attempt) {
            return;
        }
        // The last run stays for its logs; those before it go.
        for old in runs.iter().skip(1) {
            self.act(Action::RemoveContainer { id: old.id.clone() });
        }
        let (name, sandbox) = (name.to_owned(), sandbox.to_owned());
        self.act(Action::StartContainer { name, sandbox, attempt });
    }

    fn crash_text(&self, look: &Look<'_>, name: &str, wait: i64) -> String {
        let wait = match (wait / 60, wait % 60) {
            (0, seconds) => format!("{seconds}s"),
            (minutes, seconds) => format!("{minutes}m{seconds}s"),
        };
        format!("back-off {wait} restarting failed container={}", pod_of(look, name, "pod="))
    }

    /// Whether the next run of a container may begin now.
    fn may_start(&mut self, look: &Look<'_>, container: &Container, attempt: u32) -> bool {
        if self.held_back(look, &container.name) {
            let failure = &look.observed.failures[&container.name];
            self.waiting.set(&container.name, &failure.reason, failure.message.to_string());
            return false;
        }
        match pulls::judge(look, container, attempt) {
            Verdict::Ready => true,
            Verdict::Unknown => false,
            Verdict::Pull(wait) => {
                self.pull(container, attempt);
                wait.into_iter().for_each(|wait| self.wait(container, wait));
                false
            }
            Verdict::Wait(wait) => {
                self.wait(container, wait);
                false
            }
        }
    }

    /// Has an image pulled; one pull serves all containers of the Pod that wait for it.
    fn pull(&mut self, container: &Container, attempt: u32) {
        let wanted = container.image.clone().unwrap_or_default();
        let begun = |a: &Action| matches!(a, Action::Pull { image, .. } if *image == wanted);
        if !self.decision.actions.iter().any(begun) {
            self.act(Action::Pull { image: wanted, name: container.name.clone(), attempt });
        }
    }

    fn wait(&mut self, container: &Container, wait: Wait) {
        wait.again.into_iter().for_each(|again| self.wake_at(again));
        if self.backoffs.first_telling(&container.name, &wait.telling) {
            self.decision.events.extend(wait.events);
        }
        self.waiting.set(&container.name, wait.reason, wait.message);
    }

    fn event(&mut self, warning: bool, reason: &'static str, message: String) {
        self.decision.events.push(PodEvent { warning, reason, message });
    }
}
