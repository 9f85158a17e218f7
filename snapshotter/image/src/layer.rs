//! From tar entries to the tree of one overlayfs layer.
//!
//! The rules are those of the OCI image specification (layer.md), and where it is silent those that containerd
//! and umoci share:
//!
//! - `.wh.NAME` hides NAME of the layers below, never of its own layer: a NAME that the same layer has, before or
//!   after, stays, and if it is a directory it becomes opaque. `.wh..wh..opq` makes its directory opaque. Other
//!   names that begin with `.wh..wh.` are leftovers of aufs and ignored.
//! - A later entry replaces an earlier one; a directory on a directory only brings new attributes.
//! - Symbolic links inside the layer are followed on the way to an entry, never out of the layer's root.
//! - Directories that no entry names are implied.
//! - A hard link keeps the attributes of the file that it names.

use std::borrow::Cow;

use crate::bootstrap::{MAX_SYMLINK_BYTES, is_representable, xattr_area_bytes};
use crate::tar::{Entry, EntryKind};
use crate::tree::{
    MAX_NAME_BYTES, Node, NodeId, NodeKind, OPAQUE_XATTR, OVERLAY_XATTR_PREFIX, Tree, TreeError, components,
};

const WHITEOUT_PREFIX: &[u8] = b".wh.";
const AUFS_PREFIX: &[u8] = b".wh..wh.";
const OPAQUE_NAME: &[u8] = b".wh..wh..opq";
/// overlayfs shows `trusted.overlay.overlay.x` to its users as `trusted.overlay.x`.
const ESCAPED_XATTR_PREFIX: &[u8] = b"trusted.overlay.overlay.";
/// More symbolic links on the way to one entry are refused, as Linux does (`MAXSYMLINKS`).
const MAX_LINKS: u32 = 40;
/// Deeper directories are refused: no path reaches them (`PATH_MAX` 4,096 has room for so many components).
const MAX_DEPTH: usize = 2048;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayerError {
    #[error("the layer has an entry {path:?} that leads out of its root; rebuild the image without it")]
    Escapes { path: String },
    #[error("the layer has an entry {path:?} below something that is not a directory")]
    NotDirectory { path: String },
    #[error("the layer has an entry {path:?} whose name Linux does not allow: {why}")]
    Name { path: String, why: &'static str },
    #[error("the layer has an entry {path:?} behind a loop of symbolic links")]
    LinkLoop { path: String },
    #[error("the layer has a symbolic link {path:?} whose target is empty or too long")]
    Symlink { path: String },
    #[error("hard link {path:?} names {target:?}, which no earlier entry of the layer holds as a file")]
    HardLink { path: String, target: String },
    #[error("the layer makes its root something other than a directory")]
    Root,
    #[error("the extended attributes of {path:?} cannot be stored: {why}")]
    Xattrs { path: String, why: &'static str },
    #[error("the layer has more than {limit} files and directories; raise limits.entries if that is meant")]
    Entries { limit: u32 },
    #[error("the layer has more than {limit} bytes of names, links and extended attributes")]
    Metadata { limit: u64 },
}

/// What bounds the memory that a layer's tree takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TreeLimits {
    pub(crate) entries: u32,
    pub(crate) metadata_bytes: u64,
}

/// Applies the entries of one tar, in order.
pub(crate) struct LayerBuilder {
    tree: Tree,
    limits: TreeLimits,
    entries: u32,
    metadata_bytes: u64,
}

/// What an entry's path asks for. The components lead to the directory.
enum Target<'p> {
    Root,
    Aufs,
    Opaque(Vec<&'p [u8]>),
    Whiteout(Vec<&'p [u8]>, &'p [u8]),
    Named(Vec<&'p [u8]>, &'p [u8]),
}

impl LayerBuilder {
    pub(crate) fn new(limits: TreeLimits) -> Self {
        Self { tree: Tree::new(), limits, entries: 0, metadata_bytes: 0 }
    }

    pub(crate) fn finish(self) -> Tree {
        self.tree
    }

    /// Whether the entry is a file whose content belongs on the device.
    pub(crate) fn wants_content(entry: &Entry) -> Result<bool, LayerError> {
        let regular = matches!(entry.kind, EntryKind::Regular { .. });
        Ok(regular && matches!(target(&entry.path)?, Target::Named(..)))
    }

    /// Adds an entry; the content of a regular file is on the device at `device_offset`.
    pub(crate) fn apply(&mut self, entry: Entry, device_offset: u64) -> Result<(), LayerError> {
        self.count(&entry)?;
        let path = entry.path.clone();
        let at = Path(&path);
        match target(&path)? {
            Target::Aufs => Ok(()),
            Target::Root if entry.kind == EntryKind::Directory => {
                describe(self.tree.node_mut(NodeId::ROOT), entry, at)
            }
            Target::Root => Err(LayerError::Root),
            Target::Opaque(parent) => {
                let parent = self.directory(&parent, at)?;
                self.tree.node_mut(parent).set_xattr(OPAQUE_XATTR, b"y");
                Ok(())
            }
            Target::Whiteout(parent, name) => {
                let parent = self.directory(&parent, at)?;
                self.whiteout(Slot { parent, name, at }, &entry)
            }
            Target::Named(parent, name) => {
                let parent = self.directory(&parent, at)?;
                self.place(Slot { parent, name, at }, entry, device_offset)
            }
        }
    }

    fn count(&mut self, entry: &Entry) -> Result<(), LayerError> {
        self.entries = self.entries.saturating_add(1);
        let link = match &entry.kind {
            EntryKind::Symlink(target) => target.len(),
            _ => 0,
        };
        let xattrs: usize = entry.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.metadata_bytes += (entry.path.len() + link + xattrs) as u64;
        let nodes = self.tree.node_count() as u64;
        if u64::from(self.entries).max(nodes) > u64::from(self.limits.entries) {
            return Err(LayerError::Entries { limit: self.limits.entries });
        }
        if self.metadata_bytes > self.limits.metadata_bytes {
            return Err(LayerError::Metadata { limit: self.limits.metadata_bytes });
        }
        Ok(())
    }

    fn whiteout(&mut self, slot: Slot<'_>, entry: &Entry) -> Result<(), LayerError> {
        let Some(existing) = self.tree.child(slot.parent, slot.name) else {
            let mut node = Node::new(NodeKind::CharDevice(0), 0);
            (node.uid, node.gid, node.mtime) = (entry.uid, entry.gid, entry.mtime);
            return self.add(slot, node).map(drop);
        };
        if let NodeKind::Directory { implied, .. } = &mut self.tree.node_mut(existing).kind {
            *implied = false;
            self.tree.node_mut(existing).set_xattr(OPAQUE_XATTR, b"y");
        }
        Ok(())
    }

    fn place(&mut self, slot: Slot<'_>, entry: Entry, device_offset: u64) -> Result<(), LayerError> {
        let existing = self.tree.child(slot.parent, slot.name);
        let kind = match &entry.kind {
            EntryKind::HardLink(target) => {
                let target = self.link_target(target, slot.at)?;
                return if existing == Some(target) { Ok(()) } else { self.link(slot, target) };
            }
            EntryKind::Directory => {
                let id = match existing {
                    Some(id) if self.tree.node(id).is_directory() => id,
                    _ => self.fresh_directory(slot)?,
                };
                return describe(self.tree.node_mut(id), entry, slot.at);
            }
            EntryKind::Regular { size } => {
                NodeKind::Regular { device_offset: if *size == 0 { 0 } else { device_offset }, size: *size }
            }
            EntryKind::Symlink(target) if (1..=MAX_SYMLINK_BYTES).contains(&target.len()) => {
                NodeKind::Symlink(target.clone())
            }
            EntryKind::Symlink(_) => return Err(LayerError::Symlink { path: slot.at.text() }),
            EntryKind::CharDevice(number) => NodeKind::CharDevice(*number),
            EntryKind::BlockDevice(number) => NodeKind::BlockDevice(*number),
            EntryKind::Fifo => NodeKind::Fifo,
        };
        self.tree.remove(slot.parent, slot.name);
        let mut node = Node::new(kind, 0);
        describe(&mut node, entry, slot.at)?;
        self.add(slot, node).map(drop)
    }

    /// A directory where there is none yet. If it takes the place of something else, a whiteout above all, what
    /// the layers below have under that name stays hidden, and so do their attributes.
    fn fresh_directory(&mut self, slot: Slot<'_>) -> Result<NodeId, LayerError> {
        let mut node = Node::implied_directory();
        if self.tree.remove(slot.parent, slot.name).is_some() {
            node.kind = Node::directory(0).kind;
            node.set_xattr(OPAQUE_XATTR, b"y");
        }
        self.add(slot, node)
    }

    fn add(&mut self, slot: Slot<'_>, node: Node) -> Result<NodeId, LayerError> {
        self.tree.add(slot.parent, slot.name, node).map_err(|error| slot.at.refuse(error))
    }

    fn link(&mut self, slot: Slot<'_>, target: NodeId) -> Result<(), LayerError> {
        self.tree.remove(slot.parent, slot.name);
        self.tree.link(slot.parent, slot.name, target).map_err(|error| slot.at.refuse(error))
    }

    fn link_target(&mut self, target_path: &[u8], at: Path<'_>) -> Result<NodeId, LayerError> {
        let missing = || LayerError::HardLink { path: at.text(), target: Path(target_path).text() };
        let components = clean(target_path).map_err(|_| missing())?;
        let (name, parent) = components.split_last().ok_or_else(missing)?;
        let parent = self.walk(parent, at, |_, _| Ok(None))?.ok_or_else(missing)?;
        let id = self.tree.child(parent, name).ok_or_else(missing)?;
        let node = self.tree.node(id);
        if node.is_directory() || node.is_whiteout() { Err(missing()) } else { Ok(id) }
    }

    /// The directory at a path; what is missing becomes implied.
    fn directory(&mut self, path: &[&[u8]], at: Path<'_>) -> Result<NodeId, LayerError> {
        let made = self.walk(path, at, |layer, slot| layer.fresh_directory(slot).map(Some))?;
        Ok(made.expect("fresh_directory makes what is missing"))
    }

    /// Goes to a directory, through symbolic links. `missing` is asked for each directory that is not there; its
    /// `None` ends the walk.
    fn walk(
        &mut self,
        path: &[&[u8]],
        at: Path<'_>,
        missing: impl Fn(&mut Self, Slot<'_>) -> Result<Option<NodeId>, LayerError>,
    ) -> Result<Option<NodeId>, LayerError> {
        let mut ahead: Vec<Cow<'_, [u8]>> = path.iter().rev().map(|name| Cow::Borrowed(*name)).collect();
        let mut trail = vec![NodeId::ROOT];
        let mut links = 0;
        while let Some(name) = ahead.pop() {
            match &*name {
                b"." => continue,
                b".." => {
                    trail.truncate(trail.len().saturating_sub(1).max(1));
                    continue;
                }
                _ => {}
            }
            let here = *trail.last().expect("the root stays");
            let child = self.tree.child(here, &name);
            let child = match child.map(|child| (child, self.tree.node(child))) {
                Some((child, node)) if node.is_directory() => child,
                Some((_, Node { kind: NodeKind::Symlink(target), .. })) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(LayerError::LinkLoop { path: at.text() });
                    }
                    if target.starts_with(b"/") {
                        trail.truncate(1);
                    }
                    let steps: Vec<_> =
                        components(target).rev().map(|name| Cow::Owned(name.to_vec())).collect();
                    ahead.extend(steps);
                    continue;
                }
                Some((_, node)) if !node.is_whiteout() => {
                    return Err(LayerError::NotDirectory { path: at.text() });
                }
                _ => match missing(self, Slot { parent: here, name: &name, at })? {
                    Some(made) => made,
                    None => return Ok(None),
                },
            };
            trail.push(child);
            if trail.len() > MAX_DEPTH {
                return Err(LayerError::Name {
                    path: at.text(),
                    why: "it lies deeper than any path reaches",
                });
            }
        }
        Ok(trail.last().copied())
    }
}

/// A name in a directory, and the entry that asks for it.
#[derive(Clone, Copy)]
struct Slot<'p> {
    parent: NodeId,
    name: &'p [u8],
    at: Path<'p>,
}

/// The path of the entry at hand, for errors.
#[derive(Clone, Copy)]
struct Path<'p>(&'p [u8]);

impl Path<'_> {
    /// Readable, and short: a hostile path has no place in a log.
    fn text(self) -> String {
        String::from_utf8_lossy(&self.0[..self.0.len().min(MAX_NAME_BYTES)]).into_owned()
    }

    fn refuse(self, error: TreeError) -> LayerError {
        let path = self.text();
        match error {
            TreeError::NotDirectory | TreeError::Exists => LayerError::NotDirectory { path },
            TreeError::LinkToDirectory => LayerError::HardLink { path: path.clone(), target: path },
            TreeError::Name => {
                LayerError::Name { path, why: "a component is longer than 255 bytes or holds a zero" }
            }
            TreeError::Full => LayerError::Entries { limit: u32::MAX },
        }
    }
}

/// Takes an entry's attributes. A directory that has been found opaque stays so.
fn describe(node: &mut Node, entry: Entry, at: Path<'_>) -> Result<(), LayerError> {
    let opaque = node.is_opaque();
    if let NodeKind::Directory { implied, .. } = &mut node.kind {
        *implied = false;
    }
    node.mode = if matches!(node.kind, NodeKind::Symlink(_)) { 0o777 } else { entry.mode };
    (node.uid, node.gid, node.mtime) = (entry.uid, entry.gid, entry.mtime);
    // Linux keeps `user.*` on files and directories only, and containerd skips it on others.
    let user_too = matches!(node.kind, NodeKind::Regular { .. } | NodeKind::Directory { .. });
    let kept = |name: &[u8]| is_representable(name) && (user_too || !name.starts_with(b"user."));
    node.xattrs = entry.xattrs.into_iter().filter(|(name, _)| kept(name)).collect();
    for (name, _) in &mut node.xattrs {
        if let Some(rest) = name.strip_prefix(OVERLAY_XATTR_PREFIX) {
            *name = [ESCAPED_XATTR_PREFIX, rest].concat();
        }
    }
    if opaque {
        node.set_xattr(OPAQUE_XATTR, b"y");
    }
    xattr_area_bytes(&node.xattrs).map_err(|why| LayerError::Xattrs { path: at.text(), why }).map(drop)
}

fn target(path: &[u8]) -> Result<Target<'_>, LayerError> {
    let mut parent = clean(path)?;
    let Some(name) = parent.pop() else { return Ok(Target::Root) };
    if name == OPAQUE_NAME && !parent.iter().any(|part| part.starts_with(AUFS_PREFIX)) {
        return Ok(Target::Opaque(parent));
    }
    if parent.iter().chain([&name]).any(|part| part.starts_with(AUFS_PREFIX)) {
        return Ok(Target::Aufs);
    }
    match name.strip_prefix(WHITEOUT_PREFIX) {
        Some(b"" | b"." | b"..") => {
            Err(LayerError::Name { path: Path(path).text(), why: "a whiteout must name something" })
        }
        Some(hidden) => Ok(Target::Whiteout(parent, hidden)),
        None => Ok(Target::Named(parent, name)),
    }
}

/// The components of a path from the layer's root, without `.` and with `..` resolved in the text.
fn clean(path: &[u8]) -> Result<Vec<&[u8]>, LayerError> {
    let mut parts = Vec::new();
    for part in components(path) {
        match part {
            b"." => {}
            b".." => drop(parts.pop().ok_or(LayerError::Escapes { path: Path(path).text() })?),
            part => parts.push(part),
        }
    }
    Ok(parts)
}
