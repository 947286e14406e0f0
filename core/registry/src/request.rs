//! What came in, and what it means: method and path become verb, kind, namespace, name.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use bytes::Bytes;
use knarr_api::{Catalog, Kind, ObjectKey};
use knarr_mvcc::Revision;

use crate::auth::Credential;

/// The HTTP methods that the API knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the methods")]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Patch,
    Delete,
    Options,
}

/// One request, as the shell read it from the wire or a component made it in process.
#[derive(Clone, Debug)]
pub struct Request {
    /// Method.
    pub method: Method,
    /// Path, still percent-encoded, without the query.
    pub path: String,
    /// Query, still percent-encoded, without the `?`.
    pub query: String,
    /// `Accept`.
    pub accept: String,
    /// `Content-Type` of the body.
    pub content_type: String,
    /// The body; YAML bodies have been turned into JSON by the shell.
    pub body: Bytes,
    /// Who says who they are, and how.
    pub credential: Credential,
    /// When the cluster is to be looked at, as the header `Knarr-At` says it; empty is now.
    pub at: String,
}

impl Request {
    /// A request of a component in process; JSON in and out.
    pub fn new(method: Method, path: impl Into<String>, credential: Credential) -> Self {
        Self {
            method,
            path: path.into(),
            query: String::new(),
            accept: "application/json".to_owned(),
            content_type: "application/json".to_owned(),
            body: Bytes::new(),
            credential,
            at: String::new(),
        }
    }

    /// Whether the state as of `have` will do, though others may have been told of a newer one: a
    /// read that names an older revision asks for no more, and the pages about the process show no
    /// objects. Everything else, and be it for its authorisation, must see all that came before it.
    pub fn content_with(&self, have: Revision) -> bool {
        if self.path.starts_with("/at/") || !self.at.is_empty() {
            return false;
        }
        if !self.path.starts_with("/api") {
            return self.path != "/readyz";
        }
        let reads = matches!(self.method, Method::Get | Method::Head);
        let wanted = || Query::parse(&self.query).get("resourceVersion").parse();
        reads && wanted().is_ok_and(|wanted| Revision(wanted) <= have)
    }

    /// Takes the moment out of a path that begins with one: `/at/WHEN/api/…`.
    pub(crate) fn take_moment(&mut self) {
        let Some(rest) = self.path.strip_prefix("/at/") else { return };
        let (at, rest) = rest.split_once('/').unwrap_or((rest, ""));
        self.at = percent_decode(at, Plus::Itself);
        self.path = format!("/{rest}");
    }
}

/// An authenticated user (authentication.k8s.io UserInfo).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// Name.
    pub name: String,
    /// Unique id, may be empty.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// Whatever else the authenticator knows.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// A user with groups; `system:authenticated` is added.
    pub fn new(name: impl Into<String>, groups: &[&str]) -> Self {
        let authenticated = core::iter::once(&"system:authenticated");
        let groups = groups.iter().chain(authenticated).map(ToString::to_string).collect();
        Self { name: name.into(), groups, ..Self::default() }
    }

    /// The user of a request without credentials.
    pub fn anonymous() -> Self {
        let groups = ["system:unauthenticated".to_owned()].into();
        Self { name: "system:anonymous".to_owned(), groups, ..Self::default() }
    }

    /// Whether the user is in `group`.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// Namespace and name, when this is a service account.
    pub fn service_account(&self) -> Option<(&str, &str)> {
        self.name.strip_prefix("system:serviceaccount:")?.split_once(':')
    }
}

/// Query parameters, decoded, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (percent_decode(key, Plus::Space), percent_decode(value, Plus::Space))
        });
        Self(pairs.collect())
    }

    /// The first value of `key`; empty when absent.
    pub(crate) fn get(&self, key: &str) -> &str {
        self.all(key).next().unwrap_or_default()
    }

    pub(crate) fn all<'a>(&'a self, key: &str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.all(key).next().is_some()
    }

    /// As Go's ParseBool has it, and `1` values; absent is false.
    pub(crate) fn flag(&self, key: &str) -> bool {
        matches!(self.get(key), "true" | "1" | "True" | "TRUE" | "t" | "T")
    }
}

/// Whether `+` stands for a space (in queries) or itself (in paths).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Plus {
    Space,
    Itself,
}

/// Decodes `%XX`; what does not decode stands as it is.
fn percent_decode(text: &str, plus: Plus) -> String {
    let hex = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let pair = bytes.get(at + 1..at + 3).and_then(|pair| Some((hex(pair[0])?, hex(pair[1])?)));
        match (bytes[at], pair) {
            (b'%', Some((high, low))) => {
                out.push(high << 4 | low);
                at += 2;
            }
            (b'+', _) if plus == Plus::Space => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// What a request is about.
#[derive(Clone, Debug)]
pub struct RequestInfo {
    /// The verb as authorization knows it (`get`, `list`, `watch`, `create`, …).
    pub verb: &'static str,
    /// The row, for requests about resources that are served.
    pub kind: Option<Arc<Kind>>,
    /// API group as it stands in the path.
    pub group: String,
    /// Plural resource name as it stands in the path; empty for other paths.
    pub resource: String,
    /// Which object; the name is empty for collections.
    pub object: ObjectKey,
    /// Subresource, empty for the object itself.
    pub subresource: String,
    /// What follows the subresource (`proxy/…`).
    pub rest: String,
    /// The whole path, decoded.
    pub path: String,
    /// Query parameters.
    pub(crate) query: Query,
}

impl RequestInfo {
    /// Reads method, path and query.
    pub(crate) fn parse(request: &Request, catalog: &Catalog) -> Self {
        let query = Query::parse(&request.query);
        let path = percent_decode(&request.path, Plus::Itself);
        let parts: Vec<String> = request
            .path
            .split('/')
            .filter(|part| !part.is_empty())
            .map(|part| percent_decode(part, Plus::Itself))
            .collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let mut info = Self {
            verb: plain_verb(request.method),
            kind: None,
            group: String::new(),
            resource: String::new(),
            object: ObjectKey::default(),
            subresource: String::new(),
            rest: String::new(),
            path,
            query,
        };
        let (version, rest) = match parts[..] {
            ["api", version, ref rest @ ..] => (version, rest),
            ["apis", group, version, ref rest @ ..] => {
                info.group = group.to_owned();
                (version, rest)
            }
            _ => return info,
        };
        info.read_resource(rest, version, request.method, catalog);
        info
    }

    fn read_resource(&mut self, parts: &[&str], version: &str, method: Method, catalog: &Catalog) {
        // The deprecated watch prefix: /api/v1/watch/…
        let (watched, parts) = match parts {
            ["watch", rest @ ..] if !rest.is_empty() => (true, rest),
            parts => (false, parts),
        };
        let (namespace, parts) = match parts {
            // /namespaces/NAME and its own subresources are about the namespace itself.
            ["namespaces", namespace] => ("", ["namespaces", namespace].to_vec()),
            ["namespaces", namespace, sub @ ("status" | "finalize")] => {
                ("", ["namespaces", namespace, sub].to_vec())
            }
            ["namespaces", namespace, rest @ ..] => (*namespace, rest.to_vec()),
            parts => ("", parts.to_vec()),
        };
        let [resource, ref rest @ ..] = parts[..] else { return };
        self.resource = resource.to_owned();
        self.kind = catalog.resource(&self.group, version, resource).cloned();
        let word = |at: usize| rest.get(at).map_or("", |part| part).to_owned();
        self.object = ObjectKey::new(namespace, word(0));
        self.subresource = word(1);
        self.rest = rest.get(2..).unwrap_or_default().join("/");
        if self.resource == "namespaces" && !self.object.name.is_empty() {
            // The authorizer sees a namespace as being inside itself.
            self.object.namespace.clear();
        }
        let watched = watched || self.query.flag("watch");
        self.verb = match (method, self.object.name.as_str(), watched) {
            (Method::Get | Method::Head, "", true) => "watch",
            (Method::Get | Method::Head, _, true) if self.subresource.is_empty() => "watch",
            (Method::Get | Method::Head, "", _) => "list",
            (Method::Get | Method::Head, ..) => "get",
            (Method::Post, ..) => "create",
            (Method::Put, ..) => "update",
            (Method::Patch, ..) => "patch",
            (Method::Delete, "", _) => "deletecollection",
            (Method::Delete, ..) => "delete",
            (Method::Options, ..) => "options",
        };
    }

    /// Whether the path is one of a resource, served or not.
    pub fn is_resource(&self) -> bool {
        !self.resource.is_empty()
    }

    /// The namespace that authorization looks at.
    pub(crate) fn authz_namespace(&self) -> &str {
        let itself = self.resource == "namespaces" && self.group.is_empty();
        if itself { &self.object.name } else { &self.object.namespace }
    }
}

fn plain_verb(method: Method) -> &'static str {
    match method {
        Method::Get => "get",
        Method::Head => "head",
        Method::Post => "post",
        Method::Put => "put",
        Method::Patch => "patch",
        Method::Delete => "delete",
        Method::Options => "options",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(method: Method, target: &str) -> String {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut request = Request::new(method, path, Credential::None);
        request.query = query.to_owned();
        let info = RequestInfo::parse(&request, &Catalog::builtin());
        let kind = info.kind.map_or("-".to_owned(), |kind| kind.kind.clone());
        format!("{} {kind} {} {}|{}", info.verb, info.object, info.subresource, info.rest)
    }

    #[test]
    fn paths_become_verbs_and_objects() {
        let cases = [
            (Method::Get, "/api/v1/pods", "list Pod  |"),
            (Method::Get, "/api/v1/namespaces/a/pods?watch=true", "watch Pod a/ |"),
            (Method::Get, "/api/v1/namespaces/a/pods/b/log", "get Pod a/b log|"),
            (Method::Put, "/api/v1/namespaces/a/status", "update Namespace a status|"),
            (Method::Get, "/api/v1/namespaces/a", "get Namespace a |"),
            (Method::Post, "/apis/apps/v1/namespaces/a/deployments", "create Deployment a/ |"),
            (
                Method::Delete,
                "/apis/apps/v1/namespaces/a/deployments",
                "deletecollection Deployment a/ |",
            ),
            (Method::Get, "/api/v1/nodes/n/proxy/a/b", "get Node n proxy|a/b"),
            (Method::Get, "/apis/x.io/v1/things", "list -  |"),
            (Method::Get, "/healthz", "get -  |"),
            (Method::Get, "/api/v1/pods/a%2Fb", "get Pod a/b |"),
        ];
        for (method, target, expected) in cases {
            assert_eq!(shown(method, target), expected, "{target}");
        }
    }
}
