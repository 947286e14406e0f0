//! A face that is served in this process, and who asks it: JSON over HTTP, with or without TLS.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use knarr_etcd::{Face, FaceConfig, Listener, TlsKeeper, serve};
use knarr_store::sim::{Pump, SimClock, SimDisk};
use knarr_store::{Store, StoreConfig};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::yield_now;
use tokio_rustls::TlsConnector;

/// A face, served while it lives.
pub struct Served {
    pub address: SocketAddr,
    _until_dropped: watch::Sender<bool>,
}

/// Who asks, and where.
#[derive(Clone)]
pub struct Client {
    pub address: SocketAddr,
    pub tls: Option<Arc<ClientConfig>>,
    pub token: Option<String>,
}

/// A store that writes when it is told.
pub struct ByHand {
    pub store: Store,
    pub disk: SimDisk,
    pub clock: Arc<SimClock>,
    pump: Pump,
}

impl ByHand {
    pub fn new(config: StoreConfig) -> Self {
        let (disk, clock) = (SimDisk::default(), Arc::<SimClock>::default());
        let (store, pump) = Store::simulated(&disk, &clock, config).unwrap();
        Self { store, disk, clock, pump }
    }

    /// Lets everything happen until something is done.
    pub async fn until<T>(&mut self, done: impl Future<Output = T>) -> T {
        let mut done = pin!(done);
        loop {
            if let Poll::Ready(done) = done.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                return done;
            }
            self.settle();
            yield_now().await;
        }
    }

    /// Lets everything happen that is due.
    pub fn settle(&mut self) {
        while self.pump.step() || self.pump.work() {}
    }
}

/// What came back.
pub struct Answer {
    pub code: u16,
    body: Incoming,
    read: Vec<u8>,
}

/// Settings for tests: hashes that take no time.
pub fn quick() -> FaceConfig {
    FaceConfig { bcrypt_cost: 4, ..FaceConfig::default() }
}

impl Served {
    pub async fn new(store: &Store, config: FaceConfig, tls: Option<Arc<TlsKeeper>>) -> Self {
        let face = Face::new(store.clone(), config).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (until_dropped, drain) = watch::channel(false);
        tokio::spawn(serve(face, Listener::Tcp(listener, tls), drain));
        Self { address, _until_dropped: until_dropped }
    }

    pub fn client(&self) -> Client {
        Client { address: self.address, tls: None, token: None }
    }
}

impl Client {
    /// Posts to a path below `/v3/`.
    ///
    /// # Errors
    /// When no connection could be made, as by wrong certificates.
    pub async fn post(&self, path: &str, body: impl Into<Bytes>) -> Result<Answer, String> {
        let mut request = Request::post(format!("/v3/{path}")).header("host", "etcd");
        if let Some(token) = &self.token {
            request = request.header("authorization", token);
        }
        self.send(request.body(Full::new(body.into())).unwrap()).await
    }

    pub async fn send(&self, request: Request<Full<Bytes>>) -> Result<Answer, String> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let response = match &self.tls {
            None => exchange(stream, request).await?,
            Some(tls) => {
                let name = ServerName::try_from("localhost").unwrap();
                let connector = TlsConnector::from(tls.clone());
                let stream = connector.connect(name, stream).await.map_err(|e| e.to_string())?;
                exchange(stream, request).await?
            }
        };
        Ok(Answer {
            code: response.status().as_u16(),
            body: response.into_body(),
            read: Vec::new(),
        })
    }

    /// The only answer.
    pub async fn ask(&self, path: &str, body: &Value) -> (u16, Value) {
        let mut answer = self.post(path, body.to_string()).await.unwrap();
        (answer.code, serde_json::from_str(&answer.rest().await).unwrap())
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<Response<Incoming>, String> {
    let io = TokioIo::new(stream);
    let text = |error: hyper::Error| format!("{error:?}");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.map_err(text)?;
    tokio::spawn(connection);
    sender.send_request(request).await.map_err(text)
}

impl Answer {
    /// The next line of a stream; none at its end.
    pub async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line = self.read.drain(..=end).collect();
                return Some(String::from_utf8(line).unwrap());
            }
            let frame = self.body.frame().await?.unwrap();
            self.read.extend_from_slice(&frame.into_data().unwrap_or_default());
        }
    }

    /// All that is left.
    pub async fn rest(&mut self) -> String {
        while let Some(frame) = self.body.frame().await {
            self.read.extend_from_slice(&frame.unwrap().into_data().unwrap_or_default());
        }
        String::from_utf8(std::mem::take(&mut self.read)).unwrap()
    }
}
