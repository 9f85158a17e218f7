//! The images that the tests run.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use d7y_bench::rig::command::command;
use d7y_bench::rig::image::{Content, Image, assemble, busybox};
pub use d7y_bench::rig::image::{Data, Files, noise};
use d7y_bench::rig::lab::Lab;
use d7y_bench::rig::places::make_dir;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use rustix::fs::{XattrFlags, lsetxattr};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::tar::Tar;

/// `cap_net_raw=ep`, as `security.capability` stores it (linux/capability.h, `vfs_cap_data`, revision 2).
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Says a word, then stays.
pub const STAY: [&str; 3] = ["sh", "-c", "echo up; exec sleep 600"];

/// Several layers with everything that a tar can hold.
pub fn everything(lab: &Lab, tag: &str) -> Result<Image> {
    let base = busybox(lab, &format!("{tag}-base"))?;
    let (first, second, holes) =
        (tree(lab, tag, "first")?, tree(lab, tag, "second")?, tree(lab, tag, "holes")?);
    fill(&first)?;
    change(&second)?;
    sparse(&holes)?;
    let implied = Tar::default()
        .file(b"owned/inner/added", b"below directories that this layer does not name\n")
        .file(b"opaque/implied", b"below an opaque directory\n")
        .end();
    let empty = Tar::default().end();
    // Not the old GNU form of sparse files: the oracle, umoci, does not read it.
    let sparse = tar(&holes, "sparse")?;
    let layers = [
        Content::Tree(&base),
        Content::Tree(&first),
        Content::Tree(&second),
        Content::Tar(&empty),
        Content::Tar(&implied),
        Content::Tar(&sparse),
    ];
    assemble(lab, tag, &STAY, &layers)
}

fn tree(lab: &Lab, tag: &str, name: &str) -> Result<PathBuf> {
    let dir = lab.dir().join("trees").join(format!("{tag}-{name}"));
    make_dir(&dir)?;
    Ok(dir)
}

fn fill(root: &Path) -> Result<()> {
    for dir in ["links/deep", "owned/inner", "opaque", "sizes", "special", "gone", "becomes"] {
        make_dir(root.join(dir))?;
    }
    for (name, bytes) in [("empty", 0), ("one", 1), ("block", 4096), ("odd", 65_537), ("large", 5 << 20)] {
        fs::write(root.join("sizes").join(name), noise(bytes as u64, bytes))?;
    }
    fs::write(root.join("sizes/zeros"), vec![0; 300_000])?;
    links(root)?;
    special(root)?;
    names(&root.join("names"))?;
    for name in ["opaque/hidden", "gone/file", "becomes/directory-was-here", "becomes-directory", "kept"] {
        fs::write(root.join(name), name)?;
    }
    let owned = root.join("owned");
    fs::write(owned.join("inner/old"), "old\n")?;
    attribute(&owned.join("inner"), "user.kept", b"over implied directories")?;
    lchown(owned.join("inner"), Some(70_000), Some(70_001))?;
    fs::set_permissions(owned.join("inner"), PermissionsExt::from_mode(0o2750))?;
    let file = File::open(root.join("kept"))?;
    Ok(file.set_modified(UNIX_EPOCH + Duration::new(1_600_000_000, 123_456_789))?)
}

fn links(root: &Path) -> Result<()> {
    let dir = root.join("links");
    fs::write(dir.join("a"), "one inode\n")?;
    fs::hard_link(dir.join("a"), dir.join("b"))?;
    fs::hard_link(dir.join("a"), dir.join("deep/c"))?;
    symlink("a", dir.join("relative"))?;
    symlink("/nowhere/at/all", dir.join("dangling"))?;
    symlink("x".repeat(1000), dir.join("long"))?;
    Ok(lchown(dir.join("dangling"), Some(1000), Some(1001))?)
}

fn special(root: &Path) -> Result<()> {
    let dir = root.join("special");
    let mode = Mode::from_bits_truncate(0o640);
    mknod(&dir.join("null"), SFlag::S_IFCHR, mode, makedev(1, 3))?;
    mknod(&dir.join("disk"), SFlag::S_IFBLK, mode, makedev(259, 1 << 12))?;
    mknod(&dir.join("fifo"), SFlag::S_IFIFO, mode, 0)?;
    for (name, mode) in [("setuid", 0o4755), ("setgid", 0o2711), ("secret", 0o000)] {
        fs::write(dir.join(name), name)?;
        lchown(dir.join(name), Some(65_534), Some(u32::MAX - 9))?;
        fs::set_permissions(dir.join(name), PermissionsExt::from_mode(mode))?;
    }
    fs::write(dir.join("capable"), "ping")?;
    attribute(&dir.join("capable"), "security.capability", &CAPABILITY)?;
    attribute(&dir.join("capable"), "user.empty", b"")?;
    attribute(&dir.join("capable"), "user.bytes", &[0, 255, 10, 61])?;
    attribute(&dir, "user.directory", &[b'v'; 900])?;
    attribute(&dir, "trusted.note", b"root's own")?;
    Ok(fs::set_permissions(dir, PermissionsExt::from_mode(0o1777))?)
}

fn names(root: &Path) -> Result<()> {
    let mut deep = root.to_path_buf();
    for level in 0..6 {
        deep.push(format!("{level}{}", "d".repeat(80)));
    }
    make_dir(&deep)?;
    let names: [&[u8]; 7] = [
        b"with space",
        b"new\nline",
        b"caf\xe9",
        b"\xff\xfe",
        "z\u{fc}rich".as_bytes(),
        b"a:b,c=d\\e",
        &[b'n'; 255],
    ];
    for name in names {
        fs::write(root.join(OsStr::from_bytes(name)), name)?;
    }
    Ok(fs::write(deep.join("far"), "far down\n")?)
}

/// Marked as overlayfs marks its upper directories.
fn change(root: &Path) -> Result<()> {
    for dir in ["links", "opaque", "becomes-directory", "special"] {
        make_dir(root.join(dir))?;
    }
    let whiteout = |name: &str| mknod(&root.join(name), SFlag::S_IFCHR, Mode::empty(), 0);
    whiteout("links/a")?;
    whiteout("gone")?;
    attribute(&root.join("opaque"), "trusted.overlay.opaque", b"y")?;
    fs::write(root.join("opaque/new"), "new\n")?;
    fs::write(root.join("becomes"), "a file now\n")?;
    fs::write(root.join("becomes-directory/inside"), "inside\n")?;
    fs::write(root.join("special/capable"), "without capabilities")?;
    Ok(fs::set_permissions(root.join("special"), PermissionsExt::from_mode(0o711))?)
}

fn sparse(root: &Path) -> Result<()> {
    make_dir(root.join("sparse"))?;
    let file = File::create(root.join("sparse/holes"))?;
    file.set_len(3 << 20)?;
    for offset in [0, 1 << 20, (2 << 20) + 12_345] {
        file.write_all_at(&noise(offset, 10_000), offset)?;
    }
    File::create(root.join("sparse/all"))?.set_len(1 << 20)?;
    Ok(fs::write(root.join("sparse").join("l".repeat(150)), "a name too long for one header\n")?)
}

/// A tar stream of what is called `name` in a directory.
pub fn tar(dir: &Path, name: &str) -> Result<Vec<u8>> {
    let mut tar = command("tar", ["--create", "--sparse", "--sort=name", "--mtime=@1700000000"]);
    tar.args(["--format=posix", "--directory"]).arg(dir).arg(name);
    let output = tar.stderr(Stdio::inherit()).output().context("cannot start tar")?;
    ensure!(output.status.success(), "tar failed");
    Ok(output.stdout)
}

fn attribute(path: &Path, name: &str, value: &[u8]) -> Result<()> {
    lsetxattr(path, name, value, XattrFlags::empty())
        .with_context(|| format!("cannot set {name} on {}", path.display()))
}

/// A shell below one layer that is not to be trusted.
pub fn over_busybox(lab: &Lab, tag: &str, layer: Content<'_>) -> Result<Image> {
    let base = busybox(lab, &format!("{tag}-base"))?;
    assemble(lab, tag, &STAY, &[Content::Tree(&base), layer])
}

/// The same image, its layers said to be of another media type.
pub fn with_media_type(image: &Image, media_type: &str) -> Result<Image> {
    let index_path = image.layout.join("index.json");
    let mut index: Value = serde_json::from_slice(&fs::read(&index_path)?)?;
    let blob = |digest: &str| image.layout.join("blobs").join(digest.replace(':', "/"));
    let mut manifest: Value = serde_json::from_slice(&fs::read(blob(&image.digest))?)?;
    for layer in manifest["layers"].as_array_mut().context("a manifest has layers")? {
        layer["mediaType"] = media_type.into();
    }
    let manifest = manifest.to_string();
    let digest = format!("sha256:{}", hex::encode(Sha256::digest(&manifest)));
    fs::write(blob(&digest), &manifest)?;
    let entry = &mut index["manifests"][0];
    (entry["digest"], entry["size"]) = (digest.into(), manifest.len().into());
    fs::write(index_path, index.to_string())?;
    Image::open(&image.layout, &image.tag)
}
