//! Clients that write, read and watch at once, on a store without threads whose disk and clock
//! misbehave by seed; and a checker that decides whether what they were told can be true.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

mod bad;
mod check;
#[path = "../../../../core/mvcc/tests/naive/mod.rs"]
mod naive;
