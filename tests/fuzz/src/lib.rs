//! What is fuzzed, what must hold, and what the fuzzer starts from.

#[path = "../../../snapshotter/image/tests/fixture/mod.rs"]
mod fixture;

mod layer;
pub mod seeds;
pub mod targets;
