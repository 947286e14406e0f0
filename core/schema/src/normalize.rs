//! What a round trip through Go's structs leaves: empties out, zero values of required fields in.
use serde_json::{Map, Value};

use crate::scalar;
use crate::table::{Field, Presence, Schema, Shape, TypeId};

impl Schema {
    /// Makes `tree` what upstream would write: prunes unknown fields, omits empties by presence,
    /// adds zero values of fields without `omitempty`. Values that do not fit their type are left.
    pub fn normalize(&self, id: TypeId, tree: &mut Value) {
        if let Value::Object(entries) = tree {
            let mut old = core::mem::take(entries);
            let def = self.get(id);
            for field in &def.fields {
                if let Some(value) = self.written(field, old.remove(&*field.name)) {
                    entries.insert(field.name.clone().into_owned(), value);
                }
            }
            if def.open {
                entries.append(&mut old);
            }
        }
    }

    /// What is written for a field, if anything.
    fn written(&self, field: &Field, value: Option<Value>) -> Option<Value> {
        let is_pointer = matches!(field.presence, Presence::Pointer | Presence::Nullable);
        let mut value = match value {
            Some(value) if !value.is_null() => value,
            _ if field.presence == Presence::Pointer => return None,
            _ if is_pointer => Value::Null,
            _ => implicit(field),
        };
        self.normalize_shape(&field.shape, &mut value);
        let leave_out = match field.presence {
            Presence::Always | Presence::Nullable | Presence::Pointer => false,
            Presence::OmitEmpty => is_empty(&field.shape, &value),
            Presence::OmitZero => value.is_null() || is_empty(&field.shape, &value),
        };
        (!leave_out).then_some(value)
    }

    fn normalize_shape(&self, shape: &Shape, value: &mut Value) {
        match (shape, value) {
            (Shape::Ref(id), value @ Value::Object(_)) => self.normalize(*id, value),
            (Shape::List(element), Value::Array(items)) => {
                items.iter_mut().for_each(|item| self.normalize_shape(element, item));
            }
            (Shape::Map(element), Value::Object(entries)) => {
                entries.values_mut().for_each(|item| self.normalize_shape(element, item));
            }
            (
                Shape::SchemaOrArray(id) | Shape::SchemaOrBool(id) | Shape::SchemaOrStrings(id),
                value @ Value::Object(_),
            ) => self.normalize(*id, value),
            (Shape::SchemaOrArray(id), Value::Array(items)) => {
                items.iter_mut().for_each(|item| self.normalize(*id, item));
            }
            _ => {}
        }
    }
}

/// The zero value of an absent field that is no pointer.
fn implicit(field: &Field) -> Value {
    match field.shape {
        Shape::Ref(_) => Value::Object(Map::new()),
        _ => scalar::zero(&field.shape),
    }
}

/// Whether Go's `omitempty` leaves the value out: never for what is a struct there.
fn is_empty(shape: &Shape, value: &Value) -> bool {
    match shape {
        Shape::String | Shape::Bytes => value.is_null() || value == "",
        Shape::Bool => value == false,
        Shape::Int32 | Shape::Int64 | Shape::Float64 => value.as_f64() == Some(0.0),
        Shape::List(_) => value.as_array().is_none_or(|items| items.is_empty()),
        Shape::Map(_) => value.as_object().is_none_or(|entries| entries.is_empty()),
        _ => false,
    }
}
