//! A small client of the API: blocking, HTTP/1.1 over TLS, with the administrator's certificate.
//! It exists so that a benchmark times the cluster and neither a process start nor a runtime.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// How long an answer or an event may take before a benchmark gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// One connection; one request at a time.
pub(super) struct Connection {
    stream: BufReader<StreamOwned<ClientConnection, TcpStream>>,
}

/// The form in which a body comes.
enum Body {
    Sized(usize),
    Chunked,
}

impl Connection {
    /// Connects to loopback with the key material that lies in `pki`.
    pub(super) fn open(pki: &Path, port: u16) -> Outcome<Self> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(pki.join("ca.crt"))?)?;
        let certificates = CertificateDer::pem_file_iter(pki.join("admin.crt"))?;
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(
                certificates.collect::<Result<_, _>>()?,
                PrivateKeyDer::from_pem_file(pki.join("admin.key"))?,
            )?;
        let tls = ClientConnection::new(Arc::new(config), ServerName::try_from("127.0.0.1")?)?;
        let socket = TcpStream::connect(("127.0.0.1", port))?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream: BufReader::new(StreamOwned::new(tls, socket)) })
    }

    /// Sends a request and reads the answer.
    pub(super) fn send(&mut self, method: &str, path: &str, body: &str) -> Outcome<Value> {
        let (code, form) = self.ask(method, path, body)?;
        let mut answer = Vec::new();
        match form {
            Body::Sized(length) => {
                answer.resize(length, 0);
                self.stream.read_exact(&mut answer)?;
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
        let stream = self.stream.get_mut();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: application/json\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(head.as_bytes())?;
        stream.flush()?;
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
        self.stream.read_exact(&mut to[start..])?;
        self.line()?;
        Ok(size > 0)
    }

    /// The next line, without its end.
    fn line(&mut self) -> Outcome<String> {
        let mut line = String::new();
        match self.stream.read_line(&mut line)? {
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
