use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};

use d7y_fuse::{Errno, FileKind, NodeId, Privileges, mounts};
use d7y_types::ByteRange;

use crate::mounted::{Mounted, PATIENCE, background, pattern, wait_until};
use crate::tree::{Body, Node, Tree};

const LARGE_BYTES: usize = (3 << 20) + 4097;

#[test]
fn bytes() {
    let content = pattern(LARGE_BYTES);
    let mut tree = Tree::with("large", Node::file(&content));
    tree.add(NodeId::ROOT, "empty", Node::file(b""));
    let mounted = Mounted::container(tree);

    assert_eq!(fs::read(mounted.path("large")).unwrap(), content);
    assert_eq!(fs::read(mounted.path("empty")).unwrap(), b"");
    let file = File::open(mounted.path("large")).unwrap();
    for (offset, bytes) in
        [(0, 1), (4095, 2), (1 << 20, 70_000), (LARGE_BYTES - 3, 10), (LARGE_BYTES, 1), (1 << 40, 5)]
    {
        let mut buffer = vec![0; bytes];
        let read = file.read_at(&mut buffer, offset as u64).unwrap();
        let end = content.len().min(offset + bytes);
        assert_eq!(
            &buffer[..read],
            content.get(offset..end).unwrap_or_default(),
            "{bytes} bytes at {offset}"
        );
    }
}

#[test]
fn a_mapped_file() {
    let content = pattern(LARGE_BYTES);
    let mounted = Mounted::container(Tree::with("large", Node::file(&content)));
    let file = File::open(mounted.path("large")).unwrap();
    assert!(mapped(&file, LARGE_BYTES) == content);
}

#[allow(unsafe_code, reason = "no safe mmap among the dependencies")]
fn mapped(file: &File, bytes: usize) -> Vec<u8> {
    use std::os::fd::AsRawFd;
    let (protection, flags) = (libc::PROT_READ, libc::MAP_PRIVATE);
    // SAFETY: a fresh private mapping at an address of the kernel's choice; it is checked before use, covers exactly
    // `bytes` of a file that is at least as long and does not change, and is read as plain bytes before it goes.
    unsafe {
        let map = libc::mmap(std::ptr::null_mut(), bytes, protection, flags, file.as_raw_fd(), 0);
        assert_ne!(map, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        let copy = std::slice::from_raw_parts(map.cast::<u8>(), bytes).to_vec();
        assert_eq!(libc::munmap(map, bytes), 0);
        copy
    }
}

#[test]
fn a_program_runs_as_its_set_user_id_owner() {
    let mut program = Node::file(&fs::read("/usr/bin/id").unwrap());
    (program.attributes.permissions, program.attributes.uid) = (0o4755, 1234);
    let mounted = Mounted::container(Tree::with("id", program));
    let output = Command::new(mounted.path("id")).arg("-u").output().unwrap();
    assert_eq!(output.stdout, b"1234\n");
}

#[test]
fn metadata() {
    let mut tree = Tree::new();
    let mut file = Node::file(b"x");
    file.attributes =
        d7y_fuse::Attributes { permissions: 0o6640, links: 2, uid: 5, gid: 6, ..file.attributes };
    let file = tree.add(NodeId::ROOT, "first", file);
    tree.link(NodeId::ROOT, "second", file);
    tree.add(NodeId::ROOT, "link", Node::new(FileKind::Symlink, 9, Body::Link(b"some/\xffaim")));
    let mut null = Node::new(FileKind::CharacterDevice, 0, Body::Special);
    null.attributes.rdev = 0x103;
    tree.add(NodeId::ROOT, "null", null);
    tree.add(NodeId::ROOT, "fifo", Node::new(FileKind::Fifo, 0, Body::Special));
    let mounted = Mounted::container(tree);

    let (first, second) =
        (mounted.path("first").metadata().unwrap(), mounted.path("second").metadata().unwrap());
    assert_eq!((first.ino(), first.nlink()), (second.ino(), 2));
    assert_eq!((first.permissions().mode(), first.uid(), first.gid(), first.len()), (0o106_640, 5, 6, 1));
    assert_eq!((first.mtime(), first.mtime_nsec()), (1_700_000_000, 7));
    assert_eq!(fs::read_link(mounted.path("link")).unwrap().as_os_str().as_bytes(), b"some/\xffaim");
    assert_eq!(mounted.path("null").metadata().unwrap().rdev(), libc::makedev(1, 3));
    assert_eq!(fs::read(mounted.path("null")).unwrap(), b"", "device nodes work");
    assert!(mounted.path("fifo").metadata().unwrap().file_type().is_fifo());
    assert_eq!(fs::metadata(mounted.path("none")).unwrap_err().raw_os_error(), Some(libc::ENOENT));
    assert_eq!(fs::write(mounted.path("new"), b"").unwrap_err().raw_os_error(), Some(libc::EROFS));
    assert!(rustix::fs::statvfs(&mounted.target).unwrap().f_namemax >= 255);
}

/// CAP_NET_RAW, permitted and effective, as the kernel checks it on the way out (revision 2).
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn extended_attributes() {
    let mut node = Node::file(b"");
    node.xattrs = vec![
        ("user.one", b"1".to_vec()),
        ("security.capability", CAPABILITY.to_vec()),
        ("user.void", vec![]),
    ];
    let mounted = Mounted::container(Tree::with("file", node));
    let path = mounted.path("file");

    let mut names = [0; 100];
    let bytes = rustix::fs::listxattr(&path, &mut names[..]).unwrap();
    assert_eq!(&names[..bytes], b"user.one\0security.capability\0user.void\0");
    type Case<'a> = (&'a str, usize, Result<&'a [u8], i32>);
    let cases: [Case<'_>; 6] = [
        ("user.one", 10, Ok(b"1")),
        ("security.capability", 20, Ok(&CAPABILITY)),
        ("security.capability", 19, Err(libc::ERANGE)),
        ("user.void", 10, Ok(b"")),
        ("user.two", 10, Err(libc::ENODATA)),
        ("system.posix_acl_access", 10, Err(libc::ENODATA)),
    ];
    for (name, room, expected) in cases {
        let mut value = vec![0; room];
        let found = rustix::fs::getxattr(&path, name, &mut value[..]);
        let found = found.map(|bytes| &value[..bytes]).map_err(|errno| errno.raw_os_error());
        assert_eq!(found, expected, "{name}");
    }
    assert_eq!(xattr_bytes(&path, c"security.capability"), 20);
}

#[allow(unsafe_code, reason = "rustix does not tell a size without a buffer")]
fn xattr_bytes(path: &Path, name: &CStr) -> isize {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: both strings end in NUL and outlive the call; with a size of 0 nothing is written.
    unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), std::ptr::null_mut(), 0) }
}

#[test]
fn a_directory_of_ten_thousand() {
    let mut tree = Tree::new();
    let directory =
        tree.add(NodeId::ROOT, "many", Node::new(FileKind::Directory, 0, Body::Directory(vec![])));
    let names: BTreeSet<_> = (0..10_000).map(|number| format!("a file with a number {number}")).collect();
    for name in &names {
        tree.add(directory, name, Node::file(name.as_bytes()));
    }
    let mounted = Mounted::container(tree);
    for _ in 0..2 {
        let listed = fs::read_dir(mounted.path("many")).unwrap();
        let listed: Vec<_> = listed.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        assert_eq!(listed.len(), names.len());
        assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), names);
    }
    let last = names.last().unwrap();
    assert_eq!(fs::read(mounted.path("many").join(last)).unwrap(), last.as_bytes());
}

#[test]
fn what_the_kernel_has_it_does_not_ask_for_again() {
    let mounted = Mounted::container(Tree::with("file", Node::file(&pattern(100_000))));
    let look = || (fs::read(mounted.path("file")).unwrap(), fs::metadata(mounted.path("none")).is_ok());
    let first = look();
    let before = mounted.session.counters();
    assert_eq!(look(), first);
    assert_eq!(mounted.session.counters().requests, before.requests);

    let node = NodeId(fs::metadata(mounted.path("file")).unwrap().ino());
    mounted.session.invalidate_node(node).unwrap();
    mounted.session.invalidate_entry(NodeId::ROOT, "file".as_ref()).unwrap();
    assert_eq!(look(), first);
    assert!(mounted.session.counters().reads > before.reads);
    let unknown = mounted.session.invalidate_entry(NodeId::ROOT, "never seen".as_ref());
    assert_eq!(unknown.unwrap_err().raw_os_error(), Some(libc::ENOENT));
}

#[test]
fn a_reply_kept_and_sent_from_elsewhere() {
    let (sender, kept) = mpsc::channel();
    let sender = Mutex::new(sender);
    let keep = move |range, reply| sender.lock().unwrap().send((range, reply)).unwrap();
    let mounted = Mounted::container(Tree::with("late", Node::hooked(5, keep)));
    let path = mounted.path("late");
    let reader = background(move || fs::read(path).unwrap());

    let (range, reply) = kept.recv_timeout(PATIENCE).unwrap();
    assert!(fs::read_dir(&mounted.target).is_ok(), "others are served meanwhile");
    assert_eq!(range.offset, 0);
    wait_until("only the read is open", || mounted.session.counters().unanswered == 1);
    assert!(reader.is_pending());
    reply.data(b"bytes");
    assert_eq!(reader.result(), b"bytes");
    wait_until("nothing is open", || mounted.session.counters().unanswered == 0);
}

#[test]
fn failures_are_errors_and_not_zeros() {
    let short = tempfile::tempfile().unwrap();
    short.write_all_at(b"present", 0).unwrap();
    let mut tree = Tree::new();
    tree.add(NodeId::ROOT, "dropped", Node::hooked(10, |_, reply| drop(reply)));
    tree.add(
        NodeId::ROOT,
        "panics",
        Node::hooked(10, |_, _reply| panic!("the filesystem panics, as the test wants")),
    );
    tree.add(
        NodeId::ROOT,
        "truncated",
        Node::hooked(10, move |_, reply| reply.file(&short, ByteRange::new(0, 10))),
    );
    tree.add(NodeId::ROOT, "late", Node::hooked(10, |_, reply| reply.error(Errno::TIMED_OUT)));
    tree.add(NodeId::ROOT, "fine", Node::file(b"fine"));
    let mounted = Mounted::container(tree);
    for name in ["dropped", "panics", "truncated", "late"] {
        let errno = if name == "late" { libc::ETIMEDOUT } else { libc::EIO };
        for _ in 0..4 {
            assert_eq!(fs::read(mounted.path(name)).unwrap_err().raw_os_error(), Some(errno), "{name}");
        }
    }
    assert_eq!(fs::read(mounted.path("fine")).unwrap(), b"fine");
    assert!(mounted.session.counters().errors >= 16);
}

#[test]
fn a_scan_of_a_local_file_comes_in_whole_requests() {
    let content = pattern(8 << 20);
    let backing = tempfile::tempfile().unwrap();
    backing.write_all_at(&content, 0).unwrap();
    let sizes = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&sizes);
    let file_bytes = content.len() as u64;
    let serve = move |range: ByteRange, reply: d7y_fuse::ReadReply| {
        seen.lock().unwrap().push(range.length);
        reply.file(&backing, ByteRange::new(range.offset, range.length.min(file_bytes - range.offset)));
    };
    let mounted = Mounted::new(Privileges::Sealed, Tree::with("device", Node::hooked(file_bytes, serve)));
    assert!(fs::read(mounted.path("device")).unwrap() == content);
    let sizes = sizes.lock().unwrap();
    assert_eq!(sizes.iter().max(), Some(&u64::from(d7y_fuse::MAX_READ_BYTES)), "{sizes:?}");
    assert!(sizes.len() <= 16, "{sizes:?}");

    mounts::set_read_ahead_kb(&mounted.target, 512).unwrap();
    let found = mounts::mount_points_below(&mounted.target).unwrap().remove(0).device;
    let control = format!("/sys/class/bdi/{}:{}/read_ahead_kb", found.0, found.1);
    assert_eq!(fs::read_to_string(control).unwrap(), "512\n");
}
