//! Images made in milliseconds, for tests.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::layer::{compress, pack};
use super::{Image, Layout};
use crate::rig::lab::Lab;
use crate::rig::places::make_dir;

/// Where Debian's busybox-static has its one program.
const BUSYBOX: &str = "/bin/busybox";

/// Commands that tests' containers run.
const APPLETS: [&str; 10] =
    ["sh", "cat", "echo", "find", "ls", "md5sum", "sha256sum", "sleep", "stat", "true"];

/// What one layer is made from.
#[derive(Clone, Copy, Debug)]
pub enum Content<'a> {
    /// A directory as overlayfs's upper directory has it; it is changed.
    Tree(&'a Path),
    /// A tar stream as it is, also a broken one.
    Tar(&'a [u8]),
}

/// Makes an image, the lowest layer first.
///
/// # Errors
/// The disk's, or tar failed.
pub fn assemble(lab: &Lab, tag: &str, command: &[&str], layers: &[Content<'_>]) -> Result<Image> {
    let dir = lab.dir().join("images").join(tag);
    let mut layout = Layout::create(&dir)?;
    let blobs = layers.iter().map(|layer| match *layer {
        Content::Tree(tree) => pack(tree, &layout),
        Content::Tar(mut bytes) => compress(&mut bytes, &layout),
    });
    let blobs = blobs.collect::<Result<Vec<_>>>()?;
    layout.image(tag, command, &blobs)?;
    layout.finish()?;
    Image::open(&dir, tag)
}

/// A new directory of the lab with a static shell and the directories that runtimes mount on.
///
/// # Errors
/// busybox-static is not installed.
pub fn busybox(lab: &Lab, name: &str) -> Result<PathBuf> {
    let root = lab.dir().join("trees").join(name);
    for dir in ["bin", "dev", "etc", "proc", "run", "sys", "tmp"] {
        make_dir(root.join(dir))?;
    }
    fs::copy(BUSYBOX, root.join("bin/busybox"))
        .context("busybox-static is not installed: cargo xtask setup")?;
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    Ok(root)
}
