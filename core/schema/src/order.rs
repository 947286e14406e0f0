//! The order of merged lists: elements that the patch names stand in its order, the others keep
//! theirs, and the two are woven together by where they stood before.
use alloc::vec::Vec;
use alloc::{format, vec};

use serde_json::Value;

use crate::go_text::{go_fmt, go_type_of};
use crate::patch::PatchError;

/// Arranges `merged` by the patch's order and the order before.
pub(crate) fn arrange(
    merged: Vec<Value>,
    patch_order: &[Value],
    server_order: &[Value],
    merge_key: &str,
) -> Result<Vec<Value>, PatchError> {
    let (mut patched, mut others) = (vec![], vec![]);
    for item in merged {
        match position(patch_order, &item, merge_key)? {
            Some(at) => patched.push((at, item)),
            None => others.push((position(server_order, &item, merge_key)?, item)),
        }
    }
    patched.sort_by_key(|(at, _)| *at);
    others.sort_by_key(|(at, _)| *at);
    let mut patched = patched.into_iter().map(|(_, item)| item).peekable();
    let mut out = vec![];
    for (at, item) in others {
        while let Some(next) = patched.peek() {
            let before = position(server_order, next, merge_key)?;
            if at.is_some() && before.is_some() && at < before {
                break;
            }
            out.extend(patched.next());
        }
        out.push(item);
    }
    out.extend(patched);
    Ok(out)
}

fn position(order: &[Value], item: &Value, merge_key: &str) -> Result<Option<usize>, PatchError> {
    if merge_key.is_empty() {
        return Ok(order.iter().position(|other| other == item));
    }
    let key = item.get(merge_key).ok_or_else(|| no_merge_key(item, merge_key))?;
    find(order, merge_key, key)
}

/// Every value of both lists once.
pub(crate) fn union(old: &[Value], new: &[Value]) -> Vec<Value> {
    let mut out: Vec<Value> = vec![];
    for value in old.iter().chain(new) {
        if !out.contains(value) {
            out.push(value.clone());
        }
    }
    out
}

/// Where the element with this key stands.
pub(crate) fn find(
    items: &[Value],
    merge_key: &str,
    key: &Value,
) -> Result<Option<usize>, PatchError> {
    for (at, item) in items.iter().enumerate() {
        if !item.is_object() {
            return Err(PatchError::Internal(format!("value for key {at} is not a map")));
        }
        if item.get(merge_key) == Some(key) {
            return Ok(Some(at));
        }
    }
    Ok(None)
}

/// Whether two elements are the same one.
pub(crate) fn same_key(left: &Value, right: &Value, merge_key: &str) -> Result<bool, PatchError> {
    if merge_key.is_empty() {
        return Ok(left == right);
    }
    let key = |item: &Value| {
        if !item.is_object() {
            return Err(wrong_type("map[string]interface {}", item));
        }
        item.get(merge_key).cloned().ok_or_else(|| no_merge_key(item, merge_key))
    };
    Ok(key(left)? == key(right)?)
}

/// The one Go type of all elements.
pub(crate) fn element_type(lists: &[&[Value]]) -> Result<&'static str, PatchError> {
    let mut types = lists.iter().copied().flatten().map(go_type_of);
    let Some(first) = types.next() else {
        return Err(PatchError::Internal("no elements in any of the given slices".into()));
    };
    if first == "[]interface {}" {
        return Err(PatchError::Unprocessable("lists of lists are not supported".into()));
    }
    if types.any(|other| other != first) {
        let lists: Vec<Value> = lists.iter().map(|list| Value::from(*list)).collect();
        let lists = go_fmt(&Value::Array(lists));
        return Err(PatchError::Internal(format!("list element types are not identical: {lists}")));
    }
    Ok(first)
}

/// An element without the key that its list is merged by.
pub(crate) fn no_merge_key(item: &Value, merge_key: &str) -> PatchError {
    let map = go_fmt(item);
    PatchError::Internal(format!("map: {map} does not contain declared merge key: {merge_key}"))
}

/// A value of another type than its place asks for.
pub(crate) fn wrong_type(wanted: &str, found: &Value) -> PatchError {
    PatchError::Internal(format!("expected a {wanted}, but received a {}", go_type_of(found)))
}
