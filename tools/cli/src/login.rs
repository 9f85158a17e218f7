//! `d7y login`: a personal access token of the manager, kept for the commands that need one.
//!
//! The password is asked for, sent once and forgotten. What stays is a token that is good for some days and for preheats
//! only, in a file that nobody else may read.

use std::fs;
use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::manager::{self, Api};

const TOKENS: &str = "/api/v1/personal-access-tokens";

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The manager's REST address
    #[arg(value_name = "HOST:PORT", env = "D7Y_MANAGER", default_value = manager::DEFAULT)]
    manager: String,
    /// Who logs in
    #[arg(long, value_name = "NAME", default_value = "root")]
    username: String,
    /// Read the password from standard input instead of asking for it
    #[arg(long)]
    password_stdin: bool,
    /// What the token is good for; may be given many times
    #[arg(long, value_name = "RESOURCE", default_value = "jobs")]
    scope: Vec<String>,
    /// How long the token is good
    #[arg(long, value_name = "DURATION", default_value = "90d", value_parser = humantime::parse_duration)]
    expires: Duration,
}

/// What `d7y login` keeps.
#[derive(Serialize, Deserialize)]
pub struct Login {
    /// host:port; the token goes nowhere else.
    pub manager: String,
    pub token: String,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let path = file().context("no home directory: set HOME or XDG_CONFIG_HOME")?;
    let password = password(args)?;
    let api = Api::with_password(&args.manager, &args.username, &password);
    let until = humantime::format_rfc3339_seconds(SystemTime::now() + args.expires).to_string();
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = format!("d7y login {}", host.trim());
    let name: String = name.trim_end().chars().take(64).collect();
    let wanted = json!({ "name": name, "scopes": args.scope, "expired_at": until });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let made = runtime.block_on(api.post(TOKENS, &wanted)).context("the login failed")?;
    let token = made["token"].as_str().context("the manager's answer has no token")?.to_owned();
    let manager = manager::host_and_port(&args.manager).to_owned();
    let kept = Login { manager, token };
    kept.save(&path).with_context(|| format!("cannot write {}", path.display()))?;
    eprintln!(
        "d7y: {} is logged in to {} until {until}; the token is in {}",
        args.username,
        kept.manager,
        path.display()
    );
    Ok(ExitCode::SUCCESS)
}

impl Login {
    /// What was kept, if somebody has logged in.
    pub fn load() -> Result<Option<Self>> {
        let Some(path) = file() else { return Ok(None) };
        let shown = path.display();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {shown}")),
        };
        let mode = fs::metadata(&path)?.permissions().mode();
        if mode & 0o077 != 0 {
            bail!("{shown} can be read by others: d7y login again, and take the old token back");
        }
        let kept = serde_json::from_str(&text);
        kept.map(Some).map_err(|_| anyhow::anyhow!("{shown} is damaged: d7y login again"))
    }

    /// In one step, so that nobody sees a part of it, and never readable by others.
    fn save(&self, path: &Path) -> Result<()> {
        let directory = path.parent().context("no directory")?;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let partial = path.with_extension(format!("{}.partial", std::process::id()));
        let _ = fs::remove_file(&partial);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial)?;
        file.write_all(serde_json::to_string(self)?.as_bytes())?;
        file.sync_all()?;
        Ok(fs::rename(&partial, path)?)
    }
}

fn file() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let config = set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")))?;
    Some(config.join("d7y").join("login.json"))
}

fn password(args: &Args) -> Result<String> {
    let mut text = String::new();
    if args.password_stdin {
        io::stdin().read_to_string(&mut text).context("cannot read the password")?;
    } else if io::stdin().is_terminal() {
        eprint!("Password of {} at {}: ", args.username, args.manager);
        let echo = without_echo()?;
        let read = io::stdin().lock().read_line(&mut text);
        drop(echo);
        eprintln!();
        read.context("cannot read the password")?;
    } else {
        bail!("nobody can be asked for the password here: use --password-stdin");
    }
    let password = text.trim_end_matches(['\r', '\n']).to_owned();
    if password.is_empty() {
        bail!("the password is empty");
    }
    Ok(password)
}

/// Until it is dropped.
struct Echo(rustix::termios::Termios);

fn without_echo() -> Result<Echo> {
    let before = tcgetattr(io::stdin())?;
    let mut quiet = before.clone();
    quiet.local_modes.remove(LocalModes::ECHO);
    tcsetattr(io::stdin(), OptionalActions::Flush, &quiet)?;
    Ok(Echo(before))
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &self.0);
    }
}
