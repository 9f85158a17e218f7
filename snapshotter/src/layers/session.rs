use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use d7y_fuse::mounts::{self, FileBackedErofs, MountError, MountPoint};
use d7y_fuse::{DeviceError, Filesystem, FuseDevice, MountOptions, Privileges, Session, Start};
use d7y_peer_client::LocalClient;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::config::DriverChoice;
use crate::place::Place;

/// The name under which the FUSE descriptor is parked with the peer, and kept by the service manager.
pub const FUSE_DESCRIPTOR: &str = "fuse";
/// How long a start waits for the peer to hand over the descriptor of a mount that is there. A peer that does not
/// run has no descriptor: then the mount is dead.
const HAND_OVER_DEADLINE: Duration = Duration::from_secs(10);
/// Serving threads: a hit costs one `pread`, misses occupy none.
const MAX_THREADS: usize = 4;
const DEVICES_FILE_SYSTEM: &str = "fuse.d7y-devices";
const TREE_FILE_SYSTEM: &str = "fuse.d7y-tree";

/// What serves a layer's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// The kernel's EROFS; FUSE serves the devices only.
    Erofs,
    /// FUSE serves all.
    Fuse,
}

#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("{0}; set driver to auto or fuse")]
    NoErofs(String),
    #[error("cannot find out whether the kernel mounts EROFS from plain files")]
    Probe(#[source] io::Error),
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error("cannot make the FUSE mount's directory")]
    Directory(#[source] io::Error),
    #[error(transparent)]
    Start(#[from] d7y_fuse::SessionError),
}

/// The FUSE mount's connection: one that outlived an earlier snapshotter, or none yet.
pub struct Connection {
    live: Option<FuseDevice>,
    pub driver: Driver,
}

impl Connection {
    /// Takes the live connection, from the service manager (`inherited`) or else from the peer; clears away a dead one
    /// and everything that stood on it. Until then nobody serves the mount: only the mount table may be looked at, never
    /// its directory.
    pub async fn find(
        inherited: Vec<(String, OwnedFd)>,
        peer: &LocalClient,
        place: &Place,
        choice: DriverChoice,
    ) -> Result<Self, SessionError> {
        let fuse = place.fuse();
        if let Some(mount) = fuse_mount(&fuse)?
            && let Some(driver) = driver_of(&mount)
            && let Some(device) = take(inherited, peer, &mount).await
        {
            tracing::info!(?driver, "serving the mounts of the snapshotter before");
            return Ok(Self { live: Some(device), driver });
        }
        clear(place)?;
        std::fs::create_dir_all(&fuse).map_err(SessionError::Directory)?;
        let driver = match choice {
            DriverChoice::Fuse => Driver::Fuse,
            DriverChoice::Auto | DriverChoice::Erofs => match probe(place.bootstraps()).await? {
                FileBackedErofs::Mounts => Driver::Erofs,
                FileBackedErofs::KernelRefuses(why) | FileBackedErofs::FileSystemRefuses(why) => {
                    if choice == DriverChoice::Erofs {
                        return Err(SessionError::NoErofs(why));
                    }
                    tracing::info!("{why}; FUSE serves all files");
                    Driver::Fuse
                }
            },
        };
        Ok(Self { live: None, driver })
    }

    pub fn is_live(&self) -> bool {
        self.live.is_some()
    }

    /// Serves the connection, mounting it first when there is none.
    pub fn serve(self, place: &Place, filesystem: Arc<dyn Filesystem>) -> Result<Session, SessionError> {
        let (device, start) = match self.live {
            Some(device) => (device, Start::Attached),
            None => {
                let privileges = match self.driver {
                    Driver::Erofs => Privileges::Sealed,
                    Driver::Fuse => Privileges::Container,
                };
                (FuseDevice::mount(&place.fuse(), &MountOptions { privileges })?, Start::Fresh)
            }
        };
        let threads = std::thread::available_parallelism().map_or(2, NonZeroUsize::get).clamp(2, MAX_THREADS);
        let threads = NonZeroUsize::new(threads).unwrap_or(NonZeroUsize::MIN);
        let session = Session::start(device, filesystem, start, threads)?;
        if start == Start::Fresh && self.driver == Driver::Erofs {
            read_no_further_than_asked(&place.fuse());
        }
        Ok(session)
    }
}

/// What the kernel reads ahead in a device file, beyond EROFS's own read-ahead, is fetched too. (The FUSE driver keeps the
/// large read-ahead: its trees are never mounted in another way, also when all of their data is here.)
fn read_no_further_than_asked(mount_point: &Path) {
    if let Err(error) = mounts::set_read_ahead_kb(mount_point, mounts::LAZY_READ_AHEAD_KB) {
        tracing::warn!(%error, "read-ahead stays large: containers fetch more than they need");
    }
}

/// The service manager has it at once; only when it has none the peer, which may be starting too, is waited for.
async fn take(
    inherited: Vec<(String, OwnedFd)>,
    peer: &LocalClient,
    mount: &MountPoint,
) -> Option<FuseDevice> {
    let usable = |descriptor: &OwnedFd| is_connected(descriptor) && may_serve(descriptor, mount);
    let named = inherited.into_iter().filter(|(name, _)| name == FUSE_DESCRIPTOR);
    let kept = named.map(|(_, descriptor)| descriptor).find(usable);
    let descriptor = match kept {
        Some(descriptor) => Some(descriptor),
        None => take_from_peer(peer).await.filter(usable),
    };
    let device = descriptor.and_then(|descriptor| FuseDevice::from_fd(descriptor).ok());
    if device.is_none() {
        tracing::warn!("nobody has a live FUSE descriptor: containers on the mounts there lose their files");
    }
    device
}

async fn take_from_peer(peer: &LocalClient) -> Option<OwnedFd> {
    match peer.take_descriptor(FUSE_DESCRIPTOR, HAND_OVER_DEADLINE).await {
        Ok(descriptor) => descriptor,
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "no FUSE descriptor from the peer");
            None
        }
    }
}

/// Whether the descriptor may be of this mount: newer kernels tell a connection's number, the mount's minor one.
fn may_serve(descriptor: &OwnedFd, mount: &MountPoint) -> bool {
    let info = format!("/proc/self/fdinfo/{}", descriptor.as_raw_fd());
    let info = std::fs::read_to_string(info).unwrap_or_default();
    let number = info.lines().find_map(|line| line.strip_prefix("fuse_connection:"));
    number.is_none_or(|number| number.trim().parse() == Ok(mount.device.1))
}

/// An ended connection polls as an error (`fuse_dev_poll`).
fn is_connected(descriptor: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(descriptor, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut polled, Some(&now)).is_ok() && !polled[0].revents().contains(PollFlags::ERR)
}

fn fuse_mount(fuse: &Path) -> Result<Option<MountPoint>, SessionError> {
    let mounts = mounts::mount_points_below(fuse)?;
    Ok(mounts.into_iter().find(|mount| mount.file_system.starts_with("fuse")))
}

fn driver_of(mount: &MountPoint) -> Option<Driver> {
    match mount.file_system.as_str() {
        DEVICES_FILE_SYSTEM => Some(Driver::Erofs),
        TREE_FILE_SYSTEM => Some(Driver::Fuse),
        _ => None,
    }
}

fn clear(place: &Place) -> Result<(), SessionError> {
    for directory in [place.mount_points(), place.fuse()] {
        for mount in mounts::mount_points_below(&directory)? {
            tracing::info!(path = %mount.path.display(), "unmounting what a snapshotter before left");
            mounts::unmount_lazy(&mount.path)?;
        }
    }
    Ok(())
}

async fn probe(scratch: std::path::PathBuf) -> Result<FileBackedErofs, SessionError> {
    let probed = tokio::task::spawn_blocking(move || mounts::probe_file_backed_erofs(&scratch)).await;
    probed.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(SessionError::Probe)
}
