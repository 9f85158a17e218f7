//! What umoci unpacks from an image: the oracle.

use anyhow::{Context, Result};

use super::tree::Tree;
use crate::rig::command::{command, run};
use crate::rig::image::Image;
use crate::rig::lab::Lab;

/// Unpacks the image and reads the tree.
///
/// # Errors
/// umoci's, or the disk's.
pub fn unpacked(lab: &Lab, image: &Image) -> Result<Tree> {
    let bundle = lab.dir().join(format!("umoci-{}", image.tag));
    let reference = format!("{}:{}", image.layout.display(), image.tag);
    run(command("umoci", ["unpack", "--image", &reference]).arg(&bundle))?;
    let tree = Tree::scan(&bundle.join("rootfs"));
    std::fs::remove_dir_all(&bundle).context("cannot remove what umoci unpacked")?;
    tree
}
