use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::node::Node;

/// Hands the descriptor on standard input over as systemd does: under number 3, to the process of this very id.
const HAND_OVER: &str = "exec 3<&0 </dev/null; export LISTEN_PID=$$; exec \"$0\" \"$@\"";

/// As much of systemd as keeps descriptors.
pub struct ServiceManager {
    path: PathBuf,
    socket: UnixDatagram,
    kept: Vec<(String, OwnedFd)>,
}

impl ServiceManager {
    pub fn new(node: &Node) -> Self {
        let path = node.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self { path, socket, kept: Vec::new() }
    }

    /// The names of what is kept.
    pub fn kept(&mut self) -> Vec<String> {
        while let Some((state, descriptor)) = self.receive() {
            let value = |key: &str| state.lines().find_map(|line| line.strip_prefix(key)).map(str::to_owned);
            let name = value("FDNAME=").unwrap_or_else(|| "stored".into());
            if value("FDSTOREREMOVE=").is_some() {
                self.kept.retain(|(kept, _)| *kept != name);
            }
            if value("FDSTORE=").is_some() {
                assert_eq!(value("FDPOLL=").as_deref(), Some("0"), "systemd would wake for each request");
                let descriptor = descriptor.expect("FDSTORE without a descriptor");
                // What is kept already is not kept twice (`same_fd` in systemd).
                if !self.kept.iter().any(|(_, kept)| information(kept) == information(&descriptor)) {
                    self.kept.push((name, descriptor));
                }
            }
        }
        self.kept.iter().map(|(name, _)| name.clone()).collect()
    }

    /// The command that starts a program with all that is kept, which is one descriptor or none.
    pub fn command(&mut self, program: &str) -> Command {
        self.kept();
        let mut command = match self.kept.as_slice() {
            [] => Command::new(program),
            [(name, descriptor)] => {
                let mut shell = Command::new("sh");
                shell.args(["-c", HAND_OVER, program]).env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", name);
                shell.stdin(Stdio::from(descriptor.try_clone().unwrap()));
                shell
            }
            more => panic!("kept: {more:?}"),
        };
        command.env("NOTIFY_SOCKET", &self.path);
        command
    }

    fn receive(&self) -> Option<(String, Option<OwnedFd>)> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [0; 4096];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let got = match recvmsg(self.socket.as_fd(), &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)
        {
            Ok(got) => got.bytes,
            Err(error) if io::Error::from(error).kind() == io::ErrorKind::WouldBlock => return None,
            Err(error) => panic!("{error}"),
        };
        let descriptors = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(received) => Some(received),
            _ => None,
        });
        let descriptor = descriptors.flatten().next();
        Some((String::from_utf8(bytes[..got].to_vec()).unwrap(), descriptor))
    }
}

/// Of a FUSE descriptor also the connection.
fn information(descriptor: &OwnedFd) -> String {
    std::fs::read_to_string(format!("/proc/self/fdinfo/{}", descriptor.as_raw_fd())).unwrap()
}
