use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use d7y_types::{Caller, LayerRef, PackId};
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

use crate::answers::{Binding, Event, Opened, Opening, Questions};
use crate::codec::{
    GET_BATCH, Header, Kind, Lane, MAX_PAYLOAD_BYTES, Purpose, WireError, encode_numbers, encode_numbers_for,
    frame, read_frame,
};
use crate::connection::{Hello, prepare_client, read_hello, send_hello};

/// Requests that wait for the socket; each is at most a Get of [`GET_BATCH`] chunks.
const SEND_QUEUE: usize = 1024;
const READ_BUFFER_BYTES: usize = 128 << 10;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("cannot reach the peer at {0}")]
    Connect(SocketAddr, #[source] std::io::Error),
    #[error("the peer at {0} did not answer in time")]
    Timeout(SocketAddr),
    #[error("the connection to the peer at {0} broke")]
    Wire(SocketAddr, #[source] WireError),
}

/// Asks for chunks over a [`Connection`]. Cheap to clone; the last clone closes it.
#[derive(Debug, Clone)]
pub struct Client {
    send: mpsc::Sender<Bytes>,
    questions: Arc<Mutex<Questions>>,
    peer_id: Arc<str>,
    understands_get_for: bool,
}

/// The work of a connection for fetching chunks: nothing moves unless it is run.
#[derive(Debug)]
pub struct Connection {
    queue: mpsc::Receiver<Bytes>,
    questions: Arc<Mutex<Questions>>,
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

impl Client {
    /// Connects and exchanges hellos. The caller runs the connection in a task of its own.
    pub async fn connect(
        address: SocketAddr,
        me: &str,
        timeout: Duration,
    ) -> Result<(Self, Connection), ClientError> {
        let (reader, writer, hello) = greet(address, me, timeout).await?;
        let (peer_id, understands_get_for) = (hello.name(), hello.understands_get_for());
        let (send, queue) = mpsc::channel(SEND_QUEUE);
        let questions = Arc::<Mutex<Questions>>::default();
        let connection = Connection { queue, questions: questions.clone(), reader, writer };
        Ok((Self { send, questions, peer_id, understands_get_for }, connection))
    }

    pub fn peer_id(&self) -> &str {
        &self.peer_id
    }

    /// Asks what the parent holds of a layer, now and from now on; asks again when it did not know the layer. False
    /// when the connection is gone, clogged or has too many layers: then it is of no more use.
    pub fn bind(&self, pack: PackId) -> bool {
        match lock(&self.questions).bind(pack) {
            Binding::Done => true,
            Binding::Full => false,
            Binding::Ask(stream) => {
                let id = [pack.layer.0, pack.table.0].concat();
                self.send.try_send(frame(Header::new(Kind::Bind, stream, 0, id.len()), &id)).is_ok()
            }
        }
    }

    /// Forgets that the layer was bound: the next [`Self::bind`] asks anew. What was asked for still comes.
    pub fn unbind(&self, pack: PackId) {
        lock(&self.questions).unbind(pack);
    }

    /// Asks for chunks of a bound layer; they come as events. False as for [`Self::bind`].
    pub fn get(&self, pack: PackId, lane: Lane, chunks: &[u32]) -> bool {
        self.get_for(None, pack, lane, chunks)
    }

    /// As [`Self::get`], and tells the parent for whom, if it wants to know.
    pub fn get_for(&self, caller: Option<Caller>, pack: PackId, lane: Lane, chunks: &[u32]) -> bool {
        let Some(stream) = lock(&self.questions).ask(pack, chunks) else { return false };
        let caller = caller.filter(|_| self.understands_get_for);
        chunks.chunks(GET_BATCH).all(|batch| {
            let (kind, payload) = match caller {
                Some(caller) => (Kind::GetFor, encode_numbers_for(caller, batch)),
                None => (Kind::Get, encode_numbers(batch)),
            };
            let header = Header { lane, ..Header::new(kind, stream, 0, payload.len()) };
            self.send.try_send(frame(header, &payload)).is_ok()
        })
    }
}

impl Connection {
    /// Sends what the client asks and passes on what the parent says, until the client or the receiver of the events
    /// is gone, or with an error when the connection is.
    pub async fn run<T>(self, events: &mpsc::Sender<T>, wrap: impl Fn(Event) -> T) -> Result<(), WireError> {
        let Self { mut queue, questions, mut reader, mut writer } = self;
        let sending = async {
            while let Some(bytes) = queue.recv().await {
                writer.write_all(&bytes).await?;
            }
            Ok(())
        };
        let receiving = async {
            loop {
                let (header, payload) = read_frame(&mut reader, MAX_PAYLOAD_BYTES).await?;
                let event = lock(&questions).answer(header, payload)?;
                if let Some(event) = event
                    && events.send(wrap(event)).await.is_err()
                {
                    return Ok(());
                }
            }
        };
        tokio::select! {
            result = sending => result,
            result = receiving => result,
        }
    }
}

fn lock(questions: &Mutex<Questions>) -> MutexGuard<'_, Questions> {
    questions.lock().expect("no code panics with the lock held")
}

/// A connection that opens one layer.
#[derive(Debug)]
pub struct OpenStream {
    address: SocketAddr,
    peer_id: Arc<str>,
    reader: BufReader<OwnedReadHalf>,
    _writer: OwnedWriteHalf,
    opening: Opening,
}

impl OpenStream {
    pub async fn connect(
        address: SocketAddr,
        me: &str,
        layer: &LayerRef,
        timeout: Duration,
    ) -> Result<Self, ClientError> {
        Self::connect_for(Purpose::Index, address, me, layer, timeout).await
    }

    pub async fn connect_for(
        purpose: Purpose,
        address: SocketAddr,
        me: &str,
        layer: &LayerRef,
        timeout: Duration,
    ) -> Result<Self, ClientError> {
        let (reader, mut writer, hello) = greet(address, me, timeout).await?;
        let payload = serde_json::to_vec(layer).expect("a layer reference is plain data");
        let open = frame(Header::new(Kind::Open, 0, purpose as u32, payload.len()), &payload);
        writer.write_all(&open).await.map_err(|error| ClientError::Wire(address, error.into()))?;
        Ok(Self { address, peer_id: hello.name(), reader, _writer: writer, opening: Opening::default() })
    }

    pub fn peer_id(&self) -> &Arc<str> {
        &self.peer_id
    }

    /// The next chunk or sign of life, or the outcome. `idle` bounds the silence in between; after an error, or when cancelled, the
    /// stream is of no more use.
    pub async fn next(&mut self, idle: Duration) -> Result<Opened, ClientError> {
        let wire = |error| ClientError::Wire(self.address, error);
        loop {
            let read = tokio::time::timeout(idle, read_frame(&mut self.reader, MAX_PAYLOAD_BYTES)).await;
            let (header, payload) = read.map_err(|_| ClientError::Timeout(self.address))?.map_err(wire)?;
            if let Some(opened) = self.opening.answer(header, payload).map_err(wire)? {
                return Ok(opened);
            }
        }
    }
}

type Greeted = (BufReader<OwnedReadHalf>, OwnedWriteHalf, Hello);

async fn greet(address: SocketAddr, me: &str, timeout: Duration) -> Result<Greeted, ClientError> {
    let greeting = async {
        let socket =
            TcpStream::connect(address).await.map_err(|error| ClientError::Connect(address, error))?;
        let wire = |error| ClientError::Wire(address, error);
        prepare_client(&socket).map_err(|error| wire(error.into()))?;
        let (reader, mut writer) = socket.into_split();
        let mut reader = BufReader::with_capacity(READ_BUFFER_BYTES, reader);
        send_hello(&mut writer, me).await.map_err(wire)?;
        let hello = read_hello(&mut reader).await.map_err(wire)?;
        hello.check_version().map_err(wire)?;
        Ok((reader, writer, hello))
    };
    tokio::time::timeout(timeout, greeting).await.map_err(|_| ClientError::Timeout(address))?
}
