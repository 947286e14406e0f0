//! TLS, HTTP and watch streams around the request pipeline.
//!
//! [`Server`] is the pump: it carries a request through [`knarr_registry::Call`], one step after
//! the other, and does what the steps ask for. It decides nothing about objects. In-process
//! clients call [`Server::call`]; everybody else comes over TLS through [`serve`].

mod addresses;
mod documents;
mod http;
mod metrics;
mod nodes;
mod past;
mod server;
mod tokens;
mod watcher;

pub use http::serve;
pub use metrics::Metrics;
pub use server::{Server, ServerConfig, StartError};
pub use watcher::{Next, Watcher, WatcherEnd};
