//! One command line for developers of d7y and for people who try it: `cargo xtask COMMAND`.
//!
//! Built from std and anyhow alone, because it has to run before anything else is installed.

mod fuzz;
mod packages;
mod run;
mod setup;
mod test;

use std::process::ExitCode;

use anyhow::{Result, bail};

const USAGE: &str = "\
cargo xtask COMMAND

  demo [OPTIONS]             start an ordinary image lazily on two nodes of a local cluster (root)
      --rate MBIT            each node's link, default 200
      --seed-rate MBIT       the seed peer's link, default 1000
      --image REF            a local OCI layout DIR:TAG, or a reference that skopeo can read
      --client nerdctl|api   what drives containerd, default nerdctl where it could be built
      --keep                 leave everything running until Ctrl-C
  test [--unprivileged]      every check and test; --unprivileged leaves out those that need root
  fuzz [TARGET...]           feed mutated input to the parsers of tests/fuzz
      --seconds N            for so long each, default 60
  bench NAME ...             measure: cold-start, warm, warm-start or idle, each with --help (root)
  chaos [OPTIONS]            kill -9 each process at random moments while containers read and preheats run (root)
      --kills N              of each process, default 20
      --seed S               repeat an earlier run's order and times
      --process NAME         this one alone
  setup                      install what the others need (root), and nothing else
";

fn main() -> ExitCode {
    match dispatch(std::env::args().skip(1).collect()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(args: Vec<String>) -> Result<ExitCode> {
    let Some((command, rest)) = args.split_first() else {
        eprint!("{USAGE}");
        return Ok(ExitCode::FAILURE);
    };
    match command.as_str() {
        "demo" | "bench" | "chaos" => setup::then_bench(command, rest),
        "fuzz" => fuzz::run(&fuzz::Plan::parse(rest)?),
        "test" => test::run(test::Scope::parse(rest)?),
        "setup" => setup::everything().map(|()| ExitCode::SUCCESS),
        "help" | "--help" | "-h" => {
            print!("{USAGE}");
            Ok(ExitCode::SUCCESS)
        }
        other => bail!("no command {other:?}\n\n{USAGE}"),
    }
}
