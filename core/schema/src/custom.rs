//! Types declared at run time: a definition's openAPIV3Schema becomes types of the same table, so
//! custom kinds decode, prune, default and encode through the one engine.
//!
//! What is unknown is pruned unless the schema says `x-kubernetes-preserve-unknown-fields`. Every
//! field is written exactly when it was set. Value rules (`required`, `maximum`, `pattern`) are
//! validation and not part of a type.
use alloc::borrow::ToOwned;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde_json::Value;

use crate::table::{Field, JsonKind, Presence, Schema, Shape, Text, TypeDef, TypeId};

/// Properties inside properties; what lies deeper is kept as it is.
const MAX_DEPTH: usize = 50;
const METADATA: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

impl Schema {
    /// The table with one more kind, as `schema` (an openAPIV3Schema) describes it. What is
    /// declared already stays: no definition changes a built-in kind. A schema that says nothing
    /// keeps everything.
    pub fn with_custom(mut self, group: &str, version: &str, kind: &str, schema: &Value) -> Schema {
        let name = format!("{group}.{version}.{kind}");
        let id = self.declare(&name, schema, 0);
        let metadata = self.type_id(METADATA).expect("the table has the metadata of objects");
        let def = &mut self.types[id.0 as usize];
        def.open |= schema.get("properties").is_none();
        def.gvk = Some((group.to_owned().into(), version.to_owned().into()));
        let own = ["apiVersion", "kind", "metadata"];
        def.fields.retain(|field| !own.contains(&&*field.name));
        for name in own {
            let shape = if name == "metadata" { Shape::Ref(metadata) } else { Shape::String };
            def.fields.push(Field { presence: Presence::OmitEmpty, ..field(name.into(), shape) });
        }
        def.index();
        let key = [group, version, kind].map(|word| Text::from(word.to_owned()));
        self.kinds.entry(key.into()).or_insert(id);
        self
    }

    /// Declares an object type.
    fn declare(&mut self, name: &str, schema: &Value, depth: usize) -> TypeId {
        let mut def = TypeDef {
            name: name.to_owned(),
            open: schema["x-kubernetes-preserve-unknown-fields"] == true,
            ..TypeDef::default()
        };
        let mut defaults = Vec::new();
        for (property, inner) in schema["properties"].as_object().into_iter().flatten() {
            let shape = self.shape(&format!("{name}.{property}"), inner, depth + 1);
            if let Some(default) = inner.get("default").filter(|value| !value.is_null()) {
                defaults.push((Text::from(property.clone()), default.clone()));
            }
            def.fields.push(field(property.clone(), shape));
        }
        def.index();
        let id = TypeId(self.types.len() as u32);
        self.types.push(def);
        self.by_name.entry(name.to_owned()).or_insert(id);
        self.rules.declare(id, defaults);
        id
    }

    fn shape(&mut self, name: &str, schema: &Value, depth: usize) -> Shape {
        let free = Shape::Json(JsonKind::Free);
        let is = |extension: &str| schema[extension] == true;
        if is("x-kubernetes-int-or-string") {
            return Shape::IntOrString;
        }
        if depth > MAX_DEPTH || is("x-kubernetes-embedded-resource") {
            return free;
        }
        match schema["type"].as_str().unwrap_or_default() {
            "string" => Shape::String,
            "boolean" => Shape::Bool,
            "integer" => Shape::Int64,
            "number" => Shape::Float64,
            "array" => Shape::List(Box::new(self.shape(name, &schema["items"], depth + 1))),
            "object" => self.object_shape(name, schema, depth),
            _ if schema["properties"].is_object() => Shape::Ref(self.declare(name, schema, depth)),
            _ => free,
        }
    }

    fn object_shape(&mut self, name: &str, schema: &Value, depth: usize) -> Shape {
        let properties = &schema["properties"];
        match &schema["additionalProperties"] {
            Value::Object(_) if !properties.is_object() => {
                let inner = self.shape(name, &schema["additionalProperties"], depth + 1);
                Shape::Map(Box::new(inner))
            }
            Value::Bool(true) => Shape::Json(JsonKind::Free),
            _ => Shape::Ref(self.declare(name, schema, depth)),
        }
    }
}

fn field(name: String, shape: Shape) -> Field {
    Field {
        name: name.to_string().into(),
        proto: [0; 3],
        shape,
        presence: Presence::Pointer,
        extra: None,
    }
}
