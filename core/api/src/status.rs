//! `Status`: how every failed request answers (metav1.Status).
//!
//! Constructors give upstream's reasons, codes and texts, since clients match on all three.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use serde_json::{Map, Value, json};

use crate::{GroupResource, Kind};

/// Declares the reasons once, as an enum and as a list.
macro_rules! reasons {
    ($($name:ident)*) => {
        /// metav1.StatusReason: what a client may decide on.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs, reason = "the names are the values that go over the wire")]
        pub enum Reason { $($name),* }

        const REASONS: &[Reason] = &[$(Reason::$name),*];
    };
}

reasons! {
    Unauthorized Forbidden NotFound AlreadyExists Conflict Gone Invalid ServerTimeout
    TooManyRequests BadRequest MethodNotAllowed NotAcceptable RequestEntityTooLarge
    UnsupportedMediaType InternalError Expired ServiceUnavailable Unknown
}

impl Reason {
    /// Reads a reason as it stands in a Status.
    pub fn parse(text: &str) -> Option<Self> {
        REASONS.iter().copied().find(|reason| format!("{reason:?}") == text)
    }

    /// The HTTP status code that goes with it.
    pub fn code(self) -> u16 {
        match self {
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::AlreadyExists | Self::Conflict => 409,
            Self::Gone | Self::Expired => 410,
            Self::Invalid => 422,
            Self::TooManyRequests => 429,
            Self::BadRequest => 400,
            Self::MethodNotAllowed => 405,
            Self::NotAcceptable => 406,
            Self::RequestEntityTooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::ServerTimeout | Self::InternalError | Self::Unknown => 500,
            Self::ServiceUnavailable => 503,
        }
    }
}

/// One thing that is wrong with a field (metav1.StatusCause, field.Error).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// metav1.CauseType, such as `FieldValueInvalid`.
    pub kind: &'static str,
    /// Where, such as `spec.containers[0].name`.
    pub field: String,
    /// What, such as `Invalid value: "x": must be …`.
    pub message: String,
}

impl Cause {
    /// A required field is missing.
    pub fn required(field: impl Into<String>, detail: &str) -> Self {
        Self::new("FieldValueRequired", field, joined("Required value", detail))
    }

    /// A value breaks a rule.
    pub fn invalid(field: impl Into<String>, value: &Value, detail: &str) -> Self {
        let message = format!("Invalid value: {}: {detail}", shown(value));
        Self::new("FieldValueInvalid", field, message)
    }

    /// A value is not one of those allowed.
    pub fn not_supported(field: impl Into<String>, value: &Value, allowed: &[&str]) -> Self {
        let allowed: Vec<_> = allowed.iter().map(|value| format!("{value:?}")).collect();
        let message = format!(
            "Unsupported value: {}: supported values: {}",
            shown(value),
            allowed.join(", ")
        );
        Self::new("FieldValueNotSupported", field, message)
    }

    /// A value stands twice where it may stand once.
    pub fn duplicate(field: impl Into<String>, value: &Value) -> Self {
        Self::new("FieldValueDuplicate", field, format!("Duplicate value: {}", shown(value)))
    }

    /// A field may not be set here.
    pub fn forbidden(field: impl Into<String>, detail: &str) -> Self {
        Self::new("FieldValueForbidden", field, joined("Forbidden", detail))
    }

    /// A value names something that is not there.
    pub fn not_found(field: impl Into<String>, value: &Value) -> Self {
        Self::new("FieldValueNotFound", field, format!("Not found: {}", shown(value)))
    }

    /// A value is longer than `max` bytes.
    pub fn too_long(field: impl Into<String>, max: usize) -> Self {
        let message = format!("Too long: may not be more than {max} bytes");
        Self::new("FieldValueTooLong", field, message)
    }

    /// A list has more than `max` entries.
    pub fn too_many(field: impl Into<String>, count: usize, max: usize) -> Self {
        let message = format!("Too many: {count}: must have at most {max} items");
        Self::new("FieldValueTooMany", field, message)
    }

    fn new(kind: &'static str, field: impl Into<String>, message: String) -> Self {
        Self { kind, field: field.into(), message }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

fn joined(head: &str, detail: &str) -> String {
    if detail.is_empty() { head.to_owned() } else { format!("{head}: {detail}") }
}

fn shown(value: &Value) -> String {
    value.to_string()
}

/// A failed request's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// What a client may decide on.
    pub reason: Reason,
    /// HTTP status code.
    pub code: u16,
    /// What a person reads.
    pub message: String,
    /// `details`, when there are any.
    pub details: Option<Value>,
}

impl core::error::Error for Status {}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Status {
    /// A status without details.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, code: reason.code(), message: message.into(), details: None }
    }

    /// The resource has no object of that name.
    pub fn not_found(resource: GroupResource<'_>, name: &str) -> Self {
        let message = format!("{resource} {name:?} not found");
        Self::new(Reason::NotFound, message).about(resource, name)
    }

    /// There is an object of that name already.
    pub fn already_exists(resource: GroupResource<'_>, name: &str) -> Self {
        let message = format!("{resource} {name:?} already exists");
        Self::new(Reason::AlreadyExists, message).about(resource, name)
    }

    /// The object is not as the request expects it.
    pub fn conflict(resource: GroupResource<'_>, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {resource} {name:?}: {why}");
        Self::new(Reason::Conflict, message).about(resource, name)
    }

    /// The user may not do that.
    pub fn forbidden(resource: GroupResource<'_>, name: &str, why: &str) -> Self {
        let message = match (resource.resource, name) {
            ("", _) => format!("forbidden: {why}"),
            (_, "") => format!("{resource} is forbidden: {why}"),
            _ => format!("{resource} {name:?} is forbidden: {why}"),
        };
        Self::new(Reason::Forbidden, message).about(resource, name)
    }

    /// The object is wrong, and where.
    pub fn invalid(kind: &Kind, name: &str, causes: &[Cause]) -> Self {
        Self::invalid_as(&kind.group_kind().to_string(), &kind.group, &kind.kind, name, causes)
    }

    /// The options of a request (`ListOptions.meta.k8s.io`) are wrong, and where.
    pub fn invalid_options(kind: &str, causes: &[Cause]) -> Self {
        let (name, group) = kind.split_once('.').unwrap_or((kind, ""));
        Self::invalid_as(kind, group, name, "", causes)
    }

    fn invalid_as(what: &str, group: &str, kind: &str, name: &str, causes: &[Cause]) -> Self {
        let shown: Vec<String> = causes.iter().map(ToString::to_string).collect();
        let list = match &shown[..] {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let mut status = Self::new(Reason::Invalid, format!("{what} {name:?} is invalid: {list}"));
        let causes: Vec<Value> = causes
            .iter()
            .map(|c| json!({"reason": c.kind, "message": c.message, "field": c.field}))
            .collect();
        let mut details = details(group, kind, name);
        details.insert("causes".to_owned(), Value::Array(causes));
        status.details = Some(Value::Object(details));
        status
    }

    /// The request makes no sense.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(Reason::BadRequest, message)
    }

    /// The server failed.
    pub fn internal(why: impl fmt::Display) -> Self {
        let message = format!("Internal error occurred: {why}");
        let mut status = Self::new(Reason::InternalError, message);
        status.details = Some(json!({"causes": [{"message": why.to_string()}]}));
        status
    }

    /// The resource has no such verb.
    pub fn method_not_supported(resource: GroupResource<'_>, action: &str) -> Self {
        let message =
            format!("{action} is not supported on resources of kind {:?}", resource.to_string());
        Self::new(Reason::MethodNotAllowed, message).about(resource, "")
    }

    /// The revision asked for is no longer (or not yet) to be had.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(Reason::Expired, message)
    }

    /// No such path.
    pub fn no_such_path() -> Self {
        let mut status =
            Self::new(Reason::NotFound, "the server could not find the requested resource");
        status.details = Some(json!({}));
        status
    }

    fn about(mut self, resource: GroupResource<'_>, name: &str) -> Self {
        self.details = Some(Value::Object(details(resource.group, resource.resource, name)));
        self
    }

    /// As it goes over the wire.
    pub fn to_json(&self) -> Value {
        let mut object = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "code": self.code,
        });
        if self.reason != Reason::Unknown {
            object["reason"] = Value::String(format!("{:?}", self.reason));
        }
        if let Some(details) = &self.details {
            object["details"] = details.clone();
        }
        object
    }
}

fn details(group: &str, kind: &str, name: &str) -> Map<String, Value> {
    let parts = [("name", name), ("group", group), ("kind", kind)];
    let set = parts.iter().filter(|(_, value)| !value.is_empty());
    set.map(|(key, value)| ((*key).to_owned(), Value::String((*value).to_owned()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_upstreams() {
        let deployments = GroupResource { group: "apps", resource: "deployments" };
        let status = Status::not_found(deployments, "web");
        assert_eq!(status.message, "deployments.apps \"web\" not found");
        assert_eq!(
            status.to_json()["details"],
            json!({"name": "web", "group": "apps", "kind": "deployments"})
        );
        let pods = GroupResource { group: "", resource: "pods" };
        assert_eq!(Status::forbidden(pods, "", "no").message, "pods is forbidden: no");
    }
}
