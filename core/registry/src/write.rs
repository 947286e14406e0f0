//! Writes: create, update, patch, delete, deletecollection; on objects and on their parts.
//!
//! One engine for all of them: decide on the live object, commit if it is still live, else decide
//! again on what it has become.

use alloc::borrow::ToOwned;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use bytes::Bytes;
use knarr_api::{Cause, Kind, ObjectKey, Reason, Status};
use knarr_mvcc::{
    Compare, CompareOp, CompareTarget, KeyRange, KeyValue, LeaseId, Op, OpResponse, Query,
    Revision, Txn, TxnResponse,
};
use knarr_schema::{FieldIssue, TypeId, strict_error};
use serde_json::{Value, json};

use crate::call::{Step, World};
use crate::claims::Claims;
use crate::delete::{self, DeleteOptions, Fate};
use crate::lens::Lens;
use crate::object::{set_revision, text, tree_at};
use crate::patch::Patch;
use crate::read::{Rendering, list_metadata, object_response, selected};
use crate::request::{Request, RequestInfo, User};
use crate::response::Response;
use crate::{admission, kinds, meta, special, stored};

/// A generated name that is taken is made anew this often.
const NAME_ATTEMPTS: u32 = 8;
/// A write that loses this many races in a row is given up.
const MAX_ATTEMPTS: u32 = 100;

/// What is to be done.
#[derive(Clone, Debug)]
pub(crate) enum Operation {
    Create(Value),
    Update(Value),
    Patch(Patch),
    Delete(DeleteOptions),
    /// A delete that answers as one through the eviction endpoint.
    Evict(DeleteOptions),
    /// Puts a Pod on a node.
    Bind {
        node: String,
        uid: String,
    },
}

/// What happens to fields that the type does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

/// One object's write, between decision and commit.
struct Decided {
    /// What will be stored; `None` deletes the key.
    stored: Option<Bytes>,
    /// What is answered; the revision is added.
    shown: Bytes,
    /// HTTP status code of success.
    code: u16,
    key: String,
    existed: bool,
    claims: Claims,
}

/// A write on its way.
pub(crate) struct Write {
    pub(crate) kind: Arc<Kind>,
    pub(crate) lens: Lens,
    pub(crate) user: User,
    operation: Operation,
    target: ObjectKey,
    queue: VecDeque<KeyValue>,
    collection: Option<Vec<Bytes>>,
    dry_run: bool,
    validation: FieldValidation,
    rendering: Rendering,
    warnings: Vec<String>,
    names_tried: u32,
    races_lost: u32,
    decided: Option<Decided>,
    /// The object's own transaction, while one before it runs.
    prepared: Option<Txn>,
    status_only: bool,
}

impl Write {
    /// Reads the request.
    pub(crate) fn new(
        world: &World<'_>,
        request: &Request,
        info: &RequestInfo,
        user: &User,
    ) -> Result<Self, Status> {
        let kind = info.kind.clone().ok_or_else(Status::no_such_path)?;
        let lens = Lens::of(&kind, &info.subresource).ok_or_else(Status::no_such_path)?;
        let operation = match info.verb {
            "create" => Operation::Create(Value::Null),
            "update" => Operation::Update(Value::Null),
            "patch" => Operation::Patch(Patch::parse(&request.content_type, &request.body)?),
            _ => Operation::Delete(DeleteOptions::parse(&request.body, info)?),
        };
        let mut write = Self::bare(kind, lens, user.clone(), operation, info.object.clone());
        write.rendering = Rendering::of(&request.accept);
        write.dry_run = dry_run(info)?;
        write.validation = match info.query.get("fieldValidation") {
            "Ignore" => FieldValidation::Ignore,
            "" | "Warn" => FieldValidation::Warn,
            "Strict" => FieldValidation::Strict,
            other => {
                let allowed = ["", "Ignore", "Strict", "Warn"];
                let cause = Cause::not_supported("fieldValidation", &other.into(), &allowed);
                return Err(Status::invalid_options(options_kind(info), &[cause]));
            }
        };
        if let Operation::Create(_) | Operation::Update(_) = write.operation {
            let tree = write.decode(world, &request.body)?;
            match &mut write.operation {
                Operation::Create(into) | Operation::Update(into) => *into = tree,
                _ => {}
            }
        }
        if info.verb == "deletecollection" {
            write.queue = selected(world, info, &write.kind)?.into();
            write.collection = Some(Vec::new());
        }
        if let Operation::Delete(options) = &mut write.operation {
            write.dry_run |= options.dry_run;
            write.status_only = true;
        }
        Ok(write)
    }

    /// A write that the server itself makes for a request.
    pub(crate) fn bare(
        kind: Arc<Kind>,
        lens: Lens,
        user: User,
        operation: Operation,
        target: ObjectKey,
    ) -> Self {
        Self {
            kind,
            lens,
            user,
            operation,
            target,
            queue: VecDeque::new(),
            collection: None,
            dry_run: false,
            validation: FieldValidation::Ignore,
            rendering: Rendering::Object,
            warnings: Vec::new(),
            names_tried: 0,
            races_lost: 0,
            decided: None,
            prepared: None,
            status_only: false,
        }
    }

    /// Makes it answer with a Status instead of the object.
    pub(crate) fn answering_status(mut self, dry_run: bool) -> Self {
        self.status_only = true;
        self.dry_run = dry_run;
        self
    }

    /// The first attempt.
    pub(crate) fn start(&mut self, world: &World<'_>) -> Result<Step, Status> {
        if self.collection.is_some() {
            return self.next_of_collection(world);
        }
        let live = match self.operation {
            Operation::Create(_) => None,
            _ => world.snapshot.get(&self.kind, &self.target),
        };
        self.attempt(world, live)
    }

    /// A commit came back: done, or the next attempt.
    pub(crate) fn committed(
        &mut self,
        world: &World<'_>,
        response: TxnResponse,
    ) -> Result<Step, Status> {
        if let Some(txn) = self.prepared.take() {
            return match response.succeeded {
                true => Ok(Step::Commit(txn)),
                false => self.raced(world, world.snapshot.get(&self.kind, &self.target)),
            };
        }
        let decided = self.decided.take().expect("a commit was decided");
        if response.succeeded {
            return self.finish(world, decided, response.revision);
        }
        let mut found = response.responses.into_iter().filter_map(|response| match response {
            OpResponse::Range(found) => Some(found.kvs.into_iter().next()),
            _ => None,
        });
        let live = found.next().flatten();
        if let (None, Some(None)) = (&live, found.next()) {
            return Err(admission::namespace_missing(&self.target.namespace));
        }
        self.raced(world, live)
    }

    /// The next attempt, on what somebody else made of the object.
    fn raced(&mut self, world: &World<'_>, live: Option<KeyValue>) -> Result<Step, Status> {
        self.races_lost += 1;
        if self.races_lost >= MAX_ATTEMPTS {
            let why = "the object has been modified; please apply your changes to the latest \
                       version and try again";
            return Err(Status::conflict(self.kind.group_resource(), &self.target.name, why));
        }
        self.attempt(world, live)
    }

    fn next_of_collection(&mut self, world: &World<'_>) -> Result<Step, Status> {
        while let Some(kv) = self.queue.pop_front() {
            self.target = crate::object::key_of(&self.kind, &kv.key);
            self.races_lost = 0;
            match self.attempt(world, world.snapshot.get(&self.kind, &self.target)) {
                Err(status) if status.reason == Reason::NotFound => {}
                step => return step,
            }
        }
        let items = self.collection.take().unwrap_or_default();
        let items: Vec<Value> =
            items.iter().filter_map(|item| serde_json::from_slice(item).ok()).collect();
        Ok(Step::Reply(Response::json(
            200,
            &json!({
                "kind": format!("{}List", self.kind.kind), "apiVersion": self.kind.api_version(),
                "metadata": list_metadata(world.snapshot.revision()), "items": items,
            }),
        )))
    }

    fn attempt(&mut self, world: &World<'_>, live: Option<KeyValue>) -> Result<Step, Status> {
        let mut decided = match self.operation.clone() {
            Operation::Create(tree) => self.create(world, tree, live.is_some())?,
            Operation::Update(tree) => {
                if live.is_none() && kinds::creates_on_update(&self.kind) {
                    self.create(world, tree, false)?
                } else {
                    let live = self.found(live.as_ref())?;
                    self.update(world, live, |_| Ok(tree.clone()))?
                }
            }
            Operation::Patch(patch) => {
                let live = self.found(live.as_ref())?;
                let schema = world.schema();
                let id = self.type_id(world)?;
                let name = self.target.name.clone();
                let kind = self.kind.clone();
                self.update(world, live, |shown| patch.apply(schema, id, &kind, &name, shown))?
            }
            Operation::Bind { node, uid } => {
                let live = self.found(live.as_ref())?;
                let kind = self.kind.clone();
                let bind = |pod: &Value| special::bound(&kind, pod, &node, &uid, world);
                self.update(world, live, bind)?
            }
            Operation::Delete(options) | Operation::Evict(options) => {
                let live = self.found(live.as_ref())?;
                self.delete(world, live, &options)?
            }
        };
        let unchanged = live.as_ref().filter(|kv| decided.stored.as_ref() == Some(&kv.value));
        if let Some(kv) = unchanged {
            return self.finish(world, decided, kv.mod_revision);
        }
        if self.dry_run {
            let revision = live.as_ref().map_or(Revision(0), |kv| kv.mod_revision);
            return self.finish(world, decided, revision);
        }
        let mut txn = self.txn(world, &decided, live.as_ref());
        decided.claims.join(&mut txn);
        let first = decided.claims.first();
        self.decided = Some(decided);
        Ok(Step::Commit(match first {
            Some(first) => {
                self.prepared = Some(txn);
                first
            }
            None => txn,
        }))
    }

    fn found<'a>(&self, live: Option<&'a KeyValue>) -> Result<&'a KeyValue, Status> {
        live.ok_or_else(|| Status::not_found(self.kind.group_resource(), &self.target.name))
    }

    fn txn(&self, world: &World<'_>, decided: &Decided, live: Option<&KeyValue>) -> Txn {
        let key = Bytes::copy_from_slice(decided.key.as_bytes());
        let range = KeyRange::single(key.clone());
        let target = match live {
            Some(kv) => CompareTarget::Mod(kv.mod_revision),
            None => CompareTarget::Version(0),
        };
        let mut compare = [Compare { range: range.clone(), op: CompareOp::Equal, target }].to_vec();
        let mut failure = [Op::Range(Query::of(range.clone()))].to_vec();
        if live.is_none()
            && self.kind.namespaced()
            && let Some(namespace) = admission::namespace_key(world, &self.target.namespace)
        {
            let target = CompareTarget::Version(0);
            failure.push(Op::Range(Query::of(namespace.clone())));
            compare.push(Compare { range: namespace, op: CompareOp::Greater, target });
        }
        let write = match &decided.stored {
            Some(value) => Op::Put { key, value: value.clone(), lease: LeaseId(0) },
            None => Op::Delete { range },
        };
        Txn { compare, success: [write].into(), failure }
    }

    fn create(
        &mut self,
        world: &World<'_>,
        mut tree: Value,
        taken: bool,
    ) -> Result<Decided, Status> {
        let generated = text(&tree, "/metadata/name").is_empty();
        if taken {
            self.names_tried += 1;
            if !generated {
                let name = text(&tree, "/metadata/name");
                return Err(Status::already_exists(self.kind.group_resource(), name));
            }
            if self.names_tried >= NAME_ATTEMPTS {
                let prefix = text(&tree, "/metadata/generateName");
                return Err(meta::name_exhausted(&self.kind, prefix));
            }
        }
        if !text(&tree, "/metadata/resourceVersion").is_empty() {
            return Err(Status::bad_request(
                "resourceVersion should not be set on objects to be created",
            ));
        }
        meta::check_target(&self.kind, &mut tree, &self.target)?;
        let namespace = self.target.namespace.clone();
        meta::prepare_create(&self.kind, &mut tree, &namespace, world.now, world.seed);
        let id = self.object_type(world)?;
        world.schema().default(id, &mut tree);
        kinds::prepare(world, &self.kind, &mut tree, None);
        admission::create(world, self, &mut tree)?;
        let claims = kinds::allocate(world, &self.kind, &mut tree, None)?;
        let mut causes = meta::validate(&self.kind, &tree);
        causes.extend(kinds::validate(&self.kind, &tree, None));
        let name = text(&tree, "/metadata/name").to_owned();
        if !causes.is_empty() {
            return Err(Status::invalid(&self.kind, &name, &causes));
        }
        let stored = self.encode(world, id, &mut tree);
        let key = self.kind.key(&ObjectKey::new(namespace, name));
        let (shown, stored) = (stored.clone(), Some(stored));
        Ok(Decided { shown, stored, code: 201, key, existed: false, claims })
    }

    fn update(
        &mut self,
        world: &World<'_>,
        live_kv: &KeyValue,
        change: impl FnOnce(&Value) -> Result<Value, Status>,
    ) -> Result<Decided, Status> {
        let live = tree_at(&self.kind, live_kv)?;
        let shown = self.lens.read(&live);
        let mut sent = change(&shown)?;
        if let Operation::Patch(_) = self.operation {
            sent = self.decode_tree(world, &sent)?;
        }
        meta::check_target(&self.kind, &mut sent, &self.target)?;
        meta::check_expectations(&self.kind, &sent, &live)?;
        let mut tree = self.lens.write(&self.kind, &live, sent);
        meta::prepare_update(&self.kind, &mut tree, &live);
        let id = self.object_type(world)?;
        world.schema().default(id, &mut tree);
        kinds::prepare(world, &self.kind, &mut tree, Some(&live));
        admission::update(world, self, &mut tree, &live)?;
        let mut claims = kinds::allocate(world, &self.kind, &mut tree, Some(&live))?;
        let mut causes = meta::validate(&self.kind, &tree);
        causes.extend(meta::validate_update(&tree, &live));
        causes.extend(kinds::validate(&self.kind, &tree, Some(&live)));
        if !causes.is_empty() {
            return Err(Status::invalid(&self.kind, &self.target.name, &causes));
        }
        let key = self.kind.key(&self.target);
        let bytes = self.encode(world, id, &mut tree);
        let over = delete::finished(&self.kind, &tree);
        if over {
            claims = kinds::release(world, &self.kind, &live)?;
        }
        let stored = (!over).then(|| bytes.clone());
        Ok(Decided { stored, shown: bytes, code: 200, key, existed: true, claims })
    }

    fn delete(
        &mut self,
        world: &World<'_>,
        live: &KeyValue,
        options: &DeleteOptions,
    ) -> Result<Decided, Status> {
        admission::delete(world, self, &self.target)?;
        let tree = tree_at(&self.kind, live)?;
        delete::check_preconditions(&self.kind, &tree, options)?;
        let key = self.kind.key(&self.target);
        let decided = |stored, shown, claims| Decided {
            stored,
            shown,
            code: 200,
            key,
            existed: true,
            claims,
        };
        match delete::fate(&self.kind, &tree, options, world.now) {
            Fate::Gone => {
                self.status_only = !self.answers_with_object();
                let claims = kinds::release(world, &self.kind, &tree)?;
                Ok(decided(None, live.value.clone(), claims))
            }
            Fate::Marked(mut tree) => {
                self.status_only = false;
                let id = self.object_type(world)?;
                let bytes = self.encode(world, id, &mut tree);
                Ok(decided(Some(bytes.clone()), bytes, Claims::default()))
            }
        }
    }

    /// Kinds whose deletion answers with the object that was deleted.
    fn answers_with_object(&self) -> bool {
        matches!(
            self.kind.plural.as_str(),
            "pods"
                | "services"
                | "persistentvolumeclaims"
                | "persistentvolumes"
                | "serviceaccounts"
                | "podtemplates"
                | "resourcequotas"
        ) || self.collection.is_some()
    }

    fn finish(
        &mut self,
        world: &World<'_>,
        decided: Decided,
        revision: Revision,
    ) -> Result<Step, Status> {
        if let Some(collection) = &mut self.collection {
            collection.push(decided.shown);
            return self.next_of_collection(world);
        }
        if self.status_only {
            return Ok(Step::Reply(self.success(&decided, world)));
        }
        let code = if decided.existed { decided.code } else { 201 };
        let mut response = if self.lens.projects() {
            let mut tree = crate::object::tree(&decided.shown)?;
            set_revision(&mut tree, revision);
            Response::json(code, &self.lens.read(&tree))
        } else {
            let shown = &decided.shown;
            object_response(code, &self.kind, self.rendering, shown, revision, world.now)
        };
        response.warnings = core::mem::take(&mut self.warnings);
        Ok(Step::Reply(response))
    }

    fn success(&self, decided: &Decided, _: &World<'_>) -> Response {
        let tree = crate::object::tree(&decided.shown).unwrap_or_default();
        let mut details = json!({"name": text(&tree, "/metadata/name"), "kind": self.kind.plural,
            "uid": text(&tree, "/metadata/uid")});
        if !self.kind.group.is_empty() {
            details["group"] = self.kind.group.as_str().into();
        }
        let code = if matches!(self.operation, Operation::Delete(_)) { 200 } else { 201 };
        Response::json(
            code,
            &json!({"kind": "Status", "apiVersion": "v1", "metadata": {},
            "status": "Success", "details": details}),
        )
    }

    /// The type of the object itself.
    fn object_type(&self, world: &World<'_>) -> Result<TypeId, Status> {
        let Kind { group, version, kind, .. } = &*self.kind;
        let id = world.schema().kind_type(group, version, kind);
        id.ok_or_else(|| Status::internal(format!("{kind} has no type")))
    }

    /// The type of what goes through the lens.
    fn type_id(&self, world: &World<'_>) -> Result<TypeId, Status> {
        match self.lens {
            Lens::Scale => world
                .schema()
                .kind_type("autoscaling", "v1", "Scale")
                .ok_or_else(|| Status::internal("Scale has no type")),
            _ => self.object_type(world),
        }
    }

    fn encode(&self, world: &World<'_>, id: TypeId, tree: &mut Value) -> Bytes {
        world.schema().normalize(id, tree);
        stored::encode(&self.kind, tree)
    }

    fn decode(&mut self, world: &World<'_>, body: &[u8]) -> Result<Value, Status> {
        let id = self.type_id(world)?;
        let (api_version, kind) = self.lens.shows(&self.kind);
        let bad = |why: &dyn core::fmt::Display| {
            Status::bad_request(format!(
                "{kind} in version {:?} cannot be handled as a {kind}: {why}",
                api_version.rsplit('/').next().unwrap_or_default()
            ))
        };
        let decoded = world.schema().decode(id, body).map_err(|error| bad(&error))?;
        let sent = (text(&decoded.tree, "/apiVersion"), text(&decoded.tree, "/kind"));
        if !sent.0.is_empty() && sent.0 != api_version {
            return Err(Status::bad_request(format!(
                "the API version in the data ({}) does not match the expected API version \
                 ({api_version})",
                sent.0
            )));
        }
        if !sent.1.is_empty() && sent.1 != kind {
            return Err(Status::bad_request(format!(
                "the object provided is unrecognized (must be of type {kind}): got kind {}",
                sent.1
            )));
        }
        self.take_issues(&decoded.issues, |why| bad(&why))?;
        Ok(decoded.tree)
    }

    fn decode_tree(&mut self, world: &World<'_>, tree: &Value) -> Result<Value, Status> {
        let id = self.type_id(world)?;
        let decoded = world.schema().decode_value(id, tree).map_err(|error| {
            let patched = Value::from(tree.to_string());
            let cause = Cause::invalid("patch", &patched, &error.to_string());
            Status::invalid_options("", &[cause])
        })?;
        self.take_issues(&decoded.issues, Status::bad_request)?;
        Ok(decoded.tree)
    }

    /// Turns what strict decoding found into an error, warnings, or nothing.
    fn take_issues(
        &mut self,
        issues: &[FieldIssue],
        error: impl FnOnce(String) -> Status,
    ) -> Result<(), Status> {
        match self.validation {
            FieldValidation::Strict if !issues.is_empty() => Err(error(strict_error(issues))),
            FieldValidation::Warn => {
                self.warnings = issues.iter().map(ToString::to_string).collect();
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// `dryRun=All`, the only value there is.
pub(crate) fn dry_run(info: &RequestInfo) -> Result<bool, Status> {
    match info.query.get("dryRun") {
        "" => Ok(false),
        "All" => Ok(true),
        other => {
            let cause = Cause::not_supported("dryRun", &json!([other]), &["All"]);
            Err(Status::invalid_options(options_kind(info), &[cause]))
        }
    }
}

/// The kind of a write's options, for refusals.
fn options_kind(info: &RequestInfo) -> &'static str {
    match info.verb {
        "create" => "CreateOptions.meta.k8s.io",
        "update" => "UpdateOptions.meta.k8s.io",
        "patch" => "PatchOptions.meta.k8s.io",
        _ => "DeleteOptions.meta.k8s.io",
    }
}
