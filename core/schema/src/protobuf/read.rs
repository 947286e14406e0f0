//! Messages to trees. Zero values of what is no pointer are left out, as if never sent.
use alloc::string::String;
use alloc::vec::Vec;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::wire::{Reader, Wire};
use super::{Envelope, MAGIC, ProtobufError, refused};
use crate::decode::whole;
use crate::scalar;
use crate::table::{Field, Presence, Schema, Shape, TypeDef, TypeId};
use crate::time::{Precision, text_of};

/// Messages inside messages; only schemas and embedded objects nest further than a dozen.
const MAX_DEPTH: usize = 100;

type Result<T> = core::result::Result<T, ProtobufError>;

impl Schema {
    /// Decodes the message of a type (without envelope) to a tree like that of `decode`: only
    /// known fields, canonical scalars, no `kind` and `apiVersion`. A field that comes twice is
    /// merged or replaced, as protobuf has it.
    pub fn decode_protobuf(&self, id: TypeId, bytes: &[u8]) -> Result<Value> {
        let mut tree = Map::new();
        Message { schema: self, id, depth: 0 }.read([0; 3], bytes, &mut tree)?;
        Ok(Value::Object(tree))
    }

    /// Decodes bytes with an envelope; `kind` and `apiVersion` are part of the tree.
    pub fn decode_envelope(&self, bytes: &[u8]) -> Result<Value> {
        enveloped(self, bytes, 0)
    }
}

fn enveloped(schema: &Schema, bytes: &[u8], depth: usize) -> Result<Value> {
    let envelope = Envelope::unwrap(bytes)?;
    let id = schema.enveloped_type(envelope.api_version, envelope.kind)?;
    let mut tree = Map::new();
    Message { schema, id, depth }.read([0; 3], envelope.raw, &mut tree)?;
    tree.insert("kind".into(), envelope.kind.into());
    tree.insert("apiVersion".into(), envelope.api_version.into());
    Ok(tree.into())
}

/// Where in the data a message is read.
#[derive(Clone, Copy)]
struct Message<'s> {
    schema: &'s Schema,
    id: TypeId,
    depth: usize,
}

/// What a number stands for.
enum Found<'s> {
    Field(&'s Field),
    /// A Go struct that JSON does not show; the path to it.
    Inlined([u16; 3]),
}

impl TypeDef {
    /// What `number` means in the message at `path` of this type.
    fn numbered(&self, mut path: [u16; 3], number: u32) -> Option<Found<'_>> {
        let level = path.iter().position(|n| *n == 0)?;
        path[level] = u16::try_from(number).ok()?;
        let field = |at: &u16| &self.fields[usize::from(*at)];
        let at = self.wire.partition_point(|at| field(at).proto < path);
        let field = self.wire.get(at).map(field)?;
        if field.proto == path {
            return Some(Found::Field(field));
        }
        (field.proto[..=level] == path[..=level]).then_some(Found::Inlined(path))
    }
}

impl Message<'_> {
    fn read(self, path: [u16; 3], bytes: &[u8], tree: &mut Map<String, Value>) -> Result<()> {
        if self.depth > MAX_DEPTH {
            return Err(ProtobufError::Depth);
        }
        let mut reader = Reader(bytes);
        while let Some((number, wire)) = reader.next()? {
            match self.schema.get(self.id).numbered(path, number) {
                Some(Found::Field(field)) => self.field(field, wire, tree)?,
                Some(Found::Inlined(path)) => self.read(path, wire.bytes()?, tree)?,
                None => {}
            }
        }
        Ok(())
    }

    fn field(self, field: &Field, wire: Wire<'_>, tree: &mut Map<String, Value>) -> Result<()> {
        let old = tree.remove(&*field.name).unwrap_or_default();
        let value = self.value(&field.shape, wire, old)?;
        let is_pointer = matches!(field.presence, Presence::Pointer | Presence::Nullable);
        if !value.is_null() && (is_pointer || value != scalar::zero(&field.shape)) {
            tree.insert(field.name.clone().into_owned(), value);
        }
        Ok(())
    }

    /// The value behind a tag; `old` is what the tree has by now.
    fn value(self, shape: &Shape, wire: Wire<'_>, old: Value) -> Result<Value> {
        match shape {
            Shape::List(element) => {
                let mut items = if let Value::Array(items) = old { items } else { Vec::new() };
                self.items(element, wire, &mut items)?;
                Ok(items.into())
            }
            Shape::Map(element) => {
                let mut entries = if let Value::Object(map) = old { map } else { Map::new() };
                let (key, value) = self.entry(element, wire.bytes()?)?;
                entries.insert(key, value);
                Ok(entries.into())
            }
            Shape::Ref(id) => self.object(*id, wire.bytes()?, old),
            Shape::SchemaOrArray(id) | Shape::SchemaOrBool(id) | Shape::SchemaOrStrings(id) => {
                self.schema_or(shape, *id, wire.bytes()?)
            }
            Shape::Json(_) => self.json(wire.bytes()?),
            scalar => read_scalar(scalar, wire),
        }
    }

    fn object(self, id: TypeId, bytes: &[u8], old: Value) -> Result<Value> {
        let mut tree = if let Value::Object(tree) = old { tree } else { Map::new() };
        Message { id, depth: self.depth + 1, ..self }.read([0; 3], bytes, &mut tree)?;
        Ok(tree.into())
    }

    /// One element, or all of them packed.
    fn items(self, element: &Shape, wire: Wire<'_>, items: &mut Vec<Value>) -> Result<()> {
        let is_fixed = *element == Shape::Float64;
        let is_varint = matches!(element, Shape::Bool | Shape::Int32 | Shape::Int64);
        match wire {
            Wire::Len(packed) if is_fixed || is_varint => {
                let mut reader = Reader(packed);
                while !reader.0.is_empty() {
                    let wire = match is_fixed {
                        true => Wire::Fixed64(reader.fixed64()?),
                        false => Wire::Varint(reader.varint()?),
                    };
                    items.push(read_scalar(element, wire)?);
                }
            }
            wire => items.push(self.value(element, wire, Value::Null)?),
        }
        Ok(())
    }

    /// Key and value of a map; either may be left out when it is zero.
    fn entry(self, element: &Shape, bytes: &[u8]) -> Result<(String, Value)> {
        let (mut key, mut value) = ("", zero_element(element));
        let mut reader = Reader(bytes);
        while let Some((number, wire)) = reader.next()? {
            match (number, element) {
                (1, _) => key = wire.text()?,
                (2, Shape::List(item)) => value = self.wrapped(item, wire.bytes()?)?,
                (2, _) => value = self.value(element, wire, value)?,
                _ => {}
            }
        }
        Ok((key.into(), value))
    }

    /// A list where protobuf wants a message: the value of a map.
    fn wrapped(self, element: &Shape, bytes: &[u8]) -> Result<Value> {
        let (mut items, mut reader) = (Vec::new(), Reader(bytes));
        while let Some((number, wire)) = reader.next()? {
            if number == 1 {
                self.items(element, wire, &mut items)?;
            }
        }
        Ok(items.into())
    }

    /// A schema, or what may stand in its place.
    fn schema_or(self, shape: &Shape, id: TypeId, bytes: &[u8]) -> Result<Value> {
        let (mut schema, mut items, mut allows) = (Value::Null, Vec::new(), false);
        let mut reader = Reader(bytes);
        while let Some((number, wire)) = reader.next()? {
            match (shape, number) {
                (Shape::SchemaOrBool(_), 1) => allows = wire.varint()? != 0,
                (Shape::SchemaOrBool(_), 2) | (_, 1) => {
                    schema = self.object(id, wire.bytes()?, schema)?;
                }
                (Shape::SchemaOrArray(_), 2) => {
                    items.push(self.object(id, wire.bytes()?, Value::Null)?);
                }
                (_, 2) => items.push(wire.text()?.into()),
                _ => {}
            }
        }
        Ok(match shape {
            _ if !items.is_empty() => items.into(),
            Shape::SchemaOrBool(_) if schema.is_null() => allows.into(),
            _ => schema,
        })
    }

    /// The one field `raw` of what holds any JSON; an object may stand there as protobuf.
    fn json(self, bytes: &[u8]) -> Result<Value> {
        match only_field(bytes)? {
            Some(wire) if wire.bytes()?.starts_with(MAGIC) => {
                enveloped(self.schema, wire.bytes()?, self.depth + 1)
            }
            Some(Wire::Len(raw)) if !raw.is_empty() => serde_json::from_slice(raw).map_err(refused),
            Some(wire) => wire.bytes().map(|_| Value::Null),
            None => Ok(Value::Null),
        }
    }
}

/// What an element of a list or map is when nothing is said of it.
fn zero_element(shape: &Shape) -> Value {
    match shape {
        Shape::Bytes => "".into(),
        Shape::List(_) => Value::Array(Vec::new()),
        other => scalar::zero(other),
    }
}

/// Field 1 of a message.
fn only_field(bytes: &[u8]) -> Result<Option<Wire<'_>>> {
    let (mut found, mut reader) = (None, Reader(bytes));
    while let Some((number, wire)) = reader.next()? {
        if number == 1 {
            found = Some(wire);
        }
    }
    Ok(found)
}

fn read_scalar(shape: &Shape, wire: Wire<'_>) -> Result<Value> {
    Ok(match shape {
        Shape::String => wire.text()?.into(),
        Shape::Bool => (wire.varint()? != 0).into(),
        Shape::Int32 => (wire.varint()? as i32).into(),
        Shape::Int64 => (wire.varint()? as i64).into(),
        Shape::Float64 => {
            let number = serde_json::Number::from_f64(f64::from_bits(wire.fixed64()?));
            whole(number.ok_or_else(|| refused("json: unsupported value"))?)
        }
        Shape::Bytes => STANDARD.encode(wire.bytes()?).into(),
        Shape::Quantity => match only_field(wire.bytes()?)? {
            Some(text) => scalar::quantity(text.text()?).map_err(refused)?,
            None => "0".into(),
        },
        Shape::IntOrString => int_or_string(wire.bytes()?)?,
        Shape::Time => time(wire.bytes()?, Precision::Seconds)?,
        Shape::MicroTime => time(wire.bytes()?, Precision::Micros)?,
        _ => Value::Null,
    })
}

fn int_or_string(bytes: &[u8]) -> Result<Value> {
    let (mut is_text, mut number, mut text) = (false, 0, "");
    let mut reader = Reader(bytes);
    while let Some((field, wire)) = reader.next()? {
        match field {
            1 => is_text = wire.varint()? != 0,
            2 => number = wire.varint()? as i32,
            3 => text = wire.text()?,
            _ => {}
        }
    }
    Ok(if is_text { text.into() } else { number.into() })
}

/// Seconds and nanoseconds since 1970; Go's zero time has neither.
fn time(bytes: &[u8], precision: Precision) -> Result<Value> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let (mut seconds, mut nanos) = (0, 0);
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next()? {
        match number {
            1 => seconds = wire.varint()? as i64,
            2 => nanos = wire.varint()? as i32,
            _ => {}
        }
    }
    let micros = nanos.clamp(0, 999_999_999).unsigned_abs() / 1000;
    text_of(seconds, micros, precision)
        .ok_or_else(|| refused("Time.MarshalJSON: year outside of range [0,9999]"))
}
