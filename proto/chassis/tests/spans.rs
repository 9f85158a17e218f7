//! Spans on their way to a collector that is there, that is dead, and that hangs.
#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use d7y_chassis::spans::{About, FLUSH, SpanCounts};
use d7y_chassis::testing::{Collector, to};
use d7y_chassis::{Daemon, DaemonName, Shutdown, Spans, Tasks, metrics};
use d7y_types::Ids;
use tokio::net::TcpListener;

const DAEMON: Daemon = Daemon {
    name: DaemonName::new("d7y-test"),
    about: "A test",
    version: "1",
    shorthands: &[],
    actions: &[],
};
/// Far above what any of these tests needs.
const PATIENCE: Duration = Duration::from_secs(60);

struct Started {
    spans: Spans,
    tasks: Tasks,
    registry: metrics::Registry,
}

fn start(address: SocketAddr) -> Started {
    let tasks = Tasks::new(Shutdown::default());
    let mut registry = metrics::registry(DAEMON.name, DAEMON.version);
    let counts = SpanCounts::register(&mut registry);
    let spans = Spans::start(&to(address), &DAEMON, "one", counts, &tasks).unwrap();
    Started { spans, tasks, registry }
}

impl Started {
    async fn finish(&self) {
        self.tasks.shutdown().begin("the test is over");
        tokio::time::timeout(PATIENCE, self.tasks.finish()).await.expect("flushes have deadlines").unwrap();
    }

    fn count(&self, name: &str) -> u64 {
        let text = self.registry.text().unwrap();
        let samples = text.lines().filter(|line| line.starts_with(name));
        samples.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    }

    fn write(&self, spans: u64) {
        for number in 0..spans {
            let span = self.spans.own_root();
            self.spans.end(span, || About::new("work").number("number", number));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_arrive_with_their_service_and_trace() {
    let collector = Collector::start().await.unwrap();
    let started = start(collector.address);
    let request = Ids::new(7).request();
    let root = started.spans.root(|| request).unwrap();
    let child = started.spans.child(Some(root.caller()));
    let failed = About::new("inner").error(Some("on fire"));
    started.spans.write(child.unwrap(), Duration::from_millis(5), || failed);
    started.spans.end(Some(root), || About::new("outer").text("key", "value").number("bytes", 3));
    // Without a stop too.
    let received = collector.wait_for(|spans| spans.len() >= 2).await.unwrap();
    let named = |name: &str| received.iter().find(|span| span.name == name).unwrap();
    let (outer, inner) = (named("outer"), named("inner"));
    assert!(
        received.iter().all(|span| (span.service.as_str(), span.instance.as_str()) == ("d7y-test", "one"))
    );
    let trace = format!("{:016x}{request}", 0);
    assert_eq!((&outer.trace, &inner.trace), (&trace, &trace), "the trace id ends with the request's");
    assert_eq!((outer.parent, inner.parent), (0, outer.id));
    assert_eq!((outer.error.as_deref(), inner.error.as_deref()), (None, Some("on fire")));
    assert_eq!((outer.attributes["key"].as_str(), outer.attributes["bytes"].as_str()), ("value", "3"));
    assert_eq!(inner.end_unix_nano - inner.start_unix_nano, 5_000_000);

    started.write(1000);
    started.finish().await;
    assert_eq!(collector.received().len(), 1002, "what was queued is sent at the end");
    assert_eq!((started.count("d7y_test_spans_sent"), started.count("d7y_test_spans_dropped")), (1002, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_collector_costs_the_spans_and_nothing_else() {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap();
    let started = start(free);
    started.write(100_000);
    started.finish().await;
    assert_eq!(started.count("d7y_test_spans_dropped"), 100_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_hangs_does_not_hold_the_stop_up() {
    // Its connections stay in the backlog.
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let started = start(silent.local_addr().unwrap());
    started.write(20_000);
    let began = Instant::now();
    started.finish().await;
    assert!(began.elapsed() >= FLUSH, "it was tried");
    assert_eq!(started.count("d7y_test_spans_dropped"), 20_000);
    assert_eq!(started.count("d7y_test_spans_sent"), 0);
}
