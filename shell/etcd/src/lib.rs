//! etcd's faces of the store: gRPC for `etcdctl` and every client of etcd, JSON for `curl`.
//!
//! * `face` – who asks, may they, and the way to the store; `wire` – requests as transactions;
//!   `refusal` – refusals as etcd words them.
//! * `kv`, `watch`, `lease`, `cluster`, `maintenance`, `auth`, `lock`, `election` – a service each.
//! * `gateway` – the same services as JSON over HTTP; `pages` – version and health;
//!   `metrics`, with what `process` finds.
//! * `serve` – connections; `http2` – the calls of one; `alive` – whether somebody is there;
//!   `authority` – whom Go's clients think they speak to; `unary` – those that make the load, by a
//!   shorter way; `tls` – certificates that follow their files; `tokens` – who logged in.
//!
//! Invariants: no request reaches the store unjudged, and what was judged by users and roles as
//! they were holds only if they still are so at its place in the log.

mod alive;
mod auth;
mod authority;
mod cluster;
mod election;
mod face;
mod gateway;
mod http2;
mod kv;
mod lease;
mod lock;
mod maintenance;
mod metrics;
mod pages;
mod process;
mod refusal;
mod serve;
mod tls;
mod tokens;
mod unary;
mod watch;
mod wire;

pub use alive::Keepalive;
pub use face::{Face, FaceConfig};
pub use pages::ETCD_VERSION;
pub use serve::{Listener, serve, serve_pages};
pub use tls::{TlsError, TlsFiles, TlsKeeper};
pub use tokens::{TokenError, TokenKind};
