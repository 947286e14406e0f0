//! What a container says as it ends: where it writes it, and what stands in when it wrote nothing.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use knarr_oci::cri::{ContainerState, ContainerStatus};
use knarr_typed::Container;

use crate::config::Paths;

/// Bytes of a message.
pub const MAX_MESSAGE: usize = 4096;
/// What of a log stands in for a message.
const MAX_LOG_MESSAGE: usize = 2048;
const MAX_LOG_LINES: usize = 80;

/// The annotation of a container that holds where its message lies on the node.
const FILE: &str = "io.knarr.termination-message";
/// The annotation of one whose log stands in.
const FALLBACK: &str = "io.knarr.termination-log";

/// Where a container writes its message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageFile {
    /// The path that it sees.
    pub inside: String,
    /// The file on the node.
    pub outside: String,
    /// What the container's record has to say of it.
    pub annotations: BTreeMap<String, String>,
}

/// Where a run of a container writes its message.
pub fn message_file(paths: &Paths, container: &Container, attempt: u32) -> Option<MessageFile> {
    let path = container.termination_message_path.as_ref().filter(|path| !path.is_empty())?;
    let inside = if path.starts_with('/') { path.clone() } else { format!("/{path}") };
    let outside = format!("{}/containers/{}/{attempt}", paths.pod, container.name);
    let mut annotations = BTreeMap::from([(FILE.to_owned(), outside.clone())]);
    if container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError") {
        annotations.insert(FALLBACK.to_owned(), String::new());
    }
    Some(MessageFile { inside, outside, annotations })
}

/// The file on the node with the message of a container that ended.
pub fn written(run: &ContainerStatus) -> Option<&str> {
    let file = run.annotations.get(FILE)?;
    (run.state == ContainerState::Exited).then_some(file)
}

/// Whether the end of the log stands in for a message that is empty.
pub fn falls_back(run: &ContainerStatus) -> bool {
    let failed = run.exit_code != 0 && run.reason != "StartError";
    failed && run.annotations.contains_key(FALLBACK)
}

/// The last words of a log (lines of `TIME STREAM TAG TEXT`), as a message.
pub fn last_words(log: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    let mut open = false;
    for line in log.lines() {
        let mut parts = line.splitn(4, ' ').skip(2);
        let (Some(tag), text) = (parts.next(), parts.next().unwrap_or_default()) else { continue };
        match lines.last_mut().filter(|_| open) {
            Some(last) => last.push_str(text),
            None => lines.push(text.to_owned()),
        }
        open = tag.starts_with('P');
        if let Some(last) = lines.last_mut().filter(|_| !open) {
            last.push('\n');
        }
    }
    let words = lines.split_off(lines.len().saturating_sub(MAX_LOG_LINES)).concat();
    words[words.ceil_char_boundary(words.len().saturating_sub(MAX_LOG_MESSAGE))..].to_owned()
}

/// A run's own words behind those of the runtime.
pub fn said(runtime: &str, own: &str) -> String {
    match (runtime, own) {
        ("", own) => own.to_owned(),
        (runtime, "") => runtime.to_owned(),
        (runtime, own) => format!("{runtime}: {own}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_of_a_log_are_its_end_without_times() {
        let log = "t stdout F one\nt stderr P tw\nt stderr F o\nt stdout F \n";
        assert_eq!(last_words(log), "one\ntwo\n\n");
        let many: String = (0..100).map(|i| format!("t stdout F {i}\n")).collect();
        assert!(last_words(&many).starts_with("20\n21\n"));
        let long = format!("t stdout F {}é{}\n", "a".repeat(9), "b".repeat(2046));
        assert_eq!(last_words(&long).len(), 2047, "no half letter");
    }
}
