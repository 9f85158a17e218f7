//! How much of what a start reads was on the node's own disk when it began.
//!
//! What a start reads says the image's access trace, which a node's snapshotter records from the first container on that
//! it mounts; what was there says the bitmap beside each layer's device in the peer's store (`peer/store`).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use d7y_image::{Codec, LayerIndex};
use d7y_proto::local::RecordTrace;
use prost::Message;

use crate::rig::cluster::Peer;
use crate::rig::image::Image;

/// Which chunks of an image a node had at one time: a bitmap for each layer that its peer knew, by digest in hex.
#[derive(Clone, Debug, Default)]
pub struct Had(BTreeMap<String, Vec<u8>>);

/// What an image's start reads, in parts from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reads {
    /// Of the image's data.
    pub of_image: f64,
    /// Of what is read, what was on the node's own disk.
    pub own: f64,
}

impl Had {
    /// What the node has now.
    pub fn look(peer: &Peer, image: &Image) -> Self {
        let hex = image.layers.iter().filter_map(|(digest, _)| digest.strip_prefix("sha256:"));
        let bits =
            |hex: &str| Some((hex.to_owned(), fs::read(layer(peer.store(), hex).join("device.bits")).ok()?));
        Self(hex.filter_map(bits).collect())
    }

    fn has(&self, layer: &str, chunk: usize) -> bool {
        let byte = self.0.get(layer).and_then(|bits| bits.get(chunk / 8));
        byte.is_some_and(|byte| byte >> (chunk % 8) & 1 == 1)
    }

    /// What the image's start reads as `recorder` has recorded it; nothing where it has not.
    ///
    /// # Errors
    /// The recorder's store does not hold what it should.
    pub fn reads(&self, image: &Image, recorder: &Peer) -> Result<Option<Reads>> {
        let name = image.digest.strip_prefix("sha256:").context("a digest of another kind")?;
        let Ok(trace) = fs::read(recorder.store().join("traces").join(name)) else { return Ok(None) };
        let trace = RecordTrace::decode(&trace[..]).context("the trace is not one")?;
        let mut layers = BTreeMap::new();
        for hex in image.layers.iter().filter_map(|(digest, _)| digest.strip_prefix("sha256:")) {
            // Some layers of an image may have been unpacked by containerd.
            if let Ok(sealed) = fs::read(layer(recorder.store(), hex).join("index")) {
                layers.insert(hex.to_owned(), LayerIndex::decode(&sealed)?);
            }
        }
        let unknown =
            trace.runs.iter().map(|run| hex::encode(&run.layer)).find(|hex| !layers.contains_key(hex));
        ensure!(unknown.is_none(), "no index of a layer that the trace names: {unknown:?}");
        Ok(self.reads_of(&trace, &layers))
    }

    /// Chunks of zeros lie on no disk and count nowhere.
    fn reads_of(&self, trace: &RecordTrace, layers: &BTreeMap<String, LayerIndex>) -> Option<Reads> {
        let (mut own, mut read) = (0, 0);
        for run in &trace.runs {
            let hex = hex::encode(&run.layer);
            let chunks = layers.get(&hex).map_or(&[][..], |index| &index.chunks);
            let numbered = chunks.iter().enumerate().skip(run.first_chunk as usize).take(run.chunks as usize);
            for (number, chunk) in numbered.filter(|(_, chunk)| chunk.codec != Codec::Zero) {
                read += chunk.bytes();
                own += if self.has(&hex, number) { chunk.bytes() } else { 0 };
            }
        }
        let chunks = layers.values().flat_map(|index| &index.chunks);
        let all: u64 = chunks.filter(|chunk| chunk.codec != Codec::Zero).map(|chunk| chunk.bytes()).sum();
        (read > 0).then(|| Reads { of_image: read as f64 / all as f64, own: own as f64 / read as f64 })
    }
}

fn layer(store: &Path, hex: &str) -> PathBuf {
    store.join("layers").join(hex)
}

#[cfg(test)]
mod tests {
    use d7y_image::Chunk;
    use d7y_proto::local::TraceRun;
    use d7y_types::{ChunkHash, Sha256Digest};

    use super::*;

    #[test]
    fn bytes_that_were_there_are_a_part_of_those_that_are_read() {
        let chunk = |(device_block, blocks, codec)| {
            let (pack_offset, frame_bytes, hash) = (0, 1, ChunkHash([0; 32]));
            Chunk { device_block, blocks, pack_offset, frame_bytes, codec, hash }
        };
        let chunks = [(0, 1, Codec::Raw), (1, 3, Codec::Raw), (4, 8, Codec::Zero), (12, 1, Codec::Zstd)];
        let index = LayerIndex {
            layer: Sha256Digest([7; 32]),
            diff_id: Sha256Digest([7; 32]),
            chunks: chunks.map(chunk).to_vec(),
            implied: Vec::new(),
            bootstrap: Vec::new(),
        };
        let layers = BTreeMap::from([("07".repeat(32), index)]);
        let run = |layer: u8, first_chunk, chunks| TraceRun { layer: vec![layer; 32], first_chunk, chunks };
        let had = |bits: u8| Had(BTreeMap::from([("07".repeat(32), vec![bits])]));
        for (had, runs, reads) in [
            (had(0b0000), vec![run(7, 0, 4)], Some((1.0, 0.0))),
            (had(0b0010), vec![run(7, 0, 4)], Some((1.0, 0.6))),
            (had(0b1011), vec![run(7, 0, 4)], Some((1.0, 1.0))),
            (had(0b0001), vec![run(7, 1, 9)], Some((0.8, 0.0))),
            (had(0b0010), vec![run(7, 0, 1), run(7, 1, 1)], Some((0.8, 0.75))),
            (had(0b1111), vec![run(7, 2, 1)], None),
            (had(0b1111), vec![run(8, 0, 4)], None),
            (Had::default(), vec![run(7, 0, 2)], Some((0.8, 0.0))),
        ] {
            let trace = RecordTrace { manifest_digest: vec![1; 32], runs };
            let reads = reads.map(|(of_image, own)| Reads { of_image, own });
            assert_eq!(had.reads_of(&trace, &layers), reads, "{had:?} {trace:?}");
        }
    }
}
