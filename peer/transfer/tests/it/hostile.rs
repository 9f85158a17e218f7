use std::net::Ipv4Addr;
use std::time::Duration;

use d7y_transfer::{Client, ClientError, Lane, OpenStream, ServerLimits, WireError};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use crate::fake::{Fake, Fetching, PACK, PATIENCE, reference, start, within};
use crate::raw::{self, BIND, FRAME, GET, HELLO, HOLDING, MISSING, OPEN};

const SHORT: Duration = Duration::from_millis(100);

#[tokio::test]
async fn clients_that_break_the_rules_are_cut_off() {
    let layer = serde_json::to_vec(&reference()).unwrap();
    let bind = raw::message(BIND, 0, [0, 0], &raw::pack(PACK));
    let open = raw::message(OPEN, 0, [0, 0], &layer);
    let cases: &[(&str, Vec<u8>)] = &[
        ("noise", b"GET / HTTP/1.1\r\nHost: peer\r\n\r\n".to_vec()),
        ("kind 0", raw::header(0, 0, [0, 0, 0])),
        ("kind 255", raw::header(255, 0, [0, 0, 0])),
        ("lane 3", raw::header(GET, 3, [0, 0, 0])),
        ("a payload of 4 GiB", raw::header(GET, 0, [0, 0, u32::MAX])),
        ("a payload over the limit of requests", raw::header(GET, 0, [0, 0, (16 << 10) + 1])),
        ("a second hello", raw::hello()),
        ("a server's frame", raw::message(FRAME, 0, [0, 0], b"data")),
        ("an open that is not JSON", raw::message(OPEN, 0, [0, 0], b"{")),
        ("an open of nothing", raw::message(OPEN, 0, [0, 0], b"")),
        ("a short digest", raw::message(BIND, 0, [0, 0], &[7; 31])),
        ("a get without a bind", raw::get(0, [1])),
        ("half a number", [bind.clone(), raw::message(GET, 0, [0, 0], &[1, 0, 0])].concat()),
        ("a layer bound twice", [bind.clone(), bind.clone()].concat()),
        ("an open after a bind", [bind.clone(), open.clone()].concat()),
        ("two opens", [open.clone(), open.clone()].concat()),
        ("a bind after an open", [open.clone(), bind.clone()].concat()),
    ];
    let fake = Fake::new(3);
    let server = start(&fake, ServerLimits::default()).await;
    for (what, bytes) in cases {
        let mut socket = raw::greeted(server.address).await;
        socket.write_all(bytes).await.unwrap();
        let cut = tokio::time::timeout(PATIENCE, raw::drain(&mut socket)).await;
        assert!(cut.is_ok(), "{what} was borne");
    }
    Fetching::connect(server.address).await;
}

#[tokio::test]
async fn a_connection_begins_with_a_hello() {
    let cases: &[(&str, Vec<u8>)] = &[
        ("silence", Vec::new()),
        ("half a header", vec![HELLO; 7]),
        ("half a payload", raw::header(HELLO, 0, [0, 1, 8])),
        ("noise", vec![0x16; 600]),
        ("a bind", raw::message(BIND, 0, [0, 0], &raw::pack(PACK))),
        ("a hello over the limit", raw::header(HELLO, 0, [0, 1, 1 << 20])),
    ];
    let fake = Fake::new(3);
    let server = start(&fake, ServerLimits { hello: SHORT, ..ServerLimits::default() }).await;
    for (what, bytes) in cases {
        let mut socket = raw::connect(server.address).await;
        socket.write_all(bytes).await.unwrap();
        assert_eq!(raw::drain(&mut socket).await, 0, "{what} was answered");
    }
}

#[tokio::test]
async fn a_client_of_another_version_is_told_this_one() {
    let fake = Fake::new(3);
    let server = start(&fake, ServerLimits::default()).await;
    let mut socket = raw::connect(server.address).await;
    socket.write_all(&raw::message(HELLO, 0, [0, 2], b"newer")).await.unwrap();
    let answer = raw::read(&mut socket).await;
    assert_eq!((answer.kind, answer.number), (HELLO, 1));
    assert_eq!(raw::drain(&mut socket).await, 0);
}

#[tokio::test]
async fn connections_over_the_limit_are_closed_and_room_comes_back() {
    let fake = Fake::new(3);
    let server = start(&fake, ServerLimits { connections: 1, ..ServerLimits::default() }).await;
    let first = raw::greeted(server.address).await;
    let mut second = raw::connect(server.address).await;
    assert_eq!(raw::drain(&mut second).await, 0);
    drop(first);
    within(async { while Client::connect(server.address, "node-1", SHORT).await.is_err() {} }).await;
}

/// Neither bits, nor news, nor frames pile up for a client that takes nothing, and it does not stay.
#[tokio::test]
async fn a_client_that_never_reads_costs_little_and_is_cut_off() {
    const BITS_BYTES: usize = 200 << 10;
    const BINDS: u32 = 1000;
    /// 1 MiB queued, twice the send buffer, a batch, the receive buffer, and one that waits for room.
    const MOST: usize = ((1 << 20) + (512 << 10) + (512 << 10) + (64 << 10)) / BITS_BYTES + 1;
    let fake = Fake::new(3);
    fake.held.lock().unwrap().insert(PACK, vec![0xff; BITS_BYTES]);
    let server = start(&fake, ServerLimits { stall: SHORT, ..ServerLimits::default() }).await;
    let mut socket = raw::greeted(server.address).await;
    for stream in 0..BINDS {
        socket.write_all(&raw::message(BIND, 0, [stream, 0], &raw::pack(PACK))).await.unwrap();
    }
    within(fake.asked_holdings.subscribe().wait_for(|n| *n > 0)).await.unwrap();
    within(fake.news.closed()).await;
    let asked = *fake.asked_holdings.borrow();
    assert!(asked <= MOST, "the bits of {asked} layers were fetched for nobody");
    raw::drain(&mut socket).await;
}

#[tokio::test]
async fn a_full_lane_stops_the_reading_of_requests() {
    let fake = Fake::new(3);
    let server = start(&fake, ServerLimits { stall: SHORT, ..ServerLimits::default() }).await;
    let mut socket = raw::greeted(server.address).await;
    socket.write_all(&raw::message(BIND, 0, [0, 0], &raw::pack(PACK))).await.unwrap();
    for _ in 0..50 {
        let _ = socket.write_all(&raw::get(2, vec![0; 1000])).await;
    }
    within(fake.asked_frames.subscribe().wait_for(|n| *n > 0)).await.unwrap();
    within(fake.news.closed()).await;
    let asked = *fake.asked_frames.borrow();
    assert!(asked < 5000, "{asked} frames were looked up for nobody");
}

/// A server that says what it is given to whoever connects.
async fn parent(script: Vec<u8>) -> std::net::SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let _ = socket.write_all(&script).await;
        raw::drain(&mut socket).await;
    });
    address
}

#[tokio::test]
async fn parents_that_break_the_rules_are_left() {
    let bits = |bytes: usize| raw::message(HOLDING, 0, [0, 0], &vec![1; bytes]);
    let cases: &[(&str, Vec<u8>)] = &[
        ("noise", b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
        ("a payload over the limit", raw::header(FRAME, 0, [0, 0, (1 << 20) + 4097])),
        ("an answer about another stream", raw::message(MISSING, 0, [1, 0], &[])),
        ("a frame that nobody asked for", raw::message(FRAME, 0, [0, 4], b"data")),
        ("a frame sent twice", raw::message(FRAME, 0, [0, 3], b"data").repeat(3)),
        ("a missing that nobody asked for", raw::message(MISSING, 0, [0, 4], &[])),
        ("half a number", raw::message(23, 0, [0, 0], &[0; 5])),
        ("more bits than any layer has", bits(1 << 20).repeat(2)),
        ("an index on a fetching connection", raw::message(17, 0, [0, 0], b"index")),
        ("a request", raw::message(BIND, 0, [0, 0], &raw::pack(PACK))),
    ];
    for (what, bytes) in cases {
        let address = parent([raw::hello(), bytes.clone()].concat()).await;
        let (client, connection) = Client::connect(address, "node-1", PATIENCE).await.unwrap();
        assert!(client.bind(PACK));
        // Asked twice, as when the first request is overdue.
        assert!(client.get(PACK, Lane::Demand, &[3]) && client.get(PACK, Lane::Demand, &[3]));
        let (events, mut received) = tokio::sync::mpsc::channel(16);
        let ended = within(connection.run(&events, |event| event)).await;
        assert!(matches!(ended, Err(WireError::Protocol(_))), "{what}: {ended:?}");
        received.close();
    }
}

#[tokio::test]
async fn openings_that_break_the_rules_are_left() {
    let part = raw::message(17, 0, [0, 0], &vec![0; 1 << 20]);
    let cases: &[(&str, Vec<u8>)] = &[
        ("noise", b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
        ("a staged chunk shorter than its record", raw::message(16, 0, [0, 0], &[0; 39])),
        ("an index over the limit", part.repeat(129)),
        ("a frame", raw::message(FRAME, 0, [0, 0], b"data")),
    ];
    for (what, bytes) in cases {
        let address = parent([raw::hello(), bytes.clone()].concat()).await;
        let mut stream = OpenStream::connect(address, "node-1", &reference(), PATIENCE).await.unwrap();
        let opened = stream.next(PATIENCE).await;
        assert!(matches!(opened, Err(ClientError::Wire(_, WireError::Protocol(_)))), "{what}: {opened:?}");
    }
}

#[tokio::test]
async fn greetings_that_fail_say_why() {
    let connect = |address| Client::connect(address, "node-1", PATIENCE);
    let newer = parent(raw::message(HELLO, 0, [0, 2], b"newer")).await;
    let error = connect(newer).await.unwrap_err();
    assert!(matches!(error, ClientError::Wire(_, WireError::Version(2))), "{error:?}");

    let silent = parent(Vec::new()).await;
    let error = Client::connect(silent, "node-1", SHORT).await.unwrap_err();
    assert!(matches!(error, ClientError::Timeout(_)), "{error:?}");

    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let nobody = listener.local_addr().unwrap();
    drop(listener);
    let error = connect(nobody).await.unwrap_err();
    assert!(matches!(error, ClientError::Connect(..)), "{error:?}");
}

#[tokio::test]
async fn an_opening_that_falls_silent_is_left() {
    let address = parent(raw::hello()).await;
    let mut stream = OpenStream::connect(address, "node-1", &reference(), PATIENCE).await.unwrap();
    let opened = stream.next(SHORT).await;
    assert!(matches!(opened, Err(ClientError::Timeout(_))), "{opened:?}");
}
