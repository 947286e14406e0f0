//! Reads: get, list, watch. What is stored is what is sent; nothing is parsed unless a selector,
//! a table or another version asks for it.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use jiff::Timestamp;
use knarr_api::{Cause, FieldSelector, Kind, LabelSelector, Status};
use knarr_mvcc::{KeyRange, KeyValue, RangeEnd, ReadError, Revision};
use serde_json::{Value, json};

use crate::call::World;
use crate::convert::served;
use crate::lens::Lens;
use crate::object::{pieces, set_revision, tree};
use crate::request::{Query, Request, RequestInfo};
use crate::response::{Body, Response};
use crate::table;
use crate::watch::{WatchSpec, WatchStart};

/// How objects are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rendering {
    Object,
    Table,
    Metadata,
}

impl Rendering {
    /// The first media type of `Accept` that we have.
    pub(crate) fn of(accept: &str) -> Self {
        for media in accept.split(',') {
            let has = |word: &str| media.split(';').any(|part| part.trim() == word);
            if has("g=meta.k8s.io") && has("v=v1") {
                if has("as=Table") {
                    return Self::Table;
                }
                if has("as=PartialObjectMetadata") || has("as=PartialObjectMetadataList") {
                    return Self::Metadata;
                }
            }
            if media.split(';').next().is_some_and(|kind| kind.trim() == "application/json")
                && !media.contains("as=")
            {
                return Self::Object;
            }
        }
        Self::Object
    }
}

/// Which objects of a kind are wanted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    labels: LabelSelector,
    fields: FieldSelector,
    name: Option<String>,
}

impl Filter {
    pub(crate) fn parse(info: &RequestInfo, kind: &Kind) -> Result<Self, Status> {
        let bad = |error: knarr_api::SelectorError| Status::bad_request(error.0);
        let labels = LabelSelector::parse(info.query.get("labelSelector")).map_err(bad)?;
        let fields = FieldSelector::parse(info.query.get("fieldSelector")).map_err(bad)?;
        let known = |path: &str| {
            path == "metadata.name"
                || path == "metadata.namespace" && kind.namespaced()
                || kind.selectable.iter().any(|known| known == path)
        };
        if let Some(path) = fields.paths().find(|path| !known(path)) {
            return Err(Status::bad_request(format!(
                "Unable to find {:?} that match label selector {:?}, field selector {:?}: field \
                 label not supported: {path}",
                format!("{}, Resource={}", kind.api_version(), kind.plural),
                info.query.get("labelSelector"),
                info.query.get("fieldSelector"),
            )));
        }
        let name = (!info.object.name.is_empty()).then(|| info.object.name.clone());
        Ok(Self { labels, fields, name })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty() && self.name.is_none()
    }

    pub(crate) fn matches(&self, value: &[u8]) -> bool {
        if self.is_empty() {
            return true;
        }
        let Ok(object) = tree(value) else { return false };
        let named = self.name.as_ref().is_none_or(|name| object["metadata"]["name"] == **name);
        named && self.labels.matches(&object["metadata"]["labels"]) && self.fields.matches(&object)
    }
}

/// Answers a read.
pub(crate) fn serve(
    world: &World<'_>,
    request: &Request,
    info: &RequestInfo,
    kind: &Arc<Kind>,
) -> Result<Response, Status> {
    let rendering = Rendering::of(&request.accept);
    match info.verb {
        "get" => get(world, info, kind, rendering),
        "watch" => watch(world, info, kind, rendering),
        _ => list(world, info, kind, rendering),
    }
}

fn get(
    world: &World<'_>,
    info: &RequestInfo,
    kind: &Arc<Kind>,
    rendering: Rendering,
) -> Result<Response, Status> {
    let found = world.snapshot.get(kind, &info.object);
    let kv = found.ok_or_else(|| Status::not_found(kind.group_resource(), &info.object.name))?;
    if let Some(lens) = Lens::of(kind, &info.subresource).filter(|lens| lens.projects()) {
        return Ok(Response::json(200, &lens.read(&crate::object::tree_at(kind, &kv)?)));
    }
    Ok(object_response(200, kind, rendering, &kv.value, kv.mod_revision, world.now))
}

/// One object as an answer.
pub(crate) fn object_response(
    code: u16,
    kind: &Kind,
    rendering: Rendering,
    value: &Bytes,
    revision: Revision,
    now: Timestamp,
) -> Response {
    let value = &served(kind, value);
    if rendering == Rendering::Object {
        let mut chunks = Vec::with_capacity(4);
        pieces(value, revision, &mut chunks);
        chunks.push(Bytes::from_static(b"\n"));
        return Response::chunks(code, chunks);
    }
    Response::chunks(code, [render(kind, rendering, value, revision, now).into()].into())
}

/// One object in another form.
pub(crate) fn render(
    kind: &Kind,
    rendering: Rendering,
    value: &[u8],
    revision: Revision,
    now: Timestamp,
) -> Vec<u8> {
    let mut object = tree(value).unwrap_or_default();
    set_revision(&mut object, revision);
    let shown = match rendering {
        Rendering::Table => {
            let metadata = json!({"resourceVersion": revision.0.to_string()});
            table::table(kind, &[object], metadata, now)
        }
        Rendering::Metadata => partial(object),
        Rendering::Object => object,
    };
    serde_json::to_vec(&shown).expect("a tree always has a JSON form")
}

fn partial(mut object: Value) -> Value {
    let metadata = object["metadata"].take();
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
}

/// What a list asks for.
struct Page {
    at: Revision,
    range: KeyRange,
    limit: usize,
}

/// What a continue token holds: the revision of the first page, and where the next one begins.
fn continue_token(at: Revision, after: &[u8]) -> String {
    let token = json!({"v": "meta.k8s.io/v1", "rv": at.0, "start": String::from_utf8_lossy(after)});
    URL_SAFE_NO_PAD.encode(token.to_string())
}

/// What is wrong with the options of a list or watch.
fn check_options(query: &Query, watch: bool) -> Result<(), Status> {
    const MATCH: &str = "resourceVersionMatch";
    let (wanted, initial) = (query.get(MATCH), query.has("sendInitialEvents"));
    let mut causes = Vec::new();
    let mut forbid = |holds: bool, why: &str| {
        if holds {
            causes.push(Cause::forbidden(MATCH, why));
        }
    };
    let given = !wanted.is_empty();
    let continued = given && !query.get("continue").is_empty();
    let text = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
    forbid(watch && initial && wanted != "NotOlderThan", text);
    let text = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
    forbid(watch && given && !initial, text);
    let text = "resourceVersionMatch is forbidden unless resourceVersion is provided";
    forbid(!watch && given && query.get("resourceVersion").is_empty(), text);
    forbid(continued, "resourceVersionMatch is forbidden when continue is provided");
    let exact = !watch && wanted == "Exact";
    let text = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
    forbid(exact && query.get("resourceVersion") == "0", text);
    if given && wanted != "NotOlderThan" && !exact {
        let allowed: &[&str] =
            if watch { &["NotOlderThan"] } else { &["Exact", "NotOlderThan", ""] };
        causes.push(Cause::not_supported(MATCH, &wanted.into(), allowed));
    }
    if initial && !watch {
        let why = "sendInitialEvents is forbidden for list";
        causes.push(Cause::forbidden("sendInitialEvents", why));
    }
    match causes.is_empty() {
        true => Ok(()),
        false => Err(Status::invalid_options("ListOptions.meta.k8s.io", &causes)),
    }
}

fn page(world: &World<'_>, info: &RequestInfo, kind: &Kind) -> Result<Page, Status> {
    let query = &info.query;
    let limit = match query.get("limit") {
        "" => 0,
        text => text.parse().map_err(|_| {
            let why = format!("strconv.ParseInt: parsing {text:?}: invalid syntax");
            Status::bad_request(why)
        })?,
    };
    let range = KeyRange::prefix(kind.namespace_prefix(&info.object.namespace).into_bytes());
    if let Some((at, start)) = token(query)? {
        if !range.contains(&start) {
            return Err(bad_token());
        }
        let start = Bytes::from([&start[..], b"\0"].concat());
        return Ok(Page { at, range: KeyRange { start, ..range }, limit });
    }
    Ok(Page { at: list_revision(world, info)?, range, limit })
}

/// The revision and the key that a continue token names, if there is one.
fn token(query: &Query) -> Result<Option<(Revision, Bytes)>, Status> {
    let token = query.get("continue");
    if token.is_empty() {
        return Ok(None);
    }
    let json = URL_SAFE_NO_PAD.decode(token).map_err(|_| bad_token())?;
    let token: Value = serde_json::from_slice(&json).map_err(|_| bad_token())?;
    let at = token["rv"].as_u64().filter(|rv| *rv > 0).ok_or_else(bad_token)?;
    let start = token["start"].as_str().ok_or_else(bad_token)?;
    Ok(Some((Revision(at), Bytes::copy_from_slice(start.as_bytes()))))
}

fn bad_token() -> Status {
    Status::bad_request("continue key is not valid")
}

/// The revision of the first page, when this is a later one.
pub(crate) fn continued(info: &RequestInfo) -> Result<Option<Revision>, Status> {
    Ok(token(&info.query)?.map(|(at, _)| at))
}

/// The revision that a list is to show.
pub(crate) fn list_revision(world: &World<'_>, info: &RequestInfo) -> Result<Revision, Status> {
    check_options(&info.query, false)?;
    if let Some(at) = continued(info)? {
        return Ok(at);
    }
    let current = world.snapshot.revision();
    let wanted = revision_of(info.query.get("resourceVersion"))?;
    if wanted > current {
        return Err(too_large(wanted, current));
    }
    let exact = info.query.get("resourceVersionMatch") == "Exact";
    Ok(if exact { wanted } else { current })
}

fn too_large(wanted: Revision, current: Revision) -> Status {
    let text = format!("Too large resource version: {}, current: {}", wanted.0, current.0);
    let mut status = Status::new(knarr_api::Reason::ServerTimeout, format!("Timeout: {text}"));
    status.code = 504;
    let cause =
        json!({"reason": "ResourceVersionTooLarge", "message": "Too large resource version"});
    status.details = Some(json!({"causes": [cause], "retryAfterSeconds": 1}));
    status
}

/// Reads a resourceVersion; absent is 0.
pub(crate) fn revision_of(text: &str) -> Result<Revision, Status> {
    match text {
        "" => Ok(Revision(0)),
        text => text.parse().map(Revision).map_err(|_| {
            Status::bad_request(format!("Invalid value: {text:?}: invalid resource version"))
        }),
    }
}

fn gone(error: &ReadError) -> Status {
    match error {
        ReadError::FutureRevision(current) => too_large(Revision(u64::MAX), *current),
        ReadError::Compacted(_) => gone_list(),
    }
}

/// A list at a revision that nobody knows any more.
pub(crate) fn gone_list() -> Status {
    Status::expired(
        "The provided continue parameter is too old to display a consistent list result. You \
         can start a new list without the continue parameter.",
    )
}

fn list(
    world: &World<'_>,
    info: &RequestInfo,
    kind: &Arc<Kind>,
    rendering: Rendering,
) -> Result<Response, Status> {
    let filter = Filter::parse(info, kind)?;
    let page = page(world, info, kind)?;
    let mut found = world
        .snapshot
        .keyspace()
        .iter(&page.range, page.at)
        .map_err(|error| gone(&error))?
        .filter(|kv| filter.matches(&served(kind, &kv.value)));
    let limit = if page.limit == 0 { usize::MAX } else { page.limit };
    let objects: Vec<KeyValue> = found.by_ref().take(limit).collect();
    let mut metadata = json!({"resourceVersion": page.at.0.to_string()});
    if let Some(last) = objects.last().filter(|_| page.limit > 0) {
        let remaining = found.count();
        if remaining > 0 {
            metadata["continue"] = continue_token(page.at, &last.key).into();
            if filter.is_empty() {
                metadata["remainingItemCount"] = remaining.into();
            }
        }
    }
    Ok(list_response(kind, rendering, &objects, metadata, world.now))
}

fn list_response(
    kind: &Kind,
    rendering: Rendering,
    objects: &[KeyValue],
    metadata: Value,
    now: Timestamp,
) -> Response {
    if rendering != Rendering::Object {
        let trees = objects.iter().map(|kv| crate::object::tree_at(kind, kv).unwrap_or_default());
        let trees: Vec<Value> = trees.collect();
        return Response::json(
            200,
            &match rendering {
                Rendering::Table => table::table(kind, &trees, metadata, now),
                _ => json!({
                    "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
                    "metadata": metadata,
                    "items": trees.into_iter().map(partial).collect::<Vec<_>>(),
                }),
            },
        );
    }
    let head = format!(
        "{{\"kind\":\"{}List\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
        kind.kind,
        kind.api_version(),
    );
    let skip = item_skip(kind);
    let mut chunks = Vec::with_capacity(objects.len() * 5 + 2);
    chunks.push(Bytes::from(head));
    for (at, kv) in objects.iter().enumerate() {
        chunks.push(Bytes::from_static(if at == 0 { b"{" } else { b",{" }));
        let first = chunks.len();
        pieces(&served(kind, &kv.value), kv.mod_revision, &mut chunks);
        let skip = skip.min(chunks[first].len());
        chunks[first] = chunks[first].slice(skip..);
    }
    chunks.push(Bytes::from_static(b"]}\n"));
    Response::chunks(200, chunks)
}

/// Items of a list of a built-in kind do not repeat kind and apiVersion; those of a custom kind do.
fn item_skip(kind: &Kind) -> usize {
    if kind.custom {
        return 1;
    }
    format!("{{\"kind\":\"{}\",\"apiVersion\":\"{}\",", kind.kind, kind.api_version()).len()
}

fn watch(
    world: &World<'_>,
    info: &RequestInfo,
    kind: &Arc<Kind>,
    rendering: Rendering,
) -> Result<Response, Status> {
    let query = &info.query;
    let filter = Filter::parse(info, kind)?;
    let wanted = revision_of(query.get("resourceVersion"))?;
    let send_initial = query.flag("sendInitialEvents");
    check_options(query, true)?;
    let unset = wanted == Revision(0) && (send_initial || !query.has("sendInitialEvents"));
    let start = match send_initial || unset {
        true => WatchStart::Initial,
        false if wanted == Revision(0) => WatchStart::After(world.snapshot.revision()),
        false => WatchStart::After(wanted),
    };
    let range = match info.object.name.as_str() {
        "" => KeyRange::prefix(kind.namespace_prefix(&info.object.namespace).into_bytes()),
        _ => KeyRange { start: kind.key(&info.object).into_bytes().into(), end: RangeEnd::Single },
    };
    let spec = WatchSpec {
        range,
        start,
        bookmarks: query.flag("allowWatchBookmarks"),
        mark_initial: send_initial,
        timeout: query.get("timeoutSeconds").parse().ok(),
        kind: kind.clone(),
        filter,
        rendering,
    };
    let mut response = Response::chunks(200, Vec::new());
    response.body = Body::Watch(spec);
    Ok(response)
}

/// The names of the objects that a collection request means.
pub(crate) fn selected(
    world: &World<'_>,
    info: &RequestInfo,
    kind: &Kind,
) -> Result<Vec<KeyValue>, Status> {
    let filter = Filter::parse(info, kind)?;
    let all = world.snapshot.prefix(&kind.namespace_prefix(&info.object.namespace));
    Ok(all.into_iter().filter(|kv| filter.matches(&served(kind, &kv.value))).collect())
}

/// A list's `metadata.resourceVersion`, for callers that made the list themselves.
pub(crate) fn list_metadata(revision: Revision) -> Value {
    json!({"resourceVersion": revision.0.to_string().to_owned()})
}
