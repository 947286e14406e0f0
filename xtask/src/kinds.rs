//! Writes the table of served kinds from upstream's discovery documents.
//!
//! Only stable versions are taken: they are what a default server serves. Kinds whose objects are
//! never stored (reviews, bindings) are told apart by their verbs.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::flag;

const OUT: &str = "core/api/data/kinds.txt";
const HEAD: &str = "\
# The kinds of Kubernetes v1.36 that a default server serves. Written by `cargo xtask kinds`.
# resource group version kind singular scope verbs short-names categories type
#   /subresource kind-as-served verbs
";

/// Runs the chore.
pub fn run(args: &[String]) -> Result<(), String> {
    let discovery = Path::new(flag(args, "--discovery")?);
    let types = type_names(&read(Path::new(flag(args, "--swagger")?))?);
    let mut out = HEAD.to_owned();
    for document in stable_documents(discovery)? {
        write_group_version(&mut out, &document, &types);
    }
    fs::write(OUT, out).map_err(|e| format!("{OUT}: {e}"))
}

fn read(path: &Path) -> Result<Value, String> {
    let text = fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
    serde_json::from_slice(&text).map_err(|e| format!("{}: {e}", path.display()))
}

/// The resource lists of all stable group-versions, the core group first.
fn stable_documents(dir: &Path) -> Result<Vec<Value>, String> {
    let entries = fs::read_dir(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let mut names: Vec<_> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    names.sort();
    let stable = |path: &std::path::PathBuf| {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let version = name.rsplit("__").next().unwrap_or_default().to_owned();
        name != version && version.starts_with('v') && !version.contains(['a', 'b'])
    };
    names.into_iter().filter(stable).map(|path| read(&path)).collect()
}

/// (group, version, kind) to the name of the OpenAPI definition.
fn type_names(swagger: &Value) -> BTreeMap<(String, String, String), String> {
    let mut names = BTreeMap::new();
    for (name, definition) in swagger["definitions"].as_object().into_iter().flatten() {
        let kinds = definition["x-kubernetes-group-version-kind"].as_array();
        for gvk in kinds.into_iter().flatten() {
            let part = |key: &str| gvk[key].as_str().unwrap_or_default().to_owned();
            names.insert((part("group"), part("version"), part("kind")), name.clone());
        }
    }
    names
}

fn write_group_version(
    out: &mut String,
    document: &Value,
    types: &BTreeMap<(String, String, String), String>,
) {
    let group_version = document["groupVersion"].as_str().unwrap_or_default();
    let (group, version) = group_version.split_once('/').unwrap_or(("", group_version));
    for resource in document["resources"].as_array().into_iter().flatten() {
        let text = |key: &str| resource[key].as_str().unwrap_or_default();
        let own = |key: &str, fallback: &str| match text(key) {
            "" => fallback.to_owned(),
            other => other.to_owned(),
        };
        let served = (own("group", group), own("version", version), text("kind").to_owned());
        let api_version = match (served.0.as_str(), served.1.as_str()) {
            ("", version) => version.to_owned(),
            (group, version) => format!("{group}/{version}"),
        };
        if let Some((_, subresource)) = text("name").split_once('/') {
            let kind = format!("{api_version}.{}", served.2);
            writeln!(out, "  /{subresource} {kind} {}", list(&resource["verbs"])).ok();
            continue;
        }
        let scope = if resource["namespaced"] == true { "Namespaced" } else { "Cluster" };
        let type_name = types.get(&served).map_or("-", String::as_str);
        let dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
        writeln!(
            out,
            "{} {} {version} {} {} {scope} {} {} {} {type_name}",
            text("name"),
            dash(group),
            text("kind"),
            dash(text("singularName")),
            list(&resource["verbs"]),
            list(&resource["shortNames"]),
            list(&resource["categories"]),
        )
        .ok();
    }
}

fn list(values: &Value) -> String {
    let words: Vec<_> = values.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if words.is_empty() { "-".to_owned() } else { words.join(",") }
}
