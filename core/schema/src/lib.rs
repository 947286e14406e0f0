//! Bytes to trees and back: strict decoding, defaulting, pruning, patches, OpenAPI, tables.
//!
//! One engine driven by a data table (`data/types.txt`, made by `cargo xtask types`): nothing here
//! names a built-in kind outside the data. A request runs
//! `decode` → `default` → (validation elsewhere) → `normalize` → `encode`;
//! a patch runs `json_patch | merge_patch | strategic_merge` on the live tree, then the same road
//! from `decode_value`.

#![no_std]

extern crate alloc;

mod custom;
mod decode;
mod default;
mod encode;
mod go_text;
mod normalize;
mod openapi;
mod order;
mod patch;
mod protobuf;
mod rules;
mod scalar;
mod strategic;
mod table;
mod time;

pub use decode::{DecodeError, Decoded, FieldIssue, strict_error};
pub use encode::{encode, resource_version_offset, resource_version_text, with_resource_version};
pub use openapi::{ApiKind, ApiSubresource, Scope, describe, openapi_v2};
pub use patch::{MAX_COPY_BYTES, MAX_DEPTH, MAX_OPERATIONS, PatchError, json_patch, merge_patch};
pub use protobuf::{Envelope, ProtobufError, openapi_v2_protobuf};
pub use table::{Extra, Field, JsonKind, ListKind, Presence, Schema, Shape, TypeDef, TypeId};
