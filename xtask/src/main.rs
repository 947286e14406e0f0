//! Chores of this repository: `cargo xtask help`.
#![allow(clippy::print_stdout, reason = "a chore talks to the person who runs it")]

use std::process::ExitCode;

mod bench;
mod image;
mod kinds;
mod tidy;
#[cfg(test)]
mod tour;
mod types;

/// One chore: its name, what it is for, and what runs it with the remaining arguments.
type Chore = (&'static str, &'static str, fn(&[String]) -> Result<(), String>);

const CHORES: &[Chore] = &[
    ("tidy", "check the rules that no compiler checks", tidy::run),
    ("bench", "measure the release binary: [NAME…] [--knarr PATH] [--json FILE]", bench::run),
    ("image", "make an OCI archive of Debian's files: --out FILE [--name NAME] nginx", image::run),
    ("kinds", "write core/api/data/kinds.txt: --discovery DIR --swagger FILE", kinds::run),
    ("types", "write core/schema/data/types.txt: --go-api DIR --go-apimachinery DIR", |args| {
        types::run(args).map(|text| print!("{text}"))
    }),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let chore = args.first().and_then(|name| CHORES.iter().find(|chore| chore.0 == name));
    let Some((_, _, run)) = chore else {
        println!("usage: cargo xtask CHORE [ARGUMENTS]\n");
        CHORES.iter().for_each(|(name, about, _)| println!("  {name:<10} {about}"));
        return ExitCode::from(2);
    };
    match run(&args[1..]) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("xtask: {why}");
            ExitCode::FAILURE
        }
    }
}

/// The value after `--name` in `args`.
fn flag<'a>(args: &'a [String], name: &str) -> Result<&'a str, String> {
    let at = args.iter().position(|arg| arg == name);
    at.and_then(|at| args.get(at + 1)).map(String::as_str).ok_or(format!("{name} is missing"))
}
