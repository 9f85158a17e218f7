//! One read as one trace, over all peers that take part in it.

use d7y_chassis::testing::{Collector, Received};
use d7y_origin::testing::FakeRegistry;
use d7y_peer::{Config, Role};
use d7y_types::{ByteRange, Caller, RequestId, SpanId};

use crate::SOON;
use crate::layer::TestLayer;
use crate::rig::Cluster;

fn named<'a>(spans: &'a [Received], name: &str) -> Option<&'a Received> {
    spans.iter().find(|span| span.name == name)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missed_read_is_one_trace_over_node_and_parent() {
    let collector = Collector::start().await.unwrap();
    let registry = FakeRegistry::start().await;
    let layer = TestLayer::random(10, 50_000);
    let reference = layer.push(&registry);
    let cluster = Cluster::new();
    let traced = |config: &mut Config| config.tracing = collector.config();
    let as_seed = |config: &mut Config| {
        config.role = Role::Seed;
        traced(config);
    };
    let seed = cluster.start_with("seed", &[], as_seed).await;
    cluster.start("one", Role::Node, &[&seed]).await.assert_reads(&reference, &layer).await;
    let lazy = |config: &mut Config| {
        config.fetch.background = false;
        traced(config);
    };
    let two = cluster.start_with("two", &[&seed], lazy).await;
    two.client.open_layer(&reference, SOON).await.unwrap();
    let request = RequestId::from_raw(0x0123_4567_89ab_cdef).unwrap();
    let ask = async |offset, caller| {
        let range = ByteRange::new(offset, 4096);
        two.client.bring(reference.digest, range, Some(caller), SOON).await.unwrap()
    };
    // Of a request that its snapshotter does not trace nothing is traced elsewhere.
    ask(0, Caller::new(RequestId::from_raw(1).unwrap())).await;
    // Far from the first, so that no read-ahead has brought it.
    let caller = Caller { request, span: SpanId::from_raw(77) };
    ask(400_000, caller).await;

    let both = |spans: &[Received]| {
        named(spans, "fetch a range").is_some() && named(spans, "serve chunks").is_some()
    };
    let received = collector.wait_for(both).await.unwrap();
    assert!(received.iter().all(|span| span.trace == format!("{:016x}{request}", 0)), "{received:?}");
    assert!(received.iter().all(|span| span.service == "d7y-peer"));
    let (fetch, serve) =
        (named(&received, "fetch a range").unwrap(), named(&received, "serve chunks").unwrap());
    assert_eq!((fetch.instance.as_str(), fetch.parent), ("two", 77));
    assert_eq!((serve.instance.as_str(), serve.parent), ("seed", fetch.id));
    assert_eq!(serve.attributes["d7y.asker"], "two");
    assert!(fetch.attributes["d7y.parent"] == seed.running.transfer.to_string(), "{fetch:?}");
}
