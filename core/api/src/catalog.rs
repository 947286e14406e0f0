//! The Catalog: one row per served (group, version, resource).
//!
//! An immutable value; a new one is made when a CustomResourceDefinition comes or goes. Rows are
//! shared, so that a request, a view and a plan can each hold the row they were decided on.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

const BUILTIN: &str = include_str!("../data/kinds.txt");
const SELECTABLE: &str = include_str!("../data/selectable.txt");

/// Whether objects of a kind live in namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// In a namespace.
    Namespaced,
    /// Cluster-wide.
    Cluster,
}

/// A resource without its version: how storage, authorization and controllers name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupResource<'a> {
    /// API group, empty for the core group.
    pub group: &'a str,
    /// Plural name.
    pub resource: &'a str,
}

impl fmt::Display for GroupResource<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.group {
            "" => f.write_str(self.resource),
            group => write!(f, "{}.{group}", self.resource),
        }
    }
}

/// A part of an object with an endpoint of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subresource {
    /// Its name, such as `status`.
    pub name: String,
    /// `apiVersion` of what it takes and answers.
    pub api_version: String,
    /// Kind of what it takes and answers.
    pub kind: String,
    /// Verbs it serves.
    pub verbs: Vec<String>,
}

/// One row of the Catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kind {
    /// API group, empty for the core group.
    pub group: String,
    /// Version.
    pub version: String,
    /// Kind, such as `Pod`.
    pub kind: String,
    /// Plural name, such as `pods`.
    pub plural: String,
    /// Singular name, such as `pod`.
    pub singular: String,
    /// Namespaced or cluster-wide.
    pub scope: Scope,
    /// Verbs served on the resource itself.
    pub verbs: Vec<String>,
    /// Short names, such as `po`.
    pub short_names: Vec<String>,
    /// Categories, such as `all`.
    pub categories: Vec<String>,
    /// Parts with endpoints of their own.
    pub subresources: Vec<Subresource>,
    /// Name of the type in the schema, such as `io.k8s.api.core.v1.Pod`.
    pub type_name: String,
    /// Paths that a field selector may name, beside `metadata.name` and `metadata.namespace`.
    pub selectable: Vec<String>,
    /// Whether a CustomResourceDefinition declared it.
    pub custom: bool,
}

impl Kind {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        match self.group.as_str() {
            "" => self.version.clone(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// The resource without its version.
    pub fn group_resource(&self) -> GroupResource<'_> {
        GroupResource { group: &self.group, resource: &self.plural }
    }

    /// The kind's name for error messages: `Deployment.apps`, `Pod`.
    pub fn group_kind(&self) -> String {
        match self.group.as_str() {
            "" => self.kind.clone(),
            group => format!("{}.{group}", self.kind),
        }
    }

    /// Whether objects live in namespaces.
    pub fn namespaced(&self) -> bool {
        self.scope == Scope::Namespaced
    }

    /// Whether the resource itself serves `verb`.
    pub fn serves(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }

    /// The subresource of that name.
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|sub| sub.name == name)
    }

    /// Whether writes to the object itself leave `status` alone.
    pub fn has_status(&self) -> bool {
        self.subresource("status").is_some()
    }

    /// Key prefix of all its objects, ending in `/`; the layout is upstream's, so that an existing
    /// cluster's data can be taken over.
    pub fn prefix(&self) -> String {
        let folder = match (self.group.as_str(), self.plural.as_str()) {
            ("", "replicationcontrollers") => "controllers",
            ("", "endpoints") => "services/endpoints",
            ("", "nodes") => "minions",
            ("", "services") => "services/specs",
            ("networking.k8s.io", "ingresses") => "ingress",
            ("events.k8s.io", "events") => "events",
            ("apiextensions.k8s.io" | "apiregistration.k8s.io", plural) => {
                return format!("/registry/{}/{plural}/", self.group);
            }
            (group, plural) if self.custom => return format!("/registry/{group}/{plural}/"),
            (_, plural) => plural,
        };
        format!("/registry/{folder}/")
    }

    /// Key of one object.
    pub fn key(&self, object: &ObjectKey) -> String {
        match object.namespace.as_str() {
            "" => format!("{}{}", self.prefix(), object.name),
            namespace => format!("{}{namespace}/{}", self.prefix(), object.name),
        }
    }

    /// Key prefix of the objects of one namespace; all objects when `namespace` is empty.
    pub fn namespace_prefix(&self, namespace: &str) -> String {
        match namespace {
            "" => self.prefix(),
            namespace => format!("{}{namespace}/", self.prefix()),
        }
    }
}

/// Which object of a kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Namespace, empty for cluster-wide kinds.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl ObjectKey {
    /// A key from its parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace.as_str() {
            "" => f.write_str(&self.name),
            namespace => write!(f, "{namespace}/{}", self.name),
        }
    }
}

/// All kinds served at one moment.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    kinds: Vec<Arc<Kind>>,
    by_resource: BTreeMap<(String, String, String), usize>,
}

impl Catalog {
    /// The kinds that every server has.
    pub fn builtin() -> Self {
        let mut rows: Vec<Kind> = Vec::new();
        for line in BUILTIN.lines().filter(|line| !line.starts_with('#')) {
            match (line.strip_prefix("  /"), rows.last_mut()) {
                (Some(line), Some(row)) => row.subresources.push(parse_subresource(line)),
                _ => rows.push(parse_kind(line)),
            }
        }
        for row in &mut rows {
            row.selectable = selectable(row);
        }
        Self::default().with(rows)
    }

    /// This catalog and more rows; a row of the same group, version and resource is replaced.
    #[must_use]
    pub fn with(mut self, rows: impl IntoIterator<Item = Kind>) -> Self {
        for row in rows {
            let key = (row.group.clone(), row.version.clone(), row.plural.clone());
            match self.by_resource.get(&key) {
                Some(&at) => self.kinds[at] = Arc::new(row),
                None => {
                    self.by_resource.insert(key, self.kinds.len());
                    self.kinds.push(Arc::new(row));
                }
            }
        }
        self
    }

    /// Every row, in a fixed order: groups of built-in kinds first.
    pub fn kinds(&self) -> impl Iterator<Item = &Arc<Kind>> {
        self.kinds.iter()
    }

    /// The row of a resource.
    pub fn resource(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Kind>> {
        let key = (group.to_owned(), version.to_owned(), plural.to_owned());
        self.by_resource.get(&key).map(|&at| &self.kinds[at])
    }

    /// The first version of a resource, whatever it is.
    pub fn preferred(&self, resource: GroupResource<'_>) -> Option<&Arc<Kind>> {
        self.kinds.iter().find(|kind| kind.group_resource() == resource)
    }

    /// The row of a kind by `apiVersion` and kind.
    pub fn kind(&self, api_version: &str, kind: &str) -> Option<&Arc<Kind>> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        self.kinds.iter().find(|k| k.kind == kind && k.group == group && k.version == version)
    }

    /// Groups with their versions, in catalog order.
    pub fn groups(&self) -> Vec<(&str, Vec<&str>)> {
        let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
        for kind in &self.kinds {
            let at = match groups.iter().position(|(group, _)| *group == kind.group) {
                Some(at) => at,
                None => {
                    groups.push((&kind.group, Vec::new()));
                    groups.len() - 1
                }
            };
            if !groups[at].1.contains(&kind.version.as_str()) {
                groups[at].1.push(&kind.version);
            }
        }
        for (group, versions) in &mut groups {
            if *group == "autoscaling" {
                versions.reverse();
            }
        }
        groups
    }
}

fn parse_kind(line: &str) -> Kind {
    let words: Vec<&str> = line.split(' ').collect();
    let [plural, group, version, kind, singular, scope, verbs, short, categories, type_name] =
        words[..]
    else {
        panic!("a row of kinds.txt has ten words: {line}")
    };
    Kind {
        group: undash(group),
        version: version.to_string(),
        kind: kind.to_string(),
        plural: plural.to_string(),
        singular: undash(singular),
        scope: if scope == "Namespaced" { Scope::Namespaced } else { Scope::Cluster },
        verbs: list(verbs),
        short_names: list(short),
        categories: list(categories),
        subresources: Vec::new(),
        type_name: undash(type_name),
        selectable: Vec::new(),
        custom: false,
    }
}

fn parse_subresource(line: &str) -> Subresource {
    let words: Vec<&str> = line.split(' ').collect();
    let [name, kind, verbs] = words[..] else {
        panic!("a subresource row of kinds.txt has three words: {line}")
    };
    let (api_version, kind) = kind.rsplit_once('.').expect("apiVersion.Kind");
    Subresource {
        name: name.to_string(),
        api_version: api_version.to_string(),
        kind: kind.to_string(),
        verbs: list(verbs),
    }
}

fn selectable(kind: &Kind) -> Vec<String> {
    let resource = kind.group_resource().to_string();
    let row = SELECTABLE.lines().find_map(|line| line.strip_prefix(&resource)?.strip_prefix(' '));
    row.unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

fn undash(word: &str) -> String {
    if word == "-" { String::new() } else { word.to_owned() }
}

fn list(word: &str) -> Vec<String> {
    undash(word).split(',').filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builtin_rows_are_found_by_resource_and_by_kind() {
        let catalog = Catalog::builtin();
        let deployments = catalog.resource("apps", "v1", "deployments").expect("served");
        assert_eq!(deployments.kind, "Deployment");
        assert_eq!(
            deployments.subresource("scale").expect("has scale").api_version,
            "autoscaling/v1"
        );
        assert_eq!(catalog.kind("v1", "Pod").expect("served").short_names, ["po"]);
        assert!(catalog.kind("v1", "Deployment").is_none());
    }

    #[test]
    fn keys_follow_upstreams_layout() {
        let catalog = Catalog::builtin();
        let key = |group, plural, object: &ObjectKey| {
            catalog
                .preferred(GroupResource { group, resource: plural })
                .expect("served")
                .key(object)
        };
        assert_eq!(key("", "pods", &ObjectKey::new("a", "b")), "/registry/pods/a/b");
        assert_eq!(key("", "nodes", &ObjectKey::new("", "n")), "/registry/minions/n");
        assert_eq!(key("", "services", &ObjectKey::new("a", "s")), "/registry/services/specs/a/s");
        assert_eq!(
            key("apiregistration.k8s.io", "apiservices", &ObjectKey::new("", "v1.apps")),
            "/registry/apiregistration.k8s.io/apiservices/v1.apps"
        );
    }
}
