//! Long work says every now and then that it goes on, and how far it is.

use std::io::{IsTerminal, Write};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

/// Between two lines for somebody who watches, and in a log.
const ON_TERMINAL: Duration = Duration::from_secs(5);
const IN_A_LOG: Duration = Duration::from_secs(10);

/// Does the work. While it goes on, what `far` says is printed now and then, under its title.
pub fn while_at<T>(far: impl Fn() -> String + Send, work: impl FnOnce() -> T) -> T {
    let every = if std::io::stdout().is_terminal() { ON_TERMINAL } else { IN_A_LOG };
    // A closed standard output ends nothing.
    beat(every, move |after| drop(writeln!(std::io::stdout(), "    {} s: {}", after.as_secs(), far())), work)
}

/// The beats end with the work, also when that panics.
fn beat<T>(every: Duration, say: impl Fn(Duration) + Send, work: impl FnOnce() -> T) -> T {
    let (working, ended) = channel::<()>();
    thread::scope(|scope| {
        let start = Instant::now();
        scope.spawn(move || {
            while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(every) {
                say(start.elapsed());
            }
        });
        let done = work();
        drop(working);
        done
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    const SOON: Duration = Duration::from_secs(30);

    #[test]
    fn what_takes_long_says_so_until_it_has_ended() {
        let (said, heard) = channel();
        let said = Mutex::new(said);
        let done = beat(
            Duration::from_millis(1),
            |after| said.lock().unwrap().send(after).unwrap(),
            || [SOON; 2].map(|soon| heard.recv_timeout(soon).expect("a line")),
        );
        assert!(done[0] >= Duration::from_millis(1) && done[1] > done[0], "{done:?}");
        heard.try_iter().for_each(drop);
        thread::sleep(Duration::from_millis(20));
        assert!(heard.try_recv().is_err(), "nothing is said of work that has ended");
    }

    #[test]
    fn what_is_short_says_nothing() {
        assert_eq!(beat(Duration::from_secs(60), |_| panic!("nothing is to be said"), || 7), 7);
    }
}
