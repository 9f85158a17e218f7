use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use d7y_types::{Caller, PackId};

/// A question of a client that says for whom it asks, until all of it is answered.
#[derive(Debug)]
pub(crate) struct Serving {
    caller: Caller,
    asker: Arc<str>,
    pack: PackId,
    asked: u32,
    began: Instant,
    open: AtomicU32,
    missing: AtomicU32,
    bytes: AtomicU64,
}

/// How a question was answered.
#[derive(Debug, Clone)]
pub struct Served {
    pub caller: Caller,
    /// The client's peer id, as it says.
    pub asker: Arc<str>,
    pub pack: PackId,
    /// When the question was read; its answers were handed to the socket by now.
    pub began: Instant,
    pub chunks: u32,
    /// How many of them are not here.
    pub missing: u32,
    /// Of the frames sent.
    pub bytes: u64,
}

impl Serving {
    pub fn new(caller: Caller, asker: &Arc<str>, pack: PackId, chunks: usize) -> Self {
        let asked = u32::try_from(chunks).unwrap_or(u32::MAX);
        let (began, open) = (Instant::now(), AtomicU32::new(asked));
        let (asker, missing, bytes) = (asker.clone(), AtomicU32::new(0), AtomicU64::new(0));
        Self { caller, asker, pack, asked, began, open, missing, bytes }
    }

    /// One chunk more is answered: with a frame of so many bytes, or that it is not here. What the last one yields is
    /// for [`Provider::served`](crate::Provider::served).
    pub fn answered(&self, frame_bytes: Option<u32>) -> Option<Served> {
        match frame_bytes {
            Some(bytes) => self.bytes.fetch_add(bytes.into(), Ordering::Relaxed),
            None => self.missing.fetch_add(1, Ordering::Relaxed).into(),
        };
        // The one that finds nothing open left sees what the others have added.
        let last = self.open.fetch_sub(1, Ordering::AcqRel) == 1;
        last.then(|| Served {
            caller: self.caller,
            asker: self.asker.clone(),
            pack: self.pack,
            began: self.began,
            chunks: self.asked,
            missing: self.missing.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        })
    }
}
