//! Turns an overlay's upper directory into a layer: whiteouts first, then tar, then gzip.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::layout::Layout;
use crate::rig::command::command;

/// Later times in an image become this one (2025-06-15), as `SOURCE_DATE_EPOCH` has it.
pub const EPOCH: u64 = 1_750_000_000;

/// What building leaves behind and no image should hold: the contents of these directories,
const EMPTIED: [&str; 8] =
    ["proc", "sys", "run", "tmp", "var/log", "var/cache", "var/lib/apt/lists", "var/tmp"];

/// and these files.
const REMOVED: [&str; 8] = [
    "etc/resolv.conf",
    "etc/hosts",
    "etc/hostname",
    "etc/machine-id",
    "var/lib/dpkg/lock",
    "var/lib/dpkg/lock-frontend",
    "var/lib/dpkg/status-old",
    "var/lib/dpkg/triggers/Lock",
];

/// A finished layer.
#[derive(Clone, Debug)]
pub struct LayerBlob {
    pub digest: String,
    pub diff_id: String,
    pub size: u64,
}

impl LayerBlob {
    pub(super) fn descriptor(&self) -> Value {
        json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
            "digest": self.digest,
            "size": self.size,
        })
    }
}

/// Packs a directory, which is changed on the way: overlayfs's marks become OCI's.
///
/// # Errors
/// The disk's, or tar failed.
pub fn pack(tree: &Path, layout: &Layout) -> Result<LayerBlob> {
    mark(tree, Path::new(""))?;
    let mut tar = tar(tree).stdout(Stdio::piped()).spawn().context("cannot start tar")?;
    let mut stream = tar.stdout.take().expect("standard output was asked for above");
    let blob = compress(&mut stream, layout)?;
    if !tar.wait()?.success() {
        bail!("tar failed on {}", tree.display());
    }
    Ok(blob)
}

/// Stores a tar stream, whatever it holds, as a gzip layer.
///
/// # Errors
/// The disk's, or the stream's.
pub fn compress(tar: &mut impl Read, layout: &Layout) -> Result<LayerBlob> {
    let path = layout.unnamed();
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    let blob = Hashing::new(BufWriter::new(file));
    let mut gzip = Hashing::new(GzEncoder::new(blob, Compression::default()));
    copy(tar, &mut gzip).context("cannot write the layer")?;
    let (gzip, diff_id, _) = gzip.finish();
    let (mut file, digest, size) = gzip.finish().context("cannot end the gzip stream")?.finish();
    file.flush()?;
    fs::rename(&path, layout.blob(&digest))?;
    Ok(LayerBlob { digest, diff_id, size })
}

fn tar(tree: &Path) -> Command {
    let mtime = format!("--mtime=@{EPOCH}");
    let mut tar = command("tar", ["--create", "--format=pax", "--numeric-owner", "--sort=name"]);
    // Names without "./", as docker and buildkit write them; symlink targets stay (S).
    tar.args([&mtime, "--clamp-mtime", "--xattrs", "--xattrs-include=*", "--transform=s,^\\./,,S"])
        .args(["--xattrs-exclude=trusted.overlay.*", "--no-acls", "--no-selinux"])
        .args(["--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime"])
        .arg("--directory")
        .arg(tree)
        .arg(".");
    tar
}

/// Replaces overlayfs's whiteouts and opaque marks, and removes what does not belong in an image.
fn mark(tree: &Path, relative: &Path) -> Result<()> {
    let dir = tree.join(relative);
    for entry in fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry?;
        let (path, inner) = (entry.path(), relative.join(entry.file_name()));
        let meta = fs::symlink_metadata(&path)?;
        if !belongs(&inner) {
            remove(&path, &meta)?;
        } else if meta.file_type().is_char_device() && meta.rdev() == 0 {
            fs::remove_file(&path)?;
            File::create(whiteout(&path))?;
        } else if meta.is_dir() {
            mark(tree, &inner)?;
        }
    }
    if is_opaque(&dir) {
        File::create(dir.join(".wh..wh..opq"))?;
    }
    Ok(())
}

fn belongs(path: &Path) -> bool {
    let emptied = path.parent().is_some_and(|parent| EMPTIED.iter().any(|dir| parent == Path::new(dir)));
    !emptied && !REMOVED.iter().any(|file| path == Path::new(file))
}

fn remove(path: &Path, meta: &Metadata) -> io::Result<()> {
    if meta.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

fn whiteout(path: &Path) -> PathBuf {
    let mut name = b".wh.".to_vec();
    name.extend_from_slice(path.file_name().unwrap_or_default().as_bytes());
    path.with_file_name(OsStr::from_bytes(&name))
}

fn is_opaque(dir: &Path) -> bool {
    let mut value = [0; 1];
    rustix::fs::lgetxattr(dir, "trusted.overlay.opaque", &mut value) == Ok(1) && value == *b"y"
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    loop {
        let length = from.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..length])?;
    }
}

/// Passes bytes on, counting and hashing them.
struct Hashing<W> {
    inner: W,
    hash: Sha256,
    bytes: u64,
}

impl<W: Write> Hashing<W> {
    fn new(inner: W) -> Self {
        Self { inner, hash: Sha256::new(), bytes: 0 }
    }

    fn finish(self) -> (W, String, u64) {
        (self.inner, format!("sha256:{}", hex::encode(self.hash.finalize())), self.bytes)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.inner.write(bytes)?;
        self.hash.update(&bytes[..length]);
        self.bytes += length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn build_leftovers_do_not_belong() {
        for (path, expected) in [
            ("var/log", true),
            ("var/log/apt", false),
            ("etc/hosts", false),
            ("etc/hosts.allow", true),
            ("var/lib/apt/lists/x", false),
            ("srv/tmp/a", true),
        ] {
            assert_eq!(belongs(Path::new(path)), expected, "{path}");
        }
    }

    #[test]
    fn whiteouts_stand_beside_what_they_hide() {
        assert_eq!(whiteout(Path::new("/a/b")), Path::new("/a/.wh.b"));
    }
}
