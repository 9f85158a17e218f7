//! `cargo xtask test`: every check and every test, one closing line.

use std::process::{Command, ExitCode};

use anyhow::{Result, bail};

use crate::setup::{self, Profile};
use crate::{fuzz, packages, run};

const CARGO_DENY: &str = "0.20.2";

/// Tests that need root have this word in their path (a module or a function name).
const PRIVILEGED: &str = "privileged";
/// Enough to see that seeds and mutations near them are borne; `cargo xtask fuzz` looks further.
const FUZZ_SECONDS: u32 = 2;

/// How much of the suite runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    All,
    Unprivileged,
}

impl Scope {
    pub fn parse(args: &[String]) -> Result<Self> {
        match args {
            [] => Ok(Self::All),
            [flag] if flag == "--unprivileged" => Ok(Self::Unprivileged),
            other => bail!("cargo xtask test takes --unprivileged or nothing, not {other:?}"),
        }
    }
}

/// Runs all steps, also after one has failed, and prints `N passed, N failed` as the last line.
///
/// # Errors
/// When the machine cannot be prepared: then nothing was tested.
pub fn run(scope: Scope) -> Result<ExitCode> {
    prepare(scope)?;
    let mut tally = Tally::default();
    tally.check("formatting", || run::to_end(run::cargo().args(["fmt", "--all", "--check"])));
    tally.check("formatting of the fuzz workspace", || {
        run::to_end(run::cargo().args(["fmt", "--check", "--manifest-path", fuzz::MANIFEST]))
    });
    tally.check("clippy", || run::to_end(&mut clippy()));
    match deny_binary() {
        Ok(()) => tally.check("cargo-deny: bans, licenses, sources", || run::to_end(&mut deny())),
        Err(error) => eprintln!("==> SKIPPED cargo-deny, it cannot be installed here: {error:#}"),
    }
    tally.check("build the daemons", || setup::build(Profile::Dev));
    tally.tests("unit and integration tests", &mut tests(scope, Part::Crates));
    tally.check("fuzz the parsers", || fuzz::run(&fuzz::Plan::short(FUZZ_SECONDS)).map(drop));
    tally.tests(end_to_end_title(scope), &mut tests(scope, Part::EndToEnd));
    tally.close()
}

fn end_to_end_title(scope: Scope) -> &'static str {
    match scope {
        Scope::All => "end-to-end tests",
        Scope::Unprivileged => "end-to-end tests, those that need root left out (skip: privileged)",
    }
}

fn prepare(scope: Scope) -> Result<()> {
    packages::ensure(packages::BUILD)?;
    if scope == Scope::Unprivileged {
        return Ok(());
    }
    if !run::is_root() {
        bail!(
            "the end-to-end tests make namespaces and mounts and need root; without root: cargo xtask test --unprivileged"
        );
    }
    packages::ensure(packages::RIG)?;
    setup::nerdctl();
    setup::containerd();
    Ok(())
}

fn clippy() -> Command {
    let mut clippy = run::cargo();
    clippy.args(["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"]);
    clippy
}

fn deny_binary() -> Result<()> {
    if setup::says_version(&run::tools_dir().join("bin/cargo-deny"), CARGO_DENY) {
        return Ok(());
    }
    eprintln!("This builds cargo-deny {CARGO_DENY} into {} (minutes, once).", run::tools_dir().display());
    run::step("cargo install cargo-deny", || {
        let mut install = run::cargo();
        // Unoptimised it is built in half the time, and a check takes two seconds.
        install.env("CARGO_PROFILE_DEV_DEBUG", "0");
        install.args([
            "install",
            "--debug",
            "--locked",
            "--quiet",
            "cargo-deny",
            "--version",
            CARGO_DENY,
            "--root",
        ]);
        run::to_end(install.arg(run::tools_dir()))
    })
}

fn deny() -> Command {
    let mut deny = Command::new(run::tools_dir().join("bin/cargo-deny"));
    deny.args(["--locked", "check", "bans", "licenses", "sources"]).current_dir(run::workspace());
    deny
}

enum Part {
    Crates,
    EndToEnd,
}

fn tests(scope: Scope, part: Part) -> Command {
    let mut command = run::cargo();
    command.args(["test", "--locked", "--no-fail-fast"]);
    match part {
        Part::Crates => command.args(["--workspace", "--exclude", "d7y-tests"]),
        Part::EndToEnd => command.args(["-p", "d7y-tests"]),
    };
    command.env("D7Y_TARGET_DIR", run::target_dir());
    if scope == Scope::Unprivileged {
        command.env("D7Y_TEST_UNPRIVILEGED", "1").args(["--", "--skip", PRIVILEGED]);
    }
    command
}

/// What passed and what failed so far: a check counts as one, a test run as its tests.
#[derive(Default)]
struct Tally {
    passed: u64,
    failed: u64,
    failures: Vec<String>,
}

impl Tally {
    fn check(&mut self, title: &str, work: impl FnOnce() -> Result<()>) {
        match run::step(title, work) {
            Ok(()) => self.passed += 1,
            Err(error) => self.fail(title, 1, &format!("{error:#}")),
        }
    }

    fn tests(&mut self, title: &str, command: &mut Command) {
        let mut counts = Counts::default();
        let ended = run::step(title, || run::to_end_with_lines(command, |line| counts.read(line)));
        self.passed += counts.passed;
        match ended {
            Ok(()) if counts.failed == 0 => {}
            Ok(()) => self.fail(title, counts.failed, "see above"),
            // A suite that did not compile or crashed has no line of its own.
            Err(error) => self.fail(title, counts.failed.max(1), &format!("{error:#}")),
        }
    }

    fn fail(&mut self, title: &str, count: u64, why: &str) {
        self.failed += count;
        self.failures.push(format!("{title}: {why}"));
    }

    fn close(self) -> Result<ExitCode> {
        for failure in &self.failures {
            eprintln!("FAILED {failure}");
        }
        println!("{} passed, {} failed", self.passed, self.failed);
        Ok(if self.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

#[derive(Default, Debug, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
}

impl Counts {
    /// Adds what a closing line of the test harness says; other lines say nothing.
    fn read(&mut self, line: &str) {
        let Some(rest) = line.strip_prefix("test result: ") else { return };
        let rest = rest.split_once(". ").map_or(rest, |(_, counts)| counts);
        for part in rest.split("; ") {
            match part.split_once(' ') {
                Some((n, "passed")) => self.passed += n.parse().unwrap_or(0),
                Some((n, "failed")) => self.failed += n.parse().unwrap_or(0),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn harness_lines_are_added_up() {
        let cases = [
            (
                "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.01s",
                12,
                0,
            ),
            (
                "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s",
                3,
                2,
            ),
            ("running 12 tests", 0, 0),
            ("test a::test result: ok", 0, 0),
            ("", 0, 0),
        ];
        let mut total = Counts::default();
        for (line, passed, failed) in cases {
            let mut one = Counts::default();
            one.read(line);
            assert_eq!(one, Counts { passed, failed }, "{line}");
            total.read(line);
        }
        assert_eq!(total, Counts { passed: 15, failed: 2 });
    }

    #[test]
    fn scope_takes_one_flag() {
        assert!(Scope::parse(&[]).is_ok_and(|scope| scope == Scope::All));
        assert!(Scope::parse(&["--unprivileged".into()]).is_ok_and(|scope| scope == Scope::Unprivileged));
        assert!(Scope::parse(&["--fast".into()]).is_err());
    }
}
