use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use d7y_types::ByteRange;

use crate::channel::Channel;
use crate::filesystem::{DirectorySink, Errno, Filesystem, NodeId, XattrNames};
use crate::protocol::{
    self, ABI_MAJOR, Header, InitRequest, ListRequest, MAX_READ_BYTES, MIN_KERNEL_MINOR, Operation,
};
use crate::reply::{ReadReply, Reply};

/// Turns requests into calls of the filesystem, and its results into replies.
pub(crate) struct Dispatcher {
    pub(crate) channel: Arc<Channel>,
    pub(crate) filesystem: Arc<dyn Filesystem>,
}

impl Dispatcher {
    /// Handles one whole request. It is answered when this returns, except for a READ whose reply the filesystem
    /// has kept.
    pub(crate) fn handle(&self, request: &[u8]) {
        let Ok((header, body)) = Header::parse(request) else {
            tracing::error!(
                bytes = request.len(),
                "a FUSE request without a whole header; it cannot be answered"
            );
            return;
        };
        self.channel.requests.fetch_add(1, Ordering::Relaxed);
        if header.is_resent() {
            self.channel.resent.fetch_add(1, Ordering::Relaxed);
        }
        match header.operation(body) {
            Ok(Operation::Forget { lookups }) => self.filesystem.forget(header.node, lookups),
            Ok(Operation::BatchForget(forgets)) => {
                forgets.for_each(|(node, lookups)| self.filesystem.forget(node, lookups));
            }
            Ok(operation) => self.answer(header.node, operation, Reply::new(&self.channel, header.unique)),
            Err(protocol::Malformed) => {
                tracing::error!(?header, "malformed FUSE request");
                Reply::new(&self.channel, header.unique).error(Errno::INVALID);
            }
        }
    }

    fn answer(&self, node: NodeId, operation: Operation<'_>, reply: Reply) {
        let filesystem = &self.filesystem;
        match operation {
            Operation::Read { offset, size } => self.read(node, ByteRange::new(offset, size.into()), reply),
            Operation::Lookup { name } => {
                reply.result(match filesystem.lookup(node, OsStr::from_bytes(name)) {
                    Ok(Some(entry)) => Ok(protocol::entry_reply(&entry)),
                    Ok(None) => Ok(protocol::negative_entry_reply()),
                    Err(errno) => Err(errno),
                })
            }
            Operation::GetAttributes => {
                let attributes = filesystem.attributes(node);
                reply.result(attributes.map(|found| protocol::attributes_reply(node, &found)));
            }
            Operation::ReadLink => reply.result(filesystem.read_link(node)),
            Operation::ReadDirectory(list) => self.read_directory(node, list, reply),
            Operation::StatFs => {
                reply.result(filesystem.statfs().map(|found| protocol::statistics_reply(&found)))
            }
            Operation::GetXattr { name, size } => match filesystem.get_xattr(node, OsStr::from_bytes(name)) {
                Ok(value) => xattr(&value, size, reply),
                Err(errno) => reply.error(errno),
            },
            Operation::ListXattr { size } => {
                let mut names = XattrNames::default();
                match filesystem.list_xattr(node, &mut names) {
                    Ok(()) => xattr(names.as_bytes(), size, reply),
                    Err(errno) => reply.error(errno),
                }
            }
            Operation::Init(request) => self.init(&request, reply),
            Operation::Release => reply.data(&[]),
            Operation::Modify => reply.error(Errno::READ_ONLY),
            Operation::Open | Operation::Unsupported => reply.error(Errno::NO_SYSTEM_CALL),
            Operation::Forget { .. } | Operation::BatchForget(_) => unreachable!("have no reply"),
        }
    }

    fn read(&self, node: NodeId, range: ByteRange, reply: Reply) {
        self.channel.reads.fetch_add(1, Ordering::Relaxed);
        match u32::try_from(range.length) {
            Ok(asked) if asked <= MAX_READ_BYTES => {
                self.filesystem.read(node, range, ReadReply::new(reply, asked))
            }
            // More than was negotiated: an answer cut to our buffers would say that the file ends there.
            _ => reply.error(Errno::INVALID),
        }
    }

    fn read_directory(&self, node: NodeId, list: ListRequest, reply: Reply) {
        let ListRequest { offset, size, listing } = list;
        let mut buffer = self.channel.buffers.take();
        let room = buffer.len().min(size as usize);
        let mut sink = DirectorySink::new(&*self.filesystem, listing, &mut buffer[..room]);
        let result = self.filesystem.read_directory(node, offset, &mut sink);
        let used = sink.used();
        reply.result(result.map(|()| &buffer[..used]));
    }

    fn init(&self, request: &InitRequest, reply: Reply) {
        let (payload, agreed) = protocol::init_reply(request);
        if request.major != ABI_MAJOR || request.minor < MIN_KERNEL_MINOR {
            let InitRequest { major, minor, .. } = request;
            tracing::error!(major, minor, "the kernel's FUSE is too old");
            return reply.error(Errno::PROTOCOL);
        }
        tracing::debug!(minor = request.minor, ?agreed, "FUSE connection initialised");
        reply.data(&payload);
        // Already set only when a predecessor's INIT was resent; what was agreed is the same.
        let _ = self.channel.negotiated.set(agreed);
    }
}

/// A size of 0 asks how large the value is.
fn xattr(value: &[u8], size: u32, reply: Reply) {
    match u32::try_from(value.len()) {
        Ok(bytes) if size == 0 => reply.data(&protocol::xattr_size_reply(bytes)),
        Ok(bytes) if bytes <= size => reply.data(value),
        _ => reply.error(Errno::RANGE),
    }
}
