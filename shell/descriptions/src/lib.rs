//! What types and fields of the API mean, in upstream's words, for `kubectl explain`.
//!
//! The prose is not part of this repository. build.rs reads it out of the k8s-openapi crate and
//! compresses it into the binary; [`Descriptions::unpack`] takes it out, for as long as somebody
//! makes a document. Unpacked it is more than a megabyte, so nobody should keep it.

use std::collections::BTreeMap;
use std::io::Read;
use std::ops::Range;

use flate2::read::DeflateDecoder;

#[cfg_attr(not(test), allow(dead_code, reason = "build.rs does the reading"))]
mod extract;

use extract::{FIELD, TEXT, TYPE};

static PACKED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptions.deflate"));

/// All descriptions, unpacked.
pub struct Descriptions {
    text: String,
    types: BTreeMap<String, Range<usize>>,
}

impl Descriptions {
    /// Takes them out of the binary.
    pub fn unpack() -> Self {
        let mut text = String::new();
        DeflateDecoder::new(PACKED).read_to_string(&mut text).expect("build.rs packed this");
        let mut types = BTreeMap::new();
        let mut end = 0;
        for record in text.split(TYPE) {
            let (start, name) = (end, record.split(TEXT).next().unwrap_or_default());
            end += record.len();
            types.insert(name.to_owned(), start + name.len()..end);
            end += TYPE.len_utf8();
        }
        Self { text, types }
    }

    /// The description of a type, or of one of its fields. Types are named as in OpenAPI, such as
    /// `io.k8s.api.core.v1.Pod`, fields as in JSON.
    pub fn get(&self, name: &str, field: Option<&str>) -> Option<&str> {
        let record = &self.text[self.types.get(name)?.clone()];
        let mut parts = record.split(FIELD);
        let text = match field {
            None => parts.next()?.strip_prefix(TEXT)?,
            Some(field) => {
                parts.skip(1).find_map(|part| part.strip_prefix(field)?.strip_prefix(TEXT))?
            }
        };
        (!text.is_empty()).then_some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_and_fields_are_found_by_their_names() {
        let all = Descriptions::unpack();
        let of = |name, field| all.get(name, field).unwrap_or_default();
        let port = "io.k8s.api.core.v1.ContainerPort";
        assert!(of(port, None).contains("network port"));
        assert!(of(port, Some("hostIP")).contains("host IP"));
        let spec = "io.k8s.api.apps.v1.DeploymentSpec";
        assert!(of(spec, Some("replicas")).contains("pods"));
        assert_eq!(all.get(spec, Some("replica")), None);
        assert_eq!(all.get(spec, Some("")), None);
        assert_eq!(all.get("io.k8s.api.apps.v1.Deploy", None), None);
        let crd = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";
        assert!(of(crd, Some("default")).contains("default value"));
    }

    #[test]
    fn what_lies_in_the_binary_is_small() {
        assert!(PACKED.len() < 400 << 10, "{} bytes", PACKED.len());
    }
}
