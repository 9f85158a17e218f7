//! What a daemon tells systemd about itself: sd_notify(3), over the datagram socket that `$NOTIFY_SOCKET` names.
//!
//! Without that variable nobody listens, and every call does nothing. A message that cannot be sent is logged and
//! forgotten: no daemon stops because its supervisor is deaf.

use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::time::{ClockId, clock_gettime};

/// A keepalive is sent this many times in the interval after which systemd loses its patience.
const KEEPALIVES_PER_INTERVAL: u32 = 3;

/// The way to the supervisor; clones are the same way.
#[derive(Debug, Clone, Default)]
pub struct Notifier {
    socket: Option<Arc<UnixDatagram>>,
    watchdog: Option<Duration>,
}

impl Notifier {
    pub fn from_environment() -> Self {
        let variable = |name| std::env::var(name).ok();
        let watchdog = watchdog(variable("WATCHDOG_USEC"), variable("WATCHDOG_PID"), std::process::id());
        let Some(address) = std::env::var_os("NOTIFY_SOCKET").filter(|address| !address.is_empty()) else {
            return Self::default();
        };
        match connect(&address) {
            Ok(socket) => Self { socket: Some(Arc::new(socket)), watchdog },
            Err(error) => {
                tracing::warn!("systemd is not told about this service: {}: {error}", address.display());
                Self::default()
            }
        }
    }

    /// The service serves; also the end of a reload.
    pub fn ready(&self) {
        self.send("READY=1", None);
    }

    pub fn stopping(&self) {
        self.send("STOPPING=1", None);
    }

    /// The configuration is being read again; [`Notifier::ready`] ends it.
    pub fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let microseconds = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1000;
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={microseconds}"), None);
    }

    /// One line for `systemctl status`.
    pub fn status(&self, text: &str) {
        self.send(&format!("STATUS={}", text.replace('\n', " ")), None);
    }

    /// Keeps a duplicate of the descriptor with systemd, which passes it to the service's next start under this
    /// name. Needs `FileDescriptorStoreMax=` in the unit. An earlier one of the name must be removed first.
    pub fn store_descriptor(&self, name: &str, descriptor: BorrowedFd<'_>) {
        self.send(&format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0"), Some(descriptor));
    }

    pub fn remove_descriptor(&self, name: &str) {
        self.send(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), None);
    }

    /// Sends keepalives for as long as it is polled; ends at once where none are wanted. Being polled is the proof
    /// of life: a runtime whose threads are all stuck sends none.
    pub async fn keep_alive(self) {
        let Some(limit) = self.watchdog else { return };
        let mut ticks = tokio::time::interval(limit / KEEPALIVES_PER_INTERVAL);
        loop {
            ticks.tick().await;
            self.send("WATCHDOG=1", None);
        }
    }

    fn send(&self, state: &str, descriptor: Option<BorrowedFd<'_>>) {
        let Some(socket) = &self.socket else { return };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = descriptor.as_slice();
        if descriptor.is_some() {
            control.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        let sent = sendmsg(socket, &[IoSlice::new(state.as_bytes())], &mut control, SendFlags::NOSIGNAL);
        if let Err(error) = sent {
            tracing::debug!(state, "systemd was not told: {error}");
        }
    }
}

fn connect(address: &OsStr) -> io::Result<UnixDatagram> {
    let address = match address.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        path => SocketAddr::from_pathname(OsStr::from_bytes(path))?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    // A supervisor that does not read must not hold the daemon up.
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// The keepalive interval, when it is meant for this process.
fn watchdog(microseconds: Option<String>, pid: Option<String>, own_pid: u32) -> Option<Duration> {
    if pid.is_some_and(|pid| pid.parse() != Ok(own_pid)) {
        return None;
    }
    let limit = microseconds?.parse().ok().map(Duration::from_micros)?;
    (!limit.is_zero()).then_some(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keepalives_are_for_the_process_that_they_name() {
        let own = |text: &str| Some(text.to_owned());
        let table = [
            (own("30000000"), None, Some(30)),
            (own("30000000"), own("7"), Some(30)),
            (own("30000000"), own("8"), None),
            (own("0"), None, None),
            (own("soon"), None, None),
            (None, own("7"), None),
        ];
        for (limit, pid, seconds) in table {
            let found = watchdog(limit.clone(), pid.clone(), 7);
            assert_eq!(found, seconds.map(Duration::from_secs), "{limit:?} {pid:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn messages_arrive_at_paths_and_abstract_names() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let abstract_name = format!("d7y-notify-{}", std::process::id());
        let listeners = [
            (path.clone().into_os_string(), UnixDatagram::bind(&path).unwrap()),
            (
                format!("@{abstract_name}").into(),
                UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&abstract_name).unwrap()).unwrap(),
            ),
        ];
        for (address, listener) in listeners {
            listener.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let receive = || {
                let mut buffer = [0; 256];
                let length = listener.recv(&mut buffer).unwrap();
                String::from_utf8(buffer[..length].to_vec()).unwrap()
            };
            let notifier = Notifier {
                socket: Some(Arc::new(connect(&address).unwrap())),
                watchdog: Some(Duration::from_secs(3)),
            };
            notifier.ready();
            assert_eq!(receive(), "READY=1");
            notifier.reloading();
            assert!(receive().starts_with("RELOADING=1\nMONOTONIC_USEC="));
            let _ = tokio::time::timeout(Duration::from_millis(1100), notifier.keep_alive()).await;
            assert_eq!((receive(), receive()), ("WATCHDOG=1".to_owned(), "WATCHDOG=1".to_owned()));
        }
        Notifier::default().ready();
    }
}
