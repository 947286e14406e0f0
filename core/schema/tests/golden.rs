//! Golden scripts: each case names an operation, gives its inputs line by line and, after `=> `,
//! what comes out. `KNARR_BLESS=1` rewrites the outputs.
#![allow(clippy::unwrap_used)]

use knarr_schema::{
    PatchError, Schema, TypeId, encode, json_patch, merge_patch, resource_version_offset,
    strict_error, with_resource_version,
};
use serde_json::Value;
use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

fn check(file: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
    let script = fs::read_to_string(&path).unwrap();
    let schema = match file {
        "merge_item.txt" => Schema::parse(include_str!("merge_item.types")),
        _ => Schema::builtin(),
    };
    let mut out = String::new();
    for block in script.trim_end().split("\n\n") {
        let lines = block.lines().filter(|line| !line.starts_with("=> "));
        lines.clone().for_each(|line| writeln!(out, "{line}").unwrap());
        let mut lines = lines.filter(|line| !line.starts_with('#'));
        if let Some(command) = lines.next() {
            let inputs: Vec<&str> = lines.collect();
            run(&schema, command, &inputs).lines().for_each(|l| writeln!(out, "=> {l}").unwrap());
        }
        out.push('\n');
    }
    let out = out.trim_end().to_owned() + "\n";
    if env::var_os("KNARR_BLESS").is_some() {
        fs::write(&path, out).unwrap();
        return;
    }
    for (wanted, got) in script.lines().zip(out.lines()) {
        assert_eq!(wanted, got, "{file}; KNARR_BLESS=1 accepts the new output");
    }
    assert_eq!(script, out, "{file}");
}

fn run(schema: &Schema, command: &str, inputs: &[&str]) -> String {
    let (operation, kind) = command.split_once(' ').unwrap_or((command, ""));
    let json = |at: usize| -> Value { serde_json::from_str(inputs[at]).unwrap() };
    let patched = |result: Result<Value, PatchError>| match result {
        Ok(value) => value.to_string(),
        Err(error) => format!("{error:?}"),
    };
    match operation {
        "decode" => decode(schema, type_of(schema, kind), inputs[0]),
        "parse" => match schema.decode_any(inputs[0].as_bytes()) {
            Ok(decoded) if decoded.issues.is_empty() => decoded.tree.to_string(),
            Ok(decoded) => format!("{}\n{}", decoded.tree, strict_error(&decoded.issues)),
            Err(error) => format!("{error:?}"),
        },
        "default" => {
            let mut tree = json(0);
            schema.default(type_of(schema, kind), &mut tree);
            tree.to_string()
        }
        "normalize" => {
            let mut tree = json(0);
            schema.normalize(type_of(schema, kind), &mut tree);
            tree.to_string()
        }
        "encode" => encoded(&json(0), kind),
        "strategic" => patched(schema.strategic_merge(type_of(schema, kind), json(0), json(1))),
        "json-patch" => patched(json_patch(&json(0), &json(1))),
        "merge-patch" => {
            let mut doc = json(0);
            patched(merge_patch(&mut doc, json(1)).map(|()| doc))
        }
        other => panic!("no operation {other}"),
    }
}

/// `apps/v1/Deployment`, `v1/Pod`, or the full name of a type.
fn type_of(schema: &Schema, name: &str) -> TypeId {
    let parts: Vec<&str> = name.split('/').collect();
    let id = match parts[..] {
        [version, kind] => schema.kind_type("", version, kind),
        [group, version, kind] => schema.kind_type(group, version, kind),
        _ => schema.type_id(name),
    };
    id.unwrap_or_else(|| panic!("no type {name}"))
}

fn decode(schema: &Schema, id: TypeId, input: &str) -> String {
    let by_value = serde_json::from_str(input).map(|value: Value| schema.decode_value(id, &value));
    match schema.decode(id, input.as_bytes()) {
        Ok(decoded) if decoded.issues.is_empty() => decoded.tree.to_string(),
        Ok(decoded) => format!("{}\n{}", decoded.tree, strict_error(&decoded.issues)),
        Err(error) => {
            // Which of two errors comes first may differ: a parsed tree has its keys sorted.
            assert!(by_value.is_err() || by_value.is_ok_and(|decoded| decoded.is_err()));
            format!("{error:?}")
        }
    }
}

fn encoded(tree: &Value, kind: &str) -> String {
    let (api_version, kind) = kind.rsplit_once('/').unwrap();
    let bytes = encode(kind, api_version, tree);
    let offset = resource_version_offset(&bytes).unwrap();
    let sent = with_resource_version(&bytes, offset, 42);
    let parsed: Value = serde_json::from_slice(&sent).unwrap();
    assert_eq!(parsed["metadata"]["resourceVersion"], "42");
    String::from_utf8(sent).unwrap()
}

#[test]
fn decoding() {
    check("decode.txt");
}

#[test]
fn defaulting() {
    check("default.txt");
}

#[test]
fn normalizing_and_encoding() {
    check("normalize.txt");
}

#[test]
fn json_patches() {
    check("json_patch.txt");
}

#[test]
fn merge_patches() {
    check("merge_patch.txt");
}

#[test]
fn strategic_merge_patches() {
    check("strategic.txt");
}

#[test]
fn strategic_merge_of_every_kind_of_field() {
    check("merge_item.txt");
}
