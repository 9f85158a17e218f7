use std::process::ExitCode;

use d7y_manager::{Config, DAEMON, RESET_ROOT_PASSWORD};

fn main() -> ExitCode {
    DAEMON
        .act(RESET_ROOT_PASSWORD, |config: Config| async move {
            let password = d7y_manager::reset_root_password(&config).await?;
            println!("The password of root is now {}. It is shown only this once.", password.expose());
            Ok(())
        })
        .unwrap_or_else(run)
}

fn run() -> ExitCode {
    DAEMON.main(|config, tasks| async move {
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
