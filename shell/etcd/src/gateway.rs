//! The services as JSON over HTTP, so that `curl` is enough: a table of paths and one engine.
//!
//! A JSON body becomes the message that the method takes, is framed as gRPC would frame it, goes
//! through the very same service, and its answer comes back the same way. Nothing here knows what a
//! method does. Names and forms are those of the protocol's own JSON mapping: names as written in
//! the definitions, bytes as base64, numbers of 64 bits as strings, defaults left out.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::LazyLock;

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use prost_reflect::{
    DescriptorPool, DynamicMessage, MessageDescriptor, MethodDescriptor, SerializeOptions,
};
use tonic::body::Body;
use tonic::{Code, Status};

use crate::pages::Page;
use crate::serve::Services;
use crate::unary::{PREFIX, framed};

/// Paths below `/v3/`, and the methods behind them.
const PATHS: &[(&str, &str)] = &[
    ("kv/range", "etcdserverpb.KV/Range"),
    ("kv/put", "etcdserverpb.KV/Put"),
    ("kv/deleterange", "etcdserverpb.KV/DeleteRange"),
    ("kv/txn", "etcdserverpb.KV/Txn"),
    ("kv/compaction", "etcdserverpb.KV/Compact"),
    ("watch", "etcdserverpb.Watch/Watch"),
    ("lease/grant", "etcdserverpb.Lease/LeaseGrant"),
    ("lease/revoke", "etcdserverpb.Lease/LeaseRevoke"),
    ("kv/lease/revoke", "etcdserverpb.Lease/LeaseRevoke"),
    ("lease/keepalive", "etcdserverpb.Lease/LeaseKeepAlive"),
    ("lease/timetolive", "etcdserverpb.Lease/LeaseTimeToLive"),
    ("kv/lease/timetolive", "etcdserverpb.Lease/LeaseTimeToLive"),
    ("lease/leases", "etcdserverpb.Lease/LeaseLeases"),
    ("kv/lease/leases", "etcdserverpb.Lease/LeaseLeases"),
    ("cluster/member/add", "etcdserverpb.Cluster/MemberAdd"),
    ("cluster/member/remove", "etcdserverpb.Cluster/MemberRemove"),
    ("cluster/member/update", "etcdserverpb.Cluster/MemberUpdate"),
    ("cluster/member/list", "etcdserverpb.Cluster/MemberList"),
    ("cluster/member/promote", "etcdserverpb.Cluster/MemberPromote"),
    ("maintenance/alarm", "etcdserverpb.Maintenance/Alarm"),
    ("maintenance/status", "etcdserverpb.Maintenance/Status"),
    ("maintenance/defragment", "etcdserverpb.Maintenance/Defragment"),
    ("maintenance/hash", "etcdserverpb.Maintenance/Hash"),
    ("maintenance/hashkv", "etcdserverpb.Maintenance/HashKV"),
    ("maintenance/snapshot", "etcdserverpb.Maintenance/Snapshot"),
    ("maintenance/transfer-leadership", "etcdserverpb.Maintenance/MoveLeader"),
    ("maintenance/downgrade", "etcdserverpb.Maintenance/Downgrade"),
    ("auth/enable", "etcdserverpb.Auth/AuthEnable"),
    ("auth/disable", "etcdserverpb.Auth/AuthDisable"),
    ("auth/status", "etcdserverpb.Auth/AuthStatus"),
    ("auth/authenticate", "etcdserverpb.Auth/Authenticate"),
    ("auth/user/add", "etcdserverpb.Auth/UserAdd"),
    ("auth/user/get", "etcdserverpb.Auth/UserGet"),
    ("auth/user/list", "etcdserverpb.Auth/UserList"),
    ("auth/user/delete", "etcdserverpb.Auth/UserDelete"),
    ("auth/user/changepw", "etcdserverpb.Auth/UserChangePassword"),
    ("auth/user/grant", "etcdserverpb.Auth/UserGrantRole"),
    ("auth/user/revoke", "etcdserverpb.Auth/UserRevokeRole"),
    ("auth/role/add", "etcdserverpb.Auth/RoleAdd"),
    ("auth/role/get", "etcdserverpb.Auth/RoleGet"),
    ("auth/role/list", "etcdserverpb.Auth/RoleList"),
    ("auth/role/delete", "etcdserverpb.Auth/RoleDelete"),
    ("auth/role/grant", "etcdserverpb.Auth/RoleGrantPermission"),
    ("auth/role/revoke", "etcdserverpb.Auth/RoleRevokePermission"),
    ("lock/lock", "v3lockpb.Lock/Lock"),
    ("lock/unlock", "v3lockpb.Lock/Unlock"),
    ("election/campaign", "v3electionpb.Election/Campaign"),
    ("election/proclaim", "v3electionpb.Election/Proclaim"),
    ("election/leader", "v3electionpb.Election/Leader"),
    ("election/observe", "v3electionpb.Election/Observe"),
    ("election/resign", "v3electionpb.Election/Resign"),
];

/// The definitions.
static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(knarr_etcdpb::DESCRIPTION).expect("made when building")
});

/// The paths of all methods, as gRPC has them: `/package.Service/Method`.
pub(crate) fn methods() -> impl Iterator<Item = String> {
    POOL.services().flat_map(|service| {
        let path = |method: MethodDescriptor| format!("/{}/{}", service.full_name(), method.name());
        service.methods().map(path).collect::<Vec<_>>()
    })
}

/// The methods by their paths here.
static METHODS: LazyLock<HashMap<&'static str, MethodDescriptor>> = LazyLock::new(|| {
    let pool = &*POOL;
    let find = |name: &str| {
        let (service, method) = name.split_once('/')?;
        pool.get_service_by_name(service)?.methods().find(|known| known.name() == method)
    };
    let row = |(path, name): &(&'static str, &str)| {
        (*path, find(name).unwrap_or_else(|| panic!("{name} is in the definitions")))
    };
    PATHS.iter().map(row).collect()
});

/// A page as a response.
pub(crate) fn page((code, content_type, text): Page) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::from(text)));
    *response.status_mut() = http::StatusCode::from_u16(code).expect("a code of ours");
    let content_type = http::HeaderValue::from_static(content_type);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

/// The answer where there is no page.
pub(crate) fn nothing() -> Response<Body> {
    page((404, "text/plain; charset=utf-8", "404 page not found\n".to_owned()))
}

/// Answers a request for JSON.
pub(crate) async fn answer(services: &Services, request: Request<Body>) -> Response<Body> {
    let path = request.uri().path();
    let method = path.strip_prefix("/v3/").and_then(|path| METHODS.get(path.trim_end_matches('/')));
    let Some(method) = method else {
        return match path.starts_with("/v3/") {
            true => page((404, "text/plain; charset=utf-8", "Not Found\n".to_owned())),
            false => nothing(),
        };
    };
    if request.method() != Method::POST {
        return refusal(405, &Status::unimplemented("Method Not Allowed"));
    }
    let limit = services.face.config.max_request_bytes * 2;
    let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
    // As with a gateway that stands before a server: what goes between them is counted.
    let came = services.face.metrics.calls(&path).cloned().unwrap_or_default();
    let went = came.clone();
    let count = move |frame: &Bytes| came.received(frame.len() - PREFIX);
    let (head, body) = request.into_parts();
    let framed = if method.is_client_streaming() {
        let frames = frames(method.input(), body, limit).inspect_ok(count);
        Body::new(StreamBody::new(frames.map_ok(Frame::data)))
    } else {
        match whole(&method.input(), body, limit).await.inspect(count) {
            Ok(frame) => Body::new(Full::from(frame)),
            Err(status) => return failure(&status),
        }
    };
    let mut call = Request::post(path).body(framed).expect("a path of ours");
    *call.extensions_mut() = head.extensions;
    pass_on(&head.headers, call.headers_mut());
    let answers = messages(services.call(call).await);
    let answers = answers.inspect_ok(move |message| went.sent(message.len()));
    match method.is_server_streaming() {
        true => streamed(answers, method.output()),
        false => single(answers, &method.output()).await,
    }
}

/// Of the headers only what says who asks.
fn pass_on(from: &HeaderMap, to: &mut HeaderMap) {
    to.insert(CONTENT_TYPE, http::HeaderValue::from_static("application/grpc"));
    for name in ["authorization", "token", "grpc-metadata-token"] {
        if let Some(value) = from.get(name) {
            to.insert("token", value.clone());
        }
    }
}

fn malformed(why: impl std::fmt::Display) -> Status {
    Status::invalid_argument(why.to_string())
}

fn too_large() -> Status {
    malformed("http: request body too large")
}

/// A body with one message, as a frame; no body is a message without fields.
async fn whole(input: &MessageDescriptor, body: Body, limit: usize) -> Result<Bytes, Status> {
    let body = http_body_util::Limited::new(body, limit).collect().await;
    let body = body.map_err(|_| too_large())?.to_bytes();
    let text = if body.is_empty() { Bytes::from_static(b"{}") } else { body };
    let mut reader = serde_json::Deserializer::from_slice(&text);
    let message = DynamicMessage::deserialize(input.clone(), &mut reader).map_err(malformed)?;
    reader.end().map_err(malformed)?;
    framed(&message)
}

/// A body's messages as frames, as they come: they follow each other without a comma, none longer
/// than `limit`. What is no message ends them.
fn frames(
    input: MessageDescriptor,
    body: Body,
    limit: usize,
) -> impl Stream<Item = Result<Bytes, Status>> {
    let state = (body, BytesMut::new(), input);
    stream::unfold(state, move |(mut body, mut read, input)| async move {
        let wrong = loop {
            match first(&input, &mut read) {
                Err(status) => break status,
                Ok(Some(message)) => {
                    return Some((framed(&message), (body, read, input)));
                }
                Ok(None) if read.len() > limit => break too_large(),
                Ok(None) => {}
            }
            match body.frame().await {
                Some(Ok(piece)) => read.extend_from_slice(&piece.into_data().unwrap_or_default()),
                Some(Err(status)) => break status,
                None if read.trim_ascii().is_empty() => return None,
                None => break malformed("the last message is cut off"),
            }
        };
        Some((Err(wrong), (Body::empty(), BytesMut::new(), input)))
    })
}

/// Takes the first whole message off what was read, if there is one.
fn first(input: &MessageDescriptor, read: &mut BytesMut) -> Result<Option<DynamicMessage>, Status> {
    let mut values =
        serde_json::Deserializer::from_slice(read).into_iter::<&serde_json::value::RawValue>();
    let message = match values.next() {
        None => return Ok(None),
        Some(Err(error)) if error.is_eof() => return Ok(None),
        Some(Err(error)) => return Err(malformed(error)),
        Some(Ok(text)) => {
            let mut reader = serde_json::Deserializer::from_str(text.get());
            DynamicMessage::deserialize(input.clone(), &mut reader).map_err(malformed)?
        }
    };
    let used = values.byte_offset();
    read.advance(used);
    Ok(Some(message))
}

/// A message as JSON.
fn json(output: &MessageDescriptor, message: Bytes) -> Result<String, Status> {
    let internal = |error: &dyn std::fmt::Display| Status::internal(error.to_string());
    let message =
        DynamicMessage::decode(output.clone(), message).map_err(|error| internal(&error))?;
    let options = SerializeOptions::new().use_proto_field_name(true);
    let mut text = serde_json::Serializer::new(Vec::new());
    message.serialize_with_options(&mut text, &options).map_err(|error| internal(&error))?;
    String::from_utf8(text.into_inner()).map_err(|error| internal(&error))
}

/// The status in a head or at an end.
fn status(headers: &HeaderMap) -> Option<Status> {
    Status::from_header_map(headers).filter(|status| status.code() != Code::Ok)
}

/// Takes the first whole frame off what was read, if there is one.
fn unframe(read: &mut BytesMut) -> Option<Bytes> {
    let len = u32::from_be_bytes(read.get(1..5)?.try_into().ok()?) as usize;
    if read.len() < 5 + len {
        return None;
    }
    read.advance(5);
    Some(read.split_to(len).freeze())
}

async fn single(
    answers: impl Stream<Item = Result<Bytes, Status>>,
    output: &MessageDescriptor,
) -> Response<Body> {
    match pin!(answers).next().await {
        Some(Ok(message)) => match json(output, message) {
            Ok(text) => page((200, "application/json", text)),
            Err(status) => failure(&status),
        },
        Some(Err(status)) => failure(&status),
        None => failure(&Status::internal("the call had no answer")),
    }
}

/// Each message on a line of its own, as `{"result":…}`; an error ends them.
fn streamed(
    answers: impl Stream<Item = Result<Bytes, Status>> + Send + 'static,
    output: MessageDescriptor,
) -> Response<Body> {
    let lines = answers.map(move |message| {
        let line = match message.and_then(|message| json(&output, message)) {
            Ok(text) => format!("{{\"result\":{text}}}\n"),
            Err(status) => format!("{{\"error\":{}}}\n", problem(&status)),
        };
        Ok::<_, Status>(Frame::data(Bytes::from(line)))
    });
    let mut response = Response::new(Body::new(StreamBody::new(lines)));
    let content_type = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

/// The messages of an answer, and its status last unless it is "OK".
fn messages(response: Response<Body>) -> impl Stream<Item = Result<Bytes, Status>> + Send {
    let (head, body) = response.into_parts();
    let state = (status(&head.headers), Some(body), BytesMut::new());
    stream::unfold(state, |(failed, mut body, mut read)| async move {
        if let Some(status) = failed {
            return Some((Err(status), (None, None, read)));
        }
        loop {
            if let Some(message) = unframe(&mut read) {
                return Some((Ok(message), (None, body, read)));
            }
            match body.as_mut()?.frame().await? {
                Err(status) => return Some((Err(status), (None, None, read))),
                Ok(frame) => match frame.into_data() {
                    Ok(data) => read.extend_from_slice(&data),
                    Err(frame) => {
                        let status = frame.trailers_ref().and_then(status)?;
                        return Some((Err(status), (None, None, read)));
                    }
                },
            }
        }
    })
}

fn problem(status: &Status) -> serde_json::Value {
    let (code, message) = (status.code() as i32, status.message());
    serde_json::json!({ "error": message, "code": code, "message": message })
}

fn failure(status: &Status) -> Response<Body> {
    refusal(http_code(status.code()), status)
}

fn refusal(code: u16, status: &Status) -> Response<Body> {
    page((code, "application/json", problem(status).to_string()))
}

/// The code of HTTP that says the same.
fn http_code(code: Code) -> u16 {
    match code {
        Code::Ok => 200,
        Code::Cancelled => 499,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => 400,
        Code::DeadlineExceeded => 504,
        Code::NotFound => 404,
        Code::AlreadyExists | Code::Aborted => 409,
        Code::PermissionDenied => 403,
        Code::Unauthenticated => 401,
        Code::ResourceExhausted => 429,
        Code::Unimplemented => 501,
        Code::Unavailable => 503,
        Code::Unknown | Code::Internal | Code::DataLoss => 500,
    }
}
