//! `d7y-bench`: the demo and the benches. `cargo xtask demo` and `cargo xtask bench` prepare the
//! machine and start it.

use std::process::ExitCode;

use clap::Parser;
use d7y_bench::bench::{cold_start, idle, warm, warm_start};
use d7y_bench::rig::interrupt;
use d7y_bench::{chaos, demo};

#[derive(Parser, Debug)]
#[command(about = "Starts d7y clusters on this machine and measures them")]
enum Command {
    Demo(demo::Options),
    Chaos(chaos::Options),
    ColdStart(cold_start::Options),
    Idle(idle::Options),
    Warm(warm::Options),
    WarmStart(warm_start::Options),
}

fn main() -> ExitCode {
    let result = match Command::parse() {
        Command::Demo(options) => demo::run(&options),
        Command::Chaos(options) => chaos::run(&options),
        Command::ColdStart(options) => cold_start::run(&options),
        Command::Idle(options) => idle::run(&options),
        Command::Warm(options) => warm::run(&options),
        Command::WarmStart(options) => warm_start::run(&options),
    };
    interrupt::wait_if_interrupted();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
