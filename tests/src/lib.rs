//! End-to-end tests: see the test targets in Cargo.toml.
