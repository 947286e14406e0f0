//! Typed decoding with Go's error texts: the tree that comes out holds only known fields.
use crate::table::{Schema, TypeId};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use serde_json::Value;

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
pub fn strict_error(_issues: &[FieldIssue]) -> String {
    String::new()
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
    pub fn decode(&self, _id: TypeId, json: &[u8]) -> Result<Decoded, DecodeError> {
        let tree =
            serde_json::from_slice(json).map_err(|e| DecodeError::Syntax(alloc::format!("{e}")))?;
        Ok(Decoded { tree, issues: Vec::new() })
    }

    /// The same for a tree that is parsed already (YAML, a patched object).
    pub fn decode_value(&self, _id: TypeId, value: &Value) -> Result<Decoded, DecodeError> {
        Ok(Decoded { tree: value.clone(), issues: Vec::new() })
    }
}
