//! Patches as they come in: which of the three forms, and what to do with it.

use alloc::format;
use alloc::string::{String, ToString};

use knarr_api::{Kind, Reason, Status};
use knarr_schema::{PatchError, Schema, TypeId};
use serde_json::Value;

/// A patch that was read but not yet applied.
#[derive(Clone, Debug)]
pub(crate) enum Patch {
    Json(Value),
    Merge(Value),
    Strategic(Value),
}

impl Patch {
    /// Reads a body by its media type.
    pub(crate) fn parse(content_type: &str, body: &[u8]) -> Result<Self, Status> {
        let media = content_type.split(';').next().unwrap_or_default().trim();
        let make: fn(Value) -> Self = match media {
            "application/json-patch+json" => Self::Json,
            "application/merge-patch+json" => Self::Merge,
            "application/strategic-merge-patch+json" => Self::Strategic,
            other => return Err(unsupported(other)),
        };
        let tree = serde_json::from_slice(body)
            .map_err(|error| Status::bad_request(format!("error decoding patch: {error}")))?;
        Ok(make(tree))
    }

    /// The object it makes of `shown`.
    pub(crate) fn apply(
        &self,
        schema: &Schema,
        id: TypeId,
        kind: &Kind,
        name: &str,
        shown: &Value,
    ) -> Result<Value, Status> {
        let result = match self {
            Self::Json(patch) => knarr_schema::json_patch(shown, patch),
            Self::Merge(patch) => {
                let mut tree = shown.clone();
                knarr_schema::merge_patch(&mut tree, patch.clone()).map(|()| tree)
            }
            Self::Strategic(_) if kind.custom => {
                return Err(unsupported("application/strategic-merge-patch+json"));
            }
            Self::Strategic(patch) => schema.strategic_merge(id, shown.clone(), patch.clone()),
        };
        result.map_err(|error| refusal(kind, name, &error))
    }
}

fn unsupported(media: &str) -> Status {
    let known: [&str; 3] = [
        "application/json-patch+json",
        "application/merge-patch+json",
        "application/strategic-merge-patch+json",
    ];
    let text: String = format!(
        "the body of the request was in an unknown format - accepted media types include: {} \
         (got {media})",
        known.join(", ")
    );
    Status::new(Reason::UnsupportedMediaType, text)
}

fn refusal(kind: &Kind, name: &str, error: &PatchError) -> Status {
    match error {
        PatchError::BadPatch(text) => Status::bad_request(text.clone()),
        PatchError::Internal(text) => Status::internal(text),
        PatchError::TooLarge(text) => {
            Status::new(Reason::RequestEntityTooLarge, format!("Request entity too large: {text}"))
        }
        PatchError::Unprocessable(text) => {
            let mut status = Status::invalid(kind, name, &[]);
            status.message = text.to_string();
            status
        }
    }
}
