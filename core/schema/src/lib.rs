//! Bytes to trees and back: strict decoding, defaulting, pruning, patches, OpenAPI, tables.

#![no_std]

extern crate alloc;
