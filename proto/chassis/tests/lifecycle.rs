//! Tasks, shutdown and the metrics server together, as a daemon uses them.
#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use d7y_chassis::{
    DaemonName, Health, HumanDuration, OnEnd, Shutdown, ShutdownConfig, TaskFailure, Tasks, metrics,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Far above what any of these tests needs.
const PATIENCE: Duration = Duration::from_secs(20);

fn tasks(drain_ms: u64, stop_ms: u64) -> Tasks {
    Tasks::new(Shutdown::new(ShutdownConfig {
        drain_timeout: HumanDuration::from_millis(drain_ms),
        stop_timeout: HumanDuration::from_millis(stop_ms),
    }))
}

async fn finish(tasks: &Tasks) -> Result<(), TaskFailure> {
    tokio::time::timeout(PATIENCE, tasks.finish()).await.expect("finish has deadlines of its own")
}

async fn fail() -> Result<(), std::io::Error> {
    Err(std::io::Error::other("disk on fire"))
}

#[tokio::test]
async fn the_end_of_a_fatal_task_stops_the_daemon_with_its_name() {
    let ended = tasks(1, 1000);
    ended.spawn("acceptor", OnEnd::Fatal, async { Ok::<_, Infallible>(()) });
    assert!(matches!(finish(&ended).await, Err(TaskFailure::Ended { name }) if name == "acceptor"));

    let failed = tasks(1, 1000);
    failed.spawn("store", OnEnd::Fatal, fail());
    let error = anyhow::Error::from(finish(&failed).await.unwrap_err());
    assert_eq!(format!("{error:#}"), "task store failed: disk on fire");

    let panicked = tasks(1, 1000);
    panicked.spawn("index", OnEnd::Fatal, async {
        assert!(std::hint::black_box(false), "on purpose");
        Ok::<_, Infallible>(())
    });
    assert!(matches!(finish(&panicked).await, Err(TaskFailure::Panicked { name }) if name == "index"));
}

#[tokio::test]
async fn expected_ends_do_not_stop_the_daemon() {
    let tasks = tasks(1, 1000);
    let (done, both_done) = tokio::sync::oneshot::channel();
    tasks.spawn("fails", OnEnd::Expected, fail());
    tasks.spawn("ends", OnEnd::Expected, async move {
        let _ = done.send(());
        Ok::<_, Infallible>(())
    });
    both_done.await.unwrap();
    assert!(!tasks.shutdown().has_begun());
    tasks.shutdown().begin("test");
    finish(&tasks).await.unwrap();
}

#[tokio::test]
async fn phases_come_in_order() {
    let tasks = tasks(10_000, 10_000);
    let shutdown = tasks.shutdown().clone();
    let guard = shutdown.drain_guard();
    let flushed = Arc::new(AtomicBool::new(false));
    let task_ended = Arc::new(AtomicBool::new(false));
    let (stopping, closing) = (shutdown.stopping(), shutdown.closing());
    tasks.spawn("worker", OnEnd::Fatal, {
        let (stopping, task_ended) = (stopping.clone(), task_ended.clone());
        async move {
            closing.cancelled().await;
            assert!(!stopping.is_cancelled(), "tasks are told to stop only after the drain");
            drop(guard);
            stopping.cancelled().await;
            task_ended.store(true, Ordering::SeqCst);
            Ok::<_, Infallible>(())
        }
    });
    tasks.on_flush("index", {
        let flushed = flushed.clone();
        async move {
            assert!(task_ended.load(Ordering::SeqCst), "flush comes after the tasks");
            flushed.store(true, Ordering::SeqCst);
            Ok(())
        }
    });
    shutdown.begin("first");
    shutdown.begin("second");
    finish(&tasks).await.unwrap();
    assert_eq!(shutdown.reason(), Some("first"));
    assert!(flushed.load(Ordering::SeqCst));
}

#[tokio::test]
async fn work_and_tasks_that_never_end_are_cut_off() {
    let tasks = tasks(10, 10);
    let _never_dropped = tasks.shutdown().drain_guard();
    tasks.spawn("stuck", OnEnd::Fatal, std::future::pending::<Result<(), Infallible>>());
    tasks.shutdown().begin("test");
    finish(&tasks).await.unwrap();
    assert_eq!(format!("{tasks:?}"), "Tasks([])");
}

async fn get(address: std::net::SocketAddr, request: &str) -> String {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    tokio::time::timeout(PATIENCE, exchange).await.unwrap()
}

#[tokio::test]
async fn metrics_and_health_answer_until_the_tasks_stop() {
    let tasks = tasks(10_000, 10_000);
    // An address of its own: the port, once free, is anybody's, and even the connecting socket's own.
    let listener = TcpListener::bind("127.0.0.77:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let registry = metrics::registry(DaemonName::new("d7y-test"), "1.2.3");
    let health = Health::new();
    let views = metrics::Views::default().with("/answers", || [42]);
    metrics::serve_views(&tasks, vec![listener], Arc::new(registry), health.clone(), views);
    let table = [
        ("GET /metrics", "200 OK", "d7y_test_build_info{version=\"1.2.3\"} 1"),
        ("GET /metrics", "200 OK", "# EOF"),
        ("GET /healthy", "200 OK", "ok"),
        ("GET /answers", "200 OK", "[42]"),
        ("POST /answers", "405 Method Not Allowed", ""),
        ("GET /", "404 Not Found", "/metrics, /healthy, /answers"),
        ("POST /metrics", "405 Method Not Allowed", ""),
    ];
    for (request, status, body) in table {
        let answer = get(address, &format!("{request} HTTP/1.1\r\nhost: x\r\n\r\n")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {answer}");
        assert!(answer.contains(body), "{request}: {answer}");
    }
    let healthy = "GET /healthy HTTP/1.1\r\nhost: x\r\n\r\n";
    health.fail("store", "disk full");
    assert!(get(address, healthy).await.contains("503 Service Unavailable"));
    assert!(get(address, healthy).await.ends_with("store: disk full\n"));
    health.recover("store");
    let guard = tasks.shutdown().drain_guard();
    tasks.shutdown().begin("test");
    let finishing = tokio::spawn({
        let tasks = tasks.clone();
        async move { tasks.finish().await }
    });
    assert!(get(address, healthy).await.ends_with("draining\n"), "served during the drain");
    drop(guard);
    tokio::time::timeout(PATIENCE, finishing).await.unwrap().unwrap().unwrap();
    // A child that a neighbouring test has forked holds the listener too, until its exec.
    let closed = async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, closed).await.expect("closed after the stop");
}

/// Not a test of its own: the process that `a_second_signal_ends_the_process_at_once` starts.
#[test]
fn draining_for_ever() {
    if std::env::var_os("D7Y_TEST_DRAIN").is_none() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let tasks = tasks(3_600_000, 3_600_000);
        let _in_flight = tasks.shutdown().drain_guard();
        let (signals, closing) = (tasks.shutdown().on_signals().unwrap(), tasks.shutdown().closing());
        tokio::spawn(signals);
        eprintln!("serving");
        closing.cancelled().await;
        eprintln!("draining");
        tasks.finish().await.unwrap();
    });
}

#[test]
fn a_second_signal_ends_the_process_at_once() {
    use std::io::{BufRead, BufReader};

    for (second, code) in [("TERM", 143), ("INT", 130)] {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["draining_for_ever", "--exact", "--nocapture"])
            .env("D7Y_TEST_DRAIN", "1")
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut after = |words: &str, name: &str| {
            assert!(lines.any(|line| line.unwrap() == words), "{words:?} was never said");
            let pid = child.id().to_string();
            let sent = std::process::Command::new("kill").args(["-s", name, &pid]).status().unwrap();
            assert!(sent.success());
        };
        after("serving", "TERM");
        after("draining", second);
        assert_eq!(child.wait().unwrap().code(), Some(code));
    }
}
