//! A daemon as a process, and what it says.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Far above what any of these tests needs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A started daemon; killed with the test.
pub struct Running {
    child: Child,
    lines: Receiver<String>,
    /// What it has said so far.
    pub said: Vec<String>,
}

impl Running {
    pub fn start(command: Command) -> Self {
        let mut running = Self::spawn(command);
        running.wait_for("is ready");
        running
    }

    fn spawn(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let (say, lines) = channel();
        std::thread::spawn(move || log.lines().map_while(Result::ok).try_for_each(|line| say.send(line)));
        Self { child, lines, said: Vec::new() }
    }

    /// The line with these words, from now on.
    pub fn wait_for(&mut self, words: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                panic!("it never said {words:?}: {:#?}", self.said);
            };
            self.said.push(line.clone());
            if line.contains(words) {
                return line;
            }
        }
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// Its exit code, once it has ended by itself and said everything.
    pub fn code(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        while let Ok(line) = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            self.said.push(line);
        }
        assert!(Instant::now() < deadline, "it does not end: {:#?}", self.said);
        self.child.wait().unwrap().code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The daemon ends by itself with `code`, and its only complaint is its last line, with all of `parts`.
pub fn check_refusal(command: Command, code: i32, parts: &[&str]) {
    let mut running = Running::spawn(command);
    let (found, said) = (running.code(), running.said.join("\n"));
    assert_eq!(found, Some(code), "wanted {parts:?}: {said}");
    // That it lacks a capability here is another matter.
    let complains = |line: &&String| !line.contains(" INFO ") && !line.contains(" WARN ");
    let complaints: Vec<_> = running.said.iter().filter(complains).collect();
    let [complaint] = complaints.as_slice() else { panic!("one line was wanted: {said}") };
    assert_eq!(running.said.last(), Some(*complaint), "{said}");
    for part in parts {
        assert!(complaint.contains(part), "{part:?} is not in {complaint:?}");
    }
}
