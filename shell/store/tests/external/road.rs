//! A road to an etcd that a test can make lose answers, cut and open again.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How the road is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// What is sent arrives; answers do not.
    LosesAnswers,
    /// Answers take long if they are large.
    Narrow,
    Cut,
}

/// A road that begins at `endpoint`.
pub struct Road {
    pub endpoint: String,
    state: Arc<watch::Sender<State>>,
    _tasks: JoinSet<()>,
}

impl Road {
    /// Builds a road to an address, `http://HOST:PORT`.
    pub async fn to(endpoint: &str) -> Self {
        let target = endpoint.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(watch::Sender::new(State::Open));
        let mut tasks = JoinSet::new();
        let seen = state.clone();
        tasks.spawn(async move {
            loop {
                let (here, _) = listener.accept().await.unwrap();
                if *seen.borrow() != State::Cut {
                    tokio::spawn(carry(here, target.clone(), seen.clone()));
                }
            }
        });
        Self { endpoint, state, _tasks: tasks }
    }

    pub fn lose_answers(&self) {
        self.state.send_replace(State::LosesAnswers);
    }

    pub fn narrow(&self) {
        self.state.send_replace(State::Narrow);
    }

    pub fn cut(&self) {
        self.state.send_replace(State::Cut);
    }

    pub fn open(&self) {
        self.state.send_replace(State::Open);
    }
}

/// Carries both ways until the road is cut.
async fn carry(here: TcpStream, target: String, state: Arc<watch::Sender<State>>) {
    let there = TcpStream::connect(target).await.unwrap();
    let ((from, back), (answers, to)) = (here.into_split(), there.into_split());
    let mut cut = state.subscribe();
    tokio::select! {
        _ = cut.wait_for(|state| *state == State::Cut) => {}
        () = copy(from, to, |_| Some(Duration::ZERO), &state) => {}
        () = copy(answers, back, State::takes, &state) => {}
    }
}

impl State {
    /// How long a byte of an answer takes, if it arrives.
    fn takes(self) -> Option<Duration> {
        match self {
            Self::Open | Self::Cut => Some(Duration::ZERO),
            Self::Narrow => Some(Duration::from_micros(10)),
            Self::LosesAnswers => None,
        }
    }
}

async fn copy(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    takes: fn(State) -> Option<Duration>,
    state: &watch::Sender<State>,
) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let Some(time) = takes(*state.borrow()) else { continue };
        tokio::time::sleep(time * u32::try_from(read).unwrap()).await;
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
