//! Reads, Prepares and starts at an OpenTelemetry collector.

use d7y_chassis::testing::{Collector, Received};

use super::{Setting, check_files};
use crate::node::blocking;

#[tokio::test(flavor = "multi_thread")]
async fn reads_and_starts_arrive_at_the_collector() {
    let collector = Collector::start().await.unwrap();
    let endpoint: &'static str = format!("tracing.otlp.endpoint={}", collector.config().otlp.endpoint).leak();
    let setting = Setting::new("erofs", vec![endpoint].leak()).await;
    let root = setting.run("c1").await;
    blocking(move || check_files(&root)).await;

    // What the peer was told is what its own spans and logs go by.
    let asked = setting.peer.callers.lock().clone();
    assert!(!asked.is_empty());
    let arrived = |spans: &[Received]| {
        let read = |request: u64, id: u64| {
            let trace = format!("{request:032x}");
            spans.iter().any(|span| (span.name.as_str(), span.id) == ("read", id) && span.trace == trace)
        };
        asked.iter().all(|(request, id)| read(*request, *id)) && spans.iter().any(|span| span.name == "start")
    };
    let spans = collector.wait_for(arrived).await.expect("reads and a start");
    assert!(spans.iter().all(|span| span.service == "d7y-snapshotter"));
    let prepared = |span: &&Received| span.name == "Prepare" && span.error.is_none();
    assert!(spans.iter().filter(prepared).count() >= setting.layers.len(), "{spans:?}");
    let start = spans.iter().find(|span| span.name == "start").unwrap();
    assert!(start.attributes["d7y.container"].ends_with("c1"), "{start:?}");
    let mount = |span: &&Received| span.name == "mount" && span.parent == start.id;
    let mounts: Vec<_> = spans.iter().filter(mount).collect();
    assert!(!mounts.is_empty() && mounts.iter().all(|mount| mount.trace == start.trace), "{spans:?}");
}
