//! Mounts around the FUSE session: EROFS from plain files, overlays, and looking after what is mounted.
//!
//! Everything goes through `mount(2)`: `mount(8)` would put loop devices under an EROFS image file, and then
//! `device=` does not work.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno as Os;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use parking_lot::Mutex;

use crate::mount_table;
pub use crate::mount_table::MountPoint;
pub use crate::probe::{FileBackedErofs, probe_file_backed_erofs};

/// Read-ahead of mounts whose data is on this machine, in KiB: with it a sequential scan sends 1 MiB reads.
pub const READ_AHEAD_KB: u32 = 1024;

/// Read-ahead of mounts whose data may have to be fetched, in KiB; the kernel's own default. A page fault reads as much
/// around it as read-ahead allows, and what is read is fetched, here and on every node that follows the access trace.
pub const LAZY_READ_AHEAD_KB: u32 = 128;

/// The kernel takes one page of mount options, a NUL included.
const MAX_OPTION_BYTES: usize = 4095;

/// EROFS: a bootstrap with the metadata, and the devices that its chunks point into.
#[derive(Debug, Clone, Copy)]
pub struct ErofsSource<'a> {
    /// A whole, local image file. The kernel trusts it: it must have been built or validated by this node.
    pub bootstrap: &'a Path,
    /// External devices 1, 2, ... in the order of the bootstrap's device table; plain files.
    pub devices: &'a [&'a Path],
    pub device_reads: DeviceReads,
    pub read_ahead_kb: u32,
}

/// How EROFS reads its devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceReads {
    /// Through their page cache: device read-ahead spans neighbouring files, which small files gain from.
    Buffered,
    /// Without it (`directio`): no page is cached twice, which large files gain from.
    Direct,
}

/// The writable part of an overlay.
#[derive(Debug, Clone, Copy)]
pub struct OverlayUpper<'a> {
    pub upper: &'a Path,
    pub work: &'a Path,
}

/// Why a mount operation failed.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error("cannot mount {file_system} on {target}")]
    Mount { file_system: &'static str, target: PathBuf, source: io::Error },
    #[error("cannot unmount {target}")]
    Unmount { target: PathBuf, source: io::Error },
    /// Mount options are separated by commas and colons and cannot quote them.
    #[error("{0:?} cannot be named in mount options")]
    Unspeakable(PathBuf),
    #[error("mount options of {0} bytes; the kernel takes {MAX_OPTION_BYTES}")]
    OptionsTooLong(usize),
    #[error("cannot read the mount table")]
    Table(#[source] io::Error),
    #[error("cannot set the read-ahead of {0}")]
    ReadAhead(PathBuf, #[source] io::Error),
    #[error("cannot abort the FUSE connection of {0}")]
    Abort(PathBuf, #[source] io::Error),
}

/// Mounts an EROFS image from plain files, read-only.
pub fn mount_erofs(source: &ErofsSource<'_>, target: &Path) -> Result<(), MountError> {
    let mut options = Options::default();
    for device in source.devices {
        options.path("device", device, b",")?;
    }
    if source.device_reads == DeviceReads::Direct {
        options.flag("directio");
    }
    let options = options.finish()?;
    // A file-backed EROFS names its backing device info `erofs-N` with a number of its own, and nothing leads from
    // the mount to it. So: the ones that appeared while mounting, one mount at a time.
    static MOUNTING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = MOUNTING.lock();
    let before = erofs_backing_devices();
    mount(Some(source.bootstrap), target, Some("erofs"), MsFlags::MS_RDONLY, Some(options.as_os_str()))
        .map_err(mount_error("erofs", target))?;
    for name in erofs_backing_devices().iter().filter(|name| !before.contains(name)) {
        if let Err(error) = write_read_ahead(name, source.read_ahead_kb) {
            tracing::warn!(%error, target = %target.display(), "EROFS read-ahead stays as the kernel sets it");
        }
    }
    Ok(())
}

/// Stacks `lowers`, the topmost first; read-only without an upper.
pub fn mount_overlay(
    lowers: &[&Path],
    upper: Option<OverlayUpper<'_>>,
    target: &Path,
) -> Result<(), MountError> {
    let mut options = Options::default();
    options.paths("lowerdir", lowers)?;
    if let Some(OverlayUpper { upper, work }) = upper {
        options.path("upperdir", upper, b",:\\")?;
        options.path("workdir", work, b",:\\")?;
    }
    let options = options.finish()?;
    let flags = if upper.is_some() { MsFlags::empty() } else { MsFlags::MS_RDONLY };
    mount(Some("overlay"), target, Some("overlay"), flags, Some(options.as_os_str()))
        .map_err(mount_error("overlay", target))
}

/// Makes `source` visible at `target`, read-only.
pub fn bind_read_only(source: &Path, target: &Path) -> Result<(), MountError> {
    const NONE: Option<&str> = None;
    mount(Some(source), target, NONE, MsFlags::MS_BIND, NONE).map_err(mount_error("bind", target))?;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(NONE, target, NONE, flags, NONE).map_err(|errno| {
        if let Err(error) = unmount_lazy(target) {
            tracing::warn!(%error, "a writable bind mount is left behind");
        }
        mount_error("bind", target)(errno)
    })
}

/// Unmounts the topmost mount at `target`; EBUSY while it is in use. Nothing mounted there is success.
pub fn unmount(target: &Path) -> Result<(), MountError> {
    unmount_with(target, MntFlags::empty())
}

/// Takes the mount out of the tree at once; it ends when its last user does. Nothing mounted there is success.
pub fn unmount_lazy(target: &Path) -> Result<(), MountError> {
    unmount_with(target, MntFlags::MNT_DETACH)
}

fn unmount_with(target: &Path, flags: MntFlags) -> Result<(), MountError> {
    match umount2(target, flags | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(Os::EINVAL | Os::ENOENT) => Ok(()),
        Err(errno) => Err(MountError::Unmount { target: target.into(), source: errno.into() }),
    }
}

/// Sets the read-ahead of a mount whose file system keeps its own backing device info under its device number, as FUSE
/// and block devices do. (EROFS does not: [`mount_erofs`] has set it.)
pub fn set_read_ahead_kb(mount_point: &Path, kb: u32) -> Result<(), MountError> {
    let fail = |error| MountError::ReadAhead(mount_point.into(), error);
    let (major, minor) = mount_table::find(mount_point).map_err(fail)?.device;
    write_read_ahead(OsStr::new(&format!("{major}:{minor}")), kb).map_err(fail)
}

/// The mounts at and below a directory, the latest first: the order in which they can be unmounted.
pub fn mount_points_below(directory: &Path) -> Result<Vec<MountPoint>, MountError> {
    let directory = mount_table::resolve_parent(directory).map_err(MountError::Table)?;
    let mut mounts = mount_table::read().map_err(MountError::Table)?;
    mounts.retain(|mount| mount.path.starts_with(&directory));
    mounts.reverse();
    Ok(mounts)
}

/// The watchdog's last resort: fails every request of a FUSE mount, waiting and to come, so that no reader hangs.
///
/// Through fusectl where that is mounted, else by a forced unmount, which aborts first and may leave the mount in
/// place when it is in use.
pub fn abort_connection(mount_point: &Path) -> Result<(), MountError> {
    let fail = |error| MountError::Abort(mount_point.into(), error);
    let mount = mount_table::find(mount_point).map_err(fail)?;
    if !mount.file_system.starts_with("fuse") {
        return Err(fail(io::Error::new(io::ErrorKind::InvalidInput, mount.file_system)));
    }
    let control = format!("/sys/fs/fuse/connections/{}/abort", mount.device.1);
    let control = std::fs::OpenOptions::new().write(true).open(control);
    match control.and_then(|mut control| control.write_all(b"1")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            match umount2(&mount.path, MntFlags::MNT_FORCE) {
                Ok(()) | Err(Os::EBUSY) => Ok(()),
                Err(errno) => Err(fail(errno.into())),
            }
        }
        written => written.map_err(fail),
    }
}

fn mount_error(file_system: &'static str, target: &Path) -> impl FnOnce(Os) -> MountError {
    move |errno| MountError::Mount { file_system, target: target.into(), source: errno.into() }
}

const BACKING_DEVICES: &str = "/sys/class/bdi";

fn erofs_backing_devices() -> Vec<OsString> {
    let Ok(entries) = std::fs::read_dir(BACKING_DEVICES) else { return Vec::new() };
    let names = entries.filter_map(|entry| Some(entry.ok()?.file_name()));
    names.filter(|name| name.as_encoded_bytes().starts_with(b"erofs-")).collect()
}

fn write_read_ahead(backing_device: &OsStr, kb: u32) -> io::Result<()> {
    std::fs::write(Path::new(BACKING_DEVICES).join(backing_device).join("read_ahead_kb"), kb.to_string())
}

/// Mount options in the one-string form of `mount(2)`.
#[derive(Default)]
struct Options(OsString);

impl Options {
    fn flag(&mut self, option: &str) {
        if !self.0.is_empty() {
            self.0.push(",");
        }
        self.0.push(option);
    }

    fn path(&mut self, key: &str, path: &Path, separators: &[u8]) -> Result<(), MountError> {
        self.flag(key);
        self.0.push("=");
        self.push_path(path, separators)
    }

    fn paths(&mut self, key: &str, paths: &[&Path]) -> Result<(), MountError> {
        self.flag(key);
        for (number, path) in paths.iter().enumerate() {
            self.0.push(if number == 0 { "=" } else { ":" });
            self.push_path(path, b",:\\")?;
        }
        Ok(())
    }

    fn push_path(&mut self, path: &Path, separators: &[u8]) -> Result<(), MountError> {
        if path.as_os_str().as_encoded_bytes().iter().any(|byte| separators.contains(byte)) {
            return Err(MountError::Unspeakable(path.into()));
        }
        self.0.push(path);
        Ok(())
    }

    fn finish(self) -> Result<OsString, MountError> {
        if self.0.len() > MAX_OPTION_BYTES {
            return Err(MountError::OptionsTooLong(self.0.len()));
        }
        Ok(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options() {
        let mut options = Options::default();
        options.path("device", Path::new("/a b"), b",").unwrap();
        options.path("device", Path::new("/c:d"), b",").unwrap();
        options.flag("directio");
        assert_eq!(options.finish().unwrap(), "device=/a b,device=/c:d,directio");

        let refused = Options::default().path("device", Path::new("/a,b"), b",");
        assert!(matches!(refused, Err(MountError::Unspeakable(_))));
        let refused = Options::default().paths("lowerdir", &[Path::new("/a"), Path::new("/b:c")]);
        assert!(matches!(refused, Err(MountError::Unspeakable(_))));
        let long = Options("x".repeat(MAX_OPTION_BYTES + 1).into());
        assert!(matches!(long.finish(), Err(MountError::OptionsTooLong(_))));
    }
}
