//! Preheating: an image's layers on the disks of peers before anybody starts it.
//!
//! A job is a row. `carry_on` takes the lease on pending jobs and drives each one step by step; a step reads the row,
//! asks what is missing of registry and schedulers, and writes down what it learned. No step remembers anything that is
//! not in the database or at the scheduler, so that it can be taken by anybody, again, at any time. `resolve` says what
//! the image's name means, `access` what opens its layers to peers, `place` talks to the schedulers, `request` is what people ask for.

mod access;
mod carry_on;
mod place;
mod request;
mod resolve;
mod spread;

pub(crate) use carry_on::{CarryOn, OUT_OF_TIME};
pub(crate) use request::{PreheatArgs, Scope};
