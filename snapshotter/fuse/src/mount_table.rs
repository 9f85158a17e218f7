//! `/proc/self/mountinfo` (`proc_pid_mountinfo(5)`): facts about mounts without touching the mounts, which may hang.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One mounted file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPoint {
    pub path: PathBuf,
    /// Major and minor number of the file system's device; major 0 for those without a block device.
    pub device: (u32, u32),
    /// As in `/proc/filesystems`, with its subtype: `erofs`, `fuse.d7y-devices`.
    pub file_system: String,
    pub source: OsString,
}

/// All mounts of this mount namespace, in the order in which they were made.
pub(crate) fn read() -> io::Result<Vec<MountPoint>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    Ok(parse(&table))
}

/// The topmost mount at `path`. Symbolic links in front of its last component are followed, the mount itself is not
/// touched.
pub(crate) fn find(path: &Path) -> io::Result<MountPoint> {
    let path = resolve_parent(path)?;
    let found = read()?.into_iter().rfind(|mount| mount.path == path);
    found.ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, format!("{} is not a mount point", path.display()))
    })
}

pub(crate) fn resolve_parent(path: &Path) -> io::Result<PathBuf> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            Ok(parent.canonicalize()?.join(name))
        }
        _ => path.canonicalize(),
    }
}

/// Lines that cannot be understood are left out: a newer kernel must not keep us from seeing the rest.
fn parse(table: &[u8]) -> Vec<MountPoint> {
    table.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<MountPoint> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = std::str::from_utf8(fields.nth(2)?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let path = unescape(fields.nth(1)?);
    let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
    Some(MountPoint {
        path: OsString::from_vec(path).into(),
        device: (major.parse().ok()?, minor.parse().ok()?),
        file_system: String::from_utf8(fields.next()?.to_vec()).ok()?,
        source: OsString::from_vec(unescape(fields.next()?)),
    })
}

/// Space, tab, newline and backslash appear as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let (byte, tail) = octal_escape(rest).unwrap_or((*first, tail));
        out.push(byte);
        rest = tail;
    }
    out
}

fn octal_escape(field: &[u8]) -> Option<(u8, &[u8])> {
    let (escape, tail) = field.split_first_chunk::<4>()?;
    let [b'\\', high @ b'0'..=b'3', middle @ b'0'..=b'7', low @ b'0'..=b'7'] = *escape else { return None };
    Some(((high - b'0') << 6 | (middle - b'0') << 3 | (low - b'0'), tail))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(path: &str, device: (u32, u32), file_system: &str, source: &str) -> Option<MountPoint> {
        Some(MountPoint { path: path.into(), device, file_system: file_system.into(), source: source.into() })
    }

    #[test]
    fn lines() {
        let table = [
            ("42 27 0:39 / /run/m ro,relatime - erofs img ro,acl", mount("/run/m", (0, 39), "erofs", "img")),
            (
                "36 35 98:0 /sub /mnt\\0402 rw shared:1 master:2 - fuse.d7y-tree d\\134y rw",
                mount("/mnt 2", (98, 0), "fuse.d7y-tree", "d\\y"),
            ),
            ("1 2 0:3 / /odd\\09 rw - tmpfs none rw", mount("/odd\\09", (0, 3), "tmpfs", "none")),
            ("1 2 0:3 / /mnt rw", None),
            ("1 2 nonsense / /mnt rw - a b c", None),
            ("", None),
        ];
        for (line, expected) in table {
            assert_eq!(parse_line(line.as_bytes()), expected, "{line}");
        }
    }

    #[test]
    fn a_bad_line_does_not_hide_the_others() {
        let table = b"garbage\n1 2 0:3 / /a rw - tmpfs none rw\n\n1 2 0:4 / /b rw - tmpfs none rw\n";
        let paths: Vec<_> = parse(table).into_iter().map(|mount| mount.path).collect();
        assert_eq!(paths, [Path::new("/a"), Path::new("/b")]);
    }

    #[test]
    fn the_root_is_mounted() {
        assert!(read().unwrap().iter().any(|mount| mount.path == Path::new("/")));
        assert!(find(Path::new("/")).is_ok());
        assert_eq!(find(Path::new("/nonexistent")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
