//! The bootstrap: a standard EROFS image that holds only metadata.
//!
//! Linux `fs/erofs/erofs_fs.h`; 4 KiB blocks, little-endian, as our writer lays it out:
//!
//! | Position | Content |
//! |---|---|
//! | 0 | 1024 zero bytes |
//! | 1024 | superblock, 128 bytes |
//! | 1152 | device slot 1, 128 bytes: the layer's device |
//! | 4096 | inodes (64 bytes, each followed by its extended attributes and its inline tail or chunk indexes) |
//! | block | full blocks of directories, and whatever did not fit beside its inode |
//!
//! A nid is the byte position of an inode divided by 32. Regular files are chunk based, and because a file's
//! content is contiguous on the device, one giant chunk describes it.

mod read;
mod write;
mod xattr;

pub use read::{ReadError, layer_tree, read_bootstrap};
pub use write::{Bootstrap, WriteError, write_bootstrap};
pub(crate) use xattr::{area_bytes as xattr_area_bytes, is_representable};

const BLOCK: usize = d7y_types::BLOCK_BYTES as usize;
const BLOCK_BITS: u32 = 12;
const SUPER_OFFSET: usize = 1024;
const SUPER_BYTES: usize = 128;
const SLOT_BYTES: usize = 128;
const SLOT_OFFSET: usize = SUPER_OFFSET + SUPER_BYTES;
const MAGIC: u32 = 0xE0F5_E1E2;
/// The superblock carries a CRC-32C of the rest of its block.
const COMPAT_CHECKSUM: u32 = 0x1;
const INCOMPAT_CHUNKED_FILE: u32 = 0x4;
const INCOMPAT_DEVICE_TABLE: u32 = 0x8;
const INCOMPAT: u32 = INCOMPAT_CHUNKED_FILE | INCOMPAT_DEVICE_TABLE;

const NID_BYTES: usize = 32;
const INODE_BYTES: usize = 64;
const INODE_EXTENDED: u16 = 1;
const LAYOUT_PLAIN: u16 = 0;
const LAYOUT_INLINE: u16 = 2;
const LAYOUT_CHUNKED: u16 = 4;
const DIRENT_BYTES: usize = 12;
const CHUNK_INDEX_BYTES: usize = 8;
/// 8-byte chunk indexes rather than 4-byte block addresses.
const CHUNK_INDEXES: u32 = 0x20;
const CHUNK_BITS_MASK: u32 = 0x1f;
const DEVICE_ID: u16 = 1;
/// Block addresses have 32 bits: no device is larger than 16 TiB.
const MAX_DEVICE_BLOCKS: u64 = u32::MAX as u64;
/// A longer target cannot be followed (Linux `PATH_MAX`, which counts the final zero).
pub(crate) const MAX_SYMLINK_BYTES: usize = 4095;

const TYPE_FIFO: u16 = 0o010_000;
const TYPE_CHAR: u16 = 0o020_000;
const TYPE_DIRECTORY: u16 = 0o040_000;
const TYPE_BLOCK: u16 = 0o060_000;
const TYPE_REGULAR: u16 = 0o100_000;
const TYPE_SYMLINK: u16 = 0o120_000;
const TYPE_SOCKET: u16 = 0o140_000;
const TYPE_MASK: u16 = 0o170_000;

/// The type byte of a directory entry for the type bits of a mode (`EROFS_FT_*`).
fn dirent_type(mode: u16) -> Option<u8> {
    Some(match mode & TYPE_MASK {
        TYPE_REGULAR => 1,
        TYPE_DIRECTORY => 2,
        TYPE_CHAR => 3,
        TYPE_BLOCK => 4,
        TYPE_FIFO => 5,
        TYPE_SOCKET => 6,
        TYPE_SYMLINK => 7,
        _ => return None,
    })
}

/// What the superblock's checksum covers: from the magic to the end of the block, the checksum itself as zero.
fn super_checksum(image: &[u8]) -> u32 {
    let block = &image[SUPER_OFFSET..BLOCK];
    let crc = crc32c(!0, &block[..4]);
    let crc = crc32c(crc, &[0; 4]);
    crc32c(crc, &block[8..])
}

/// CRC-32C (RFC 3720, appendix B.4) without the final inversion, bit by bit: it runs over 3 KiB per image.
fn crc32c(seed: u32, data: &[u8]) -> u32 {
    data.iter().fold(seed, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82F6_3B78 & (crc & 1).wrapping_neg()))
    })
}
