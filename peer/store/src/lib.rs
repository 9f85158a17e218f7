//! The node's chunks on disk.
//!
//! ```text
//! <directory>/format                 version of this layout
//! <directory>/layers/<sha256 hex>/   one directory per layer, complete once it has this name
//!     index                          the sealed layer index
//!     device                         sparse; uncompressed chunks, what the kernel reads
//!     device.bits                    which chunks of the device are valid, twice
//!     pack                           sparse; frames as they travel, what other peers read
//!     pack.bits                      which frames of the pack are valid, twice
//!     reference.json                 registry, repository and digests of the layer
//!     boot                           the boot that the bits are of
//!     device.claims, pack.claims     bits of earlier boots that are not confirmed yet; seldom there
//! <directory>/staging/               layers whose index is not known yet; emptied at start
//! ```
//!
//! Order of writes: data, then the bit. The page cache keeps both over a kill of the process. After a crash of the
//! machine the bits may be ahead of the data, so the first open in a new boot sets them aside as claims; a chunk counts
//! again once it is hashed ([`Layer::confirm`]), when a reader wants it or at its turn.
//! One process owns a store; others may read `device` and `device.bits` of it, which change only from 0 to 1 as long as
//! the disk keeps what it was given. The kernel may have the device of a complete layer mounted (`docs/adr/0004`): what a
//! set bit vouches for is never punched or cut off again, nor written, except by [`Scrub`] with the bytes that should be
//! there, and a layer goes only as a whole, by its name.

mod bitmap;
mod claims;
mod error;
mod layer;
mod scrub;
mod staging;
mod store;
mod twins;
mod uncached;
mod verify;

pub use bitmap::Bitmap;
pub use error::StoreError;
pub use layer::{FrameLocation, Layer, LayerPaths};
pub use scrub::{Scrub, Scrubbed};
pub use staging::Staging;
pub use store::{RESERVE_BYTES, Recovered, Store, StoreOptions, Usage, stored_format};
pub use verify::{VerifyError, decode_chunk};
