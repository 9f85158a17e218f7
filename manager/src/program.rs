//! What the program runs. Here rather than in `main.rs`, where all that is generic would be compiled once more.

use std::process::ExitCode;

use crate::{Config, DAEMON, RESET_ROOT_PASSWORD, reset_root_password, start};

pub fn main() -> ExitCode {
    DAEMON
        .act(RESET_ROOT_PASSWORD, |config: Config| async move {
            let password = reset_root_password(&config).await?;
            println!("The password of root is now {}. It is shown only this once.", password.expose());
            Ok(())
        })
        .unwrap_or_else(run)
}

fn run() -> ExitCode {
    DAEMON.main(|config, tasks| async move {
        let running = start(config, &tasks).await?;
        if let Some(password) = running.first_password {
            println!(
                "The first user is root, with the password {}. It is shown only this once.",
                password.expose()
            );
        }
        Ok(())
    })
}
