use std::io::Write;

use d7y_origin::testing::FakeRegistry;
use d7y_types::{Compression, LayerRef, Sha256Digest};
use sha2::{Digest, Sha256};

/// A gzip layer of regular files with bytes that compress a little.
pub struct TestLayer {
    blob: Vec<u8>,
    diff_id: Sha256Digest,
    /// All files' contents in order, each padded to 4 KiB: what the device must hold.
    pub device: Vec<u8>,
}

impl TestLayer {
    pub fn random(files: u32, bytes: usize) -> Self {
        let mut state = u64::from(files) << 32 | bytes as u64 | 1;
        Self::of((0..files).map(|_| content(&mut state, bytes)))
    }

    /// A layer of the files with these numbers: of two layers, files with the same number are the same.
    pub fn numbered(files: impl IntoIterator<Item = u32>, bytes: usize) -> Self {
        Self::of(files.into_iter().map(|n| content(&mut (u64::from(n) + 1), bytes)))
    }

    fn of(files: impl Iterator<Item = Vec<u8>>) -> Self {
        let (mut tar, mut device) = (Vec::new(), Vec::new());
        for (n, content) in files.enumerate() {
            add_file(&mut tar, &format!("file-{n:05}"), &content);
            device.extend_from_slice(&content);
            device.resize(device.len().next_multiple_of(4096), 0);
        }
        tar.resize(tar.len() + 1024, 0);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&tar).unwrap();
        let blob = gzip.finish().unwrap();
        Self { blob, diff_id: Sha256Digest(Sha256::digest(&tar).into()), device }
    }

    /// From now on the registry gives other files, in a blob of the same length.
    pub fn change(&self, registry: &FakeRegistry, layer: &LayerRef) {
        let mut other = Self::random(3, 50_000).blob;
        other.resize(self.blob.len(), 0);
        registry.change_blob(layer, other);
    }

    /// From now on the registry gives the same files in a blob with another time (RFC 1952, 2.3.1: MTIME).
    pub fn touch(&self, registry: &FakeRegistry, layer: &LayerRef) {
        let mut other = self.blob.clone();
        other[4] ^= 1;
        registry.change_blob(layer, other);
    }

    pub fn push(&self, registry: &FakeRegistry) -> LayerRef {
        LayerRef {
            diff_id: self.diff_id,
            compression: Compression::Gzip,
            ..registry.add_blob("app", self.blob.clone())
        }
    }
}

fn content(state: &mut u64, bytes: usize) -> Vec<u8> {
    let next = || {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        (*state >> 32) as u8 & 0x3f
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

/// One ustar entry (POSIX.1-2017, pax, ustar Interchange Format).
fn add_file(tar: &mut Vec<u8>, name: &str, content: &[u8]) {
    let mut header = [0u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..107].copy_from_slice(b"0000644");
    header[108..115].copy_from_slice(b"0000000");
    header[116..123].copy_from_slice(b"0000000");
    header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
    header[136..147].copy_from_slice(b"00000000000");
    header[148..156].copy_from_slice(b"        ");
    header[156] = b'0';
    header[257..263].copy_from_slice(b"ustar\0");
    header[263..265].copy_from_slice(b"00");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    tar.extend_from_slice(&header);
    tar.extend_from_slice(content);
    tar.resize(tar.len().next_multiple_of(512), 0);
}
