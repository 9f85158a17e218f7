use std::future::Future;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use d7y_proto::local::{Failure, Reason, Request, Response, response};
use prost::Message;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::frame::{FrameError, encode};
use crate::socket::{FrameReader, write_frame};

/// Requests of one connection that may be in the handler at once; further ones wait in the socket. Page faults
/// of a whole node come over one connection, so this bounds how many can wait for the swarm together.
const MAX_IN_FLIGHT: usize = 1024;
/// Connections at once: one snapshotter and a few tools.
const MAX_CONNECTIONS: usize = 64;

/// What a request is answered with.
#[derive(Debug)]
pub struct Answer {
    pub response: Response,
    /// Sent as a duplicate; the handler's own copy is closed after that.
    pub descriptor: Option<OwnedFd>,
}

impl Answer {
    pub fn of(kind: response::Kind) -> Self {
        Self { response: Response { kind: Some(kind) }, descriptor: None }
    }

    /// A refusal; the message says in one sentence what failed and what to do.
    pub fn failure(reason: Reason, message: impl Into<String>) -> Self {
        Self::of(response::Kind::Failure(Failure { reason: reason.into(), message: message.into() }))
    }
}

/// The peer's side of the socket. Each request runs as its own task; the task is dropped when its connection ends,
/// because the client sends again what was not answered.
pub trait Handler: Send + Sync + 'static {
    fn handle(&self, request: Request, descriptor: Option<OwnedFd>) -> impl Future<Output = Answer> + Send;
}

/// Held by what the end of a server waits for; dropped when that is done.
pub type UnderWay = Arc<dyn Send + Sync>;

/// The end of a server, in two steps.
#[derive(Clone)]
pub struct Stop {
    /// No connection is accepted from now on. Those that there are go on.
    pub closing: CancellationToken,
    /// All connections are closed at once.
    pub stopping: CancellationToken,
    /// Dropped once all that was asked for before `closing` has been answered.
    pub under_way: UnderWay,
}

/// Answers requests until it is told to stop, in two steps: see [`Stop`]. Only processes of root and of this process's
/// own user are answered.
pub async fn serve<H: Handler>(listener: UnixListener, handler: Arc<H>, stop: Stop) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.closing.cancelled() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, Arc::clone(&handler), stop.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "the local socket cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    let Stop { stopping, under_way, .. } = stop;
    drop((listener, under_way));
    stopping.cancelled().await;
    connections.shutdown().await;
}

/// Keeps a lack of descriptors from turning the accept loop into a busy one.
const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

async fn connection<H: Handler>(stream: UnixStream, handler: Arc<H>, stop: Stop) {
    if let Err(error) = authorise(&stream) {
        tracing::warn!(%error, "a connection on the local socket was refused");
        return;
    }
    let (answers, mut outgoing) = mpsc::channel::<Answered>(MAX_IN_FLIGHT);
    let write = async {
        while let Some(Answered { id, answer, under_way }) = outgoing.recv().await {
            write_answer(&stream, id, answer).await?;
            drop(under_way);
        }
        Ok(())
    };
    let result = tokio::select! {
        result = read_requests(&stream, handler, answers, stop) => result,
        result = write => result,
    };
    if let Err(error) = result {
        tracing::warn!(error = &error as &dyn std::error::Error, "a local connection was closed");
    }
}

struct Answered {
    id: u64,
    answer: Answer,
    under_way: Option<UnderWay>,
}

/// What is asked for after the close is answered too, as long as the end waits for something else: whoever reads would
/// wait longer for the successor.
async fn read_requests<H: Handler>(
    stream: &UnixStream,
    handler: Arc<H>,
    answers: mpsc::Sender<Answered>,
    Stop { closing, under_way, .. }: Stop,
) -> Result<(), FrameError> {
    let mut reader = FrameReader::new(stream);
    let in_flight = Arc::new(Semaphore::new(MAX_IN_FLIGHT));
    let mut tasks = JoinSet::new();
    let mut under_way = Some(under_way);
    loop {
        let frame = tokio::select! {
            frame = reader.next() => frame?,
            () = closing.cancelled(), if under_way.is_some() => {
                under_way = None;
                continue;
            }
        };
        let Some(frame) = frame else { return Ok(()) };
        while tasks.try_join_next().is_some() {}
        let Ok(permit) = Arc::clone(&in_flight).acquire_owned().await else { return Ok(()) };
        let (handler, answers, under_way) = (Arc::clone(&handler), answers.clone(), under_way.clone());
        tasks.spawn(async move {
            let answer = match Request::decode(frame.message) {
                Ok(request) => handler.handle(request, frame.descriptor).await,
                Err(_) => Answer::failure(Reason::Invalid, "the request does not decode"),
            };
            let _ = answers.send(Answered { id: frame.id, answer, under_way }).await;
            drop(permit);
        });
    }
}

async fn write_answer(stream: &UnixStream, id: u64, answer: Answer) -> Result<(), FrameError> {
    let message = match encode(&answer.response) {
        Err(FrameError::TooLarge(_)) => {
            let refusal = Answer::failure(Reason::Internal, "the answer is larger than a frame may be");
            encode(&refusal.response)?
        }
        encoded => encoded?,
    };
    write_frame(stream, id, &message, answer.descriptor.as_ref().map(|fd| fd.as_fd())).await
}

fn authorise(stream: &UnixStream) -> std::io::Result<()> {
    let uid = stream.peer_cred()?.uid();
    match uid == 0 || uid == rustix::process::geteuid().as_raw() {
        true => Ok(()),
        false => Err(std::io::Error::other(format!("user {uid} may not use this socket"))),
    }
}
