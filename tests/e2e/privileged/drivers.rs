//! The kernel's EROFS and the full FUSE file system are each other's oracle.

use anyhow::{Result, ensure};
use d7y_bench::rig::cluster::Cluster;
use d7y_bench::rig::compare::{self, Tree};

use crate::images::everything;
use crate::stage::{UNLIMITED, in_lab, node, push, start};

#[test]
fn both_drivers_show_the_same_tree() -> Result<()> {
    in_lab(|lab| {
        let image = everything(lab, "all")?;
        let expected = compare::unpacked(lab, &image)?;
        let cluster = Cluster::start(lab, UNLIMITED)?;
        let wanted = push(&cluster, &image)?;
        let erofs = node(&cluster, lab, "erofs", &[], &["driver=erofs"])?;
        let fuse = node(&cluster, lab, "fuse", &[], &["driver=fuse"])?;
        let (by_erofs, _) = start(&erofs, &wanted, "erofs")?;
        let (by_fuse, _) = start(&fuse, &wanted, "fuse")?;
        for started in [&by_erofs, &by_fuse] {
            let report = compare::container(&expected, &started.rootfs)?;
            ensure!(report.is_equal(), "{} and umoci: {report}", started.id);
        }
        let report = compare::container(&Tree::scan(&by_erofs.rootfs)?, &by_fuse.rootfs)?;
        ensure!(report.is_equal(), "erofs and fuse: {report}");
        ensure!(mounts("erofs", &erofs.node.host.dir)? > 0, "no layer is mounted with EROFS");
        ensure!(
            mounts("erofs", &fuse.node.host.dir)? == 0,
            "a layer is mounted with EROFS in spite of driver: fuse"
        );
        Ok(())
    })
}

/// Mounts of a file system type below a directory.
fn mounts(kind: &str, dir: &std::path::Path) -> Result<usize> {
    let table = std::fs::read_to_string("/proc/self/mounts")?;
    let prefix = dir.display().to_string();
    let of_kind = |line: &&str| {
        let mut fields = line.split(' ').skip(1);
        fields.next().is_some_and(|point| point.starts_with(&prefix)) && fields.next() == Some(kind)
    };
    Ok(table.lines().filter(of_kind).count())
}
