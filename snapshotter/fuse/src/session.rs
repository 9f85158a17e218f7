use std::ffi::OsStr;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno as Os;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::{Condvar, Mutex};

use crate::channel::Channel;
use crate::device::FuseDevice;
use crate::dispatch::Dispatcher;
use crate::filesystem::{Errno, Filesystem, NodeId};
use crate::{mounts, process, protocol};

/// Reply buffers beyond one per serving thread, for replies that come from elsewhere.
const SPARE_BUFFERS: usize = 2;
/// How long a fresh mount may take to send INIT, which the kernel queues before `mount(2)` returns, in ms.
const INIT_DEADLINE_MS: u16 = 10_000;
/// Unexpected failures to take a request, one after another, after which the connection counts as broken. The kernel
/// fails the request concerned by itself (it says so for ENOMEM and EFAULT), so a few are survivable.
const TAKE_FAILURES_IN_A_ROW: u32 = 64;

const FUSE_NOTIFY_INVAL_INODE: i32 = 2;
const FUSE_NOTIFY_INVAL_ENTRY: i32 = 3;
const FUSE_NOTIFY_RESEND: i32 = 7;

/// A running server. Dropping it stops the threads without waiting for them, and never unmounts.
pub struct Session {
    channel: Arc<Channel>,
    stop_event: Arc<EventFd>,
    threads: Arc<Threads>,
    handles: Mutex<Vec<JoinHandle<()>>>,
}

/// Where the connection stands when the session starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Just mounted: the kernel waits for INIT to be answered.
    Fresh,
    /// Taken over from a server that has stopped or died (not before: two at once take each other's wake-ups): the
    /// kernel is asked to resend what it had taken. Should it have died before it answered INIT, INIT is among it.
    Attached,
}

/// Why the serving threads ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionEnd {
    /// The mount is gone.
    Unmounted,
    /// Somebody aborted the connection: every reader has had an error.
    Aborted,
    /// [`Session::stop`], or the session was dropped.
    Stopped,
    /// Requests could not be taken any more.
    Failed(Errno),
}

/// What [`Session::stop`] left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped {
    /// Requests taken and not answered by the deadline; a successor gets them again.
    pub unanswered: usize,
    /// Threads still inside a call of the filesystem at the deadline.
    pub busy_threads: usize,
}

/// Totals since the session started, but for `unanswered`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counters {
    pub requests: u64,
    pub reads: u64,
    /// Requests that an earlier server had taken and not answered.
    pub resent: u64,
    /// Reads and dropped replies answered with an error.
    pub errors: u64,
    /// Requests taken and not answered at this moment.
    pub unanswered: usize,
}

/// Why a session did not start.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("cannot set up the serving threads")]
    SetUp(#[source] io::Error),
    #[error("the kernel did not begin a FUSE handshake within {INIT_DEADLINE_MS} ms")]
    NoHandshake,
    #[error("the kernel's FUSE is older than 7.{}", protocol::MIN_KERNEL_MINOR)]
    KernelTooOld,
    #[error("the connection ended before it was initialised: {0:?}")]
    Ended(SessionEnd),
    /// Before Linux 6.9: what the predecessor had taken hangs until the connection is aborted.
    #[error("the kernel cannot resend the requests of the previous server")]
    Resend(#[source] io::Error),
}

impl Session {
    /// Serves `device` with `threads` threads. When it returns, a fresh mount is initialised, its read-ahead raised to
    /// [`mounts::READ_AHEAD_KB`]; an attached one has been asked to resend.
    pub fn start(
        device: FuseDevice,
        filesystem: Arc<dyn Filesystem>,
        start: Start,
        threads: NonZeroUsize,
    ) -> Result<Self, SessionError> {
        let FuseDevice { fd, mount_point } = device;
        let channel = Arc::new(Channel::new(fd, threads.get() + SPARE_BUFFERS));
        let dispatcher = Arc::new(Dispatcher { channel: Arc::clone(&channel), filesystem });
        if start == Start::Fresh {
            shake_hands(&dispatcher)?;
            raise_read_ahead(mount_point.as_deref());
        }
        let session = Self {
            channel,
            stop_event: Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC).map_err(set_up)?),
            threads: Arc::new(Threads::default()),
            handles: Mutex::new(Vec::with_capacity(threads.get())),
        };
        // Before the threads: the kernel wakes one for all that it resends, and each looks before it first sleeps.
        if start == Start::Attached {
            session.resend().map_err(SessionError::Resend)?;
        }
        for number in 0..threads.get() {
            session.spawn(number, &dispatcher)?;
        }
        Ok(session)
    }

    /// Asks the kernel to send again every request that has been taken and not answered, by whomever
    /// (`FUSE_NOTIFY_RESEND`, Linux 6.9). Requests in this session's hands come twice; their first reply is void.
    pub fn resend(&self) -> io::Result<()> {
        self.channel.notify(FUSE_NOTIFY_RESEND, &[], &[])
    }

    /// Whether the kernel agreed to resend, where this session did the handshake itself.
    pub fn can_resend(&self) -> Option<bool> {
        self.channel.negotiated.get().map(|agreed| agreed.resend())
    }

    /// Another descriptor of the connection, to be parked where it outlives this process.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.channel.device().try_clone_to_owned()
    }

    /// Drops the kernel's cached pages and attributes of a node. ENOENT: it had none. Not to be called from inside a
    /// [`Filesystem`] method: the kernel may wait for a read of that node.
    pub fn invalidate_node(&self, node: NodeId) -> io::Result<()> {
        self.channel.notify(FUSE_NOTIFY_INVAL_INODE, &protocol::invalidate_node(node), &[])
    }

    /// Makes the kernel forget a name. ENOENT: it knew none. Not to be called from inside a [`Filesystem`] method: the
    /// kernel may hold the directory's lock for a lookup.
    pub fn invalidate_entry(&self, parent: NodeId, name: &OsStr) -> io::Result<()> {
        let bytes = u32::try_from(name.len()).map_err(io::Error::other)?;
        let mut tail = name.as_bytes().to_vec();
        tail.push(0);
        self.channel.notify(FUSE_NOTIFY_INVAL_ENTRY, &protocol::invalidate_entry(parent, bytes), &tail)
    }

    pub fn counters(&self) -> Counters {
        let Channel { requests, reads, resent, errors, .. } = &*self.channel;
        Counters {
            requests: requests.load(Ordering::Relaxed),
            reads: reads.load(Ordering::Relaxed),
            resent: resent.load(Ordering::Relaxed),
            errors: errors.load(Ordering::Relaxed),
            unanswered: self.channel.unanswered(),
        }
    }

    /// Takes no further request, then waits up to `within` for those taken to be answered. The mount stays: further
    /// requests wait in the kernel as long as any duplicate of the descriptor is open.
    ///
    /// From here on a dropped [`crate::ReadReply`] leaves its request to the successor instead of answering EIO.
    pub fn stop(&self, within: Duration) -> Stopped {
        let deadline = Instant::now().checked_add(within).unwrap_or_else(far_future);
        self.signal_stop();
        let busy_threads = self.threads.wait_until(deadline);
        if busy_threads == 0 {
            self.join();
        }
        Stopped { unanswered: self.channel.wait_answered(deadline), busy_threads }
    }

    /// Waits until all serving threads have ended, which an unmount, an abort or [`Session::stop`] brings about.
    pub fn wait(&self) -> SessionEnd {
        self.threads.wait_until(far_future());
        self.threads.end().unwrap_or(SessionEnd::Stopped)
    }

    /// Why the session ended, if it has.
    pub fn ended(&self) -> Option<SessionEnd> {
        self.threads.end()
    }

    fn signal_stop(&self) {
        self.channel.leave();
        if let Err(errno) = self.stop_event.write(1) {
            tracing::error!(%errno, "cannot wake the FUSE threads to stop them");
        }
    }

    fn join(&self) {
        for handle in self.handles.lock().drain(..) {
            // Panics of the filesystem are caught per request; the thread itself ends by returning.
            let _ = handle.join();
        }
    }

    fn spawn(&self, number: usize, dispatcher: &Arc<Dispatcher>) -> Result<(), SessionError> {
        let waiter = Waiter::new(&self.channel, Arc::clone(&self.stop_event)).map_err(set_up)?;
        let worker = Worker { dispatcher: Arc::clone(dispatcher), waiter };
        let running = Running::new(&self.threads);
        let handle = std::thread::Builder::new()
            .name(format!("d7y-fuse-{number}"))
            .spawn(move || {
                let end = worker.serve();
                running.end(end);
            })
            .map_err(SessionError::SetUp)?;
        self.handles.lock().push(handle);
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.signal_stop();
    }
}

fn set_up(errno: Os) -> SessionError {
    SessionError::SetUp(errno.into())
}

/// A deadline that never comes: 30 years.
fn far_future() -> Instant {
    Instant::now() + Duration::from_secs(30 * 365 * 86_400)
}

/// Answers INIT on the calling thread, so that the session starts with everything agreed.
fn shake_hands(dispatcher: &Dispatcher) -> Result<(), SessionError> {
    let channel = &dispatcher.channel;
    let mut fds = [PollFd::new(channel.device(), PollFlags::POLLIN)];
    if poll(&mut fds, PollTimeout::from(INIT_DEADLINE_MS)).map_err(set_up)? == 0 {
        return Err(SessionError::NoHandshake);
    }
    let mut request = vec![0; protocol::REQUEST_BYTES];
    match take(channel, &mut request) {
        Taken::Request(bytes) => dispatcher.handle(&request[..bytes]),
        Taken::Nothing => return Err(SessionError::NoHandshake),
        Taken::Ended(end) => return Err(SessionError::Ended(end)),
        Taken::Failed(errno) => return Err(set_up(errno)),
    }
    if channel.negotiated.get().is_none() {
        return Err(SessionError::KernelTooOld);
    }
    Ok(())
}

fn raise_read_ahead(mount_point: Option<&Path>) {
    let Some(mount_point) = mount_point else { return };
    if let Err(error) = mounts::set_read_ahead_kb(mount_point, mounts::READ_AHEAD_KB) {
        tracing::warn!(%error, mount_point = %mount_point.display(), "read-ahead stays small: reads will be slow");
    }
}

enum Taken {
    Request(usize),
    /// Another thread was faster, or the request was withdrawn.
    Nothing,
    Ended(SessionEnd),
    Failed(Os),
}

fn take(channel: &Channel, request: &mut [u8]) -> Taken {
    match nix::unistd::read(channel.device(), request) {
        Ok(bytes) => Taken::Request(bytes),
        Err(Os::EAGAIN | Os::EINTR | Os::ENOENT) => Taken::Nothing,
        Err(Os::ENODEV) => Taken::Ended(SessionEnd::Unmounted),
        Err(Os::ECONNABORTED) => Taken::Ended(SessionEnd::Aborted),
        Err(errno) => Taken::Failed(errno),
    }
}

struct Worker {
    dispatcher: Arc<Dispatcher>,
    waiter: Waiter,
}

impl Worker {
    fn serve(&self) -> SessionEnd {
        process::protect_thread();
        let channel = &self.dispatcher.channel;
        let mut request = vec![0; protocol::REQUEST_BYTES];
        let mut failures = 0;
        loop {
            if channel.is_leaving() {
                return SessionEnd::Stopped;
            }
            match take(channel, &mut request) {
                Taken::Request(bytes) => {
                    failures = 0;
                    self.handle(&request[..bytes]);
                }
                Taken::Nothing => self.waiter.wait(),
                Taken::Ended(end) => return end,
                Taken::Failed(errno) => {
                    tracing::error!(%errno, "cannot take a FUSE request");
                    failures += 1;
                    if failures == TAKE_FAILURES_IN_A_ROW {
                        return SessionEnd::Failed(Errno::from(&errno.into()));
                    }
                }
            }
        }
    }

    /// A panic answers EIO (the reply is dropped) and costs nothing else.
    fn handle(&self, request: &[u8]) {
        if catch_unwind(AssertUnwindSafe(|| self.dispatcher.handle(request))).is_err() {
            tracing::error!("a FUSE request panicked");
        }
    }
}

/// Waits for a request or for the stop event.
///
/// Each thread has an epoll of its own with the device in it exclusively: a request wakes one thread, the stop event
/// all of them. (Threads in one `poll` each would all wake for every request.) A thread waits only when it has found
/// nothing to take: looking first costs less than asking whether to look.
struct Waiter {
    epoll: Epoll,
    _stop_event: Arc<EventFd>,
}

impl Waiter {
    fn new(channel: &Channel, stop_event: Arc<EventFd>) -> Result<Self, Os> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(channel.device(), EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLEXCLUSIVE, 0))?;
        epoll.add(&*stop_event, EpollEvent::new(EpollFlags::EPOLLIN, 1))?;
        Ok(Self { epoll, _stop_event: stop_event })
    }

    /// May wake for nothing.
    fn wait(&self) {
        let mut events = [EpollEvent::empty()];
        if let Err(errno) = self.epoll.wait(&mut events, EpollTimeout::NONE)
            && errno != Os::EINTR
        {
            tracing::error!(%errno, "cannot wait for FUSE requests");
        }
    }
}

/// How many threads serve, and why the first one ended.
#[derive(Default)]
struct Threads {
    state: Mutex<(usize, Option<SessionEnd>)>,
    ended: Condvar,
}

impl Threads {
    /// Returns how many threads still run at the deadline.
    fn wait_until(&self, deadline: Instant) -> usize {
        let mut state = self.state.lock();
        while state.0 > 0 {
            if self.ended.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        state.0
    }

    fn end(&self) -> Option<SessionEnd> {
        let state = self.state.lock();
        state.1.filter(|_| state.0 == 0)
    }
}

/// One running thread; counted out when it ends, however it ends.
struct Running(Arc<Threads>);

impl Running {
    fn new(threads: &Arc<Threads>) -> Self {
        threads.state.lock().0 += 1;
        Self(Arc::clone(threads))
    }

    fn end(self, end: SessionEnd) {
        self.0.state.lock().1.get_or_insert(end);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.state.lock().0 -= 1;
        self.0.ended.notify_all();
    }
}
