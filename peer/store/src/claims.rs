use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use d7y_image::{Chunk, Codec};

use crate::bitmap::Bitmap;

/// What an earlier boot says is here and this one has not hashed yet. Counts for nothing until it is.
#[derive(Debug)]
pub(crate) struct Claims {
    pub device: Bitmap,
    pub pack: Bitmap,
    begun: AtomicBool,
}

impl Claims {
    /// Takes the bits of a layer's directory for claims when another boot wrote them last; empty bits take their place.
    /// Within a boot, takes those for claims that only one of the two copies has. True when that is damage.
    pub fn set_aside(directory: &Path, boot: &str, chunks: usize) -> io::Result<bool> {
        let vouched = directory.join("boot");
        let same_boot = fs::read_to_string(&vouched).is_ok_and(|last| last == boot);
        let mut damaged = false;
        for kind in ["device", "pack"] {
            let (bits, claims) =
                (directory.join(format!("{kind}.bits")), directory.join(format!("{kind}.claims")));
            match same_boot {
                true => damaged |= set_doubts_aside(&bits, &claims, chunks.div_ceil(8))?,
                false => set_all_aside(&bits, &claims)?,
            }
        }
        if !same_boot {
            fs::write(vouched, boot)?;
        }
        Ok(damaged)
    }

    /// What is claimed and not valid. Zeros need no proof.
    pub fn load(directory: &Path, chunks: &[Chunk], device: &Bitmap, pack: &Bitmap) -> io::Result<Self> {
        let pending = |kind: &str, valid: &Bitmap| {
            let claimed = read(&directory.join(format!("{kind}.claims")))?.unwrap_or_default();
            let claimed = Bitmap::in_memory(claimed, valid.len());
            for (n, chunk) in (0u32..).zip(chunks) {
                if valid.get(n) || chunk.codec == Codec::Zero {
                    claimed.clear(n)?;
                }
            }
            io::Result::Ok(claimed)
        };
        Ok(Self {
            device: pending("device", device)?,
            pack: pending("pack", pack)?,
            begun: AtomicBool::new(false),
        })
    }

    pub fn is_empty(&self) -> bool {
        self.device.is_empty() && self.pack.is_empty()
    }

    /// True for the first caller, when there is something to hash.
    pub fn begin(&self) -> bool {
        !self.is_empty() && !self.begun.swap(true, Ordering::Relaxed)
    }

    /// Forgets on disk what is settled.
    pub fn end(directory: &Path) -> io::Result<()> {
        for kind in ["device", "pack"] {
            match fs::remove_file(directory.join(format!("{kind}.claims"))) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

fn set_all_aside(bits: &Path, claims: &Path) -> io::Result<()> {
    match read(claims)? {
        None => fs::rename(bits, claims)?,
        // The machine went down again before all was hashed, or this process in the middle of this.
        Some(older) => replace(claims, &union(&older, &read(bits)?.unwrap_or_default()))?,
    }
    fs::write(bits, [])
}

fn set_doubts_aside(bits: &Path, claims: &Path, bytes: usize) -> io::Result<bool> {
    let copies = Copies::of(&read(bits)?.unwrap_or_default(), bytes);
    if copies.doubtful.iter().any(|byte| *byte != 0) {
        // In this order: killed in between, nothing is lost and nothing believed.
        replace(claims, &union(&copies.doubtful, &read(claims)?.unwrap_or_default()))?;
        replace(bits, &copies.agreed.repeat(2))?;
    }
    Ok(copies.damaged)
}

/// The two copies of the bits in a file.
struct Copies {
    agreed: Vec<u8>,
    doubtful: Vec<u8>,
    /// The first has a bit that the second lacks: whoever sets or clears a bit leaves the second ahead, never behind.
    damaged: bool,
}

impl Copies {
    /// A file of before there were two has one only, and vouches for nothing.
    fn of(file: &[u8], bytes: usize) -> Self {
        let (first, second) = file.split_at(bytes.min(file.len()));
        let at = |bits: &[u8], n: usize| bits.get(n).copied().unwrap_or_default();
        let each = |of: fn(u8, u8) -> u8| (0..bytes).map(|n| of(at(first, n), at(second, n))).collect();
        let ahead: Vec<u8> = each(|first, second| first & !second);
        Self {
            agreed: each(|first, second| first & second),
            doubtful: each(|first, second| first ^ second),
            damaged: !second.is_empty() && ahead.iter().any(|byte| *byte != 0),
        }
    }
}

/// A crash leaves the old file or the new one.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let fresh = path.with_added_extension("new");
    let mut file = File::create(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&fresh, path)
}

fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(other) => Err(other),
    }
}

fn union(a: &[u8], b: &[u8]) -> Vec<u8> {
    let at = |bits: &[u8], n: usize| bits.get(n).copied().unwrap_or_default();
    (0..a.len().max(b.len())).map(|n| at(a, n) | at(b, n)).collect()
}
