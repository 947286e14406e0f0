//! Which run of a container a request for its log means.

use alloc::format;
use alloc::string::{String, ToString};

use knarr_typed::Pod;
use knarr_typed::k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated};

/// Which run is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    /// The one that runs, or else the last.
    Latest,
    /// The one before.
    Previous,
}

/// The id (`scheme://id`) of the container whose log is meant, by what the Pod's status says.
///
/// # Errors
/// Upstream's sentence when there is none.
pub fn log_of(pod: &Pod, container: &str, run: Run) -> Result<String, String> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let what = format!("{container:?} in pod {name:?}");
    let status = pod.status.as_ref();
    let lists = status.into_iter().flat_map(|status| {
        [
            &status.container_statuses,
            &status.init_container_statuses,
            &status.ephemeral_container_statuses,
        ]
    });
    let found = lists.flatten().flatten().find(|status| status.name == container);
    let found = found.ok_or_else(|| format!("container {what} is not available"))?;
    let state = found.state.clone().unwrap_or_default();
    let before = found.last_state.as_ref().and_then(|last| last.terminated.as_ref());
    let terminated = || format!("container {what} is terminated");
    match (run, state, before) {
        (Run::Previous, _, before) => before
            .and_then(id_of)
            .ok_or_else(|| format!("previous terminated container {what} not found")),
        (_, ContainerState { running: Some(_), .. }, _) => {
            Ok(found.container_id.clone().unwrap_or_default())
        }
        (_, ContainerState { terminated: Some(ended), .. }, before) => {
            id_of(&ended).or_else(|| before.and_then(id_of)).ok_or_else(terminated)
        }
        (_, _, Some(before)) => id_of(before).ok_or_else(terminated),
        (_, ContainerState { waiting: Some(waiting), .. }, None) => {
            let why = match waiting.reason.as_deref().unwrap_or_default() {
                "ErrImagePull" => "image can't be pulled",
                "ImagePullBackOff" => "trying and failing to pull image",
                reason => reason,
            };
            Err(format!("container {what} is waiting to start: {why}"))
        }
        _ => Err(format!("container {what} is waiting to start - no logs yet")),
    }
}

fn id_of(ended: &ContainerStateTerminated) -> Option<String> {
    ended.container_id.as_deref().filter(|id| !id.is_empty()).map(ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;
    use knarr_typed::Typed;
    use serde_json::json;

    fn asked(status: serde_json::Value, run: Run) -> String {
        let mut status = status;
        status["name"] = "main".into();
        for (field, value) in [("image", "i"), ("imageID", "i")] {
            status[field] = value.into();
        }
        status["ready"] = false.into();
        status["restartCount"] = 0.into();
        let pod = json!({"metadata": {"name": "p"}, "status": {"containerStatuses": [status]}});
        let pod = Pod::decode(&serde_json::to_vec(&pod).expect("JSON")).expect("a Pod");
        log_of(&pod, "main", run).unwrap_or_else(|why| why)
    }

    #[test]
    fn the_run_that_is_meant_comes_from_the_status() {
        let ended = |id: &str| json!({"terminated": {"exitCode": 1, "containerID": id}});
        let waiting = |reason: &str| json!({"waiting": {"reason": reason}});
        let at = "2026-01-01T00:00:00Z";
        let running = json!({"state": {"running": {"startedAt": at}}, "containerID": "k://2",
            "lastState": ended("k://1")});
        assert_eq!(asked(running.clone(), Run::Latest), "k://2");
        assert_eq!(asked(running, Run::Previous), "k://1");
        let crashing = json!({"state": waiting("CrashLoopBackOff"), "lastState": ended("k://3")});
        assert_eq!(asked(crashing.clone(), Run::Latest), "k://3");
        assert_eq!(asked(crashing, Run::Previous), "k://3");
        assert_eq!(asked(json!({"state": ended("k://4")}), Run::Latest), "k://4");
        let first = json!({"state": waiting("ContainerCreating")});
        let text = "container \"main\" in pod \"p\" is waiting to start: ContainerCreating";
        assert_eq!(asked(first.clone(), Run::Latest), text);
        let text = "previous terminated container \"main\" in pod \"p\" not found";
        assert_eq!(asked(first, Run::Previous), text);
        let pulling = json!({"state": waiting("ImagePullBackOff")});
        assert!(asked(pulling, Run::Latest).ends_with("trying and failing to pull image"));
    }
}
