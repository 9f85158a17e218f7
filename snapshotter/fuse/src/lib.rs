//! The kernel side of the data path: a FUSE server of our own, and the mounts around it.
//!
//! # Actors
//! A [`FuseDevice`] is one connection to the kernel: an open `/dev/fuse` bound to a mount. A [`Session`] serves
//! it with a few named threads that call a [`Filesystem`]. Reads are answered through a [`ReadReply`], which may
//! be kept and answered later from any thread, so that a missing chunk does not occupy a serving thread.
//!
//! # Ownership and death
//! The connection lives as long as any duplicate of its descriptor. Whoever parks one
//! ([`Session::duplicate`]) keeps readers waiting, not failing, while the server is away; the next server
//! attaches with [`Start::Attached`], which asks the kernel to send again what the last one had taken and not
//! answered. Nothing is kept in the transport between requests: node ids are the filesystem's own and must be
//! the same in every generation of the server. Descriptors are never cloned (`FUSE_DEV_IOC_CLONE`): the requests
//! of a clone die with it.
//!
//! # Shutdown
//! [`Session::stop`] takes no further request, finishes those taken, and leaves the mount alone. A reply dropped
//! after that stays unanswered in the kernel for the successor; before, it is `EIO`.

// Unsafe code is denied by the workspace. This crate is where the kernel's interfaces without a safe wrapper may be
// called; each such function allows it by itself and says why the call is sound.

mod buffers;
mod channel;
mod device;
mod dispatch;
mod erofs_image;
mod filesystem;
pub mod inherited;
mod mount_table;
pub mod mounts;
mod probe;
pub mod process;
mod protocol;
mod reply;
mod session;

pub use device::{DeviceError, FuseDevice, MountOptions, Privileges};
pub use filesystem::{
    Attributes, DirectoryEntry, DirectorySink, Entry, Errno, FileKind, Filesystem, NodeId, Statistics,
    Timestamp, XattrNames,
};
pub use protocol::MAX_READ_BYTES;
pub use reply::ReadReply;
pub use session::{Counters, Session, SessionEnd, SessionError, Start, Stopped};
