use std::process::ExitCode;

fn main() -> ExitCode {
    d7y_scheduler::main()
}
