use std::time::Duration;

use d7y_proto::manager::manager_client::ManagerClient;
use d7y_proto::manager::member_message::Message;
use d7y_proto::manager::{
    Beat, ManagerMessage, MemberMessage, Peer, Peers, Register, Welcome, manager_message,
};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::backoff::{Backoff, chain, connect};
use crate::config::ManagerConfig;

/// Messages that wait for the stream; one is said at a time.
const OUTBOUND_QUEUE: usize = 4;
/// Until the manager has said how often.
const FIRST_INTERVAL: Duration = Duration::from_secs(5);
/// How soon the manager hears that peers came or went.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A scheduler or seed peer.
pub struct Member<C> {
    pub register: Register,
    /// Whom it has sessions with.
    pub crowd: C,
}

/// The peers of a scheduler; `()` for members that have none.
pub trait Crowd: Send {
    /// All of them, unless nobody came or went since the last call with the same stream. The first call of a stream has
    /// `fresh` set.
    fn peers(&mut self, fresh: bool) -> Option<Vec<Peer>>;
}

impl Crowd for () {
    fn peers(&mut self, _fresh: bool) -> Option<Vec<Peer>> {
        None
    }
}

/// Keeps the member alive with the manager for as long as it runs.
pub async fn keep_alive<C: Crowd>(config: ManagerConfig, mut member: Member<C>) {
    let mut backoff = Backoff::new();
    let mut reported = false;
    loop {
        let began = Instant::now();
        let ended = stream(&config, &mut member).await;
        let why = ended.err().unwrap_or_else(|| "it closed the stream".to_owned());
        // Once for each way of failing that lasts: the log of a night without a manager is one line.
        if !reported || began.elapsed() > FIRST_INTERVAL {
            tracing::warn!(manager = config.address, "not with the manager, going on without it: {why}");
            reported = true;
        }
        if began.elapsed() > FIRST_INTERVAL {
            backoff.reset();
        }
        tokio::time::sleep(backoff.next()).await;
    }
}

async fn stream<C: Crowd>(config: &ManagerConfig, member: &mut Member<C>) -> Result<(), String> {
    let mut client = ManagerClient::new(connect(&config.address).await?);
    let (say, said) = mpsc::channel(OUTBOUND_QUEUE);
    let tell = async |message| {
        let told = say.send(MemberMessage { message: Some(message) }).await;
        told.map_err(|_| "the stream broke".to_owned())
    };
    tell(Message::Register(member.register.clone())).await?;
    let heard = client.keep_alive(ReceiverStream::new(said)).await.map_err(|status| chain(&status))?;
    let mut heard = heard.into_inner();
    let interval = welcome(&mut heard).await?;
    tracing::info!(manager = config.address, "with the manager");
    let mut look = tokio::time::interval(interval.min(LOOK_EVERY));
    let (mut fresh, mut last_word) = (true, Instant::now());
    loop {
        tokio::select! {
            message = heard.message() => match message.map_err(|status| chain(&status))? {
                Some(_) => {}
                None => return Ok(()),
            },
            _ = look.tick() => {
                let peers = member.crowd.peers(std::mem::take(&mut fresh));
                match peers {
                    Some(peers) => tell(Message::Peers(Peers { peers })).await?,
                    None if last_word.elapsed() >= interval => tell(Message::Beat(Beat {})).await?,
                    None => continue,
                }
                last_word = Instant::now();
            }
        }
    }
}

async fn welcome(heard: &mut Streaming<ManagerMessage>) -> Result<Duration, String> {
    match heard.message().await.map_err(|status| chain(&status))? {
        Some(ManagerMessage {
            message: Some(manager_message::Message::Welcome(Welcome { interval_ms })),
        }) => Ok(Duration::from_millis(u64::from(interval_ms.max(10)))),
        Some(_) => Ok(FIRST_INTERVAL),
        None => Err("it closed the stream at once".to_owned()),
    }
}
