use std::borrow::Cow;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use d7y_fuse::{
    Attributes, DirectoryEntry, DirectorySink, Entry, Errno, FileKind, Filesystem, NodeId, ReadReply,
    Timestamp, XattrNames,
};
use d7y_image::Tree;
use d7y_types::ByteRange;
use parking_lot::RwLock;

use crate::layers::reads::{Reader, Source};
use crate::layers::registry::{FIRST_ID, MountId};
use crate::layers::tree;

/// Inside the FUSE mount: the directory of layer devices, one file per mount id.
pub const DEVICES: &str = "d";
/// Inside the FUSE mount: the directory of layer trees, one directory per mount id.
pub const TREES: &str = "t";

const DEVICES_NODE: NodeId = NodeId(2);
const TREES_NODE: NodeId = NodeId(3);

/// One mounted layer as the FUSE mount shows it.
pub struct LayerNode {
    pub source: Arc<Source>,
    pub device_bytes: u64,
    /// With the FUSE driver: the layer's files.
    pub tree: Option<Arc<Tree>>,
}

/// The node's one FUSE file system.
///
/// | Path | Node id |
/// |---|---|
/// | `/`, `/d`, `/t` | 1, 2, 3 |
/// | `/d/<id>`: the layer's device | the mount id |
/// | `/t/<id>/..`: the layer's files | mount id in the upper, node of the tree in the lower 32 bits |
pub struct LayerFilesystem {
    reader: Arc<Reader>,
    layers: RwLock<HashMap<MountId, Arc<LayerNode>>>,
}

enum Place {
    Top(NodeId),
    Device(Arc<LayerNode>),
    Tree(MountId, Arc<Source>, Arc<Tree>, d7y_image::NodeId),
}

impl LayerFilesystem {
    pub fn new(reader: Arc<Reader>) -> Self {
        Self { reader, layers: RwLock::default() }
    }

    /// Shows a layer. What it shows under an id must never change.
    pub fn show(&self, id: MountId, node: LayerNode) {
        self.layers.write().insert(id, Arc::new(node));
    }

    pub fn hide(&self, id: MountId) {
        self.layers.write().remove(&id);
    }

    fn layer(&self, id: u32) -> Result<Arc<LayerNode>, Errno> {
        self.layers.read().get(&MountId(id)).cloned().ok_or(Errno::STALE)
    }

    fn place(&self, node: NodeId) -> Result<Place, Errno> {
        let (high, low) = ((node.0 >> 32) as u32, node.0 as u32);
        match high {
            0 if low < FIRST_ID => Ok(Place::Top(node)),
            0 => self.layer(low).map(Place::Device),
            id => {
                let layer = self.layer(id)?;
                let tree = layer.tree.clone().filter(|tree| (low as usize) < tree.node_count());
                let tree = tree.ok_or(Errno::STALE)?;
                Ok(Place::Tree(MountId(id), Arc::clone(&layer.source), tree, d7y_image::NodeId(low)))
            }
        }
    }

    /// A layer that a directory of layers lists.
    fn listed(&self, directory: NodeId, name: &OsStr) -> Result<(NodeId, Arc<LayerNode>), Errno> {
        let id = name.to_str().and_then(|name| name.parse().ok()).ok_or(Errno::NO_ENTRY)?;
        let layer = self.layer(id).map_err(|_| Errno::NO_ENTRY)?;
        match directory {
            DEVICES_NODE => Ok((NodeId(id.into()), layer)),
            TREES_NODE if layer.tree.is_some() => Ok((NodeId(u64::from(id) << 32), layer)),
            _ => Err(Errno::NO_ENTRY),
        }
    }

    fn list_top(&self, node: NodeId) -> Vec<(String, NodeId, FileKind)> {
        if node == NodeId::ROOT {
            let entry = |name: &str, node| (name.into(), node, FileKind::Directory);
            return vec![entry(DEVICES, DEVICES_NODE), entry(TREES, TREES_NODE)];
        }
        let kind = if node == DEVICES_NODE { FileKind::Regular } else { FileKind::Directory };
        let mut ids: Vec<_> = self.layers.read().keys().copied().collect();
        ids.sort_unstable();
        let found = ids.into_iter().filter_map(|id| {
            let name = id.to_string();
            let (node, _) = self.listed(node, OsStr::new(&name)).ok()?;
            Some((name, node, kind))
        });
        found.collect()
    }
}

impl Filesystem for LayerFilesystem {
    fn lookup(&self, parent: NodeId, name: &OsStr) -> Result<Option<Entry>, Errno> {
        let node = match self.place(parent)? {
            Place::Top(NodeId::ROOT) => match name.to_str() {
                Some(DEVICES) => DEVICES_NODE,
                Some(TREES) => TREES_NODE,
                _ => return Err(Errno::NO_ENTRY),
            },
            Place::Top(directory) => self.listed(directory, name)?.0,
            Place::Device(_) => return Err(Errno::NOT_A_DIRECTORY),
            Place::Tree(id, _, tree, directory) => {
                tree.children(directory).ok_or(Errno::NOT_A_DIRECTORY)?;
                match tree.child(directory, name.as_bytes()) {
                    Some(child) => tree::node_id(id, child),
                    None => return Ok(None),
                }
            }
        };
        self.attributes(node).map(|attributes| Some(Entry { node, attributes }))
    }

    fn attributes(&self, node: NodeId) -> Result<Attributes, Errno> {
        match self.place(node)? {
            // Root alone may enter, as with every place of layers.
            Place::Top(_) => Ok(plain(FileKind::Directory, 0o700, 0)),
            Place::Device(layer) => Ok(plain(FileKind::Regular, 0o400, layer.device_bytes)),
            Place::Tree(_, _, tree, node) => Ok(tree::attributes(tree.node(node))),
        }
    }

    fn read(&self, node: NodeId, range: ByteRange, reply: ReadReply) {
        let (source, start, bytes) = match self.place(node) {
            Ok(Place::Device(layer)) => (Arc::clone(&layer.source), 0, layer.device_bytes),
            Ok(Place::Tree(_, source, tree, node)) => match tree::content(tree.node(node)) {
                Ok(content) => (source, content.offset, content.length),
                Err(errno) => return reply.error(errno),
            },
            Ok(Place::Top(_)) => return reply.error(Errno::IS_A_DIRECTORY),
            Err(errno) => return reply.error(errno),
        };
        let length = range.length.min(bytes.saturating_sub(range.offset));
        if length == 0 {
            return reply.data(&[]);
        }
        self.reader.read(&source, ByteRange::new(start + range.offset, length), reply);
    }

    fn read_directory(&self, node: NodeId, offset: u64, sink: &mut DirectorySink<'_>) -> Result<(), Errno> {
        let mut listing = Listing { offset, next: 0, sink };
        if listing.add(OsStr::new("."), node, FileKind::Directory).is_break()
            || listing.add(OsStr::new(".."), NodeId::ROOT, FileKind::Directory).is_break()
        {
            return Ok(());
        }
        match self.place(node)? {
            Place::Top(directory) => {
                for (name, node, kind) in self.list_top(directory) {
                    if listing.add(OsStr::new(&name), node, kind).is_break() {
                        break;
                    }
                }
            }
            Place::Device(_) => return Err(Errno::NOT_A_DIRECTORY),
            Place::Tree(id, _, tree, directory) => {
                let children = tree.children(directory).ok_or(Errno::NOT_A_DIRECTORY)?;
                let done = listing.next.max(offset) - listing.next;
                listing.next += done;
                for (name, child) in children.iter().skip(usize::try_from(done).unwrap_or(usize::MAX)) {
                    let kind = tree::kind(tree.node(*child));
                    if listing.add(OsStr::from_bytes(name), tree::node_id(id, *child), kind).is_break() {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    fn read_link(&self, node: NodeId) -> Result<Cow<'_, [u8]>, Errno> {
        match self.place(node)? {
            Place::Tree(_, _, tree, node) => tree::link_target(tree.node(node)).map(Cow::Owned),
            Place::Top(_) | Place::Device(_) => Err(Errno::INVALID),
        }
    }

    fn get_xattr(&self, node: NodeId, name: &OsStr) -> Result<Cow<'_, [u8]>, Errno> {
        match self.place(node)? {
            Place::Tree(_, _, tree, node) => {
                let value = tree.node(node).xattr(name.as_bytes()).ok_or(Errno::NO_DATA)?;
                Ok(Cow::Owned(value.to_vec()))
            }
            Place::Top(_) | Place::Device(_) => Err(Errno::NO_DATA),
        }
    }

    fn list_xattr(&self, node: NodeId, names: &mut XattrNames) -> Result<(), Errno> {
        if let Place::Tree(_, _, tree, node) = self.place(node)? {
            for (name, _) in &tree.node(node).xattrs {
                names.push(OsStr::from_bytes(name));
            }
        }
        Ok(())
    }
}

/// Counts entries so that a listing can go on where the kernel's last one ended.
struct Listing<'l, 's> {
    offset: u64,
    /// The offset of the entry to come.
    next: u64,
    sink: &'l mut DirectorySink<'s>,
}

impl Listing<'_, '_> {
    fn add(&mut self, name: &OsStr, node: NodeId, kind: FileKind) -> ControlFlow<()> {
        self.next += 1;
        if self.next <= self.offset {
            return ControlFlow::Continue(());
        }
        self.sink.add(&DirectoryEntry { name, node, kind, next: self.next })
    }
}

fn plain(kind: FileKind, permissions: u16, size: u64) -> Attributes {
    let links = if kind == FileKind::Directory { 2 } else { 1 };
    let modified = Timestamp::default();
    Attributes { kind, permissions, links, uid: 0, gid: 0, rdev: 0, size, modified }
}
