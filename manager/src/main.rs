use std::process::ExitCode;

fn main() -> ExitCode {
    d7y_manager::main()
}
