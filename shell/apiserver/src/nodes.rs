//! Requests that a node answers: the server calls it and passes the bytes on.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use knarr_api::Status;
use knarr_registry::{NodeStream, Response};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tracing::warn;

use crate::http::{OutBody, whole};
use crate::server::Server;

/// Streams a node's answer; a node that cannot be reached makes a Status.
pub(crate) async fn stream(server: &Arc<Server>, target: NodeStream) -> http::Response<OutBody> {
    match request(server, &target).await {
        Ok(response) => response,
        Err(why) => {
            warn!(node = target.node, %why, "a node did not answer");
            let url = format!("https://{}{}", target.node, target.target);
            failed(&Status::internal(format!("Get {url:?}: {why}")))
        }
    }
}

fn failed(status: &Status) -> http::Response<OutBody> {
    let response = Response::status(status);
    let mut out = http::Response::new(whole(response.bytes().into_iter().collect()));
    *out.status_mut() = http::StatusCode::from_u16(response.code).expect("codes are valid");
    let json = http::HeaderValue::from_static(response.content_type);
    out.headers_mut().insert(CONTENT_TYPE, json);
    out
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn request(
    server: &Arc<Server>,
    target: &NodeStream,
) -> Result<http::Response<OutBody>, Failure> {
    let tcp = TcpStream::connect(&target.node).await?;
    let host = target.node.rsplit_once(':').map_or(target.node.as_str(), |(host, _)| host);
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())?;
    let tls = TlsConnector::from(server.node_tls.clone()).connect(name, tcp).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await?;
    tokio::spawn(connection);
    let request =
        http::Request::get(&target.target).header(HOST, &target.node).body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    // A connection that breaks in the middle ends the stream: the code is sent already.
    let body = response.map(|body| {
        let frames = futures_util::stream::unfold((body, sender), |(mut body, sender)| async {
            let frame = body.frame().await?.ok()?;
            Some((Ok(frame), (body, sender)))
        });
        http_body_util::StreamBody::new(frames).boxed()
    });
    Ok(body)
}
