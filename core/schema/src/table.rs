//! The data table in memory: types, their fields, and how each is written on the wire.
//!
//! The text form is `data/types.txt`; its header says what a line holds. Strings stay slices of
//! that text: parsing allocates only the vectors. Types declared at run time own their strings.
use alloc::borrow::Cow;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use alloc::{format, vec};

use crate::rules::Rules;

const TYPES: &str = include_str!("../data/types.txt");

/// Text that is part of the program, or was read at run time.
pub(crate) type Text = Cow<'static, str>;

/// Index of a type in its [`Schema`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TypeId(pub(crate) u32);

/// Everything known about the shape of API objects; built once, shared by reference.
#[derive(Clone, Debug)]
pub struct Schema {
    pub(crate) types: Vec<TypeDef>,
    pub(crate) by_name: BTreeMap<String, TypeId>,
    pub(crate) kinds: BTreeMap<(Text, Text, Text), TypeId>,
    pub(crate) rules: Rules,
}

/// One struct of the API.
#[derive(Clone, Debug, Default)]
pub struct TypeDef {
    /// OpenAPI name, such as `io.k8s.api.core.v1.Container`.
    pub name: String,
    /// Fields sorted by JSON name, inlined structs flattened.
    pub fields: Vec<Field>,
    /// Fields that the type does not have are kept; only of types declared at run time.
    pub open: bool,
    /// Server-side apply treats values of this type as one leaf.
    pub atomic: bool,
    /// Indices of the fields that protobuf has, in the order of their numbers.
    pub(crate) wire: Vec<u16>,
    /// Group and version when this is a kind of its own.
    pub gvk: Option<(Text, Text)>,
}

/// One field of a [`TypeDef`].
#[derive(Clone, Debug)]
pub struct Field {
    /// JSON name.
    pub name: Text,
    /// Protobuf field numbers from the outermost message in (inlined structs nest there);
    /// unused places are 0, and all are 0 for kind and apiVersion.
    pub proto: [u16; 3],
    /// Type of the value.
    pub shape: Shape,
    /// When the field is written.
    pub presence: Presence,
    /// Everything that few fields have.
    pub extra: Option<Box<Extra>>,
}

/// The rarer facts of a field; `Field`'s methods read them.
#[derive(Clone, Debug, Default)]
pub struct Extra {
    /// Go's name of the type where the shape does not tell it (`v1.PullPolicy`).
    pub go: Option<Text>,
    /// `x-kubernetes-list-type`.
    pub list: ListKind,
    /// `x-kubernetes-map-type`: `atomic` or `granular`.
    pub map: Option<Text>,
    /// Merge key of strategic merge patch.
    pub merge_key: Option<Text>,
    /// Patch strategy as tagged: `merge`, `replace`, `retainKeys` or `merge,retainKeys`.
    pub strategy: Option<Text>,
    /// Allowed values, `|` between them, `%20` for a space.
    pub enums: Option<Text>,
    /// Default as JSON text.
    pub default: Option<Text>,
    /// Required in OpenAPI although Go's tag says otherwise, or the reverse.
    pub required: Option<bool>,
    /// Feature gate that guards the field.
    pub gate: Option<Text>,
}

/// Type of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// UTF-8 text.
    String,
    /// true or false.
    Bool,
    /// 32-bit signed.
    Int32,
    /// 64-bit signed.
    Int64,
    /// Double.
    Float64,
    /// Base64 in JSON.
    Bytes,
    /// `500m`.
    Quantity,
    /// An int32 or a string.
    IntOrString,
    /// RFC 3339 seconds, UTC.
    Time,
    /// RFC 3339 microseconds, UTC.
    MicroTime,
    /// Any JSON, kept as it is.
    Json(JsonKind),
    /// A JSON schema, a list of them.
    SchemaOrArray(TypeId),
    /// A JSON schema or a boolean.
    SchemaOrBool(TypeId),
    /// A JSON schema or a list of strings.
    SchemaOrStrings(TypeId),
    /// An object of a type of the table.
    Ref(TypeId),
    /// A list.
    List(Box<Shape>),
    /// A map by string.
    Map(Box<Shape>),
}

/// Which of Go's types for arbitrary JSON it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JsonKind {
    /// runtime.RawExtension
    Raw,
    /// metav1.FieldsV1
    Fields,
    /// apiextensions' JSON
    Any,
    /// A tree of no type: strict decoding looks into it for keys that come twice.
    Free,
}

/// When Go writes a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// No `omitempty`: always written, with the zero value if it was absent.
    Always,
    /// `omitempty` on a value: left out when empty; a struct is written all the same.
    OmitEmpty,
    /// `omitzero`: left out when the zero value, structs too.
    OmitZero,
    /// A pointer with `omitempty`: written exactly when it was set.
    Pointer,
    /// A pointer without `omitempty`: null when it was not set.
    Nullable,
}

/// Merge behaviour of a list in server-side apply.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum ListKind {
    /// Not a list, or nothing said.
    #[default]
    None,
    /// Replaced as a whole.
    Atomic,
    /// Each value at most once.
    Set,
    /// Elements are identified by these keys.
    Map(Vec<Text>),
}

impl Schema {
    /// The table of every built-in type; parses the text, a few milliseconds, once per process.
    pub fn builtin() -> Schema {
        let mut schema = Schema::parse(TYPES);
        schema.rules = Rules::builtin(&schema);
        schema
    }

    /// A schema of one's own, without defaults, from text in the form of the built-in table.
    /// Panics on text that is not.
    pub fn parse(text: &'static str) -> Schema {
        parse(text)
    }

    /// The type with this OpenAPI name.
    pub fn type_id(&self, name: &str) -> Option<TypeId> {
        self.by_name.get(name).copied()
    }

    /// The type of a served kind; `group` is empty for the core group.
    pub fn kind_type(&self, group: &str, version: &str, kind: &str) -> Option<TypeId> {
        let key = (group.to_string().into(), version.to_string().into(), kind.to_string().into());
        self.kinds.get(&key).copied()
    }

    /// The definition behind an id.
    pub fn get(&self, id: TypeId) -> &TypeDef {
        &self.types[id.0 as usize]
    }

    /// Every type, in the order of names within their package.
    pub fn type_ids(&self) -> impl Iterator<Item = TypeId> {
        (0..self.types.len() as u32).map(TypeId)
    }
}

impl TypeDef {
    /// Brings the fields in order, once all are there.
    pub(crate) fn index(&mut self) {
        self.fields.sort_by(|a, b| a.name.cmp(&b.name));
        let numbered = self.fields.iter().zip(0_u16..).filter(|(field, _)| field.proto[0] != 0);
        self.wire = numbered.map(|(_, at)| at).collect();
        self.wire.sort_by_key(|at| self.fields[usize::from(*at)].proto);
    }

    /// The field with this JSON name.
    pub fn field(&self, name: &str) -> Option<&Field> {
        let found = self.fields.binary_search_by(|f| f.name.as_ref().cmp(name));
        found.ok().map(|at| &self.fields[at])
    }

    /// The type's own name: `Container`.
    pub fn short_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or_default()
    }

    /// The name Go prints: `v1.Container`.
    pub(crate) fn go_name(&self) -> &str {
        let cut = self.name.rmatch_indices('.').nth(1).map_or(0, |(at, _)| at + 1);
        &self.name[cut..]
    }
}

impl Field {
    /// Go's name of the field's type, where the shape does not tell it.
    pub(crate) fn go(&self) -> Option<&str> {
        self.extra.as_ref()?.go.as_deref()
    }

    /// Merge behaviour in server-side apply.
    pub fn list(&self) -> &ListKind {
        self.extra.as_ref().map_or(&ListKind::None, |e| &e.list)
    }

    /// Merge key of strategic merge patch.
    pub fn merge_key(&self) -> Option<&str> {
        self.extra.as_ref()?.merge_key.as_deref()
    }

    /// Patch strategies as tagged, such as `merge,retainKeys`.
    pub fn strategy(&self) -> Option<&str> {
        self.extra.as_ref()?.strategy.as_deref()
    }

    /// Allowed values; empty when any will do.
    pub fn enum_values(&self) -> impl Iterator<Item = String> {
        let text = self.extra.as_ref().and_then(|e| e.enums.as_deref()).unwrap_or_default();
        text.split('|').filter(|v| !v.is_empty()).map(|v| v.replace("%20", " "))
    }

    /// Whether OpenAPI lists the field as required.
    pub fn is_required(&self) -> bool {
        let by_tag = matches!(self.presence, Presence::Always | Presence::Nullable);
        self.extra.as_ref().and_then(|e| e.required).unwrap_or(by_tag)
    }
}

fn parse(text: &'static str) -> Schema {
    let by_name = declare(text);
    let mut types: Vec<TypeDef> = Vec::with_capacity(by_name.len());
    let mut package = "";
    for line in text.lines() {
        if let Some(field) = line.strip_prefix(' ') {
            let owner = types.last_mut().expect("a field line follows its type line");
            owner.fields.push(parse_field(field, package, &by_name));
        } else if let Some(rest) = line.strip_prefix("type ") {
            types.push(parse_type(rest, package));
        } else if let Some(rest) = line.strip_prefix("package ") {
            package = rest;
        }
    }
    types.iter_mut().for_each(TypeDef::index);
    let kinds = types.iter().zip(0..).filter_map(|(def, id)| {
        let (group, version) = def.gvk.clone()?;
        Some(((group, version, def.short_name().to_string().into()), TypeId(id)))
    });
    Schema { kinds: kinds.collect(), types, by_name, rules: Rules::default() }
}

/// Ids in the order of the text, so that fields may refer to later types.
fn declare(text: &str) -> BTreeMap<String, TypeId> {
    let mut names = BTreeMap::new();
    let mut package = "";
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("type ") {
            let name = rest.split(' ').next().unwrap_or_default();
            names.insert(format!("{package}.{name}"), TypeId(names.len() as u32));
        } else if let Some(rest) = line.strip_prefix("package ") {
            package = rest;
        }
    }
    names
}

fn parse_type(rest: &'static str, package: &str) -> TypeDef {
    let mut words = rest.split(' ');
    let name = format!("{package}.{}", words.next().unwrap_or_default());
    let mut def = TypeDef { name, ..TypeDef::default() };
    for word in words {
        if word == "atomic" {
            def.atomic = true;
        } else if let Some((group, version)) =
            word.strip_prefix("gvk=").and_then(|w| w.split_once('/'))
        {
            def.gvk = Some((group.into(), version.into()));
        }
    }
    def
}

fn parse_field(line: &'static str, package: &str, names: &BTreeMap<String, TypeId>) -> Field {
    let mut words = line.split(' ');
    let mut word = || words.next().expect("a field line has four words");
    let (name, proto, shape, presence) = (word(), word(), word(), word());
    let presence = match presence {
        "!" => Presence::Always,
        "?" => Presence::OmitEmpty,
        "0" => Presence::OmitZero,
        "*" => Presence::Pointer,
        _ => Presence::Nullable,
    };
    Field {
        name: name.into(),
        proto: parse_proto(proto),
        shape: parse_shape(shape, package, names),
        presence,
        extra: parse_extra(words),
    }
}

fn parse_proto(text: &str) -> [u16; 3] {
    let mut path = [0; 3];
    for (place, number) in path.iter_mut().zip(text.split('.')) {
        *place = number.parse().unwrap_or(0);
    }
    path
}

fn parse_shape(text: &str, package: &str, names: &BTreeMap<String, TypeId>) -> Shape {
    if let Some(rest) = text.strip_prefix("[]") {
        return Shape::List(Box::new(parse_shape(rest, package, names)));
    }
    if let Some(rest) = text.strip_prefix("{}") {
        return Shape::Map(Box::new(parse_shape(rest, package, names)));
    }
    let id = |name: &str| {
        let full = if name.contains('.') { name.into() } else { format!("{package}.{name}") };
        *names.get(&full).expect("the table holds every type it refers to")
    };
    match text {
        "string" => Shape::String,
        "bool" => Shape::Bool,
        "int32" => Shape::Int32,
        "int64" => Shape::Int64,
        "float64" => Shape::Float64,
        "bytes" => Shape::Bytes,
        "quantity" => Shape::Quantity,
        "intorstring" => Shape::IntOrString,
        "time" => Shape::Time,
        "microtime" => Shape::MicroTime,
        "raw" => Shape::Json(JsonKind::Raw),
        "fields" => Shape::Json(JsonKind::Fields),
        "json" => Shape::Json(JsonKind::Any),
        "any" => Shape::Json(JsonKind::Free),
        "schemaorarray" => Shape::SchemaOrArray(id("JSONSchemaProps")),
        "schemaorbool" => Shape::SchemaOrBool(id("JSONSchemaProps")),
        "schemaorstrings" => Shape::SchemaOrStrings(id("JSONSchemaProps")),
        name => Shape::Ref(id(name)),
    }
}

fn parse_extra(words: core::str::Split<'static, char>) -> Option<Box<Extra>> {
    let mut extra: Option<Box<Extra>> = None;
    let mut keys = vec![];
    for word in words {
        let extra = extra.get_or_insert_default();
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        match key {
            "go" => extra.go = Some(value.into()),
            "list" if value == "atomic" => extra.list = ListKind::Atomic,
            "list" if value == "set" => extra.list = ListKind::Set,
            "keys" => keys = value.split(',').map(Text::from).collect(),
            "map" => extra.map = Some(value.into()),
            "merge" => extra.merge_key = Some(value.into()),
            "patch" => extra.strategy = Some(value.into()),
            "enum" => extra.enums = Some(value.into()),
            "default" => extra.default = Some(value.into()),
            "opt" => extra.required = Some(false),
            "req" => extra.required = Some(true),
            "gate" => extra.gate = Some(value.into()),
            _ => {}
        }
        if !keys.is_empty() {
            extra.list = ListKind::Map(core::mem::take(&mut keys));
        }
    }
    extra
}
