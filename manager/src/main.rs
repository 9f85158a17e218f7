use std::process::ExitCode;

fn main() -> ExitCode {
    d7y_manager::DAEMON.main(|config, tasks| async move {
        let running = d7y_manager::start(config, &tasks).await?;
        if let Some(password) = running.first_password {
            println!(
                "The first user is root, with the password {}. It is shown only this once.",
                password.expose()
            );
        }
        Ok(())
    })
}
