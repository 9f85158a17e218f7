//! Layers that the peer supplies: what is mounted, and the reads of what is not there yet.
//!
//! # Lifecycle
//! [`Layers::mount`] opens a chain's layers at the peer, writes a bootstrap for each and mounts it: the kernel's
//! EROFS over one file of the node's FUSE mount, or, with the FUSE driver, a directory of that mount itself. A
//! mount has a number for good ([`MountId`]), so that a restarted snapshotter answers the node ids that the
//! kernel knows. It stays until [`Layers::sweep`] finds no container that stands on it.
//!
//! A layer that is here whole is mounted on the device in the peer's store itself, where its user allows
//! ([`Backing`]); a mount of the other kind that is there already stays beside it.
//!
//! # Restart and death
//! Nothing is unmounted at exit. The FUSE descriptor is parked with the peer and with the service manager; the next
//! start takes it, shows every registered mount again and adopts what the mount table has. Devices are opened when they are next read, and
//! anew after the peer restarted. A device whose index has another layout than the mounted one fails its reads.
//!
//! # Trust
//! A byte is read from the device only where the peer's bitmap says that it was verified. The kernel sees only
//! bootstraps that were parsed and written again on this node.

mod chunks;
mod device;
mod filesystem;
mod inherit;
mod pins;
mod reads;
mod registry;
mod session;
mod table;
mod touched;
mod tree;

pub use device::{Device, DeviceError, DeviceSlot};
pub use filesystem::{DEVICES, LayerFilesystem, LayerNode, TREES};
pub use pins::Pins;
pub use reads::{Failures, Reader, Source};
pub use registry::{Backing, MountId, MountKey, MountRecord, Registry};
pub use session::{Connection, Driver, FUSE_DESCRIPTOR, SessionError};
pub use table::{ChainLayer, LayerError, Layers, LayersParts, Mounted, Needs};
