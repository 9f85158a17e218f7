//! What the layers below say about directories that a layer's tar only implies.

use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use d7y_image::{MODE_MASK, Node, NodeId, NodeKind, Tree};
use rustix::fs::{lgetxattr, llistxattr};
use rustix::io::Errno;

/// The kernel's limit of a list of names and of a value (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`), in bytes.
const MAX_XATTR_BYTES: usize = 64 << 10;

/// Gives the implied directories of a layer the attributes that the layers below show; true when that changed
/// anything that counts. The root alone takes no times: every layer would differ in them.
///
/// `lowers` are the unpacked or mounted layers below, the nearest first.
pub fn inherit(tree: &mut Tree, lowers: &[PathBuf]) -> io::Result<bool> {
    let implied = implied_paths(tree);
    if implied.is_empty() || lowers.is_empty() {
        return Ok(false);
    }
    let skeletons = lowers.iter().map(|lower| skeleton(lower, &implied)).collect::<io::Result<Vec<_>>>()?;
    let mut inherited = tree.clone();
    inherited.inherit_implied(&skeletons.iter().collect::<Vec<_>>());
    let only_root = implied.len() == 1 && implied[0].is_empty();
    let (before, after) = (tree.node(NodeId::ROOT), inherited.node(NodeId::ROOT));
    let differs = if only_root { !same_but_for_time(before, after) } else { *tree != inherited };
    if differs {
        *tree = inherited;
    }
    Ok(differs)
}

/// Paths without a leading slash; the root is empty. Parents before children.
fn implied_paths(tree: &Tree) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut open = vec![(NodeId::ROOT, Vec::new())];
    while let Some((id, path)) = open.pop() {
        let NodeKind::Directory { children, implied } = &tree.node(id).kind else { continue };
        for (name, child) in children.iter().filter(|(_, child)| tree.node(**child).is_directory()) {
            let below = if path.is_empty() { name.clone() } else { [path.as_slice(), name].join(&b'/') };
            open.push((*child, below));
        }
        if *implied {
            found.push(path);
        }
    }
    found
}

/// What a directory tree on disk has along some paths.
fn skeleton(root: &Path, paths: &[Vec<u8>]) -> io::Result<Tree> {
    let mut tree = Tree::with_root(read_node(root)?).map_err(io::Error::other)?;
    for path in paths {
        let (mut at, mut on_disk) = (NodeId::ROOT, root.to_owned());
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            on_disk.push(OsStr::from_bytes(name));
            at = match tree.child(at, name) {
                Some(known) => known,
                None => match read_node(&on_disk) {
                    Ok(node) => tree.add(at, name, node).map_err(io::Error::other)?,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                    Err(error) => return Err(error),
                },
            };
            if !tree.node(at).is_directory() {
                break;
            }
        }
    }
    Ok(tree)
}

fn read_node(path: &Path) -> io::Result<Node> {
    let metadata = std::fs::symlink_metadata(path)?;
    let kind = metadata.file_type();
    let mut node = if kind.is_dir() {
        Node::directory(metadata.mode() as u16 & MODE_MASK)
    } else if kind.is_char_device() && metadata.rdev() == 0 {
        Node::new(NodeKind::CharDevice(0), 0)
    } else {
        // Whatever it is, it is no directory.
        Node::new(NodeKind::Fifo, 0)
    };
    (node.uid, node.gid) = (metadata.uid(), metadata.gid());
    node.mtime = (metadata.mtime(), u32::try_from(metadata.mtime_nsec()).unwrap_or(0));
    if kind.is_dir() {
        node.xattrs = read_xattrs(path)?;
    }
    Ok(node)
}

fn read_xattrs(path: &Path) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut space = vec![MaybeUninit::uninit(); MAX_XATTR_BYTES];
    let names = match llistxattr(path, &mut space[..]) {
        Ok((names, _)) => names.to_vec(),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(Vec::new()),
        Err(errno) => return Err(errno.into()),
    };
    let mut found = Vec::new();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        match lgetxattr(path, OsStr::from_bytes(name), &mut space[..]) {
            Ok((value, _)) => found.push((name.to_vec(), value.to_vec())),
            // Gone since, or not for us to see.
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(found)
}

fn same_but_for_time(a: &Node, b: &Node) -> bool {
    (a.mode, a.uid, a.gid) == (b.mode, b.uid, b.gid) && a.xattrs == b.xattrs
}
