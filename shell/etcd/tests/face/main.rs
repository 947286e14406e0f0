//! The face from outside: what its clients are answered over the network, whatever they ask.
//!
//! * `golden/etcd` – scripts that an etcd answers the same; `golden/own` – what is our own, or of a
//!   newer etcd than the judge; `script` – their language; `served` – a face and its clients.
//! * `tls` – certificates; `queues` – locks and elections; `rights` – rights that change while
//!   something is under way; `past` – what memory has let go; `gateway` – JSON, right and hostile.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

#[path = "../../../store/tests/contract/etcd.rs"]
mod etcd;
mod gateway;
mod past;
mod queues;
mod rights;
mod script;
mod served;
mod tls;
