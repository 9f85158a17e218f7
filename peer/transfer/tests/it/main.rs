//! Real sockets over loopback, a fake provider, and clients and servers that misbehave.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

mod drain;
mod fake;
mod fetch;
mod hostile;
mod open;
mod raw;
