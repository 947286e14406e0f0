//! The one binary: a table of roles, each with upstream's name and flags where upstream has it.

use std::process::ExitCode;

use clap::Parser;

mod flags;
mod paths;
mod process;
mod server;

use flags::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    process::log_to_stderr(cli.verbosity, cli.log_format);
    let result = match cli.command {
        Command::Server(flags) => process::run(|drain| server::run(flags, drain)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("knarr: {why}");
            ExitCode::FAILURE
        }
    }
}
