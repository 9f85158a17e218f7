#![cfg(test)]

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use d7y_peer_client::{
    Answer, ClientError, Handler, Link, LocalClient, MAX_FRAME_BYTES, Stop, UnderWay, serve,
};
use d7y_proto::local::{self, Reason, Request, Response, request, response};
use d7y_types::{ByteRange, Sha256Digest};
use parking_lot::Mutex;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const LONG: Duration = Duration::from_secs(20);

/// Echoes ranges, parks descriptors; a range at `HELD` waits for `release`.
#[derive(Default)]
struct Peer {
    parked: Mutex<HashMap<String, OwnedFd>>,
    calls: AtomicUsize,
    arrived: Notify,
    release: Notify,
}

const HELD: u64 = 1 << 40;

impl Handler for Peer {
    async fn handle(&self, request: Request, descriptor: Option<OwnedFd>) -> Answer {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.arrived.notify_one();
        match request.kind {
            Some(request::Kind::EnsureRange(range)) => {
                if range.offset == HELD {
                    self.release.notified().await;
                }
                let uncached = vec![range.offset as u8; range.length as usize];
                Answer::of(response::Kind::RangePresent(local::RangePresent {
                    uncached,
                    ..Default::default()
                }))
            }
            Some(request::Kind::PutDescriptor(put)) => match descriptor {
                Some(descriptor) => {
                    self.parked.lock().insert(put.name, descriptor);
                    Answer::of(response::Kind::Done(local::Done {}))
                }
                None => Answer::failure(Reason::Invalid, "no descriptor came"),
            },
            Some(request::Kind::TakeDescriptor(take)) => match self.parked.lock().get(&take.name) {
                Some(descriptor) => Answer {
                    response: Response { kind: Some(response::Kind::Done(local::Done {})) },
                    descriptor: Some(descriptor.try_clone().unwrap()),
                },
                None => Answer::failure(Reason::NotFound, "nothing is parked under that name"),
            },
            _ => Answer::of(response::Kind::Done(local::Done {})),
        }
    }
}

struct Running {
    path: PathBuf,
    peer: Arc<Peer>,
    closing: CancellationToken,
    stop: CancellationToken,
    /// Gone when all that was asked for before the close has been answered.
    under_way: Weak<dyn Send + Sync>,
    task: JoinHandle<()>,
}

fn start(directory: &Path) -> Running {
    let path = directory.join("peer.sock");
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    let (peer, held): (_, UnderWay) = (Arc::new(Peer::default()), Arc::new(()));
    let (closing, stop, under_way) =
        (CancellationToken::new(), CancellationToken::new(), Arc::downgrade(&held));
    let steps = Stop { closing: closing.clone(), stopping: stop.clone(), under_way: held };
    let task = tokio::spawn(serve(listener, Arc::clone(&peer), steps));
    Running { path, peer, closing, stop, under_way, task }
}

impl Running {
    async fn kill(self) {
        self.closing.cancel();
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

async fn range(client: &LocalClient, offset: u64, length: u64) -> Result<Vec<u8>, ClientError> {
    let range = ByteRange::new(offset, length);
    client.ensure_range(Sha256Digest([0; 32]), range, LONG).await.map(|bytes| bytes.to_vec())
}

#[tokio::test]
async fn calls_are_answered_out_of_order_and_in_any_size() {
    let directory = tempfile::tempdir().unwrap();
    let running = start(directory.path());
    let client = LocalClient::new(&running.path);
    let held = tokio::spawn({
        let client = client.clone();
        async move { range(&client, HELD, 3).await }
    });
    for length in [0, 1, 4096, 100_000, 1 << 20, 8 << 20] {
        assert_eq!(range(&client, 7, length).await.unwrap(), vec![7; length as usize]);
    }
    assert!(!held.is_finished());
    running.peer.release.notify_one();
    assert_eq!(held.await.unwrap().unwrap(), vec![0; 3]);
}

#[tokio::test]
async fn many_calls_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let running = start(directory.path());
    let client = LocalClient::new(&running.path);
    let calls = (0..3000u64).map(|n| {
        let client = client.clone();
        tokio::spawn(
            async move { assert_eq!(range(&client, n, n).await.unwrap(), vec![n as u8; n as usize]) },
        )
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap();
    }
}

#[tokio::test]
async fn descriptors_are_parked_and_taken_by_another_client() {
    let directory = tempfile::tempdir().unwrap();
    let running = start(directory.path());
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"parked").unwrap();
    let first = LocalClient::new(&running.path);
    assert!(first.take_descriptor("fuse", LONG).await.unwrap().is_none());
    first.put_descriptor("fuse", file.as_fd(), LONG).await.unwrap();
    drop((first, file));
    let second = LocalClient::new(&running.path);
    for _ in 0..2 {
        let noise = (0..50).map(|n| {
            tokio::spawn({
                let client = second.clone();
                async move { range(&client, n, 100_000).await.unwrap() }
            })
        });
        let noise: Vec<_> = noise.collect();
        let taken = second.take_descriptor("fuse", LONG).await.unwrap().unwrap();
        let (mut file, mut text) = (File::from(taken), String::new());
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "parked");
        for call in noise {
            call.await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_call_survives_the_peers_restart() {
    let directory = tempfile::tempdir().unwrap();
    let running = start(directory.path());
    let client = LocalClient::new(&running.path);
    let mut link = client.link();
    let held = tokio::spawn({
        let client = client.clone();
        async move { range(&client, HELD, 5).await }
    });
    running.peer.arrived.notified().await;
    assert_eq!(*link.borrow_and_update(), Link::Up(1));
    running.kill().await;
    link.wait_for(|link| *link == Link::Down).await.unwrap();
    let running = start(directory.path());
    running.peer.release.notify_one();
    assert_eq!(held.await.unwrap().unwrap(), vec![0; 5]);
    assert_eq!(running.peer.calls.load(Ordering::SeqCst), 1);
    assert_eq!(*link.borrow(), Link::Up(2));
}

#[tokio::test]
async fn an_absent_peer_costs_the_deadline_and_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let client = LocalClient::new(directory.path().join("nobody"));
    let deadline = Duration::from_millis(60);
    let error = client.status(deadline).await.unwrap_err();
    assert!(matches!(error, ClientError::Deadline(after) if after == deadline));
    assert_eq!(error.reason(), Reason::Deadline);
}

#[tokio::test]
async fn requests_that_do_not_fit_are_refused_before_they_are_sent() {
    let directory = tempfile::tempdir().unwrap();
    let running = start(directory.path());
    let client = LocalClient::new(&running.path);
    let reference = "x".repeat(MAX_FRAME_BYTES);
    let image = local::OpenImage { reference, ..Default::default() };
    assert!(matches!(client.open_image(image, LONG).await, Err(ClientError::Request(_))));
    let error = range(&client, 0, MAX_FRAME_BYTES as u64).await.unwrap_err();
    assert_eq!(error.reason(), Reason::Internal);
    assert_eq!(range(&client, 1, 1).await.unwrap(), [1]);
}

#[tokio::test]
async fn the_server_outlives_garbage() {
    let directory = tempfile::tempdir().unwrap();
    let running = start(directory.path());
    let oversize = [&(MAX_FRAME_BYTES as u32 + 1).to_le_bytes()[..], &[0; 8]].concat();
    let unannounced = [&(1u32 << 31).to_le_bytes()[..], &[0; 8]].concat();
    for garbage in [oversize, unannounced, vec![0xff; 64]] {
        let mut stream = UnixStream::connect(&running.path).await.unwrap();
        stream.write_all(&garbage).await.unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        assert!(rest.is_empty(), "garbage was answered");
    }
    let mut stream = UnixStream::connect(&running.path).await.unwrap();
    let undecodable = [&3u32.to_le_bytes()[..], &9u64.to_le_bytes(), &[0xff; 3]].concat();
    stream.write_all(&undecodable).await.unwrap();
    let (length, id) = (stream.read_u32_le().await.unwrap(), stream.read_u64_le().await.unwrap());
    let mut message = vec![0; length as usize];
    stream.read_exact(&mut message).await.unwrap();
    let Some(response::Kind::Failure(failure)) = Response::decode(&message[..]).unwrap().kind else {
        panic!("an undecodable request was not refused");
    };
    assert_eq!((id, failure.reason()), (9, Reason::Invalid));
    assert_eq!(range(&LocalClient::new(&running.path), 1, 1).await.unwrap(), [1]);
}

#[tokio::test]
async fn a_garbage_answer_makes_the_client_connect_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("peer.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let client = LocalClient::new(&path);
    let call = tokio::spawn(async move { range(&client, 4, 2).await });
    let (mut liar, _) = listener.accept().await.unwrap();
    liar.write_all(&[0x7f; 12]).await.unwrap();
    drop(listener);
    let _running = start(directory.path());
    assert_eq!(call.await.unwrap().unwrap(), [4, 4]);
}

#[tokio::test]
async fn what_is_under_way_is_answered_before_the_end_and_so_is_what_comes_meanwhile() {
    let directory = tempfile::tempdir().unwrap();
    let running = start(directory.path());
    let client = LocalClient::new(&running.path);
    let held = tokio::spawn({
        let client = client.clone();
        async move { range(&client, HELD, 8 << 20).await }
    });
    running.peer.arrived.notified().await;
    running.closing.cancel();
    tokio::time::timeout(LONG, async {
        while UnixStream::connect(&running.path).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert_eq!(range(&client, 7, 5).await.unwrap(), vec![7; 5]);
    assert!(running.under_way.strong_count() > 0);
    running.peer.release.notify_one();
    tokio::time::timeout(LONG, async {
        while running.under_way.strong_count() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    let calls = Arc::clone(&running.peer);
    running.kill().await;
    assert_eq!(held.await.unwrap().unwrap(), vec![0; 8 << 20]);
    assert_eq!(calls.calls.load(Ordering::SeqCst), 2, "nothing was asked for again");
}

#[tokio::test]
async fn what_is_asked_for_during_the_end_does_not_hold_it_up() {
    let directory = tempfile::tempdir().unwrap();
    let running = start(directory.path());
    let client = LocalClient::new(&running.path);
    assert_eq!(range(&client, 7, 5).await.unwrap(), vec![7; 5]);
    running.peer.arrived.notified().await;
    running.closing.cancel();
    let held = tokio::spawn({
        let client = client.clone();
        async move { range(&client, HELD, 3).await }
    });
    running.peer.arrived.notified().await;
    tokio::time::timeout(LONG, async {
        while running.under_way.strong_count() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    running.kill().await;
    let successor = start(directory.path());
    successor.peer.release.notify_one();
    assert_eq!(held.await.unwrap().unwrap(), vec![0; 3], "its successor answers");
}
