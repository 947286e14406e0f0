//! Chores of this repository: `cargo xtask help`.
mod types;

use std::io::Write as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let result = match args.first().map(String::as_str) {
        Some("types") => types::run(&args[1..]),
        _ => Err("usage: cargo xtask types".into()),
    };
    let (text, code) = match result {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(text) => (format!("{text}\n"), ExitCode::FAILURE),
    };
    let _ = std::io::stderr().write_all(text.as_bytes());
    code
}
