//! One function per target: it panics when something that has to hold does not.

use std::cell::OnceCell;

use d7y_image::{CHUNK_RECORD_BYTES, Chunk, Codec, LayerIndex, read_bootstrap, write_bootstrap};
use d7y_types::Compression;
use tokio::runtime::Runtime;

use crate::layer::{self, Names};

/// The flag in the superblock that says that it has a checksum, which mutation cannot guess.
const CHECKSUM_FLAG_AT: usize = 1024 + 8;
/// Follows an index; `TrustedKeys` has looked at it before.
const TRAILER_BYTES: usize = 96;
/// What a socket's buffer takes at once.
const MAX_LOCAL_BYTES: usize = 64 << 10;

/// The first byte says how the rest is compressed.
pub fn tar(data: &[u8]) {
    let Some((first, blob)) = data.split_first() else { return };
    match first % 4 {
        0 => layer::build(blob, Compression::Gzip),
        1 => layer::build(blob, Compression::Zstd),
        2 => build_readable(blob),
        _ => build_readable(&layer::mended(blob)),
    }
}

/// Building starts threads: what the reader refuses is refused without them.
fn build_readable(archive: &[u8]) {
    if layer::read(archive).is_ok() {
        layer::build(archive, Compression::None);
    }
}

pub fn bootstrap(data: &[u8]) {
    emit_again(data);
    let mut unsealed = data.to_vec();
    if let Some(flags) = unsealed.get_mut(CHECKSUM_FLAG_AT) {
        *flags &= !1;
        emit_again(&unsealed);
    }
}

/// What was read and written again is read as the same, and written as the same.
fn emit_again(image: &[u8]) {
    let Ok(tree) = read_bootstrap(image) else { return };
    let Ok(first) = write_bootstrap(&tree) else { return };
    let again = read_bootstrap(&first.bytes).expect("what the writer writes can be read");
    assert_eq!(Names::of(&tree), Names::of(&again));
    let second = write_bootstrap(&again).expect("what was written once can be written again");
    assert!(first.bytes == second.bytes, "the second writing differs");
}

pub fn index(data: &[u8]) {
    let Ok(index) = LayerIndex::decode(data) else { return };
    let mut encoded = index.encode().expect("what was decoded can be encoded");
    encoded.extend([0; TRAILER_BYTES]);
    assert_eq!(LayerIndex::decode(&encoded).expect("and decoded"), index);
    let _ = d7y_image::layer_tree(&index);
    let device = index.device_bytes();
    for (n, chunk) in index.chunks.iter().enumerate() {
        let range = chunk.device_range();
        assert!(range.end() <= device && index.chunks_in(range) == (n..n + 1));
    }
}

/// Records, then the frame of the last one: what a peer sends of a layer that it is still reading.
pub fn chunk(data: &[u8]) {
    let (records, frame) = data.as_chunks::<CHUNK_RECORD_BYTES>();
    let mut last = None;
    for record in records {
        match Chunk::decode(record, last.as_ref()) {
            Some(chunk) => {
                assert_eq!(chunk.encode(), *record);
                last = Some(chunk);
            }
            None => break,
        }
    }
    let Some(chunk) = last else { return };
    for frame in [frame, &data[CHUNK_RECORD_BYTES..]] {
        let fitting = Chunk { frame_bytes: frame.len() as u32, ..chunk };
        for chunk in [chunk, fitting] {
            if let Ok(decoded) = d7y_store::decode_chunk(&chunk, frame) {
                let hash = *blake3::hash(&decoded).as_bytes();
                assert!(decoded.is_empty() && chunk.codec == Codec::Zero || hash == chunk.hash.0);
            }
        }
    }
}

pub fn transfer(data: &[u8]) {
    d7y_transfer::fuzzing::requests(data);
    d7y_transfer::fuzzing::answers(data);
    d7y_transfer::fuzzing::opening(data);
}

pub fn local(data: &[u8]) {
    thread_local! {
        static RUNTIME: OnceCell<Runtime> = const { OnceCell::new() };
    }
    let data = &data[..data.len().min(MAX_LOCAL_BYTES)];
    RUNTIME.with(|runtime| {
        let runtime = runtime.get_or_init(|| {
            tokio::runtime::Builder::new_current_thread()
                .enable_io()
                .build()
                .expect("descriptors for a runtime")
        });
        runtime.block_on(d7y_peer_client::fuzzing::frames(data)).expect("descriptors for a socket");
    });
}

pub fn challenge(data: &[u8]) {
    d7y_origin::fuzzing::challenge(data);
}

pub fn image_document(data: &[u8]) {
    d7y_origin::fuzzing::image_document(data);
}

pub fn image_name(data: &[u8]) {
    d7y_origin::fuzzing::image_name(data);
}

pub fn docker_config(data: &[u8]) {
    d7y_origin::fuzzing::docker_config(data);
}
