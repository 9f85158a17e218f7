//! The application layer: the recipe's files, data, and what tar can hold but packages seldom do.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

use anyhow::{Context, Result};
use nix::sys::stat::{Mode, SFlag, mknod};
use rustix::fs::{XattrFlags, lsetxattr};

use super::recipe::{Corners, Recipe, Version};
use crate::rig::places::make_dir;

/// Bytes of `app/model.bin`, of which the service reads a part.
const MODEL_BYTES: u64 = 16 << 20;

/// Fills the mounted root `/` of the image to be.
pub(super) fn install(root: &Path, recipe: &Recipe, version: &Version) -> Result<()> {
    for (path, text) in recipe.files.iter().chain(version.files) {
        let path = root.join(path);
        make_dir(path.parent().context("a file in a directory")?)?;
        fs::write(&path, text.replace("@VERSION@", version.tag))?;
    }
    if recipe.corners == Corners::Present {
        model(&root.join("app/model.bin")).context("cannot write the model")?;
        corners(&root.join("srv/corners")).context("cannot make the corner cases")?;
        hide(root).context("cannot hide what lower layers hold")?;
    }
    Ok(())
}

/// Numbers that do not compress and are the same everywhere.
fn model(path: &Path) -> Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..MODEL_BYTES / 8 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        file.write_all(&state.to_le_bytes())?;
    }
    Ok(file.flush()?)
}

fn corners(dir: &Path) -> Result<()> {
    make_dir(dir.join("sticky"))?;
    fs::set_permissions(dir.join("sticky"), Permissions::from_mode(0o1777))?;
    fs::write(dir.join("one"), "the same inode\n")?;
    fs::hard_link(dir.join("one"), dir.join("two"))?;
    fs::hard_link(dir.join("one"), dir.join("sticky/three"))?;
    File::create(dir.join("empty"))?;
    fs::write(dir.join("setuid"), "#!/bin/sh\n")?;
    chown(dir.join("setuid"), Some(1234), Some(4321))?;
    fs::set_permissions(dir.join("setuid"), Permissions::from_mode(0o4755))?;
    symlink("../nowhere", dir.join("dangling"))?;
    fs::write(dir.join("n".repeat(200)), "a long name\n")?;
    fs::write(dir.join(OsStr::from_bytes(b"caf\xe9")), "a name that is not UTF-8\n")?;
    let mode = Mode::from_bits_truncate(0o640);
    mknod(&dir.join("fifo"), SFlag::S_IFIFO, mode, 0)?;
    mknod(&dir.join("null"), SFlag::S_IFCHR, mode, nix::sys::stat::makedev(1, 3))?;
    mknod(&dir.join("loop"), SFlag::S_IFBLK, mode, nix::sys::stat::makedev(7, 200))?;
    fs::write(dir.join("capable"), "#!/bin/sh\n")?;
    // cap_net_bind_service=ep as the kernel stores it: revision 2, effective, bit 10.
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    lsetxattr(dir.join("capable"), "security.capability", &capability, XattrFlags::CREATE)?;
    lsetxattr(dir.join("one"), "user.origin", b"rig\0binary", XattrFlags::CREATE)?;
    Ok(())
}

/// Makes a whiteout of a file, one of a directory, and an opaque directory.
fn hide(root: &Path) -> Result<()> {
    fs::remove_file(root.join("etc/issue.net"))?;
    fs::remove_dir_all(root.join("usr/share/doc/tzdata"))?;
    let opaque = root.join("usr/share/doc/bash");
    fs::remove_dir_all(&opaque)?;
    make_dir(&opaque)?;
    Ok(fs::write(opaque.join("NOTE"), "the layers below had more here\n")?)
}
