//! Requests that are not plain reads and writes of objects: reviews, bindings, evictions, tokens;
//! what only a node or a Pod can answer is in `streams`.

use alloc::borrow::ToOwned;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use knarr_api::{GroupResource, Kind, ObjectKey, Status};
use serde_json::{Value, json};

use crate::auth::{self, Claims, Credential};
use crate::call::{Answer, Ask, Next, World};
use crate::delete::DeleteOptions;
use crate::lens::Lens;
use crate::meta::seconds;
use crate::object::{set, strings, text, tree_at};
use crate::rbac::Attributes;
use crate::request::{Request, RequestInfo, User};
use crate::response::Response;
use crate::streams;
use crate::write::{Operation, Write, dry_run};

const MAX_TOKEN_SECONDS: i64 = 1 << 32;
const MIN_TOKEN_SECONDS: i64 = 600;

/// A request that waits for the shell's answer.
pub(crate) enum Pending {
    /// The TokenRequest that will carry the signed token.
    Token(Value),
    /// The TokenReview that will carry the verdict.
    Review(Value),
}

/// Serves the request if it is a special one.
pub(crate) fn serve(
    world: &World<'_>,
    request: &Request,
    info: &RequestInfo,
    user: &User,
) -> Result<Option<Next>, Status> {
    let Some(kind) = &info.kind else { return Ok(None) };
    let body = |request: &Request| typed(body(request)?, kind, &info.subresource);
    let done = |response: Response| Ok(Some(Next::Done(response)));
    match (info.group.as_str(), info.resource.as_str(), info.subresource.as_str()) {
        ("authorization.k8s.io", "selfsubjectrulesreviews", _) => {
            done(rules_review(world, body(request)?, user))
        }
        ("authorization.k8s.io", ..) => done(access_review(world, info, body(request)?, user)),
        ("authentication.k8s.io", "selfsubjectreviews", _) => {
            let mut review = body(request)?;
            set(&mut review, &["status", "userInfo"], user_info(user));
            done(Response::json(201, &review))
        }
        ("authentication.k8s.io", "tokenreviews", _) => token_review(body(request)?).map(Some),
        ("", "serviceaccounts", "token") => token_request(world, info, body(request)?).map(Some),
        ("", "pods", "binding") => {
            let pod = info.object.clone();
            bind(world, kind, pod, &body(request)?, info, user).map(Some)
        }
        ("", "bindings", _) => {
            let binding = body(request)?;
            let name = text(&binding, "/metadata/name");
            let pod = ObjectKey::new(&info.object.namespace, name);
            let pods = GroupResource { group: "", resource: "pods" };
            let kind = world.catalog().preferred(pods).ok_or_else(Status::no_such_path)?;
            bind(world, &kind.clone(), pod, &binding, info, user).map(Some)
        }
        ("", "pods", "eviction") => evict(world, kind, info, &body(request)?, user).map(Some),
        ("", "pods", "log") => done(streams::log(world, kind, info, &request.query)?),
        ("", "pods", "exec" | "attach" | "portforward") => {
            done(streams::session(world, kind, info, user)?)
        }
        ("", "componentstatuses", _) => done(Response::json(
            200,
            &json!({
            "kind": "ComponentStatusList", "apiVersion": "v1", "metadata": {}, "items": []}),
        )),
        ("", _, "proxy") => done(streams::proxy(world, kind, info, request)?),
        _ => Ok(None),
    }
}

/// Goes on with what the shell answered.
pub(crate) fn answered(
    world: &World<'_>,
    pending: Pending,
    answer: Answer,
) -> Result<Next, Status> {
    match (pending, answer) {
        (Pending::Token(mut request), Answer::Signed(token)) => {
            set(&mut request, &["status", "token"], token.into());
            Ok(Next::Done(Response::json(201, &request)))
        }
        (Pending::Review(mut review), Answer::Verified(claims)) => {
            let found = claims
                .ok_or_else(|| "invalid bearer token".to_owned())
                .map(Credential::ServiceAccount)
                .and_then(|c| auth::authenticate(world, &c).map_err(|status| status.message));
            match found {
                Ok(user) => {
                    set(&mut review, &["status", "authenticated"], true.into());
                    set(&mut review, &["status", "user"], user_info(&user));
                    let audiences = review["spec"]["audiences"].clone();
                    set(&mut review, &["status", "audiences"], audiences);
                }
                Err(why) => set(&mut review, &["status"], json!({"error": why, "user": {}})),
            }
            Ok(Next::Done(Response::json(201, &review)))
        }
        _ => Err(Status::internal("an answer that nobody waited for")),
    }
}

fn body(request: &Request) -> Result<Value, Status> {
    serde_json::from_slice(&request.body).map_err(|error| Status::bad_request(format!("{error}")))
}

/// Names the kind, which what comes back is to say too.
fn typed(mut tree: Value, kind: &Kind, subresource: &str) -> Result<Value, Status> {
    if !tree.is_object() {
        return Err(Status::bad_request("the body is not an object"));
    }
    let sub = kind.subresource(subresource);
    let own = (kind.api_version(), kind.kind.clone());
    let (api_version, name) = sub.map_or(own, |s| (s.api_version.clone(), s.kind.clone()));
    tree["apiVersion"] = api_version.into();
    tree["kind"] = name.into();
    Ok(tree)
}

fn user_info(user: &User) -> Value {
    let mut info = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        info["uid"] = user.uid.as_str().into();
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}

fn attributes(spec: &Value) -> Attributes {
    let resource = &spec["resourceAttributes"];
    let plain = spec.get("nonResourceAttributes");
    let word = |key: &str| text(resource, &format!("/{key}")).to_owned();
    Attributes {
        verb: plain.map_or_else(|| word("verb"), |plain| text(plain, "/verb").to_owned()),
        group: word("group"),
        resource: match text(resource, "/subresource") {
            "" => word("resource"),
            sub => format!("{}/{sub}", word("resource")),
        },
        namespace: word("namespace"),
        name: word("name"),
        path: plain.map(|plain| text(plain, "/path").to_owned()),
    }
}

/// SubjectAccessReview and its two kin.
fn access_review(
    world: &World<'_>,
    info: &RequestInfo,
    mut review: Value,
    asker: &User,
) -> Response {
    let spec = &review["spec"];
    let own = info.resource == "selfsubjectaccessreviews";
    let subject = if own { asker.clone() } else { subject(spec) };
    let allowed = auth::allowed(world, &subject, &attributes(spec));
    review["status"] = json!({"allowed": allowed});
    Response::json(201, &review)
}

fn subject(spec: &Value) -> User {
    let extra = spec["extra"].as_object().into_iter().flatten();
    let extra: BTreeMap<String, Vec<String>> =
        extra.map(|(key, list)| (key.clone(), strings(list, ""))).collect();
    User {
        name: text(spec, "/user").to_owned(),
        uid: text(spec, "/uid").to_owned(),
        groups: strings(spec, "/groups"),
        extra,
    }
}

fn rules_review(world: &World<'_>, mut review: Value, user: &User) -> Response {
    let namespace = text(&review, "/spec/namespace").to_owned();
    let everything = user.in_group("system:masters");
    let mut rules: Vec<Value> = Vec::new();
    let mut paths: Vec<Value> = Vec::new();
    if everything {
        rules.push(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}));
        paths.push(json!({"verbs": ["*"], "nonResourceURLs": ["*"]}));
    }
    for rule in world.views.rbac.rules_for(user, &namespace) {
        rule.list_into(&mut rules, &mut paths);
    }
    review["status"] =
        json!({"resourceRules": rules, "nonResourceRules": paths, "incomplete": false});
    Response::json(201, &review)
}

fn token_review(review: Value) -> Result<Next, Status> {
    let token = text(&review, "/spec/token").to_owned();
    if token.is_empty() {
        return Err(Status::bad_request("token is required for TokenReview in authentication"));
    }
    let audiences = strings(&review, "/spec/audiences");
    Ok(Next::Ask(Ask::VerifyToken { token, audiences }, Box::new(Pending::Review(review))))
}

/// A TokenRequest for a service account, possibly bound to a Pod.
fn token_request(
    world: &World<'_>,
    info: &RequestInfo,
    mut request: Value,
) -> Result<Next, Status> {
    let namespace = &info.object.namespace;
    let find = |resource: &str, name: &str| {
        let resource = GroupResource { group: "", resource };
        let kind = world.catalog().preferred(resource).ok_or_else(Status::no_such_path)?;
        let object = world.snapshot.tree(kind, &ObjectKey::new(namespace, name));
        object.ok_or_else(|| Status::not_found(resource, name))
    };
    let account = find("serviceaccounts", &info.object.name)?;
    let uid = |object: &Value| text(object, "/metadata/uid").to_owned();
    let bound = &request["spec"]["boundObjectRef"];
    let mut claims = Claims {
        namespace: namespace.clone(),
        name: info.object.name.clone(),
        uid: uid(&account),
        id: crate::meta::uid(world.seed),
        ..Claims::default()
    };
    if text(bound, "/kind") == "Pod" {
        let name = text(bound, "/name").to_owned();
        let pod = find("pods", &name)?;
        let wanted = text(bound, "/uid");
        if !wanted.is_empty() && wanted != uid(&pod) {
            let pods = GroupResource { group: "", resource: "pods" };
            let why = format!(
                "the UID in the bound object reference ({wanted}) does not match the UID in \
                 record. The object might have been deleted and then recreated"
            );
            return Err(Status::conflict(pods, &name, &why));
        }
        claims.pod = Some((name, uid(&pod)));
    }
    let seconds_wanted = request["spec"]["expirationSeconds"].as_i64().unwrap_or(3600);
    if seconds_wanted < MIN_TOKEN_SECONDS {
        let why = "may not specify a duration less than 10 minutes";
        return Err(invalid_token_request(&info.object.name, seconds_wanted, why));
    }
    if seconds_wanted > MAX_TOKEN_SECONDS {
        let why = "may not specify a duration larger than 2^32 seconds";
        return Err(invalid_token_request(&info.object.name, seconds_wanted, why));
    }
    let ends = world.now.as_second() + seconds_wanted;
    let ends = jiff::Timestamp::from_second(ends).unwrap_or(world.now);
    set(&mut request, &["status", "expirationTimestamp"], seconds(ends).into());
    let audiences = strings(&request, "/spec/audiences");
    let ask = Ask::SignToken { claims, audiences, seconds: seconds_wanted };
    Ok(Next::Ask(ask, Box::new(Pending::Token(request))))
}

fn invalid_token_request(name: &str, seconds: i64, why: &str) -> Status {
    let text = format!(
        "TokenRequest.authentication.k8s.io {name:?} is invalid: spec.expirationSeconds: Invalid \
         value: {seconds}: {why}"
    );
    Status::new(knarr_api::Reason::Invalid, text)
}

/// Binds a Pod to a node: only once, and only while it waits.
fn bind(
    world: &World<'_>,
    kind: &Arc<Kind>,
    pod: ObjectKey,
    binding: &Value,
    info: &RequestInfo,
    user: &User,
) -> Result<Next, Status> {
    let node = text(binding, "/target/name").to_owned();
    if node.is_empty() {
        return Err(Status::bad_request("Binding is invalid: target.name: Required value"));
    }
    let operation = Operation::Bind { node, uid: text(binding, "/metadata/uid").to_owned() };
    let write = Write::bare(kind.clone(), Lens::Whole, user.clone(), operation, pod);
    started(world, write.answering_status(dry_run(info)?))
}

/// The object that a binding makes of a Pod.
pub(crate) fn bound(
    kind: &Kind,
    pod: &Value,
    node: &str,
    uid: &str,
    world: &World<'_>,
) -> Result<Value, Status> {
    let name = text(pod, "/metadata/name");
    let conflict = |why: String| Status::conflict(kind.group_resource(), name, &why);
    let found = text(pod, "/metadata/uid");
    if !uid.is_empty() && uid != found {
        return Err(conflict(format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {found}"
        )));
    }
    if !text(pod, "/metadata/deletionTimestamp").is_empty() {
        return Err(conflict(format!("pod {name} is being deleted, cannot be assigned to a host")));
    }
    match text(pod, "/spec/nodeName") {
        "" => {}
        other => {
            return Err(conflict(format!("pod {name} is already assigned to node {other:?}")));
        }
    }
    let mut pod = pod.clone();
    set(&mut pod, &["spec", "nodeName"], node.into());
    let mut conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.retain(|condition| condition["type"] != "PodScheduled");
    conditions.push(json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null,
        "lastTransitionTime": seconds(world.now)}));
    set(&mut pod, &["status", "conditions"], conditions.into());
    Ok(pod)
}

/// An eviction is a delete that a disruption budget may refuse.
fn evict(
    world: &World<'_>,
    kind: &Arc<Kind>,
    info: &RequestInfo,
    eviction: &Value,
    user: &User,
) -> Result<Next, Status> {
    let pod = world.snapshot.get(kind, &info.object);
    let pod = pod.ok_or_else(|| Status::not_found(kind.group_resource(), &info.object.name))?;
    let pod = tree_at(kind, &pod)?;
    if budget_forbids(world, &pod) {
        return Err(crate::admission::too_many_disruptions(&info.object.name));
    }
    let options = serde_json::to_vec(&eviction["deleteOptions"]).unwrap_or_default();
    let options = if eviction["deleteOptions"].is_object() { options } else { Vec::new() };
    let options = DeleteOptions::parse(&options, info)?;
    let dry = dry_run(info)? || options.dry_run;
    let operation = Operation::Evict(options);
    let write =
        Write::bare(kind.clone(), Lens::Object, user.clone(), operation, info.object.clone());
    started(world, write.answering_status(dry))
}

fn budget_forbids(world: &World<'_>, pod: &Value) -> bool {
    let budgets = GroupResource { group: "policy", resource: "poddisruptionbudgets" };
    let Some(kind) = world.catalog().preferred(budgets) else { return false };
    if matches!(text(pod, "/status/phase"), "Succeeded" | "Failed" | "Pending") {
        return false;
    }
    let namespace = text(pod, "/metadata/namespace");
    let all = world.snapshot.prefix(&kind.namespace_prefix(namespace));
    all.iter().filter_map(|kv| crate::object::tree(&kv.value).ok()).any(|budget| {
        let selector = knarr_api::LabelSelector::from_object(&budget["spec"]["selector"]);
        let meant = selector.is_some_and(|selector| selector.matches(&pod["metadata"]["labels"]));
        meant && budget.pointer("/status/disruptionsAllowed").and_then(Value::as_i64) < Some(1)
    })
}

fn started(world: &World<'_>, write: Write) -> Result<Next, Status> {
    let mut write = Box::new(write);
    let step = write.start(world)?;
    Ok(Next::Write(write, step))
}
