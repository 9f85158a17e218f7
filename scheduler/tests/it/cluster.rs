use std::net::SocketAddr;
use std::time::Duration;

use d7y_chassis::{HumanDuration, Shutdown, ShutdownConfig, TaskFailure, Tasks};
use d7y_proto::scheduler::inventory::State;
use d7y_proto::scheduler::peer_message::Message;
use d7y_proto::scheduler::scheduler_client::SchedulerClient;
use d7y_proto::scheduler::scheduler_message::Message as Heard;
use d7y_proto::scheduler::{
    Announce, Assignment, Heartbeat, Inventory, OpenTask, PeerMessage, Role, SchedulerMessage,
};
use d7y_scheduler::{Addresses, Config, run};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Status, Streaming};

/// Far above what any step needs.
pub const PATIENCE: Duration = Duration::from_secs(20);
pub const TASK: [u8; 32] = [7; 32];

pub struct Cluster {
    pub tasks: Tasks,
    pub addresses: Addresses,
}

impl Cluster {
    /// Heartbeats are so rare that they do not matter, and no settling time.
    pub async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    pub async fn start_with(adjust: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::default();
        config.server.listen = "127.0.0.1:0".parse().unwrap();
        config.metrics.listen = "127.0.0.1:0".parse().unwrap();
        config.heartbeat.interval = HumanDuration::from_secs(60);
        config.settle = HumanDuration::from_secs(0);
        adjust(&mut config);
        let tasks = Tasks::new(Shutdown::new(ShutdownConfig::default()));
        let addresses = run(config, &tasks).await.unwrap();
        Self { tasks, addresses }
    }

    pub async fn stop(&self) -> Result<(), TaskFailure> {
        self.tasks.shutdown().begin("test");
        tokio::time::timeout(PATIENCE, self.tasks.finish()).await.unwrap()
    }

    pub async fn join(&self, name: &str, role: Role) -> Peer {
        self.join_as(announce(name, role)).await
    }

    pub async fn join_as(&self, announce: Message) -> Peer {
        let mut peer = Peer::open(self.addresses.server).await;
        peer.say(announce).await;
        assert!(matches!(peer.hear().await, Ok(Some(Heard::Welcome(_)))), "it is welcome");
        peer
    }

    /// The value of a metric, given with its labels as they are written.
    pub async fn metric(&self, name: &str) -> Option<u64> {
        let mut stream = tokio::net::TcpStream::connect(self.addresses.metrics).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("d7y_scheduler_")?.strip_prefix(name));
        line.map(|value| value.trim().parse().unwrap())
    }
}

/// One session as a peer's side sees it.
pub struct Peer {
    outbound: mpsc::Sender<PeerMessage>,
    inbound: Streaming<SchedulerMessage>,
}

impl Peer {
    pub async fn open(server: SocketAddr) -> Self {
        let (outbound, messages) = mpsc::channel(16);
        let channel = Endpoint::from_shared(format!("http://{server}")).unwrap().connect().await.unwrap();
        let mut client = SchedulerClient::new(channel).max_decoding_message_size(8 << 20);
        let answer = client.session(ReceiverStream::new(messages)).await.unwrap();
        Self { outbound, inbound: answer.into_inner() }
    }

    pub async fn say(&self, message: Message) {
        self.try_say(message).await.unwrap();
    }

    pub async fn try_say(&self, message: Message) -> Result<(), mpsc::error::SendError<PeerMessage>> {
        self.outbound.send(PeerMessage { message: Some(message) }).await
    }

    /// Says all of these while it is polled, so that answers can be heard meanwhile.
    pub fn say_all(&self, messages: Vec<Message>) -> impl Future<Output = ()> + use<> {
        let outbound = self.outbound.clone();
        async move {
            for message in messages {
                outbound.send(PeerMessage { message: Some(message) }).await.unwrap();
            }
        }
    }

    /// Heartbeats for as long as it is polled and the session lives.
    pub fn heartbeats(&self) -> impl Future<Output = ()> + use<> {
        let outbound = self.outbound.clone();
        async move {
            let mut interval = tokio::time::interval(Duration::from_millis(20));
            let beat = || PeerMessage { message: Some(Message::Heartbeat(Heartbeat::default())) };
            while outbound.send(beat()).await.is_ok() {
                interval.tick().await;
            }
        }
    }

    pub async fn say_nothing_known(&self) {
        self.outbound.send(PeerMessage { message: None }).await.unwrap();
    }

    pub async fn hear(&mut self) -> Result<Option<Heard>, Status> {
        let message =
            tokio::time::timeout(PATIENCE, self.inbound.message()).await.expect("nothing was heard")?;
        Ok(message.map(|message| message.message.expect("the scheduler sends what this contract knows")))
    }

    pub async fn assigned(&mut self) -> Assignment {
        match self.hear().await {
            Ok(Some(Heard::Assignment(assignment))) => assignment,
            other => panic!("no assignment but {other:?}"),
        }
    }

    /// Reads until an assignment has these parents.
    pub async fn parents_become(&mut self, names: &[&str]) -> Assignment {
        loop {
            let assignment = self.assigned().await;
            if parents(&assignment) == names {
                return assignment;
            }
        }
    }

    /// Reads until the session ends.
    pub async fn ends(&mut self) -> Option<Status> {
        loop {
            match self.hear().await {
                Ok(Some(_)) => {}
                Ok(None) => return None,
                Err(status) => return Some(status),
            }
        }
    }
}

pub fn parents(assignment: &Assignment) -> Vec<&str> {
    let mut names: Vec<_> = assignment.parents.iter().map(|parent| parent.peer_id.as_str()).collect();
    names.sort_unstable();
    names
}

pub fn announce(name: &str, role: Role) -> Message {
    Message::Announce(Announce {
        peer_id: name.to_owned(),
        role: role.into(),
        address: "0.0.0.0:4000".to_owned(),
        ..Announce::default()
    })
}

pub fn open(task: &[u8]) -> Message {
    Message::Open(OpenTask { task: task.to_vec() })
}

pub fn inventory(state: State) -> Message {
    Message::Inventory(Inventory { task: TASK.to_vec(), state: state.into() })
}
