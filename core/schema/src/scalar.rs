//! The scalars with a text form of their own, made canonical as Go writes them, and zero values.
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use knarr_api::quantity::Quantity;
use serde_json::{Map, Value};

use crate::table::Shape;
use crate::time::{Precision, canonical_time};

/// What Go holds in a field that was never set, as it is written; structs come out empty and get
/// their own zero values from `normalize`.
pub(crate) fn zero(shape: &Shape) -> Value {
    match shape {
        Shape::String => Value::from(""),
        Shape::Bool | Shape::SchemaOrBool(_) => Value::from(false),
        Shape::Int32 | Shape::Int64 | Shape::IntOrString => Value::from(0),
        Shape::Float64 => Value::from(0),
        Shape::Quantity => Value::from("0"),
        Shape::Ref(_) => Value::Object(Map::new()),
        _ => Value::Null,
    }
}

/// Canonical text of a quantity.
pub(crate) fn quantity(text: &str) -> Result<Value, String> {
    let parsed = text.trim().parse::<Quantity>().map_err(|e| e.to_string())?;
    Ok(Value::from(parsed.to_string()))
}

/// RFC 3339 in UTC with seconds; Go's zero time is null.
pub(crate) fn time(text: &str) -> Result<Value, String> {
    canonical_time(text, Precision::Seconds).map(|t| t.map_or(Value::Null, Value::from))
}

/// RFC 3339 in UTC with microseconds; Go's zero time is null.
pub(crate) fn micro_time(text: &str) -> Result<Value, String> {
    canonical_time(text, Precision::Micros).map(|t| t.map_or(Value::Null, Value::from))
}

const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireCanonical),
);

/// Base64 without the line breaks that Go's decoder skips.
pub(crate) fn bytes(text: &str) -> Result<Value, String> {
    let packed: Vec<u8> = text.bytes().filter(|b| !matches!(b, b'\r' | b'\n')).collect();
    let decoded = LENIENT.decode(&packed).map_err(|error| {
        let at = match error {
            base64::DecodeError::InvalidByte(at, _)
            | base64::DecodeError::InvalidLastSymbol(at, _) => at,
            _ => packed.len() / 4 * 4,
        };
        format!("illegal base64 data at input byte {at}")
    })?;
    Ok(Value::from(LENIENT.encode(decoded)))
}
