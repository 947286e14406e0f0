//! Packs the descriptions: finds the sources of k8s-openapi, reads the prose out of them,
//! compresses it into one file.
//!
//! Nothing is fetched. Cargo has the sources wherever it builds the crate from, and tells this
//! script which version that is by the crate's `links` metadata. Asking `cargo metadata` instead
//! would need every dependency of the workspace at hand, also those of tests.
#![allow(clippy::print_stdout, reason = "a build script talks to cargo this way")]

use std::env;
use std::error::Error;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::DeflateEncoder;

#[path = "src/extract.rs"]
mod extract;

/// Names the folder of the crate's sources where this script would not find it.
const OVERRIDE: &str = "KNARR_K8S_OPENAPI";
/// Less than this is a layout that is no longer understood.
const MIN_TYPES: usize = 500;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/extract.rs");
    for name in [OVERRIDE, "CARGO_HOME"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let (version, minor) = linked()?;
    let dir = find(&version, minor)?;
    println!("cargo::rerun-if-changed={}", dir.display());
    let mut types = Vec::new();
    read_tree(&dir, &mut types)?;
    if types.len() < MIN_TYPES {
        let (found, dir) = (types.len(), dir.display());
        return Err(
            format!("only {found} described types in {dir}: has its layout changed?").into()
        );
    }
    types.sort();
    let out = PathBuf::from(env::var("OUT_DIR")?).join("descriptions.deflate");
    let mut encoder = DeflateEncoder::new(File::create(out)?, Compression::best());
    encoder.write_all(types.concat().as_bytes())?;
    encoder.finish()?;
    Ok(())
}

/// Version of the k8s-openapi crate that cargo resolved, and the minor version of Kubernetes that
/// it was told to be: its build script says `0x00_MAJOR_MINOR_00`.
fn linked() -> Result<(String, u32), Box<dyn Error>> {
    for (name, value) in env::vars() {
        let name = name.strip_prefix("DEP_K8S_OPENAPI_");
        if let Some(version) = name.and_then(|name| name.strip_suffix("_VERSION")) {
            return Ok((version.to_owned(), value.parse::<u32>()? >> 8 & 0xff));
        }
    }
    Err("k8s-openapi says no version: is it still a dependency with `links`?".into())
}

/// The folder of the generated sources, such as `…/k8s-openapi-0.29.0/src/v1_36`.
fn find(version: &str, minor: u32) -> Result<PathBuf, Box<dyn Error>> {
    let candidates = candidates(version)?;
    let sources = format!("src/v1_{minor}");
    let fits = |dir: &&PathBuf| dir.join(&sources).is_dir() && is_version(dir, version);
    match candidates.iter().find(fits) {
        Some(dir) => Ok(dir.join(sources)),
        None => Err(format!(
            "no sources of k8s-openapi {version} with {sources}, neither vendored nor in cargo's \
             registry (looked at {candidates:?}); set {OVERRIDE} to the crate's folder"
        )
        .into()),
    }
}

fn is_version(dir: &Path, version: &str) -> bool {
    let manifest = fs::read_to_string(dir.join("Cargo.toml")).unwrap_or_default();
    manifest.lines().any(|line| line == format!("version = \"{version}\""))
}

/// Where the crate may lie: where the environment says, in a folder of vendored sources, in the
/// registry's folder.
fn candidates(version: &str) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    if let Some(dir) = env::var_os(OVERRIDE) {
        return Ok(vec![dir.into()]);
    }
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(env::home_dir()?.join(".cargo")));
    let here = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let mut parents: Vec<PathBuf> =
        here.ancestors().flat_map(|dir| vendors(dir, &dir.join(".cargo"))).collect();
    if let Some(home) = &home {
        parents.extend(vendors(home.parent().unwrap_or(home), home));
        let registries = fs::read_dir(home.join("registry/src"));
        parents.extend(registries.into_iter().flatten().filter_map(|e| Some(e.ok()?.path())));
    }
    let both = |dir: PathBuf| [dir.join(format!("k8s-openapi-{version}")), dir.join("k8s-openapi")];
    Ok(parents.into_iter().flat_map(both).collect())
}

/// Folders of vendored sources that cargo's configuration in `config` names, and the usual one.
fn vendors(dir: &Path, config: &Path) -> Vec<PathBuf> {
    let texts = ["config.toml", "config"].map(|name| fs::read_to_string(config.join(name)));
    let lines = texts.iter().flatten().flat_map(|text| text.lines());
    let named = lines.filter_map(|line| {
        let value = line.trim().strip_prefix("directory")?.trim_start().strip_prefix('=')?;
        Some(dir.join(value.trim().trim_matches(['"', '\''])))
    });
    named.chain([dir.join("vendor")]).filter(|dir| dir.is_dir()).collect()
}

fn read_tree(dir: &Path, types: &mut Vec<String>) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            read_tree(&path, types)?;
        } else {
            types.extend(extract::record(&fs::read_to_string(path)?));
        }
    }
    Ok(())
}
