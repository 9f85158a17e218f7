//! Schedulers and seed peers that keep alive, and peers that look for them.
//!
//! One stream per member. While it lives and says something, the member's row is fresh; when it ends, or is silent for
//! three intervals, the row is out of every view. Nothing of this is in memory only: views are questions to the database,
//! so that several managers show the same.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use d7y_chassis::{OnEnd, Tasks};
use d7y_manager_db::entity::{cluster, member};
use d7y_manager_db::{Kind, NewMember, PeerRole, SeenPeer, Timestamp};
use d7y_proto::manager as wire;
use d7y_proto::manager::manager_server;
use d7y_proto::manager::member_message::Message;
use d7y_types::advertised;
use futures_util::Stream;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::manager::Manager;

/// How long a new stream may take to register.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(5);
/// A DNS name's limit.
const MAX_NAME_BYTES: usize = 253;
/// As many peers as a scheduler takes in.
const MAX_PEERS: usize = 131_072;

type Outbound = Pin<Box<dyn Stream<Item = Result<wire::ManagerMessage, Status>> + Send>>;
type Answers = mpsc::Sender<Result<wire::ManagerMessage, Status>>;

/// The gRPC service.
#[derive(Debug, Clone)]
pub(crate) struct Members {
    manager: Arc<Manager>,
    tasks: Tasks,
    /// The newest stream of each member, so that the end of an older one does not silence it.
    streams: Arc<Mutex<Streams>>,
}

#[derive(Debug, Default)]
struct Streams {
    next: u64,
    newest: HashMap<i64, u64>,
}

#[tonic::async_trait]
impl manager_server::Manager for Members {
    type KeepAliveStream = Outbound;

    async fn keep_alive(
        &self,
        request: Request<Streaming<wire::MemberMessage>>,
    ) -> Result<Response<Outbound>, Status> {
        let seen = request.remote_addr().map(|address| address.ip());
        let (answers, outbound) = mpsc::channel(1);
        let (members, inbound) = (self.clone(), request.into_inner());
        self.tasks.spawn("member", OnEnd::Expected, async move {
            members.attend(inbound, seen, answers).await;
            Ok::<_, Infallible>(())
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outbound))))
    }

    async fn discover(
        &self,
        request: Request<wire::DiscoverRequest>,
    ) -> Result<Response<wire::Discovery>, Status> {
        let asked = request.into_inner();
        let cluster = self.cluster(&asked.cluster).await?;
        let addresses = async |kind| {
            let alive = self.manager.alive(kind).await.map_err(|error| internal(&error))?;
            let here = alive.into_iter().filter(|row| row.cluster_id == cluster.id);
            Ok::<_, Status>(here.map(|row| row.address).collect::<Vec<_>>())
        };
        let (schedulers, seeds) = (addresses(Kind::Scheduler).await?, addresses(Kind::Seed).await?);
        let refresh_ms = millis(self.manager.settings.refresh);
        self.manager.metrics.discoveries.inc();
        let config = match asked.kind() {
            wire::Kind::Scheduler => cluster.scheduler_settings(),
            wire::Kind::Seed | wire::Kind::Unspecified => cluster.peer_settings(),
        };
        let config = config.into_iter().collect();
        Ok(Response::new(wire::Discovery { cluster: cluster.name, schedulers, seeds, refresh_ms, config }))
    }
}

impl Members {
    pub fn new(manager: Arc<Manager>, tasks: Tasks) -> Self {
        Self { manager, tasks, streams: Arc::default() }
    }

    async fn attend(
        self,
        mut inbound: Streaming<wire::MemberMessage>,
        seen: Option<IpAddr>,
        answers: Answers,
    ) {
        let member = match self.welcome(&mut inbound, seen).await {
            Ok(member) => member,
            Err(status) => {
                tracing::info!(?seen, "a member was refused: {}", status.message());
                let _ = answers.send(Err(status)).await;
                return;
            }
        };
        let stream = self.begin(member.id);
        let interval_ms = millis(self.manager.settings.interval);
        let welcome = wire::manager_message::Message::Welcome(wire::Welcome { interval_ms });
        let _ = answers.send(Ok(wire::ManagerMessage { message: Some(welcome) })).await;
        tracing::info!(name = member.name, kind = ?member.kind, address = member.address, "a member is here");
        let end = self.listen(&member, &mut inbound).await;
        tracing::info!(name = member.name, kind = ?member.kind, "a member is gone: {end}");
        // A manager that stops says nothing about those who were with it.
        let draining = self.tasks.shutdown().has_begun();
        if self.end(member.id, stream)
            && !draining
            && let Err(error) = self.manager.db.silence(member.id).await
        {
            tracing::warn!(name = member.name, "cannot note that a member is gone: {error}");
        }
        let _ = answers.try_send(Err(Status::unavailable(end)));
    }

    async fn welcome(
        &self,
        inbound: &mut Streaming<wire::MemberMessage>,
        seen: Option<IpAddr>,
    ) -> Result<member::Model, Status> {
        let first = tokio::time::timeout(REGISTER_TIMEOUT, inbound.message()).await;
        let Ok(Ok(Some(wire::MemberMessage { message: Some(Message::Register(register)) }))) = first else {
            return Err(Status::invalid_argument("the stream's first message is not Register, or came late"));
        };
        let kind = match register.kind() {
            wire::Kind::Scheduler => Kind::Scheduler,
            wire::Kind::Seed => Kind::Seed,
            wire::Kind::Unspecified => return Err(Status::invalid_argument("Register.kind is missing")),
        };
        let cluster = self.cluster(&register.cluster).await?;
        let address = advertised(&register.address, seen)
            .map_err(|error| Status::invalid_argument(format!("Register.address: {error}")))?;
        let (name, version) = (name(register.name)?, register.version.chars().take(64).collect());
        let new = NewMember { kind, cluster_id: cluster.id, name, address, version };
        self.manager.db.register(new, Timestamp::now()).await.map_err(|error| internal(&error))
    }

    /// Until the stream ends, one way or the other; says how.
    async fn listen(&self, member: &member::Model, inbound: &mut Streaming<wire::MemberMessage>) -> String {
        let patience = self.manager.settings.patience();
        let closing = self.tasks.shutdown().closing();
        loop {
            let message = tokio::select! {
                biased;
                () = closing.cancelled() => return "the manager stops".to_owned(),
                message = tokio::time::timeout(patience, inbound.message()) => message,
            };
            let message = match message {
                Ok(Ok(Some(message))) => message.message,
                Ok(Ok(None)) => return "it closed its stream".to_owned(),
                Ok(Err(status)) => return format!("its stream broke: {}", status.message()),
                Err(_) => return format!("it was silent for {patience:?}"),
            };
            let now = Timestamp::now();
            let noted = match message {
                Some(Message::Peers(seen)) if member.kind == Kind::Scheduler => {
                    match self.manager.db.replace_peers(member, peers(seen), now).await {
                        Ok(()) => self.manager.db.keep_alive(member.id, now).await,
                        failed => failed,
                    }
                }
                _ => self.manager.db.keep_alive(member.id, now).await,
            };
            if let Err(error) = noted {
                tracing::warn!(name = member.name, "cannot note that a member is alive: {error}");
            }
        }
    }

    async fn cluster(&self, name: &str) -> Result<cluster::Model, Status> {
        let found = match name.is_empty() {
            true => self.manager.db.default_cluster(Timestamp::now()).await.map(Some),
            false => self.manager.db.cluster_named(name).await,
        };
        if let Some(found) = found.map_err(|error| internal(&error))? {
            return Ok(found);
        }
        let known = self.manager.db.known_clusters().await.map_err(|error| internal(&error))?;
        let name: String = name.chars().take(MAX_NAME_BYTES).collect();
        Err(Status::not_found(format!(
            "there is no cluster {name:?}, {known}; make it with POST /api/v1/clusters, or mend manager.cluster"
        )))
    }

    fn begin(&self, member: i64) -> u64 {
        let mut streams = self.streams.lock();
        streams.next += 1;
        let stream = streams.next;
        streams.newest.insert(member, stream);
        stream
    }

    /// Whether it was the member's newest stream.
    fn end(&self, member: i64, stream: u64) -> bool {
        let mut streams = self.streams.lock();
        let newest = streams.newest.get(&member) == Some(&stream);
        if newest {
            streams.newest.remove(&member);
        }
        newest
    }
}

fn name(name: String) -> Result<String, Status> {
    let sound = (1..=MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic());
    let refuse = || Status::invalid_argument("a name has 1 to 253 printable ASCII characters without spaces");
    if sound { Ok(name) } else { Err(refuse()) }
}

/// Those that are well described, by name; a scheduler of another version may know more roles.
fn peers(seen: wire::Peers) -> Vec<SeenPeer> {
    let mut unique = BTreeMap::new();
    for peer in seen.peers.into_iter().take(MAX_PEERS) {
        let role = match peer.role() {
            wire::Role::Node => PeerRole::Node,
            wire::Role::Seed => PeerRole::Seed,
            wire::Role::Unspecified => continue,
        };
        if let Ok(name) = name(peer.name) {
            unique.insert(name.clone(), SeenPeer { name, role, address: peer.address });
        }
    }
    unique.into_values().collect()
}

fn internal(error: &dyn std::error::Error) -> Status {
    tracing::error!("the database failed: {error}");
    Status::internal("the manager's database failed; its log says how")
}

fn millis(span: Duration) -> u32 {
    u32::try_from(span.as_millis()).unwrap_or(u32::MAX)
}
