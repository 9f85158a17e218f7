//! Descriptors that the service manager kept while no process of this service ran (`sd_listen_fds(3)`).

use std::env;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::unistd::getpid;

/// The first inherited descriptor (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;
/// More than any service manager is told to keep of this service.
const MAX: RawFd = 64;

/// The inherited descriptors and their names; none the second time.
pub fn take() -> Vec<(String, OwnedFd)> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let variable = |name| env::var(name).ok();
    let announced = announced(variable("LISTEN_PID"), variable("LISTEN_FDS"), getpid().as_raw());
    if announced == 0 || TAKEN.swap(true, Ordering::SeqCst) {
        return Vec::new();
    }
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':').map(str::to_owned);
    (FIRST..FIRST + announced)
        .filter_map(|number| Some((names.next().unwrap_or_default(), own(number)?)))
        .collect()
}

/// How many descriptors the environment says this process was given.
fn announced(pid: Option<String>, count: Option<String>, own_pid: i32) -> RawFd {
    let for_us = pid.is_some_and(|pid| pid.parse() == Ok(own_pid));
    let count = count.filter(|_| for_us).and_then(|count| count.parse().ok());
    count.filter(|count| (1..=MAX).contains(count)).unwrap_or(0)
}

#[allow(unsafe_code, reason = "an inherited descriptor is known by its number alone")]
fn own(number: RawFd) -> Option<OwnedFd> {
    std::fs::symlink_metadata(format!("/proc/self/fd/{number}")).ok()?;
    // SAFETY: the number is open, as was just seen. The service manager put it there before it started the program, for
    // this process alone (`LISTEN_PID`), and `take` hands each number out once: nobody else owns it.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl(&descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).ok()?;
    Some(descriptor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_meant_for_this_process_counts() {
        let text = |text: &str| Some(text.to_owned());
        for (pid, count, expected) in [
            (text("7"), text("2"), 2),
            (text("8"), text("2"), 0),
            (None, text("2"), 0),
            (text("7"), None, 0),
            (text("7"), text("0"), 0),
            (text("7"), text("-1"), 0),
            (text("7"), text("65"), 0),
            (text("seven"), text("2"), 0),
        ] {
            assert_eq!(announced(pid.clone(), count.clone(), 7), expected, "{pid:?} {count:?}");
        }
    }
}
