//! What the kernel can do, by doing it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use d7y_fuse::mounts::{self, FileBackedErofs};
use d7y_snapshotter::config::DriverChoice;

use super::check::{Check, Mend};
use super::machine::Machine;
use super::settings::Settings;

/// The file system must take whiteouts and give EROFS pages of its own.
const ROOT_ELSEWHERE: &str = "rootDirectory: DIRECTORY ON EXT4, XFS OR BTRFS";

pub fn check(settings: &Settings, machine: &impl Machine) -> Vec<Check> {
    if !machine.is_root() {
        let detail = "EROFS, FUSE and overlayfs were not tried: mounting needs root";
        return vec![Check::warning("kernel", detail, Mend::run("sudo d7y doctor"))];
    }
    let scratch = match Scratch::near(&settings.snapshotter.root_directory) {
        Ok(scratch) => scratch,
        Err(error) => {
            let mend = settings.set_snapshotter("rootDirectory: DIRECTORY THAT ROOT CAN WRITE IN");
            return vec![Check::failed("kernel", format!("nothing could be tried: {error:#}"), mend)];
        }
    };
    vec![
        erofs(settings, machine.erofs(&scratch)),
        fuse(machine.fuse(&scratch)),
        overlay(settings, machine.overlay(&scratch)),
    ]
}

/// A directory for probes on the file system that the snapshotter uses; whatever is mounted in it goes with it.
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    pub fn near(directory: &Path) -> Result<Self> {
        let existing = directory.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
        let made = tempfile::Builder::new().prefix(".d7y-doctor-").tempdir_in(existing);
        Ok(Self(made.with_context(|| format!("cannot write in {}", existing.display()))?))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn directory(&self, name: &str) -> io::Result<PathBuf> {
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

fn erofs(settings: &Settings, found: io::Result<FileBackedErofs>) -> Check {
    const NAME: &str = "kernel.erofs";
    // Where only the module was missing, the probe's mount has loaded it.
    const KERNEL: &str = "apt-get install linux-image-$(dpkg --print-architecture)  \
         # 6.12 or newer, with CONFIG_EROFS_FS_BACKED_BY_FILE";
    let (problem, mend) = match found {
        Ok(FileBackedErofs::Mounts) => return Check::ok(NAME, "an image was mounted from a plain file"),
        Ok(FileBackedErofs::KernelRefuses(why)) => (why, Mend::run(KERNEL)),
        Ok(FileBackedErofs::FileSystemRefuses(why)) => (why, settings.set_snapshotter(ROOT_ELSEWHERE)),
        Err(error) => (format!("the probe failed: {error}"), Mend::run(KERNEL)),
    };
    match settings.snapshotter.driver {
        DriverChoice::Erofs => Check::failed(NAME, format!("{problem}, and driver is erofs"), mend),
        DriverChoice::Auto => {
            Check::warning(NAME, format!("{problem}: files are served through FUSE, slower"), mend)
        }
        DriverChoice::Fuse => Check::ok(NAME, format!("{problem}; driver is fuse")),
    }
}

fn fuse(tried: Result<()>) -> Check {
    match tried {
        Ok(()) => Check::ok("kernel.fuse", "/dev/fuse was opened and mounted"),
        Err(error) => Check::failed("kernel.fuse", format!("{error:#}"), Mend::run("modprobe fuse")),
    }
}

fn overlay(settings: &Settings, tried: Result<()>) -> Check {
    let Err(error) = tried else {
        return Check::ok("kernel.overlayfs", "two layers were stacked, written to and removed from");
    };
    let causes = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
    let mend = match causes.filter_map(io::Error::raw_os_error).any(is_unknown_file_system) {
        true => Mend::run("modprobe overlay"),
        false => settings.set_snapshotter(ROOT_ELSEWHERE),
    };
    Check::failed("kernel.overlayfs", format!("{error:#}"), mend)
}

fn is_unknown_file_system(os_error: i32) -> bool {
    os_error == rustix::io::Errno::NODEV.raw_os_error()
}
