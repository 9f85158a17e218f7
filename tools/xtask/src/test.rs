//! `cargo xtask test`: every check and every test, one closing line.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use d7y_skip::{Extent, Skipped};

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

/// Runs all steps, also after one has failed, and prints `N passed, N failed, N skipped` as the last line, what was skipped
/// and why above it.
///
/// # Errors
/// When the machine cannot be prepared: then nothing was tested.
pub fn run(scope: Scope) -> Result<ExitCode> {
    prepare(scope)?;
    let skips = Skips::new();
    let mut tally = Tally::default();
    tally.check("formatting", || run::to_end(run::cargo().args(["fmt", "--all", "--check"])));
    tally.check("formatting of the fuzz workspace", || {
        run::to_end(run::cargo().args(["fmt", "--check", "--manifest-path", fuzz::MANIFEST]))
    });
    tally.check("clippy", || run::to_end(&mut clippy()));
    match deny_binary() {
        Ok(()) => tally.check("cargo-deny: bans, licenses, sources", || run::to_end(&mut deny())),
        Err(error) => tally.skip("cargo-deny: bans, licenses, sources", &format!("a cargo-deny: {error:#}")),
    }
    tally.check("build the daemons", || setup::build(Profile::Dev));
    tally.tests("unit and integration tests", &mut tests(scope, Part::Crates, &skips));
    tally.check("fuzz the parsers", || fuzz::run(&fuzz::Plan::short(FUZZ_SECONDS)).map(drop));
    tally.tests(end_to_end_title(scope), &mut tests(scope, Part::EndToEnd, &skips));
    match skips.told() {
        Ok(told) => tally.skipped_by_tests(told),
        Err(error) => tally.fail("what was skipped", 1, &format!("{error:#}")),
    }
    Ok(tally.close())
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

fn tests(scope: Scope, part: Part, skips: &Skips) -> Command {
    let mut command = run::cargo();
    command.args(["test", "--locked", "--no-fail-fast"]);
    match part {
        Part::Crates => command.args(["--workspace", "--exclude", "d7y-tests"]),
        Part::EndToEnd => command.args(["-p", "d7y-tests"]),
    };
    command.env("D7Y_TARGET_DIR", run::target_dir()).env(d7y_skip::FILE, &skips.0);
    if scope == Scope::Unprivileged {
        command.env("D7Y_TEST_UNPRIVILEGED", "1").args(["--", "--skip", PRIVILEGED]);
    }
    command
}

/// The file in which tests say that they were skipped: the harness has them as passed.
struct Skips(PathBuf);

impl Skips {
    /// Of this run alone.
    fn new() -> Self {
        let skips = Self(d7y_skip::file_in(&run::target_dir()));
        skips.remove();
        skips
    }

    fn told(&self) -> Result<BTreeSet<Skipped>> {
        d7y_skip::read(&self.0).with_context(|| format!("cannot read {}", self.0.display()))
    }

    fn remove(&self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Drop for Skips {
    fn drop(&mut self) {
        self.remove();
    }
}

/// What passed, failed and was skipped so far: a check counts as one, a test run as its tests.
#[derive(Default)]
struct Tally {
    passed: u64,
    failed: u64,
    skipped: u64,
    failures: Vec<String>,
    skips: Vec<String>,
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
        if counts.filtered > 0 {
            self.skipped += counts.filtered;
            self.skips.push(format!("SKIPPED for want of root: {} of the {title}", counts.filtered));
        }
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

    fn skip(&mut self, test: &str, want: &str) {
        self.skipped += 1;
        self.skips.push(format!("SKIPPED for want of {want}: {test}"));
    }

    /// Those that were skipped whole count as passed to the harness, those that failed after a part was skipped do not.
    fn skipped_by_tests(&mut self, told: BTreeSet<Skipped>) {
        let whole = told.iter().filter(|skipped| skipped.extent == Extent::Whole);
        let whole: BTreeSet<_> = whole.map(|skipped| &skipped.test).collect();
        let count = whole.len() as u64;
        self.passed = self.passed.saturating_sub(count);
        self.skipped += count;
        self.skips.extend(told.iter().map(ToString::to_string));
    }

    fn close(self) -> ExitCode {
        self.skips.iter().for_each(|skip| eprintln!("{skip}"));
        for failure in &self.failures {
            eprintln!("FAILED {failure}");
        }
        println!("{}", self.counts());
        if self.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    fn counts(&self) -> String {
        format!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

#[derive(Default, Debug, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    /// Left out by name.
    filtered: u64,
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
                Some((n, "filtered out")) => self.filtered += n.parse().unwrap_or(0),
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
                3,
            ),
            (
                "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s",
                3,
                2,
                0,
            ),
            ("running 12 tests", 0, 0, 0),
            ("test a::test result: ok", 0, 0, 0),
            ("", 0, 0, 0),
        ];
        let mut total = Counts::default();
        for (line, passed, failed, filtered) in cases {
            let mut one = Counts::default();
            one.read(line);
            assert_eq!(one, Counts { passed, failed, filtered }, "{line}");
            total.read(line);
        }
        assert_eq!(total, Counts { passed: 15, failed: 2, filtered: 3 });
    }

    #[test]
    fn what_was_skipped_has_not_passed() {
        let skipped =
            |extent, test: &str, want: &str| Skipped { extent, test: test.into(), want: want.into() };
        let mut tally = Tally { passed: 10, failed: 1, ..Tally::default() };
        tally.skip("cargo-deny", "cargo-deny");
        tally.skipped_by_tests(BTreeSet::from([
            skipped(Extent::Whole, "e2e a", "Go"),
            skipped(Extent::Whole, "e2e a", "root"),
            skipped(Extent::Whole, "cli b", "systemd"),
            skipped(Extent::Part, "cli c", "containerd 2"),
        ]));
        assert_eq!(tally.counts(), "8 passed, 1 failed, 3 skipped");
        assert_eq!(tally.skips.len(), 5, "{:?}", tally.skips);
        assert!(tally.skips.iter().any(|line| line.ends_with("containerd 2: a part of cli c")));
    }

    #[test]
    fn scope_takes_one_flag() {
        assert!(Scope::parse(&[]).is_ok_and(|scope| scope == Scope::All));
        assert!(Scope::parse(&["--unprivileged".into()]).is_ok_and(|scope| scope == Scope::Unprivileged));
        assert!(Scope::parse(&["--fast".into()]).is_err());
    }
}
