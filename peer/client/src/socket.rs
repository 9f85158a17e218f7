use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bytes::BytesMut;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::frame::{Frame, FrameError, Header, header};

const READ_BYTES: usize = 64 << 10;
/// Descriptors one `recvmsg` may bring: each message carries one, the kernel never merges two such messages.
const DESCRIPTORS_PER_READ: usize = 4;
/// Descriptors that wait for their frame to become complete.
const MAX_WAITING_DESCRIPTORS: usize = 8;

/// Cuts the byte stream into frames and gives each its descriptor.
pub(crate) struct FrameReader<'a> {
    stream: &'a UnixStream,
    buffer: BytesMut,
    scratch: Box<[u8]>,
    header: Option<Header>,
    descriptors: VecDeque<OwnedFd>,
}

impl<'a> FrameReader<'a> {
    pub fn new(stream: &'a UnixStream) -> Self {
        Self {
            stream,
            buffer: BytesMut::new(),
            scratch: vec![0; READ_BYTES].into(),
            header: None,
            descriptors: VecDeque::new(),
        }
    }

    /// The next frame, or nothing after a clean end of the stream.
    pub async fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            if let Some(frame) = self.cut()? {
                return Ok(Some(frame));
            }
            let (stream, scratch) = (self.stream, &mut self.scratch);
            let descriptors = &mut self.descriptors;
            let bytes = stream.async_io(Interest::READABLE, || receive(stream, scratch, descriptors)).await?;
            if self.descriptors.len() > MAX_WAITING_DESCRIPTORS {
                return Err(FrameError::Descriptors);
            }
            match bytes {
                0 if self.buffer.is_empty() && self.header.is_none() => return Ok(None),
                0 => return Err(FrameError::CutShort),
                bytes => self.buffer.extend_from_slice(&self.scratch[..bytes]),
            }
        }
    }

    fn cut(&mut self) -> Result<Option<Frame>, FrameError> {
        if self.header.is_none() {
            self.header = Header::take(&mut self.buffer)?;
        }
        let Some(Header { message_bytes, id, has_descriptor }) =
            self.header.take_if(|header| self.buffer.len() >= header.message_bytes)
        else {
            return Ok(None);
        };
        let message = self.buffer.split_to(message_bytes).freeze();
        let descriptor = match has_descriptor {
            true => Some(self.descriptors.pop_front().ok_or(FrameError::Descriptors)?),
            false => None,
        };
        Ok(Some(Frame { id, message, descriptor }))
    }
}

fn receive(
    stream: &UnixStream,
    into: &mut [u8],
    descriptors: &mut VecDeque<OwnedFd>,
) -> std::io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_PER_READ))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let got = recvmsg(stream.as_fd(), &mut [IoSliceMut::new(into)], &mut control, flags)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    if got.flags.contains(ReturnFlags::CTRUNC) {
        return Err(std::io::Error::other("more descriptors arrived than one frame may carry"));
    }
    Ok(got.bytes)
}

/// Writes one frame; the descriptor goes with its first byte. Not to be cancelled half-way.
pub(crate) async fn write_frame(
    stream: &UnixStream,
    id: u64,
    message: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> Result<(), FrameError> {
    let header = header(id, message, descriptor.is_some())?;
    let total = header.len() + message.len();
    let mut sent = 0;
    while sent < total {
        let head = header.get(sent..).unwrap_or_default();
        let body = &message[sent.saturating_sub(header.len())..];
        let attached = if sent == 0 { descriptor } else { None };
        sent += stream.async_io(Interest::WRITABLE, || transmit(stream, [head, body], attached)).await?;
    }
    Ok(())
}

fn transmit(
    stream: &UnixStream,
    parts: [&[u8]; 2],
    descriptor: Option<BorrowedFd<'_>>,
) -> std::io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let attached = descriptor.as_slice();
    if !attached.is_empty() {
        let fits = control.push(SendAncillaryMessage::ScmRights(attached));
        assert!(fits, "the space is made for one descriptor");
    }
    let parts = parts.map(IoSlice::new);
    Ok(sendmsg(stream.as_fd(), &parts, &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?)
}
