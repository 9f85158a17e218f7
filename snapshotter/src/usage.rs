use std::collections::HashSet;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::meta::Usage;

/// What a directory tree takes on disk: allocated blocks, hard links counted once, as containerd counts
/// (`continuity/fs/du_unix.go`). Files that vanish meanwhile do not count.
pub fn of_directory(root: &Path) -> io::Result<Usage> {
    let mut usage = Usage::default();
    let mut seen = HashSet::new();
    let mut open = vec![root.to_owned()];
    while let Some(path) = open.pop() {
        let metadata = match std::fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && path != root => continue,
            metadata => metadata?,
        };
        if seen.insert((metadata.dev(), metadata.ino())) {
            usage.bytes += metadata.blocks() * 512;
            usage.inodes += 1;
        }
        if metadata.is_dir() {
            for entry in std::fs::read_dir(&path)? {
                open.push(entry?.path());
            }
        }
    }
    Ok(usage)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hard_links_count_once_and_holes_not() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let empty = of_directory(directory.path()).unwrap();
        assert_eq!(empty.inodes, 1);
        std::fs::write(at("file"), [1; 8192]).unwrap();
        std::fs::hard_link(at("file"), at("link")).unwrap();
        std::fs::create_dir(at("sub")).unwrap();
        std::fs::File::create(at("sub/sparse")).unwrap().set_len(1 << 30).unwrap();
        let full = of_directory(directory.path()).unwrap();
        assert_eq!(full.inodes, 4);
        assert!(full.bytes >= empty.bytes + 8192 && full.bytes < empty.bytes + (1 << 20), "{full:?}");
        assert!(of_directory(&at("nothing")).is_err());
    }
}
