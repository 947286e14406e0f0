//! `cargo xtask types`: writes `core/schema/data/types.txt` from Go's `types.go` files, which say
//! what OpenAPI does not (protobuf numbers, pointers, omitempty), and prints where the two differ.
mod check;
mod go;
mod resolve;

use resolve::{Expr, FieldRow, Row, TypeName, World};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

const APIEXTENSIONS: &str = "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1";
const AGGREGATOR: &str = "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1";
const META: &str = "k8s.io/apimachinery/pkg/apis/meta/v1";
const OUTPUT: &str = "core/schema/data/types.txt";

/// Kinds no discovery document lists as a resource's own kind, but bodies of requests or answers.
const EXTRA: &[(&str, &str)] = &[
    (META, "Status"),
    (META, "DeleteOptions"),
    (META, "PartialObjectMetadata"),
    ("k8s.io/api/authentication/v1", "TokenRequest"),
    ("k8s.io/api/autoscaling/v1", "Scale"),
    ("k8s.io/api/core/v1", "Binding"),
    ("k8s.io/api/core/v1", "PodLogOptions"),
    ("k8s.io/api/policy/v1", "Eviction"),
    ("k8s.io/api/admission/v1", "AdmissionReview"),
];

/// Where the facts are.
struct Sources {
    go_api: PathBuf,
    go_apimachinery: PathBuf,
    discovery: Option<PathBuf>,
    swagger: Option<PathBuf>,
}

/// Runs the chore; `args` are `--go-api DIR --go-apimachinery DIR [--discovery DIR]
/// [--swagger FILE]`. The folders of apiextensions-apiserver and kube-aggregator are looked for
/// beside that of the api. The kinds to start from come from discovery documents, or are those
/// that the table has already.
pub(crate) fn run(args: &[String]) -> Result<String, String> {
    let sources = parse_args(args)?;
    let mut world = World::new(go_roots(&sources));
    let kinds = match &sources.discovery {
        Some(dir) => served_kinds(dir)?,
        None => known_kinds()?,
    };
    let roots: Vec<TypeName> = kinds.keys().cloned().collect();
    let rows = world.rows(roots)?;
    let text = render(&rows, &kinds);
    fs::write(OUTPUT, &text).map_err(|e| format!("{OUTPUT}: {e}"))?;
    let mut report = format!("{OUTPUT}: {} types, {} lines\n", rows.len(), text.lines().count());
    if let Some(swagger) = &sources.swagger {
        report.push_str(&check::compare(&rows, &read_json(swagger)?));
    }
    Ok(report)
}

fn parse_args(args: &[String]) -> Result<Sources, String> {
    let value = |flag: &str| {
        let at = args.iter().position(|a| a == flag)?;
        args.get(at + 1).map(PathBuf::from)
    };
    let need = |flag: &str| value(flag).ok_or_else(|| format!("{flag} is missing"));
    Ok(Sources {
        go_api: need("--go-api")?,
        go_apimachinery: need("--go-apimachinery")?,
        discovery: value("--discovery"),
        swagger: value("--swagger"),
    })
}

fn go_roots(sources: &Sources) -> Vec<(String, PathBuf)> {
    let beside = |name: &str| sources.go_api.with_file_name(name);
    vec![
        ("k8s.io/apimachinery".into(), sources.go_apimachinery.clone()),
        ("k8s.io/apiextensions-apiserver".into(), beside("apiextensions-apiserver")),
        ("k8s.io/kube-aggregator".into(), beside("kube-aggregator")),
        ("k8s.io/api".into(), sources.go_api.clone()),
    ]
}

fn read_json(path: &Path) -> Result<Value, String> {
    let text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))
}

fn type_name(path: &str, name: &str) -> TypeName {
    TypeName { path: path.to_owned(), name: name.to_owned() }
}

/// Go type → (group, version).
type Kinds = BTreeMap<TypeName, (String, String)>;

/// Every kind that discovery lists, and the extra ones.
fn served_kinds(dir: &Path) -> Result<Kinds, String> {
    let mut kinds = Kinds::new();
    let groups = read_json(&dir.join("aggregated_v2.json"))?;
    for group in array(&groups["items"]) {
        let group_name = text(&group["metadata"]["name"]);
        for version in array(&group["versions"]) {
            for resource in array(&version["resources"]) {
                let kind = text(&resource["responseKind"]["kind"]);
                add_kind(&mut kinds, group_name, text(&version["version"]), kind);
            }
        }
    }
    for resource in array(&read_json(&dir.join("api__v1.json"))?["resources"]) {
        if resource["group"].as_str().is_none() {
            add_kind(&mut kinds, "", "v1", text(&resource["kind"]));
        }
    }
    for (path, name) in EXTRA {
        let (group, version) = path.rsplit_once('/').unwrap_or_default();
        let group = group.rsplit('/').next().unwrap_or_default();
        let group = match group {
            "authentication" => "authentication.k8s.io",
            "admission" => "admission.k8s.io",
            "meta" => "meta.k8s.io",
            "core" => "",
            other => other,
        };
        kinds.insert(type_name(path, name), (group.into(), version.into()));
    }
    Ok(kinds)
}

/// The same of every kind that the table has now.
fn known_kinds() -> Result<Kinds, String> {
    let text = fs::read_to_string(OUTPUT).map_err(|e| format!("{OUTPUT}: {e}"))?;
    let mut kinds = Kinds::new();
    let mut path = String::new();
    for line in text.lines() {
        if let Some(package) = line.strip_prefix("package io.k8s.") {
            path = format!("k8s.io/{}", package.replace('.', "/"));
        }
        let kind = line.strip_prefix("type ").and_then(|rest| rest.split_once(" gvk="));
        if let Some((name, rest)) = kind {
            let gvk = rest.split(' ').next().and_then(|gv| gv.split_once('/'));
            let (group, version) = gvk.ok_or_else(|| format!("{OUTPUT}: {line}"))?;
            kinds.insert(type_name(&path, name), (group.into(), version.into()));
        }
    }
    Ok(kinds)
}

fn add_kind(kinds: &mut Kinds, group: &str, version: &str, kind: &str) {
    let stem = group.split('.').next().unwrap_or_default();
    let path = match group {
        "apiextensions.k8s.io" => APIEXTENSIONS.to_owned(),
        "apiregistration.k8s.io" => AGGREGATOR.to_owned(),
        "internal.apiserver.k8s.io" => format!("k8s.io/api/apiserverinternal/{version}"),
        "" => format!("k8s.io/api/core/{version}"),
        "flowcontrol.apiserver.k8s.io" => format!("k8s.io/api/flowcontrol/{version}"),
        _ => format!("k8s.io/api/{stem}/{version}"),
    };
    kinds.insert(type_name(&path, kind), (group.into(), version.into()));
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// OpenAPI's name of a Go package: `k8s.io/api/core/v1` → `io.k8s.api.core.v1`.
fn openapi_package(path: &str) -> String {
    path.replacen("k8s.io", "io.k8s", 1).replace('/', ".")
}

const HEADER: &str = "\
# Every type of the built-in API. Written by `cargo xtask types`; do not edit.
# package NAME / type NAME [gvk=GROUP/VERSION] [atomic] / field lines, indented:
#   json-name protobuf-path type presence [attribute…]
# type: scalar, TypeName (same package) or full name; []T list; {}T map by string.
# presence: ! always written, ? omitempty, 0 omitzero, * pointer with omitempty, ~ pointer without.
";

fn render(rows: &[Row], kinds: &Kinds) -> String {
    let mut out = HEADER.to_owned();
    let mut package = "";
    for row in rows {
        if row.name.path != package {
            package = &row.name.path;
            let _ = writeln!(out, "package {}", openapi_package(package));
        }
        let _ = write!(out, "type {}", row.name.name);
        if let Some((group, version)) = kinds.get(&row.name) {
            let _ = write!(out, " gvk={group}/{version}");
        }
        out.push_str(if row.atomic { " atomic\n" } else { "\n" });
        row.fields.iter().for_each(|field| render_field(field, package, &mut out));
    }
    out
}

fn render_field(field: &FieldRow, package: &str, out: &mut String) {
    let proto: Vec<String> = field.proto.iter().map(u16::to_string).collect();
    let proto = if proto.is_empty() { "-".to_owned() } else { proto.join(".") };
    let expr = render_expr(&field.expr, package);
    let _ = write!(out, " {} {proto} {expr} {}", field.name, field.presence);
    for (key, value) in &field.attrs {
        let equals = if value.is_empty() { "" } else { "=" };
        let _ = write!(out, " {key}{equals}{value}");
    }
    out.push('\n');
}

fn render_expr(expr: &Expr, package: &str) -> String {
    match expr {
        Expr::Scalar(scalar) => (*scalar).to_owned(),
        Expr::Ref(name) if name.path == package => name.name.clone(),
        Expr::Ref(name) => format!("{}.{}", openapi_package(&name.path), name.name),
        Expr::List(inner) => format!("[]{}", render_expr(inner, package)),
        Expr::Map(inner) => format!("{{}}{}", render_expr(inner, package)),
    }
}
