//! The paths of a document: which operations a kind has, with which bodies and parameters.
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde_json::{Map, Value, json};

use super::{ApiKind, ApiSubresource, META, Scope, gvk, reference};
use crate::table::Schema;

const MEDIA_TYPES: [&str; 3] =
    ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
const PATCH_TYPES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

/// One operation on a path: the HTTP method and what it takes and gives.
struct Verb {
    /// As RBAC says it.
    name: &'static str,
    method: &'static str,
    /// `x-kubernetes-action`
    action: &'static str,
    body: Body,
    answer: Answer,
    parameters: &'static [&'static str],
}

#[derive(Clone, Copy)]
enum Body {
    None,
    Object,
    Patch,
    DeleteOptions,
}

#[derive(Clone, Copy)]
enum Answer {
    Object,
    List,
    Status,
}

const PATCHING: &[&str] = &["dryRun", "fieldManager", "fieldValidation", "force"];
const WRITING: &[&str] = &["dryRun", "fieldManager", "fieldValidation"];
const LISTING: &[&str] = &[
    "allowWatchBookmarks",
    "continue",
    "fieldSelector",
    "labelSelector",
    "limit",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "timeoutSeconds",
    "watch",
];
const CLEARING: &[&str] = &[
    "continue",
    "dryRun",
    "fieldSelector",
    "gracePeriodSeconds",
    "ignoreStoreReadErrorWithClusterBreakingPotential",
    "labelSelector",
    "limit",
    "orphanDependents",
    "propagationPolicy",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "timeoutSeconds",
];
const DELETING: &[&str] = &[
    "dryRun",
    "gracePeriodSeconds",
    "ignoreStoreReadErrorWithClusterBreakingPotential",
    "orphanDependents",
    "propagationPolicy",
];

const fn verb(
    [name, method, action]: [&'static str; 3],
    body: Body,
    answer: Answer,
    parameters: &'static [&'static str],
) -> Verb {
    Verb { name, method, action, body, answer, parameters }
}

static LIST: Verb = verb(["list", "get", "list"], Body::None, Answer::List, LISTING);
static CREATE: Verb = verb(["create", "post", "post"], Body::Object, Answer::Object, WRITING);
static CLEAR: Verb = verb(
    ["deletecollection", "delete", "deletecollection"],
    Body::DeleteOptions,
    Answer::Status,
    CLEARING,
);
static GET: Verb = verb(["get", "get", "get"], Body::None, Answer::Object, &[]);
static UPDATE: Verb = verb(["update", "put", "put"], Body::Object, Answer::Object, WRITING);
static PATCH: Verb = verb(["patch", "patch", "patch"], Body::Patch, Answer::Object, PATCHING);
static DELETE: Verb =
    verb(["delete", "delete", "delete"], Body::DeleteOptions, Answer::Status, DELETING);

static COLLECTION: [&Verb; 3] = [&LIST, &CREATE, &CLEAR];
static ITEM: [&Verb; 4] = [&GET, &UPDATE, &PATCH, &DELETE];
static SUBRESOURCE: [&Verb; 5] = [&GET, &UPDATE, &PATCH, &DELETE, &CREATE];

/// Where a kind is served, and how its operations are named.
struct Served<'a> {
    schema: &'a Schema,
    group: &'a str,
    version: &'a str,
    kind: &'a ApiKind,
}

/// One path: its parameters and the body of its operations.
struct Target<'a> {
    path: String,
    /// Placeholders in the path.
    names: &'a [&'a str],
    gvk: (&'a str, &'a str, &'a str),
    subresource: &'a str,
}

/// Adds every path of a kind.
pub(super) fn add(
    schema: &Schema,
    group: &str,
    version: &str,
    kind: &ApiKind,
    paths: &mut Map<String, Value>,
) {
    let root = match group {
        "" => format!("/api/{version}"),
        _ => format!("/apis/{group}/{version}"),
    };
    let (home, space, named): (_, &[&str], &[&str]) = match kind.scope {
        Scope::Namespaced => ("/namespaces/{namespace}", &["namespace"], &["name", "namespace"]),
        Scope::Cluster => ("", &[], &["name"]),
    };
    let served = Served { schema, group, version, kind };
    let collection = format!("{root}{home}/{}", kind.plural);
    let item = format!("{collection}/{{name}}");
    let own = (group, version, kind.kind.as_str());
    let target = |path, names, gvk, subresource| Target { path, names, gvk, subresource };
    let verbs = &kind.verbs;
    served.add(&COLLECTION, verbs, target(collection, space, own, ""), paths);
    served.add(&ITEM, verbs, target(item.clone(), named, own, ""), paths);
    if kind.scope == Scope::Namespaced {
        let everywhere = format!("{root}/{}", kind.plural);
        served.add(&COLLECTION[..1], verbs, target(everywhere, &[], own, ""), paths);
    }
    for ApiSubresource { name, gvk: (g, v, k), verbs } in &kind.subresources {
        let target = target(format!("{item}/{name}"), named, (g, v, k), name);
        served.add(&SUBRESOURCE, verbs, target, paths);
    }
}

impl Served<'_> {
    /// Adds one path with the operations that are served.
    fn add(
        &self,
        verbs: &[&Verb],
        served: &[String],
        target: Target<'_>,
        paths: &mut Map<String, Value>,
    ) {
        let mut item = Map::new();
        for verb in verbs.iter().filter(|verb| served.iter().any(|s| s == verb.name)) {
            item.insert(verb.method.to_string(), self.operation(verb, &target));
        }
        if item.is_empty() {
            return;
        }
        let mut parameters: Vec<Value> = target.names.iter().map(|name| path_name(name)).collect();
        parameters.push(query("pretty"));
        item.insert("parameters".to_string(), parameters.into());
        paths.insert(target.path, item.into());
    }

    fn operation(&self, verb: &Verb, target: &Target<'_>) -> Value {
        let (group, version, kind) = target.gvk;
        let answer = match verb.answer {
            Answer::Object => self.component(target.gvk, ""),
            Answer::List => self.component(target.gvk, "List"),
            Answer::Status => format!("{META}.Status"),
        };
        let parameters: Vec<Value> = verb.parameters.iter().map(|name| query(name)).collect();
        let mut out = json!({
            "operationId": self.operation_id(verb, target),
            "tags": [format!("{}_{}", self.group_word(), self.version)],
            "parameters": parameters,
            "responses": {
                "200": {"description": "OK", "content": content(&MEDIA_TYPES, &answer)},
                "401": {"description": "Unauthorized"},
            },
            "x-kubernetes-action": verb.action,
            "x-kubernetes-group-version-kind": gvk(group, version, kind),
        });
        let body = match verb.body {
            Body::None => return out,
            Body::Object => content(&["*/*"], &self.component(target.gvk, "")),
            Body::DeleteOptions => content(&["*/*"], &format!("{META}.DeleteOptions")),
            Body::Patch => content(&PATCH_TYPES, &format!("{META}.Patch")),
        };
        out["requestBody"] = json!({"content": body});
        out
    }

    /// Name of the component of a kind, or of its list.
    fn component(&self, (group, version, kind): (&str, &str, &str), suffix: &str) -> String {
        let id = self.schema.kind_type(group, version, kind);
        let name = id.map(|id| self.schema.get(id).name.as_str());
        format!("{}{suffix}", name.unwrap_or(kind))
    }

    /// `apps`, `rbacAuthorization`, `core`
    fn group_word(&self) -> String {
        let mut labels = self.group.trim_end_matches(".k8s.io").split('.');
        let first = labels.next().filter(|first| !first.is_empty()).unwrap_or("core");
        labels.fold(first.to_string(), |word, label| word + &capital(label))
    }

    /// `patchAppsV1NamespacedDeploymentStatus`
    fn operation_id(&self, verb: &Verb, target: &Target<'_>) -> String {
        let (verb, place) = match verb.name {
            "get" => ("read", ""),
            "update" => ("replace", ""),
            "deletecollection" => ("delete", "Collection"),
            other => (other, ""),
        };
        let everywhere = target.names.is_empty() && self.kind.scope == Scope::Namespaced;
        let (namespaced, suffix) = match self.kind.scope {
            Scope::Namespaced if everywhere => ("", "ForAllNamespaces"),
            Scope::Namespaced => ("Namespaced", ""),
            Scope::Cluster => ("", ""),
        };
        let (group, version) = (capital(&self.group_word()), capital(self.version));
        let (kind, sub) = (&self.kind.kind, capital(target.subresource));
        format!("{verb}{group}{version}{place}{namespaced}{kind}{sub}{suffix}")
    }
}

fn capital(word: &str) -> String {
    let mut chars = word.chars();
    let first = chars.next().map(|c| c.to_ascii_uppercase());
    first.into_iter().chain(chars).collect()
}

fn content(media_types: &[&str], component: &str) -> Value {
    let entry = |media: &&str| (media.to_string(), json!({"schema": reference(component)}));
    Value::Object(media_types.iter().map(entry).collect())
}

fn path_name(name: &str) -> Value {
    json!({
        "name": name, "in": "path", "required": true,
        "schema": {"type": "string", "uniqueItems": true},
    })
}

fn query(name: &str) -> Value {
    let kind = match name {
        "limit" | "timeoutSeconds" | "gracePeriodSeconds" => "integer",
        "allowWatchBookmarks"
        | "force"
        | "ignoreStoreReadErrorWithClusterBreakingPotential"
        | "orphanDependents"
        | "sendInitialEvents"
        | "watch" => "boolean",
        _ => "string",
    };
    json!({"name": name, "in": "query", "schema": {"type": kind, "uniqueItems": true}})
}
