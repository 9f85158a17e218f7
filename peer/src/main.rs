use std::process::ExitCode;

fn main() -> ExitCode {
    d7y_peer::DAEMON.main(|config, tasks| async { d7y_peer::start(config, tasks).await.map(drop) })
}
