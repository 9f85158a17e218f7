use std::ops::{Deref, DerefMut};

use parking_lot::{Condvar, Mutex};

use crate::protocol::MAX_READ_BYTES;

/// The page size that replies are aligned to, in bytes: the kernel copies an aligned reply page by page, an unaligned
/// one in two pieces per page.
const ALIGNMENT: usize = 4096;

/// A fixed set of page-aligned reply buffers, made once: a server that answers page faults must not wait for memory.
///
/// Buffers go out last in, first out, so that a lightly loaded server stays in one warm buffer.
pub(crate) struct BufferPool {
    free: Mutex<Vec<Buffer>>,
    returned: Condvar,
}

impl BufferPool {
    pub(crate) fn new(buffers: usize) -> Self {
        let free = (0..buffers).map(|_| Buffer::new()).collect();
        Self { free: Mutex::new(free), returned: Condvar::new() }
    }

    /// Takes a buffer, waiting for one when all are out. A lease is held for one copy and one reply, so the wait is
    /// bounded by those of the other holders.
    pub(crate) fn take(&self) -> Lease<'_> {
        let mut free = self.free.lock();
        loop {
            if let Some(buffer) = free.pop() {
                return Lease { pool: self, buffer: Some(buffer) };
            }
            self.returned.wait(&mut free);
        }
    }
}

struct Buffer {
    storage: Box<[u8]>,
    start: usize,
}

impl Buffer {
    fn new() -> Self {
        let storage = vec![0; MAX_READ_BYTES as usize + ALIGNMENT].into_boxed_slice();
        let start = storage.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Self { storage, start }
    }
}

/// [`MAX_READ_BYTES`] of scratch space, returned to its pool on drop. Holds whatever its last user left there.
pub(crate) struct Lease<'a> {
    pool: &'a BufferPool,
    buffer: Option<Buffer>,
}

impl Deref for Lease<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let buffer = self.buffer.as_ref().expect("present until drop");
        &buffer.storage[buffer.start..][..MAX_READ_BYTES as usize]
    }
}

impl DerefMut for Lease<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        let buffer = self.buffer.as_mut().expect("present until drop");
        &mut buffer.storage[buffer.start..][..MAX_READ_BYTES as usize]
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.pool.free.lock().push(buffer);
            self.pool.returned.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_aligned_whole_and_come_back() {
        let pool = BufferPool::new(2);
        for _ in 0..3 {
            let (first, second) = (pool.take(), pool.take());
            for lease in [&first, &second] {
                assert_eq!(lease.as_ptr() as usize % ALIGNMENT, 0);
                assert_eq!(lease.len(), MAX_READ_BYTES as usize);
            }
        }
        assert_eq!(pool.free.lock().len(), 2);
    }

    #[test]
    fn an_empty_pool_waits_for_a_return() {
        let pool = BufferPool::new(1);
        let held = pool.take();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| pool.take().len());
            drop(held);
            assert_eq!(waiter.join().unwrap(), MAX_READ_BYTES as usize);
        });
    }
}
