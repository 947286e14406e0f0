//! Processes of a test: one that ran to its end, and one that runs and tells lines.

use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::PATIENCE;

/// What a finished process left.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

impl Outcome {
    /// Runs a command to its end.
    pub fn of(command: &mut Command) -> Self {
        Self::from(command.output().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    /// Standard output; panics with everything if the process failed.
    #[track_caller]
    pub fn success(self) -> String {
        assert!(self.status.success(), "{self}");
        self.out
    }

    /// Standard error; panics with everything if the process succeeded.
    #[track_caller]
    pub fn failure(self) -> String {
        assert!(self.status.code().is_some_and(|code| code != 0), "expected a refusal: {self}");
        self.err
    }
}

impl From<Output> for Outcome {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { status: output.status, out: text(&output.stdout), err: text(&output.stderr) }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n--- stdout\n{}\n--- stderr\n{}", self.status, self.out, self.err)
    }
}

/// A process that runs; ended when dropped, and its output shown if the test is failing.
pub struct Running {
    name: String,
    child: Child,
    lines: Receiver<String>,
    seen: Arc<Mutex<String>>,
}

impl Running {
    /// Starts a command; both of its outputs are read as lines.
    pub fn start(name: &str, command: &mut Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let (send, lines) = channel();
        let seen = Arc::new(Mutex::new(String::new()));
        let outputs: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for output in outputs {
            let (send, seen) = (send.clone(), seen.clone());
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    *seen.lock().unwrap() += &format!("{line}\n");
                    send.send(line).ok();
                }
            });
        }
        Self { name: name.to_owned(), child, lines, seen }
    }

    /// The process's id.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// All lines until now.
    pub fn output(&self) -> String {
        self.seen.lock().unwrap().clone()
    }

    /// Reads on to the first line for which `wanted` holds.
    ///
    /// # Panics
    /// The output ends or [`PATIENCE`] does, before there is such a line.
    #[track_caller]
    pub fn line(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if wanted(&line) => return line,
                Ok(_) => {}
                Err(why) => panic!("{} did not say {what} ({why})", self.name),
            }
        }
    }

    /// Sends a signal and waits for the end.
    pub fn end(&mut self, signal: Signal) -> ExitStatus {
        kill_process(self.pid(), signal).ok();
        self.wait()
    }

    /// Waits for the end.
    ///
    /// # Panics
    /// It does not end within [`PATIENCE`].
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        // The readers hang up when the process does; what it forked has outputs of its own.
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("{} did not end", self.name);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- output of {}\n{}---", self.name, self.output());
        }
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
