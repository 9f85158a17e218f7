//! Keeping a server of page faults from waiting for the memory that only it can free.

use std::io;

/// Just above "never kill": the kernel reserves -1000 for that, and a leak of ours must not take the node down.
const OOM_SCORE_ADJ: &str = "-999";

/// Whether one protection is in force.
#[derive(Debug)]
pub enum Protection {
    Applied,
    /// Usually a missing CAP_SYS_RESOURCE.
    Refused(io::Error),
}

/// What [`protect_from_reclaim`] achieved.
#[derive(Debug)]
pub struct ReclaimProtection {
    /// Allocations of this thread, and of threads that it starts, do not wait for I/O (`PR_SET_IO_FLUSHER`), which
    /// could be I/O to ourselves.
    pub io_flusher: Protection,
    /// The out-of-memory killer takes others first.
    pub oom_score: Protection,
}

/// Protects the process as far as its privileges go. Call it in `main`, before the first thread.
pub fn protect_from_reclaim() -> ReclaimProtection {
    ReclaimProtection {
        io_flusher: set_io_flusher().into(),
        oom_score: std::fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ).into(),
    }
}

/// The calling thread's part of it, for threads that somebody else may have started first; a refusal has been reported
/// by [`protect_from_reclaim`].
pub(crate) fn protect_thread() {
    let _ = set_io_flusher();
}

impl From<io::Result<()>> for Protection {
    fn from(result: io::Result<()>) -> Self {
        result.map_or_else(Self::Refused, |()| Self::Applied)
    }
}

#[allow(unsafe_code, reason = "no crate wraps PR_SET_IO_FLUSHER")]
fn set_io_flusher() -> io::Result<()> {
    const PR_SET_IO_FLUSHER: libc::c_int = 57;
    const ON: libc::c_ulong = 1;
    const UNUSED: libc::c_ulong = 0;
    // SAFETY: this prctl takes integers only (the kernel insists on the unused ones being 0) and changes nothing but
    // allocation flags of the calling thread; no memory of ours is read or written.
    let result = unsafe { libc::prctl(PR_SET_IO_FLUSHER, ON, UNUSED, UNUSED, UNUSED) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_and_harmless() {
        let ReclaimProtection { io_flusher, .. } = protect_from_reclaim();
        if let Protection::Refused(error) = io_flusher {
            assert!(matches!(error.raw_os_error(), Some(libc::EPERM | libc::EINVAL)), "{error}");
        }
    }
}
