//! Discovery: what a server says about itself. Everything is made from the Catalog.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use knarr_api::{Catalog, Kind, Status, Subresource};
use knarr_schema::{ApiKind, ApiSubresource, Scope};
use serde_json::{Value, json};

use crate::call::World;
use crate::request::{Request, RequestInfo};
use crate::response::Response;
use crate::views::Views;

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// The page that has the older OpenAPI document as protobuf; the document is the same.
pub const OPENAPI_V2_PROTOBUF: &str = "/openapi/v2.pb";

/// Serves the paths that are not about resources.
pub(crate) fn serve(
    world: &World<'_>,
    request: &Request,
    info: &RequestInfo,
) -> Result<Response, Status> {
    let catalog = world.catalog();
    let parts: Vec<&str> = info.path.split('/').filter(|part| !part.is_empty()).collect();
    if info.verb != "get" && info.verb != "head" {
        return Err(Status::no_such_path());
    }
    let aggregated = request.accept.contains("as=APIGroupDiscoveryList")
        && request.accept.contains("v=v2")
        && !request.accept.starts_with("application/json,");
    let json = |tree: Value| Ok(Response::json(200, &tree));
    match parts[..] {
        ["version"] => json(version(world)),
        ["api" | "apis"] if aggregated => {
            let mut response = Response::json(200, &aggregated_groups(catalog, parts[0] == "api"));
            response.content_type = AGGREGATED;
            Ok(response)
        }
        ["api"] => json(json!({"kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs":
                [{"clientCIDR": "0.0.0.0/0", "serverAddress": world.config.advertise}]})),
        ["apis"] => json(group_list(catalog)),
        ["api", version] => resource_list(catalog, "", version).map(|t| Response::json(200, &t)),
        ["apis", group] => groups(catalog)
            .into_iter()
            .find(|found| found["name"] == group)
            .map(|mut found| {
                found["kind"] = "APIGroup".into();
                found["apiVersion"] = "v1".into();
                Response::json(200, &found)
            })
            .ok_or_else(Status::no_such_path),
        ["apis", group, version] => {
            resource_list(catalog, group, version).map(|tree| Response::json(200, &tree))
        }
        ["openapi", "v2"] => {
            let mut page = own_page(info);
            if request.accept.contains("openapi.spec.v2@v1.0+protobuf") {
                page.body = crate::response::Body::Own(OPENAPI_V2_PROTOBUF.to_owned());
            }
            Ok(page)
        }
        ["openapi", "v3"] => json(openapi_index(world)),
        ["openapi", "v3", "api", version] => openapi(catalog, info, "", version),
        ["openapi", "v3", "apis", group, version] => openapi(catalog, info, group, version),
        ["healthz" | "livez" | "readyz", ..]
        | ["metrics"]
        | [".well-known", "openid-configuration"]
        | ["openid", "v1", "jwks"] => Ok(own_page(info)),
        [] => json(json!({"paths": ["/api", "/apis", "/healthz", "/livez", "/metrics",
            "/openapi/v2", "/openapi/v3", "/readyz", "/version"]})),
        _ => Err(Status::no_such_path()),
    }
}

/// A page that the shell makes.
fn own_page(info: &RequestInfo) -> Response {
    let mut response = Response::text(200, "");
    response.body = crate::response::Body::Own(info.path.clone());
    response
}

fn version(world: &World<'_>) -> Value {
    let version = &world.config.version;
    json!({"major": "1", "minor": "36", "emulationMajor": "1", "emulationMinor": "36",
        "minCompatibilityMajor": "1", "minCompatibilityMinor": "35", "gitVersion": version,
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "", "goVersion": "",
        "compiler": "rustc", "platform": "linux/amd64"})
}

fn group_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// Every named group, without kind and apiVersion.
fn groups(catalog: &Catalog) -> Vec<Value> {
    let named = catalog.groups().into_iter().filter(|(group, _)| !group.is_empty());
    named
        .map(|(group, versions)| {
            let entry = |v: &&str| json!({"groupVersion": group_version(group, v), "version": v});
            let versions: Vec<Value> = versions.iter().map(entry).collect();
            json!({"name": group, "preferredVersion": versions[0], "versions": versions})
        })
        .collect()
}

fn group_list(catalog: &Catalog) -> Value {
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups(catalog)})
}

fn served<'a>(catalog: &'a Catalog, group: &str, version: &str) -> Vec<&'a Kind> {
    let all = catalog.kinds().map(|kind| &**kind);
    all.filter(|kind| kind.group == group && kind.version == version).collect()
}

fn resource_list(catalog: &Catalog, group: &str, version: &str) -> Result<Value, Status> {
    let kinds = served(catalog, group, version);
    if kinds.is_empty() {
        return Err(Status::no_such_path());
    }
    let resources: Vec<Value> = kinds.into_iter().flat_map(resources).collect();
    let name = group_version(group, version);
    Ok(json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": name,
        "resources": resources}))
}

/// A kind and its subresources as APIResources.
fn resources(kind: &Kind) -> Vec<Value> {
    let mut own = json!({"name": kind.plural, "singularName": kind.singular,
        "namespaced": kind.namespaced(), "kind": kind.kind, "verbs": kind.verbs});
    if !kind.short_names.is_empty() {
        own["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        own["categories"] = json!(kind.categories);
    }
    let subs = kind.subresources.iter().map(|sub| {
        let (group, version) = split(&sub.api_version);
        let mut entry = json!({"name": format!("{}/{}", kind.plural, sub.name),
            "singularName": "", "namespaced": kind.namespaced(), "kind": sub.kind,
            "verbs": sub.verbs});
        if sub.api_version != kind.api_version() {
            entry["group"] = group.into();
            entry["version"] = version.into();
        }
        entry
    });
    core::iter::once(own).chain(subs).collect()
}

fn split(api_version: &str) -> (String, String) {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    (group.to_owned(), version.to_owned())
}

/// APIGroupDiscoveryList: everything in one answer.
fn aggregated_groups(catalog: &Catalog, core: bool) -> Value {
    let groups = catalog.groups().into_iter().filter(|(group, _)| group.is_empty() == core);
    let items: Vec<Value> = groups
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|version| {
                    let kinds = served(catalog, group, version).into_iter();
                    json!({"version": version, "freshness": "Current",
                        "resources": kinds.map(discovered).collect::<Vec<_>>()})
                })
                .collect();
            let metadata = if core { json!({}) } else { json!({"name": group}) };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {}, "items": items})
}

fn discovered(kind: &Kind) -> Value {
    let scope = if kind.namespaced() { "Namespaced" } else { "Cluster" };
    let own = json!({"group": kind.group, "version": kind.version, "kind": kind.kind});
    let mut entry = json!({"resource": kind.plural, "responseKind": own, "scope": scope,
        "singularResource": kind.singular, "verbs": kind.verbs});
    for (key, list) in [("shortNames", &kind.short_names), ("categories", &kind.categories)] {
        if !list.is_empty() {
            entry[key] = json!(list);
        }
    }
    if !kind.subresources.is_empty() {
        entry["subresources"] = kind.subresources.iter().map(discovered_sub).collect();
    }
    entry
}

fn discovered_sub(sub: &Subresource) -> Value {
    let (group, version) = split(&sub.api_version);
    json!({"subresource": sub.name, "verbs": sub.verbs,
        "responseKind": {"group": group, "version": version, "kind": sub.kind}})
}

/// `/openapi/v3`: a hash per document, so that clients cache.
fn openapi_index(world: &World<'_>) -> Value {
    let mut paths = serde_json::Map::new();
    for (group, versions) in world.catalog().groups() {
        for version in versions {
            let path = match group {
                "" => format!("api/{version}"),
                group => format!("apis/{group}/{version}"),
            };
            let text = format!("{:?}", served(world.catalog(), group, version));
            let hash = fingerprint(text.as_bytes(), world.config.version.as_bytes());
            paths.insert(
                path.clone(),
                json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={hash:016X}")}),
            );
        }
    }
    json!({"paths": paths})
}

/// FNV-1a: tells documents apart, protects nothing.
fn fingerprint(text: &[u8], salt: &[u8]) -> u64 {
    let bytes = text.iter().chain(salt);
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The shell keeps documents once they are made; here is decided whether there is one.
fn openapi(
    catalog: &Catalog,
    info: &RequestInfo,
    group: &str,
    version: &str,
) -> Result<Response, Status> {
    match served(catalog, group, version)[..] {
        [] => Err(Status::no_such_path()),
        _ => Ok(own_page(info)),
    }
}

/// The OpenAPI document of the path `/openapi/v3/{api/v1|apis/GROUP/VERSION}`, or for `/openapi/v2`
/// the components of all of them; `None` where there is none. It has no descriptions: see
/// [`knarr_schema::describe`].
pub fn openapi_document(views: &Views, path: &str) -> Option<Value> {
    let document = |group: &str, version: &str| {
        let kinds = served(&views.catalog, group, version);
        let kinds: Vec<ApiKind> = kinds.into_iter().map(api_kind).collect();
        (!kinds.is_empty()).then(|| views.schema.openapi_v3(group, version, &kinds))
    };
    let path = path.trim_matches('/');
    if path.starts_with("openapi/v2") {
        let groups = views.catalog.groups();
        let each = groups.iter().flat_map(|(group, versions)| {
            versions.iter().filter_map(|version| document(group, version))
        });
        let components = each.filter_map(|mut each| match each["components"]["schemas"].take() {
            Value::Object(schemas) => Some(schemas),
            _ => None,
        });
        let all: serde_json::Map<String, Value> = components.flatten().collect();
        return Some(json!({"components": {"schemas": all}}));
    }
    let (root, group_version) = path.strip_prefix("openapi/v3/")?.split_once('/')?;
    match root {
        "api" => document("", group_version),
        _ => group_version.split_once('/').and_then(|(group, version)| document(group, version)),
    }
}

fn api_kind(kind: &Kind) -> ApiKind {
    let subresources = kind.subresources.iter().map(|sub| {
        let (group, version) = split(&sub.api_version);
        let gvk: (String, String, String) = (group, version, sub.kind.to_string());
        ApiSubresource { name: sub.name.clone(), gvk, verbs: sub.verbs.clone() }
    });
    ApiKind {
        kind: kind.kind.clone(),
        plural: kind.plural.clone(),
        scope: if kind.namespaced() { Scope::Namespaced } else { Scope::Cluster },
        verbs: kind.verbs.clone(),
        subresources: subresources.collect(),
    }
}
