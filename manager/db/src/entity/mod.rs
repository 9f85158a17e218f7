//! The rows, one file per table. Times are milliseconds since 1970, UTC.

pub mod cluster;
pub mod credential;
pub mod job;
pub mod layer;
pub mod member;
pub mod peer;
pub mod placement;
pub mod token;
pub mod user;
