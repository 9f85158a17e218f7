use std::collections::{BTreeMap, HashMap};

use super::*;
use crate::index::LayerIndex;
use crate::tree::{MODE_MASK, Node, NodeId, NodeKind, Tree, valid_name};

/// Deeper trees are refused: a path of 4,096 bytes (Linux `PATH_MAX`) has at most that many components.
const MAX_DEPTH: u32 = 2048;
const NANOSECONDS: u32 = 1_000_000_000;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error("the bootstrap's superblock is not one that d7y writes: {0}")]
    Superblock(&'static str),
    #[error("inode {nid} of the bootstrap is malformed: {what}")]
    Inode { nid: u64, what: &'static str },
    #[error("directory {nid} of the bootstrap is malformed: {what}")]
    Directory { nid: u64, what: &'static str },
    #[error("parts of the bootstrap overlap: it describes more than it holds")]
    Overlap,
    #[error("the layer index and its bootstrap disagree: {0}")]
    Index(&'static str),
}

/// Parses an image that [`write_bootstrap`](super::write_bootstrap) could have written. Foreign bytes give an
/// error, and take no more memory than a small multiple of their length.
pub fn read_bootstrap(image: &[u8]) -> Result<Tree, ReadError> {
    let root = check_super(image)?;
    let mut reader = Reader {
        image,
        nodes: Vec::new(),
        known: HashMap::new(),
        // Parts of one image that do not overlap cannot add up to more than the image.
        unclaimed_bytes: image.len(),
    };
    reader.read_node(root)?;
    let mut open = vec![(NodeId::ROOT, root, 0)];
    while let Some((directory, parent_nid, depth)) = open.pop() {
        if depth > MAX_DEPTH {
            return Err(ReadError::Directory { nid: parent_nid, what: "deeper than any path reaches" });
        }
        let nid = reader.nodes[directory.index()].nid;
        let first_new = reader.nodes.len();
        reader.read_directory(directory, parent_nid)?;
        let new = (first_new..reader.nodes.len()).filter(|n| reader.nodes[*n].is_directory());
        open.extend(new.map(|n| (NodeId(n as u32), nid, depth + 1)));
    }
    Ok(Tree { nodes: reader.nodes })
}

/// The tree of a layer, with its implied directories marked, and every file within the layer's device.
pub fn layer_tree(index: &LayerIndex) -> Result<Tree, ReadError> {
    let mut tree = read_bootstrap(&index.bootstrap)?;
    let device_bytes = index.device_bytes();
    let mut directories = HashMap::new();
    for (n, node) in tree.nodes.iter().enumerate() {
        match node.kind {
            NodeKind::Directory { .. } => drop(directories.insert(node.nid, n)),
            NodeKind::Regular { device_offset, size } if device_offset + size > device_bytes => {
                return Err(ReadError::Index("a file lies outside the device"));
            }
            _ => {}
        }
    }
    for nid in &index.implied {
        let at = directories.get(nid).ok_or(ReadError::Index("an implied directory is not a directory"))?;
        if let NodeKind::Directory { implied, .. } = &mut tree.nodes[*at].kind {
            *implied = true;
        }
    }
    Ok(tree)
}

/// Checks the superblock and gives the root's nid.
fn check_super(image: &[u8]) -> Result<u64, ReadError> {
    let refuse = |what| Err(ReadError::Superblock(what));
    if image.len() < 2 * BLOCK || !image.len().is_multiple_of(BLOCK) {
        return refuse("its length is not a whole number of blocks, two at least");
    }
    let block = Fields(&image[SUPER_OFFSET..BLOCK]);
    let slot = usize::from(block.u16(88)) * SLOT_BYTES;
    if block.u32(0) != MAGIC {
        return refuse("it has no EROFS magic");
    }
    if block.u32(8) & COMPAT_CHECKSUM != 0 && block.u32(4) != super_checksum(image) {
        return refuse("its checksum is wrong");
    }
    if u32::from(image[SUPER_OFFSET + 12]) != BLOCK_BITS || block.u32(80) != INCOMPAT {
        return refuse("it is not made of 4 KiB blocks with chunked files on a device");
    }
    if block.u16(86) != 1 || slot != SLOT_OFFSET || block.u32(40) != 0 || block.u32(44) != 0 {
        return refuse("its device table or its metadata lie elsewhere");
    }
    Ok(u64::from(block.u16(14)))
}

struct Reader<'i> {
    image: &'i [u8],
    nodes: Vec<Node>,
    known: HashMap<u64, NodeId>,
    unclaimed_bytes: usize,
}

/// An inode whose type and content are still to be interpreted.
struct Inode {
    nid: u64,
    type_bits: u16,
    layout: u16,
    size: u64,
    union: u32,
    /// Where the bytes after inode and extended attributes begin.
    tail: usize,
}

impl<'i> Reader<'i> {
    fn read_node(&mut self, nid: u64) -> Result<NodeId, ReadError> {
        let refuse = |what| ReadError::Inode { nid, what };
        let at = usize::try_from(nid).ok().and_then(|nid| nid.checked_mul(NID_BYTES));
        let at = at.filter(|at| *at >= BLOCK).ok_or(refuse("it lies outside the image"))?;
        let raw = self.image.get(at..).and_then(|rest| rest.get(..INODE_BYTES));
        let raw = Fields(raw.ok_or(refuse("it lies outside the image"))?);
        let (format, mode) = (raw.u16(0), raw.u16(4));
        if format & INODE_EXTENDED == 0 || format >> 4 != 0 {
            return Err(refuse("it is not an extended inode"));
        }
        let area = self.take(at + INODE_BYTES, xattr::bytes_of(raw.u16(2)), nid)?;
        self.claim(INODE_BYTES)?;
        let inode = Inode {
            nid,
            type_bits: mode & TYPE_MASK,
            layout: format >> 1,
            size: raw.u64(8),
            union: raw.u32(16),
            tail: at + INODE_BYTES + area.len(),
        };
        let mtime = (raw.u64(32).cast_signed(), raw.u32(40));
        if mtime.1 >= NANOSECONDS {
            return Err(refuse("its time has more nanoseconds than a second"));
        }
        let kind = self.kind(&inode)?;
        let nlink = if matches!(kind, NodeKind::Directory { .. }) { 2 } else { 0 };
        let xattrs = xattr::decode(area).ok_or(refuse("its extended attributes are malformed"))?;
        let mode = mode & MODE_MASK;
        let id = NodeId(u32::try_from(self.nodes.len()).map_err(|_| ReadError::Overlap)?);
        self.nodes.push(Node { kind, mode, uid: raw.u32(24), gid: raw.u32(28), mtime, nlink, xattrs, nid });
        self.known.insert(nid, id);
        Ok(id)
    }

    fn kind(&mut self, inode: &Inode) -> Result<NodeKind, ReadError> {
        let refuse = |what| Err(ReadError::Inode { nid: inode.nid, what });
        Ok(match inode.type_bits {
            TYPE_DIRECTORY => NodeKind::Directory { children: BTreeMap::new(), implied: false },
            TYPE_REGULAR => self.regular(inode)?,
            TYPE_SYMLINK => {
                if inode.size == 0 || inode.size > MAX_SYMLINK_BYTES as u64 {
                    return refuse("its link target is empty or too long");
                }
                NodeKind::Symlink(self.content(inode)?.concat())
            }
            _ if inode.layout != LAYOUT_PLAIN || inode.size != 0 => {
                return refuse("a special file has content");
            }
            TYPE_CHAR => NodeKind::CharDevice(inode.union),
            TYPE_BLOCK => NodeKind::BlockDevice(inode.union),
            TYPE_FIFO => NodeKind::Fifo,
            TYPE_SOCKET => NodeKind::Socket,
            _ => return refuse("it has no file type"),
        })
    }

    fn regular(&mut self, inode: &Inode) -> Result<NodeKind, ReadError> {
        let refuse = |what| ReadError::Inode { nid: inode.nid, what };
        if inode.size == 0 && inode.layout == LAYOUT_PLAIN {
            return Ok(NodeKind::Regular { device_offset: 0, size: 0 });
        }
        let chunk_bits = BLOCK_BITS + (inode.union & CHUNK_BITS_MASK);
        if inode.layout != LAYOUT_CHUNKED
            || inode.union & !CHUNK_BITS_MASK != CHUNK_INDEXES
            || inode.size == 0
        {
            return Err(refuse("a file is neither empty nor made of indexed chunks"));
        }
        let count = usize::try_from(inode.size.div_ceil(1 << chunk_bits)).unwrap_or(usize::MAX);
        let bytes = count.checked_mul(CHUNK_INDEX_BYTES).ok_or(refuse("it has too many chunks"))?;
        let indexes = self.take(inode.tail.next_multiple_of(CHUNK_INDEX_BYTES), bytes, inode.nid)?;
        let first = u64::from(Fields(indexes).u32(4));
        let mut expected = first;
        for index in indexes.as_chunks::<CHUNK_INDEX_BYTES>().0.iter().map(|raw| Fields(raw)) {
            if index.u16(0) != 0 || index.u16(2) != DEVICE_ID || u64::from(index.u32(4)) != expected {
                return Err(refuse("its chunks do not lie one after another on the device"));
            }
            expected += 1 << (chunk_bits - BLOCK_BITS);
        }
        let end = first.checked_add(inode.size.div_ceil(BLOCK as u64));
        if end.is_none_or(|end| end > MAX_DEVICE_BLOCKS) {
            return Err(refuse("it reaches past the largest device"));
        }
        Ok(NodeKind::Regular { device_offset: first * BLOCK as u64, size: inode.size })
    }

    /// The content of a directory or a link that lies in the image: full blocks, and the tail.
    fn content(&mut self, inode: &Inode) -> Result<[&'i [u8]; 2], ReadError> {
        let refuse = |what| ReadError::Inode { nid: inode.nid, what };
        let size = usize::try_from(inode.size).map_err(|_| refuse("its content lies outside the image"))?;
        let tail = match inode.layout {
            LAYOUT_PLAIN => 0,
            LAYOUT_INLINE => size % BLOCK,
            _ => return Err(refuse("its content has an unknown layout")),
        };
        if inode.tail % BLOCK + tail > BLOCK {
            return Err(refuse("its inline content crosses a block"));
        }
        let blocks = self.take(inode.union as usize * BLOCK, size - tail, inode.nid)?;
        Ok([blocks, self.take(inode.tail, tail, inode.nid)?])
    }

    fn read_directory(&mut self, id: NodeId, parent_nid: u64) -> Result<(), ReadError> {
        let nid = self.nodes[id.index()].nid;
        let refuse = |what| ReadError::Directory { nid, what };
        let inode = self.directory_inode(nid);
        let [blocks, tail] = self.content(&inode)?;
        let mut entries: Vec<(Vec<u8>, NodeId)> = Vec::new();
        let (mut last, mut dots): (&[u8], u32) = (b"", 0);
        for block in blocks.chunks(BLOCK).chain(tail.chunks(BLOCK)) {
            for entry in Dirents::parse(block).ok_or(refuse("its entries do not fit their block"))? {
                let (name, target, kind) = entry.ok_or(refuse("a name lies outside its block"))?;
                if name <= last {
                    return Err(refuse("its names are not in byte order"));
                }
                last = name;
                match name {
                    b"." if target == nid => dots += 1,
                    b".." if target == parent_nid => dots += 1,
                    b"." | b".." => return Err(refuse("its dots lead elsewhere")),
                    _ => entries.push((name.to_vec(), self.resolve(id, name, target, kind)?)),
                }
            }
        }
        if dots != 2 {
            return Err(refuse("it has no dots"));
        }
        let NodeKind::Directory { children, .. } = &mut self.nodes[id.index()].kind else {
            return Err(refuse("it is not a directory"));
        };
        *children = BTreeMap::from_iter(entries);
        Ok(())
    }

    /// The node behind an entry: read now, or one that another name has led to.
    fn resolve(&mut self, parent: NodeId, name: &[u8], target: u64, kind: u8) -> Result<NodeId, ReadError> {
        let nid = self.nodes[parent.index()].nid;
        let refuse = |what| ReadError::Directory { nid, what };
        if !valid_name(name) {
            return Err(refuse("a name is not one that Linux allows"));
        }
        let known = self.known.get(&target).copied();
        let id = match known {
            Some(id) => id,
            None => self.read_node(target)?,
        };
        let node = &mut self.nodes[id.index()];
        if dirent_type(type_bits(&node.kind)) != Some(kind) {
            return Err(refuse("an entry's type is not its inode's"));
        }
        let named = match (node.is_directory(), known) {
            (true, Some(_)) => return Err(refuse("a directory in it has a second name")),
            (true, None) => parent,
            (false, _) => id,
        };
        self.nodes[named.index()].nlink += 1;
        Ok(id)
    }

    /// The inode of a directory that `read_node` has accepted.
    fn directory_inode(&self, nid: u64) -> Inode {
        let at = nid as usize * NID_BYTES;
        let raw = Fields(&self.image[at..at + INODE_BYTES]);
        let tail = at + INODE_BYTES + xattr::bytes_of(raw.u16(2));
        let layout = raw.u16(0) >> 1;
        Inode { nid, type_bits: TYPE_DIRECTORY, layout, size: raw.u64(8), union: raw.u32(16), tail }
    }

    fn take(&mut self, at: usize, bytes: usize, nid: u64) -> Result<&'i [u8], ReadError> {
        if bytes == 0 {
            return Ok(&[]);
        }
        self.claim(bytes)?;
        let part = at.checked_add(bytes).and_then(|end| self.image.get(at..end));
        part.ok_or(ReadError::Inode { nid, what: "a part of it lies outside the image" })
    }

    fn claim(&mut self, bytes: usize) -> Result<(), ReadError> {
        self.unclaimed_bytes = self.unclaimed_bytes.checked_sub(bytes).ok_or(ReadError::Overlap)?;
        Ok(())
    }
}

fn type_bits(kind: &NodeKind) -> u16 {
    match kind {
        NodeKind::Directory { .. } => TYPE_DIRECTORY,
        NodeKind::Regular { .. } => TYPE_REGULAR,
        NodeKind::Symlink(_) => TYPE_SYMLINK,
        NodeKind::CharDevice(_) => TYPE_CHAR,
        NodeKind::BlockDevice(_) => TYPE_BLOCK,
        NodeKind::Fifo => TYPE_FIFO,
        NodeKind::Socket => TYPE_SOCKET,
    }
}

/// The entries of one directory block: name, nid, type byte.
struct Dirents<'b> {
    block: &'b [u8],
    count: usize,
    next: usize,
}

impl<'b> Dirents<'b> {
    fn parse(block: &'b [u8]) -> Option<Self> {
        let first = block.get(..DIRENT_BYTES).map(|raw| usize::from(Fields(raw).u16(8)))?;
        let sound = first >= DIRENT_BYTES && first.is_multiple_of(DIRENT_BYTES) && first < block.len();
        sound.then_some(Self { block, count: first / DIRENT_BYTES, next: 0 })
    }

    fn entry(&self, n: usize) -> Option<(&'b [u8], u64, u8)> {
        let raw = Fields(&self.block[n * DIRENT_BYTES..][..DIRENT_BYTES]);
        let start = usize::from(raw.u16(8));
        let end = match n + 1 < self.count {
            true => usize::from(Fields(&self.block[(n + 1) * DIRENT_BYTES..]).u16(8)),
            false => self.block.len(),
        };
        if start < self.count * DIRENT_BYTES {
            return None;
        }
        let name = self.block.get(start..end)?;
        // Only the last name of a block may end before its space does: zeros fill the block.
        let length = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        Some((&name[..length], raw.u64(0), self.block[n * DIRENT_BYTES + 10]))
    }
}

impl<'b> Iterator for Dirents<'b> {
    /// `None` within: the entry is malformed.
    type Item = Option<(&'b [u8], u64, u8)>;

    fn next(&mut self) -> Option<Self::Item> {
        let n = self.next;
        self.next += 1;
        (n < self.count).then(|| self.entry(n))
    }
}

/// Little-endian fields by position. Callers have checked the length.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut out = [0; N];
        out.copy_from_slice(&self.0[at..at + N]);
        out
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.array(at))
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }
}
