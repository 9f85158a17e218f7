//! Compares a container's root with what another tool unpacks from the same image.
//!
//! Compared for every path: type, mode, owner, modification time, extended attributes, which names
//! share an inode, symlink target, device number, size, SHA-256. Not compared: the sizes, link
//! counts and inode numbers of directories (each file system has its own), access and change
//! times. Left out, and listed by name in the report: what the container's writable layer holds,
//! because the runtime made it (mount points, `etc/resolv.conf`) and the image does not.

mod tree;
mod umoci;

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

pub use tree::{Entry, Kind, Tree};
pub use umoci::unpacked;

/// Differences shown in full; the rest are counted.
const SHOWN: usize = 20;

/// How a tree differs from the expected one.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Paths that were compared.
    pub compared: usize,
    /// Of these, regular files, and their bytes.
    pub files: usize,
    pub file_bytes: u64,
    /// One sentence each.
    pub differences: Vec<String>,
    /// Paths that the runtime made and that were therefore not compared.
    pub left_out: Vec<String>,
}

impl Report {
    pub fn is_equal(&self) -> bool {
        self.differences.is_empty() && self.compared > 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.differences.len() {
            0 if self.compared == 0 => "NOTHING COMPARED".to_owned(),
            0 => "no difference".to_owned(),
            count => format!("{count} DIFFERENCES"),
        };
        let (compared, files, bytes) = (self.compared, self.files, self.file_bytes);
        write!(f, "{compared} paths ({files} files, {:.1} MB) compared: {verdict}", bytes as f64 / 1e6)?;
        for difference in self.differences.iter().take(SHOWN) {
            write!(f, "\n    {difference}")?;
        }
        if self.differences.len() > SHOWN {
            write!(f, "\n    and {} more", self.differences.len() - SHOWN)?;
        }
        if !self.left_out.is_empty() {
            write!(f, "\n    made by the runtime, not compared: {}", self.left_out.join(", "))?;
        }
        Ok(())
    }
}

/// Compares the root of a running container, as it is mounted at `rootfs`.
///
/// # Errors
/// Something cannot be read, or no overlay is mounted there.
pub fn container(expected: &Tree, rootfs: &Path) -> Result<Report> {
    let upper = upper_dir(rootfs)?;
    let made = paths_below(&upper)?;
    Ok(trees(expected, &Tree::scan(rootfs)?, &made))
}

/// Compares two trees except for the named paths.
pub fn trees(expected: &Tree, actual: &Tree, except: &BTreeSet<Vec<u8>>) -> Report {
    let mut report = Report::default();
    let paths: BTreeSet<_> = expected.entries.keys().chain(actual.entries.keys()).collect();
    for path in paths {
        if except.contains(path) {
            report.left_out.push(shown(path));
            continue;
        }
        report.compared += 1;
        match (expected.entries.get(path), actual.entries.get(path)) {
            (Some(expected), Some(actual)) => {
                if let Kind::File { size, .. } = actual.kind {
                    report.files += 1;
                    report.file_bytes += size;
                }
                let fields = differing_fields(expected, actual);
                report
                    .differences
                    .extend(fields.into_iter().map(|field| format!("{}: {field}", shown(path))));
            }
            (Some(_), None) => report.differences.push(format!("{}: missing", shown(path))),
            _ => report.differences.push(format!("{}: should not be there", shown(path))),
        }
    }
    report
}

fn differing_fields(expected: &Entry, actual: &Entry) -> Vec<String> {
    let mut fields = Vec::new();
    let mut compare = |name: &str, expected: String, actual: String| {
        if expected != actual {
            fields.push(format!("{name} is {actual}, should be {expected}"));
        }
    };
    compare("mode", format!("{:o}", expected.mode), format!("{:o}", actual.mode));
    compare("owner", format!("{}:{}", expected.uid, expected.gid), format!("{}:{}", actual.uid, actual.gid));
    compare("mtime", format!("{:?}", expected.mtime), format!("{:?}", actual.mtime));
    compare("xattrs", xattrs(expected), xattrs(actual));
    compare("content", kind(&expected.kind), kind(&actual.kind));
    compare("first name of the inode", shown(&expected.first_name), shown(&actual.first_name));
    fields
}

fn xattrs(entry: &Entry) -> String {
    let each = entry.xattrs.iter().map(|(name, value)| format!("{}={}", shown(name), hex::encode(value)));
    format!("[{}]", each.collect::<Vec<_>>().join(" "))
}

fn kind(kind: &Kind) -> String {
    match kind {
        Kind::Directory => "a directory".into(),
        Kind::File { size, sha256 } => format!("{size} bytes of sha256 {}", hex::encode(sha256)),
        Kind::Symlink { target } => format!("a link to {}", shown(target)),
        Kind::Device { rdev } => format!("device {rdev:#x}"),
        Kind::Other => "a fifo or socket".into(),
    }
}

fn shown(name: &[u8]) -> String {
    match name {
        b"" => "/".into(),
        name => name.escape_ascii().to_string(),
    }
}

/// The writable layer of the overlay that is mounted at a path.
fn upper_dir(rootfs: &Path) -> Result<PathBuf> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo")?;
    let wanted = rootfs.display().to_string();
    let line = mountinfo.lines().rfind(|line| line.split(' ').nth(4) == Some(&wanted));
    let line = line.with_context(|| format!("nothing is mounted at {wanted}"))?;
    let options = line.rsplit(' ').next().unwrap_or_default();
    let upper = options.split(',').find_map(|option| option.strip_prefix("upperdir="));
    Ok(PathBuf::from(upper.with_context(|| format!("{wanted} is no writable overlay"))?))
}

fn paths_below(dir: &Path) -> Result<BTreeSet<Vec<u8>>> {
    fn walk(dir: &Path, root: &Path, paths: &mut BTreeSet<Vec<u8>>) -> Result<()> {
        paths.insert(dir.strip_prefix(root)?.as_os_str().as_bytes().to_vec());
        for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                walk(&entry.path(), root, paths)?;
            } else {
                paths.insert(entry.path().strip_prefix(root)?.as_os_str().as_bytes().to_vec());
            }
        }
        Ok(())
    }
    let mut paths = BTreeSet::new();
    walk(dir, dir, &mut paths)?;
    // overlayfs opens the writable layer's root only to look into it: the root's own metadata come
    // from there, and runtimes copy them from the image or not. It is not the image's doing.
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn sample(dir: &Path) -> Result<Tree> {
        fs::create_dir(dir.join("d"))?;
        fs::write(dir.join("d/file"), "content")?;
        fs::hard_link(dir.join("d/file"), dir.join("twin"))?;
        symlink("file", dir.join("d/link"))?;
        Tree::scan(dir)
    }

    #[test]
    fn a_tree_equals_itself() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let tree = sample(dir.path())?;
        let report = trees(&tree, &Tree::scan(dir.path())?, &BTreeSet::new());
        assert!(report.is_equal(), "{report}");
        assert_eq!((report.compared, report.files), (5, 2));
        assert_eq!(tree.file_bytes(), 7);
        Ok(())
    }

    #[test]
    fn every_kind_of_change_is_seen() -> Result<()> {
        type Change = fn(&Path) -> std::io::Result<()>;
        let rewrite: Change = |dir| {
            let meta = fs::metadata(dir.join("d/file"))?;
            fs::write(dir.join("d/file"), "CONTENT")?;
            fs::File::options().append(true).open(dir.join("d/file"))?.set_modified(meta.modified()?)
        };
        let changes: [(&str, Change, &str); 6] = [
            ("content", rewrite, "d/file: content is"),
            (
                "mode",
                |dir| fs::set_permissions(dir.join("d"), std::os::unix::fs::PermissionsExt::from_mode(0o700)),
                "d: mode is",
            ),
            ("extra", |dir| fs::write(dir.join("extra"), ""), "extra: should not be there"),
            ("missing", |dir| fs::remove_file(dir.join("d/link")), "d/link: missing"),
            (
                "unlinked",
                |dir| {
                    fs::remove_file(dir.join("twin"))
                        .and_then(|()| fs::copy(dir.join("d/file"), dir.join("twin")).map(|_| ()))
                },
                "twin: first name of the inode is twin",
            ),
            (
                "mtime",
                |dir| fs::File::open(dir.join("twin"))?.set_modified(std::time::UNIX_EPOCH),
                "twin: mtime is",
            ),
        ];
        for (name, change, expected) in changes {
            let dir = tempfile::tempdir()?;
            let before = sample(dir.path())?;
            change(dir.path()).with_context(|| name.to_owned())?;
            let report = trees(&before, &Tree::scan(dir.path())?, &BTreeSet::new());
            assert!(report.differences.iter().any(|line| line.starts_with(expected)), "{name}: {report}");
        }
        Ok(())
    }
}
