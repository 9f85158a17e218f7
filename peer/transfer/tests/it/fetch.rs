use std::net::Ipv4Addr;
use std::sync::atomic::Ordering;

use d7y_transfer::{Event, Lane, ServerLimits, WireError};
use d7y_types::{Caller, PackId, RequestId, Sha256Digest, SpanId};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use crate::fake::{FRAME_BYTES, Fake, Fetching, PACK, UNKNOWN, start, within};
use crate::raw;

#[tokio::test]
async fn chunks_come_as_asked_and_what_is_not_here_is_missing() {
    let fake = Fake::new(3);
    let server = start(&fake, ServerLimits::default()).await;
    let mut fetching = Fetching::connect(server.address).await;
    assert_eq!(fetching.client.peer_id(), "seed-1");
    assert!(!fetching.client.get(PACK, Lane::Demand, &[0]), "not bound yet");
    assert!(fetching.client.bind(PACK));
    let event = fetching.event().await;
    assert!(matches!(&event, Event::Holding { pack: PACK, bits } if bits == &[0xff]), "{event:?}");

    // Chunk 3 is claimed, but the disk does not give it; nobody has chunk 9.
    assert!(fetching.client.get(PACK, Lane::Demand, &[2, 3, 9, 0, u32::MAX]));
    let mut told = Vec::new();
    for _ in 0..5 {
        match fetching.event().await {
            Event::Frame { pack: PACK, number, frame } => {
                assert_eq!((frame.len(), &frame[..4]), (FRAME_BYTES as usize, &number.to_le_bytes()[..]));
                told.push((number, true));
            }
            Event::Missing { pack: PACK, number } => told.push((number, false)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(told, [(2, true), (3, false), (9, false), (0, true), (u32::MAX, false)]);
    assert_eq!(fake.uploaded.load(Ordering::Relaxed), 2 * u64::from(FRAME_BYTES));
}

#[tokio::test]
async fn more_chunks_than_one_message_takes_are_asked_for_in_several() {
    let fake = Fake::new(8);
    let server = start(&fake, ServerLimits::default()).await;
    let mut fetching = Fetching::connect(server.address).await;
    fetching.client.bind(PACK);
    fetching.event().await;
    let chunks: Vec<u32> = (0..2500).map(|n| n + 100).collect();
    assert!(fetching.client.get(PACK, Lane::Background, &chunks));
    for expected in chunks {
        let event = fetching.event().await;
        assert!(matches!(event, Event::Missing { number, .. } if number == expected), "{event:?}");
    }
}

#[tokio::test]
async fn bits_of_a_huge_layer_come_whole() {
    let fake = Fake::new(8);
    let bits: Vec<u8> = (0..600_000_u32).map(|n| n as u8).collect();
    fake.held.lock().unwrap().insert(PACK, bits.clone());
    let server = start(&fake, ServerLimits::default()).await;
    let mut fetching = Fetching::connect(server.address).await;
    fetching.client.bind(PACK);
    match fetching.event().await {
        Event::Holding { pack: PACK, bits: told } => assert!(told == bits),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_layer_that_was_unbound_is_asked_about_anew() {
    let fake = Fake::new(3);
    let server = start(&fake, ServerLimits::default()).await;
    let mut fetching = Fetching::connect(server.address).await;
    for _ in 0..2 {
        assert!(fetching.client.bind(PACK));
        let event = fetching.event().await;
        assert!(matches!(&event, Event::Holding { pack: PACK, bits } if bits == &[0xff]), "{event:?}");
        fetching.client.unbind(PACK);
        assert!(!fetching.client.get(PACK, Lane::Demand, &[0]), "not bound any more");
    }
}

#[tokio::test]
async fn a_layer_that_was_unknown_can_be_bound_again() {
    let fake = Fake::new(8);
    let server = start(&fake, ServerLimits::default()).await;
    let mut fetching = Fetching::connect(server.address).await;
    for known in [false, false, true] {
        if known {
            fake.held.lock().unwrap().insert(UNKNOWN, vec![1]);
        }
        assert!(fetching.client.bind(UNKNOWN));
        assert!(fetching.client.bind(UNKNOWN), "asked already: nothing is sent");
        match fetching.event().await {
            Event::Holding { pack: UNKNOWN, bits } => assert_eq!(bits.is_empty(), !known),
            other => panic!("{other:?}"),
        }
    }
    assert!(fetching.client.bind(UNKNOWN));
    assert_eq!(*fake.asked_holdings.borrow(), 3, "a known layer is not asked about again");
}

#[tokio::test]
async fn a_client_refuses_more_layers_than_a_connection_may_have() {
    let fake = Fake::new(1);
    let server = start(&fake, ServerLimits::default()).await;
    let mut fetching = Fetching::connect(server.address).await;
    let pack = |n: u32| {
        let mut raw = [0; 32];
        raw[..4].copy_from_slice(&n.to_le_bytes());
        PackId { layer: Sha256Digest(raw), ..PACK }
    };
    for n in 0..4096 {
        assert!(fetching.client.bind(pack(n)));
        fetching.event().await;
    }
    assert!(!fetching.client.bind(pack(4096)));
    assert!(fetching.client.bind(pack(7)), "the others stay");
}

#[tokio::test]
async fn news_follow_what_was_held_and_a_laggard_is_told_everything() {
    let fake = Fake::new(64);
    let server = start(&fake, ServerLimits::default()).await;
    let mut fetching = Fetching::connect(server.address).await;
    fetching.client.bind(PACK);
    fetching.event().await;
    within(async {
        while fake.news.receiver_count() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    for number in 0..3 {
        fake.news.send(number).unwrap();
    }
    let event = fetching.event().await;
    assert!(matches!(&event, Event::Have { pack: PACK, numbers } if numbers == &[0, 1, 2]), "{event:?}");

    // More than the channel keeps, before the server's task can run.
    fake.held.lock().unwrap().insert(PACK, vec![0xaa; 8]);
    for number in 0..40 {
        fake.news.send(number).unwrap();
    }
    match fetching.event().await {
        Event::Holding { pack: PACK, bits } => assert_eq!(bits, [0xaa; 8]),
        other => panic!("{other:?}"),
    }
    fake.news.send(63).unwrap();
    let event = fetching.event().await;
    assert!(matches!(&event, Event::Have { numbers, .. } if numbers == &[63]), "{event:?}");
}

/// A client that hears of the arrival first, and then that the chunk is missing, never asks for it again.
#[tokio::test]
async fn what_arrives_while_it_is_asked_for_is_said_to_be_here_after_it_was_said_to_be_missing() {
    let fake = Fake::new(64);
    let server = start(&fake, ServerLimits::default()).await;
    for lane in [Lane::Background, Lane::Demand] {
        let mut fetching = Fetching::connect(server.address).await;
        fetching.client.bind(PACK);
        fetching.event().await;
        within(async {
            while fake.news.receiver_count() == 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        *fake.arrives.lock().unwrap() = Some(63);
        // Frames stand in the lane before the answer.
        let chunks: Vec<u32> = (0..64).collect();
        assert!(fetching.client.get(PACK, lane, &chunks));
        let mut told = Vec::new();
        for _ in 0..66 {
            match fetching.event().await {
                Event::Frame { .. } => {}
                Event::Have { numbers, .. } if numbers == [63] => told.push("here"),
                Event::Missing { number: 63, .. } => told.push("missing"),
                other => panic!("{other:?}"),
            }
            if told.ends_with(&["missing", "here"]) {
                break;
            }
        }
        assert!(told.ends_with(&["missing", "here"]), "{lane:?}: {told:?}");
    }
}

#[tokio::test]
async fn lanes_overtake_each_other_within_a_bound() {
    const PER_LANE: u32 = 150;
    /// Twice the send buffer (Linux counts its own overhead), a batch and its last frame, the receive buffer.
    const BOUND_BYTES: usize = (512 << 10) + (256 << 10) + (64 << 10) + (64 << 10);
    let fake = Fake::new(3 * PER_LANE);
    let server = start(&fake, ServerLimits::default()).await;
    let mut socket = raw::greeted(server.address).await;
    let bind = raw::message(raw::BIND, 0, [0, 0], &raw::pack(PACK));
    socket.write_all(&bind).await.unwrap();
    for _ in 0..2 {
        assert_eq!(raw::read(&mut socket).await.kind, raw::HOLDING);
    }
    let mut asked = fake.asked_frames.subscribe();
    for (lane, before) in [(2, 0), (1, 1), (0, 2)] {
        let first = u32::from(lane) * PER_LANE;
        socket.write_all(&raw::get(lane, first..first + PER_LANE)).await.unwrap();
        within(asked.wait_for(|n| *n == (before + 1) * PER_LANE as usize)).await.unwrap();
    }
    let mut bytes_before = 0;
    let mut lanes = Vec::new();
    for _ in 0..3 * PER_LANE {
        let answer = raw::read(&mut socket).await;
        assert_eq!((answer.kind, answer.payload.len()), (raw::FRAME, FRAME_BYTES as usize));
        let lane = answer.number / PER_LANE;
        if !lanes.contains(&0) && lane != 0 {
            bytes_before += 16 + answer.payload.len();
        }
        lanes.push(lane);
    }
    assert!(bytes_before <= BOUND_BYTES, "a demand waited for {bytes_before} bytes");
    let rest = &lanes[lanes.iter().position(|lane| *lane == 0).unwrap()..];
    assert!(rest.is_sorted(), "{rest:?}");
    let background = rest.iter().filter(|lane| **lane == 2).count() as u32;
    assert!(background > PER_LANE / 2, "the reader was not slow enough to show anything");
}

#[tokio::test]
async fn a_server_that_stops_cuts_its_clients() {
    let fake = Fake::new(3);
    let server = start(&fake, ServerLimits::default()).await;
    let fetching = Fetching::connect(server.address).await;
    server.drain().await;
    within(server.ended).await.unwrap();
    assert!(matches!(fetching.end().await, WireError::Io(_)));
}

#[tokio::test]
async fn the_last_client_closes_the_connection() {
    let fake = Fake::new(3);
    let server = start(&fake, ServerLimits::default()).await;
    let Fetching { client, events: _events, ended } = Fetching::connect(server.address).await;
    let clone = client.clone();
    drop(client);
    assert!(clone.bind(PACK));
    drop(clone);
    within(ended).await.unwrap().unwrap();
}

fn caller() -> Caller {
    Caller { request: RequestId::from_raw(0x1234).unwrap(), span: SpanId::from_raw(9) }
}

#[tokio::test]
async fn a_parent_is_told_for_whom_it_is_asked() {
    let fake = Fake::new(3);
    let server = start(&fake, ServerLimits::default()).await;
    let mut fetching = Fetching::connect(server.address).await;
    fetching.client.bind(PACK);
    fetching.event().await;
    assert!(fetching.client.get(PACK, Lane::Demand, &[1]));
    // Chunk 3 is claimed, but the disk does not give it; nobody has chunk 9.
    for asked in [&[0, 3, 2, 9][..], &[9]] {
        assert!(fetching.client.get_for(Some(caller()), PACK, Lane::Demand, asked));
    }
    for _ in 0..6 {
        fetching.event().await;
    }
    within(async {
        while fake.served.lock().unwrap().len() < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let mut served = fake.served.lock().unwrap().clone();
    served.sort_by_key(|served| served.chunks);
    let told: Vec<_> = served.iter().map(|served| (served.chunks, served.missing, served.bytes)).collect();
    assert_eq!(told, [(1, 1, 0), (4, 2, 2 * u64::from(FRAME_BYTES))]);
    assert!(served.iter().all(|served| served.caller == caller() && &*served.asker == "node-1"));
}

/// A server of before GetFor: it cuts off whoever sends what it does not know.
#[tokio::test]
async fn a_parent_that_does_not_know_requests_is_asked_as_ever() {
    for understands in [0, 1] {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let connecting = tokio::spawn(Fetching::connect(address));
        let (mut socket, _) = within(listener.accept()).await.unwrap();
        let hello = raw::read(&mut socket).await;
        assert_eq!((hello.kind, hello.number), (raw::HELLO, 1), "the version stays");
        socket.write_all(&raw::message(raw::HELLO, 0, [understands, 1], b"old")).await.unwrap();
        let fetching = within(connecting).await.unwrap();
        fetching.client.bind(PACK);
        assert_eq!(raw::read(&mut socket).await.kind, raw::BIND);
        assert!(fetching.client.get_for(Some(caller()), PACK, Lane::Demand, &[5]));
        let asked = raw::read(&mut socket).await;
        let numbers = 5_u32.to_le_bytes();
        let expected = match understands {
            0 => (raw::GET, numbers.to_vec()),
            _ => (raw::GET_FOR, [&0x1234_u64.to_le_bytes()[..], &9_u64.to_le_bytes(), &numbers].concat()),
        };
        assert_eq!((asked.kind, asked.payload), expected);
    }
}
