//! Typed views of objects: the one place where the codecs of k8s-openapi are instantiated.

#![no_std]

extern crate alloc;
