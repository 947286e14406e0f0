//! Role-based access control: who may do what, from the RBAC objects as they are now.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use knarr_api::FieldSelector;
use serde_json::{Value, json};

use crate::object::{strings, text};
use crate::request::{RequestInfo, User};

/// What authorization is asked about.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attributes {
    pub(crate) verb: String,
    pub(crate) group: String,
    /// With the subresource: `pods/log`.
    pub(crate) resource: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// Set for requests about paths instead of resources.
    pub(crate) path: Option<String>,
}

/// The object that a request is about: a collection narrowed to one name counts as that object.
fn name_of(info: &RequestInfo) -> String {
    let many = ["list", "watch", "deletecollection"].contains(&info.verb);
    if !many || !info.object.name.is_empty() {
        return info.object.name.clone();
    }
    let fields = FieldSelector::parse(info.query.get("fieldSelector")).unwrap_or_default();
    fields.exact("metadata.name").unwrap_or_default().to_owned()
}

impl Attributes {
    pub(crate) fn of(info: &RequestInfo) -> Self {
        let resource = match info.subresource.as_str() {
            "" => info.resource.clone(),
            subresource => format!("{}/{subresource}", info.resource),
        };
        Self {
            verb: info.verb.to_owned(),
            group: info.group.clone(),
            resource,
            namespace: info.authz_namespace().to_owned(),
            name: name_of(info),
            path: (!info.is_resource()).then(|| info.path.clone()),
        }
    }

    /// Upstream's sentence for a refusal.
    pub(crate) fn refusal(&self, user: &User) -> String {
        let Self { verb, group, resource, namespace, path, .. } = self;
        let user = &user.name;
        match (path, namespace.as_str()) {
            (Some(path), _) => format!("User {user:?} cannot {verb} path {path:?}"),
            (None, "") => format!(
                "User {user:?} cannot {verb} resource {resource:?} in API group {group:?} \
                 at the cluster scope"
            ),
            (None, namespace) => format!(
                "User {user:?} cannot {verb} resource {resource:?} in API group {group:?} \
                 in the namespace {namespace:?}"
            ),
        }
    }
}

/// One PolicyRule.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rule {
    verbs: Vec<String>,
    groups: Vec<String>,
    resources: Vec<String>,
    names: Vec<String>,
    paths: Vec<String>,
}

impl Rule {
    pub(crate) fn of(rule: &Value) -> Self {
        Self {
            verbs: strings(rule, "/verbs"),
            groups: strings(rule, "/apiGroups"),
            resources: strings(rule, "/resources"),
            names: strings(rule, "/resourceNames"),
            paths: strings(rule, "/nonResourceURLs"),
        }
    }

    pub(crate) fn allows(&self, wanted: &Attributes) -> bool {
        let has = |list: &[String], word: &str| list.iter().any(|item| item == "*" || item == word);
        if !has(&self.verbs, &wanted.verb) {
            return false;
        }
        if let Some(path) = &wanted.path {
            return self.paths.iter().any(|rule| path_matches(rule, path));
        }
        has(&self.groups, &wanted.group)
            && (has(&self.resources, &wanted.resource) || self.any_resource_of(&wanted.resource))
            && (self.names.is_empty() || self.names.contains(&wanted.name))
    }

    /// Adds itself to the lists of a SelfSubjectRulesReview.
    pub(crate) fn list_into(&self, resources: &mut Vec<Value>, paths: &mut Vec<Value>) {
        if !self.paths.is_empty() {
            paths.push(json!({"verbs": self.verbs, "nonResourceURLs": self.paths}));
            return;
        }
        let mut rule =
            json!({"verbs": self.verbs, "apiGroups": self.groups, "resources": self.resources});
        if !self.names.is_empty() {
            rule["resourceNames"] = json!(self.names);
        }
        resources.push(rule);
    }

    /// `*/scale` stands for that subresource of everything.
    fn any_resource_of(&self, resource: &str) -> bool {
        let sub = resource.split_once('/').map(|(_, sub)| sub);
        sub.is_some_and(|sub| self.resources.iter().any(|r| r.strip_prefix("*/") == Some(sub)))
    }
}

fn path_matches(rule: &str, path: &str) -> bool {
    rule == "*" || rule == path || rule.strip_suffix('*').is_some_and(|head| path.starts_with(head))
}

#[derive(Clone, Debug)]
struct Binding {
    cluster_role: bool,
    role: String,
    subjects: Vec<Subject>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Subject {
    User(String),
    Group(String),
    ServiceAccount(String, String),
}

impl Subject {
    fn of(subject: &Value, namespace: &str) -> Option<Self> {
        let name = text(subject, "/name").to_owned();
        Some(match text(subject, "/kind") {
            "User" => Self::User(name),
            "Group" => Self::Group(name),
            "ServiceAccount" => {
                let own = text(subject, "/namespace");
                let namespace = if own.is_empty() { namespace } else { own };
                Self::ServiceAccount(namespace.to_owned(), name)
            }
            _ => return None,
        })
    }

    fn is(&self, user: &User) -> bool {
        match self {
            Self::User(name) => *name == user.name,
            Self::Group(group) => user.in_group(group),
            Self::ServiceAccount(namespace, name) => {
                user.service_account() == Some((namespace, name))
            }
        }
    }
}

/// All RBAC objects, ready to be asked. Keys are (namespace, name); cluster-wide ones have an
/// empty namespace.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rbac {
    roles: BTreeMap<(String, String), Vec<Rule>>,
    bindings: BTreeMap<(String, String), Binding>,
}

impl Rbac {
    /// Takes up one changed object; `None` when it was deleted.
    pub(crate) fn put(&mut self, plural: &str, key: (String, String), object: Option<&Value>) {
        match (plural, object) {
            ("roles" | "clusterroles", Some(role)) => {
                let rules = role["rules"].as_array().into_iter().flatten().map(Rule::of);
                self.roles.insert(key, rules.collect());
            }
            ("roles" | "clusterroles", None) => drop(self.roles.remove(&key)),
            (_, Some(binding)) => {
                let subjects = binding["subjects"].as_array().into_iter().flatten();
                let subjects = subjects.filter_map(|s| Subject::of(s, &key.0)).collect();
                let cluster_role = text(binding, "/roleRef/kind") == "ClusterRole";
                let role = text(binding, "/roleRef/name").to_owned();
                self.bindings.insert(key, Binding { cluster_role, role, subjects });
            }
            (_, None) => drop(self.bindings.remove(&key)),
        }
    }

    /// Whether `user` may do that.
    pub(crate) fn allows(&self, user: &User, wanted: &Attributes) -> bool {
        self.rules_for(user, &wanted.namespace).any(|rule| rule.allows(wanted))
    }

    /// Whether every user bound to this ClusterRole may do that.
    pub(crate) fn role_allows(&self, cluster_role: &str, wanted: &Attributes) -> bool {
        let rules = self.roles.get(&(String::new(), cluster_role.to_owned()));
        rules.into_iter().flatten().any(|rule| rule.allows(wanted))
    }

    /// The rules that hold for `user` in `namespace` (empty: at the cluster scope).
    pub(crate) fn rules_for<'a>(
        &'a self,
        user: &'a User,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a Rule> {
        let applies = move |scope: &str| scope.is_empty() || scope == namespace;
        self.bindings
            .iter()
            .filter(move |((scope, _), _)| applies(scope))
            .filter(move |(_, binding)| binding.subjects.iter().any(|subject| subject.is(user)))
            .flat_map(move |((scope, _), binding)| {
                let home = if binding.cluster_role { "" } else { scope };
                self.roles.get(&(home.to_owned(), binding.role.clone())).into_iter().flatten()
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn wanted(verb: &str, resource: &str, namespace: &str, name: &str) -> Attributes {
        Attributes {
            verb: verb.into(),
            resource: resource.into(),
            namespace: namespace.into(),
            name: name.into(),
            ..Attributes::default()
        }
    }

    #[test]
    fn a_collection_of_one_name_counts_as_that_object() {
        use crate::auth::Credential;
        use crate::request::{Method, Request};
        use knarr_api::Catalog;
        for (query, expected) in [
            ("watch=true&fieldSelector=metadata.name%3Dm", "m"),
            ("fieldSelector=metadata.name%3D%3Dm", "m"),
            ("fieldSelector=metadata.name%21%3Dm", ""),
            ("fieldSelector=metadata.namespace%3Dm", ""),
            ("", ""),
        ] {
            let path = "/api/v1/namespaces/a/configmaps";
            let mut request = Request::new(Method::Get, path, Credential::None);
            request.query = query.to_owned();
            let found = Attributes::of(&RequestInfo::parse(&request, &Catalog::builtin()));
            assert_eq!(found.name, expected, "{query}");
        }
    }

    #[test]
    fn bindings_give_exactly_their_roles() {
        let mut rbac = Rbac::default();
        let key = |namespace: &str, name: &str| (namespace.to_owned(), name.to_owned());
        let role = json!({"rules": [
            {"verbs": ["get"], "apiGroups": [""], "resources": ["pods", "*/scale"]},
            {"verbs": ["update"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["p"]},
            {"verbs": ["get"], "nonResourceURLs": ["/api/*", "/x"]}]});
        rbac.put("clusterroles", key("", "r"), Some(&role));
        let binding = json!({"roleRef": {"kind": "ClusterRole", "name": "r"},
            "subjects": [
                {"kind": "ServiceAccount", "name": "sa"}, {"kind": "Group", "name": "g"}]});
        rbac.put("rolebindings", key("ns", "b"), Some(&binding));
        let account = User::new("system:serviceaccount:ns:sa", &[]);
        let member = User::new("x", &["g"]);
        let other = User::new("x", &[]);
        for (user, attributes, expected) in [
            (&account, wanted("get", "pods", "ns", ""), true),
            (&member, wanted("get", "pods", "ns", ""), true),
            (&other, wanted("get", "pods", "ns", ""), false),
            (&account, wanted("get", "pods", "other", ""), false),
            (&account, wanted("get", "pods", "", ""), false),
            (&account, wanted("list", "pods", "ns", ""), false),
            (&account, wanted("get", "pods/log", "ns", ""), false),
            (&account, wanted("get", "things/scale", "ns", ""), true),
            (&account, wanted("update", "pods", "ns", "p"), true),
            (&account, wanted("update", "pods", "ns", "q"), false),
        ] {
            assert_eq!(rbac.allows(user, &attributes), expected, "{user:?} {attributes:?}");
        }
        rbac.put("rolebindings", key("ns", "b"), None);
        assert!(!rbac.allows(&member, &wanted("get", "pods", "ns", "")));
    }

    #[test]
    fn paths_are_matched_by_prefix_only_with_a_star() {
        for (rule, path, expected) in
            [("/api/*", "/api/v1", true), ("/api", "/api/v1", false), ("*", "/x", true)]
        {
            assert_eq!(path_matches(rule, path), expected, "{rule} {path}");
        }
    }
}
