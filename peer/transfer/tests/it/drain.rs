//! The end of a server: what is under way comes whole.

use std::sync::Arc;

use bytes::Bytes;
use d7y_transfer::{OpenStream, Opened, Opening, ServerLimits};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::fake::{FRAME_BYTES, Fake, PACK, PATIENCE, Server, reference, start, within};
use crate::raw::{self, BIND, FRAME, HOLDING};

/// Far more than the buffers between a server and a client that does not read.
const PER_LANE: u32 = 16;

/// A client that has asked for [`PER_LANE`] chunks in each lane and has taken none.
async fn slow(fake: &Arc<Fake>, server: &Server) -> TcpStream {
    let mut socket = raw::greeted(server.address).await;
    socket.write_all(&raw::message(BIND, 0, [0, 0], &raw::pack(PACK))).await.unwrap();
    for lane in [2, 1, 0] {
        socket.write_all(&raw::get(lane, 0..PER_LANE)).await.unwrap();
    }
    within(fake.asked_frames.subscribe().wait_for(|n| *n == 3 * PER_LANE as usize)).await.unwrap();
    socket
}

/// Takes everything up to the end of the connection, which must lie between two answers; returns how many frames came.
async fn frames(socket: &mut TcpStream) -> u32 {
    let mut frames = 0;
    loop {
        match within(socket.peek(&mut [0])).await {
            Ok(0) => return frames,
            more => assert_eq!(more.unwrap(), 1),
        }
        let answer = raw::read(socket).await;
        match answer.kind {
            FRAME => assert_eq!(answer.payload.len(), FRAME_BYTES as usize),
            other => assert_eq!(other, HOLDING),
        }
        frames += u32::from(answer.kind == FRAME);
    }
}

#[tokio::test]
async fn what_a_client_waits_for_holds_the_end_up_and_nobody_is_let_in_any_more() {
    let fake = Fake::new(PER_LANE);
    let server = start(&fake, ServerLimits::default()).await;
    let (mut idle, mut socket) = (raw::greeted(server.address).await, slow(&fake, &server).await);
    server.closing.cancel();
    let refused = within(async {
        while TcpStream::connect(server.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    });
    refused.await;
    assert!(server.under_way.strong_count() > 0, "most of it is still here");
    let ((), came) = tokio::join!(server.drain(), frames(&mut socket));
    assert_eq!(came, 3 * PER_LANE);
    assert_eq!(within(idle.read(&mut [0])).await.unwrap(), 0);
    drop((idle, socket));
    within(server.ended).await.unwrap();
}

#[tokio::test]
async fn who_is_connected_is_served_until_the_last() {
    let fake = Fake::new(PER_LANE);
    let server = start(&fake, ServerLimits::default()).await;
    let (mut other, mut socket) = (raw::greeted(server.address).await, slow(&fake, &server).await);
    server.closing.cancel();
    other.write_all(&raw::message(BIND, 0, [0, 0], &raw::pack(PACK))).await.unwrap();
    other.write_all(&raw::get(0, [3])).await.unwrap();
    let kinds = [raw::read(&mut other).await, raw::read(&mut other).await, raw::read(&mut other).await];
    assert_eq!(kinds.map(|answer| answer.kind), [HOLDING, HOLDING, FRAME]);
    assert!(server.under_way.strong_count() > 0);
    drop(other);
    let ((), came) = tokio::join!(server.drain(), frames(&mut socket));
    assert_eq!(came, 3 * PER_LANE);
}

/// A question that nobody reads any more must not take back what is written: the kernel would, if it were closed on.
#[tokio::test]
async fn what_is_written_at_the_end_comes_whole() {
    let fake = Fake::new(PER_LANE);
    let server = start(&fake, ServerLimits::default()).await;
    let mut socket = slow(&fake, &server).await;
    server.closing.cancel();
    server.stop.cancel();
    for _ in 0..8 {
        tokio::task::yield_now().await;
        socket.write_all(&raw::get(0, [1])).await.unwrap();
    }
    let came = frames(&mut socket).await;
    assert!(came >= 3 * PER_LANE, "{came} frames");
    drop(socket);
    within(server.ended).await.unwrap();
}

#[tokio::test]
async fn a_client_that_takes_nothing_does_not_hold_the_end_up_for_ever() {
    let fake = Fake::new(PER_LANE);
    let server = start(&fake, ServerLimits::default()).await;
    let _socket = slow(&fake, &server).await;
    server.closing.cancel();
    server.stop.cancel();
    within(server.ended).await.unwrap();
}

#[tokio::test]
async fn a_layer_that_is_being_opened_is_under_way_until_its_index_is() {
    let fake = Fake::new(4);
    let openings = fake.will_open();
    let server = start(&fake, ServerLimits::default()).await;
    let mut stream = OpenStream::connect(server.address, "node-1", &reference(), PATIENCE).await.unwrap();
    within(fake.opened.subscribe().wait_for(Option::is_some)).await.unwrap();
    server.closing.cancel();
    let index = async {
        assert!(server.under_way.strong_count() > 0);
        openings.send(Opening::Index(Bytes::from_static(b"index"))).await.unwrap();
        let opened = stream.next(PATIENCE).await.unwrap();
        assert!(matches!(&opened, Opened::Index(index) if **index == *b"index"), "{opened:?}");
    };
    tokio::join!(index, server.drain());
}
