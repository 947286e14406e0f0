//! The channels that `exec` and `attach` have inside WebSocket messages (`v4.channel.k8s.io`,
//! `v5.channel.k8s.io`): the first byte of a message names the channel, the rest is its data.

use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};

/// Input of the command.
const STDIN: u8 = 0;
/// What the command writes.
pub(crate) const STDOUT: u8 = 1;
/// What the command complains about.
pub(crate) const STDERR: u8 = 2;
/// The `Status` of the whole, last.
pub(crate) const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// Closes the channel that the next byte names (version 5).
const CLOSE: u8 = 255;

/// The subprotocols served, the better first, with their version.
pub(crate) const PROTOCOLS: [(&str, Version); 2] =
    [("v5.channel.k8s.io", Version::V5), ("v4.channel.k8s.io", Version::V4)];

/// Version of the subprotocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// Streams end with the connection.
    V4,
    /// Standard input can be closed alone.
    V5,
}

/// What a client sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// For standard input.
    Bytes(Bytes),
    /// The end of standard input.
    End,
    /// The terminal has that many columns and rows.
    Size(u16, u16),
    /// What does not matter.
    Nothing,
}

/// Reads a client's message.
pub(crate) fn input(version: Version, message: &Bytes) -> Input {
    match (message.first(), message.get(1)) {
        (Some(&STDIN), Some(_)) => Input::Bytes(message.slice(1..)),
        (Some(&CLOSE), Some(&STDIN)) if version == Version::V5 => Input::End,
        (Some(&RESIZE), _) => size(&message[1..]),
        _ => Input::Nothing,
    }
}

fn size(text: &[u8]) -> Input {
    let size: Value = serde_json::from_slice(text).unwrap_or_default();
    let number = |key: &str| size[key].as_u64().and_then(|number| u16::try_from(number).ok());
    match (number("Width"), number("Height")) {
        (Some(columns @ 1..), Some(rows @ 1..)) => Input::Size(columns, rows),
        _ => Input::Nothing,
    }
}

/// A message on a channel.
pub(crate) fn message(channel: u8, data: &[u8]) -> Bytes {
    let mut message = BytesMut::with_capacity(data.len() + 1);
    message.extend_from_slice(&[channel]);
    message.extend_from_slice(data);
    message.freeze()
}

/// The `Status` of a command by its exit code.
pub(crate) fn exited(code: i32) -> Value {
    if code == 0 {
        return json!({"metadata": {}, "status": "Success"});
    }
    let text = format!(
        "command terminated with non-zero exit code: command terminated with exit code {code}"
    );
    let causes = json!([{"reason": "ExitCode", "message": code.to_string()}]);
    json!({"metadata": {}, "status": "Failure", "message": text, "reason": "NonZeroExitCode",
        "details": {"causes": causes}})
}

/// The `Status` of what could not be done.
pub(crate) fn failed(why: &str) -> Value {
    json!({"metadata": {}, "status": "Failure",
        "message": format!("Internal error occurred: {why}"), "reason": "InternalError",
        "details": {"causes": [{"message": why}]}, "code": 500})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_by_their_channel() {
        let read = |version, bytes: &'static [u8]| input(version, &Bytes::from_static(bytes));
        let five = |bytes| read(Version::V5, bytes);
        assert_eq!(five(b"\0hi"), Input::Bytes(Bytes::from_static(b"hi")));
        assert_eq!(five(b"\0"), Input::Nothing, "an empty message is not the end");
        assert_eq!(five(b""), Input::Nothing);
        assert_eq!(five(b"\xff\0"), Input::End);
        assert_eq!(five(b"\xff\x01"), Input::Nothing, "only the input is ours to close");
        assert_eq!(read(Version::V4, b"\xff\0"), Input::Nothing, "version 4 cannot");
        assert_eq!(five(b"\x04{\"Width\":80,\"Height\":24}\n"), Input::Size(80, 24));
        assert_eq!(five(b"\x04{\"Width\":0,\"Height\":24}"), Input::Nothing);
        assert_eq!(five(b"\x04{\"Width\":99999,\"Height\":24}"), Input::Nothing);
        assert_eq!(five(b"\x01out"), Input::Nothing, "a client does not write outputs");
        assert_eq!(message(STDERR, b"oh"), Bytes::from_static(b"\x02oh"));
    }

    #[test]
    fn an_exit_code_is_told_as_clients_read_it() {
        assert_eq!(exited(0), json!({"metadata": {}, "status": "Success"}));
        let seven = exited(7);
        assert_eq!(seven["reason"], "NonZeroExitCode");
        assert_eq!(seven["details"]["causes"][0], json!({"reason": "ExitCode", "message": "7"}));
    }
}
