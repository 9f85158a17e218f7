use super::*;
use crate::testing::TestStore;

fn fetch_loop(store: &TestStore) -> FetchLoop {
    let context = FetchContext {
        peer_id: "test".into(),
        store: store.store.clone(),
        metrics: Arc::default(),
        news: Arc::default(),
        devices: true,
    };
    FetchLoop::new(context, mpsc::channel(1).0)
}

#[test]
fn what_settles_in_an_evicted_layer_is_not_in_the_one_opened_since() {
    let store = TestStore::new();
    let mut fetch_loop = fetch_loop(&store);
    let before = store.commit(1);
    let digest = before.digest();
    fetch_loop.apply(Command::AddLayer { layer: before.clone(), background: false });
    store.keep(&before, 0);
    store.keep(&before, 1);
    store.evict(&before);
    let after = store.commit(1);
    let (reply, mut answer) = oneshot::channel();
    fetch_loop.apply(Command::Ensure {
        layer: after.clone(),
        wanted: Wanted { chunks: vec![0], caller: None },
        reply,
    });

    let settled = |layer: &Arc<Layer>| Command::Settled {
        from: None,
        layer: layer.clone(),
        number: 0,
        outcome: Outcome::Kept,
    };
    fetch_loop.apply(settled(&before));
    assert!(!fetch_loop.planner.is_present(digest, 0));
    assert!(answer.try_recv().is_err(), "nobody reads a hole");
    store.keep(&after, 0);
    fetch_loop.apply(settled(&after));
    assert!(fetch_loop.planner.is_present(digest, 0));
    assert_eq!(answer.try_recv().unwrap().uncached.len(), 0);
}
