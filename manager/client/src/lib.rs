//! How schedulers, seed peers and peers know their manager.
//!
//! [`keep_alive`] holds a member's stream up for as long as the member runs. [`discover`] asks where the scheduler and
//! the seed peers are and how the asker is set, keeps the last answer on disk, and says so to whoever watches. Both go on for ever, log what
//! changes, and never make anybody wait: without a manager all goes on with what is known.

mod backoff;
mod config;
mod discover;
mod keep_alive;
mod settings;
#[cfg(feature = "testing")]
pub mod testing;

pub use config::ManagerConfig;
pub use discover::{AskError, Asking, Discovered, discover, kept, look};
pub use keep_alive::{Crowd, Member, keep_alive};
pub use settings::settings;
