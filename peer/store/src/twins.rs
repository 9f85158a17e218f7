//! Chunks that lie on this disk already, in another layer: version 2 of an application differs from version 1 in part.
//!
//! [`Store::find_twins`] looks once per layer, when its index has become known: it walks the chunk tables of all layers
//! and notes for what is missing which other layer holds the same bytes (12 bytes a chunk, until it is settled). From
//! then on such a chunk counts as one that need not be fetched ([`Layer::counts_on`]). [`Store::take_twin`] brings it:
//! when a reader wants it, or at its turn.
//!
//! The device's part is cloned where the file system can (XFS, btrfs): the bytes are then on disk once. Elsewhere they
//! are copied. Frames are always copied: they lie back to back, not at blocks, so no file system could share them, and
//! without a frame this node could not pass the chunk on when the seed is gone. A frame of another length than the
//! index says is of no use to peers; then only the device's part is taken.
//!
//! Whatever is taken is hashed where it lies now before its bit is set. The limit counts every layer in full: when the
//! other layer is evicted, the blocks are this one's alone.

use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use d7y_image::{Chunk, Codec};
use parking_lot::RwLock;

use crate::error::StoreError;
use crate::layer::Layer;
use crate::store::Store;
use crate::verify::hash;

/// Where the same bytes are.
#[derive(Debug, Clone, Copy)]
struct Twin {
    number: u32,
    /// Which of the sources; none once the twin is settled.
    source: Option<u16>,
    of: u32,
}

/// What a layer may take from others. Weak: an evicted layer must not keep its space.
#[derive(Debug, Default)]
pub(crate) struct Twins(RwLock<Found>);

#[derive(Debug, Default)]
struct Found {
    looked: bool,
    sources: Vec<Weak<Layer>>,
    /// Sorted by number.
    twins: Vec<Twin>,
    unsettled: usize,
}

impl Twins {
    pub fn has(&self, number: u32) -> bool {
        self.0.read().twin(number).is_some()
    }

    fn get(&self, number: u32) -> Option<(Weak<Layer>, u32)> {
        let found = self.0.read();
        let twin = found.twin(number)?;
        Some((found.sources.get(usize::from(twin.source?))?.clone(), twin.of))
    }

    fn settle(&self, number: u32) {
        let mut found = self.0.write();
        let Ok(at) = found.twins.binary_search_by_key(&number, |twin| twin.number) else { return };
        if found.twins[at].source.take().is_some() {
            found.unsettled -= 1;
        }
        if found.unsettled == 0 {
            *found = Found { looked: true, ..Found::default() };
        }
    }
}

impl Found {
    fn twin(&self, number: u32) -> Option<&Twin> {
        let at = self.twins.binary_search_by_key(&number, |twin| twin.number).ok()?;
        Some(&self.twins[at]).filter(|twin| twin.source.is_some())
    }
}

impl Layer {
    /// Whether [`Store::find_twins`] has been here.
    pub fn has_looked_for_twins(&self) -> bool {
        self.twins.0.read().looked
    }

    /// Missing chunks that another layer of this store may hold.
    pub fn with_twins(&self) -> Vec<u32> {
        let found = self.twins.0.read();
        found.twins.iter().filter(|twin| twin.source.is_some()).map(|twin| twin.number).collect()
    }
}

impl Store {
    /// Notes which missing chunks of the layer lie in other layers here; returns how many.
    pub fn find_twins(&self, layer: &Layer) -> usize {
        let wanted = Wanted::of(layer, self.keeps_devices());
        let mut found = Found { looked: true, ..Found::default() };
        if !wanted.hashes.is_empty() {
            let others = self.layers().into_iter().filter(|other| other.digest() != layer.digest());
            let mut seen = vec![false; layer.chunks().len()];
            for source in others.take(usize::from(u16::MAX)) {
                let before = found.twins.len();
                let number = found.sources.len() as u16;
                wanted.look_in(&source, self.keeps_devices(), |wanted, of| {
                    if !std::mem::replace(&mut seen[wanted as usize], true) {
                        found.twins.push(Twin { number: wanted, source: Some(number), of });
                    }
                });
                if found.twins.len() > before {
                    found.sources.push(Arc::downgrade(&source));
                }
            }
        }
        found.twins.sort_unstable_by_key(|twin| twin.number);
        found.twins.shrink_to_fit();
        found.unsettled = found.twins.len();
        let count = found.unsettled;
        *layer.twins.0.write() = found;
        count
    }

    /// Takes a chunk from the other layer that was found to hold it. False when that layer has gone, or its bytes are
    /// not what they should be: then the chunk is to be fetched.
    pub fn take_twin(&self, layer: &Layer, number: u32) -> Result<bool, StoreError> {
        let Some((source, of)) = layer.twins.get(number) else { return Ok(false) };
        let here = if self.keeps_devices() { layer.readable() } else { layer.shareable() };
        let taken = match source.upgrade().filter(|source| !here.get(number) && self.holds(source)) {
            Some(source) => Transfer { store: self, source: &source, of, layer, number }.run(),
            None => Ok(false),
        };
        layer.twins.settle(number);
        if let Ok(true) = taken {
            let bytes = u64::from(layer.chunks()[number as usize].frame_bytes);
            layer.reused_bytes.fetch_add(bytes, Ordering::Relaxed);
            self.reused_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        taken
    }
}

/// The missing chunks of a layer, to be found by hash.
struct Wanted<'a> {
    chunks: &'a [Chunk],
    /// The first half-word of each hash and the chunk's number, sorted.
    hashes: Vec<(u64, u32)>,
    /// A bit for what the hash begins with: most chunks of other layers are passed over without a search.
    filter: Vec<u64>,
}

impl<'a> Wanted<'a> {
    fn of(layer: &'a Layer, devices: bool) -> Self {
        let chunks = layer.chunks();
        let absent = |(n, chunk): &(u32, &Chunk)| chunk.codec != Codec::Zero && !layer.may_give(*n, devices);
        let missing = (0u32..).zip(chunks).filter(absent);
        let mut hashes: Vec<_> = missing.map(|(n, chunk)| (prefix(chunk), n)).collect();
        hashes.sort_unstable();
        // A word is 64 bits: about one chunk in 64 passes by chance.
        let mut filter = vec![0; hashes.len().next_power_of_two()];
        for (prefix, _) in &hashes {
            let (word, bit) = place(*prefix, filter.len());
            filter[word] |= bit;
        }
        Self { chunks, hashes, filter }
    }

    fn look_in(&self, source: &Layer, devices: bool, mut found: impl FnMut(u32, u32)) {
        for (of, held) in (0u32..).zip(source.chunks()) {
            let prefix = prefix(held);
            let (word, bit) = place(prefix, self.filter.len());
            if self.filter[word] & bit == 0 {
                continue;
            }
            let first = self.hashes.partition_point(|(other, _)| *other < prefix);
            for (_, number) in self.hashes[first..].iter().take_while(|(other, _)| *other == prefix) {
                let wanted = &self.chunks[*number as usize];
                let same = held.hash == wanted.hash && held.blocks == wanted.blocks;
                let useful = devices || same_frame(held, wanted);
                if same && useful && source.may_give(of, devices) {
                    found(*number, of);
                }
            }
        }
    }
}

fn prefix(chunk: &Chunk) -> u64 {
    let (words, _) = chunk.hash.0.as_chunks::<8>();
    u64::from_le_bytes(words[0])
}

fn place(prefix: u64, words: usize) -> (usize, u64) {
    ((prefix >> 6) as usize & (words - 1), 1 << (prefix & 63))
}

/// Whether what travels is encoded alike: frames of one chunk may differ between builders.
fn same_frame(a: &Chunk, b: &Chunk) -> bool {
    (a.frame_bytes, a.codec) == (b.frame_bytes, b.codec)
}

/// One chunk on its way from one layer to another.
struct Transfer<'a> {
    store: &'a Store,
    source: &'a Layer,
    of: u32,
    layer: &'a Layer,
    number: u32,
}

/// A frame and what it decodes to.
struct Frame {
    encoded: Vec<u8>,
    data: Vec<u8>,
}

impl Transfer<'_> {
    fn run(&self) -> Result<bool, StoreError> {
        let Self { store, source, of, layer, number } = *self;
        source.confirm(of)?;
        let chunk = &layer.chunks()[number as usize];
        let frame = self.frame(chunk)?;
        let frame_bytes = frame.as_ref().map_or(0, |frame| frame.encoded.len());
        store.make_room(chunk.bytes() + frame_bytes as u64, layer.digest())?;
        if store.keeps_devices() && !self.data(chunk, frame.as_ref())? {
            return Ok(false);
        }
        if let Some(frame) = &frame {
            layer.keep_frame(number, &frame.encoded)?;
        }
        Ok(store.keeps_devices() || frame.is_some())
    }

    /// The other layer's frame, when it is what peers would expect of this layer.
    fn frame(&self, chunk: &Chunk) -> Result<Option<Frame>, StoreError> {
        let alike = same_frame(&self.source.chunks()[self.of as usize], chunk);
        if !alike || !self.source.shareable().get(self.of) {
            return Ok(None);
        }
        let encoded = self.source.read_frame(self.of)?;
        if let Ok(data) = crate::decode_chunk(chunk, &encoded) {
            return Ok(Some(Frame { encoded, data }));
        }
        self.source.withdraw_frame(self.of)?;
        self.store.found_damage(self.source, self.of);
        Ok(None)
    }

    fn data(&self, chunk: &Chunk, frame: Option<&Frame>) -> Result<bool, StoreError> {
        let on_device = self.source.readable().get(self.of);
        if on_device && self.store.clones() && self.layer.clone_data(self.number, self.source, self.of)? {
            return Ok(true);
        }
        if let Some(frame) = frame {
            return self.layer.keep_data(self.number, &frame.data).map(|()| true);
        }
        if !on_device {
            return Ok(false);
        }
        let mut data = vec![0; chunk.bytes() as usize];
        let offset = self.source.chunks()[self.of as usize].device_range().offset;
        if self.source.device().read_exact_at(&mut data, offset).is_err() || hash(&data) != chunk.hash {
            self.store.found_damage(self.source, self.of);
            return Ok(false);
        }
        self.layer.keep_data(self.number, &data).map(|()| true)
    }
}
