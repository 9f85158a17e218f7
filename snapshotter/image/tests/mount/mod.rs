//! Mounts bootstraps with the kernel's EROFS and compares them with the trees that they describe.
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use d7y_image::{NodeId, NodeKind, Tree};
use d7y_skip::Extent;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// The mount option, or the argument, that names a device. The file may have no name of its own.
fn device_option(device: &File) -> String {
    format!("device=/proc/{}/fd/{}", std::process::id(), device.as_raw_fd())
}

/// A mount that goes away with its value.
pub struct Mounted {
    path: PathBuf,
    /// What it is made of, when that is its own.
    _files: Option<tempfile::TempDir>,
}

impl Mounted {
    /// The kernel's EROFS, the device a plain file. Callers have asked `is_root`.
    pub fn erofs(bootstrap: &[u8], device: &File) -> Self {
        let files = tempfile::tempdir().unwrap();
        let (image, path) = (files.path().join("bootstrap"), files.path().join("mnt"));
        fs::write(&image, bootstrap).unwrap();
        fs::create_dir(&path).unwrap();
        let data = device_option(device);
        mount(Some(&image), &path, Some("erofs"), MsFlags::MS_RDONLY, Some(data.as_str()))
            .expect("the kernel mounts the bootstrap");
        Self { path, _files: Some(files) }
    }

    /// Layers over one another; the first is the uppermost.
    pub fn overlay(layers: &[Self], path: PathBuf) -> Self {
        let lowers: Vec<String> = layers.iter().map(|layer| layer.path.display().to_string()).collect();
        let data = format!("lowerdir={}", lowers.join(":"));
        mount(Some("overlay"), &path, Some("overlay"), MsFlags::MS_RDONLY, Some(data.as_str()))
            .expect("the kernel stacks the layers");
        Self { path, _files: None }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        umount2(&self.path, MntFlags::MNT_DETACH).expect("the test's own mount goes away");
    }
}

/// False without root: so much of the test is skipped.
pub fn is_root(skipped: Extent) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        d7y_skip::tell(skipped, "root");
    }
    root
}

/// Checks an image with erofs-utils, where they are installed.
pub fn fsck(bootstrap: &[u8], device: &File) {
    let mut image = tempfile::NamedTempFile::new().unwrap();
    image.write_all(bootstrap).unwrap();
    let option = format!("--{}", device_option(device));
    match Command::new("fsck.erofs").arg(option).arg(image.path()).output() {
        Ok(output) => assert!(output.status.success(), "fsck.erofs: {output:?}"),
        Err(error) => d7y_skip::part(format_args!("fsck.erofs (erofs-utils): {error}")),
    }
}

/// Compares names, types, attributes, links and content, in both directions.
pub fn compare_with_tree(tree: &Tree, device: &File, root: &Path) {
    let mut inodes = HashMap::new();
    let mut open = vec![(NodeId::ROOT, root.to_path_buf())];
    while let Some((id, path)) = open.pop() {
        let inode = fs::symlink_metadata(&path).unwrap().ino();
        assert_eq!(*inodes.entry(id).or_insert(inode), inode, "hard links of {path:?}");
        compare_node(tree, device, id, &path);
        let Some(children) = tree.children(id) else { continue };
        let mut listed: Vec<_> = fs::read_dir(&path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().as_bytes().to_vec())
            .collect();
        listed.sort();
        assert!(listed.iter().eq(children.keys()), "names in {path:?}");
        open.extend(children.iter().map(|(name, child)| (*child, path.join(OsStr::from_bytes(name)))));
    }
    let distinct: std::collections::HashSet<_> = inodes.values().collect();
    assert_eq!(distinct.len(), inodes.len(), "different nodes have different inodes");
}

fn compare_node(tree: &Tree, device: &File, id: NodeId, path: &Path) {
    let (node, found) = (tree.node(id), fs::symlink_metadata(path).unwrap());
    let kind = found.file_type();
    let matches = match &node.kind {
        NodeKind::Directory { .. } => kind.is_dir(),
        NodeKind::Regular { device_offset, size } => {
            kind.is_file()
                && found.len() == *size
                && (*size > 1 << 30 || fs::read(path).unwrap() == read(device, *device_offset, *size))
        }
        NodeKind::Symlink(target) => fs::read_link(path).unwrap().as_os_str().as_bytes() == target,
        NodeKind::CharDevice(number) => kind.is_char_device() && encode_device(found.rdev()) == *number,
        NodeKind::BlockDevice(number) => kind.is_block_device() && encode_device(found.rdev()) == *number,
        NodeKind::Fifo => kind.is_fifo(),
        NodeKind::Socket => kind.is_socket(),
    };
    assert!(matches, "type, number or content of {path:?}: {:?}", node.kind);
    assert_eq!(found.mode() & 0o7777, u32::from(node.mode), "mode of {path:?}");
    assert_eq!((found.uid(), found.gid()), (node.uid, node.gid), "owner of {path:?}");
    assert_eq!((found.mtime(), found.mtime_nsec()), (node.mtime.0, node.mtime.1.into()), "time of {path:?}");
    assert_eq!(found.nlink(), u64::from(node.nlink), "links of {path:?}");
    if kind.is_file() || kind.is_dir() {
        compare_xattrs(&node.xattrs, path);
    }
}

fn read(device: &File, offset: u64, bytes: u64) -> Vec<u8> {
    let mut out = vec![0; bytes as usize];
    device.read_exact_at(&mut out, offset).unwrap();
    out
}

fn encode_device(number: u64) -> u32 {
    let (major, minor) = (nix::sys::stat::major(number) as u32, nix::sys::stat::minor(number) as u32);
    (minor & 0xff) | major << 8 | (minor & !0xff) << 12
}

fn compare_xattrs(expected: &[(Vec<u8>, Vec<u8>)], path: &Path) {
    let mut expected = expected.to_vec();
    expected.sort();
    assert_eq!(xattrs(path), expected, "extended attributes of {path:?}");
}

/// Sorted names and values.
pub fn xattrs(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut names = vec![0; 1 << 16];
    let length = rustix::fs::llistxattr(path, &mut names).unwrap();
    let listed = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let mut found: Vec<_> = listed.map(|name| (name.to_vec(), xattr(path, name))).collect();
    found.sort();
    found
}

fn xattr(path: &Path, name: &[u8]) -> Vec<u8> {
    let mut value = vec![0; 1 << 16];
    let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value)
        .unwrap_or_else(|error| panic!("{}: {error}", name.escape_ascii()));
    value.truncate(length);
    value
}
