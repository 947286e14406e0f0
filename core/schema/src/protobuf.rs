//! Kubernetes' protobuf: `k8s\0`, an envelope that names the kind, and the object's own message.
//!
//! client-go writes built-in kinds this way unless told otherwise. The numbers come from the data
//! table and the presence rules are those of Go's generated code: what is no pointer is always
//! written, so a zero read is as good as nothing read.
mod openapi;
mod read;
mod wire;
mod write;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use serde_json::Value;

use crate::table::{Schema, TypeId};
pub use openapi::openapi_v2_protobuf;
use wire::{Reader, put_bytes, put_message};

const MAGIC: &[u8] = b"k8s\0";

/// Why bytes are not a protobuf message of a type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProtobufError {
    /// The bytes do not begin with `k8s\0`.
    Prefix,
    /// The bytes end inside a value.
    Truncated,
    /// A varint of more than 64 bits.
    Overflow,
    /// A field number that cannot be, or the end of a group that never began.
    Tag,
    /// This wire type does not fit the field, or does not exist.
    WireType(u8),
    /// A text that is not UTF-8.
    Utf8,
    /// Messages inside messages without end.
    Depth,
    /// A value that its own parser refuses (quantity, time, embedded JSON), in that parser's words.
    Value(String),
    /// Nothing is known of this apiVersion and kind.
    Kind(String, String),
}

impl fmt::Display for ProtobufError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProtobufError::Prefix => f.write_str(
                "provided data does not appear to be a protobuf message, expected prefix \
                 [107 56 115 0]",
            ),
            ProtobufError::Truncated => f.write_str("unexpected EOF"),
            ProtobufError::Overflow => f.write_str("proto: integer overflow"),
            ProtobufError::Tag => f.write_str("proto: illegal tag"),
            ProtobufError::WireType(found) => write!(f, "proto: wrong wireType = {found}"),
            ProtobufError::Utf8 => f.write_str("proto: string field contains invalid UTF-8"),
            ProtobufError::Depth => f.write_str("exceeded max depth"),
            ProtobufError::Value(why) => f.write_str(why),
            ProtobufError::Kind(api_version, kind) => {
                write!(f, "no kind {kind:?} is registered for version {api_version:?}")
            }
        }
    }
}

impl core::error::Error for ProtobufError {}

/// What the envelope says: what is inside, and its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// `apps/v1`.
    pub api_version: &'a str,
    /// `Deployment`.
    pub kind: &'a str,
    /// The object's message.
    pub raw: &'a [u8],
}

impl<'a> Envelope<'a> {
    /// Takes `k8s\0` and the envelope off. Where a field comes twice the last one counts.
    pub fn unwrap(bytes: &'a [u8]) -> Result<Envelope<'a>, ProtobufError> {
        let mut reader = Reader(bytes.strip_prefix(MAGIC).ok_or(ProtobufError::Prefix)?);
        let mut envelope = Envelope { api_version: "", kind: "", raw: b"" };
        while let Some((number, wire)) = reader.next()? {
            match number {
                1 => envelope.read_type(wire.bytes()?)?,
                2 => envelope.raw = wire.bytes()?,
                _ => {}
            }
        }
        Ok(envelope)
    }

    fn read_type(&mut self, bytes: &'a [u8]) -> Result<(), ProtobufError> {
        let mut reader = Reader(bytes);
        while let Some((number, wire)) = reader.next()? {
            match number {
                1 => self.api_version = wire.text()?,
                2 => self.kind = wire.text()?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Puts envelope and `k8s\0` on: the bytes that a client reads.
    pub fn wrap(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.raw.len() + 64);
        out.extend_from_slice(MAGIC);
        put_message(&mut out, 1, |meta| {
            put_bytes(meta, 1, self.api_version.as_bytes());
            put_bytes(meta, 2, self.kind.as_bytes());
        });
        put_bytes(&mut out, 2, self.raw);
        put_bytes(&mut out, 3, b"");
        put_bytes(&mut out, 4, b"");
        out
    }
}

impl Schema {
    /// A request's protobuf body as JSON bytes with `kind` and `apiVersion`; the error is for
    /// the client.
    pub fn protobuf_to_json(&self, body: &[u8]) -> Result<Vec<u8>, String> {
        let tree = self.decode_envelope(body).map_err(|error| error.to_string())?;
        Ok(tree.to_string().into_bytes())
    }

    /// The type that an envelope means: the options of requests and their answers belong to every
    /// group and version.
    fn enveloped_type(&self, api_version: &str, kind: &str) -> Result<TypeId, ProtobufError> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let own = self.kind_type(group, version, kind);
        own.or_else(|| self.kind_type("meta.k8s.io", "v1", kind))
            .ok_or_else(|| ProtobufError::Kind(api_version.into(), kind.into()))
    }

    /// The message of a list (`DeploymentList`), for [`Envelope::wrap`]: its `metadata` and the
    /// items as [`Schema::encode_protobuf`] made them.
    pub fn encode_protobuf_list<I>(&self, metadata: &Value, items: I) -> Vec<u8>
    where
        I: IntoIterator<Item: AsRef<[u8]>>,
    {
        let id = self.type_id(LIST_META).expect("the table has the metadata of lists");
        let mut out = Vec::new();
        put_bytes(&mut out, 1, &self.encode_protobuf(id, metadata));
        items.into_iter().for_each(|item| put_bytes(&mut out, 2, item.as_ref()));
        out
    }
}

const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";

/// An error with the path of the field in front would cost a path per field; the type is enough.
fn refused(why: impl fmt::Display) -> ProtobufError {
    ProtobufError::Value(format!("{why}"))
}
