//! What the kernel can do, by doing it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use d7y_fuse::mounts::{self, FileBackedErofs, OverlayUpper};
use d7y_fuse::{FuseDevice, MountOptions, Privileges};
use d7y_snapshotter::config::{Config, DriverChoice};

use super::check::Check;

pub fn check(config: &Config) -> Vec<Check> {
    if !rustix::process::geteuid().is_root() {
        let detail = "EROFS, FUSE and overlayfs were not tried: mounting needs root";
        return vec![Check::warning("kernel", detail, "sudo d7y doctor")];
    }
    let scratch = match Scratch::near(&config.root_directory) {
        Ok(scratch) => scratch,
        Err(error) => {
            let root = config.root_directory.display();
            let mend = format!("make {root} writable for root, or set rootDirectory to such a place");
            return vec![Check::failed("kernel", format!("nothing could be tried: {error:#}"), mend)];
        }
    };
    vec![erofs(config.driver, &scratch), fuse(&scratch), overlay(&scratch, &config.root_directory)]
}

/// A directory for probes on the file system that the snapshotter uses; whatever is mounted in it goes with it.
struct Scratch(tempfile::TempDir);

impl Scratch {
    fn near(directory: &Path) -> Result<Self> {
        let existing = directory.ancestors().find(|ancestor| ancestor.is_dir()).unwrap_or(Path::new("/"));
        let made = tempfile::Builder::new().prefix(".d7y-doctor-").tempdir_in(existing);
        Ok(Self(made.with_context(|| format!("cannot write in {}", existing.display()))?))
    }

    fn directory(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.0.path().join(name);
        fs::create_dir_all(&path)?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for mount in mounts::mount_points_below(self.0.path()).into_iter().flatten() {
            if let Err(error) = mounts::unmount_lazy(&mount.path) {
                eprintln!("d7y: a probe is left behind: {error}");
            }
        }
    }
}

fn erofs(driver: DriverChoice, scratch: &Scratch) -> Check {
    const NAME: &str = "kernel.erofs";
    const MEND: &str = "modprobe erofs; needs a kernel with CONFIG_EROFS_FS_BACKED_BY_FILE (6.12 or newer), and a file system \
         such as ext4 or xfs below";
    let problem = match mounts::probe_file_backed_erofs(scratch.0.path()) {
        Ok(FileBackedErofs::Mounts) => return Check::ok(NAME, "an image was mounted from a plain file"),
        Ok(FileBackedErofs::Refused(why)) => why,
        Err(error) => format!("the probe failed: {error}"),
    };
    match driver {
        DriverChoice::Erofs => Check::failed(NAME, format!("{problem}, and driver is erofs"), MEND),
        DriverChoice::Auto => {
            Check::warning(NAME, format!("{problem}: files are served through FUSE, slower"), MEND)
        }
        DriverChoice::Fuse => Check::ok(NAME, format!("{problem}; driver is fuse")),
    }
}

fn fuse(scratch: &Scratch) -> Check {
    let tried = scratch.directory("fuse").map_err(anyhow::Error::from).and_then(|target| {
        let device = FuseDevice::mount(&target, &MountOptions { privileges: Privileges::Sealed })?;
        drop(device);
        Ok(mounts::unmount_lazy(&target)?)
    });
    match tried {
        Ok(()) => Check::ok("kernel.fuse", "/dev/fuse was opened and mounted"),
        Err(error) => Check::failed("kernel.fuse", format!("{error:#}"), "modprobe fuse"),
    }
}

fn overlay(scratch: &Scratch, root: &Path) -> Check {
    match stack(scratch) {
        Ok(()) => Check::ok("kernel.overlayfs", "two layers were stacked, written to and removed from"),
        Err(error) => Check::failed(
            "kernel.overlayfs",
            format!("{error:#}"),
            format!(
                "modprobe overlay; {} must be on ext4, xfs or btrfs, not on an overlay, NFS or tmpfs without xattrs",
                root.display()
            ),
        ),
    }
}

/// Two lower layers, a file made and one removed: the upper directory must take whiteouts.
fn stack(scratch: &Scratch) -> Result<()> {
    let [one, two, upper, work, target] =
        ["one", "two", "upper", "work", "target"].map(|name| scratch.directory(name));
    let (one, two, upper, work, target) = (one?, two?, upper?, work?, target?);
    fs::write(one.join("removed"), "")?;
    let writable = OverlayUpper { upper: &upper, work: &work };
    mounts::mount_overlay(&[&two, &one], Some(writable), &target)?;
    fs::write(target.join("made"), "").context("cannot write through overlayfs")?;
    fs::remove_file(target.join("removed")).context("cannot remove through overlayfs")?;
    mounts::unmount(&target)?;
    Ok(())
}
