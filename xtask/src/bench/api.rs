//! A small client of the API: HTTP/1.1 with the administrator's certificate on one connection that
//! stays open, so that a benchmark times the cluster and no process start. `openssl s_client` does
//! the TLS: a library for it would be built before every first chore, of which most need none.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;

use super::Outcome;

/// One connection; one request at a time.
pub(super) struct Connection {
    openssl: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.openssl.kill().ok();
        self.openssl.wait().ok();
    }
}

/// The form in which a body comes.
enum Body {
    Sized(usize),
    Chunked,
}

impl Connection {
    /// Connects to loopback with the key material that lies in `pki`.
    pub(super) fn open(pki: &Path, port: u16) -> Outcome<Self> {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-quiet", "-verify_return_error", "-verify_ip", "127.0.0.1"]);
        command.args(["-connect", &format!("127.0.0.1:{port}")]);
        for (flag, file) in [("-CAfile", "ca.crt"), ("-cert", "admin.crt"), ("-key", "admin.key")] {
            command.arg(flag).arg(pki.join(file));
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut openssl = command.spawn().map_err(|error| format!("openssl: {error}"))?;
        let to = openssl.stdin.take().expect("stdin is piped");
        let from = BufReader::new(openssl.stdout.take().expect("stdout is piped"));
        Ok(Self { openssl, to, from })
    }

    /// Sends a request and reads the answer.
    pub(super) fn send(&mut self, method: &str, path: &str, body: &str) -> Outcome<Value> {
        let (code, form) = self.ask(method, path, body)?;
        let mut answer = Vec::new();
        match form {
            Body::Sized(length) => {
                answer.resize(length, 0);
                self.from.read_exact(&mut answer)?;
            }
            Body::Chunked => while self.chunk(&mut answer)? {},
        }
        if !(200..300).contains(&code) {
            let text = String::from_utf8_lossy(&answer);
            return Err(format!("{method} {path}: {code} {text}").into());
        }
        Ok(serde_json::from_slice(&answer)?)
    }

    /// Starts a watch; the connection is then only good for its events.
    pub(super) fn watch(mut self, path: &str) -> Outcome<Events> {
        match self.ask("GET", path, "")? {
            (200, Body::Chunked) => Ok(Events { connection: self, read: Vec::new() }),
            (code, _) => Err(format!("watch {path}: {code}").into()),
        }
    }

    /// Sends a request and reads the head of the answer.
    fn ask(&mut self, method: &str, path: &str, body: &str) -> Outcome<(u16, Body)> {
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: application/json\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        self.to.write_all(head.as_bytes())?;
        let status = self.line()?;
        let code = status.split(' ').nth(1).ok_or("an answer without a status")?.parse()?;
        let mut form = Body::Sized(0);
        loop {
            let line = self.line()?.to_ascii_lowercase();
            match line.split_once(": ") {
                Some(("content-length", length)) => form = Body::Sized(length.parse()?),
                Some(("transfer-encoding", "chunked")) => form = Body::Chunked,
                None if line.is_empty() => return Ok((code, form)),
                _ => {}
            }
        }
    }

    /// Appends the next chunk; false at the end of the body.
    fn chunk(&mut self, to: &mut Vec<u8>) -> Outcome<bool> {
        let size = usize::from_str_radix(&self.line()?, 16)?;
        let start = to.len();
        to.resize(start + size, 0);
        self.from.read_exact(&mut to[start..])?;
        self.line()?;
        Ok(size > 0)
    }

    /// The next line, without its end.
    fn line(&mut self) -> Outcome<String> {
        let mut line = String::new();
        match self.from.read_line(&mut line)? {
            0 => Err("the server hung up".into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }
}

/// The events of a watch.
pub(super) struct Events {
    connection: Connection,
    read: Vec<u8>,
}

impl Events {
    /// Waits for the next event.
    pub(super) fn next(&mut self) -> Outcome<Value> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                return Ok(serde_json::from_slice(&line)?);
            }
            if !self.connection.chunk(&mut self.read)? {
                return Err("the watch ended".into());
            }
        }
    }
}
