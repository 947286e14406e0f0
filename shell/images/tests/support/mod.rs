//! A registry of lies: a server that answers as its script says and remembers what it was asked.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

/// `sha256:…` of bytes.
pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// What was asked.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
}

impl Request {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// What is answered.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Break off after so many bytes of the body.
    pub cut: Option<usize>,
}

impl Reply {
    pub fn of(status: u16) -> Reply {
        Reply { status, ..Reply::default() }
    }

    pub fn ok(body: impl Into<Vec<u8>>) -> Reply {
        Reply { body: body.into(), ..Reply::of(200) }
    }

    pub fn with(mut self, name: &str, value: impl Into<String>) -> Reply {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub fn cut(self, at: usize) -> Reply {
        Reply { cut: Some(at), ..self }
    }
}

/// The server; it ends with the test's process.
pub struct Fake {
    pub address: SocketAddr,
    log: Arc<Mutex<Vec<(Request, usize)>>>,
}

impl Fake {
    /// Serves on a free port of the loopback.
    pub fn serve(script: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (script, kept) = (Arc::new(script), log.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (script, log) = (script.clone(), kept.clone());
                std::thread::spawn(move || answer(stream, &*script, &log));
            }
        });
        Fake { address, log }
    }

    /// A name in this registry.
    pub fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    /// Requests whose path holds a text, with the bytes of the bodies they got.
    pub fn asked(&self, part: &str) -> Vec<(Request, usize)> {
        let log = self.log.lock().unwrap();
        log.iter().filter(|(request, _)| request.path.contains(part)).cloned().collect()
    }
}

fn answer(
    mut stream: TcpStream,
    script: &dyn Fn(&Request) -> Reply,
    log: &Mutex<Vec<(Request, usize)>>,
) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let mut words = first.split(' ');
    let mut word = || words.next().unwrap_or_default().to_owned();
    let (method, path) = (word(), word());
    let header = |line: String| {
        let (name, value) = line.split_once(": ")?;
        Some((name.to_lowercase(), value.to_owned()))
    };
    let headers = lines.take_while(|line| !line.is_empty()).filter_map(header).collect();
    let request = Request { method, path, headers };
    let reply = script(&request);
    let body = if request.method == "HEAD" { &[][..] } else { &reply.body[..] };
    let sent = &body[..reply.cut.unwrap_or(body.len()).min(body.len())];
    let mut head = format!("HTTP/1.1 {} X\r\nconnection: close\r\n", reply.status);
    head += &format!("content-length: {}\r\n", reply.body.len());
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    // Before it is sent: whoever has the answer finds it in the log.
    log.lock().unwrap().push((request.clone(), sent.len()));
    let _ = stream.write_all(format!("{head}\r\n").as_bytes());
    let _ = stream.write_all(sent);
}

/// An image of layers, each one file, as a registry has it.
#[derive(Clone, Default)]
pub struct Image {
    /// Blobs and manifests by digest.
    pub parts: BTreeMap<String, Vec<u8>>,
    pub manifest: Vec<u8>,
    pub layers: Vec<String>,
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn tar_of(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut out = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1);
    out.append_data(&mut header, name, bytes).unwrap();
    out.into_inner().unwrap()
}

pub fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

impl Image {
    /// One layer for each (name, contents).
    pub fn new(files: &[(&str, &[u8])]) -> Image {
        let layers: Vec<Vec<u8>> = files.iter().map(|(name, bytes)| tar_of(name, bytes)).collect();
        let ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
        let config = serde_json::json!({"architecture": architecture(), "os": "linux",
            "config": {"Cmd": [files[0].0]}, "rootfs": {"type": "layers", "diff_ids": ids}});
        let config = config.to_string().into_bytes();
        let describe = |bytes: &Vec<u8>| {
            let digest = digest(bytes);
            serde_json::json!({"mediaType": "x", "digest": digest, "size": bytes.len()})
        };
        let rows: Vec<_> = layers.iter().map(describe).collect();
        let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": MANIFEST,
            "config": describe(&config), "layers": rows});
        let manifest = manifest.to_string().into_bytes();
        let all = layers.iter().chain([&config, &manifest]);
        let parts = all.map(|bytes| (digest(bytes), bytes.clone())).collect();
        Image { parts, manifest, layers: ids }
    }

    /// What an honest registry answers that has this image under every tag.
    pub fn reply(&self, request: &Request) -> Reply {
        let Some((_, last)) = request.path.rsplit_once('/') else { return Reply::of(404) };
        let last = last.split('?').next().unwrap_or_default();
        let body = match self.parts.get(last) {
            Some(part) => part,
            None if request.path.contains("/manifests/") && !last.contains(':') => &self.manifest,
            None => return Reply::of(404),
        };
        let from: Option<usize> = request
            .header("range")
            .strip_prefix("bytes=")
            .and_then(|range| range.trim_end_matches('-').parse().ok());
        let Some(from) = from else {
            return Reply::ok(body.clone()).with("docker-content-digest", digest(body));
        };
        let range = format!("bytes {from}-{}/{}", body.len() - 1, body.len());
        Reply { body: body[from..].to_vec(), ..Reply::of(206) }.with("content-range", range)
    }
}
