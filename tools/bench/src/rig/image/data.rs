//! Images of noise: they cost their size on every link, and every byte of them is known.

use std::fs;

use anyhow::Result;
use sha2::{Digest, Sha256};

use super::{Content, Image, assemble, busybox};
use crate::rig::lab::Lab;
use crate::rig::places::make_dir;

/// An image with files of noise over a shell.
pub struct Data {
    pub image: Image,
    files: Files,
}

/// Which files there are, and what they hold.
#[derive(Clone, Copy, Debug)]
pub struct Files {
    pub count: u32,
    /// Of each.
    pub bytes: usize,
    /// Files of different series have nothing in common.
    pub series: u32,
}

impl Files {
    /// Where a file is below the root.
    pub fn name(number: u32) -> String {
        format!("data/{number:04}")
    }

    pub fn content(&self, number: u32) -> Vec<u8> {
        noise(u64::from(self.series) << 32 | u64::from(number), self.bytes)
    }

    /// Of all files in their order, in hex.
    pub fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        (0..self.count).for_each(|number| hash.update(self.content(number)));
        hex::encode(hash.finalize())
    }
}

impl Data {
    /// Its command prints the sum of all files, and stays.
    ///
    /// # Errors
    /// As [`Data::make`].
    pub fn summing(lab: &Lab, tag: &str, count: u32, bytes: usize) -> Result<Self> {
        Self::make(lab, tag, "cat /data/* | sha256sum; exec sleep 600", Files { count, bytes, series: 0 })
    }

    /// Its command says a word, reads nothing of the files, and stays.
    ///
    /// # Errors
    /// As [`Data::make`].
    pub fn idle(lab: &Lab, tag: &str, count: u32, bytes: usize) -> Result<Self> {
        Self::make(lab, tag, "echo up; exec sleep 600", Files { count, bytes, series: 0 })
    }

    /// An image whose command is this shell script.
    ///
    /// # Errors
    /// The disk's, or busybox is not installed.
    pub fn make(lab: &Lab, tag: &str, script: &str, files: Files) -> Result<Self> {
        let base = busybox(lab, &format!("{tag}-base"))?;
        let dir = lab.dir().join("trees").join(format!("{tag}-data"));
        make_dir(dir.join("data"))?;
        for number in 0..files.count {
            fs::write(dir.join(Files::name(number)), files.content(number))?;
        }
        let layers = [Content::Tree(&base), Content::Tree(&dir)];
        let image = assemble(lab, tag, &["sh", "-c", script], &layers)?;
        Ok(Self { image, files })
    }

    pub fn files(&self) -> Files {
        self.files
    }

    /// What `cat /data/* | sha256sum` prints in the container.
    pub fn sum(&self) -> String {
        format!("{}  -", self.files.sha256())
    }
}

/// Bytes that do not compress, the same for the same seed (xorshift64*, Vigna 2016).
pub fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes()
    });
    let mut noise: Vec<u8> = words.take(bytes.div_ceil(8)).flatten().collect();
    noise.truncate(bytes);
    noise
}
