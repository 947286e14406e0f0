//! Reads the declarations of Go's `types.go` files: just enough of gofmt's layout, no more.
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The type declarations of one Go package.
#[derive(Default)]
pub(crate) struct Package {
    /// Last element of the import path, as Go prints it in type names (`v1`).
    pub(crate) name: String,
    /// Declarations by type name.
    pub(crate) types: BTreeMap<String, Decl>,
    /// String constants by their type: (constant name, value).
    pub(crate) consts: BTreeMap<String, Vec<(String, String)>>,
}

/// One `type X …`.
pub(crate) struct Decl {
    pub(crate) markers: Vec<String>,
    pub(crate) body: Body,
    /// import alias → import path, of the file it stands in.
    pub(crate) imports: BTreeMap<String, String>,
}

/// What stands behind the name.
pub(crate) enum Body {
    Struct(Vec<Member>),
    /// `type X = v1.Y`: the same type by another name.
    Alias(String),
    /// `type X string`, `type X v1.Y`, `type X map[string]Y`: a type of its own.
    Other(String),
}

/// One line of a struct.
pub(crate) struct Member {
    /// Empty when embedded.
    pub(crate) name: String,
    pub(crate) go_type: String,
    pub(crate) tags: String,
    pub(crate) markers: Vec<String>,
}

impl Member {
    /// The value of one struct tag, such as `json`.
    pub(crate) fn tag(&self, key: &str) -> Option<&str> {
        let start = self.tags.find(&format!("{key}:\""))? + key.len() + 2;
        self.tags[start..].split('"').next()
    }

    /// The value of the last `+key=value` or `+key` marker.
    pub(crate) fn marker(&self, key: &str) -> Option<&str> {
        marker(&self.markers, key)
    }
}

/// The value of the last `+key=value` marker; empty for a bare `+key`.
pub(crate) fn marker<'a>(markers: &'a [String], key: &str) -> Option<&'a str> {
    markers.iter().rev().find_map(|m| {
        let rest = m.strip_prefix(key)?;
        if rest.is_empty() { Some("") } else { rest.strip_prefix('=') }
    })
}

/// Reads every hand-written file of a package folder.
pub(crate) fn read_package(dir: &Path) -> Result<Package, String> {
    let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut package = Package { name, ..Package::default() };
    let mut files: Vec<_> = fs::read_dir(dir)
        .map_err(|e| format!("{}: {e}", dir.display()))?
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .filter(|p| is_source(&p.file_name().unwrap_or_default().to_string_lossy()))
        .collect();
    files.sort();
    for file in files {
        let text = fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        read_file(&text, &mut package);
    }
    Ok(package)
}

fn is_source(name: &str) -> bool {
    name.ends_with(".go")
        && !name.ends_with("_test.go")
        && !name.starts_with("zz_generated")
        && !name.ends_with(".pb.go")
        && !name.ends_with("_string.go")
}

fn read_file(text: &str, package: &mut Package) {
    let imports = imports(text);
    let mut lines = text.lines();
    let mut markers = Vec::new();
    while let Some(line) = lines.next() {
        if let Some(comment) = line.strip_prefix("//") {
            push_marker(comment, &mut markers);
        } else if let Some(rest) = line.strip_prefix("type ") {
            let markers = std::mem::take(&mut markers);
            read_type(rest, &mut lines, markers, &imports, package);
        } else if !line.trim().is_empty() {
            read_const(line, package);
            markers.clear();
        }
    }
}

fn push_marker(comment: &str, markers: &mut Vec<String>) {
    if let Some(marker) = comment.trim().strip_prefix('+') {
        markers.push(marker.trim().to_owned());
    }
}

fn imports(text: &str) -> BTreeMap<String, String> {
    let block = text.split_once("import (").map_or("", |(_, rest)| rest);
    let block = block.split_once("\n)").map_or("", |(block, _)| block);
    let single = text.lines().filter_map(|l| l.strip_prefix("import "));
    block.lines().chain(single).filter_map(import).collect()
}

fn import(line: &str) -> Option<(String, String)> {
    let (alias, rest) = line.split_once('"')?;
    let path = rest.split('"').next()?;
    let alias = alias.trim();
    let last = path.rsplit('/').next()?;
    Some((if alias.is_empty() { last } else { alias }.to_owned(), path.to_owned()))
}

fn read_type<'a>(
    rest: &str,
    lines: &mut impl Iterator<Item = &'a str>,
    markers: Vec<String>,
    imports: &BTreeMap<String, String>,
    package: &mut Package,
) {
    let Some((name, body)) = rest.split_once(' ') else { return };
    let body = strip_comment(body);
    let body = match body {
        "struct {" => Body::Struct(read_members(lines)),
        "struct{}" => Body::Struct(Vec::new()),
        _ if body.ends_with('{') || name == "(" => return,
        other => match other.strip_prefix("= ") {
            Some(target) => Body::Alias(target.to_owned()),
            None => Body::Other(other.to_owned()),
        },
    };
    package.types.insert(name.to_owned(), Decl { markers, body, imports: imports.clone() });
}

fn strip_comment(text: &str) -> &str {
    text.split(" //").next().unwrap_or(text).trim()
}

fn read_members<'a>(lines: &mut impl Iterator<Item = &'a str>) -> Vec<Member> {
    let mut members = Vec::new();
    let mut markers = Vec::new();
    let mut in_block_comment = false;
    for line in lines.by_ref().take_while(|line| *line != "}") {
        let line = line.trim();
        if line.starts_with("/*") || in_block_comment {
            in_block_comment = !line.ends_with("*/");
        } else if let Some(comment) = line.strip_prefix("//") {
            push_marker(comment, &mut markers);
        } else if let Some(mut member) = read_member(line) {
            member.markers = std::mem::take(&mut markers);
            members.push(member);
        } else if !line.is_empty() {
            markers.clear();
        }
    }
    members
}

fn read_member(line: &str) -> Option<Member> {
    let (decl, rest) = line.split_once('`').unwrap_or((line, ""));
    let tags = rest.split('`').next().unwrap_or_default().to_owned();
    let decl = strip_comment(decl);
    if decl.is_empty() {
        return None;
    }
    let (name, go_type) = match decl.split_once(char::is_whitespace) {
        Some((name, go_type)) => (name, go_type.trim()),
        None => ("", decl),
    };
    Some(Member { name: name.to_owned(), go_type: go_type.to_owned(), tags, markers: Vec::new() })
}

/// `Name Type = "value"` inside or outside a const block.
fn read_const(line: &str, package: &mut Package) {
    let Some((decl, value)) = line.split_once(" = \"") else { return };
    let words: Vec<&str> = decl.split_whitespace().filter(|w| *w != "const").collect();
    if let ([name, go_type], Some(value)) = (&words[..], value.split('"').next()) {
        let values = package.consts.entry((*go_type).to_owned()).or_default();
        values.push(((*name).to_owned(), value.to_owned()));
    }
}
