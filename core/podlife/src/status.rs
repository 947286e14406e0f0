//! The Pod's status, as upstream's kubelet words it.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use jiff::Timestamp;
use knarr_oci::cri::{ContainerState, ContainerStatus};
use knarr_typed::Container;
use serde_json::{Value, json};

use crate::decide::{Look, is_sidecar};
use crate::{IMAGE_REF, ImageState, Observed};

const OWN_CONDITIONS: [&str; 5] =
    ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];

/// What is said of a Pod that was active for too long.
pub(crate) const EXPIRED: &str = "Pod was active on the node longer than the specified deadline";
/// Bytes of all termination messages of a Pod.
const MAX_MESSAGES: usize = 12 * 1024;

/// Why containers are not running, by name: (reason, message).
#[derive(Clone, Debug, Default)]
pub(crate) struct Waiting(BTreeMap<String, (String, String)>);

impl Waiting {
    pub(crate) fn set(&mut self, name: &str, reason: &str, message: String) {
        self.0.insert(name.to_owned(), (reason.to_owned(), message));
    }

    pub(crate) fn crash_loop(&mut self, name: &str, message: String) {
        self.set(name, "CrashLoopBackOff", message);
    }
}

pub(crate) fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn nanos(at: i64) -> String {
    time(Timestamp::from_nanosecond(i128::from(at)).unwrap_or_default())
}

/// The whole status.
pub(crate) fn status(look: &Look<'_>, waiting: &Waiting) -> Value {
    let inits: Vec<Value> = look.inits().iter().map(|c| container(look, waiting, c)).collect();
    let apps: Vec<Value> =
        look.spec.containers.iter().map(|c| container(look, waiting, c)).collect();
    let phase = phase(look);
    let mut status = json!({
        "phase": phase,
        "conditions": conditions(look, phase, &apps, &inits),
        "containerStatuses": apps,
        "startTime": look.pod.status.as_ref().and_then(|s| s.start_time.as_ref())
            .map_or(time(look.now), |at| time(at.0)),
    });
    if let Some(class) = look.pod.status.as_ref().and_then(|s| s.qos_class.clone()) {
        status["qosClass"] = class.into();
    }
    if let Some(generation) = look.pod.metadata.generation {
        status["observedGeneration"] = generation.into();
    }
    if !inits.is_empty() {
        status["initContainerStatuses"] = inits.into();
    }
    if look.expired() && phase == "Failed" {
        status["reason"] = "DeadlineExceeded".into();
        status["message"] = EXPIRED.into();
    }
    addresses(look.observed, &mut status);
    status
}

fn addresses(observed: &Observed, status: &mut Value) {
    for (one, many, list) in
        [("hostIP", "hostIPs", &observed.node_addresses), ("podIP", "podIPs", &observed.addresses)]
    {
        if let Some(first) = list.first() {
            status[one] = first.as_str().into();
            status[many] = list.iter().map(|ip| json!({"ip": ip})).collect();
        }
    }
}

/// Pending, Running, Succeeded or Failed.
fn phase(look: &Look<'_>) -> &'static str {
    let newest = |c: &Container| look.newest(&c.name);
    if let Some(phase) = look.final_phase() {
        return phase;
    }
    if look.expired() && !something_runs(look) {
        return "Failed";
    }
    // Sidecars that still run keep the phase; a Pod on its way out starts nothing again.
    let ended = look.over() && (look.init_failed() || nothing_runs(look));
    if ended || look.deleting() && nothing_runs(look) {
        let failed = |c: &Container| newest(c).is_none_or(|run| run.exit_code != 0);
        let any = look.init_failed() || look.spec.containers.iter().any(failed);
        return if any { "Failed" } else { "Succeeded" };
    }
    let started = |c: &Container| {
        let begun = |run: &ContainerStatus| match run.state {
            ContainerState::Created => false,
            ContainerState::Running => look.lives(run),
            ContainerState::Exited | ContainerState::Unknown => true,
        };
        newest(c).is_some_and(|run| begun(run) || run.metadata.attempt > 0)
    };
    // Containers ended for good only because the Pod is deleted count as ended, too.
    let begun = look.spec.containers.iter().any(started);
    let all = look.spec.containers.iter().all(started);
    if begun && (all || look.deleting()) { "Running" } else { "Pending" }
}

fn something_runs(look: &Look<'_>) -> bool {
    look.observed.containers.iter().any(|c| c.state == ContainerState::Running)
}

fn nothing_runs(look: &Look<'_>) -> bool {
    !something_runs(look) && !look.observed.containers.is_empty()
}

/// A container's part of what all termination messages of a Pod may have.
fn trimmed<'a>(look: &Look<'_>, message: &'a str) -> &'a str {
    let ephemeral = look.spec.ephemeral_containers.iter().flatten().count();
    let containers = look.spec.containers.len() + look.inits().len() + ephemeral;
    &message[..message.floor_char_boundary(MAX_MESSAGES / containers.max(1))]
}

fn terminated(look: &Look<'_>, run: &ContainerStatus) -> Value {
    let reason = match (run.reason.as_str(), run.exit_code) {
        ("", 0) => "Completed",
        ("", _) => "Error",
        (reason, _) => reason,
    };
    let mut ended = json!({"exitCode": run.exit_code, "reason": reason,
        "startedAt": nanos(run.started_at), "finishedAt": nanos(run.finished_at),
        "containerID": format!("knarr://{}", run.id)});
    if !run.message.is_empty() {
        ended["message"] = trimmed(look, &run.message).into();
    }
    json!({"terminated": ended})
}

fn state(look: &Look<'_>, container: &Container, run: &ContainerStatus) -> Value {
    match run.state {
        ContainerState::Running if !look.lives(run) => {
            json!({"waiting": {"reason": default_wait(look, container)}})
        }
        ContainerState::Running => json!({"running": {"startedAt": nanos(run.started_at)}}),
        ContainerState::Exited => terminated(look, run),
        ContainerState::Created | ContainerState::Unknown => {
            json!({"waiting": {"reason": "ContainerCreating"}})
        }
    }
}

/// Why a container that never ran waits, when nothing special holds it back.
fn default_wait(look: &Look<'_>, container: &Container) -> &'static str {
    let is_init = look.inits().iter().any(|init| init.name == container.name);
    if look.inits().is_empty() && !is_init {
        return "ContainerCreating";
    }
    "PodInitializing"
}

/// What was reported of a container of a Pod that is over: it stands though the container is gone.
fn told(look: &Look<'_>, container: &Container) -> Option<Value> {
    look.final_phase()?;
    let status = look.pod.status.as_ref()?;
    let mut all = [&status.init_container_statuses, &status.container_statuses].into_iter();
    let told = all.find_map(|list| list.iter().flatten().find(|s| s.name == container.name))?;
    serde_json::to_value(told).ok()
}

fn container(look: &Look<'_>, waiting: &Waiting, container: &Container) -> Value {
    let runs = look.runs(&container.name);
    if let Some(told) = told(look, container).filter(|_| runs.is_empty()) {
        return told;
    }
    let held = waiting.0.get(&container.name);
    let wait = held.map(|(reason, message)| {
        let mut state = json!({"waiting": {"reason": reason}});
        if !message.is_empty() {
            state["waiting"]["message"] = message.as_str().into();
        }
        state
    });
    let image = container.image.as_deref().unwrap_or_default();
    let newest = runs.first();
    let ended = runs.iter().find(|run| run.state == ContainerState::Exited);
    let current = match (wait, newest) {
        (Some(wait), _) => wait,
        (None, Some(run)) => state(look, container, run),
        (None, None) => json!({"waiting": {"reason": default_wait(look, container)}}),
    };
    // What ended before is shown apart, unless it is what is shown already.
    let shown_ended = current.get("terminated").is_some();
    let last = if shown_ended {
        runs.iter().filter(|run| run.state == ContainerState::Exited).nth(1)
    } else {
        ended
    };
    // The tag may stand for another image by now: a container has the one that it was made of.
    let made_of = newest.and_then(|run| run.annotations.get(IMAGE_REF));
    let image_id = match (made_of, look.observed.images.get(image)) {
        (Some(known_as), _) | (None, Some(ImageState::Present(known_as))) => known_as.as_str(),
        _ => "",
    };
    let ran_well =
        newest.is_some_and(|run| run.state == ContainerState::Exited && run.exit_code == 0);
    let is_init = look.inits().iter().any(|c| c.name == container.name) && !is_sidecar(container);
    json!({
        "name": container.name, "image": image, "imageID": image_id,
        "containerID": newest.map_or(String::new(), |run| format!("knarr://{}", run.id)),
        "ready": match is_init {
            true => ran_well,
            false => newest.is_some_and(|run| look.ready(container, run)),
        },
        "started": newest.is_some_and(|run| look.started(container, run)),
        "restartCount": newest.map_or(0, |run| run.metadata.attempt),
        "state": current,
        "lastState": last.map_or(json!({}), |run| terminated(look, run)),
    })
}

fn conditions(look: &Look<'_>, phase: &str, apps: &[Value], inits: &[Value]) -> Value {
    let is_ready = |status: &&Value| status["ready"] == true;
    let sidecars = look.inits().iter().zip(inits).filter(|(c, _)| is_sidecar(c)).map(|(_, s)| s);
    let lasting = sidecars.chain(apps);
    let unready: Vec<&str> =
        lasting.filter(|s| !is_ready(s)).filter_map(|s| s["name"].as_str()).collect();
    // A sidecar is ready when it runs, the others when they ended well.
    let uninitialized: Vec<&str> =
        inits.iter().filter(|s| !is_ready(s)).filter_map(|s| s["name"].as_str()).collect();
    let begun = apps.iter().any(|s| s["restartCount"] != 0 || !s["state"]["waiting"].is_object());
    let over = matches!(phase, "Succeeded" | "Failed");
    let initialized = begun || uninitialized.is_empty() || phase == "Succeeded";
    let named =
        |text: &str, names: &[&str]| format!("containers with {text}: [{}]", names.join(" "));
    let readiness = if phase == "Succeeded" {
        Err(("PodCompleted", String::new()))
    } else if phase == "Failed" {
        Err(("PodFailed", String::new()))
    } else if unready.is_empty() {
        Ok(())
    } else {
        Err(("ContainersNotReady", named("unready status", &unready)))
    };
    let initialization = match (initialized, phase) {
        (true, "Succeeded") => Err(("PodCompleted", String::new())),
        (true, _) => Ok(()),
        (false, _) => Err(("ContainersNotInitialized", named("incomplete status", &uninitialized))),
    };
    let gates = readiness.clone().and_then(|()| gates(look));
    let mut list = Vec::new();
    let sandbox = look.sandbox().is_some() && !look.observed.addresses.is_empty();
    let mut put = |kind: &str, holds: bool, why: Option<(&str, String)>| {
        list.push(condition(look, kind, holds, why));
    };
    put("PodReadyToStartContainers", sandbox && !over, None);
    put("Initialized", initialized, initialization.err());
    put("Ready", gates.is_ok(), gates.err());
    put("ContainersReady", readiness.is_ok(), readiness.err());
    put("PodScheduled", true, None);
    list.extend(foreign(look));
    list.into()
}

/// Whether what others have to say of the Pod's readiness has been said, and well.
fn gates(look: &Look<'_>) -> Result<(), (&'static str, String)> {
    let told = look.pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let unmet = |kind: &str| match told.into_iter().flatten().find(|c| c.type_ == kind) {
        None => {
            let what = "corresponding condition of pod readiness gate";
            Some(format!("{what} {kind:?} does not exist."))
        }
        Some(condition) if condition.status != "True" => {
            let what = format!("the status of pod readiness gate {kind:?} is not \"True\"");
            Some(format!("{what}, but {}", condition.status))
        }
        Some(_) => None,
    };
    let gates = look.spec.readiness_gates.iter().flatten();
    let unmet: Vec<String> = gates.filter_map(|gate| unmet(&gate.condition_type)).collect();
    match unmet.is_empty() {
        true => Ok(()),
        false => Err(("ReadinessGatesNotReady", unmet.join(", "))),
    }
}

/// Conditions that others wrote, such as `DisruptionTarget`; they stand as they are.
fn foreign(look: &Look<'_>) -> impl Iterator<Item = Value> {
    let told = look.pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let foreign = told.filter(|condition| !OWN_CONDITIONS.contains(&condition.type_.as_str()));
    foreign.filter_map(|condition| serde_json::to_value(condition).ok())
}

/// A condition; its transition time is kept while its status is.
fn condition(look: &Look<'_>, kind: &str, holds: bool, why: Option<(&str, String)>) -> Value {
    let status = if holds { "True" } else { "False" };
    let old = look.pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    let old = old.into_iter().flatten().find(|c| c.type_ == kind && c.status == status);
    let since = old.and_then(|c| c.last_transition_time.as_ref()).map_or(look.now, |at| at.0);
    let mut made = json!({"type": kind, "status": status, "lastProbeTime": null,
        "lastTransitionTime": time(since)});
    if let Some((reason, message)) = why {
        made["reason"] = reason.into();
        if !message.is_empty() {
            made["message"] = message.into();
        }
    }
    if let Some(generation) = look.pod.metadata.generation {
        made["observedGeneration"] = generation.into();
    }
    made
}
