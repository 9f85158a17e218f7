use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use d7y_image::{Chunk, Codec, open_unchanged};
use d7y_types::{BLOCK_BYTES, ByteRange, LayerRef, PackId, Sha256Digest, TableHash};
use parking_lot::Mutex;
use rustix::fs::copy_file_range;
use serde::{Deserialize, Serialize};

use crate::bitmap::Bitmap;
use crate::claims::Claims;
use crate::error::StoreError;
use crate::twins::Twins;
use crate::verify::hash;

/// Chunks of one layer that may be written at once.
const WRITERS: usize = 16;

/// Where a frame lies in a pack: what an upload reads.
#[derive(Debug, Clone)]
pub struct FrameLocation {
    pub file: Arc<File>,
    pub offset: u64,
    pub length: u32,
}

#[derive(Debug, Clone)]
pub struct LayerPaths {
    pub index: PathBuf,
    pub device: PathBuf,
    pub device_bits: PathBuf,
}

/// One layer in the store.
#[derive(Debug)]
pub struct Layer {
    pack_id: PackId,
    reference: LayerRef,
    directory: PathBuf,
    chunks: Vec<Chunk>,
    device_bytes: u64,
    device: File,
    device_bits: Bitmap,
    pack: Arc<File>,
    pack_bits: Bitmap,
    claims: Claims,
    /// Of the index as it lay there at the opening.
    sealed_hash: blake3::Hash,
    /// Whether that was found at the opening; what the bits lost is among the claims.
    pub(crate) bits_damaged: bool,
    /// What the store's limit counts: chunks and frames that are here or claimed to be, and the layer's small files.
    kept_bytes: AtomicU64,
    last_used: AtomicU64,
    /// Held by who writes a chunk: a clone that proves wrong must not end up over bytes that are right.
    writing: [Mutex<()>; WRITERS],
    pub(crate) twins: Twins,
    /// Of frames that were not fetched because another layer had the chunk.
    pub(crate) reused_bytes: AtomicU64,
}

impl Layer {
    /// Opens a layer's directory. `boot` names this boot of the machine: when another one wrote the bits last, what
    /// they say must be confirmed chunk by chunk. Makes no device or pack: bits that outlived their data would vouch
    /// for zeros.
    pub(crate) fn open(directory: &Path, boot: &str) -> Result<Self, StoreError> {
        let at = |name: &str| directory.join(name);
        let sealed = fs::read(at("index")).map_err(StoreError::io(at("index")))?;
        let index = open_unchanged(&sealed)?;
        let reference = fs::read(at("reference.json")).map_err(StoreError::io(at("reference.json")))?;
        let reference = KeptReference::read(&reference)
            .ok_or(StoreError::Damaged { path: at("reference.json"), problem: "not as it was written" })?;
        let open = |name: &str| {
            let file = OpenOptions::new().read(true).write(true).open(at(name));
            file.map_err(StoreError::io(at(name)))
        };
        let len = index.chunks.len() as u32;
        let bits_damaged = Claims::set_aside(directory, boot, index.chunks.len());
        let bits_damaged = bits_damaged.map_err(StoreError::io(directory))?;
        let bits = |name: &str| Bitmap::load(open(name)?, len).map_err(StoreError::io(at(name)));
        let (device_bits, pack_bits) = (bits("device.bits")?, bits("pack.bits")?);
        let claims = Claims::load(directory, &index.chunks, &device_bits, &pack_bits);
        let layer = Self {
            claims: claims.map_err(StoreError::io(directory))?,
            sealed_hash: blake3::hash(&sealed),
            bits_damaged,
            pack_id: PackId { layer: index.layer, table: hash_table(&index.chunks) },
            reference,
            directory: directory.to_owned(),
            device_bytes: index.device_bytes(),
            device: open("device")?,
            device_bits,
            pack: Arc::new(open("pack")?),
            pack_bits,
            chunks: index.chunks,
            kept_bytes: AtomicU64::new(0),
            last_used: AtomicU64::new(0),
            writing: Default::default(),
            twins: Twins::default(),
            reused_bytes: AtomicU64::new(0),
        };
        layer.check_lengths()?;
        layer.set_zero_chunks()?;
        let kept = layer.count_kept() + Self::overhead_bytes(sealed.len(), layer.chunks.len());
        layer.kept_bytes.store(kept, Ordering::Relaxed);
        Ok(layer)
    }

    /// What a layer takes before its first chunk: the index, two files of bits, `reference.json`, `boot`, the directory,
    /// and the end of the pack, in whole blocks.
    pub(crate) fn overhead_bytes(sealed_bytes: usize, chunks: usize) -> u64 {
        let blocks = |bytes: usize| (bytes as u64).next_multiple_of(BLOCK_BYTES);
        blocks(sealed_bytes) + 2 * blocks(2 * chunks.div_ceil(8)) + 4 * BLOCK_BYTES
    }

    /// The same layer under the name that its directory is about to get.
    pub(crate) fn moved_to(self, directory: PathBuf) -> Self {
        Self { directory, ..self }
    }

    pub fn digest(&self) -> Sha256Digest {
        self.pack_id.layer
    }

    /// Whose chunks these are: peers with the same can trade them.
    pub fn pack(&self) -> PackId {
        self.pack_id
    }

    /// Where the layer comes from: its origin, and what it must hash to.
    pub fn reference(&self) -> &LayerRef {
        &self.reference
    }

    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    pub fn device_bytes(&self) -> u64 {
        self.device_bytes
    }

    /// Chunks whose uncompressed bytes can be read from the device.
    pub fn readable(&self) -> &Bitmap {
        &self.device_bits
    }

    /// Chunks whose frames can be uploaded.
    pub fn shareable(&self) -> &Bitmap {
        &self.pack_bits
    }

    pub fn kept_bytes(&self) -> u64 {
        self.kept_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of frames that were taken from other layers of this store, instead of being fetched, since the start.
    pub fn reused_bytes(&self) -> u64 {
        self.reused_bytes.load(Ordering::Relaxed)
    }

    pub fn paths(&self) -> LayerPaths {
        LayerPaths {
            index: self.directory.join("index"),
            device: self.directory.join("device"),
            device_bits: self.directory.join("device.bits"),
        }
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The index as it was signed; never one that was damaged since.
    pub fn sealed_index(&self) -> Result<Vec<u8>, StoreError> {
        let path = self.directory.join("index");
        let sealed = fs::read(&path).map_err(StoreError::io(path))?;
        self.check_index(&sealed)?;
        Ok(sealed)
    }

    /// Whether this is an index of the same chunks, as somebody signed it.
    pub(crate) fn check_index(&self, sealed: &[u8]) -> Result<(), StoreError> {
        // Every follower is served one: taking it apart each time would cost more than sending it.
        if blake3::hash(sealed) == self.sealed_hash {
            return Ok(());
        }
        let index = open_unchanged(sealed)?;
        if (PackId { layer: index.layer, table: hash_table(&index.chunks) }) != self.pack_id {
            let path = self.directory.join("index");
            return Err(StoreError::Damaged { path, problem: "it is of other chunks" });
        }
        Ok(())
    }

    /// Chunk numbers that overlap a range of the device.
    pub fn chunks_in(&self, range: ByteRange) -> std::ops::Range<u32> {
        let first = self.chunks.partition_point(|c| c.device_range().end() <= range.offset);
        let last = self.chunks.partition_point(|c| c.device_range().offset < range.end());
        first as u32..last.max(first) as u32
    }

    /// Where a frame can be read, if it is here.
    pub fn frame(&self, number: u32) -> Option<FrameLocation> {
        let chunk = self.chunks.get(number as usize)?;
        self.pack_bits.get(number).then(|| FrameLocation {
            file: self.pack.clone(),
            offset: chunk.pack_offset,
            length: chunk.frame_bytes,
        })
    }

    /// The bytes of a frame that is here.
    pub fn read_frame(&self, number: u32) -> Result<Vec<u8>, StoreError> {
        let chunk = &self.chunks[number as usize];
        let mut frame = vec![0; chunk.frame_bytes as usize];
        let path = || StoreError::io(self.directory.join("pack"));
        self.pack.read_exact_at(&mut frame, chunk.pack_offset).map_err(path())?;
        Ok(frame)
    }

    /// Reads from the device. The caller has made sure that the chunks are readable.
    pub fn read_device(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        self.device.read_exact_at(out, offset)
    }

    /// Keeps a chunk that the caller has verified. The device first: readers wait for it, other peers do not.
    pub(crate) fn keep(&self, number: u32, frame: &[u8], data: &[u8]) -> Result<(), StoreError> {
        self.keep_data(number, data)?;
        self.keep_frame(number, frame)
    }

    pub(crate) fn keep_frame(&self, number: u32, frame: &[u8]) -> Result<(), StoreError> {
        let _writing = self.writing(number);
        if self.pack_bits.get(number) {
            return Ok(());
        }
        let chunk = &self.chunks[number as usize];
        let path = || StoreError::io(self.directory.join("pack"));
        self.pack.write_all_at(frame, chunk.pack_offset).map_err(path())?;
        self.vouch(number, (&self.claims.pack, &self.pack_bits), u64::from(chunk.frame_bytes))
    }

    /// What is valid is not written again: it may be mounted.
    pub(crate) fn keep_data(&self, number: u32, data: &[u8]) -> Result<(), StoreError> {
        let _writing = self.writing(number);
        if self.device_bits.get(number) {
            return Ok(());
        }
        let chunk = &self.chunks[number as usize];
        let path = || StoreError::io(self.directory.join("device"));
        self.device.write_all_at(data, chunk.device_range().offset).map_err(path())?;
        self.vouch(number, (&self.claims.device, &self.device_bits), chunk.bytes())
    }

    /// Lets the chunk share the blocks of another layer's, on a file system that can. False when what lies there then is
    /// not the chunk.
    pub(crate) fn clone_data(&self, number: u32, source: &Layer, of: u32) -> Result<bool, StoreError> {
        let _writing = self.writing(number);
        if self.device_bits.get(number) {
            return Ok(true);
        }
        let chunk = &self.chunks[number as usize];
        let from = source.chunks[of as usize].device_range().offset;
        let cloned =
            clone_range((&source.device, from), (&self.device, chunk.device_range().offset), chunk.bytes());
        cloned.map_err(StoreError::io(self.directory.join("device")))?;
        if !self.device_matches(chunk) {
            return Ok(false);
        }
        self.vouch(number, (&self.claims.device, &self.device_bits), chunk.bytes())?;
        Ok(true)
    }

    pub(crate) fn device(&self) -> &File {
        &self.device
    }

    /// Writes what a chunk's bit vouches for over what lies there instead: whoever has the device mounted reads on in the
    /// same file.
    pub(crate) fn mend_data(&self, number: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        let _writing = self.writing(number);
        self.device.write_all_at(data, offset)
    }

    fn writing(&self, number: u32) -> parking_lot::MutexGuard<'_, ()> {
        self.writing[number as usize % WRITERS].lock()
    }

    /// Sets the bit of what was just written, and counts it unless its claim was counted.
    fn vouch(&self, number: u32, of: (&Bitmap, &Bitmap), bytes: u64) -> Result<(), StoreError> {
        let (claims, bits) = of;
        let counted = claims.clear(number).map_err(StoreError::io(&self.directory))?;
        if bits.set(number).map_err(StoreError::io(&self.directory))? && !counted {
            self.kept_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        Ok(())
    }

    pub(crate) fn touch(&self, clock: u64) {
        self.last_used.store(clock, Ordering::Relaxed);
    }

    pub(crate) fn last_used(&self) -> u64 {
        self.last_used.load(Ordering::Relaxed)
    }

    /// Chunks of zeros are holes: readable and shareable from the start.
    fn set_zero_chunks(&self) -> Result<(), StoreError> {
        let zeros = || (0u32..).zip(&self.chunks).filter(|(_, c)| c.codec == Codec::Zero).map(|(n, _)| n);
        if zeros().all(|n| self.device_bits.get(n) && self.pack_bits.get(n)) {
            return Ok(());
        }
        self.device_bits.set_all(zeros()).map_err(StoreError::io(&self.directory))?;
        self.pack_bits.set_all(zeros()).map_err(StoreError::io(&self.directory))
    }

    /// Refuses files that end before the data that they should hold.
    fn check_lengths(&self) -> Result<(), StoreError> {
        let claimed = |n: &u32| self.pack_bits.get(*n) && self.chunks[*n as usize].codec != Codec::Zero;
        let last = (0..self.pack_bits.len()).rev().find(claimed).map(|n| &self.chunks[n as usize]);
        let pack_bytes = last.map_or(0, |chunk| chunk.pack_offset + u64::from(chunk.frame_bytes));
        for (name, file, least) in
            [("device", &self.device, self.device_bytes), ("pack", &self.pack, pack_bytes)]
        {
            let path = self.directory.join(name);
            if file.metadata().map_err(StoreError::io(&path))?.len() < least {
                return Err(StoreError::Damaged { path, problem: "shorter than what it is said to hold" });
            }
        }
        Ok(())
    }

    fn count_kept(&self) -> u64 {
        let kept = |n: u32, chunk: &Chunk| {
            let data = self.device_bits.get(n) || self.claims.device.get(n);
            let data = if data && chunk.codec != Codec::Zero { chunk.bytes() } else { 0 };
            let frame = self.pack_bits.get(n) || self.claims.pack.get(n);
            data + if frame { u64::from(chunk.frame_bytes) } else { 0 }
        };
        (0u32..).zip(&self.chunks).map(|(n, chunk)| kept(n, chunk)).sum()
    }

    /// Hashes what an earlier boot claims of a chunk: what is as the index says counts from now on, the rest is absent.
    pub fn confirm(&self, number: u32) -> Result<(), StoreError> {
        self.confirm_data(number)?;
        self.confirm_frame(number)
    }

    pub(crate) fn confirm_data(&self, number: u32) -> Result<(), StoreError> {
        if !self.claims.device.get(number) {
            return Ok(());
        }
        let chunk = &self.chunks[number as usize];
        let (claims, bits) = (&self.claims.device, &self.device_bits);
        self.decide(number, self.device_matches(chunk), (claims, bits), chunk.bytes())
    }

    pub(crate) fn confirm_frame(&self, number: u32) -> Result<(), StoreError> {
        if !self.claims.pack.get(number) {
            return Ok(());
        }
        let chunk = &self.chunks[number as usize];
        let (claims, bits) = (&self.claims.pack, &self.pack_bits);
        self.decide(number, self.pack_matches(number, chunk), (claims, bits), u64::from(chunk.frame_bytes))
    }

    fn decide(&self, n: u32, valid: bool, of: (&Bitmap, &Bitmap), bytes: u64) -> Result<(), StoreError> {
        let (claims, bits) = of;
        if valid {
            bits.set(n).map_err(StoreError::io(&self.directory))?;
        }
        // Whoever wrote the chunk meanwhile has taken the claim.
        let ours = claims.clear(n).map_err(StoreError::io(&self.directory))?;
        if ours && !valid {
            self.kept_bytes.fetch_sub(bytes, Ordering::Relaxed);
            tracing::warn!(layer = %self.digest(), chunk = n, "a damaged chunk on disk is withdrawn and will be refetched");
        }
        Ok(())
    }

    /// Nobody is given a frame that was found damaged; the next one that comes takes its place.
    pub(crate) fn withdraw_frame(&self, number: u32) -> Result<(), StoreError> {
        if self.pack_bits.clear(number).map_err(StoreError::io(&self.directory))? {
            let bytes = u64::from(self.chunks[number as usize].frame_bytes);
            self.kept_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The chunk is not readable until it has been fetched and written anew, in the same place.
    pub(crate) fn withdraw_data(&self, number: u32) -> Result<(), StoreError> {
        if self.device_bits.clear(number).map_err(StoreError::io(&self.directory))? {
            self.kept_bytes.fetch_sub(self.chunks[number as usize].bytes(), Ordering::Relaxed);
        }
        Ok(())
    }

    /// Whether the caller is to confirm all chunks in [`Self::claimed`]: true once, when there are any.
    pub fn begin_confirming(&self) -> bool {
        self.claims.begin()
    }

    /// Chunks of which an earlier boot has claimed something that is not confirmed yet.
    pub fn claimed(&self) -> Vec<u32> {
        let claims = |n: &u32| self.claims.device.get(*n) || self.claims.pack.get(*n);
        (0..self.chunks.len() as u32).filter(claims).collect()
    }

    /// All chunks are confirmed or withdrawn.
    pub fn end_confirming(&self) -> Result<(), StoreError> {
        Claims::end(&self.directory).map_err(StoreError::io(&self.directory))
    }

    /// Whether a reader may find the chunk on this disk: the device may turn out to hold it, there is a frame, or another
    /// layer has it.
    pub fn may_be_here(&self, number: u32) -> bool {
        self.may_give(number, false) || self.claims.device.get(number) || self.twins.has(number)
    }

    /// Whether a chunk need not be fetched, as far as is known: it is readable, claimed, or in another layer.
    pub fn counts_on(&self, number: u32) -> bool {
        self.device_bits.get(number) || self.claims.device.get(number) || self.twins.has(number)
    }

    /// Whether this layer's own files may hold the chunk, as a frame or, where devices count, in any form.
    pub(crate) fn may_give(&self, number: u32, devices: bool) -> bool {
        let frame = self.pack_bits.get(number) || self.claims.pack.get(number);
        frame || (devices && (self.device_bits.get(number) || self.claims.device.get(number)))
    }

    fn device_matches(&self, chunk: &Chunk) -> bool {
        let mut data = vec![0; chunk.bytes() as usize];
        let read: io::Result<()> = self.device.read_exact_at(&mut data, chunk.device_range().offset);
        read.is_ok() && hash(&data) == chunk.hash
    }

    fn pack_matches(&self, number: u32, chunk: &Chunk) -> bool {
        self.read_frame(number).is_ok_and(|frame| crate::decode_chunk(chunk, &frame).is_ok())
    }
}

/// `reference.json`: nothing else says whether each letter of it is as it was.
#[derive(Serialize, Deserialize)]
pub(crate) struct KeptReference {
    #[serde(flatten)]
    reference: LayerRef,
    /// Older files have none.
    check: Option<String>,
}

impl KeptReference {
    pub fn write(reference: &LayerRef) -> Vec<u8> {
        let kept = Self { reference: reference.clone(), check: Some(Self::check(reference)) };
        serde_json::to_vec(&kept).expect("a layer reference is plain data")
    }

    /// As older versions wrote it.
    pub fn write_unchecked(reference: &LayerRef) -> Vec<u8> {
        serde_json::to_vec(reference).expect("a layer reference is plain data")
    }

    fn read(bytes: &[u8]) -> Option<LayerRef> {
        let kept: Self = serde_json::from_slice(bytes).ok()?;
        let whole = kept.check.as_ref().is_none_or(|check| *check == Self::check(&kept.reference));
        whole.then_some(kept.reference)
    }

    fn check(reference: &LayerRef) -> String {
        blake3::hash(&Self::write_unchecked(reference)).to_string()
    }
}

/// On XFS and btrfs the kernel shares whole blocks rather than copying them.
fn clone_range(from: (&File, u64), to: (&File, u64), bytes: u64) -> io::Result<()> {
    let ((source, mut read_at), (target, mut write_at)) = (from, to);
    let end = read_at + bytes;
    while read_at < end {
        let left = (end - read_at) as usize;
        if copy_file_range(source, Some(&mut read_at), target, Some(&mut write_at), left)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

fn hash_table(chunks: &[Chunk]) -> TableHash {
    let mut hasher = blake3::Hasher::new();
    for chunk in chunks {
        hasher.update(&chunk.encode());
    }
    TableHash(*hasher.finalize().as_bytes())
}
