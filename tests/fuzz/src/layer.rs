//! Builds layers and looks at what came of them.

use std::collections::HashMap;
use std::io;

use d7y_image::{
    BuildOptions, Chunk, ChunkSink, Codec, EntryKind, Extent, LayerIndex, Limits, MAX_PATH_BYTES, Node,
    NodeId, NodeKind, TarError, TarReader, Tree, build_layer, layer_tree, read_bootstrap, write_bootstrap,
};
use d7y_types::{ByteRange, Compression};

use crate::fixture::{layer_ref, seal, sha256};

const TRAILER_BYTES: usize = 96;

/// Small enough that no input costs seconds.
fn options() -> BuildOptions {
    let limits = Limits {
        entries: 4096,
        metadata_bytes: 1 << 20,
        uncompressed_bytes: 8 << 20,
        expansion_ratio: 100,
        ratio_from_bytes: 1 << 20,
        chunks: 4096,
        ..Limits::default()
    };
    BuildOptions { zstd_level: 1, limits, ..BuildOptions::default() }
}

/// Reads an archive to its end.
pub fn read(archive: &[u8]) -> Result<(), TarError> {
    let mut reader = TarReader::new(archive);
    let mut buffer = vec![0; 4096];
    while let Some(entry) = reader.next_entry()? {
        assert!(entry.path.len() <= MAX_PATH_BYTES && reader.entry_offset() < archive.len() as u64);
        let mut length = 0_u64;
        while let Some(extent) = reader.next_extent() {
            let (Extent::Data(bytes) | Extent::Hole(bytes)) = extent;
            length = length.checked_add(bytes).expect("extents lie within a file");
            let mut left = if matches!(extent, Extent::Data(_)) { bytes } else { 0 };
            while left > 0 {
                let part = left.min(buffer.len() as u64);
                reader.read_data(&mut buffer[..part as usize])?;
                left -= part;
            }
        }
        if let EntryKind::Regular { size } = entry.kind {
            assert_eq!(length, size, "extents make up the file");
        }
    }
    Ok(())
}

/// What builds is described truthfully and survives every way that it takes from there.
pub fn build(blob: &[u8], compression: Compression) {
    let mut spec = layer_ref(blob, &[], compression);
    if compression == Compression::None {
        spec.diff_id = spec.digest;
    }
    let mut chunks = Chunks::default();
    let Ok(index) = build_layer(&spec, blob, &mut chunks, &options()) else { return };
    assert_eq!((index.layer, index.diff_id), (sha256(blob), spec.diff_id));
    assert_eq!(index.chunks, chunks.0);
    let mut encoded = index.encode().expect("what was built can be encoded");
    encoded.extend([0; TRAILER_BYTES]);
    assert_eq!(LayerIndex::decode(&encoded).expect("and decoded"), index);

    let tree = layer_tree(&index).expect("what was built can be read");
    for id in (0..tree.node_count() as u32).map(NodeId) {
        if let NodeKind::Regular { device_offset, size } = tree.node(id).kind {
            assert!(ByteRange::new(device_offset, size).end() <= index.device_bytes(), "past the device");
        }
    }
    let again = write_bootstrap(&tree).expect("and written again");
    let again = read_bootstrap(&again.bytes).expect("and read again");
    assert_eq!(Names::of(&tree), Names::of(&again));
}

/// The archive with the checksums that its headers should have.
pub fn mended(archive: &[u8]) -> Vec<u8> {
    let mut archive = archive.to_vec();
    for block in archive.as_chunks_mut::<512>().0 {
        if block[257..262] == *b"ustar" {
            seal(block);
        }
    }
    archive
}

#[derive(Default)]
struct Chunks(Vec<Chunk>);

impl ChunkSink for Chunks {
    fn chunk(&mut self, number: u32, chunk: &Chunk, frame: &[u8], data: &[u8]) -> io::Result<()> {
        assert_eq!(number as usize, self.0.len());
        let decoded = Chunk::decode(&chunk.encode(), self.0.last()).expect("what was made can be announced");
        assert_eq!(decoded, *chunk);
        if chunk.codec != Codec::Zero {
            assert!(d7y_store::decode_chunk(chunk, frame).expect("and decoded") == data);
        }
        self.0.push(*chunk);
        Ok(())
    }
}

/// A tree by its names: what two trees have in common whatever their numbers are.
#[derive(Debug, PartialEq, Eq)]
pub struct Names(Vec<(Vec<u8>, Named)>);

#[derive(Debug, PartialEq, Eq)]
enum Named {
    New(Node),
    /// Of the node that has this name too.
    Again(Vec<u8>),
}

impl Names {
    pub fn of(tree: &Tree) -> Self {
        let (mut names, mut seen) = (Vec::new(), HashMap::new());
        let mut open = vec![(NodeId::ROOT, Vec::new())];
        while let Some((id, path)) = open.pop() {
            if let Some(first) = seen.get(&id) {
                names.push((path, Named::Again(Vec::clone(first))));
                continue;
            }
            seen.insert(id, path.clone());
            let mut node = Node { nid: 0, ..tree.node(id).clone() };
            node.xattrs.sort();
            if let NodeKind::Directory { children, implied } = &mut node.kind {
                *implied = false;
                let children = std::mem::take(children).into_iter().rev();
                open.extend(children.map(|(name, child)| (child, [&path[..], b"/", &name].concat())));
            }
            names.push((path, Named::New(node)));
        }
        Self(names)
    }
}
