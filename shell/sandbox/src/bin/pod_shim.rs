//! The shim as a program of its own, for the tests and the benchmark of this crate.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    knarr_sandbox::shim_main(&args)
}
