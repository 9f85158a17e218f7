//! Which image a layer belongs to, and where its bytes are to be had.
//!
//! Labels may name the manifest; if they do not, the image is looked up by its chain id. In every case the manifest
//! and the config come out of containerd's content store, in the caller's namespace: that they are there proves
//! that this node's own credentials passed the registry.

mod chain;
mod content;
mod documents;
mod labels;
mod resolver;

pub use chain::chain_ids;
pub use content::{BlobInfo, ContainerdContent, Content, ContentError};
pub use labels::{Hints, SNAPSHOT_REF, namespace_of};
pub use resolver::{Image, Resolver, Unresolved};
