use std::fs;
use std::io;
use std::path::Path;

use crate::mounts::{DeviceReads, ErofsSource, MountError, mount_erofs, unmount_lazy};

const BLOCK_BYTES: usize = 4096;
const FILE_NAME: &[u8] = b"probe";
const FILE_CONTENT: &[u8] = b"d7y: read through an external device\n";

/// Whether this kernel mounts EROFS from plain files with an external device (Linux 6.12, if so configured), found out
/// by doing it with an image of one block and reading a file back.
///
/// `scratch` is a directory on the file system where bootstraps will be; the probe makes and removes a subdirectory.
/// Needs CAP_SYS_ADMIN. `Ok(false)`: the kernel refused the image or the plain file; an error: the probe itself
/// could not be made.
pub fn probe_file_backed_erofs(scratch: &Path) -> io::Result<bool> {
    let directory = scratch.join("erofs-probe");
    let result = remove_probe(&directory).and_then(|()| probe_in(&directory));
    if let Err(error) = remove_probe(&directory) {
        tracing::warn!(%error, directory = %directory.display(), "the EROFS probe is left behind");
    }
    result
}

fn probe_in(directory: &Path) -> io::Result<bool> {
    let (bootstrap, device, target) =
        (directory.join("bootstrap"), directory.join("device"), directory.join("mount"));
    fs::create_dir_all(&target)?;
    fs::write(&bootstrap, image())?;
    let mut content = FILE_CONTENT.to_vec();
    content.resize(BLOCK_BYTES, 0);
    fs::write(&device, content)?;
    let source =
        ErofsSource { bootstrap: &bootstrap, devices: &[&device], device_reads: DeviceReads::Buffered };
    match mount_erofs(&source, &target) {
        Ok(()) => {
            let read = fs::read(target.join(std::str::from_utf8(FILE_NAME).expect("ASCII")));
            Ok(read.is_ok_and(|content| content == FILE_CONTENT))
        }
        Err(MountError::Mount { source, .. }) if means_unsupported(&source) => {
            tracing::info!(%source, "this kernel does not mount EROFS from plain files");
            Ok(false)
        }
        Err(error) => Err(io::Error::other(error)),
    }
}

/// No EROFS at all (ENODEV), block devices only (ENOTBLK), or some feature missing.
fn means_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOTBLK | libc::EINVAL | libc::EOPNOTSUPP))
}

fn remove_probe(directory: &Path) -> io::Result<()> {
    unmount_lazy(&directory.join("mount")).map_err(io::Error::other)?;
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// An EROFS image of one block (`fs/erofs/erofs_fs.h`): superblock, one device slot, a root directory with its entries
/// inline, and one chunk-based file whose only chunk is block 0 of device 1. Inodes are compact, 32 bytes.
fn image() -> Vec<u8> {
    const DEVICE_SLOT: usize = 1152; // a multiple of 128, after the superblock
    const ROOT: usize = 1280;
    const FILE: usize = ROOT + 96;
    let mut image = Image(vec![0; BLOCK_BYTES]);

    image.u32(1024, 0xe0f5_e1e2); // magic
    image.bytes(1036, &[12]); // block size, log2
    image.u16(1038, nid(ROOT) as u16);
    image.u64(1040, 2); // inodes
    image.u32(1060, 1); // blocks
    image.u32(1104, 0x4 | 0x8); // incompatible features: chunked file, device table
    image.u16(1110, 1); // extra devices
    image.u16(1112, (DEVICE_SLOT / 128) as u16);
    image.u32(DEVICE_SLOT + 64, 1); // blocks of device 1

    let names: [(&[u8], usize, u8); 3] = [(b".", ROOT, 2), (b"..", ROOT, 2), (FILE_NAME, FILE, 1)];
    let entries_end = names.len() * 12;
    let mut name_at = entries_end;
    for (number, (name, inode, kind)) in names.into_iter().enumerate() {
        let entry = ROOT + 32 + number * 12;
        image.u64(entry, nid(inode));
        image.u16(entry + 8, name_at as u16);
        image.bytes(entry + 10, &[kind]);
        image.bytes(ROOT + 32 + name_at, name);
        name_at += name.len();
    }
    image.inode(ROOT, 2, 0o040_755, name_at as u32);
    image.u16(ROOT + 6, 2); // links
    image.u32(ROOT + 16, u32::MAX); // no block besides the inline tail

    image.inode(FILE, 4, 0o100_444, FILE_CONTENT.len() as u32);
    image.u32(FILE + 16, 0x20); // chunks of one block, by index
    image.u16(FILE + 32 + 2, 1); // chunk 0: device 1, block 0
    image.0
}

/// Inode numbers count 32-byte slots from the start of the metadata, here block 0.
fn nid(offset: usize) -> u64 {
    (offset / 32) as u64
}

struct Image(Vec<u8>);

impl Image {
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

    fn inode(&mut self, at: usize, layout: u16, mode: u16, size: u32) {
        self.u16(at, layout << 1);
        self.u16(at + 4, mode);
        self.u16(at + 6, 1);
        self.u32(at + 8, size);
    }
}
