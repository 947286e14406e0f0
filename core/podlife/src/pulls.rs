//! A container's image: whether it is here, is to be pulled, or must be waited for; and upstream's
//! words for each.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use jiff::{SignedDuration, Timestamp};
use knarr_typed::Container;

use crate::PodEvent;
use crate::backoff::pull_again_at;
use crate::decide::Look;

/// How long a failed pull is told of as such, before it is told of as being held back.
const TOLD_AS_ERROR: SignedDuration = SignedDuration::from_secs(2);
/// How often an image that is not to be pulled is looked for; somebody may bring it.
const LOOK_AGAIN: SignedDuration = SignedDuration::from_secs(2);

/// Whether a container's image can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageState {
    /// It is here: the reference to report as `imageID`.
    Present(String),
    /// It is not here.
    Absent,
    /// It cannot be looked for: (reason, message).
    Unusable(&'static str, String),
}

/// A pull of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pull {
    /// The container that it was begun for.
    pub name: String,
    /// How many runs of that there were before.
    pub attempt: u32,
    /// How it went.
    pub outcome: PullOutcome,
    /// How many pulls of the image failed in a row.
    pub failures: u32,
    /// Why the last of those failed.
    pub error: String,
}

/// How a pull went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PullOutcome {
    /// It is on its way.
    Running,
    /// The image is here.
    Done,
    /// It failed at that time.
    Failed(Timestamp),
}

/// What is to be done about an image.
pub(crate) enum Verdict {
    /// The container may start.
    Ready,
    /// Nothing is known yet, or the pull is on its way.
    Unknown,
    /// Pull it; after a pull that failed, what was told of that stands meanwhile.
    Pull(Option<Wait>),
    /// The container waits.
    Wait(Wait),
}

/// Why a container waits for its image.
pub(crate) struct Wait {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    /// When to look again although nothing happens.
    pub(crate) again: Option<Timestamp>,
    /// What people are told when this begins.
    pub(crate) events: Vec<PodEvent>,
    /// Tells this wait from the one before.
    pub(crate) telling: String,
}

fn policy(container: &Container) -> &str {
    container.image_pull_policy.as_deref().unwrap_or("IfNotPresent")
}

/// Judges the image of a container that is to start for the `attempt`th time.
pub(crate) fn judge(look: &Look<'_>, container: &Container, attempt: u32) -> Verdict {
    let image = container.image.as_deref().unwrap_or_default();
    let Some(state) = look.observed.images.get(image) else { return Verdict::Unknown };
    let pull = look.observed.pulls.get(image);
    let own = pull.is_some_and(|pull| {
        pull.outcome == PullOutcome::Done && pull.name == container.name && pull.attempt == attempt
    });
    match (state, policy(container)) {
        (ImageState::Unusable(reason, message), _) => {
            let event = warning("InspectFailed", message.clone());
            Verdict::Wait(wait(look, reason, message.clone(), event))
        }
        (ImageState::Present(_), policy) if policy != "Always" || own => Verdict::Ready,
        (ImageState::Absent, "Never") => {
            let text =
                format!("Container image {image:?} is not present with pull policy of Never");
            let event = warning("ErrImageNeverPull", text.clone());
            Verdict::Wait(wait(look, "ErrImageNeverPull", text, event))
        }
        _ => match pull.map(|pull| (pull, &pull.outcome)) {
            Some((pull, PullOutcome::Running)) if pull.failures == 0 => Verdict::Unknown,
            Some((pull, PullOutcome::Running)) => Verdict::Wait(backed_off(image, pull, None)),
            Some((pull, PullOutcome::Failed(at))) => held_back(look, image, pull, *at),
            _ => Verdict::Pull(None),
        },
    }
}

fn wait(look: &Look<'_>, reason: &'static str, message: String, event: PodEvent) -> Wait {
    let again = look.now.saturating_add(LOOK_AGAIN).ok();
    let events = [event, warning("Failed", format!("Error: {reason}"))].into();
    Wait { reason, telling: message.clone(), message, again, events }
}

/// After a pull that failed: its error at first, then that it is held back, then another pull.
fn held_back(look: &Look<'_>, image: &str, pull: &Pull, at: Timestamp) -> Verdict {
    let told_until = at.saturating_add(TOLD_AS_ERROR).unwrap_or(at);
    if look.now < told_until {
        return Verdict::Wait(Wait {
            reason: "ErrImagePull",
            message: pull.error.clone(),
            again: Some(told_until),
            events: Vec::new(),
            telling: String::new(),
        });
    }
    match pull_again_at(at, pull.failures) {
        again if look.now < again => Verdict::Wait(backed_off(image, pull, Some(again))),
        _ => Verdict::Pull(Some(backed_off(image, pull, None))),
    }
}

fn backed_off(image: &str, pull: &Pull, again: Option<Timestamp>) -> Wait {
    let text = format!("Back-off pulling image {image:?}");
    let message = format!("{text}: ErrImagePull: {}", pull.error);
    let failed = warning("Failed", "Error: ImagePullBackOff".to_owned());
    let events = [normal("BackOff", text), failed].into();
    let telling = format!("{image} {}", pull.failures);
    Wait { reason: "ImagePullBackOff", message, again, events, telling }
}

fn warning(reason: &'static str, message: String) -> PodEvent {
    PodEvent { warning: true, reason, message }
}

fn normal(reason: &'static str, message: String) -> PodEvent {
    PodEvent { warning: false, reason, message }
}

/// What people are told when a pull begins.
#[must_use]
pub fn begun(image: &str) -> PodEvent {
    normal("Pulling", format!("Pulling image {image:?}"))
}

/// What people are told of an image that needed no pull.
#[must_use]
pub fn present(image: &str) -> PodEvent {
    let text = "already present on machine and can be accessed by the pod";
    normal("Pulled", format!("Container image {image:?} {text}"))
}

/// What people are told when a pull is done: how long it took, and took with its wait for others,
/// in milliseconds, and how many bytes the image has.
#[must_use]
pub fn done(image: &str, took: u64, waited: u64, size: u64) -> PodEvent {
    let (took, waited) = (duration(took), duration(waited));
    let text = format!(
        "Successfully pulled image {image:?} in {took} ({waited} including waiting). \
         Image size: {size} bytes."
    );
    normal("Pulled", text)
}

/// What people are told when a pull failed.
#[must_use]
pub fn failed(image: &str, why: &str) -> [PodEvent; 2] {
    let text = format!("Failed to pull image {image:?}: {why}");
    [warning("Failed", text), warning("Failed", "Error: ErrImagePull".to_owned())]
}

/// Milliseconds as Go writes a duration.
fn duration(millis: u64) -> String {
    let (minutes, rest) = (millis / 60_000, millis % 60_000);
    let seconds = || {
        let fraction = format!("{:03}", rest % 1000);
        let fraction = fraction.trim_end_matches('0');
        let dot = if fraction.is_empty() { "" } else { "." };
        format!("{}{dot}{fraction}s", rest / 1000)
    };
    match (minutes, rest) {
        (0, 0) => "0s".to_string(),
        (0, 1..1000) => format!("{rest}ms"),
        (0, _) => seconds(),
        (minutes, _) if minutes < 60 => format!("{minutes}m{}", seconds()),
        (minutes, _) => format!("{}h{}m{}", minutes / 60, minutes % 60, seconds()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_go_does() {
        for (millis, text) in [
            (0, "0s"),
            (7, "7ms"),
            (1000, "1s"),
            (1230, "1.23s"),
            (62_005, "1m2.005s"),
            (3_600_000, "1h0m0s"),
        ] {
            assert_eq!(duration(millis), text);
        }
    }
}
