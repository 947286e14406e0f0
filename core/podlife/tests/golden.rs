//! Golden scripts: a Pod's life as steps of what the node sees, and what is decided of it.
//!
//! A script is a Pod in YAML, then steps with an empty line between them. A line of a step changes
//! what is seen (`image x present`, `exit a.0 1 9s`), `do` carries out what was decided last, and
//! the end of the step asks for a decision. Its answer are the lines that open with `=> `: the
//! actions, the events, when to wake, and of the status what is new since the step before.
//! `KNARR_BLESS=1` rewrites the answers. Times are seconds after midnight.
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

use jiff::{SignedDuration, Timestamp};
use knarr_oci::cri::{
    ContainerState, ContainerStatus, PodSandboxMetadata, PodSandboxState, PodSandboxStatus,
};
use knarr_podlife::probes::{Outcome, ProbeKind};
use knarr_podlife::{
    Action, Decision, Failure, ImageState, Memory, Observed, PodEvent, Pull, PullOutcome, decide,
};
use serde_json::{Value, json};

const MIDNIGHT: &str = "2026-01-01T00:00:00Z";

fn time(seconds: i64) -> Timestamp {
    MIDNIGHT.parse::<Timestamp>().unwrap() + SignedDuration::from_secs(seconds)
}

fn nanos(seconds: i64) -> i64 {
    i64::try_from(time(seconds).as_nanosecond()).unwrap()
}

fn seconds(word: &str) -> i64 {
    word.strip_suffix('s').unwrap_or(word).parse().unwrap()
}

/// Seconds after midnight of a time in a status.
fn since(at: &Value) -> i64 {
    at.as_str().unwrap().parse::<Timestamp>().unwrap().as_second() - time(0).as_second()
}

/// A node with one Pod.
struct World {
    pod: Value,
    now: i64,
    observed: Observed,
    memory: Memory,
    heard: Vec<PodEvent>,
    last: Decision,
    told: Vec<String>,
}

impl World {
    fn new(pod: &str) -> World {
        let pod: Value = serde_saphyr::from_str(pod).unwrap();
        let observed =
            Observed { node_addresses: vec!["192.0.2.1".to_owned()], ..Observed::default() };
        let (memory, last, told) = (Memory::default(), Decision::default(), Vec::new());
        World { pod, now: 0, observed, memory, heard: Vec::new(), last, told }
    }

    fn container(&mut self, id: &str) -> &mut ContainerStatus {
        self.observed.containers.iter_mut().find(|c| c.id == id).unwrap()
    }

    fn sandbox(&mut self, id: &str) -> &mut PodSandboxStatus {
        self.observed.sandboxes.iter_mut().find(|s| s.id == id).unwrap()
    }

    fn change(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let rest = |from: usize| words.get(from..).unwrap_or_default().join(" ");
        match *words.as_slice() {
            ["at", now] => self.now = seconds(now),
            ["do"] => {
                let actions = std::mem::take(&mut self.last.actions);
                actions.into_iter().for_each(|action| self.carry_out(action));
            }
            ["do", "first"] => self.carry_out(self.last.actions[0].clone()),
            ["image" | "pulled" | "unpulled" | "spec", ..] => self.change_image(&words),
            ["failure", name, reason, times, ..] => {
                let (reason, message, at) = (reason.to_owned(), rest(4), time(self.now));
                let failure = Failure { reason, message, at, times: times.parse().unwrap() };
                self.observed.failures.insert(name.trim_matches('"').to_owned(), failure);
            }
            ["exit", id, code, ..] => self.exit(id, code.parse().unwrap(), &rest(3)),
            ["created", id, sandbox] => self.make(id, sandbox, ContainerState::Created),
            ["running", id, sandbox] => self.make(id, sandbox, ContainerState::Running),
            ["gone", id] => self.observed.containers.retain(|c| c.id != id),
            ["sandbox", id, "ready"] => self.make_sandbox(id),
            ["sandbox", id, "lost"] => {
                self.sandbox(id).state = PodSandboxState::NotReady;
                self.observed.addresses.clear();
            }
            ["addresses", ..] => {
                self.observed.addresses = words[1..].iter().map(ToString::to_string).collect();
            }
            ["probe", kind, id, outcome, ..] => self.probe(kind, id, outcome, rest(4)),
            ["starting", name] => {
                self.observed.starting.insert(name.to_owned());
            }
            ["started", name] => {
                self.observed.starting.remove(name);
            }
            ["stopping", id, "by", end] => {
                self.observed.stopping.insert(id.to_owned(), time(seconds(end)));
            }
            ["said", id, ..] => self.container(id).message = rest(2),
            ["prepared"] => self.observed.prepared = true,
            ["agent", "restarts"] => {
                self.observed.prepared = false;
                self.memory = Memory::default();
            }
            ["phase", phase] => self.pod["status"]["phase"] = json!(phase),
            ["condition", kind, status] => {
                let condition = json!({"type": kind, "status": status,
                    "lastTransitionTime": time(self.now)});
                self.pod["status"]["conditions"].as_array_mut().unwrap().push(condition);
            }
            ["delete", grace] => {
                let grace = seconds(grace);
                self.pod["metadata"]["deletionTimestamp"] = json!(time(self.now + grace));
                self.pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
            }
            _ => panic!("no such change: {line}"),
        }
    }

    /// What comes of a probe.
    fn probe(&mut self, kind: &str, id: &str, outcome: &str, text: String) {
        let kind = match kind {
            "startup" => ProbeKind::Startup,
            "liveness" => ProbeKind::Liveness,
            _ => ProbeKind::Readiness,
        };
        let outcome = match outcome {
            "well" => Outcome::Success,
            "warns" => Outcome::Warning(text),
            "fails" => Outcome::Failure(text),
            _ => Outcome::Error(text),
        };
        let pod = serde_json::from_value(self.pod.clone()).unwrap();
        let name = id.rsplit_once('.').unwrap().0;
        self.heard.extend(self.memory.probes.heard(&pod, (name, kind, id), &outcome));
    }

    /// What becomes of images and their pulls.
    fn change_image(&mut self, words: &[&str]) {
        let rest = |from: usize| words.get(from..).unwrap_or_default().join(" ");
        match *words {
            ["image", name, "present"] => {
                let state = ImageState::Present(format!("sha256:{name}"));
                self.observed.images.insert(name.to_owned(), state);
            }
            ["image", name, "absent"] => {
                self.observed.images.insert(name.to_owned(), ImageState::Absent);
            }
            ["image", name, "unusable", reason, ..] => {
                let state = ImageState::Unusable(reason.to_owned().leak(), rest(4));
                self.observed.images.insert(name.to_owned(), state);
            }
            ["pulled", image] => {
                let state = ImageState::Present(format!("sha256:{image}"));
                self.observed.images.insert(image.to_owned(), state);
                let pull = self.observed.pulls.get_mut(image).unwrap();
                (pull.outcome, pull.failures) = (PullOutcome::Done, 0);
            }
            ["unpulled", image, ..] => {
                let (at, error) = (time(self.now), rest(2));
                let pull = self.observed.pulls.get_mut(image).unwrap();
                (pull.outcome, pull.error) = (PullOutcome::Failed(at), error);
                pull.failures += 1;
            }
            ["spec", "image", name, image] => {
                let containers = self.pod["spec"]["containers"].as_array_mut().unwrap();
                let own = containers.iter_mut().find(|c| c["name"] == name).unwrap();
                own["image"] = json!(image);
            }
            _ => panic!("no such change: {words:?}"),
        }
    }

    fn exit(&mut self, id: &str, code: i32, reason: &str) {
        let finished_at = nanos(self.now);
        let container = self.container(id);
        container.state = ContainerState::Exited;
        (container.exit_code, container.finished_at) = (code, finished_at);
        container.reason = reason.to_owned();
    }

    fn make(&mut self, id: &str, sandbox: &str, state: ContainerState) {
        let (name, attempt) = id.rsplit_once('.').unwrap();
        let mut container = ContainerStatus { id: id.to_owned(), state, ..Default::default() };
        container.metadata.name = name.to_owned();
        container.metadata.attempt = attempt.parse().unwrap();
        container.pod_sandbox_id = sandbox.to_owned();
        container.started_at = nanos(self.now);
        self.observed.containers.push(container);
    }

    fn make_sandbox(&mut self, id: &str) {
        let attempt = id.strip_prefix('s').unwrap().parse().unwrap();
        let metadata = PodSandboxMetadata { attempt, ..PodSandboxMetadata::default() };
        self.observed.sandboxes.push(PodSandboxStatus {
            id: id.to_owned(),
            metadata,
            state: PodSandboxState::Ready,
            created_at: nanos(self.now),
            netns: None,
            labels: Default::default(),
            annotations: Default::default(),
        });
        if self.observed.addresses.is_empty() {
            self.observed.addresses.push(format!("10.0.0.{attempt}"));
        }
    }

    /// What a runtime would do.
    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Prepare => self.observed.prepared = true,
            Action::RunSandbox { attempt } => self.make_sandbox(&format!("s{attempt}")),
            Action::Pull { image, name, attempt } => {
                let old = self.observed.pulls.get(&image);
                let (failures, error) =
                    old.map_or((0, String::new()), |pull| (pull.failures, pull.error.clone()));
                let outcome = PullOutcome::Running;
                let pull = Pull { name, attempt, outcome, failures, error };
                self.observed.pulls.insert(image, pull);
            }
            Action::StartContainer { name, sandbox, attempt } => {
                self.make(&format!("{name}.{attempt}"), &sandbox, ContainerState::Running);
            }
            Action::Kill { id, .. } => self.exit(&id, 137, ""),
            Action::RemoveContainer { id } => self.observed.containers.retain(|c| c.id != id),
            Action::StopSandbox { id } => {
                self.sandbox(&id).state = PodSandboxState::NotReady;
                self.observed.addresses.clear();
            }
            Action::RemoveSandbox { id } => self.observed.sandboxes.retain(|s| s.id != id),
            Action::CleanUp => self.observed.prepared = false,
            Action::Probe { .. } | Action::Forget => {}
        }
    }

    fn answer(&mut self) -> String {
        let pod = serde_json::from_value(self.pod.clone()).unwrap();
        let Some(decision) = decide(&pod, &self.observed, &mut self.memory, time(self.now)) else {
            return "nothing\n".to_owned();
        };
        let mut out = String::new();
        decision.actions.iter().for_each(|action| writeln!(out, "{action:?}").unwrap());
        for event in self.heard.drain(..).chain(decision.events.iter().cloned()) {
            let kind = if event.warning { "Warning" } else { "Normal" };
            writeln!(out, "{kind} {}: {}", event.reason, event.message).unwrap();
        }
        if let Some(wake) = decision.wake {
            writeln!(out, "wake {}s", wake.as_second() - time(0).as_second()).unwrap();
        }
        let told = compact(&decision.status);
        for line in told.iter().filter(|line| !self.told.contains(line)) {
            writeln!(out, "{line}").unwrap();
        }
        // As a merge patch does.
        let mut status = decision.status.clone();
        for key in ["reason", "message"] {
            if status[key].is_null() {
                status[key] = self.pod["status"][key].clone();
            }
        }
        self.pod["status"] = status;
        (self.last, self.told) = (decision, told);
        out
    }
}

/// A status in few lines.
fn compact(status: &Value) -> Vec<String> {
    let mut lines = vec![format!("phase {}", status["phase"].as_str().unwrap())];
    if let Some(reason) = status["reason"].as_str() {
        lines.push(format!("because {reason}: {}", status["message"].as_str().unwrap()));
    }
    for (word, list) in [("node", "hostIPs"), ("pod", "podIPs")] {
        let ips = status[list].as_array().into_iter().flatten();
        let ips: Vec<&str> = ips.map(|ip| ip["ip"].as_str().unwrap()).collect();
        lines.push(format!("{word} addresses [{}]", ips.join(" ")));
    }
    for list in ["initContainerStatuses", "containerStatuses"] {
        lines.extend(status[list].as_array().into_iter().flatten().map(container));
    }
    lines.extend(status["conditions"].as_array().unwrap().iter().map(condition));
    lines
}

fn container(status: &Value) -> String {
    let text = |key: &str| status[key].as_str().unwrap();
    let mut line = format!("{} {}", text("name"), state(&status["state"]));
    if status["ready"] == true {
        line.push_str(", ready");
    }
    if status["started"] == true {
        line.push_str(", started");
    }
    if status["restartCount"] != 0 {
        write!(line, ", restarts {}", status["restartCount"]).unwrap();
    }
    if status["lastState"] != json!({}) {
        write!(line, ", last {}", state(&status["lastState"])).unwrap();
    }
    line
}

fn state(state: &Value) -> String {
    let (kind, inner) = state.as_object().unwrap().iter().next().unwrap();
    let text = |key: &str| inner[key].as_str().unwrap_or_default();
    match kind.as_str() {
        "running" => format!("running since {}s", since(&inner["startedAt"])),
        "waiting" => format!("waiting {} {}", text("reason"), text("message")).trim().to_owned(),
        _ => {
            let (from, to) = (since(&inner["startedAt"]), since(&inner["finishedAt"]));
            let ended = format!("ended {} {} {from}s-{to}s", inner["exitCode"], text("reason"));
            format!("{ended} {}", text("message")).trim().to_owned()
        }
    }
}

fn condition(condition: &Value) -> String {
    let text = |key: &str| condition[key].as_str().unwrap_or_default();
    let at = since(&condition["lastTransitionTime"]);
    let why = format!("{} {}", text("reason"), text("message"));
    format!("{}={} since {at}s {}", text("type"), text("status"), why.trim()).trim().to_owned()
}

fn played(script: &str) -> String {
    let mut out = String::new();
    let mut blocks = script.trim_end().split("\n\n");
    let pod = blocks.next().unwrap();
    writeln!(out, "{pod}").unwrap();
    let mut world = World::new(pod);
    for block in blocks {
        out.push('\n');
        for line in block.lines().filter(|line| !line.starts_with("=> ")) {
            writeln!(out, "{line}").unwrap();
            if !line.starts_with('#') {
                world.change(line);
            }
        }
        world.answer().lines().for_each(|line| writeln!(out, "=> {line}").unwrap());
    }
    out
}

#[test]
fn scripts_answer_as_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let mut paths: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty());
    for path in paths {
        let script = fs::read_to_string(&path).unwrap();
        let out = played(&script);
        if env::var_os("KNARR_BLESS").is_some() {
            fs::write(&path, out).unwrap();
            continue;
        }
        for (at, (wanted, got)) in script.lines().zip(out.lines()).enumerate() {
            assert_eq!(wanted, got, "{}:{}", path.display(), at + 1);
        }
        assert_eq!(script, out, "{}", path.display());
    }
}
