//! Mounts a built layer with the kernel's EROFS and compares it with the tree that the index describes.
#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use d7y_image::{NodeId, NodeKind, Tree, layer_tree};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::fixture::Built;

/// Bootstrap and device as files.
pub struct Files {
    directory: tempfile::TempDir,
}

impl Files {
    pub fn new(built: &Built) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("bootstrap"), &built.index.bootstrap).unwrap();
        let mut device = fs::File::create(directory.path().join("device")).unwrap();
        let mut source = &built.store.device;
        std::io::Seek::seek(&mut source, std::io::SeekFrom::Start(0)).unwrap();
        // The largest device of a test is sparse; only its length is copied then.
        if built.index.device_bytes() < 1 << 30 {
            std::io::copy(&mut source, &mut device).unwrap();
        }
        device.set_len(built.index.device_bytes().max(4096)).unwrap();
        Self { directory }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

pub struct Mounted {
    files: Files,
}

impl Mounted {
    /// `None`, and a line that says so, without root.
    pub fn new(built: &Built) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!(
                "SKIPPED for want of root: mounting {} with the kernel",
                std::thread::current().name()?
            );
            return None;
        }
        let files = Files::new(built);
        fs::create_dir(files.path("mnt")).unwrap();
        let data = format!("device={}", files.path("device").display());
        let flags = MsFlags::MS_RDONLY;
        mount(Some(&files.path("bootstrap")), &files.path("mnt"), Some("erofs"), flags, Some(data.as_str()))
            .expect("the kernel mounts the bootstrap");
        Some(Self { files })
    }

    pub fn path(&self) -> PathBuf {
        self.files.path("mnt")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        umount2(&self.path(), MntFlags::MNT_DETACH).expect("the test's own mount goes away");
    }
}

/// Checks the bootstrap with erofs-utils, where they are installed.
pub fn fsck(built: &Built) {
    let files = Files::new(built);
    let device = format!("--device={}", files.path("device").display());
    match Command::new("fsck.erofs").arg(device).arg(files.path("bootstrap")).output() {
        Ok(output) => assert!(output.status.success(), "fsck.erofs: {output:?}"),
        Err(error) => eprintln!("SKIPPED for want of fsck.erofs (erofs-utils): {error}"),
    }
}

/// Compares names, types, attributes, links and content, in both directions.
pub fn compare_with_tree(built: &Built, root: &Path) {
    let tree = layer_tree(&built.index).unwrap();
    let mut inodes = HashMap::new();
    let mut open = vec![(NodeId::ROOT, root.to_path_buf())];
    while let Some((id, path)) = open.pop() {
        let inode = fs::symlink_metadata(&path).unwrap().ino();
        assert_eq!(*inodes.entry(id).or_insert(inode), inode, "hard links of {path:?}");
        compare_node(built, &tree, id, &path);
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

fn compare_node(built: &Built, tree: &Tree, id: NodeId, path: &Path) {
    let (node, found) = (tree.node(id), fs::symlink_metadata(path).unwrap());
    let kind = found.file_type();
    let matches = match &node.kind {
        NodeKind::Directory { .. } => kind.is_dir(),
        NodeKind::Regular { device_offset, size } => {
            kind.is_file()
                && found.len() == *size
                && (*size > 1 << 30 || fs::read(path).unwrap() == built.store.read(*device_offset, *size))
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
    compare_xattrs(&node.xattrs, path);
}

fn encode_device(number: u64) -> u32 {
    let (major, minor) = (nix::sys::stat::major(number) as u32, nix::sys::stat::minor(number) as u32);
    (minor & 0xff) | major << 8 | (minor & !0xff) << 12
}

fn compare_xattrs(expected: &[(Vec<u8>, Vec<u8>)], path: &Path) {
    let mut names = vec![0; 1 << 16];
    let length = rustix::fs::llistxattr(path, &mut names).unwrap();
    let listed = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let mut found: Vec<_> = listed.map(|name| (name.to_vec(), xattr(path, name))).collect();
    let mut expected = expected.to_vec();
    found.sort();
    expected.sort();
    assert_eq!(found, expected, "extended attributes of {path:?}");
}

fn xattr(path: &Path, name: &[u8]) -> Vec<u8> {
    let mut value = vec![0; 1 << 16];
    let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value)
        .unwrap_or_else(|error| panic!("{}: {error}", name.escape_ascii()));
    value.truncate(length);
    value
}
