//! Default values: walks a tree by its type and applies the rules of every type it meets.
use alloc::string::{String, ToString};

use knarr_api::quantity::Quantity;
use serde_json::{Map, Value};

use crate::rules::{RESOURCE_LIST, inner_type};
use crate::table::{Field, Presence, Schema, Shape, TypeId};

impl Schema {
    /// Fills in what upstream's defaulting functions fill in; `tree` comes from `decode`.
    /// A struct comes before what it holds, as upstream's generated defaulters order it.
    pub fn default(&self, id: TypeId, tree: &mut Value) {
        if let Value::Object(object) = tree {
            self.default_object(id, object);
        }
    }

    fn default_object(&self, id: TypeId, object: &mut Map<String, Value>) {
        self.rules.apply(id, object);
        for field in &self.get(id).fields {
            self.default_field(field, object);
        }
    }

    fn default_field(&self, field: &Field, object: &mut Map<String, Value>) {
        if field.go() == Some(RESOURCE_LIST) {
            round_to_milli(object.get_mut(&*field.name));
        }
        if !inner_type(&field.shape).is_some_and(|id| self.rules.reaches(id)) {
            return;
        }
        if let Some(value) = object.get_mut(&*field.name) {
            self.default_shape(&field.shape, value);
        } else if let Shape::Ref(id) = &field.shape
            && !matches!(field.presence, Presence::Pointer | Presence::Nullable)
        {
            // Go has the struct whether or not it was given.
            let mut implicit = Map::new();
            self.default_object(*id, &mut implicit);
            if !implicit.is_empty() {
                object.insert(field.name.clone().into_owned(), Value::Object(implicit));
            }
        }
    }

    fn default_shape(&self, shape: &Shape, value: &mut Value) {
        match (shape, value) {
            (Shape::Ref(id), value) => self.default(*id, value),
            (Shape::List(element), Value::Array(items)) => {
                items.iter_mut().for_each(|item| self.default_shape(element, item));
            }
            (Shape::Map(element), Value::Object(entries)) => {
                entries.values_mut().for_each(|item| self.default_shape(element, item));
            }
            _ => {}
        }
    }
}

/// Nothing finer than a thousandth is counted in a list of resources.
fn round_to_milli(list: Option<&mut Value>) {
    for value in list.and_then(Value::as_object_mut).into_iter().flat_map(Map::values_mut) {
        let Some(mut quantity) = value.as_str().and_then(|t| t.parse::<Quantity>().ok()) else {
            continue;
        };
        if !quantity.round_up(-3) {
            *value = quantity.to_string().into();
        }
    }
}
