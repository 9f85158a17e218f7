//! The smallest EROFS image (`fs/erofs/erofs_fs.h`) that needs what our bootstraps need: an external device and a
//! chunk-based file.

pub(crate) const BLOCK_BYTES: usize = 4096;
/// The only file of the image.
pub(crate) const FILE_NAME: &str = "probe";

const INODE_BYTES: usize = 32;
const DIRENT_BYTES: usize = 12;
const DEVICE_SLOT: usize = 1152; // a multiple of 128, after the superblock
const ROOT: usize = 1280;
const FILE: usize = ROOT + 3 * INODE_BYTES;
const CHUNK_BLOCK_BITS: u32 = 11;
const LAYOUT_INLINE: u16 = 2;
const LAYOUT_CHUNKS: u16 = 4;

/// An image of one block: superblock, one device slot, a root directory with its entries inline, and one file whose
/// only chunk begins at block 0 of device 1. `file_bytes` is at most 8 MiB, one chunk.
pub(crate) fn image(file_bytes: u32) -> Vec<u8> {
    assert!(file_bytes as usize <= BLOCK_BYTES << CHUNK_BLOCK_BITS, "one chunk index");
    let mut image = Image(vec![0; BLOCK_BYTES]);
    image.superblock(file_bytes.div_ceil(BLOCK_BYTES as u32));

    let names: [(&[u8], usize, u8); 3] = [(b".", ROOT, 2), (b"..", ROOT, 2), (FILE_NAME.as_bytes(), FILE, 1)];
    let entries = ROOT + INODE_BYTES;
    let mut name_at = names.len() * DIRENT_BYTES;
    for (number, (name, inode, kind)) in names.into_iter().enumerate() {
        let entry = entries + number * DIRENT_BYTES;
        image.u64(entry, nid(inode));
        image.u16(entry + 8, name_at as u16);
        image.bytes(entry + 10, &[kind]);
        image.bytes(entries + name_at, name);
        name_at += name.len();
    }
    image.inode(ROOT, LAYOUT_INLINE, 0o040_755, name_at as u32);
    image.u16(ROOT + 6, 2); // links
    image.u32(ROOT + 16, u32::MAX); // no block besides the inline tail

    image.inode(FILE, LAYOUT_CHUNKS, 0o100_444, file_bytes);
    image.u32(FILE + 16, 0x20 | CHUNK_BLOCK_BITS); // chunks by index
    image.u16(FILE + INODE_BYTES + 2, 1); // chunk 0: device 1, block 0
    image.0
}

/// Inode numbers count 32-byte slots from the start of the metadata, here block 0.
fn nid(offset: usize) -> u64 {
    (offset / INODE_BYTES) as u64
}

struct Image(Vec<u8>);

impl Image {
    fn superblock(&mut self, device_blocks: u32) {
        self.u32(1024, 0xe0f5_e1e2); // magic
        self.bytes(1036, &[12]); // block size, log2
        self.u16(1038, nid(ROOT) as u16);
        self.u64(1040, 2); // inodes
        self.u32(1060, 1); // blocks
        self.u32(1104, 0x4 | 0x8); // incompatible features: chunked file, device table
        self.u16(1110, 1); // extra devices
        self.u16(1112, (DEVICE_SLOT / 128) as u16);
        self.u32(DEVICE_SLOT + 64, device_blocks);
    }

    /// A compact inode.
    fn inode(&mut self, at: usize, layout: u16, mode: u16, size: u32) {
        self.u16(at, layout << 1);
        self.u16(at + 4, mode);
        self.u16(at + 6, 1);
        self.u32(at + 8, size);
    }

    fn bytes(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..][..bytes.len()].copy_from_slice(bytes);
    }

    fn u16(&mut self, at: usize, value: u16) {
        self.bytes(at, &value.to_le_bytes());
    }

    fn u32(&mut self, at: usize, value: u32) {
        self.bytes(at, &value.to_le_bytes());
    }

    fn u64(&mut self, at: usize, value: u64) {
        self.bytes(at, &value.to_le_bytes());
    }
}
