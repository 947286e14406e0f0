//! JSON patch (RFC 6902) and JSON merge patch (RFC 7396), with the words upstream's library uses.
use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use serde_json::{Map, Value};

/// Most operations one JSON patch may have.
pub const MAX_OPERATIONS: usize = 10_000;
/// How deep a JSON patch may nest an object. Copies and moves could double the depth with every
/// operation, and what walks a tree afterwards recurses.
pub const MAX_DEPTH: usize = 512;
/// What no parsed document or patch exceeds: the JSON parser's own limit.
const PARSED_DEPTH: usize = 128;
/// How much one JSON patch may grow an object by copying, in bytes of JSON.
pub const MAX_COPY_BYTES: usize = 3 * 1024 * 1024;

/// Why a patch cannot be applied; the variant tells the status code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PatchError {
    /// The patch itself is malformed: 400.
    BadPatch(String),
    /// The patch is well-formed but does not fit this object: 422.
    Unprocessable(String),
    /// Too many operations: 413.
    TooLarge(String),
    /// What upstream answers with 500.
    Internal(String),
}

impl fmt::Display for PatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PatchError::BadPatch(text)
            | PatchError::Unprocessable(text)
            | PatchError::TooLarge(text)
            | PatchError::Internal(text) => text,
        })
    }
}

impl core::error::Error for PatchError {}

/// Applies an RFC 6902 patch: an array of at most [`MAX_OPERATIONS`] operations.
pub fn json_patch(doc: &Value, patch: &Value) -> Result<Value, PatchError> {
    let operations = operations(patch).map_err(PatchError::BadPatch)?;
    if operations.len() > MAX_OPERATIONS {
        return Err(PatchError::TooLarge(format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
            operations.len()
        )));
    }
    let mut doc = doc.clone();
    let mut budget = Budget { copied: 0, depth: PARSED_DEPTH };
    for operation in operations {
        apply(&mut doc, operation, &mut budget)
            .and_then(|()| budget.check_depth(&doc, operation))
            .map_err(PatchError::Unprocessable)?;
    }
    Ok(doc)
}

/// What the operations of one patch share.
struct Budget {
    /// Bytes copied so far.
    copied: usize,
    /// The document is at most this deep.
    depth: usize,
}

impl Budget {
    /// Counts the depth an operation may have added; measures only when the limit may be reached.
    fn check_depth(&mut self, doc: &Value, op: &Map<String, Value>) -> Result<(), String> {
        let path = op.get("path").and_then(Value::as_str).unwrap_or_default();
        self.depth += path.matches('/').count();
        if self.depth > MAX_DEPTH {
            self.depth = depth(doc).max(PARSED_DEPTH);
        }
        if self.depth > MAX_DEPTH { Err("exceeded max depth".to_owned()) } else { Ok(()) }
    }
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(entries) => 1 + entries.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

fn operations(patch: &Value) -> Result<Vec<&Map<String, Value>>, String> {
    let wrong = |value: &Value, go_type| {
        let kind = json_kind(value);
        format!("json: cannot unmarshal {kind} into Go value of type jsonpatch.{go_type}")
    };
    let list = patch.as_array().ok_or_else(|| wrong(patch, "Patch"))?;
    list.iter().map(|op| op.as_object().ok_or_else(|| wrong(op, "Operation"))).collect()
}

/// JSON's name for the kind of a value, as Go's decoder says it.
fn json_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn apply(doc: &mut Value, op: &Map<String, Value>, budget: &mut Budget) -> Result<(), String> {
    let kind = op.get("op").and_then(Value::as_str).unwrap_or("unknown");
    let value = op.get("value").cloned().unwrap_or(Value::Null);
    match kind {
        "add" => add(doc, pointer(op, "path", kind)?, value),
        "remove" => remove(doc, pointer(op, "path", kind)?),
        "replace" => replace(doc, pointer(op, "path", kind)?, value),
        "move" => move_value(doc, op),
        "copy" => copy(doc, op, budget),
        "test" => test(doc, pointer(op, "path", kind)?, &value),
        _ => Err(format!("Unexpected kind: {kind}")),
    }
}

fn pointer<'a>(op: &'a Map<String, Value>, name: &str, kind: &str) -> Result<&'a str, String> {
    op.get(name).and_then(Value::as_str).ok_or_else(|| {
        format!(
            "{kind} operation failed to decode {name}: \
             operation missing {name} field: missing value"
        )
    })
}

fn add(doc: &mut Value, path: &str, value: Value) -> Result<(), String> {
    let (target, key) = find(doc, path).ok_or_else(|| {
        format!("add operation does not apply: doc is missing path: \"{path}\": missing value")
    })?;
    insert(target, &key, value).map_err(|e| format!("error in add for path: '{path}': {e}"))
}

fn remove(doc: &mut Value, path: &str) -> Result<(), String> {
    let (target, key) = find(doc, path).ok_or_else(|| {
        format!("remove operation does not apply: doc is missing path: \"{path}\": missing value")
    })?;
    take(target, &key).map(drop).map_err(|e| format!("error in remove for path: '{path}': {e}"))
}

fn replace(doc: &mut Value, path: &str, value: Value) -> Result<(), String> {
    if path.is_empty() {
        *doc = value;
        return Ok(());
    }
    let (target, key) = find(doc, path).ok_or_else(|| {
        format!("replace operation does not apply: doc is missing path: {path}: missing value")
    })?;
    let place = get(target, &key).map_err(|_| {
        format!("replace operation does not apply: doc is missing key: {path}: missing value")
    })?;
    *place = value;
    Ok(())
}

fn move_value(doc: &mut Value, op: &Map<String, Value>) -> Result<(), String> {
    let from = pointer(op, "from", "move")?;
    let (source, key) = find(doc, from).ok_or_else(|| {
        format!("move operation does not apply: doc is missing from path: {from}: missing value")
    })?;
    let value = take(source, &key).map_err(|e| format!("error in move for path: '{key}': {e}"))?;
    let path = pointer(op, "path", "move")?;
    let (target, key) = find(doc, path).ok_or_else(|| {
        format!(
            "move operation does not apply: doc is missing destination path: {path}: missing value"
        )
    })?;
    insert(target, &key, value).map_err(|e| format!("error in move for path: '{path}': {e}"))
}

fn copy(doc: &mut Value, op: &Map<String, Value>, budget: &mut Budget) -> Result<(), String> {
    let from = pointer(op, "from", "copy")?;
    let (source, key) = find(doc, from).ok_or_else(|| {
        format!("copy operation does not apply: doc is missing from path: {from}: missing value")
    })?;
    let value =
        get(source, &key).map_err(|e| format!("error in copy for path: '{from}': {e}"))?.clone();
    let path = pointer(op, "path", "copy")?;
    budget.copied += value.to_string().len();
    if budget.copied > MAX_COPY_BYTES {
        let copied = budget.copied;
        return Err(format!(
            "Unable to complete the copy, the accumulated size increase of copy is {copied}, \
             exceeding the limit {MAX_COPY_BYTES}"
        ));
    }
    let (target, key) = find(doc, path).ok_or_else(|| {
        format!(
            "copy operation does not apply: doc is missing destination path: {path}: missing value"
        )
    })?;
    insert(target, &key, value).map_err(|e| format!("error while adding value during copy: {e}"))
}

fn test(doc: &mut Value, path: &str, wanted: &Value) -> Result<(), String> {
    let found = if path.is_empty() {
        doc
    } else {
        let (target, key) = find(doc, path).ok_or_else(|| {
            format!("test operation does not apply: is missing path: {path}: missing value")
        })?;
        match (get(target, &key), wanted) {
            (Ok(found), _) => found,
            (Err(error), _) if !error.ends_with("missing value") => {
                return Err(format!("error in test for path: '{path}': {error}"));
            }
            (Err(_), Value::Null) => return Ok(()),
            (Err(_), _) => return Err(format!("testing path {path} failed: test failed")),
        }
    };
    if found == wanted { Ok(()) } else { Err(format!("testing value {path} failed: test failed")) }
}

/// The object or list that holds the last step of a pointer, and that step.
fn find<'a>(doc: &'a mut Value, path: &str) -> Option<(&'a mut Value, String)> {
    let mut parts: Vec<String> = path.split('/').skip(1).map(unescape).collect();
    let key = parts.pop()?;
    let target = parts.iter().try_fold(doc, |at, part| get(at, part).ok())?;
    (target.is_object() || target.is_array()).then_some((target, key))
}

fn unescape(part: &str) -> String {
    part.replace("~1", "/").replace("~0", "~")
}

fn get<'a>(target: &'a mut Value, key: &str) -> Result<&'a mut Value, String> {
    match target {
        Value::Object(entries) => entries
            .get_mut(key)
            .ok_or_else(|| format!("unable to get nonexistent key: {key}: missing value")),
        Value::Array(items) => {
            let at = index(key, items.len())?;
            Ok(&mut items[at])
        }
        _ => Err("invalid state detected".to_owned()),
    }
}

fn insert(target: &mut Value, key: &str, value: Value) -> Result<(), String> {
    match target {
        Value::Object(entries) => {
            entries.insert(key.to_owned(), value);
        }
        Value::Array(items) if key == "-" => items.push(value),
        Value::Array(items) => items.insert(index(key, items.len() + 1)?, value),
        _ => return Err("invalid state detected".to_owned()),
    }
    Ok(())
}

fn take(target: &mut Value, key: &str) -> Result<Value, String> {
    match target {
        Value::Object(entries) => entries
            .remove(key)
            .ok_or_else(|| format!("Unable to remove nonexistent key: {key}: missing value")),
        Value::Array(items) => Ok(items.remove(index(key, items.len())?)),
        _ => Err("invalid state detected".to_owned()),
    }
}

/// An index below `length`; a negative one counts from the end.
fn index(key: &str, length: usize) -> Result<usize, String> {
    let number: i64 =
        key.parse().map_err(|_| format!("strconv.Atoi: parsing {key:?}: invalid syntax"))?;
    let at = if number < 0 { number + length as i64 } else { number };
    usize::try_from(at).ok().filter(|at| *at < length).ok_or_else(|| {
        format!("Unable to access invalid index: {number}: invalid index referenced")
    })
}

/// Applies an RFC 7396 patch; it must be an object. As upstream's library does, nulls inside
/// new values are dropped too, those of objects in lists included.
pub fn merge_patch(doc: &mut Value, patch: Value) -> Result<(), PatchError> {
    match patch {
        Value::Object(patch) => {
            merge(doc, patch);
            Ok(())
        }
        other => Err(PatchError::BadPatch(format!(
            "error decoding patch: json: cannot unmarshal {} into Go value of type \
             map[string]interface {{}}",
            json_kind(&other)
        ))),
    }
}

fn merge(doc: &mut Value, patch: Map<String, Value>) {
    if !doc.is_object() {
        *doc = Value::Object(Map::new());
    }
    let Value::Object(entries) = doc else { return };
    for (key, value) in patch {
        match value {
            Value::Null => {
                entries.remove(&key);
            }
            Value::Object(value) => merge(entries.entry(key).or_insert(Value::Null), value),
            mut value => {
                drop_nulls(&mut value);
                entries.insert(key, value);
            }
        }
    }
}

/// Removes null entries of objects at any depth.
pub(crate) fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(entries) => {
            entries.retain(|_, value| !value.is_null());
            entries.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}
