//! OpenAPI documents with descriptions, made when somebody asks and kept compressed.
//!
//! Clients ask for the same few again and again, and making one means unpacking every description.
//! A document in JSON is up to two megabytes; compressed, a dozen take less than one of them.

use std::collections::VecDeque;
use std::io::{BufWriter, Read, Write as _};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;

use bytes::Bytes;
use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use knarr_api::Catalog;
use knarr_descriptions::Descriptions;
use knarr_registry::{OPENAPI_V2_PROTOBUF, Views, openapi_document};
use knarr_schema::{openapi_v2, openapi_v2_protobuf};

/// How many are kept; the one that was not asked for longest goes first.
const KEPT: usize = 12;

/// The documents made from one Catalog.
#[derive(Default)]
pub(crate) struct Documents(Mutex<Made>);

#[derive(Default)]
struct Made {
    catalog: Weak<Catalog>,
    /// Path and compressed document, the one asked for last at the end.
    packed: VecDeque<(String, Vec<u8>)>,
}

impl Documents {
    /// The document of a path such as `openapi/v3/apis/apps/v1`. Others wait while one is
    /// made, so that descriptions are unpacked once and not once per request.
    pub(crate) fn get(&self, views: &Views, path: &str) -> Option<Bytes> {
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A Weak holds on to the address, so that no other Catalog can get it.
        if made.catalog.as_ptr() != Arc::as_ptr(&views.catalog) {
            *made = Made { catalog: Arc::downgrade(&views.catalog), packed: VecDeque::new() };
        }
        let asked = match made.packed.iter().position(|(of, _)| of == path) {
            Some(at) => made.packed.remove(at).expect("at is its position"),
            None => (path.to_owned(), make_apart(views, path)?),
        };
        if made.packed.len() == KEPT {
            made.packed.pop_front();
        }
        let document = unpack(&asked.1);
        made.packed.push_back(asked);
        Some(document)
    }
}

/// Makes a document on a thread of its own and copies it out: what an allocator lends to a thread
/// goes back to the system when nothing of it is in use, whereas the ten megabytes that a document
/// takes for a moment, strewn among what others allocate, would stay with the process.
fn make_apart(views: &Views, path: &str) -> Option<Vec<u8>> {
    let made = thread::scope(|scope| scope.spawn(|| make(views, path)).join());
    made.expect("making a document does not panic").map(|packed| packed.as_slice().to_vec())
}

/// Makes a document, compressed as it is written, so that it is never whole in memory twice.
fn make(views: &Views, path: &str) -> Option<Vec<u8>> {
    let mut document = openapi_document(views, path)?;
    let descriptions = Descriptions::unpack();
    knarr_schema::describe(&mut document, |name, field| descriptions.get(name, field));
    drop(descriptions);
    if path.starts_with("openapi/v2") {
        document = openapi_v2(&document);
    }
    let mut out = BufWriter::new(DeflateEncoder::new(Vec::new(), Compression::default()));
    match path == OPENAPI_V2_PROTOBUF.trim_matches('/') {
        true => out.write_all(&openapi_v2_protobuf(&document)).expect("writing to memory"),
        false => serde_json::to_writer(&mut out, &document).expect("a tree has a JSON form"),
    }
    let encoder = out.into_inner().expect("writing to memory");
    Some(encoder.finish().expect("writing to memory"))
}

fn unpack(packed: &[u8]) -> Bytes {
    let mut document = Vec::new();
    DeflateDecoder::new(packed).read_to_end(&mut document).expect("pack made this");
    document.into()
}

#[cfg(test)]
mod tests {
    use knarr_schema::Schema;
    use serde_json::Value;

    use super::*;

    fn document(path: &str) -> Value {
        let views = Views::new(Schema::builtin());
        let bytes = Documents::default().get(&views, path).expect("it is served");
        serde_json::from_slice(&bytes).expect("it is JSON")
    }

    fn properties<'d>(document: &'d Value, name: &str) -> &'d Value {
        &document["components"]["schemas"][name]["properties"]
    }

    #[test]
    fn kinds_and_fields_are_explained() {
        let apps = document("openapi/v3/apis/apps/v1");
        let replicas = &properties(&apps, "io.k8s.api.apps.v1.DeploymentSpec")["replicas"];
        assert!(replicas["description"].as_str().expect("described").contains("pods"));
        let deployment = &apps["components"]["schemas"]["io.k8s.api.apps.v1.Deployment"];
        assert!(deployment["description"].as_str().expect("described").contains("ReplicaSets"));
        let spec = &deployment["properties"]["spec"];
        assert!(spec["description"].is_string() && spec.get("$ref").is_none(), "{spec}");
        let target = "#/components/schemas/io.k8s.api.apps.v1.DeploymentSpec";
        assert_eq!(spec["allOf"][0]["$ref"], target);
        let list = properties(&apps, "io.k8s.api.apps.v1.DeploymentList");
        assert!(list["kind"]["description"].is_string());
    }

    #[test]
    fn the_older_document_has_all_groups_and_refers_to_nothing_it_lacks() {
        let all = document("openapi/v2");
        let definitions = all["definitions"].as_object().expect("definitions");
        let text = Value::Object(definitions.clone()).to_string();
        for part in text.split("\"$ref\":\"").skip(1) {
            let name = part.split('"').next().and_then(|name| name.strip_prefix("#/definitions/"));
            assert!(definitions.contains_key(name.expect("a reference")), "{name:?}");
        }
        assert!(!text.contains("\"oneOf\":[") && !text.contains("\"allOf\":["));
        let of = |name: &str| definitions.get(name).expect("it is there");
        let spec = &of("io.k8s.api.apps.v1.Deployment")["properties"]["spec"];
        assert_eq!(spec["$ref"], "#/definitions/io.k8s.api.apps.v1.DeploymentSpec");
        assert!(spec["description"].is_string());
        let port = of("io.k8s.apimachinery.pkg.util.intstr.IntOrString");
        assert_eq!((&port["type"], &port["format"]), (&"string".into(), &"int-or-string".into()));
        assert!(definitions.contains_key("io.k8s.api.core.v1.ConfigMap"));
    }

    #[test]
    fn nearly_every_field_of_the_core_group_is_explained() {
        let core = document("openapi/v3/api/v1");
        let schemas = core["components"]["schemas"].as_object().expect("schemas");
        let types = schemas
            .iter()
            .filter(|(name, _)| name.starts_with("io.k8s.api.core.v1.") && !name.ends_with("List"));
        let fields: Vec<(String, bool)> = types
            .flat_map(|(of, schema)| {
                let properties = schema["properties"].as_object().into_iter().flatten();
                properties.map(move |(field, p)| {
                    (format!("{of}.{field}"), p["description"] != Value::Null)
                })
            })
            .collect();
        let bare: Vec<&String> = fields.iter().filter(|f| !f.1).map(|f| &f.0).collect();
        assert!(fields.len() > 800, "only {} fields", fields.len());
        assert!(bare.len() * 20 <= fields.len(), "{} of {}: {bare:#?}", bare.len(), fields.len());
    }

    #[test]
    fn documents_are_kept_for_one_catalog_and_no_more_than_fit() {
        let mut views = Views::new(Schema::builtin());
        let documents = Documents::default();
        let kept = || documents.0.lock().expect("nobody panicked").packed.len();
        let first = documents.get(&views, "openapi/v3/apis/apps/v1");
        assert_eq!(documents.get(&views, "openapi/v3/apis/apps/v1"), first);
        assert_eq!(documents.get(&views, "openapi/v3/apis/nobody/v1"), None);
        assert_eq!(kept(), 1);
        let groups = views.catalog.groups();
        let named = groups.iter().filter(|(group, _)| !group.is_empty());
        let paths =
            named.map(|(group, versions)| format!("openapi/v3/apis/{group}/{}", versions[0]));
        let paths: Vec<String> = paths.collect();
        assert!(paths.len() > KEPT);
        assert!(paths.iter().all(|path| documents.get(&views, path).is_some()));
        assert_eq!(kept(), KEPT);
        views.catalog = Arc::new(Catalog::builtin());
        assert_eq!(documents.get(&views, "openapi/v3/apis/apps/v1"), first);
        assert_eq!(kept(), 1);
    }
}
