use bytes::Bytes;
use d7y_transfer::{Asker, FailureCode, OpenStream, Opened, Opening, Purpose, ServerLimits};

use crate::fake::{FRAME_BYTES, Fake, PATIENCE, Server, reference, start, within};

async fn open(server: &Server) -> OpenStream {
    OpenStream::connect(server.address, "node-1", &reference(), PATIENCE).await.unwrap()
}

fn staged(fake: &Fake, number: u32) -> Opening {
    Opening::Staged { number, record: [number as u8; 40], region: fake.region(number) }
}

#[tokio::test]
async fn an_opening_yields_chunks_in_order_and_then_the_index() {
    let fake = Fake::new(4);
    let openings = fake.will_open();
    let server = start(&fake, ServerLimits::default()).await;
    let mut stream = open(&server).await;
    for number in 0..4 {
        openings.send(staged(&fake, number)).await.unwrap();
        match stream.next(PATIENCE).await.unwrap() {
            Opened::Staged { number: n, record, frame } => {
                assert_eq!((n, record, frame.len()), (number, [number as u8; 40], FRAME_BYTES as usize));
                assert_eq!(frame[..4], number.to_le_bytes());
            }
            other => panic!("{other:?}"),
        }
    }
    // Three parts on the wire.
    let sealed: Bytes = (0..700_000_u32).map(|n| n as u8).collect();
    openings.send(Opening::Index(sealed.clone())).await.unwrap();
    match stream.next(PATIENCE).await.unwrap() {
        Opened::Index(index) => assert_eq!(index, sealed),
        other => panic!("{other:?}"),
    }
    let asker = Asker { peer_id: "node-1".into(), purpose: Purpose::Index };
    assert_eq!(fake.opened.borrow().clone(), Some((reference(), asker)));
    assert_eq!(&**stream.peer_id(), "seed-1");
}

#[tokio::test]
async fn the_index_overtakes_staged_chunks() {
    const STAGED: u32 = 600;
    let fake = Fake::new(8);
    let openings = fake.will_open();
    let server = start(&fake, ServerLimits::default()).await;
    let mut stream = open(&server).await;
    for number in 0..STAGED {
        let region = fake.region(number % 8);
        within(openings.send(Opening::Staged { number, record: [0; 40], region })).await.unwrap();
    }
    within(openings.send(Opening::Index(Bytes::from_static(b"index")))).await.unwrap();
    within(openings.closed()).await;
    let mut next = 0;
    loop {
        match stream.next(PATIENCE).await.unwrap() {
            Opened::Staged { number, .. } => {
                assert_eq!(number, next, "chunks stay in order");
                next += 1;
            }
            Opened::Index(index) => {
                assert_eq!(&index[..], b"index");
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(next < STAGED, "the index waited for all {STAGED} chunks");
}

#[tokio::test]
async fn a_staged_chunk_that_the_disk_lost_is_left_out() {
    let fake = Fake::new(2);
    let openings = fake.will_open();
    let server = start(&fake, ServerLimits::default()).await;
    let mut stream = open(&server).await;
    for number in [0, 2, 1] {
        openings.send(staged(&fake, number)).await.unwrap();
    }
    for expected in [0, 1] {
        match stream.next(PATIENCE).await.unwrap() {
            Opened::Staged { number, .. } => assert_eq!(number, expected),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn who_has_nothing_to_send_can_say_that_it_is_at_work_or_whom_it_follows() {
    let fake = Fake::new(1);
    let openings = fake.will_open();
    let server = start(&fake, ServerLimits::default()).await;
    let mut stream = open(&server).await;
    for _ in 0..2 {
        openings.send(Opening::Working).await.unwrap();
        let opened = stream.next(PATIENCE).await.unwrap();
        assert!(matches!(opened, Opened::Working), "{opened:?}");
    }
    let others = || vec!["one".to_owned(), "two\n\"".to_owned()];
    openings.send(Opening::Following(others())).await.unwrap();
    let opened = stream.next(PATIENCE).await.unwrap();
    assert!(matches!(&opened, Opened::Following(chain) if *chain == others()), "{opened:?}");
}

#[tokio::test]
async fn failures_arrive_with_their_code() {
    let codes = [
        FailureCode::Internal,
        FailureCode::Unauthorized,
        FailureCode::NotFound,
        FailureCode::Corrupt,
        FailureCode::Unavailable,
        FailureCode::Untrusted,
    ];
    let fake = Fake::new(1);
    let server = start(&fake, ServerLimits::default()).await;
    for code in codes {
        let openings = fake.will_open();
        openings.send(Opening::Failed { code, message: "no é".repeat(2000) }).await.unwrap();
        match open(&server).await.next(PATIENCE).await.unwrap() {
            Opened::Failed { code: told, message } => {
                assert_eq!(told, code);
                assert!(message.starts_with("no é") && message.len() < 5000);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn an_opening_that_ends_without_an_outcome_has_failed() {
    let fake = Fake::new(1);
    let server = start(&fake, ServerLimits::default()).await;
    drop(fake.will_open());
    let opened = open(&server).await.next(PATIENCE).await.unwrap();
    assert!(matches!(opened, Opened::Failed { code: FailureCode::Unavailable, .. }), "{opened:?}");
}

#[tokio::test]
async fn an_asker_that_leaves_ends_the_opening() {
    let fake = Fake::new(1);
    let openings = fake.will_open();
    let server = start(&fake, ServerLimits::default()).await;
    let stream = open(&server).await;
    within(fake.opened.subscribe().wait_for(Option::is_some)).await.unwrap();
    drop(stream);
    within(openings.closed()).await;
}
