//! Trees to messages, fields in the order of their numbers and maps by key, as Go writes them.
use alloc::vec::Vec;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::wire::{put_bytes, put_double, put_message, put_varint};
use crate::table::{Field, Presence, Schema, Shape, TypeDef, TypeId};
use crate::time::{Precision, moment};

static NOTHING: Value = Value::Null;

impl Schema {
    /// Encodes a tree as the message of its type, without envelope. What does not fit its type
    /// counts as not there.
    pub fn encode_protobuf(&self, id: TypeId, tree: &Value) -> Vec<u8> {
        let mut out = Vec::with_capacity(1024);
        self.put_object(id, tree, &mut out);
        out
    }

    fn put_object(&self, id: TypeId, tree: &Value, out: &mut Vec<u8>) {
        let def = self.get(id);
        self.put_fields(def, &def.wire, 0, tree.as_object(), out);
    }

    /// The fields of `range` (indices in order of their numbers) that lie below one message at
    /// `level` of their paths.
    fn put_fields(
        &self,
        def: &TypeDef,
        mut range: &[u16],
        level: usize,
        tree: Option<&Map<alloc::string::String, Value>>,
        out: &mut Vec<u8>,
    ) {
        let field = |at: u16| &def.fields[usize::from(at)];
        while let Some(first) = range.first().map(|at| field(*at)) {
            let number = first.proto[level];
            let end = range.partition_point(|at| field(*at).proto[level] <= number);
            let (group, rest) = range.split_at(end);
            if first.proto.get(level + 1).is_some_and(|inner| *inner != 0) {
                put_message(out, number, |out| {
                    self.put_fields(def, group, level + 1, tree, out);
                });
            } else {
                let value = tree.and_then(|tree| tree.get(&*first.name));
                self.put_field(first, number, value.unwrap_or(&NOTHING), out);
            }
            range = rest;
        }
    }

    fn put_field(&self, field: &Field, number: u16, value: &Value, out: &mut Vec<u8>) {
        let is_pointer = matches!(field.presence, Presence::Pointer | Presence::Nullable);
        match &field.shape {
            Shape::List(element) => self.put_items(number, element, value, out),
            Shape::Map(element) => {
                for (key, value) in value.as_object().into_iter().flatten() {
                    put_message(out, number, |out| self.put_entry(key, element, value, out));
                }
            }
            shape if value.is_null() && (is_pointer || *shape == Shape::Bytes) => {}
            shape => self.put(number, shape, value, out),
        }
    }

    fn put_items(&self, number: u16, element: &Shape, value: &Value, out: &mut Vec<u8>) {
        for item in value.as_array().into_iter().flatten() {
            self.put(number, element, item, out);
        }
    }

    fn put_entry(&self, key: &str, element: &Shape, value: &Value, out: &mut Vec<u8>) {
        put_bytes(out, 1, key.as_bytes());
        match element {
            Shape::List(item) => put_message(out, 2, |out| self.put_items(1, item, value, out)),
            Shape::Bytes if value == "" => {}
            element => self.put(2, element, value, out),
        }
    }

    /// One value; null is the zero value.
    fn put(&self, number: u16, shape: &Shape, value: &Value, out: &mut Vec<u8>) {
        let text = value.as_str().unwrap_or_default();
        match shape {
            Shape::String => put_bytes(out, number, text.as_bytes()),
            Shape::Bool => put_varint(out, number, value.as_bool().unwrap_or_default().into()),
            Shape::Int32 | Shape::Int64 => {
                put_varint(out, number, value.as_i64().unwrap_or_default().cast_unsigned());
            }
            Shape::Float64 => put_double(out, number, value.as_f64().unwrap_or_default()),
            Shape::Bytes => put_bytes(out, number, &STANDARD.decode(text).unwrap_or_default()),
            Shape::Ref(id) => put_message(out, number, |out| self.put_object(*id, value, out)),
            Shape::List(element) => self.put_items(number, element, value, out),
            special => put_message(out, number, |out| self.put_special(special, value, out)),
        }
    }

    /// The inside of what Go marshals by hand.
    fn put_special(&self, shape: &Shape, value: &Value, out: &mut Vec<u8>) {
        let text = value.as_str();
        match shape {
            Shape::Quantity => put_bytes(out, 1, text.unwrap_or("0").as_bytes()),
            Shape::IntOrString => {
                put_varint(out, 1, text.is_some().into());
                put_varint(out, 2, value.as_i64().unwrap_or_default().cast_unsigned());
                put_bytes(out, 3, text.unwrap_or_default().as_bytes());
            }
            Shape::Time => put_time(text, Precision::Seconds, out),
            Shape::MicroTime => put_time(text, Precision::Micros, out),
            Shape::Json(_) if !value.is_null() => {
                put_bytes(out, 1, alloc::string::ToString::to_string(value).as_bytes());
            }
            Shape::SchemaOrBool(id) => {
                put_varint(out, 1, (value != false).into());
                if value.is_object() {
                    put_bytes(out, 2, &self.encode_protobuf(*id, value));
                }
            }
            Shape::SchemaOrArray(id) | Shape::SchemaOrStrings(id) => {
                if value.is_object() {
                    put_bytes(out, 1, &self.encode_protobuf(*id, value));
                }
                let element = match shape {
                    Shape::SchemaOrArray(id) => Shape::Ref(*id),
                    _ => Shape::String,
                };
                self.put_items(2, &element, value, out);
            }
            _ => {}
        }
    }
}

fn put_time(text: Option<&str>, precision: Precision, out: &mut Vec<u8>) {
    if let Some((seconds, micros)) = text.and_then(|text| moment(text, precision)) {
        put_varint(out, 1, seconds.cast_unsigned());
        let micros = if precision == Precision::Micros { micros } else { 0 };
        put_varint(out, 2, (u64::from(micros)) * 1000);
    }
}
