use std::process::ExitCode;

fn main() -> ExitCode {
    d7y_scheduler::DAEMON.main(|config, tasks| async move {
        d7y_scheduler::run(config, &tasks).await?;
        Ok(())
    })
}
