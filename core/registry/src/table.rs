//! Server-side tables (meta.k8s.io/v1 Table): what `kubectl get` prints.
//!
//! Columns are data (`data/columns.txt`); a column that is more than a field has a function here.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use jiff::Timestamp;
use knarr_api::Kind;
use serde_json::{Value, json};

use crate::object::text;

mod cells;

const COLUMNS: &str = include_str!("../data/columns.txt");
const FALLBACK: &str = "Name=.metadata.name Age=@age";
const FALLBACK_NO_AGE: &str = "Name=.metadata.name Created_At=.metadata.creationTimestamp";

struct Column<'a> {
    name: String,
    kind: &'static str,
    wide: bool,
    source: &'a str,
    empty: &'a str,
}

impl<'a> Column<'a> {
    fn parse(word: &'a str) -> Self {
        let (head, source) = word.split_once('=').expect("a column has a source");
        let (source, empty) = source.split_once('|').unwrap_or((source, ""));
        let (head, wide) = head.strip_suffix('*').map_or((head, false), |head| (head, true));
        let (name, kind) = match head.split_once(':') {
            Some((name, "i")) => (name, "integer"),
            Some((name, _)) => (name, "boolean"),
            None => (head, "string"),
        };
        Self { name: name.replace('_', " "), kind, wide, source, empty }
    }

    fn definition(&self) -> Value {
        let format = if self.name == "Name" { "name" } else { "" };
        json!({"name": self.name, "type": self.kind, "format": format, "description": "",
            "priority": i32::from(self.wide)})
    }

    fn cell(&self, object: &Value, now: Timestamp) -> Value {
        let found = match self.source.strip_prefix('@') {
            Some(function) => cells::cell(function, object, now),
            None => field(object, self.source),
        };
        match found {
            Value::Null => self.when_empty(),
            Value::String(text) if text.is_empty() => self.when_empty(),
            found if self.kind == "string" && !found.is_string() => found.to_string().into(),
            found => found,
        }
    }

    fn when_empty(&self) -> Value {
        match self.kind {
            "string" => self.empty.into(),
            _ => serde_json::from_str(self.empty).unwrap_or_default(),
        }
    }
}

fn field(object: &Value, path: &str) -> Value {
    let step = |at: &Value, step: &str| match step.parse::<usize>() {
        Ok(index) => at.get(index).cloned(),
        Err(_) => at.get(step).cloned(),
    };
    let mut steps = path.split('.').filter(|part| !part.is_empty());
    steps.try_fold(object.clone(), |at, part| step(&at, part)).unwrap_or_default()
}

/// The columns of a kind.
fn columns(kind: &Kind) -> Vec<Column<'static>> {
    let resource = kind.group_resource().to_string();
    let row = COLUMNS.lines().find_map(|line| line.strip_prefix(&resource)?.strip_prefix(' '));
    let fallback = if kind.custom { FALLBACK } else { FALLBACK_NO_AGE };
    row.unwrap_or(fallback).split(' ').map(Column::parse).collect()
}

/// Objects of one kind as a Table; `metadata` is the list's.
pub(crate) fn table(kind: &Kind, objects: &[Value], metadata: Value, now: Timestamp) -> Value {
    let columns = columns(kind);
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| {
            let cells: Vec<Value> = columns.iter().map(|column| column.cell(object, now)).collect();
            let partial = json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
                "metadata": object["metadata"]});
            json!({"cells": cells, "object": partial})
        })
        .collect();
    let definitions: Vec<Value> = columns.iter().map(Column::definition).collect();
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
        "columnDefinitions": definitions, "rows": rows})
}

/// How long ago something was, as kubectl words it: `5s`, `3m20s`, `4h`, `2d`.
pub(crate) fn since(at: &str, now: Timestamp) -> String {
    let Ok(at) = at.parse::<Timestamp>() else { return "<unknown>".to_owned() };
    human(now.as_second() - at.as_second())
}

/// A duration in seconds, as kubectl words it.
pub(crate) fn human(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let (days, years) = (hours / 24, hours / 24 / 365);
    let two = |a: i64, unit: &str, b: i64, small: &str| match b {
        0 => format!("{a}{unit}"),
        b => format!("{a}{unit}{b}{small}"),
    };
    match seconds {
        ..-1 => "<invalid>".to_owned(),
        -1 => "0s".to_owned(),
        _ if seconds < 120 => format!("{seconds}s"),
        _ if minutes < 10 => two(minutes, "m", seconds % 60, "s"),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => two(hours, "h", minutes % 60, "m"),
        _ if hours < 48 => format!("{hours}h"),
        _ if hours < 24 * 8 => two(days, "d", hours % 24, "h"),
        _ if years < 2 => format!("{days}d"),
        _ if years < 8 => two(years, "y", days % 365, "d"),
        _ => format!("{years}y"),
    }
}

/// A list joined by commas; `<none>` when empty.
fn joined(items: impl Iterator<Item = String>) -> String {
    let items: Vec<String> = items.collect();
    if items.is_empty() { "<none>".to_owned() } else { items.join(",") }
}

/// `a=b,c=d`; `<none>` when empty.
fn pairs(map: &Value) -> String {
    let map = map.as_object().into_iter().flatten();
    joined(map.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())))
}

fn list<'a>(object: &'a Value, pointer: &str) -> impl DoubleEndedIterator<Item = &'a Value> {
    object.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

fn number(object: &Value, pointer: &str) -> i64 {
    object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0)
}

fn names(object: &Value, pointer: &str, field: &str) -> String {
    joined(list(object, pointer).map(|item| text(item, field).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use knarr_api::Catalog;

    #[test]
    fn ages_are_worded_as_kubectl_does() {
        for (seconds, expected) in [
            (-5, "<invalid>"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (200, "3m20s"),
            (600, "10m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 60, "3h1m"),
            (9 * 3600, "9h"),
            (3 * 86400, "3d"),
            (3 * 86400 + 3600, "3d1h"),
            (400 * 86400, "400d"),
            (800 * 86400, "2y70d"),
        ] {
            assert_eq!(human(seconds), expected, "{seconds}");
        }
    }

    #[test]
    fn every_column_has_a_source_that_exists() {
        let catalog = Catalog::builtin();
        let empty = json!({"metadata": {"name": "x"}});
        for kind in catalog.kinds() {
            let table =
                table(kind, core::slice::from_ref(&empty), json!({}), Timestamp::UNIX_EPOCH);
            let cells = table["rows"][0]["cells"].as_array().expect("cells");
            let unknown = cells.iter().find(|cell| **cell == cells::UNKNOWN_FUNCTION);
            assert!(unknown.is_none(), "{}: {cells:?}", kind.plural);
        }
        for line in COLUMNS.lines().filter(|line| !line.starts_with('#')) {
            let resource = line.split(' ').next().expect("a first word");
            let known = catalog.kinds().any(|kind| kind.group_resource().to_string() == resource);
            assert!(known, "{resource}");
        }
    }

    #[test]
    fn a_pod_reads_as_kubectl_shows_it() {
        let catalog = Catalog::builtin();
        let kind = catalog.kind("v1", "Pod").expect("served");
        let now: Timestamp = "2026-01-01T00:10:00Z".parse().expect("a time");
        let pod = json!({"metadata": {"name": "p", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"containers": [{"name": "a"}, {"name": "b"}]},
            "status": {"phase": "Running", "containerStatuses": [
                {"ready": true, "restartCount": 0, "state": {"running": {}}},
                {"ready": false, "restartCount": 3,
                 "lastState": {"terminated": {"finishedAt": "2026-01-01T00:09:00Z"}},
                 "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}});
        let table = table(kind, &[pod], json!({}), now);
        let cells = table["rows"][0]["cells"].as_array().expect("cells");
        assert_eq!(
            cells[..5],
            ["p", "1/2", "CrashLoopBackOff", "3 (60s ago)", "10m"].map(Value::from)
        );
        assert_eq!(cells[5], "<none>");
    }
}
