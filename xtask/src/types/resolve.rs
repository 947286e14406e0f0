//! From Go declarations to rows of the table: names resolved, aliases seen through, inlines
//! flattened, presence read off pointers and tags.
use super::go::{self, Body, Decl, Member, Package, marker};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Where Go packages are found, and those read so far.
pub(crate) struct World {
    roots: Vec<(String, PathBuf)>,
    packages: BTreeMap<String, Package>,
}

/// A type by import path and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TypeName {
    pub(crate) path: String,
    pub(crate) name: String,
}

/// A type expression of the table.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Expr {
    Scalar(&'static str),
    Ref(TypeName),
    List(Box<Expr>),
    Map(Box<Expr>),
}

/// One struct.
pub(crate) struct Row {
    pub(crate) name: TypeName,
    pub(crate) atomic: bool,
    pub(crate) fields: Vec<FieldRow>,
}

/// One JSON field of it.
pub(crate) struct FieldRow {
    pub(crate) name: String,
    pub(crate) proto: Vec<u16>,
    pub(crate) expr: Expr,
    /// `!` always, `?` omitempty, `0` omitzero, `*` pointer with omitempty, `~` without.
    pub(crate) presence: char,
    /// `key=value` words, in a fixed order.
    pub(crate) attrs: Vec<(&'static str, String)>,
}

const SPECIAL: &[(&str, &str, &str)] = &[
    ("k8s.io/apimachinery/pkg/api/resource", "Quantity", "quantity"),
    ("k8s.io/apimachinery/pkg/util/intstr", "IntOrString", "intorstring"),
    ("k8s.io/apimachinery/pkg/apis/meta/v1", "Time", "time"),
    ("k8s.io/apimachinery/pkg/apis/meta/v1", "MicroTime", "microtime"),
    ("k8s.io/apimachinery/pkg/apis/meta/v1", "Duration", "duration"),
    ("k8s.io/apimachinery/pkg/apis/meta/v1", "FieldsV1", "fields"),
    ("k8s.io/apimachinery/pkg/runtime", "RawExtension", "raw"),
    (super::APIEXTENSIONS, "JSON", "json"),
    (super::APIEXTENSIONS, "JSONSchemaPropsOrArray", "schemaorarray"),
    (super::APIEXTENSIONS, "JSONSchemaPropsOrBool", "schemaorbool"),
    (super::APIEXTENSIONS, "JSONSchemaPropsOrStringArray", "schemaorstrings"),
];

const SCALARS: &[&str] = &["string", "bool", "int32", "int64", "float64"];

/// A resolved Go type expression.
struct Resolved {
    expr: Expr,
    /// As Go prints it in an error message.
    go: String,
    pointer: bool,
    enums: Vec<String>,
    is_struct: bool,
}

impl World {
    pub(crate) fn new(roots: Vec<(String, PathBuf)>) -> World {
        World { roots, packages: BTreeMap::new() }
    }

    fn package(&mut self, path: &str) -> Result<&Package, String> {
        if !self.packages.contains_key(path) {
            let dir = self.dir(path)?;
            self.packages.insert(path.to_owned(), go::read_package(&dir)?);
        }
        Ok(&self.packages[path])
    }

    fn dir(&self, path: &str) -> Result<PathBuf, String> {
        let found = self.roots.iter().find_map(|(prefix, dir)| {
            let rest = path.strip_prefix(prefix.as_str())?;
            Some(dir.join(rest.trim_start_matches('/')))
        });
        found.ok_or_else(|| format!("no folder is known for Go package {path}"))
    }

    fn decl(&mut self, name: &TypeName) -> Result<&Decl, String> {
        let package = self.package(&name.path)?;
        package
            .types
            .get(&name.name)
            .ok_or_else(|| format!("{}.{} not found", name.path, name.name))
    }

    /// Every struct reachable from `roots`, sorted.
    pub(crate) fn rows(&mut self, roots: Vec<TypeName>) -> Result<Vec<Row>, String> {
        let mut todo = roots;
        let mut rows = BTreeMap::new();
        let mut seen = BTreeSet::new();
        while let Some(name) = todo.pop() {
            if !seen.insert(name.clone()) {
                continue;
            }
            let row = self.row(&name)?;
            row.fields.iter().for_each(|f| refs(&f.expr, &mut todo));
            rows.insert(name, row);
        }
        Ok(rows.into_values().collect())
    }

    fn row(&mut self, name: &TypeName) -> Result<Row, String> {
        let decl = self.decl(name)?;
        let atomic = marker(&decl.markers, "structType") == Some("atomic")
            || marker(&decl.markers, "mapType") == Some("atomic");
        let mut fields = Vec::new();
        self.flatten(name, &[], &mut fields)?;
        Ok(Row { name: name.clone(), atomic, fields })
    }

    fn flatten(
        &mut self,
        name: &TypeName,
        outer: &[u16],
        out: &mut Vec<FieldRow>,
    ) -> Result<(), String> {
        let decl = self.decl(name)?;
        let imports = decl.imports.clone();
        let members: Vec<Member> = match &decl.body {
            Body::Struct(members) => members.iter().map(copy).collect(),
            Body::Alias(target) | Body::Other(target) => {
                let target = target.clone();
                let target = qualify(&target, &name.path, &imports)?;
                return self.flatten(&target, outer, out);
            }
        };
        for member in members {
            self.member(&member, name, &imports, outer, out)
                .map_err(|e| format!("{}.{}: {e}", name.name, member.name))?;
        }
        Ok(())
    }

    fn member(
        &mut self,
        member: &Member,
        owner: &TypeName,
        imports: &BTreeMap<String, String>,
        outer: &[u16],
        out: &mut Vec<FieldRow>,
    ) -> Result<(), String> {
        let json = member.tag("json").unwrap_or_default();
        let (json_name, options) = json.split_once(',').unwrap_or((json, ""));
        let mut proto = outer.to_vec();
        proto.extend(member.tag("protobuf").and_then(|t| t.split(',').nth(1)?.parse::<u16>().ok()));
        if json_name == "-" {
            return Ok(());
        }
        if json_name.is_empty() {
            if !member.name.is_empty() {
                return Ok(()); // not serialised by name; the API has no such field
            }
            let inner = qualify(&member.go_type, &owner.path, imports)?;
            let before = out.len();
            self.flatten(&inner, &proto, out)?;
            if proto.len() == outer.len() {
                // Inlined in JSON only, as TypeMeta is: not on the protobuf wire.
                out[before..].iter_mut().for_each(|field| field.proto.clear());
            }
            return Ok(());
        }
        if proto.len() == outer.len() {
            proto.clear();
        }
        let resolved = self.resolve(&member.go_type, &owner.path, imports)?;
        let attrs = attributes(member, options, &resolved, self.default(member, &owner.path));
        let presence = presence(options, &resolved);
        let name = json_name.to_owned();
        out.push(FieldRow { name, proto, expr: resolved.expr, presence, attrs });
        Ok(())
    }

    fn resolve(
        &mut self,
        text: &str,
        path: &str,
        imports: &BTreeMap<String, String>,
    ) -> Result<Resolved, String> {
        let plain = |expr, go: String| Resolved {
            expr,
            go,
            pointer: false,
            enums: vec![],
            is_struct: false,
        };
        if let Some(rest) = text.strip_prefix('*') {
            return Ok(Resolved { pointer: true, ..self.resolve(rest, path, imports)? });
        }
        if text == "[]byte" {
            return Ok(plain(Expr::Scalar("bytes"), "[]uint8".into()));
        }
        if let Some(rest) = text.strip_prefix("[]") {
            let inner = self.resolve(rest, path, imports)?;
            return Ok(Resolved {
                enums: inner.enums,
                ..plain(Expr::List(Box::new(inner.expr)), format!("[]{}", inner.go))
            });
        }
        if let Some(rest) = text.strip_prefix("map[") {
            let (key, value) = rest.split_once(']').ok_or("bad map type")?;
            let key = self.resolve(key, path, imports)?.go;
            let inner = self.resolve(value, path, imports)?;
            let go = format!("map[{key}]{}", inner.go);
            return Ok(plain(Expr::Map(Box::new(inner.expr)), go));
        }
        if let Some(scalar) = SCALARS.iter().find(|s| **s == text) {
            return Ok(plain(Expr::Scalar(scalar), text.to_owned()));
        }
        self.named(&qualify(text, path, imports)?)
    }

    fn named(&mut self, name: &TypeName) -> Result<Resolved, String> {
        let package = self.package(&name.path)?.name.clone();
        let go = format!("{package}.{}", name.name);
        let special = SPECIAL.iter().find(|(p, n, _)| *p == name.path && *n == name.name);
        let simple = |expr, is_struct| Resolved {
            expr,
            go: go.clone(),
            pointer: false,
            enums: vec![],
            is_struct,
        };
        if let Some((_, _, scalar)) = special {
            return Ok(simple(Expr::Scalar(scalar), !matches!(*scalar, "duration")));
        }
        let decl = self.decl(name)?;
        let (target, is_alias) = match &decl.body {
            Body::Struct(_) => return Ok(simple(Expr::Ref(name.clone()), true)),
            Body::Alias(target) => (target.clone(), true),
            Body::Other(target) => (target.clone(), false),
        };
        let imports = decl.imports.clone();
        let is_enum = marker(&decl.markers, "enum").is_some();
        let inner = self.resolve(&target, &name.path, &imports)?;
        if is_alias {
            return Ok(inner);
        }
        if inner.is_struct {
            return Ok(simple(Expr::Ref(name.clone()), true));
        }
        let enums = if is_enum { self.enum_values(name)? } else { inner.enums };
        Ok(Resolved { enums, ..simple(inner.expr, false) })
    }

    fn enum_values(&mut self, name: &TypeName) -> Result<Vec<String>, String> {
        let consts = self.package(&name.path)?.consts.get(&name.name);
        Ok(consts.into_iter().flatten().map(|(_, value)| value.clone()).collect())
    }

    /// The JSON text of a `+default=` marker, with `ref(Const)` looked up.
    fn default(&mut self, member: &Member, path: &str) -> Option<String> {
        let text = member.marker("default")?;
        let Some(constant) = text.strip_prefix("ref(").and_then(|t| t.strip_suffix(')')) else {
            return Some(text.to_owned());
        };
        let consts = &self.package(path).ok()?.consts;
        let value = consts.values().flatten().find(|(name, _)| name == constant)?;
        Some(format!("\"{}\"", value.1))
    }
}

fn copy(member: &Member) -> Member {
    Member {
        name: member.name.clone(),
        go_type: member.go_type.clone(),
        tags: member.tags.clone(),
        markers: member.markers.clone(),
    }
}

fn refs(expr: &Expr, out: &mut Vec<TypeName>) {
    match expr {
        Expr::Ref(name) => out.push(name.clone()),
        Expr::List(inner) | Expr::Map(inner) => refs(inner, out),
        Expr::Scalar(_) => {}
    }
}

fn qualify(text: &str, path: &str, imports: &BTreeMap<String, String>) -> Result<TypeName, String> {
    let (path, name) = match text.split_once('.') {
        Some((alias, name)) => {
            (imports.get(alias).ok_or_else(|| format!("unknown import {alias}"))?.as_str(), name)
        }
        None => (path, text),
    };
    Ok(TypeName { path: path.to_owned(), name: name.to_owned() })
}

fn presence(options: &str, resolved: &Resolved) -> char {
    let has = |option| options.split(',').any(|o| o == option);
    match (resolved.pointer, has("omitempty") || has("omitzero")) {
        (true, true) => '*',
        (true, false) => '~',
        (false, false) => '!',
        (false, true) if has("omitzero") => '0',
        (false, true) => '?',
    }
}

fn attributes(
    member: &Member,
    options: &str,
    resolved: &Resolved,
    default: Option<String>,
) -> Vec<(&'static str, String)> {
    let mut attrs = Vec::new();
    let mut add = |key, value: Option<String>| attrs.extend(value.map(|v| (key, v)));
    let is_list = matches!(resolved.expr, Expr::List(_) | Expr::Scalar("bytes"));
    let keys: Vec<&str> =
        member.markers.iter().filter_map(|m| m.strip_prefix("listMapKey=")).collect();
    add("go", (resolved.go != printed(&resolved.expr)).then(|| resolved.go.clone()));
    add("list", member.marker("listType").filter(|_| is_list).map(str::to_owned));
    add("keys", (!keys.is_empty()).then(|| keys.join(",")));
    let atomic = member.marker("mapType").or(member.marker("structType"));
    add("map", atomic.map(str::to_owned));
    add("patch", member.tag("patchStrategy").map(str::to_owned));
    add("merge", member.tag("patchMergeKey").map(str::to_owned));
    add("enum", (!resolved.enums.is_empty()).then(|| resolved.enums.join("|").replace(' ', "%20")));
    add("default", default);
    let omits = options.contains("omit");
    add("opt", (member.marker("optional").is_some() && !omits).then(String::new));
    add("req", (member.marker("required").is_some() && omits).then(String::new));
    add("gate", member.marker("featureGate").map(str::to_owned));
    attrs
}

/// What Go prints for a type that has no name of its own.
fn printed(expr: &Expr) -> String {
    match expr {
        Expr::Scalar(scalar) => match *scalar {
            "bytes" => "[]uint8".to_owned(),
            other => special_go(other).unwrap_or(other).to_owned(),
        },
        Expr::Ref(name) => {
            let package = name.path.rsplit('/').next().unwrap_or_default();
            format!("{package}.{}", name.name)
        }
        Expr::List(inner) => format!("[]{}", printed(inner)),
        Expr::Map(inner) => format!("map[string]{}", printed(inner)),
    }
}

/// Go's name of a scalar that is a struct there.
fn special_go(scalar: &str) -> Option<&'static str> {
    Some(match scalar {
        "quantity" => "resource.Quantity",
        "intorstring" => "intstr.IntOrString",
        "time" => "v1.Time",
        "microtime" => "v1.MicroTime",
        "duration" => "v1.Duration",
        "fields" => "v1.FieldsV1",
        "raw" => "runtime.RawExtension",
        "json" => "v1.JSON",
        "schemaorarray" => "v1.JSONSchemaPropsOrArray",
        "schemaorbool" => "v1.JSONSchemaPropsOrBool",
        "schemaorstrings" => "v1.JSONSchemaPropsOrStringArray",
        _ => return None,
    })
}
