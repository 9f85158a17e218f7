use std::process::ExitCode;

fn main() -> ExitCode {
    d7y_peer::DAEMON.main_with_reloads(|config, tasks, reloads| async move {
        d7y_peer::start(config, tasks.clone()).await?.follow(&tasks, reloads);
        Ok(())
    })
}
