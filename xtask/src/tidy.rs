//! Checks the rules of this repository that no compiler checks: where IO may live, which crate may
//! know which, how long things may get. Run as a test, so a broken rule is a red build.

use std::fs;
use std::path::{Path, PathBuf};

/// Libraries that a core crate may use: pure ones, without IO of their own.
const PURE: &[&str] = &[
    "base64",
    "bytes",
    "crc32fast",
    "indexmap",
    "jiff",
    "k8s-openapi",
    "prost",
    "serde",
    "serde_json",
    "subtle",
];

/// The only crates that may contain `unsafe`.
const UNSAFE: &[&str] =
    &["shell/allocator", "shell/sandbox", "shell/images", "shell/net", "shell/store"];

/// Edges that must not exist: (crate, what it may not depend on, why).
const FORBIDDEN_EDGES: &[(&str, &str, &str)] = &[
    ("core/api", "k8s-openapi", "typed structs live in core/typed"),
    ("core/controllers", "knarr-mvcc", "controllers see the view, never the store"),
    ("core/scheduler", "knarr-mvcc", "the scheduler sees the view, never the store"),
    ("shell/driver", "knarr-store", "only the API server touches the store"),
    ("shell/node", "knarr-store", "only the API server touches the store"),
    ("shell/client", "knarr-store", "only the API server touches the store"),
];

const MAX_COLUMNS: usize = 100;
const MAX_LINES: usize = 800;
const MAX_FN_LINES: usize = 70;

/// Runs the chore.
pub fn run(_: &[String]) -> Result<(), String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the root");
    let broken = check(root);
    broken.iter().for_each(|rule| println!("{rule}"));
    if broken.is_empty() { Ok(()) } else { Err(format!("{} rules broken", broken.len())) }
}

fn check(root: &Path) -> Vec<String> {
    let mut broken = Vec::new();
    for layer in ["core", "shell"] {
        for member in children(&root.join(layer)).iter().filter(|dir| dir.is_dir()) {
            check_crate(root, member, &mut broken);
        }
    }
    for source in rust_files(root) {
        let text = fs::read_to_string(&source).unwrap_or_default();
        let name = source.strip_prefix(root).unwrap_or(&source).display().to_string();
        check_source(&name, &text, &mut broken);
    }
    broken
}

fn check_crate(root: &Path, dir: &Path, broken: &mut Vec<String>) {
    let name = dir.strip_prefix(root).unwrap_or(dir).display().to_string();
    let manifest = fs::read_to_string(dir.join("Cargo.toml")).unwrap_or_default();
    let lib = fs::read_to_string(dir.join("src/lib.rs")).unwrap_or_default();
    let dependencies = dependencies(&manifest);
    if name.starts_with("core/") {
        if !lib.contains("#![no_std]") {
            broken.push(format!("{name}: a core crate is #![no_std], so that IO cannot compile"));
        }
        for dependency in &dependencies {
            let ours = dependency.strip_prefix("knarr-");
            let core = ours.is_some_and(|ours| root.join("core").join(ours).is_dir());
            if !core && !PURE.contains(&dependency.as_str()) {
                broken.push(format!("{name}: {dependency} is not on the list of pure libraries"));
            }
        }
    }
    for (from, to, why) in FORBIDDEN_EDGES {
        if *from == name && dependencies.iter().any(|dependency| dependency == to) {
            broken.push(format!("{name}: must not depend on {to}: {why}"));
        }
    }
}

/// Names in the `[dependencies]` table.
fn dependencies(manifest: &str) -> Vec<String> {
    let table = manifest.split("[dependencies]").nth(1).unwrap_or_default();
    let lines = table.lines().take_while(|line| !line.starts_with('['));
    lines
        .filter_map(|line| line.split(['.', ' ', '=']).next())
        .map(str::to_owned)
        .filter(|name| !name.is_empty())
        .collect()
}

fn check_source(name: &str, text: &str, broken: &mut Vec<String>) {
    if !text.starts_with("//!") {
        broken.push(format!("{name}:1: open with `//!`: why does this file exist?"));
    }
    let lines: Vec<&str> = text.lines().collect();
    let code = lines.iter().position(|line| *line == "#[cfg(test)]").unwrap_or(lines.len());
    if code > MAX_LINES && !name.contains("/tests/") {
        broken.push(format!("{name}: {code} lines; split it (at most {MAX_LINES})"));
    }
    for (at, line) in lines.iter().enumerate() {
        if line.chars().count() > MAX_COLUMNS {
            broken.push(format!("{name}:{}: over {MAX_COLUMNS} columns", at + 1));
        }
    }
    let allowed = UNSAFE.iter().any(|dir| name.starts_with(dir)) || name.starts_with("xtask/");
    if !allowed && text.contains("unsafe {") {
        broken.push(format!("{name}: `unsafe` is only for the crates that make system calls"));
    }
    check_functions(name, &lines[..code], broken);
}

/// A function that needs scrolling is two functions.
fn check_functions(name: &str, lines: &[&str], broken: &mut Vec<String>) {
    let mut open: Option<(usize, String)> = None;
    for (at, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let head = code.trim_start_matches("pub ").trim_start_matches("pub(crate) ");
        let head = head.trim_start_matches("pub(super) ").trim_start_matches("async ");
        let head = head.trim_start_matches("unsafe ").trim_start_matches("const ");
        if open.is_none() && head.starts_with("fn ") {
            let indent = &line[..line.len() - code.len()];
            open = Some((at, format!("{indent}}}")));
        }
        if let Some((start, end)) = &open
            && *line == end
        {
            if at - start + 1 > MAX_FN_LINES {
                broken.push(format!("{name}:{}: {} lines", start + 1, at - start + 1));
            }
            open = None;
        } else if open.as_ref().is_some_and(|(start, _)| *start == at)
            && (line.ends_with('}') || line.ends_with(';'))
        {
            open = None;
        }
    }
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> =
        fs::read_dir(dir).into_iter().flatten().filter_map(|e| Some(e.ok()?.path())).collect();
    paths.sort();
    paths
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let skipped = |path: &Path| {
        path.file_name().is_some_and(|name| name == "target" || name.as_encoded_bytes()[0] == b'.')
    };
    let mut files = Vec::new();
    for path in children(dir).into_iter().filter(|path| !skipped(path)) {
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            files.push(path);
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_tidy() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the root");
        let broken = check(root);
        assert!(broken.is_empty(), "{}", broken.join("\n"));
    }

    #[test]
    fn long_functions_and_lines_are_found() {
        let body = "    let x = 1;\n".repeat(80);
        let text = format!("//! doc\nfn long() {{\n{body}}}\n// {}\n", "x".repeat(100));
        let mut broken = Vec::new();
        check_source("core/x/src/lib.rs", &text, &mut broken);
        assert_eq!(broken.len(), 2, "{broken:?}");
    }
}
