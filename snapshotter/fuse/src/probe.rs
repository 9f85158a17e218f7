use std::fs;
use std::io;
use std::path::Path;

use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, statfs};

use crate::erofs_image::{BLOCK_BYTES, FILE_NAME, image};
use crate::mounts::{DeviceReads, ErofsSource, MountError, READ_AHEAD_KB, mount_erofs, unmount_lazy};

const FILE_CONTENT: &[u8] = b"d7y: read through an external device\n";

/// What [`probe_file_backed_erofs`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileBackedErofs {
    Mounts,
    /// Why, as a sentence: this kernel cannot, or is not so configured.
    KernelRefuses(String),
    /// Why, as a sentence: the kernel may be able to, on another file system than the scratch directory's.
    FileSystemRefuses(String),
}

/// Whether this kernel mounts EROFS from plain files with an external device (Linux 6.12, if so configured), found out
/// by doing it with an image of one block and reading a file back.
///
/// `scratch` is a directory on the file system where bootstraps will be; the probe makes and removes a subdirectory.
/// Needs CAP_SYS_ADMIN. An error: the probe itself could not be made.
pub fn probe_file_backed_erofs(scratch: &Path) -> io::Result<FileBackedErofs> {
    let directory = scratch.join("erofs-probe");
    let result = remove_probe(&directory).and_then(|()| probe_in(&directory));
    if let Err(error) = remove_probe(&directory) {
        tracing::warn!(%error, directory = %directory.display(), "the EROFS probe is left behind");
    }
    result
}

fn probe_in(directory: &Path) -> io::Result<FileBackedErofs> {
    let (bootstrap, device, target) =
        (directory.join("bootstrap"), directory.join("device"), directory.join("mount"));
    fs::create_dir_all(&target)?;
    fs::write(&bootstrap, image(FILE_CONTENT.len() as u32))?;
    let mut content = FILE_CONTENT.to_vec();
    content.resize(BLOCK_BYTES, 0);
    fs::write(&device, content)?;
    let source = ErofsSource {
        bootstrap: &bootstrap,
        devices: &[&device],
        device_reads: DeviceReads::Buffered,
        read_ahead_kb: READ_AHEAD_KB,
    };
    match mount_erofs(&source, &target) {
        Ok(()) => match fs::read(target.join(FILE_NAME)) {
            Ok(content) if content == FILE_CONTENT => Ok(FileBackedErofs::Mounts),
            _ => {
                Ok(FileBackedErofs::KernelRefuses("this kernel does not read EROFS from plain files".into()))
            }
        },
        Err(MountError::Mount { source, .. }) if means_unsupported(&source) => {
            Ok(refusal(&source, overlay_below(directory)))
        }
        Err(error) => Err(io::Error::other(error)),
    }
}

/// ENOTBLK comes from a kernel that wants a block device, and from one that cannot take files of this file system:
/// those of an overlay have no pages of their own.
fn refusal(error: &io::Error, overlay: bool) -> FileBackedErofs {
    match (error.raw_os_error(), overlay) {
        (Some(libc::ENOTBLK), true) => FileBackedErofs::FileSystemRefuses(format!(
            "EROFS is not mounted from plain files on this file system (overlay): {error}"
        )),
        _ => FileBackedErofs::KernelRefuses(format!(
            "this kernel does not mount EROFS from plain files: {error}"
        )),
    }
}

fn overlay_below(directory: &Path) -> bool {
    statfs(directory).is_ok_and(|found| found.filesystem_type() == OVERLAYFS_SUPER_MAGIC)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlay_is_named_where_the_kernel_asks_for_a_block_device() {
        let table = [
            (libc::ENOTBLK, true, "on this file system (overlay)"),
            (libc::ENOTBLK, false, "this kernel"),
            (libc::ENODEV, true, "this kernel"),
        ];
        for (code, overlay, part) in table {
            let found = refusal(&io::Error::from_raw_os_error(code), overlay);
            let text = match (found, code == libc::ENOTBLK && overlay) {
                (FileBackedErofs::FileSystemRefuses(why), true)
                | (FileBackedErofs::KernelRefuses(why), false) => why,
                (other, _) => panic!("{code} on an overlay {overlay} is {other:?}"),
            };
            assert!(text.contains(part), "{text}");
        }
    }
}
