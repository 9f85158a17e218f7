use super::*;
use crate::tree::{Node, NodeId, NodeKind, Tree};

/// A written bootstrap, and where its nodes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bootstrap {
    pub bytes: Vec<u8>,
    /// The nid of each node, by `NodeId`; 0 for nodes that no name leads to.
    pub nids: Vec<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    #[error("the extended attributes of node {node} cannot be stored in EROFS: {why}")]
    Xattrs { node: u32, why: &'static str },
    #[error(
        "the content of node {node} does not lie in the first 16 TiB of the device, from a block boundary"
    )]
    Device { node: u32 },
    #[error("the target of symbolic link {node} is empty or longer than {MAX_SYMLINK_BYTES} bytes")]
    Symlink { node: u32 },
    #[error("the tree needs {0} bytes of EROFS metadata, more than one image can address")]
    TooLarge(u64),
}

/// Writes a tree as an EROFS image that holds only metadata; content stays on external device 1.
pub fn write_bootstrap(tree: &Tree) -> Result<Bootstrap, WriteError> {
    let plan = Plan::new(tree)?;
    let mut bytes = vec![0; plan.image_bytes()?];
    write_super(&mut bytes, &plan);
    for (order, id) in plan.order.iter().enumerate() {
        write_node(tree, &plan, *id, order, &mut bytes);
    }
    let checksum = super_checksum(&bytes);
    bytes[SUPER_OFFSET + 4..SUPER_OFFSET + 8].copy_from_slice(&checksum.to_le_bytes());
    let nids = plan.places.iter().map(|place| place.as_ref().map_or(0, Place::nid)).collect();
    Ok(Bootstrap { bytes, nids })
}

/// Where a node's parts go.
struct Place {
    inode: usize,
    xattr_bytes: usize,
    /// Length of a directory's or a link's content in the image; 0 for others.
    content: usize,
    /// The first of its full blocks, counted from the end of the inodes.
    first_block: usize,
    inline: bool,
    parent: NodeId,
}

impl Place {
    fn nid(&self) -> u64 {
        (self.inode / NID_BYTES) as u64
    }

    fn blocks(&self) -> usize {
        if self.inline { self.content / BLOCK } else { self.content.div_ceil(BLOCK) }
    }
}

struct Plan {
    /// Nodes that a name leads to, in the order of their inodes: the inodes of one directory lie together.
    order: Vec<NodeId>,
    places: Vec<Option<Place>>,
    inodes_end: usize,
    blocks: usize,
    /// Blocks of the device that files reach into.
    device_blocks: u32,
}

impl Plan {
    fn new(tree: &Tree) -> Result<Self, WriteError> {
        let places = std::iter::repeat_with(|| None).take(tree.nodes.len()).collect();
        let mut plan = Self { order: Vec::new(), places, inodes_end: BLOCK, blocks: 0, device_blocks: 0 };
        plan.place(tree, NodeId::ROOT, NodeId::ROOT)?;
        let mut open = vec![NodeId::ROOT];
        while let Some(directory) = open.pop() {
            let children = tree.children(directory).expect("only directories are opened");
            let first_new = plan.order.len();
            for child in children.values() {
                if plan.places[child.index()].is_none() {
                    plan.place(tree, *child, directory)?;
                }
            }
            let directories = plan.order[first_new..].iter().rev();
            open.extend(directories.filter(|id| tree.node(**id).is_directory()));
        }
        Ok(plan)
    }

    fn place(&mut self, tree: &Tree, id: NodeId, parent: NodeId) -> Result<(), WriteError> {
        let node = tree.node(id);
        let xattr_bytes =
            xattr::area_bytes(&node.xattrs).map_err(|why| WriteError::Xattrs { node: id.0, why })?;
        let head = INODE_BYTES + xattr_bytes;
        let (mut content, mut tail) = (0, 0);
        match &node.kind {
            NodeKind::Directory { .. } => content = directory_bytes(tree, id),
            NodeKind::Symlink(target) if (1..=MAX_SYMLINK_BYTES).contains(&target.len()) => {
                content = target.len();
            }
            NodeKind::Symlink(_) => return Err(WriteError::Symlink { node: id.0 }),
            NodeKind::Regular { device_offset, size } => {
                let device = device_end(*device_offset, *size).ok_or(WriteError::Device { node: id.0 })?;
                self.device_blocks = self.device_blocks.max(device);
                let indexes = CHUNK_INDEX_BYTES * chunk_count(*size) as usize;
                tail = head.next_multiple_of(CHUNK_INDEX_BYTES) - head + indexes;
            }
            _ => {}
        }
        let inode = self.inode_position(head, content % BLOCK);
        let inline = inode.is_some();
        let inode = inode.unwrap_or(self.inodes_end);
        if inline {
            tail += content % BLOCK;
        }
        let first_block = self.blocks;
        let place = Place { inode, xattr_bytes, content, first_block, inline, parent };
        self.blocks += place.blocks();
        self.inodes_end = (inode + head + tail).next_multiple_of(NID_BYTES);
        self.places[id.index()] = Some(place);
        self.order.push(id);
        Ok(())
    }

    /// Where an inode goes so that its tail does not cross a block; `None` when it cannot be inline.
    fn inode_position(&self, head: usize, tail: usize) -> Option<usize> {
        let fits = |at: &usize| (at + head) % BLOCK + tail <= BLOCK;
        [self.inodes_end, self.inodes_end.next_multiple_of(BLOCK)].into_iter().find(fits)
    }

    fn image_bytes(&self) -> Result<usize, WriteError> {
        let bytes = self.inodes_end.next_multiple_of(BLOCK) + self.blocks * BLOCK;
        match u32::try_from(bytes / BLOCK) {
            Ok(_) => Ok(bytes),
            Err(_) => Err(WriteError::TooLarge(bytes as u64)),
        }
    }

    fn get(&self, id: NodeId) -> &Place {
        self.places[id.index()].as_ref().expect("every node in the order has a place")
    }

    fn block_address(&self, place: &Place) -> usize {
        self.inodes_end.div_ceil(BLOCK) + place.first_block
    }
}

/// The block after a file's last; `None` when the device cannot hold it.
fn device_end(offset: u64, size: u64) -> Option<u32> {
    let end = offset.checked_add(size)?.div_ceil(BLOCK as u64);
    (offset.is_multiple_of(BLOCK as u64) && end <= MAX_DEVICE_BLOCKS).then_some(end as u32)
}

/// The size of a file's chunks, as a power of two: one covers the file, if the five bits for it allow.
fn chunk_bits(size: u64) -> u32 {
    let needed = u64::BITS - size.saturating_sub(1).leading_zeros();
    needed.clamp(BLOCK_BITS, BLOCK_BITS + CHUNK_BITS_MASK)
}

fn chunk_count(size: u64) -> u64 {
    size.div_ceil(1 << chunk_bits(size))
}

/// A directory's entries in byte order, `.` and `..` among them: Linux searches by halving, and some names sort
/// before the dots.
fn dirents(tree: &Tree, id: NodeId, parent: NodeId) -> Vec<(&[u8], NodeId)> {
    let children = tree.children(id).expect("only directories have entries");
    let mut entries = Vec::with_capacity(children.len() + 2);
    entries.extend(children.iter().map(|(name, child)| (name.as_slice(), *child)));
    for (name, target) in [(b".".as_slice(), id), (b"..", parent)] {
        let at = entries.partition_point(|(other, _)| *other < name);
        entries.insert(at, (name, target));
    }
    entries
}

/// Splits entries into runs that fill one block each.
fn dirent_blocks<'e, 'n>(
    entries: &'e [(&'n [u8], NodeId)],
) -> impl Iterator<Item = &'e [(&'n [u8], NodeId)]> {
    let mut rest = entries;
    std::iter::from_fn(move || {
        let mut used = 0;
        let fits = rest.iter().take_while(|(name, _)| {
            used += DIRENT_BYTES + name.len();
            used <= BLOCK
        });
        let (block, after) = rest.split_at(fits.count());
        rest = after;
        (!block.is_empty()).then_some(block)
    })
}

fn block_bytes(block: &[(&[u8], NodeId)]) -> usize {
    block.iter().map(|(name, _)| DIRENT_BYTES + name.len()).sum()
}

/// A directory's `i_size`: full blocks, and what the last one uses.
fn directory_bytes(tree: &Tree, id: NodeId) -> usize {
    let entries = dirents(tree, id, id);
    let (count, last) = dirent_blocks(&entries).fold((0, 0), |(n, _), block| (n + 1, block_bytes(block)));
    (count - 1) * BLOCK + last
}

fn write_super(image: &mut [u8], plan: &Plan) {
    let blocks = (image.len() / BLOCK) as u32;
    let root = plan.get(NodeId::ROOT).nid() as u16;
    let mut put = |at: usize, value: &[u8]| image[SUPER_OFFSET + at..][..value.len()].copy_from_slice(value);
    put(0, &MAGIC.to_le_bytes());
    put(8, &COMPAT_CHECKSUM.to_le_bytes());
    put(12, &[BLOCK_BITS as u8]);
    put(14, &root.to_le_bytes());
    put(16, &(plan.order.len() as u64).to_le_bytes());
    put(36, &blocks.to_le_bytes());
    put(80, &INCOMPAT.to_le_bytes());
    put(86, &1u16.to_le_bytes());
    put(88, &((SLOT_OFFSET / SLOT_BYTES) as u16).to_le_bytes());
    put(SUPER_BYTES + 64, &plan.device_blocks.to_le_bytes());
}

fn write_node(tree: &Tree, plan: &Plan, id: NodeId, order: usize, image: &mut [u8]) {
    let (node, place) = (tree.node(id), plan.get(id));
    let (type_bits, layout, size, union) = shape(node, plan, place);
    let inode = &mut image[place.inode..][..INODE_BYTES];
    let mut put = |at: usize, value: &[u8]| inode[at..at + value.len()].copy_from_slice(value);
    put(0, &(INODE_EXTENDED | layout << 1).to_le_bytes());
    put(2, &xattr::icount(place.xattr_bytes).to_le_bytes());
    put(4, &(type_bits | node.mode).to_le_bytes());
    put(8, &size.to_le_bytes());
    put(16, &union.to_le_bytes());
    put(20, &(order as u32 + 1).to_le_bytes());
    put(24, &node.uid.to_le_bytes());
    put(28, &node.gid.to_le_bytes());
    put(32, &node.mtime.0.to_le_bytes());
    put(40, &node.mtime.1.to_le_bytes());
    put(44, &node.nlink.to_le_bytes());
    let after_inode = place.inode + INODE_BYTES;
    xattr::encode(&node.xattrs, &mut image[after_inode..after_inode + place.xattr_bytes]);
    let tail = after_inode + place.xattr_bytes;
    match &node.kind {
        NodeKind::Directory { .. } => write_directory(tree, plan, id, image),
        NodeKind::Symlink(target) => {
            let at = if place.inline { tail } else { plan.block_address(place) * BLOCK };
            image[at..at + target.len()].copy_from_slice(target);
        }
        NodeKind::Regular { device_offset, size } => {
            let at = tail.next_multiple_of(CHUNK_INDEX_BYTES);
            write_chunk_indexes(*device_offset, *size, &mut image[at..]);
        }
        _ => {}
    }
}

/// Type bits, layout, `i_size` and the union field of an inode.
fn shape(node: &Node, plan: &Plan, place: &Place) -> (u16, u16, u64, u32) {
    let address = plan.block_address(place) as u32;
    let in_image = |type_bits| {
        let layout =
            if place.inline && !place.content.is_multiple_of(BLOCK) { LAYOUT_INLINE } else { LAYOUT_PLAIN };
        (type_bits, layout, place.content as u64, address)
    };
    match &node.kind {
        NodeKind::Directory { .. } => in_image(TYPE_DIRECTORY),
        NodeKind::Symlink(_) => in_image(TYPE_SYMLINK),
        NodeKind::Regular { size: 0, .. } => (TYPE_REGULAR, LAYOUT_PLAIN, 0, 0),
        NodeKind::Regular { size, .. } => {
            (TYPE_REGULAR, LAYOUT_CHUNKED, *size, CHUNK_INDEXES | (chunk_bits(*size) - BLOCK_BITS))
        }
        NodeKind::CharDevice(number) => (TYPE_CHAR, LAYOUT_PLAIN, 0, *number),
        NodeKind::BlockDevice(number) => (TYPE_BLOCK, LAYOUT_PLAIN, 0, *number),
        NodeKind::Fifo => (TYPE_FIFO, LAYOUT_PLAIN, 0, 0),
        NodeKind::Socket => (TYPE_SOCKET, LAYOUT_PLAIN, 0, 0),
    }
}

fn write_chunk_indexes(device_offset: u64, size: u64, out: &mut [u8]) {
    let blocks_per_chunk = 1u64 << (chunk_bits(size) - BLOCK_BITS);
    for (n, index) in out.chunks_exact_mut(CHUNK_INDEX_BYTES).take(chunk_count(size) as usize).enumerate() {
        let block = (device_offset / BLOCK as u64 + n as u64 * blocks_per_chunk) as u32;
        index[2..4].copy_from_slice(&DEVICE_ID.to_le_bytes());
        index[4..].copy_from_slice(&block.to_le_bytes());
    }
}

fn write_directory(tree: &Tree, plan: &Plan, id: NodeId, image: &mut [u8]) {
    let place = plan.get(id);
    let (tail, first) = (place.inode + INODE_BYTES + place.xattr_bytes, plan.block_address(place));
    let entries = dirents(tree, id, place.parent);
    for (n, block) in dirent_blocks(&entries).enumerate() {
        let at = if n < place.blocks() { (first + n) * BLOCK } else { tail };
        write_dirents(tree, plan, block, &mut image[at..at + block_bytes(block)]);
    }
}

fn write_dirents(tree: &Tree, plan: &Plan, block: &[(&[u8], NodeId)], out: &mut [u8]) {
    let mut name_at = DIRENT_BYTES * block.len();
    for (n, (name, target)) in block.iter().enumerate() {
        let place = plan.get(*target);
        let entry = &mut out[n * DIRENT_BYTES..][..DIRENT_BYTES];
        entry[..8].copy_from_slice(&place.nid().to_le_bytes());
        entry[8..10].copy_from_slice(&(name_at as u16).to_le_bytes());
        entry[10] =
            dirent_type(shape(tree.node(*target), plan, place).0).expect("shape knows only file types");
        out[name_at..name_at + name.len()].copy_from_slice(name);
        name_at += name.len();
    }
}
