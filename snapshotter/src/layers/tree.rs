//! A layer's files as FUSE sees them: the driver for kernels that do not mount EROFS from plain files.

use d7y_fuse::{Attributes, Errno, FileKind, NodeId, Timestamp};
use d7y_image::{Node, NodeKind};
use d7y_types::ByteRange;

use crate::layers::registry::MountId;

pub fn node_id(id: MountId, node: d7y_image::NodeId) -> NodeId {
    NodeId(u64::from(id.0) << 32 | u64::from(node.0))
}

pub fn kind(node: &Node) -> FileKind {
    match node.kind {
        NodeKind::Directory { .. } => FileKind::Directory,
        NodeKind::Regular { .. } => FileKind::Regular,
        NodeKind::Symlink(_) => FileKind::Symlink,
        NodeKind::CharDevice(_) => FileKind::CharacterDevice,
        NodeKind::BlockDevice(_) => FileKind::BlockDevice,
        NodeKind::Fifo => FileKind::Fifo,
        NodeKind::Socket => FileKind::Socket,
    }
}

pub fn attributes(node: &Node) -> Attributes {
    let (rdev, size) = match &node.kind {
        NodeKind::Regular { size, .. } => (0, *size),
        NodeKind::Symlink(target) => (0, target.len() as u64),
        NodeKind::CharDevice(number) | NodeKind::BlockDevice(number) => (*number, 0),
        NodeKind::Directory { .. } | NodeKind::Fifo | NodeKind::Socket => (0, 0),
    };
    let (seconds, nanoseconds) = node.mtime;
    Attributes {
        kind: kind(node),
        permissions: node.mode,
        links: node.nlink,
        uid: node.uid,
        gid: node.gid,
        rdev,
        size,
        modified: Timestamp { seconds, nanoseconds },
    }
}

/// Where a file's content lies in the layer's device.
pub fn content(node: &Node) -> Result<ByteRange, Errno> {
    match node.kind {
        NodeKind::Regular { device_offset, size } => Ok(ByteRange::new(device_offset, size)),
        NodeKind::Directory { .. } => Err(Errno::IS_A_DIRECTORY),
        _ => Err(Errno::INVALID),
    }
}

pub fn link_target(node: &Node) -> Result<Vec<u8>, Errno> {
    match &node.kind {
        NodeKind::Symlink(target) => Ok(target.clone()),
        _ => Err(Errno::INVALID),
    }
}
