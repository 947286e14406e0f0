//! Strategic merge patch: lists merged by the keys the table names, with all its directives.
//!
//! In a patch, `$patch: delete|replace` acts on the object it stands in, `$retainKeys` clears all
//! other keys, `$deleteFromPrimitiveList/x` removes values of list `x` and `$setElementOrder/x`
//! says how its elements are to be ordered. Texts and the order of checks are upstream's.
use alloc::string::String;
use alloc::vec::Vec;
use alloc::{format, vec};

use serde_json::{Map, Value};

use crate::go_text::{go_fmt, go_type_of};
use crate::order;
use crate::patch::{PatchError, drop_nulls};
use crate::table::{Field, Presence, Schema, Shape, TypeId};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM_LIST: &str = "$deleteFromPrimitiveList";
const SET_ORDER: &str = "$setElementOrder";

type Object = Map<String, Value>;

impl Schema {
    /// Applies a strategic merge patch to an object of type `id`.
    pub fn strategic_merge(
        &self,
        id: TypeId,
        original: Value,
        patch: Value,
    ) -> Result<Value, PatchError> {
        let bad = || PatchError::BadPatch("invalid JSON document".into());
        let (Value::Object(original), Value::Object(patch)) = (original, patch) else {
            return Err(bad());
        };
        let merged = Merger { schema: self }.merge_map(original, patch, &Shape::Ref(id))?;
        Ok(Value::Object(merged))
    }
}

struct Merger<'s> {
    schema: &'s Schema,
}

/// A merged list, and the order in which its old elements are taken to have stood.
struct Merged {
    list: Vec<Value>,
    before: Vec<Value>,
}

/// What the table says about merging one field.
struct Meta<'s> {
    shape: &'s Shape,
    merge_key: &'s str,
    strategy: Strategy,
    is_pointer: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Strategy {
    Default,
    Merge,
    Replace,
}

impl<'s> Merger<'s> {
    fn merge_map(
        &self,
        mut original: Object,
        mut patch: Object,
        shape: &Shape,
    ) -> Result<Object, PatchError> {
        if let Some(directive) = patch.get(DIRECTIVE).cloned() {
            return object_directive(&directive, patch);
        }
        retain_keys(&mut original, &mut patch)?;
        self.set_element_orders(&mut original, &mut patch, shape)?;
        for (key, value) in patch {
            if key.starts_with(DELETE_FROM_LIST) {
                let key = directive_target(&key, DELETE_FROM_LIST)?;
                delete_from_list(&mut original, key, &value)?;
            } else if value.is_null() {
                original.remove(&key);
            } else {
                self.merge_entry(&mut original, key, value, shape)?;
            }
        }
        Ok(original)
    }

    fn merge_entry(
        &self,
        original: &mut Object,
        key: String,
        value: Value,
        shape: &Shape,
    ) -> Result<(), PatchError> {
        let merged = match (original.remove(&key), value) {
            (Some(Value::Object(old)), Value::Object(new)) => {
                let meta = self.struct_meta(shape, &key)?;
                Some(Value::Object(match meta.strategy {
                    Strategy::Replace => new,
                    _ => self.merge_map(old, new, meta.shape)?,
                }))
            }
            (Some(Value::Array(old)), Value::Array(new)) => {
                let meta = self.list_meta(shape, &key)?;
                Some(Value::Array(self.merge_by_strategy(old, new, &meta)?.list))
            }
            (_, mut new) => {
                drop_nulls(&mut new);
                without_directives(new)
            }
        };
        original.extend(merged.map(|value| (key, value)));
        Ok(())
    }

    fn merge_by_strategy(
        &self,
        old: Vec<Value>,
        new: Vec<Value>,
        meta: &Meta<'_>,
    ) -> Result<Merged, PatchError> {
        match meta.strategy {
            Strategy::Merge => self.merge_list(old, new, meta),
            _ => Ok(Merged { list: new, before: old }),
        }
    }

    fn merge_list(
        &self,
        old: Vec<Value>,
        new: Vec<Value>,
        meta: &Meta<'_>,
    ) -> Result<Merged, PatchError> {
        if old.is_empty() && new.is_empty() {
            return Ok(Merged { list: old, before: new });
        }
        if order::element_type(&[&old, &new])? != "map[string]interface {}" {
            let list = order::arrange(order::union(&old, &new), &new, &old, "")?;
            return Ok(Merged { list, before: old });
        }
        if meta.merge_key.is_empty() {
            let text = "cannot merge lists without merge key for struct";
            return Err(PatchError::Internal(text.into()));
        }
        let places = old.len();
        let (old, new) = list_directives(old, new, meta.merge_key)?;
        let kept = old.clone();
        let merged = self.merge_elements(old, &new, meta)?;
        // Upstream appends in place: a new element may take the place a deleted one had.
        let before = merged.iter().take(places).cloned().collect();
        let list = order::arrange(merged, &new, &kept, meta.merge_key)?;
        Ok(Merged { list, before })
    }

    fn merge_elements(
        &self,
        mut old: Vec<Value>,
        new: &[Value],
        meta: &Meta<'_>,
    ) -> Result<Vec<Value>, PatchError> {
        for element in new {
            let key = merge_key_of(element, meta.merge_key)?;
            match order::find(&old, meta.merge_key, key)? {
                Some(at) => {
                    let (before, patch) = (object(old[at].take())?, object(element.clone())?);
                    old[at] = Value::Object(self.merge_map(before, patch, meta.shape)?);
                }
                None => old.push(element.clone()),
            }
        }
        Ok(old)
    }

    /// Handles every `$setElementOrder/x` of a patch, merging list `x` on the way.
    fn set_element_orders(
        &self,
        original: &mut Object,
        patch: &mut Object,
        shape: &Shape,
    ) -> Result<(), PatchError> {
        let directives: Vec<String> =
            patch.keys().filter(|key| key.starts_with(SET_ORDER)).cloned().collect();
        for directive in directives {
            let wanted = patch.remove(&directive).unwrap_or_default();
            let wanted = list(wanted)?;
            let key = directive_target(&directive, SET_ORDER)?;
            self.set_element_order(original, patch, shape, key, wanted)?;
        }
        Ok(())
    }

    fn set_element_order(
        &self,
        original: &mut Object,
        patch: &mut Object,
        shape: &Shape,
        key: &str,
        wanted: Vec<Value>,
    ) -> Result<(), PatchError> {
        let old = original.get(key).cloned().map(list).transpose()?;
        let new = patch.get(key).cloned().map(list).transpose()?;
        let meta = self.list_meta(shape, key)?;
        if let Some(new) = &new {
            check_order(new, &wanted, meta.merge_key)?;
        }
        let empty: &[Value] = &[];
        let both = [old.as_deref().unwrap_or(empty), new.as_deref().unwrap_or(empty)];
        let element_type = order::element_type(&both).map(drop);
        let merged = match (old, new) {
            (Some(old), None) => Merged { list: old.clone(), before: old },
            (None, Some(new)) => match without_directives(Value::Array(new)) {
                Some(Value::Array(list)) => Merged { list, before: vec![] },
                _ => return Ok(()),
            },
            (Some(old), Some(new)) => self.merge_by_strategy(old, new, &meta)?,
            (None, None) => return Ok(()),
        };
        element_type?;
        let arranged = order::arrange(merged.list, &wanted, &merged.before, meta.merge_key)?;
        original.insert(key.into(), Value::Array(arranged));
        patch.remove(key);
        Ok(())
    }

    fn field<'a>(&'a self, shape: &Shape, key: &str) -> Result<&'a Field, PatchError> {
        let id = match shape {
            Shape::Ref(id) => *id,
            other => return Err(PatchError::Internal(not_a_struct(other))),
        };
        let def = self.schema.get(id);
        def.field(key).ok_or_else(|| {
            PatchError::Internal(format!(
                "unable to find api field in struct {} for the json field {key:?}",
                def.short_name()
            ))
        })
    }

    fn struct_meta<'a>(&'a self, shape: &Shape, key: &str) -> Result<Meta<'a>, PatchError> {
        let field = self.field(shape, key)?;
        Ok(Meta {
            shape: &field.shape,
            merge_key: field.merge_key().unwrap_or_default(),
            strategy: strategy(field),
            is_pointer: matches!(field.presence, Presence::Pointer | Presence::Nullable),
        })
    }

    fn list_meta<'a>(&'a self, shape: &Shape, key: &str) -> Result<Meta<'a>, PatchError> {
        let meta = self.struct_meta(shape, key)?;
        match meta.shape {
            Shape::List(element) => Ok(Meta { shape: element, ..meta }),
            // Through a pointer upstream's reflection takes a struct for the element.
            Shape::Ref(_) if meta.is_pointer => Ok(meta),
            _ => {
                let text = "expected slice or array type, but got: struct";
                Err(PatchError::Internal(text.into()))
            }
        }
    }
}

fn strategy(field: &Field) -> Strategy {
    let tagged = field.strategy().unwrap_or_default();
    match tagged.split(',').find(|s| *s != "retainKeys") {
        Some("merge") => Strategy::Merge,
        Some("replace") => Strategy::Replace,
        _ => Strategy::Default,
    }
}

fn not_a_struct(shape: &Shape) -> String {
    let kind = match shape {
        Shape::Map(_) => "map",
        Shape::List(_) | Shape::Bytes => "slice",
        _ => "struct",
    };
    format!("merging an object in json but data type is not struct, instead is: {kind}")
}

/// `$patch` at the top of an object.
fn object_directive(directive: &Value, mut patch: Object) -> Result<Object, PatchError> {
    match directive.as_str() {
        Some("replace") => {
            patch.remove(DIRECTIVE);
            Ok(patch)
        }
        Some("delete") => Ok(Object::new()),
        _ => Err(unknown_directive(directive, patch)),
    }
}

fn unknown_directive(directive: &Value, patch: Object) -> PatchError {
    let (directive, patch) = (go_fmt(directive), go_fmt(&Value::Object(patch)));
    PatchError::Internal(format!("unknown patch type: {directive} in map: {patch}"))
}

/// `$patch` in elements of a list: deletes matching ones, or replaces the whole list.
fn list_directives(
    mut old: Vec<Value>,
    new: Vec<Value>,
    merge_key: &str,
) -> Result<(Vec<Value>, Vec<Value>), PatchError> {
    let mut plain = vec![];
    let mut replace = false;
    for element in new {
        let Some(directive) = element.get(DIRECTIVE).cloned() else {
            plain.push(element);
            continue;
        };
        match directive.as_str() {
            Some("delete") => {
                let key = merge_key_of(&element, merge_key)?;
                while let Some(at) = order::find(&old, merge_key, key)? {
                    old.remove(at);
                }
            }
            Some("replace") => replace = true,
            Some("merge") => {
                let text = "merging lists cannot yet be specified in the patch";
                return Err(PatchError::Internal(text.into()));
            }
            _ => return Err(unknown_directive(&directive, object(element)?)),
        }
    }
    Ok(if replace { (plain, vec![]) } else { (old, plain) })
}

fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<(), PatchError> {
    let Some(keys) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let bad = || PatchError::BadPatch("invalid patch format of retainKeys".into());
    let keys = keys.as_array().ok_or_else(bad)?;
    let kept = |key: &str| keys.iter().any(|k| k == key);
    let is_marker = |key: &str| key.starts_with(DELETE_FROM_LIST) || key.starts_with(SET_ORDER);
    if patch.iter().any(|(key, value)| !value.is_null() && !is_marker(key) && !kept(key)) {
        return Err(bad());
    }
    original.retain(|key, _| kept(key));
    Ok(())
}

/// `x` of `$directive/x`.
fn directive_target<'a>(key: &'a str, prefix: &str) -> Result<&'a str, PatchError> {
    let target = key.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('/'));
    target.ok_or_else(|| match prefix {
        SET_ORDER => bad_order(),
        _ => PatchError::BadPatch("invalid patch format of primitive list".into()),
    })
}

fn bad_order() -> PatchError {
    PatchError::BadPatch("invalid patch format of setElementOrder list".into())
}

fn delete_from_list(original: &mut Object, key: &str, unwanted: &Value) -> Result<(), PatchError> {
    if unwanted.is_null() {
        original.remove(key);
        return Ok(());
    }
    if let (Some(Value::Array(items)), Value::Array(unwanted)) = (original.get_mut(key), unwanted) {
        if !items.is_empty() || !unwanted.is_empty() {
            order::element_type(&[items, unwanted])?;
        }
        items.retain(|item| !unwanted.contains(item));
    }
    Ok(())
}

/// The patch list must be in the order that `$setElementOrder` asks for.
fn check_order(new: &[Value], wanted: &[Value], merge_key: &str) -> Result<(), PatchError> {
    if new.is_empty() || wanted.is_empty() {
        return Ok(());
    }
    let is_deleted = |v: &&Value| !merge_key.is_empty() && v.get(DIRECTIVE).is_some();
    let mut left = new.iter().filter(|v| !is_deleted(v)).peekable();
    for place in wanted {
        let Some(next) = left.peek() else { break };
        if order::same_key(next, place, merge_key)? {
            left.next();
        }
    }
    if left.peek().is_none() {
        return Ok(());
    }
    let (new, wanted) = (go_fmt(&Value::from(new)), go_fmt(&Value::from(wanted)));
    Err(PatchError::Internal(format!(
        "The order in patch list:\n{new}\n doesn't match {SET_ORDER} list:\n{wanted}\n"
    )))
}

/// A new value without what carries a `$patch` directive; `None` if that is the value itself.
fn without_directives(value: Value) -> Option<Value> {
    match value {
        Value::Object(entries) if entries.contains_key(DIRECTIVE) => None,
        Value::Object(entries) => {
            let kept = entries.into_iter().filter_map(|(k, v)| Some((k, without_directives(v)?)));
            Some(Value::Object(kept.collect()))
        }
        Value::Array(items) => {
            Some(Value::Array(items.into_iter().filter_map(without_directives).collect()))
        }
        other => Some(other),
    }
}

fn merge_key_of<'a>(element: &'a Value, merge_key: &str) -> Result<&'a Value, PatchError> {
    element.get(merge_key).ok_or_else(|| order::no_merge_key(element, merge_key))
}

fn list(value: Value) -> Result<Vec<Value>, PatchError> {
    match value {
        Value::Array(items) => Ok(items),
        other => Err(order::wrong_type("[]interface {}", &other)),
    }
}

fn object(value: Value) -> Result<Object, PatchError> {
    match value {
        Value::Object(entries) => Ok(entries),
        other => Err(PatchError::Internal(format!(
            "expected a map[string]interface {{}}, but received a {}",
            go_type_of(&other)
        ))),
    }
}
