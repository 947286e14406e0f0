//! Turning a request into a WebSocket (RFC 6455).

use http::HeaderValue;
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tracing::debug;

use crate::serve::{Answer, answer};

/// A WebSocket to a client.
pub(crate) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// Makes a WebSocket of a request, with the first subprotocol of the client's that is known here;
/// `serve` gets what belongs to it. The answer to send now.
pub(crate) fn upgrade<P, F>(
    request: &mut http::Request<Incoming>,
    known: &[(&'static str, P)],
    serve: impl FnOnce(P, Socket) -> F + Send + 'static,
) -> Answer
where
    P: Copy + Send + 'static,
    F: Future<Output = ()> + Send,
{
    let (answer, protocol) = match agree(request.headers(), known) {
        Ok(agreed) => agreed,
        Err(why) => return answer(400, why),
    };
    let upgrading = hyper::upgrade::on(request);
    tokio::spawn(async move {
        match upgrading.await {
            Ok(upgraded) => {
                let io = TokioIo::new(upgraded);
                let socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
                serve(protocol, socket).await;
            }
            Err(error) => debug!(%error, "a connection was not upgraded"),
        }
    });
    answer
}

/// The answer that agrees, and what belongs to the subprotocol; or why not.
fn agree<P: Copy>(
    headers: &http::HeaderMap,
    known: &[(&'static str, P)],
) -> Result<(Answer, P), String> {
    let word = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let wanted = word(UPGRADE).unwrap_or_default();
    if !wanted.eq_ignore_ascii_case("websocket") {
        let text = match wanted {
            "" => "Upgrade request required".to_owned(),
            other => format!("upgrading to {other} is not served: ask for a WebSocket"),
        };
        return Err(text);
    }
    let key = word(SEC_WEBSOCKET_KEY).map(|key| derive_accept_key(key.as_bytes()));
    let offered = headers.get_all(SEC_WEBSOCKET_PROTOCOL);
    let offered: Vec<&str> = offered
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|list| list.split(',').map(str::trim))
        .collect();
    let agreed = offered.iter().find_map(|name| known.iter().find(|(k, _)| k == name));
    let (Some(key), Some((name, protocol))) = (key, agreed.copied()) else {
        let known: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        let text = format!(
            "unable to upgrade: requested protocols [{}], served are [{}]",
            offered.join(" "),
            known.join(" ")
        );
        return Err(text);
    };
    let mut answer = answer(101, "");
    let headers = answer.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
    let key = HeaderValue::from_str(&key).expect("base64 is printable");
    headers.insert(SEC_WEBSOCKET_ACCEPT, key);
    Ok((answer, protocol))
}
