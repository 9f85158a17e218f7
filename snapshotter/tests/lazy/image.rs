use std::io;

use d7y_image::{BuildOptions, Chunk, ChunkSink, IndexSigner, LayerIndex, build_layer};
use d7y_types::{Compression, LayerRef, Sha256Digest};
use sha2::{Digest, Sha256};

pub const REGISTRY: &str = "registry.example:5000";
pub const REPOSITORY: &str = "team/app";

/// One entry of a layer's tar.
pub struct Entry {
    path: &'static str,
    kind: u8,
    mode: u32,
    uid: u32,
    link: &'static str,
    content: Vec<u8>,
}

pub fn directory(path: &'static str, mode: u32, uid: u32) -> Entry {
    Entry { path, kind: b'5', mode, uid, link: "", content: Vec::new() }
}

pub fn file(path: &'static str, content: Vec<u8>) -> Entry {
    Entry { path, kind: b'0', mode: 0o644, uid: 0, link: "", content }
}

pub fn symlink(path: &'static str, link: &'static str) -> Entry {
    Entry { path, kind: b'2', mode: 0o777, uid: 0, link, content: Vec::new() }
}

pub fn hard_link(path: &'static str, link: &'static str) -> Entry {
    Entry { path, kind: b'1', mode: 0o644, uid: 0, link, content: Vec::new() }
}

/// Bytes that no two files share.
pub fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

/// A layer as a seed would have built it.
pub struct BuiltLayer {
    pub layer: LayerRef,
    pub index: LayerIndex,
    pub sealed: Vec<u8>,
    /// The bytes of each chunk; none for zeros.
    pub chunks: Vec<Vec<u8>>,
}

pub fn build(entries: &[Entry]) -> BuiltLayer {
    build_with(entries, &BuildOptions::default())
}

pub fn build_with(entries: &[Entry], options: &BuildOptions) -> BuiltLayer {
    let tar = tar(entries);
    let digest = sha256(&tar);
    let layer = LayerRef {
        registry: REGISTRY.into(),
        repository: REPOSITORY.into(),
        digest,
        diff_id: digest,
        size: tar.len() as u64,
        compression: Compression::None,
    };
    let mut chunks = Chunks(Vec::new());
    let index = build_layer(&layer, tar.as_slice(), &mut chunks, options).unwrap();
    let sealed = IndexSigner::from_hex(&"07".repeat(32)).unwrap().seal(&index).unwrap();
    BuiltLayer { layer, index, sealed, chunks: chunks.0 }
}

pub fn sha256(bytes: &[u8]) -> Sha256Digest {
    Sha256Digest(Sha256::digest(bytes).into())
}

/// An image's manifest and config, as text.
pub fn documents(layers: &[&BuiltLayer]) -> (String, String) {
    let list = |texts: Vec<String>| texts.join(",");
    let diff_ids = list(layers.iter().map(|built| format!("\"{}\"", built.layer.diff_id)).collect());
    let config = format!(r#"{{"rootfs":{{"type":"layers","diff_ids":[{diff_ids}]}}}}"#);
    let descriptor = |media_type: &str, digest: Sha256Digest, size: u64| {
        format!(
            r#"{{"mediaType":"application/vnd.oci.image.{media_type}","digest":"{digest}","size":{size}}}"#
        )
    };
    let blobs = layers.iter().map(|built| descriptor("layer.v1.tar", built.layer.digest, built.layer.size));
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#,
        descriptor("config.v1+json", sha256(config.as_bytes()), config.len() as u64),
        list(blobs.collect())
    );
    (manifest, config)
}

struct Chunks(Vec<Vec<u8>>);

impl ChunkSink for Chunks {
    fn chunk(&mut self, _: u32, _: &Chunk, _: &[u8], data: &[u8]) -> io::Result<()> {
        self.0.push(data.to_vec());
        Ok(())
    }
}

fn tar(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        out.extend_from_slice(&header(entry));
        out.extend_from_slice(&entry.content);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

/// POSIX ustar.
fn header(entry: &Entry) -> [u8; 512] {
    let mut block = [0; 512];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, entry.path.as_bytes());
    put(100, format!("{:07o}\0", entry.mode).as_bytes());
    put(108, format!("{:07o}\0", entry.uid).as_bytes());
    put(116, format!("{:07o}\0", entry.uid).as_bytes());
    put(124, format!("{:011o}\0", entry.content.len()).as_bytes());
    put(136, format!("{:011o}\0", 1_700_000_000).as_bytes());
    put(148, b"        ");
    put(156, &[entry.kind]);
    put(157, entry.link.as_bytes());
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}
