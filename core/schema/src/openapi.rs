//! OpenAPI v3 documents made from the table, per group and version.
//!
//! What clients read there is served: kubectl takes types and merge keys from the components,
//! finds kinds by `x-kubernetes-group-version-kind`, and looks at the patch operation to learn
//! whether the server knows `fieldValidation`, `dryRun` and strategic merge.
use alloc::collections::BTreeSet;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use alloc::{format, vec};

use serde_json::{Map, Value, json};

use crate::table::{Field, JsonKind, ListKind, Schema, Shape, TypeId};

mod older;
mod paths;

pub use older::openapi_v2;

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
/// The kind whose first fields are described as those of any other.
const MODEL: &str = "io.k8s.api.core.v1.Pod";
const APIEXTENSIONS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1";

/// Whether objects of a kind live in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One set for the whole cluster.
    Cluster,
    /// One set in each namespace.
    Namespaced,
}

/// One served kind as the document needs it.
#[derive(Clone, Debug)]
pub struct ApiKind {
    /// `Deployment`
    pub kind: String,
    /// `deployments`
    pub plural: String,
    /// Cluster or namespace.
    pub scope: Scope,
    /// `create`, `get`, `list`, `update`, `patch`, `delete`, `deletecollection`, `watch`.
    pub verbs: Vec<String>,
    /// Its subresources.
    pub subresources: Vec<ApiSubresource>,
}

/// One subresource of an [`ApiKind`], such as `status` or `scale`.
#[derive(Clone, Debug)]
pub struct ApiSubresource {
    /// `status`, `scale`, `eviction`, …
    pub name: String,
    /// Group, version and kind of its body.
    pub gvk: (String, String, String),
    /// Verbs it serves.
    pub verbs: Vec<String>,
}

impl Schema {
    /// The document served at `/openapi/v3/{api/v1|apis/GROUP/VERSION}`.
    pub fn openapi_v3(&self, group: &str, version: &str, kinds: &[ApiKind]) -> Value {
        let mut paths = Map::new();
        let mut components = Components { schema: self, done: BTreeSet::new(), out: Map::new() };
        for kind in kinds {
            paths::add(self, group, version, kind, &mut paths);
            components.add_kind(group, version, kind);
        }
        for name in ["DeleteOptions", "Status"] {
            components.add(self.type_id(&format!("{META}.{name}")));
        }
        components.out.insert(format!("{META}.Patch"), json!({"type": "object"}));
        json!({
            "openapi": "3.0.0",
            "info": {"title": "Kubernetes", "version": "unversioned"},
            "paths": paths,
            "components": {
                "schemas": components.out,
                "securitySchemes": {"BearerToken": {
                    "type": "apiKey", "name": "authorization", "in": "header",
                    "description": "Bearer Token authentication",
                }},
            },
        })
    }
}

/// Adds descriptions to the components of a document. `lookup` knows those of types (by their
/// names, no field given) and of their fields.
pub fn describe<'d>(document: &mut Value, lookup: impl Fn(&str, Option<&str>) -> Option<&'d str>) {
    let Some(Value::Object(components)) = document.pointer_mut("/components/schemas") else {
        return;
    };
    for (name, component) in components {
        // Lists and custom kinds say the same of these as every kind does.
        let is_kind = component.get("x-kubernetes-group-version-kind").is_some();
        let shared = |field: &str| is_kind && ["apiVersion", "kind", "metadata"].contains(&field);
        if let Some(Value::Object(properties)) = component.get_mut("properties") {
            for (field, property) in properties {
                let own = lookup(name, Some(field));
                let model = || lookup(MODEL, Some(field)).filter(|_| shared(field));
                add_description(property, own.or_else(model));
            }
        }
        add_description(component, lookup(name, None));
    }
}

/// Says what a schema is for; a reference has to be wrapped, since nothing may stand beside it.
fn add_description(schema: &mut Value, text: Option<&str>) {
    let (Some(text), Value::Object(object)) = (text, schema) else { return };
    if let Some(reference) = object.remove("$ref") {
        object.insert("allOf".to_string(), json!([{"$ref": reference}]));
    }
    object.insert("description".to_string(), text.into());
}

/// A reference to a component.
fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

/// `x-kubernetes-group-version-kind` of one kind.
fn gvk(group: &str, version: &str, kind: &str) -> Value {
    json!({"group": group, "version": version, "kind": kind})
}

/// The component schemas collected so far, and the types they cover.
struct Components<'s> {
    schema: &'s Schema,
    done: BTreeSet<TypeId>,
    out: Map<String, Value>,
}

impl Components<'_> {
    fn add_kind(&mut self, group: &str, version: &str, kind: &ApiKind) {
        let id = self.schema.kind_type(group, version, &kind.kind);
        self.add(id);
        for sub in &kind.subresources {
            let (group, version, kind) = &sub.gvk;
            self.add(self.schema.kind_type(group, version, kind));
        }
        let (Some(id), true) = (id, kind.verbs.iter().any(|verb| verb == "list")) else { return };
        let list_meta = self.schema.type_id(&format!("{META}.ListMeta"));
        self.add(list_meta);
        let name = &self.schema.get(id).name;
        self.out.insert(
            format!("{name}List"),
            json!({
                "type": "object",
                "required": ["items"],
                "properties": {
                    "apiVersion": {"type": "string"},
                    "kind": {"type": "string"},
                    "metadata": {
                        "allOf": [reference(&format!("{META}.ListMeta"))], "default": {},
                    },
                    "items": {"type": "array", "items": reference(name)},
                },
                "x-kubernetes-group-version-kind":
                    [gvk(group, version, &format!("{}List", kind.kind))],
            }),
        );
    }

    /// Adds a type and all it refers to.
    fn add(&mut self, id: Option<TypeId>) {
        let Some(id) = id.filter(|id| self.done.insert(*id)) else { return };
        let schema = self.schema;
        let def = schema.get(id);
        let mut properties = Map::new();
        for field in &def.fields {
            properties.insert(field.name.to_string(), self.property(field));
        }
        let required: Vec<&str> =
            def.fields.iter().filter(|f| f.is_required()).map(|f| &*f.name).collect();
        let mut out = json!({"type": "object"});
        if !properties.is_empty() {
            out["properties"] = properties.into();
        }
        if !required.is_empty() {
            out["required"] = required.into();
        }
        if def.atomic {
            out["x-kubernetes-map-type"] = "atomic".into();
        }
        if let Some((group, version)) = &def.gvk {
            out["x-kubernetes-group-version-kind"] =
                vec![gvk(group, version, def.short_name())].into();
        }
        self.out.insert(def.name.clone(), out);
    }

    fn property(&mut self, field: &Field) -> Value {
        let mut out = self.shape(&field.shape);
        let mut extensions = extensions(field);
        if let Some(reference) = out.get("$ref").cloned() {
            if extensions.is_empty() {
                return out;
            }
            out = json!({"allOf": [{"$ref": reference}]});
        }
        if let Value::Object(out) = &mut out {
            out.append(&mut extensions);
        }
        out
    }

    fn shape(&mut self, shape: &Shape) -> Value {
        match shape {
            Shape::String => json!({"type": "string"}),
            Shape::Bool => json!({"type": "boolean"}),
            Shape::Int32 => json!({"type": "integer", "format": "int32"}),
            Shape::Int64 => json!({"type": "integer", "format": "int64"}),
            Shape::Float64 => json!({"type": "number", "format": "double"}),
            Shape::Bytes => json!({"type": "string", "format": "byte"}),
            Shape::List(inner) => json!({"type": "array", "items": self.shape(inner)}),
            Shape::Map(inner) => {
                json!({"type": "object", "additionalProperties": self.shape(inner)})
            }
            Shape::Ref(id) => {
                self.add(Some(*id));
                reference(&self.schema.get(*id).name)
            }
            special => {
                let (name, schema) = special_component(special);
                self.out.insert(name.clone(), schema);
                reference(&name)
            }
        }
    }
}

/// The component of a scalar that has one.
fn special_component(shape: &Shape) -> (String, Value) {
    let time = || json!({"type": "string", "format": "date-time"});
    let object = || json!({"type": "object"});
    let machinery = |name: &str| format!("io.k8s.apimachinery.pkg.{name}");
    match shape {
        Shape::Quantity => {
            let schema = json!({"oneOf": [{"type": "string"}, {"type": "number"}]});
            (machinery("api.resource.Quantity"), schema)
        }
        Shape::IntOrString => {
            let schema = json!({
                "format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}],
            });
            (machinery("util.intstr.IntOrString"), schema)
        }
        Shape::Time => (format!("{META}.Time"), time()),
        Shape::MicroTime => (format!("{META}.MicroTime"), time()),
        Shape::Json(JsonKind::Fields) => (format!("{META}.FieldsV1"), object()),
        Shape::Json(JsonKind::Raw) => (machinery("runtime.RawExtension"), object()),
        Shape::SchemaOrArray(_) => (format!("{APIEXTENSIONS}.JSONSchemaPropsOrArray"), json!({})),
        Shape::SchemaOrBool(_) => (format!("{APIEXTENSIONS}.JSONSchemaPropsOrBool"), json!({})),
        Shape::SchemaOrStrings(_) => {
            (format!("{APIEXTENSIONS}.JSONSchemaPropsOrStringArray"), json!({}))
        }
        _ => (format!("{APIEXTENSIONS}.JSON"), json!({})),
    }
}

/// What a field says beyond its type: list and map semantics, merge keys, default.
fn extensions(field: &Field) -> Map<String, Value> {
    let mut out = Map::new();
    let mut add = |key: &str, value: Option<Value>| {
        out.extend(value.map(|value| (key.to_string(), value)));
    };
    let list = match field.list() {
        ListKind::None => None,
        ListKind::Atomic => Some("atomic"),
        ListKind::Set => Some("set"),
        ListKind::Map(keys) => {
            add("x-kubernetes-list-map-keys", Some(json!(keys)));
            Some("map")
        }
    };
    add("x-kubernetes-list-type", list.map(Value::from));
    add("x-kubernetes-patch-merge-key", field.merge_key().map(Value::from));
    add("x-kubernetes-patch-strategy", field.strategy().map(Value::from));
    if let Some(extra) = &field.extra {
        add("x-kubernetes-map-type", extra.map.as_deref().map(Value::from));
        let default = extra.default.as_deref().and_then(|text| serde_json::from_str(text).ok());
        add("default", default);
    }
    out
}
