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
    pub fn set_aside(directory: &Path, boot: &str) -> io::Result<()> {
        let vouched = directory.join("boot");
        if fs::read_to_string(&vouched).is_ok_and(|last| last == boot) {
            return Ok(());
        }
        for kind in ["device", "pack"] {
            let (bits, claims) =
                (directory.join(format!("{kind}.bits")), directory.join(format!("{kind}.claims")));
            match read(&claims)? {
                None => fs::rename(&bits, &claims)?,
                // The machine went down again before all was hashed, or this process in the middle of this.
                Some(older) => {
                    let fresh = directory.join(format!("{kind}.claims.new"));
                    let mut file = File::create(&fresh)?;
                    file.write_all(&union(&older, &read(&bits)?.unwrap_or_default()))?;
                    file.sync_all()?;
                    fs::rename(&fresh, &claims)?;
                }
            }
            fs::write(&bits, [])?;
        }
        fs::write(vouched, boot)
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
