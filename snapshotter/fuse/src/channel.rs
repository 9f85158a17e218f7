use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use nix::errno::Errno as Os;
use parking_lot::{Condvar, Mutex};

use crate::buffers::BufferPool;
use crate::filesystem::Errno;
use crate::protocol::{self, Capabilities};

/// The sending half of a connection: everything that a reply needs, shared by the serving threads and by the replies
/// that outlive them.
pub(crate) struct Channel {
    device: OwnedFd,
    pub(crate) buffers: BufferPool,
    pub(crate) negotiated: OnceLock<Capabilities>,
    /// Set once the server is to go: unanswered replies are then left to the successor.
    leaving: AtomicBool,
    unanswered: Mutex<usize>,
    answered: Condvar,
    pub(crate) requests: AtomicU64,
    pub(crate) reads: AtomicU64,
    pub(crate) resent: AtomicU64,
    pub(crate) errors: AtomicU64,
}

impl Channel {
    pub(crate) fn new(device: OwnedFd, buffers: usize) -> Self {
        Self {
            device,
            buffers: BufferPool::new(buffers),
            negotiated: OnceLock::new(),
            leaving: AtomicBool::new(false),
            unanswered: Mutex::new(0),
            answered: Condvar::new(),
            requests: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            resent: AtomicU64::new(0),
            errors: AtomicU64::new(0),
        }
    }

    pub(crate) fn device(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    pub(crate) fn leave(&self) {
        self.leaving.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::SeqCst)
    }

    pub(crate) fn request_taken(&self) {
        *self.unanswered.lock() += 1;
    }

    pub(crate) fn request_finished(&self) {
        let mut unanswered = self.unanswered.lock();
        *unanswered -= 1;
        if *unanswered == 0 {
            self.answered.notify_all();
        }
    }

    pub(crate) fn unanswered(&self) -> usize {
        *self.unanswered.lock()
    }

    /// Waits until every request taken has been answered. Returns how many have not been by the deadline.
    pub(crate) fn wait_answered(&self, deadline: Instant) -> usize {
        let mut unanswered = self.unanswered.lock();
        while *unanswered > 0 {
            if self.answered.wait_until(&mut unanswered, deadline).timed_out() {
                break;
            }
        }
        *unanswered
    }

    pub(crate) fn reply(&self, unique: u64, payload: &[u8]) {
        let header = protocol::out_header(unique, 0, payload.len());
        self.send_reply(&[IoSlice::new(&header), IoSlice::new(payload)]);
    }

    pub(crate) fn reply_error(&self, unique: u64, errno: Errno) {
        let header = protocol::out_header(unique, -errno.number(), 0);
        self.send_reply(&[IoSlice::new(&header)]);
    }

    /// A reply that the kernel does not take has no one to go to: the reader was killed (ENOENT), the request was
    /// resent and is answered under its new number (ENOENT), or the mount is gone (ENODEV). The kernel itself ends a
    /// request whose reply it took but could not use.
    fn send_reply(&self, parts: &[IoSlice<'_>]) {
        match nix::sys::uio::writev(&self.device, parts) {
            Ok(_) => {}
            Err(Os::ENOENT | Os::ENODEV | Os::ECONNABORTED) => tracing::debug!("reply without a reader"),
            Err(errno) => tracing::error!(%errno, "the kernel refused a FUSE reply"),
        }
    }

    pub(crate) fn notify(&self, code: i32, payload: &[u8], tail: &[u8]) -> io::Result<()> {
        let header = protocol::out_header(0, code, payload.len() + tail.len());
        let parts = [IoSlice::new(&header), IoSlice::new(payload), IoSlice::new(tail)];
        nix::sys::uio::writev(&self.device, &parts)?;
        Ok(())
    }
}
