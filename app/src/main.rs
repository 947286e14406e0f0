//! The one binary: a table of roles, each with upstream's name and flags where upstream has it.
#![allow(clippy::print_stdout, reason = "a command line talks to the person who runs it")]

use std::process::ExitCode;

use clap::Parser;

mod agent;
mod backend;
mod check;
mod cluster;
mod dns;
mod etcd;
mod flags;
mod health;
mod history;
mod images;
mod keep;
mod lifecycle;
mod nodes;
mod paths;
mod process;
mod proxy;
mod pull_progress;
mod ranges;
mod rings;
mod server;
mod snapshots;
mod token;
mod up;

use flags::{CheckCommand, CheckFlags, Cli, Command};
use process::{Fatal, run};

#[global_allocator]
static ALLOCATOR: knarr_allocator::ByRole = knarr_allocator::ByRole(POD_SHIM);

/// The subcommand under which the binary starts itself as the shim of a Pod.
const POD_SHIM: &str = "pod-shim";

fn main() -> ExitCode {
    // Before any thread exists: a shim is single-threaded and forks.
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).is_some_and(|arg| arg == POD_SHIM) {
        return knarr_sandbox::shim_main(&args[2..]);
    }
    ALLOCATOR.give_back_soon();
    // Small memory comes in small pages, here and in the shims, which inherit it; containers do
    // not. A kernel without this has no huge pages either.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    match etcd::CommandLine::read(args, variables()).and_then(start) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("knarr: {why}");
            ExitCode::FAILURE
        }
    }
}

/// The environment, as far as it is text.
fn variables() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

fn start(line: etcd::CommandLine) -> Result<(), Fatal> {
    let cli = Cli::parse_from(line.args);
    match &cli.command {
        Command::Etcd(flags) => flags.log.start(cli.verbosity, cli.log_format)?,
        _ => process::log_to_stderr(cli.verbosity, cli.log_format),
    }
    line.notes.iter().for_each(|note| tracing::warn!("{note}"));
    match cli.command {
        Command::Up(flags) => run(|drain| up::run(flags, drain)),
        Command::Server(flags) => run(|drain| server::run(flags, drain)),
        Command::Agent(flags) => run(|drain| agent::run(flags, drain)),
        Command::KubeApiserver(flags) => run(|drain| server::run_alone(flags, drain)),
        Command::KubeControllerManager(flags) => run(|drain| rings::run_manager(flags, drain)),
        Command::KubeScheduler(flags) => run(|drain| rings::run_scheduler(flags, drain)),
        Command::Dns(flags) => run(|drain| dns::run(flags, drain)),
        Command::KubeProxy(flags) => run(|drain| proxy::run(flags, drain)),
        Command::Etcd(flags) => run(|drain| etcd::run(flags, drain)),
        Command::Status(flags) => lifecycle::status(&flags),
        Command::Down(flags) => run(|_| lifecycle::down(flags)),
        Command::Reset(flags) => run(|_| lifecycle::reset(flags)),
        Command::Check(CheckFlags { command: CheckCommand::Network(flags) }) => {
            run(|drain| check::run(flags, drain))
        }
        Command::Images(flags) => images::run(flags),
        Command::Store(flags) => snapshots::run(flags),
    }
}
