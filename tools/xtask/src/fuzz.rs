//! `cargo xtask fuzz`: every parser of foreign bytes against libFuzzer, built by the ordinary compiler.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::{packages, run};

pub const MANIFEST: &str = "tests/fuzz/Cargo.toml";
/// As `tests/fuzz` names them.
const TARGETS: [&str; 10] = [
    "tar",
    "bootstrap",
    "index",
    "chunk",
    "transfer",
    "local",
    "challenge",
    "docker-config",
    "image-document",
    "image-name",
];
const SECONDS: u32 = 60;
/// Longer inputs find little more and are slower.
const MAX_INPUT_BYTES: u32 = 32 << 10;
/// One input that takes longer is a finding.
const TIMEOUT_SECONDS: u32 = 20;
/// What cargo-fuzz passes, without the sanitizers, which need another compiler: d7y's parsers have no unsafe code.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing";

/// What to fuzz, and for how long.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    /// Per target.
    seconds: u32,
    targets: Vec<&'static str>,
}

impl Plan {
    /// Every target for so many seconds.
    pub fn short(seconds: u32) -> Self {
        Self { seconds, targets: TARGETS.to_vec() }
    }

    /// From `[--seconds N] [TARGET...]`.
    ///
    /// # Errors
    /// Another flag, a target that there is not, or no number.
    pub fn parse(args: &[String]) -> Result<Self> {
        let mut plan = Self { seconds: SECONDS, targets: Vec::new() };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            if arg == "--seconds" {
                let seconds = args.next().context("--seconds needs a number")?;
                plan.seconds = seconds.parse().with_context(|| format!("--seconds {seconds}"))?;
                continue;
            }
            let known = TARGETS.iter().find(|target| *target == arg);
            let Some(target) = known else { bail!("no target {arg:?}; there are {}", TARGETS.join(", ")) };
            plan.targets.push(target);
        }
        if plan.targets.is_empty() {
            plan.targets = TARGETS.to_vec();
        }
        Ok(plan)
    }
}

/// Runs all targets, also after one has failed.
///
/// # Errors
/// When the machine cannot be prepared, or a target found something.
pub fn run(plan: &Plan) -> Result<ExitCode> {
    packages::ensure(packages::BUILD)?;
    run::step("build the fuzz targets", || run::to_end(&mut build()?))?;
    let mut found = Vec::new();
    for target in &plan.targets {
        let title = format!("fuzz {target}, {} s", plan.seconds);
        if run::step(&title, || fuzz(target, plan.seconds)).is_err() {
            found.push(*target);
        }
    }
    match found.is_empty() {
        true => Ok(ExitCode::SUCCESS),
        false => bail!("{} failed; the inputs are in {}", found.join(", "), places("found").display()),
    }
}

/// With a target named, flags do not reach build scripts. Its lock file follows the dependencies of the crates that it
/// fuzzes, which change without it.
fn build() -> Result<Command> {
    let mut build = run::cargo();
    build.args(["build", "--manifest-path", MANIFEST, "--target", &host()?, "--target-dir"]);
    build.arg(places("target")).env("RUSTFLAGS", COVERAGE).env_remove("CARGO_ENCODED_RUSTFLAGS");
    Ok(build)
}

/// Shows what the fuzzer says when it found something, otherwise how much it tried.
fn fuzz(target: &str, seconds: u32) -> Result<()> {
    let output = command(target, seconds)?.output().context("cannot start the fuzz target")?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        eprintln!("{said}");
        bail!("the fuzz target {target} ended with {}", output.status);
    }
    let tried = said.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    eprintln!("{} inputs", tried.unwrap_or("unknown").trim());
    Ok(())
}

fn command(target: &str, seconds: u32) -> Result<Command> {
    let (corpus, found) = (places("corpus").join(target), places("found"));
    for directory in [&corpus, &found] {
        std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    let binary = places("target").join(host()?).join("debug").join(target);
    let mut fuzz = Command::new(binary);
    fuzz.args([
        format!("-max_total_time={seconds}"),
        format!("-max_len={MAX_INPUT_BYTES}"),
        format!("-timeout={TIMEOUT_SECONDS}"),
        format!("-artifact_prefix={}/{target}-", found.display()),
        "-print_final_stats=1".to_owned(),
        "-verbosity=0".to_owned(),
    ]);
    fuzz.arg(corpus);
    Ok(fuzz)
}

fn places(name: &str) -> PathBuf {
    run::target_dir().join("fuzz").join(name)
}

fn host() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("-vV").output().context("cannot ask rustc for its host")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc does not say what its host is")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_are_read_from_the_command_line() {
        let plan = |args: &[&str]| Plan::parse(&args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>());
        assert_eq!(plan(&[]).unwrap(), Plan::short(SECONDS));
        assert_eq!(plan(&["--seconds", "5"]).unwrap(), Plan::short(5));
        let two = Plan { seconds: 7, targets: vec!["tar", "local"] };
        assert_eq!(plan(&["tar", "--seconds", "7", "local"]).unwrap(), two);
        for wrong in [&["--seconds"][..], &["--seconds", "x"], &["ta"], &["--fast"]] {
            assert!(plan(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_targets_are_those_of_the_fuzz_workspace() {
        let manifest = std::fs::read_to_string(run::workspace().join(MANIFEST)).unwrap();
        let names: Vec<_> =
            manifest.split("[[bin]]").skip(1).filter_map(|bin| bin.split('"').nth(1)).collect();
        assert_eq!(names, TARGETS);
    }
}
