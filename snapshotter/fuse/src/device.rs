use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno as Os;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::mount::MsFlags;
use nix::sys::stat::Mode;

/// One connection to the kernel's FUSE: an open `/dev/fuse`, bound to a mount.
#[derive(Debug)]
pub struct FuseDevice {
    pub(crate) fd: OwnedFd,
    pub(crate) mount_point: Option<PathBuf>,
}

/// What the mount is for; it decides what the mount lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MountOptions {
    pub privileges: Privileges,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privileges {
    /// Plain files for root alone: no set-user-id, devices, execution or other users. For layer devices, which only
    /// the kernel's EROFS reads, as root.
    Sealed,
    /// A root file system for containers: everything an image may hold, for all users, guarded by its permissions.
    Container,
}

impl FuseDevice {
    /// Opens `/dev/fuse` and mounts it read-only on the directory `target`. Requests wait in the kernel until a
    /// [`crate::Session`] serves the device; dropping the device (and all its duplicates) fails them.
    pub fn mount(target: &Path, options: &MountOptions) -> Result<Self, DeviceError> {
        let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let fd = open("/dev/fuse", flags, Mode::empty()).map_err(|errno| DeviceError::Open(errno.into()))?;
        let (kind, flags, data) = options.arguments(&fd);
        nix::mount::mount(Some("d7y"), target, Some(kind), flags, Some(data.as_str()))
            .map_err(|errno| DeviceError::Mount { target: target.into(), source: errno.into() })?;
        Ok(Self { fd, mount_point: Some(target.into()) })
    }

    /// Takes over a connection whose descriptor was parked elsewhere.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, DeviceError> {
        set_nonblocking(&fd).map_err(|errno| DeviceError::Open(errno.into()))?;
        Ok(Self { fd, mount_point: None })
    }

    /// Another descriptor of the same connection, to be parked where it outlives this process.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }
}

/// Why a FUSE device is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("cannot open /dev/fuse")]
    Open(#[source] io::Error),
    #[error("cannot mount FUSE on {target}")]
    Mount { target: PathBuf, source: io::Error },
}

impl MountOptions {
    fn arguments(self, fd: &OwnedFd) -> (&'static str, MsFlags, String) {
        use std::os::fd::AsRawFd;

        let owner = format!("fd={},rootmode=40000,user_id=0,group_id=0,default_permissions", fd.as_raw_fd());
        let read_only = MsFlags::MS_RDONLY | MsFlags::MS_NOATIME;
        match self.privileges {
            Privileges::Sealed => {
                let sealed = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
                ("fuse.d7y-devices", read_only | sealed, owner)
            }
            Privileges::Container => ("fuse.d7y-tree", read_only, owner + ",allow_other"),
        }
    }
}

/// The serving threads wait in epoll, never in `read`, so that they can be stopped without losing a request.
fn set_nonblocking(fd: impl AsFd) -> Result<(), Os> {
    let flags = OFlag::from_bits_retain(fcntl(fd.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
