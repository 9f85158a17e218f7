use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use d7y_types::ByteRange;

use crate::channel::Channel;
use crate::filesystem::Errno;
use crate::protocol::MAX_READ_BYTES;

/// The right, and the duty, to answer one request.
///
/// Dropped unanswered it answers EIO; or, once the server is leaving, leaves the request in the kernel for the next
/// server.
pub(crate) struct Reply {
    channel: Arc<Channel>,
    unique: u64,
    open: bool,
}

impl Reply {
    pub(crate) fn new(channel: &Arc<Channel>, unique: u64) -> Self {
        channel.request_taken();
        Self { channel: Arc::clone(channel), unique, open: true }
    }

    pub(crate) fn data(mut self, payload: &[u8]) {
        self.channel.reply(self.unique, payload);
        self.open = false;
    }

    pub(crate) fn error(mut self, errno: Errno) {
        self.send_error(errno);
    }

    pub(crate) fn result(self, result: Result<impl AsRef<[u8]>, Errno>) {
        match result {
            Ok(payload) => self.data(payload.as_ref()),
            Err(errno) => self.error(errno),
        }
    }

    fn send_error(&mut self, errno: Errno) {
        self.channel.reply_error(self.unique, errno);
        self.open = false;
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if self.open && !self.channel.is_leaving() {
            self.channel.errors.fetch_add(1, Ordering::Relaxed);
            self.send_error(Errno::IO);
        }
        self.channel.request_finished();
    }
}

/// The answer to one READ. May be kept, sent to another thread, and used once.
///
/// Dropping it answers EIO, unless the session is stopping: then the request stays in the kernel, unanswered, for the
/// next server to receive again.
#[must_use = "a dropped reply answers EIO"]
pub struct ReadReply {
    reply: Reply,
    asked: u32,
}

impl ReadReply {
    pub(crate) fn new(reply: Reply, asked: u32) -> Self {
        Self { reply, asked: asked.min(MAX_READ_BYTES) }
    }

    /// How many bytes the kernel asked for; an answer is cut to this.
    pub fn asked_bytes(&self) -> u32 {
        self.asked
    }

    /// Answers with bytes from memory. Fewer than asked for say that the file ends there.
    pub fn data(self, bytes: &[u8]) {
        let bytes = &bytes[..bytes.len().min(self.asked as usize)];
        self.reply.data(bytes);
    }

    /// Answers with exactly `range` of `file`: one `pread`, one `writev`, no allocation. May wait for one of the
    /// session's reply buffers.
    ///
    /// Clip `range` to the end of the file served: a shorter range than asked for says that the file served ends
    /// there. When `file` itself ends inside the range, or cannot be read, the answer is an error: a short
    /// one would truncate the file, in the kernel's view, for as long as it is mounted.
    pub fn file(self, file: &File, range: ByteRange) {
        let bytes = range.length.min(u64::from(self.asked)) as usize;
        let channel = Arc::clone(&self.reply.channel);
        let mut buffer = channel.buffers.take();
        match file.read_exact_at(&mut buffer[..bytes], range.offset) {
            Ok(()) => self.reply.data(&buffer[..bytes]),
            Err(error) => {
                tracing::error!(%error, offset = range.offset, bytes, "cannot read what should be present");
                self.error(Errno::IO);
            }
        }
    }

    /// Fails the read.
    pub fn error(self, errno: Errno) {
        self.reply.channel.errors.fetch_add(1, Ordering::Relaxed);
        self.reply.error(errno);
    }
}
