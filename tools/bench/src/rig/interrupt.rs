//! Ctrl-C, SIGTERM and SIGHUP: end every lab of this process, then exit. A third one exits at once:
//! two come easily, and what stays behind stays until the next lab opens.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Once, Weak};

use tokio::signal::unix::{SignalKind, signal};

use super::lab::Inner;

/// By convention 128 + SIGINT.
const EXIT_CODE: i32 = 130;

static LABS: Mutex<Vec<Weak<Inner>>> = Mutex::new(Vec::new());
static INTERRUPTED: AtomicBool = AtomicBool::new(false);
static LISTENER: Once = Once::new();

/// Has the lab ended when a signal comes.
pub(super) fn watch(lab: Weak<Inner>) {
    LISTENER.call_once(|| {
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(listen)
            .expect("one more thread can be started");
    });
    let mut labs = LABS.lock().expect("no holder of this lock panics");
    labs.retain(|lab| lab.strong_count() > 0);
    labs.push(lab);
}

/// Waits until the process is told to end; the labs are ended elsewhere.
pub fn wait_forever() -> ! {
    loop {
        std::thread::park();
    }
}

/// Does not return once a signal came: errors that follow from the end of the labs are no news.
pub fn wait_if_interrupted() {
    if INTERRUPTED.load(Ordering::SeqCst) {
        wait_forever();
    }
}

fn listen() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime for signals needs no more than a few descriptors");
    runtime.block_on(next_signal());
    INTERRUPTED.store(true, Ordering::SeqCst);
    let closing = std::thread::spawn(close_all);
    eprintln!("\ninterrupted: cleaning up");
    runtime.block_on(async {
        let impatient = async {
            next_signal().await;
            eprintln!("still cleaning up; once more leaves mounts, processes and files behind");
            next_signal().await;
        };
        tokio::select! {
            () = impatient => {}
            () = async { while !closing.is_finished() { tokio::time::sleep(super::daemon::LOOK_AGAIN).await } } => {}
        }
    });
    std::process::exit(EXIT_CODE);
}

async fn next_signal() {
    let listen_to = |kind| signal(kind).expect("these signals can be handled");
    let mut interrupt = listen_to(SignalKind::interrupt());
    let mut terminate = listen_to(SignalKind::terminate());
    let mut hangup = listen_to(SignalKind::hangup());
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
}

fn close_all() {
    let labs: Vec<_> =
        LABS.lock().expect("no holder of this lock panics").iter().filter_map(Weak::upgrade).collect();
    for lab in labs {
        lab.close();
    }
}
