//! Upstream's kubectl against a test's cluster.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::{Machine, Outcome, PATIENCE, Running};

/// A kubectl that follows something (`--watch`, `logs -f`) and tells lines.
pub type Follow = Running;

impl Machine {
    /// A kubectl command; `args` are split at blanks.
    pub fn kubectl_command(&self, args: &str) -> Command {
        let mut command = Command::new(&self.kubectl);
        command.env("KUBECONFIG", self.kubeconfig()).env("HOME", self.path(""));
        command.args(args.split_whitespace());
        command
    }

    /// Runs kubectl, successful or not.
    pub fn try_kubectl(&self, args: &str) -> Outcome {
        Outcome::of(&mut self.kubectl_command(args))
    }

    /// Runs kubectl and returns what it printed.
    ///
    /// # Panics
    /// With all that it said, when it fails.
    #[track_caller]
    pub fn kubectl(&self, args: &str) -> String {
        let outcome = self.try_kubectl(args);
        assert!(outcome.status.success(), "kubectl {args}: {outcome}");
        outcome.out
    }

    /// Runs kubectl with `-o json` and reads its answer.
    #[track_caller]
    pub fn json(&self, args: &str) -> Value {
        let text = self.kubectl(&format!("{args} -o json"));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Runs kubectl with a text on its standard input.
    #[track_caller]
    pub fn kubectl_with(&self, args: &str, input: &str) -> String {
        let mut command = self.kubectl_command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).ok();
        let outcome = Outcome::from(child.wait_with_output().unwrap());
        assert!(outcome.status.success(), "kubectl {args}: {outcome}");
        outcome.out
    }

    /// Applies a manifest.
    #[track_caller]
    pub fn apply(&self, manifest: &str) -> String {
        self.kubectl_with("apply -f -", manifest)
    }

    /// `kubectl wait OBJECT --for=CONDITION`.
    ///
    /// # Panics
    /// It does not come true; shows the object and the events.
    #[track_caller]
    pub fn wait(&self, object: &str, condition: &str) {
        let seconds = PATIENCE.as_secs();
        let args = format!("wait {object} --for={condition} --timeout={seconds}s");
        let outcome = self.try_kubectl(&args);
        self.note_cgroups();
        if !outcome.status.success() {
            let state = self.try_kubectl(&format!("get {object} -o yaml")).out;
            let pods = self.try_kubectl("get pods -A -o wide").out;
            let events = self.try_kubectl("get events -A").out;
            panic!("kubectl {args}: {outcome}\n{state}\n{pods}\n{events}");
        }
    }

    /// Starts a kubectl that follows something.
    pub fn follow(&self, args: &str) -> Follow {
        Running::start(&format!("kubectl {args}"), &mut self.kubectl_command(args))
    }

    /// The one value at a JSONPath.
    #[track_caller]
    pub fn value(&self, object: &str, path: &str) -> String {
        self.kubectl(&format!("get {object} -o jsonpath={{{path}}}"))
    }

    /// The values at a JSONPath that lists several.
    #[track_caller]
    pub fn values(&self, objects: &str, path: &str) -> Vec<String> {
        self.value(objects, path).split_whitespace().map(str::to_owned).collect()
    }
}
