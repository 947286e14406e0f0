//! Typed decoding with Go's error texts: the tree that comes out holds only known fields.
//!
//! One pass over serde's events, steered by the table, serves bytes and trees alike. Like Go's
//! decoder it goes on after a value of the wrong type and reports the first one; a value that its
//! own parser refuses (quantity, time, base64) is reported before all others.
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use alloc::{format, vec};
use core::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value, json};

use crate::scalar;
use crate::table::{JsonKind, Schema, Shape, TypeDef, TypeId};

/// Strict decoding reports at most this many issues, as upstream does.
const MAX_ISSUES: usize = 100;

const FREE: Shape = Shape::Json(JsonKind::Free);

/// A decoded object and what strict decoding has to say about it.
#[derive(Debug)]
pub struct Decoded {
    /// Only known fields; nulls dropped; quantities and times canonical.
    pub tree: Value,
    /// Unknown and duplicate fields, at most 100; empty means strictly valid.
    pub issues: Vec<FieldIssue>,
}

/// One complaint of strict decoding; Display is upstream's text (`unknown field "spec.foo"`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FieldIssue {
    /// The field does not exist in this type; it was pruned.
    Unknown(String),
    /// The same key twice in one object; the last one won.
    Duplicate(String),
}

impl fmt::Display for FieldIssue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FieldIssue::Unknown(path) => write!(f, "unknown field {path:?}"),
            FieldIssue::Duplicate(path) => write!(f, "duplicate field {path:?}"),
        }
    }
}

/// `strict decoding error: …` over all issues, as upstream words it.
pub fn strict_error(issues: &[FieldIssue]) -> String {
    let texts: Vec<String> = issues.iter().map(FieldIssue::to_string).collect();
    format!("strict decoding error: {}", texts.join(", "))
}

/// Why bytes are not an object of the type; Display is Go's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// Not JSON.
    Syntax(String),
    /// JSON, but a value does not fit its field.
    Type(String),
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (DecodeError::Syntax(text) | DecodeError::Type(text)) = self;
        f.write_str(text)
    }
}

impl core::error::Error for DecodeError {}

impl Schema {
    /// Decodes JSON bytes as an object of type `id`.
    pub fn decode(&self, id: TypeId, json: &[u8]) -> Result<Decoded, DecodeError> {
        self.decode_shape(&Shape::Ref(id), json)
    }

    /// Parses JSON of no type, such as a patch: nulls stay, and keys that come twice are issues.
    pub fn decode_any(&self, json: &[u8]) -> Result<Decoded, DecodeError> {
        self.decode_shape(&FREE, json)
    }

    fn decode_shape(&self, shape: &Shape, json: &[u8]) -> Result<Decoded, DecodeError> {
        let mut parser = serde_json::Deserializer::from_slice(json);
        let mut cx = Cx::new(self);
        let tree = Seed { cx: &mut cx, shape, go: None }.deserialize(&mut parser);
        cx.finish(tree.and_then(|tree| parser.end().map(|()| tree)), json)
    }

    /// The same for a tree that is parsed already (YAML, a patched object).
    pub fn decode_value(&self, id: TypeId, value: &Value) -> Result<Decoded, DecodeError> {
        let mut cx = Cx::new(self);
        let tree = Seed { cx: &mut cx, shape: &Shape::Ref(id), go: None }.deserialize(value);
        cx.finish(tree, b"")
    }
}

/// Where a syntax error was found, by the start of our parser's words and the end of Go's.
const SYNTAX: [(&str, &str); 7] = [
    ("trailing characters", "after top-level value"),
    ("expected value", "looking for beginning of value"),
    ("trailing comma", "looking for beginning of value"),
    ("key must be a string", "looking for beginning of object key string"),
    ("expected `:`", "after object key"),
    ("expected `,` or `}`", "after object key:value pair"),
    ("expected `,` or `]`", "after array element"),
];

/// Go's words for a syntax error.
fn syntax(error: &serde_json::Error, json: &[u8]) -> DecodeError {
    let ours = error.to_string();
    if error.is_eof() {
        return DecodeError::Syntax("unexpected end of JSON input".to_string());
    }
    let line = json.split(|b| *b == b'\n').nth(error.line().saturating_sub(1)).unwrap_or(b"");
    let found = line.get(error.column().saturating_sub(1)..).unwrap_or(b"");
    let found = String::from_utf8_lossy(found).chars().next().unwrap_or('\n');
    let go = SYNTAX.iter().find(|(start, _)| ours.starts_with(start));
    DecodeError::Syntax(match go {
        Some(("trailing comma", _)) if found == '}' => {
            format!("invalid character {found:?} looking for beginning of object key string")
        }
        Some((_, context)) => format!("invalid character {found:?} {context}"),
        None => ours,
    })
}

/// Where decoding stands and what it has found.
struct Cx<'s> {
    schema: &'s Schema,
    issues: Vec<FieldIssue>,
    error: Option<Found>,
    /// `spec.containers[0]`, for strict issues.
    strict_path: String,
    /// `spec`, `containers`: Go's error path has no indexes and no map keys.
    fields: Vec<&'s str>,
    /// Name of the innermost struct.
    owner: &'s str,
}

struct Found {
    text: String,
    fatal: bool,
}

impl<'s> Cx<'s> {
    fn new(schema: &'s Schema) -> Self {
        Cx {
            schema,
            issues: vec![],
            error: None,
            strict_path: String::new(),
            fields: vec![],
            owner: "",
        }
    }

    fn finish(
        self,
        tree: Result<Value, serde_json::Error>,
        json: &[u8],
    ) -> Result<Decoded, DecodeError> {
        match (self.error, tree) {
            (_, Err(error)) => Err(syntax(&error, json)),
            (Some(error), _) => Err(DecodeError::Type(error.text)),
            (None, Ok(Value::Null)) => Ok(Decoded { tree: json!({}), issues: self.issues }),
            (None, Ok(tree)) => Ok(Decoded { tree, issues: self.issues }),
        }
    }

    /// A value of the wrong type: the first one is reported.
    fn mismatch(&mut self, value: &str, go_type: &str) {
        if self.error.is_none() {
            let text = self.mismatch_text(value, go_type);
            self.error = Some(Found { text, fatal: false });
        }
    }

    fn mismatch_text(&self, value: &str, go_type: &str) -> String {
        if self.owner.is_empty() {
            return format!("json: cannot unmarshal {value} into Go value of type {go_type}");
        }
        let (owner, path) = (self.owner, self.fields.join("."));
        format!(
            "json: cannot unmarshal {value} into Go struct field {owner}.{path} of type {go_type}"
        )
    }

    /// A value its own parser refuses: Go stops there.
    fn refuse(&mut self, text: String) {
        if !self.error.as_ref().is_some_and(|e| e.fatal) {
            self.error = Some(Found { text, fatal: true });
        }
    }

    fn issue(&mut self, make: fn(String) -> FieldIssue, key: &str) {
        let dot = if self.strict_path.is_empty() { "" } else { "." };
        let issue = make(format!("{}{dot}{key}", self.strict_path));
        if self.issues.len() < MAX_ISSUES && !self.issues.contains(&issue) {
            self.issues.push(issue);
        }
    }

    /// Runs `f` one step deeper in the strict path.
    fn step<T>(&mut self, key: Step<'_>, f: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.strict_path.len();
        match key {
            Step::Key(key) if length > 0 => {
                self.strict_path.push('.');
                self.strict_path.push_str(key);
            }
            Step::Key(key) => self.strict_path.push_str(key),
            Step::Index(index) => self.strict_path.push_str(&format!("[{index}]")),
        }
        let result = f(self);
        self.strict_path.truncate(length);
        result
    }
}

enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

/// One value to decode: its shape, and Go's name for it where the shape does not tell.
struct Seed<'c, 's, 'a> {
    cx: &'c mut Cx<'s>,
    shape: &'a Shape,
    go: Option<&'a str>,
}

impl<'de> DeserializeSeed<'de> for Seed<'_, '_, '_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<Value, D::Error> {
        input.deserialize_any(self)
    }
}

impl Seed<'_, '_, '_> {
    fn scalar<E: fmt::Display>(self, result: Result<Value, E>) -> Value {
        result.unwrap_or_else(|error| {
            self.cx.refuse(error.to_string());
            Value::Null
        })
    }

    fn number(self, number: serde_json::Number) -> Value {
        let fits = match self.shape {
            Shape::Int32 | Shape::IntOrString => {
                number.as_i64().is_some_and(|n| i32::try_from(n).is_ok())
            }
            Shape::Int64 => number.is_i64(),
            Shape::Float64 => return whole(number),
            Shape::Json(_) => true,
            Shape::Quantity => return self.scalar(scalar::quantity(&number.to_string())),
            _ => return self.misfit("number"),
        };
        if fits { number.into() } else { self.misfit(&format!("number {number}")) }
    }

    /// A value that the shape does not take; `value` is Go's word for it. What decodes itself in
    /// Go complains about the type inside and stops there.
    fn misfit(self, value: &str) -> Value {
        let inside = match self.shape {
            Shape::IntOrString => "int32",
            Shape::Time | Shape::MicroTime => "string",
            Shape::Quantity => return self.scalar(scalar::quantity(value)),
            Shape::SchemaOrBool(_) => {
                self.cx.refuse("boolean or JSON schema expected".to_string());
                return Value::Null;
            }
            Shape::SchemaOrArray(_) | Shape::SchemaOrStrings(_) => return Value::Null,
            shape => {
                let own = || go_type(self.cx.schema, shape);
                let go_type = self.go.map_or_else(own, ToString::to_string);
                self.cx.mismatch(value, &go_type);
                return Value::Null;
            }
        };
        let text = self.cx.mismatch_text(value, inside);
        self.cx.refuse(text);
        Value::Null
    }
}

impl<'de> Visitor<'de> for Seed<'_, '_, '_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(match self.shape {
            Shape::Bool | Shape::Json(_) | Shape::SchemaOrBool(_) => Value::Bool(value),
            _ => self.misfit("bool"),
        })
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(self.number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(self.number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        let number = serde_json::Number::from_f64(value);
        number.map(|n| self.number(n)).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(match self.shape {
            Shape::String | Shape::Json(_) | Shape::IntOrString => Value::from(text),
            Shape::Quantity => self.scalar(scalar::quantity(text)),
            Shape::Time => self.scalar(scalar::time(text)),
            Shape::MicroTime => self.scalar(scalar::micro_time(text)),
            Shape::Bytes => self.scalar(scalar::bytes(text)),
            _ => self.misfit("string"),
        })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        match self.shape {
            Shape::List(element) => {
                let go = self.go.and_then(|go| go.strip_prefix("[]"));
                list(self.cx, element, go, seq)
            }
            Shape::Json(JsonKind::Free) => list(self.cx, &FREE, None, seq),
            Shape::Json(_) => any_seq(seq),
            Shape::SchemaOrArray(id) => {
                schema_or(self.cx, |cx| list(cx, &Shape::Ref(*id), None, seq))
            }
            Shape::SchemaOrStrings(_) => list(self.cx, &Shape::String, None, seq),
            _ => {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(self.misfit("array"))
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        match self.shape {
            Shape::Ref(id) => object(self.cx, *id, map),
            Shape::Map(element) => {
                let go = self.go.and_then(|go| go.strip_prefix("map[")?.split_once(']'));
                string_map(self.cx, element, go.map(|(_, value)| value), map)
            }
            Shape::Json(JsonKind::Free) => string_map(self.cx, &FREE, None, map),
            Shape::Json(_) => any_map(map),
            Shape::SchemaOrArray(id) | Shape::SchemaOrBool(id) | Shape::SchemaOrStrings(id) => {
                schema_or(self.cx, |cx| object(cx, *id, map))
            }
            _ => {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(self.misfit("object"))
            }
        }
    }
}

fn list<'de, A: SeqAccess<'de>>(
    cx: &mut Cx<'_>,
    shape: &Shape,
    go: Option<&str>,
    mut seq: A,
) -> Result<Value, A::Error> {
    let mut items = Vec::new();
    loop {
        let index = Step::Index(items.len());
        let next = cx.step(index, |cx| seq.next_element_seed(Seed { cx, shape, go }))?;
        match next {
            Some(item) => items.push(filled(item, shape)),
            None => return Ok(Value::Array(items)),
        }
    }
}

fn string_map<'de, A: MapAccess<'de>>(
    cx: &mut Cx<'_>,
    shape: &Shape,
    go: Option<&str>,
    mut map: A,
) -> Result<Value, A::Error> {
    let mut entries = Map::new();
    while let Some(key) = map.next_key::<String>()? {
        if entries.contains_key(&key) {
            cx.issue(FieldIssue::Duplicate, &key);
        }
        let value = cx.step(Step::Key(&key), |cx| map.next_value_seed(Seed { cx, shape, go }))?;
        entries.insert(key, filled(value, shape));
    }
    Ok(Value::Object(entries))
}

/// Go writes 5.0 as 5.
pub(crate) fn whole(number: serde_json::Number) -> Value {
    let as_float = number.as_f64().filter(|n| number.is_f64() && n.abs() < 1e15);
    let as_whole = as_float.map(|n| (n, n as i64)).filter(|(n, i)| *n == *i as f64);
    as_whole.map_or(Value::Number(number), |(_, whole)| whole.into())
}

/// Null as an element of a list or map is the zero value of the element.
fn filled(item: Value, shape: &Shape) -> Value {
    if item.is_null() { scalar::zero(shape) } else { item }
}

fn object<'de, A: MapAccess<'de>>(
    cx: &mut Cx<'_>,
    id: TypeId,
    mut map: A,
) -> Result<Value, A::Error> {
    let def = cx.schema.get(id);
    let outer = core::mem::replace(&mut cx.owner, def.short_name());
    let mut seen: Vec<&str> = Vec::new();
    let mut entries = Map::new();
    while let Some(key) = map.next_key::<String>()? {
        let Some(field) = def.field(&key) else {
            if def.open {
                let free = Seed { cx: &mut *cx, shape: &FREE, go: None };
                entries.insert(key, map.next_value_seed(free)?);
                continue;
            }
            cx.issue(FieldIssue::Unknown, &key);
            map.next_value::<IgnoredAny>()?;
            continue;
        };
        if seen.contains(&field.name.as_ref()) {
            cx.issue(FieldIssue::Duplicate, &key);
        }
        seen.push(&field.name);
        cx.fields.push(&field.name);
        let (shape, go) = (&field.shape, field.go());
        let value = cx.step(Step::Key(&key), |cx| map.next_value_seed(Seed { cx, shape, go }))?;
        cx.fields.pop();
        if !value.is_null() {
            entries.insert(key, value);
        }
    }
    cx.owner = outer;
    Ok(Value::Object(entries))
}

/// Go decodes these with a decoder of their own, which is not strict.
fn schema_or<T>(cx: &mut Cx<'_>, f: impl FnOnce(&mut Cx<'_>) -> T) -> T {
    let issues = cx.issues.len();
    let result = f(cx);
    cx.issues.truncate(issues);
    result
}

fn any_seq<'de, A: SeqAccess<'de>>(seq: A) -> Result<Value, A::Error> {
    serde::Deserialize::deserialize(serde::de::value::SeqAccessDeserializer::new(seq))
}

fn any_map<'de, A: MapAccess<'de>>(map: A) -> Result<Value, A::Error> {
    serde::Deserialize::deserialize(serde::de::value::MapAccessDeserializer::new(map))
}

/// Go's name of a type that has no name of its own.
fn go_type(schema: &Schema, shape: &Shape) -> String {
    match shape {
        Shape::String => "string".into(),
        Shape::Bool => "bool".into(),
        Shape::Int32 => "int32".into(),
        Shape::Int64 => "int64".into(),
        Shape::Float64 => "float64".into(),
        Shape::Bytes => "[]uint8".into(),
        Shape::Ref(id) => TypeDef::go_name(schema.get(*id)).into(),
        Shape::List(inner) => format!("[]{}", go_type(schema, inner)),
        Shape::Map(inner) => format!("map[string]{}", go_type(schema, inner)),
        Shape::Quantity => "resource.Quantity".into(),
        Shape::IntOrString => "intstr.IntOrString".into(),
        Shape::Time => "v1.Time".into(),
        Shape::MicroTime => "v1.MicroTime".into(),
        Shape::Json(JsonKind::Raw) => "runtime.RawExtension".into(),
        Shape::Json(JsonKind::Fields) => "v1.FieldsV1".into(),
        Shape::Json(JsonKind::Any) => "v1.JSON".into(),
        Shape::Json(JsonKind::Free) => "interface {}".into(),
        Shape::SchemaOrArray(_) => "v1.JSONSchemaPropsOrArray".into(),
        Shape::SchemaOrBool(_) => "v1.JSONSchemaPropsOrBool".into(),
        Shape::SchemaOrStrings(_) => "v1.JSONSchemaPropsOrStringArray".into(),
    }
}
