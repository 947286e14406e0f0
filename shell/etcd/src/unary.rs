//! The calls that make a store's load, without the layers that a call in general needs: a message
//! in, the method, a message out.
//!
//! All other methods, and these from the gateway, go through the generated services. A method is
//! the same function both ways.

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::RecvStream;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request, Response};
use knarr_etcdpb::etcdserverpb::kv_server::Kv;
use prost::Message;
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::face::Face;

/// What stands before a message: whether it is compressed, and its length.
pub(crate) const PREFIX: usize = 5;

/// A method of the KV service.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Quick {
    Range,
    Put,
    Txn,
    DeleteRange,
}

impl Quick {
    /// The method of a request, if it is one of these.
    pub(crate) fn of<T>(request: &Request<T>) -> Option<Self> {
        let method = request.uri().path().strip_prefix("/etcdserverpb.KV/")?;
        request.headers().get(CONTENT_TYPE).filter(|content| *content == "application/grpc")?;
        match method {
            "Range" => Some(Self::Range),
            "Put" => Some(Self::Put),
            "Txn" => Some(Self::Txn),
            "DeleteRange" => Some(Self::DeleteRange),
            _ => None,
        }
    }

    /// Answers a call with a message as the wire has it.
    pub(crate) async fn answer(
        self,
        face: &Face,
        request: Request<RecvStream>,
        limit: usize,
    ) -> Result<Bytes, Status> {
        let (head, mut body) = request.into_parts();
        let message = whole(&mut body, limit).await?;
        if let Some(calls) = face.metrics.calls(head.uri.path()) {
            calls.received(message.len());
        }
        let metadata = MetadataMap::from_headers(head.headers);
        let request = tonic::Request::from_parts(metadata, head.extensions, message);
        match self {
            Self::Range => framed(face.range(decoded(request)?).await?.get_ref()),
            Self::Put => framed(face.put(decoded(request)?).await?.get_ref()),
            Self::Txn => framed(face.txn(decoded(request)?).await?.get_ref()),
            Self::DeleteRange => framed(face.delete_range(decoded(request)?).await?.get_ref()),
        }
    }
}

/// Reads the one message of a call.
async fn whole(body: &mut RecvStream, limit: usize) -> Result<Bytes, Status> {
    let mut read = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data.map_err(|error| Status::from_error(Box::new(error)))?;
        let released = body.flow_control().release_capacity(data.len());
        released.map_err(|error| Status::from_error(Box::new(error)))?;
        if read.is_empty()
            && let Some(end) = end(&data, limit)?
        {
            // Nearly always it is all there at once.
            return Ok(data.slice(PREFIX..end));
        }
        read.extend_from_slice(&data);
        if let Some(end) = end(&read, limit)? {
            return Ok(read.split_to(end).freeze().slice(PREFIX..));
        }
    }
    Err(Status::internal("Missing request message."))
}

/// Where the message at the beginning of what was read ends, once it is whole.
fn end(read: &[u8], limit: usize) -> Result<Option<usize>, Status> {
    let Some((prefix, rest)) = read.split_first_chunk::<PREFIX>() else { return Ok(None) };
    let [compressed, len @ ..] = *prefix;
    let len = u32::from_be_bytes(len) as usize;
    if compressed != 0 {
        return Err(Status::unimplemented("compressed messages are not taken here"));
    }
    if len > limit {
        return Err(Status::out_of_range(format!(
            "Error, decoded message length too large: found {len} bytes, the limit is: {limit} \
             bytes"
        )));
    }
    Ok((rest.len() >= len).then_some(PREFIX + len))
}

fn decoded<T: Message + Default>(
    request: tonic::Request<Bytes>,
) -> Result<tonic::Request<T>, Status> {
    let (metadata, extensions, message) = request.into_parts();
    let message = T::decode(message)
        .map_err(|error| Status::internal(format!("failed to decode: {error}")))?;
    Ok(tonic::Request::from_parts(metadata, extensions, message))
}

/// A message as it goes over the wire.
pub(crate) fn framed(message: &impl Message) -> Result<Bytes, Status> {
    let len = message.encoded_len();
    let mut out = BytesMut::with_capacity(PREFIX + len);
    out.put_u8(0);
    out.put_u32(u32::try_from(len).map_err(|_| Status::out_of_range("the message is too large"))?);
    message.encode(&mut out).expect("the room is there");
    Ok(out.freeze())
}

/// The head of an answer that has a message.
pub(crate) fn head() -> Response<()> {
    let mut head = Response::new(());
    head.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    head
}

/// The end of an answer that has a message.
pub(crate) fn trailers() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
    trailers
}
