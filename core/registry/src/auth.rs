//! Who is asking, and whether they may: authentication and authorization.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use knarr_api::{GroupResource, ObjectKey, Reason, Status};
use serde_json::Value;
use subtle::ConstantTimeEq;

use crate::call::World;
use crate::object::text;
use crate::rbac::Attributes;
use crate::request::{RequestInfo, User};

/// What a request brought to show who sends it. Signatures are checked by the shell; whether the
/// bearer still exists is checked here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// Nothing.
    None,
    /// A client certificate that the cluster's CA signed.
    Certificate {
        /// The subject's common name: the user.
        name: String,
        /// The subject's organizations: the groups.
        groups: alloc::vec::Vec<String>,
    },
    /// A bearer token that is not one of ours by its form or signature.
    Token(String),
    /// A service account token whose signature, audience and lifetime are right.
    ServiceAccount(Claims),
    /// A component of this process.
    Component(User),
}

/// The private claims of a service account token (`kubernetes.io`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// Namespace of the account.
    pub namespace: String,
    /// Name of the account.
    pub name: String,
    /// Uid of the account; a later account of the same name is somebody else.
    pub uid: String,
    /// Name and uid of the Pod the token is bound to.
    pub pod: Option<(String, String)>,
    /// Name and uid of the node that Pod ran on.
    pub node: Option<(String, String)>,
    /// The token's own id.
    pub id: String,
}

/// Finds out who sends a request.
pub(crate) fn authenticate(world: &World<'_>, credential: &Credential) -> Result<User, Status> {
    match credential {
        Credential::None => Ok(User::anonymous()),
        Credential::Component(user) => Ok(user.clone()),
        Credential::Certificate { name, groups } => {
            let groups: alloc::vec::Vec<&str> = groups.iter().map(String::as_str).collect();
            Ok(User::new(name, &groups))
        }
        Credential::ServiceAccount(claims) => service_account(world, claims),
        Credential::Token(token) => bootstrap_token(world, token),
    }
}

fn unauthorized() -> Status {
    Status::new(Reason::Unauthorized, "Unauthorized")
}

/// A service account that still exists, and so does the Pod its token is bound to.
fn service_account(world: &World<'_>, claims: &Claims) -> Result<User, Status> {
    let has_uid = |resource: &str, name: &str, uid: &str| {
        let kind = world.catalog().preferred(GroupResource { group: "", resource })?;
        let object = world.snapshot.tree(kind, &ObjectKey::new(&claims.namespace, name))?;
        (text(&object, "/metadata/uid") == uid).then_some(())
    };
    has_uid("serviceaccounts", &claims.name, &claims.uid).ok_or_else(unauthorized)?;
    if let Some((name, uid)) = &claims.pod {
        has_uid("pods", name, uid).ok_or_else(unauthorized)?;
    }
    let namespace = &claims.namespace;
    let groups = ["system:serviceaccounts", &format!("system:serviceaccounts:{namespace}")];
    let mut user = User::new(format!("system:serviceaccount:{namespace}:{}", claims.name), &groups);
    user.uid = claims.uid.clone();
    let mut extra = |key: &str, value: &str| {
        let key = format!("authentication.kubernetes.io/{key}");
        user.extra.insert(key, [value.to_owned()].into());
    };
    extra("credential-id", &format!("JTI={}", claims.id));
    for (what, bound) in [("pod", &claims.pod), ("node", &claims.node)] {
        if let Some((name, uid)) = bound {
            extra(&format!("{what}-name"), name);
            extra(&format!("{what}-uid"), uid);
        }
    }
    Ok(user)
}

/// A bootstrap token: a Secret `bootstrap-token-ID` in kube-system that is not expired.
fn bootstrap_token(world: &World<'_>, token: &str) -> Result<User, Status> {
    let (id, secret) = token.split_once('.').ok_or_else(unauthorized)?;
    let plain = |word: &str, length: usize| {
        word.len() == length && word.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
    };
    if !plain(id, 6) || !plain(secret, 16) {
        return Err(unauthorized());
    }
    let secrets = GroupResource { group: "", resource: "secrets" };
    let kind = world.catalog().preferred(secrets).ok_or_else(unauthorized)?;
    let name = format!("bootstrap-token-{id}");
    let object = world.snapshot.tree(kind, &ObjectKey::new("kube-system", name));
    let object = object.ok_or_else(unauthorized)?;
    let data = |key: &str| secret_data(&object, key).unwrap_or_default();
    let same = data("token-secret").as_bytes().ct_eq(secret.as_bytes());
    let expired = data("expiration").parse::<jiff::Timestamp>().is_ok_and(|at| at <= world.now);
    let usable = text(&object, "/type") == "bootstrap.kubernetes.io/token"
        && data("usage-bootstrap-authentication") == "true"
        && text(&object, "/metadata/deletionTimestamp").is_empty();
    if !bool::from(same) || expired || !usable {
        return Err(unauthorized());
    }
    let extra = data("auth-extra-groups");
    let extra = extra.split(',').filter(|group| group.starts_with("system:bootstrappers:"));
    let groups: alloc::vec::Vec<&str> = ["system:bootstrappers"].into_iter().chain(extra).collect();
    Ok(User::new(format!("system:bootstrap:{id}"), &groups))
}

fn secret_data(secret: &Value, key: &str) -> Option<String> {
    let text = secret.get("data")?.get(key)?.as_str()?;
    String::from_utf8(STANDARD.decode(text).ok()?).ok()
}

/// Asks RBAC, and for nodes the rules of their role.
pub(crate) fn authorize(world: &World<'_>, user: &User, info: &RequestInfo) -> Result<(), Status> {
    let wanted = Attributes::of(info);
    if allowed(world, user, &wanted) {
        return Ok(());
    }
    let resource = GroupResource { group: &info.group, resource: &info.resource };
    Err(Status::forbidden(resource, &info.object.name, &wanted.refusal(user)))
}

pub(crate) fn allowed(world: &World<'_>, user: &User, wanted: &Attributes) -> bool {
    let rbac = &world.views.rbac;
    user.in_group("system:masters")
        || rbac.allows(user, wanted)
        || node_of(user).is_some_and(|node| {
            rbac.role_allows("system:node", wanted) && node_concerns(world, node, wanted)
        })
}

/// The node that a user is, when it is one.
pub(crate) fn node_of(user: &User) -> Option<&str> {
    user.name.strip_prefix("system:node:").filter(|_| user.in_group("system:nodes"))
}

/// The Node authorizer: what a node may read of others' secrets is what its own Pods refer to.
fn node_concerns(world: &World<'_>, node: &str, wanted: &Attributes) -> bool {
    let named: fn(&Value, &str) -> bool = match (wanted.group.as_str(), wanted.resource.as_str()) {
        ("", "secrets") => refers_to_secret,
        ("", "configmaps") => refers_to_config_map,
        ("", "serviceaccounts" | "serviceaccounts/token") => {
            |pod, name| text(pod, "/spec/serviceAccountName") == name
        }
        _ => return true,
    };
    let pods = GroupResource { group: "", resource: "pods" };
    let Some(kind) = world.catalog().preferred(pods) else { return false };
    if wanted.name.is_empty() || wanted.namespace.is_empty() {
        return false;
    }
    let all = world.snapshot.prefix(&kind.namespace_prefix(&wanted.namespace));
    let pods = all.iter().filter_map(|kv| crate::object::tree(&kv.value).ok());
    pods.into_iter().any(|pod| text(&pod, "/spec/nodeName") == node && named(&pod, &wanted.name))
}

/// Whether some object below `tree` has `field` with this name in it: references stand at many
/// places (volumes, projections, env, envFrom), all under a few field names.
fn refers(tree: &Value, fields: &[&str], name: &str) -> bool {
    match tree {
        Value::Object(object) => object.iter().any(|(key, value)| {
            let own = fields.contains(&key.as_str())
                && (value["name"] == name || value["secretName"] == name);
            own || refers(value, fields, name)
        }),
        Value::Array(list) => list.iter().any(|value| refers(value, fields, name)),
        _ => false,
    }
}

fn refers_to_secret(pod: &Value, name: &str) -> bool {
    let pulls = pod["spec"]["imagePullSecrets"].as_array();
    pulls.into_iter().flatten().any(|secret| secret["name"] == name)
        || refers(&pod["spec"], &["secret", "secretRef", "secretKeyRef"], name)
}

fn refers_to_config_map(pod: &Value, name: &str) -> bool {
    refers(&pod["spec"], &["configMap", "configMapRef", "configMapKeyRef"], name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::Config;
    use crate::object::Snapshot;
    use crate::views::Views;
    use alloc::string::ToString;
    use alloc::vec::Vec;
    use knarr_mvcc::{Command, Keyspace, LeaseId, Op, Txn};
    use knarr_schema::Schema;
    use serde_json::json;

    fn put(keyspace: &mut Keyspace, key: &str, object: &Value) {
        let (key, value) = (key.as_bytes().to_vec().into(), object.to_string().into());
        let success = Vec::from([Op::Put { key, value, lease: LeaseId(0) }]);
        let index = keyspace.index() + 1;
        keyspace.apply(index, &Command::Txn(Txn { success, ..Txn::default() })).expect("applied");
    }

    /// Runs a check in a world with these objects, at 2026-01-01.
    fn in_world<R>(objects: &[(&str, Value)], check: impl FnOnce(&World<'_>) -> R) -> R {
        let mut keyspace = Keyspace::new();
        objects.iter().for_each(|(key, object)| put(&mut keyspace, key, object));
        let snapshot = Snapshot::new(&keyspace, keyspace.revision());
        let mut views = Views::new(Schema::builtin());
        views.advance(snapshot);
        let word = || "x".to_owned();
        let config = Config {
            version: word(),
            issuer: word(),
            advertise: word(),
            service_cidrs: Vec::new(),
            node_ports: 30_000..=32_767,
        };
        let now = "2026-01-01T00:00:00Z".parse().expect("a time");
        check(&World { snapshot, views: &views, config: &config, now, seed: 1 })
    }

    fn token_secret(change: impl FnOnce(&mut Value)) -> Value {
        let mut data = json!({"token-id": "abcdef", "token-secret": "0123456789abcdef",
            "usage-bootstrap-authentication": "true"});
        change(&mut data);
        for (_, value) in data.as_object_mut().into_iter().flatten() {
            *value = STANDARD.encode(value.as_str().unwrap_or_default()).into();
        }
        json!({"metadata": {"name": "bootstrap-token-abcdef", "namespace": "kube-system"},
            "type": "bootstrap.kubernetes.io/token", "data": data})
    }

    #[test]
    fn a_bootstrap_token_is_taken_only_whole_alive_and_for_this_use() {
        let good = "abcdef.0123456789abcdef";
        type Change = fn(&mut Value);
        let cases: [(&str, Change, bool); 6] = [
            (good, |_| {}, true),
            ("abcdef.0123456789abcdee", |_| {}, false),
            ("abcdee.0123456789abcdef", |_| {}, false),
            (good, |data| data["expiration"] = "2025-12-31T23:59:59Z".into(), false),
            (good, |data| data["expiration"] = "2026-01-01T00:00:01Z".into(), true),
            (good, |data| data["usage-bootstrap-authentication"] = "false".into(), false),
        ];
        for (token, change, expected) in cases {
            let key = "/registry/secrets/kube-system/bootstrap-token-abcdef";
            let user = in_world(&[(key, token_secret(change))], |world| {
                authenticate(world, &Credential::Token(token.to_owned()))
            });
            assert_eq!(user.is_ok(), expected, "{token}");
            if let Ok(user) = user {
                assert!(user.in_group("system:bootstrappers"));
            }
        }
    }

    #[test]
    fn a_node_reads_only_what_its_own_pods_refer_to() {
        let pod = |node: &str| {
            json!({"metadata": {"name": "p", "namespace": "a"}, "spec": {"nodeName": node,
                "serviceAccountName": "sa", "volumes": [{"secret": {"secretName": "vol"}}],
                "containers": [{"envFrom": [{"secretRef": {"name": "env"}}]}]}})
        };
        let role = json!({"metadata": {"name": "system:node"}, "rules": [{"verbs": ["*"],
            "apiGroups": [""], "resources": ["secrets", "pods"]}]});
        let objects =
            [("/registry/pods/a/p", pod("n")), ("/registry/clusterroles/system:node", role)];
        let node = |name: &str| User::new(alloc::format!("system:node:{name}"), &["system:nodes"]);
        let wanted = |resource: &str, name: &str| Attributes {
            verb: "get".to_owned(),
            resource: resource.to_owned(),
            namespace: "a".to_owned(),
            name: name.to_owned(),
            ..Attributes::default()
        };
        in_world(&objects, |world| {
            for (user, resource, name, expected) in [
                ("n", "secrets", "vol", true),
                ("n", "secrets", "env", true),
                ("n", "secrets", "other", false),
                ("n", "secrets", "", false),
                ("m", "secrets", "vol", false),
                ("m", "pods", "p", true),
            ] {
                let found = allowed(world, &node(user), &wanted(resource, name));
                assert_eq!(found, expected, "{user} {resource} {name}");
            }
        });
    }
}
