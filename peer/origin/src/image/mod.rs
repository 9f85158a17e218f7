//! From an image's name to its layers: index, manifest and config, each checked against its digest.

#[cfg(feature = "fuzzing")]
pub(crate) mod documents;
#[cfg(not(feature = "fuzzing"))]
mod documents;
mod name;
mod resolve;

pub use documents::{Platform, PlatformError};
pub use name::{ImageName, NameError, Version};
pub use resolve::{Image, ImageError};
