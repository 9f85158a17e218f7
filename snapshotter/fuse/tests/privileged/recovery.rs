//! The server dies, stops or is replaced; readers wait and get their bytes.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use d7y_fuse::{FuseDevice, NodeId, Privileges, ReadReply, Session, SessionEnd, Start, Stopped, mounts};
use d7y_types::ByteRange;

use crate::mounted::{Mounted, PATIENCE, THREADS, Unserved, background, pattern, wait_until};
use crate::tree::{Node, Tree};

const FILE_BYTES: usize = 300_000;
const CHILD_VARIABLE: &str = "D7Y_FUSE_TEST_SERVER";
const HOLDING: &str = "holding a read";

fn serving_tree() -> Tree {
    Tree::with("file", Node::file(&pattern(FILE_BYTES)))
}

/// Kills the child whatever happens.
struct Server(Child);

impl Server {
    /// Starts this test binary again as a server of `device`, its standard input.
    fn start(device: &FuseDevice) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "recovery::server_process", "--nocapture"])
            .env(CHILD_VARIABLE, "1")
            .stdin(Stdio::from(device.duplicate().unwrap()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self(child)
    }

    fn wait_until_holding(&mut self) {
        let lines = BufReader::new(self.0.stdout.take().unwrap()).lines();
        let said = background(move || lines.map_while(Result::ok).any(|line| line.contains(HOLDING)));
        assert!(said.result(), "the server ended before it held a read");
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Not a test by itself: the first server of the take-over test. It takes reads and answers none.
#[test]
fn server_process() {
    if std::env::var_os(CHILD_VARIABLE).is_none() {
        return;
    }
    let held: Mutex<Vec<ReadReply>> = Mutex::default();
    let hold = move |_: ByteRange, reply| {
        held.lock().unwrap().push(reply);
        println!("{HOLDING}");
    };
    let device = FuseDevice::from_fd(std::io::stdin().as_fd().try_clone_to_owned().unwrap()).unwrap();
    let tree = Tree::with("file", Node::hooked(FILE_BYTES as u64, hold));
    let session = Session::start(device, Arc::new(tree), Start::Fresh, THREADS).unwrap();
    session.wait();
}

#[test]
fn readers_survive_a_killed_server() {
    let Unserved { device, target, scratch: _scratch, guard: _guard } = Unserved::new(Privileges::Container);
    let mut server = Server::start(&device);
    let path = target.join("file");
    let readers: Vec<_> = (0..3)
        .map(|_| {
            background({
                let path = path.clone();
                move || fs::read(path)
            })
        })
        .collect();
    server.wait_until_holding();
    server.kill();
    let while_down = background(move || fs::read(path));
    assert!(readers.iter().all(|reader| reader.is_pending()) && while_down.is_pending());

    let session = Session::start(device, Arc::new(serving_tree()), Start::Attached, THREADS).unwrap();
    for reader in readers.into_iter().chain([while_down]) {
        assert!(reader.result().unwrap() == pattern(FILE_BYTES));
    }
    assert!(session.counters().resent > 0);
}

/// The predecessor died between mount and INIT.
#[test]
fn attaching_before_the_handshake_does_the_handshake() {
    let Unserved { device, target, scratch: _scratch, guard: _guard } = Unserved::new(Privileges::Container);
    let session = Session::start(device, Arc::new(serving_tree()), Start::Attached, THREADS).unwrap();
    let read = background(move || fs::read(target.join("file")).unwrap());
    assert!(read.result() == pattern(FILE_BYTES));
    assert_eq!(session.can_resend(), Some(true));
}

#[test]
fn stopping_leaves_what_is_unanswered_to_the_successor() {
    let Unserved { device, target, scratch: _scratch, guard: _guard } = Unserved::new(Privileges::Container);
    let (sender, kept) = mpsc::channel();
    let sender = Mutex::new(sender);
    let keep = move |_: ByteRange, reply: ReadReply| sender.lock().unwrap().send(reply).unwrap();
    let tree = Tree::with("file", Node::hooked(FILE_BYTES as u64, keep));
    let first = Session::start(device, Arc::new(tree), Start::Fresh, THREADS).unwrap();
    let parked = FuseDevice::from_fd(first.duplicate().unwrap()).unwrap();
    let path = target.join("file");
    let reader = background(move || fs::read(path));
    let reply = kept.recv_timeout(PATIENCE).unwrap();

    let stopped = first.stop(Duration::from_secs(1));
    assert!(stopped.unanswered >= 1 && stopped.busy_threads == 0, "{stopped:?}");
    assert_eq!(first.ended(), Some(SessionEnd::Stopped));
    drop((reply, kept, first));
    assert!(reader.is_pending());

    let second = Session::start(parked, Arc::new(serving_tree()), Start::Attached, THREADS).unwrap();
    assert!(reader.result().unwrap() == pattern(FILE_BYTES));
    assert_eq!(second.stop(PATIENCE), Stopped { unanswered: 0, busy_threads: 0 });
}

#[test]
fn stopping_finishes_what_was_taken() {
    let (sender, kept) = mpsc::channel();
    let sender = Mutex::new(sender);
    let keep = move |_: ByteRange, reply: ReadReply| sender.lock().unwrap().send(reply).unwrap();
    let mut tree = Tree::with("file", Node::hooked(4, keep));
    tree.add(NodeId::ROOT, "other", Node::file(b""));
    let mounted = Mounted::container(tree);
    // The first close asks whether FLUSH is wanted; the reader's must not be the first once nobody answers.
    fs::read(mounted.path("other")).unwrap();
    let path = mounted.path("file");
    let reader = background(move || fs::read(path).unwrap());
    let reply = kept.recv_timeout(PATIENCE).unwrap();
    std::thread::scope(|scope| {
        let stopping = scope.spawn(|| mounted.session.stop(PATIENCE));
        wait_until("the threads end", || mounted.session.ended().is_some());
        reply.data(b"last");
        assert_eq!(stopping.join().unwrap(), Stopped { unanswered: 0, busy_threads: 0 });
    });
    assert_eq!(reader.result(), b"last");
}

/// Sessions follow each other on one connection while readers go on: no read fails, no byte is wrong.
#[test]
fn hand_over_under_load() {
    const HAND_OVERS: usize = 30;
    let Unserved { device, target, scratch: _scratch, guard: _guard } = Unserved::new(Privileges::Container);
    let mut session = Session::start(device, Arc::new(serving_tree()), Start::Fresh, THREADS).unwrap();
    let (stop, stopped) = mpsc::channel::<()>();
    let reader = background(move || {
        let expected = pattern(FILE_BYTES);
        let mut rounds = 0;
        while stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {
            let file = fs::File::open(target.join("file")).unwrap();
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
            assert!(fs::read(target.join("file")).unwrap() == expected);
            rounds += 1;
        }
        rounds
    });
    for _ in 0..HAND_OVERS {
        let reads = session.counters().reads;
        wait_until("the reader gets on", || session.counters().reads > reads + 2);
        let next = FuseDevice::from_fd(session.duplicate().unwrap()).unwrap();
        assert_eq!(session.stop(PATIENCE), Stopped { unanswered: 0, busy_threads: 0 });
        session = Session::start(next, Arc::new(serving_tree()), Start::Attached, THREADS).unwrap();
    }
    drop(stop);
    assert!(reader.result() >= HAND_OVERS);
}

#[test]
fn the_end_of_the_mount_ends_the_session() {
    let mounted = Mounted::container(serving_tree());
    assert_eq!(mounted.session.ended(), None);
    mounts::unmount(&mounted.target).unwrap();
    assert_eq!(mounted.session.wait(), SessionEnd::Unmounted);
    mounts::unmount(&mounted.target).unwrap();
}

#[test]
fn an_abort_frees_the_readers() {
    let (sender, kept) = mpsc::channel();
    let sender = Mutex::new(sender);
    let keep = move |_: ByteRange, reply: ReadReply| sender.lock().unwrap().send(reply).unwrap();
    let mounted = Mounted::container(Tree::with("file", Node::hooked(4, keep)));
    let path = mounted.path("file");
    let reader = background(move || fs::read(path));
    let reply = kept.recv_timeout(PATIENCE).unwrap();
    mounts::abort_connection(&mounted.target).unwrap();
    assert!(reader.result().is_err());
    let end = mounted.session.wait();
    assert!(matches!(end, SessionEnd::Aborted | SessionEnd::Unmounted), "{end:?}");
    reply.data(b"late");
}

#[test]
fn a_connection_that_is_gone_cannot_be_attached() {
    let Unserved { device, target, scratch: _scratch, guard: _guard } = Unserved::new(Privileges::Container);
    mounts::unmount_lazy(&target).unwrap();
    let result = Session::start(device, Arc::new(serving_tree()), Start::Fresh, THREADS);
    assert!(result.is_err());
}
