use std::process::ExitCode;

use d7y_scheduler::Config;

fn main() -> ExitCode {
    d7y_scheduler::DAEMON.main_with_reloads(|config, tasks, reloads| async move {
        d7y_scheduler::run(Config::clone(&config), &tasks).await?;
        d7y_scheduler::follow(&config, &tasks, reloads)
    })
}
