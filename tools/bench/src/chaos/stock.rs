//! Images in the registry, more than the peers may keep: what comes around again is missing again.

use std::sync::Arc;

use anyhow::Result;

use super::walk;
use crate::rig::client::Wanted;
use crate::rig::image::{Data, Files};
use crate::rig::lab::Lab;
use crate::rig::node::Snapshotter;
use crate::rig::registry::Registry;

/// An image in the registry.
#[derive(Clone, Debug)]
pub struct Stocked {
    pub wanted: Wanted,
    pub files: Files,
}

/// How many images there are, and how large.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub walks: u32,
    pub preheats: u32,
    pub probes: u32,
    /// Files of an image that is walked through, 256 KiB each.
    pub files: u32,
}

impl Sizes {
    /// What a node's store may hold, in MiB: frames and data of the image that stays, of about three that are walked
    /// through, and of half of those that are preheated.
    pub fn node_limit_mib(self) -> u32 {
        2 * mib(4 * self.files + self.preheats / 2 * PREHEATED_FILES)
    }

    /// Frames alone, of more images than the nodes hold: what comes around again is read from the registry again, and not
    /// what a node is still reading.
    pub fn seed_limit_mib(self) -> u32 {
        mib(6 * self.files + self.preheats * PREHEATED_FILES)
    }
}

/// Of so many files, and of the shells.
fn mib(files: u32) -> u32 {
    files.div_ceil(4) + 2
}

/// All images, by what they are for.
pub struct Stock {
    pub walks: Arc<Vec<Stocked>>,
    pub preheats: Arc<Vec<Stocked>>,
    pub probes: Vec<Stocked>,
    /// Its container runs from the beginning to the end.
    pub resident: Stocked,
}

/// Four of them are a MiB.
const FILE_BYTES: usize = 256 << 10;

const PREHEATED_FILES: u32 = 16;

/// Says a word, reads nothing, stays longer than any run.
const STAY: &str = "echo up; exec sleep 86400";

impl Stock {
    /// Makes and pushes all of them.
    ///
    /// # Errors
    /// The disk's or skopeo's.
    pub fn push(lab: &Lab, registry: &Registry, sizes: Sizes) -> Result<Self> {
        let mut series = 0;
        let mut make = |name: &str, script: &str, count: u32, bytes: usize| {
            series += 1;
            let tag = format!("{name}-{series}");
            let files = Files { count, bytes, series };
            let image = Data::make(lab, &tag, script, files)?.image;
            let reference = registry.push(&image.layout, &image.tag, "app")?.parse()?;
            anyhow::Ok(Stocked { wanted: Wanted { reference, snapshotter: Snapshotter::D7y }, files })
        };
        let mut several = |name: &str, images: u32, files: u32, bytes: usize| {
            (0..images).map(|_| make(name, walk::SCRIPT, files, bytes)).collect::<Result<Vec<_>>>()
        };
        let walks = Arc::new(several("walk", sizes.walks, sizes.files, FILE_BYTES)?);
        let preheats = Arc::new(several("preheat", sizes.preheats, PREHEATED_FILES, FILE_BYTES)?);
        let probes = several("probe", sizes.probes, 4, 64 << 10)?;
        let resident = make("resident", STAY, sizes.files, FILE_BYTES)?;
        Ok(Self { walks, preheats, probes, resident })
    }
}
