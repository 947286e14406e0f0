//! The process around the roles: logging, runtime, signals, one drain signal for everybody.

use std::fmt;
use std::future::Future;
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::ALLOCATOR;
use crate::flags::LogFormat;

/// Why knarr ends: one sentence that says what to do.
#[derive(Debug)]
pub(crate) struct Fatal(pub(crate) String);

impl fmt::Display for Fatal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<E: std::error::Error> From<E> for Fatal {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

/// Becomes true once, when everybody is to finish.
pub(crate) type Drain = watch::Receiver<bool>;

/// A drain that also comes when the standard input ends: when who started this process is gone.
pub(crate) fn or_end_of_stdin(mut drain: Drain) -> Drain {
    let (send, both) = watch::channel(false);
    let send = Arc::new(send);
    let ended = send.clone();
    std::thread::spawn(move || {
        std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).ok();
        ended.send_replace(true);
    });
    tokio::spawn(async move {
        drain.wait_for(|drain| *drain).await.ok();
        send.send_replace(true);
    });
    both
}

/// Sends logs to standard error.
pub(crate) fn log_to_stderr(verbosity: u8, format: LogFormat) {
    log_to(BoxMakeWriter::new(std::io::stderr), level(verbosity), format);
}

/// How much a verbosity lets through.
pub(crate) fn level(verbosity: u8) -> LevelFilter {
    match verbosity {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        2..4 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    }
}

/// Sends logs somewhere.
pub(crate) fn log_to(writer: BoxMakeWriter, level: LevelFilter, format: LogFormat) {
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(writer);
    match format {
        LogFormat::Text => builder.with_target(false).init(),
        LogFormat::Json => builder.json().init(),
    }
}

/// How often what memory is free is given back.
const TIDY_EVERY: Duration = Duration::from_secs(1);

/// Runs a role until it ends or a signal (INT, TERM) asks it to.
pub(crate) fn run<F: Future<Output = Result<(), Fatal>>>(
    role: impl FnOnce(Drain) -> F,
) -> Result<(), Fatal> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let (send, drain) = watch::channel(false);
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let signals = async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            send.send_replace(true);
            std::future::pending::<()>().await;
        };
        let tidy = async {
            loop {
                tokio::time::sleep(TIDY_EVERY).await;
                ALLOCATOR.give_back();
            }
        };
        tokio::select! {
            result = role(drain) => result,
            () = signals => Ok(()),
            () = tidy => Ok(()),
        }
    })
}
