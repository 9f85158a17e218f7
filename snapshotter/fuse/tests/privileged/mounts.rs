use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use d7y_fuse::mounts::{self, DeviceReads, ErofsSource, MountError, OverlayUpper};
use d7y_fuse::{MAX_READ_BYTES, Privileges, ReadReply};
use d7y_types::ByteRange;

use crate::erofs_image::{self, FILE_NAME};
use crate::mounted::{MountGuard, Mounted, Scratch, pattern};
use crate::tree::{Node, Tree};

const FILE_BYTES: usize = (6 << 20) + 123;

/// A FUSE mount with one layer device, and the sizes of the reads that it got.
fn served_device() -> (Mounted, Arc<Mutex<Vec<u64>>>) {
    let mut content = pattern(FILE_BYTES);
    content.resize(FILE_BYTES.next_multiple_of(4096), 0);
    let sizes = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&sizes);
    let size = content.len() as u64;
    let serve = move |range: ByteRange, reply: ReadReply| {
        seen.lock().unwrap().push(range.length);
        reply.data(&content[range.offset as usize..size.min(range.end()) as usize]);
    };
    (Mounted::new(Privileges::Sealed, Tree::with("device", Node::hooked(size, serve))), sizes)
}

fn mount_layer(mounted: &Mounted, name: &str, device_reads: DeviceReads) -> (PathBuf, MountGuard) {
    let bootstrap = mounted.scratch.path().join(format!("{name}.bootstrap"));
    fs::write(&bootstrap, erofs_image::image(FILE_BYTES as u32)).unwrap();
    let target = mounted.scratch.directory(name);
    let device = mounted.path("device");
    let devices = &[device.as_path()];
    let read_ahead_kb = mounts::READ_AHEAD_KB;
    let source = ErofsSource { bootstrap: &bootstrap, devices, device_reads, read_ahead_kb };
    mounts::mount_erofs(&source, &target).unwrap();
    let guard = MountGuard::new(&target);
    (target, guard)
}

#[test]
fn erofs_over_a_served_device() {
    for device_reads in [DeviceReads::Buffered, DeviceReads::Direct] {
        let (mounted, sizes) = served_device();
        let (target, _guard) = mount_layer(&mounted, "layer", device_reads);
        assert!(fs::read(target.join(FILE_NAME)).unwrap() == pattern(FILE_BYTES));
        let sizes = sizes.lock().unwrap();
        assert!(sizes.contains(&MAX_READ_BYTES.into()), "{device_reads:?}: no read-ahead: {sizes:?}");
    }
}

#[test]
fn another_user_reads_through_erofs_but_not_the_device() {
    let (mounted, _) = served_device();
    let (target, _guard) = mount_layer(&mounted, "layer", DeviceReads::Buffered);
    let read_as_nobody = |path: &Path| Command::new("cat").arg(path).uid(65534).gid(65534).output().unwrap();
    assert!(read_as_nobody(&target.join(FILE_NAME)).stdout == pattern(FILE_BYTES));
    assert!(!read_as_nobody(&mounted.path("device")).status.success());
}

#[test]
fn containers_write_above_layers() {
    let (mounted, _) = served_device();
    let (lower, _lower) = mount_layer(&mounted, "layer", DeviceReads::Buffered);
    let scratch = &mounted.scratch;
    let (other, upper, work) =
        (scratch.directory("other"), scratch.directory("upper"), scratch.directory("work"));
    fs::write(other.join("second"), b"2").unwrap();
    let target = scratch.directory("root");
    let upper = OverlayUpper { upper: &upper, work: &work };
    mounts::mount_overlay(&[&other, &lower], Some(upper), &target).unwrap();
    let _root = MountGuard::new(&target);

    assert!(fs::read(target.join(FILE_NAME)).unwrap() == pattern(FILE_BYTES));
    assert_eq!(fs::read(target.join("second")).unwrap(), b"2");
    let file = File::options().write(true).open(target.join(FILE_NAME)).unwrap();
    file.write_all_at(b"changed", 0).unwrap();
    assert!(fs::read(target.join(FILE_NAME)).unwrap().starts_with(b"changed"));

    let below: Vec<_> = mounts::mount_points_below(scratch.path()).unwrap();
    let below: Vec<_> =
        below.iter().map(|mount| (mount.path.as_path(), mount.file_system.as_str())).collect();
    let expected = [(&*target, "overlay"), (&*lower, "erofs"), (&*mounted.target, "fuse.d7y-devices")];
    assert_eq!(below, expected);
}

#[test]
fn a_dead_device_fails_readers_and_never_shows_zeros() {
    let (mounted, _) = served_device();
    let (target, _guard) = mount_layer(&mounted, "layer", DeviceReads::Buffered);
    let file = File::open(target.join(FILE_NAME)).unwrap();
    let mut block = vec![0; 4096];
    file.read_exact_at(&mut block, 0).unwrap();
    mounts::abort_connection(&mounted.target).unwrap();
    for offset in [4 << 20, 5 << 20] {
        assert!(file.read_at(&mut block, offset).is_err());
    }
}

#[test]
fn bind_mounts_are_read_only() {
    let scratch = Scratch::new();
    let (source, target) = (scratch.directory("source"), scratch.directory("target"));
    fs::write(source.join("file"), b"x").unwrap();
    mounts::bind_read_only(&source, &target).unwrap();
    let _guard = MountGuard::new(&target);
    assert_eq!(fs::read(target.join("file")).unwrap(), b"x");
    let refused = fs::write(target.join("file"), b"y").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    fs::write(source.join("file"), b"y").unwrap();
    mounts::unmount(&target).unwrap();
    assert!(fs::read(target.join("file")).is_err());
}

#[test]
fn mount_failures_say_what_failed() {
    let scratch = Scratch::new();
    let (target, nothing) = (scratch.directory("target"), scratch.path().join("nothing"));
    let source = ErofsSource {
        bootstrap: &nothing,
        devices: &[],
        device_reads: DeviceReads::Buffered,
        read_ahead_kb: mounts::READ_AHEAD_KB,
    };
    let error = mounts::mount_erofs(&source, &target).unwrap_err();
    assert!(matches!(&error, MountError::Mount { file_system: "erofs", .. }), "{error}");
    assert!(mounts::set_read_ahead_kb(&target, 64).is_err());
    assert!(mounts::abort_connection(&target).is_err());
    mounts::unmount(&nothing).unwrap();
    assert_eq!(mounts::mount_points_below(scratch.path()).unwrap(), []);
}

#[test]
fn the_probe_finds_file_backed_erofs_and_leaves_nothing() {
    let scratch = Scratch::new();
    for _ in 0..2 {
        assert_eq!(
            mounts::probe_file_backed_erofs(scratch.path()).unwrap(),
            mounts::FileBackedErofs::Mounts,
            "Linux 6.12 with EROFS_FS_BACKED_BY_FILE"
        );
    }
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
    assert!(mounts::probe_file_backed_erofs(Path::new("/proc/nowhere")).is_err());
}
