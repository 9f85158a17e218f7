//! `d7y preheat`: images on the disks of a cluster's peers before anybody starts them.
//!
//! The manager does the work; this asks for it, follows it, and says how it ended. Killing this command ends nothing.

mod follow;

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::login::Login;
use crate::manager::{self, Api, host_and_port};

const TOKEN: &str = "D7Y_TOKEN";
/// The manager gives a job no more.
const MAX_TIMEOUT: Duration = Duration::from_secs(7 * 24 * 3600);

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Images by name, with tag or digest
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
    /// Platform of the images, such as linux/arm64; the manager's own without it
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<String>,
    /// Whose disks: single-seed, all-seeds, all-peers, or a share of the nodes such as 25%
    #[arg(long, default_value = "single-seed")]
    scope: String,
    /// Wait until every image is where it should be; with --wait=false only start, and print the jobs' numbers
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    wait: bool,
    /// Give an image up after this long, at most a week; exit code 3 when only time was missing
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = timeout)]
    timeout: Duration,
    /// Name of the cluster; all clusters that have a scheduler without it
    #[arg(long)]
    cluster: Vec<String>,
    /// The manager's REST address; without it that of `d7y login`, else 127.0.0.1:8080
    #[arg(long, value_name = "HOST:PORT", env = "D7Y_MANAGER")]
    manager: Option<String>,
    /// File with a personal access token; D7Y_TOKEN holds the token itself; without both that of `d7y login`
    #[arg(long, value_name = "PATH")]
    token_file: Option<PathBuf>,
    /// User at the registry, for private images; with --password-stdin
    #[arg(long, value_name = "NAME", requires = "password_stdin")]
    username: Option<String>,
    /// Read the registry's password from standard input
    #[arg(long, requires = "username")]
    password_stdin: bool,
}

/// An image and the job that brings it.
struct Job {
    image: String,
    id: i64,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let api = api(args)?;
    let login = login(args)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut jobs = Vec::new();
        for image in &args.images {
            let made = api.post("/api/v1/jobs", &request(args, image, login.as_deref())).await;
            let made = made.with_context(|| format!("{image} cannot be preheated"))?;
            let id = made["id"].as_i64().context("the manager's answer has no job number")?;
            jobs.push(Job { image: image.clone(), id });
        }
        if !args.wait {
            jobs.iter().for_each(|job| println!("{}\t{}", job.id, job.image));
            return Ok(ExitCode::SUCCESS);
        }
        follow::to_the_end(&api, &jobs, args.timeout).await
    })
}

fn timeout(text: &str) -> Result<Duration, String> {
    let timeout = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match timeout.is_zero() || timeout > MAX_TIMEOUT {
        true => Err("it is more than 0s and at most 7days".to_owned()),
        false => Ok(timeout),
    }
}

fn request(args: &Args, image: &str, password: Option<&str>) -> Value {
    json!({
        "type": "preheat",
        "args": {
            "type": "image",
            "url": image,
            "platform": args.platform,
            "scope": args.scope,
            "timeout": u64::try_from(args.timeout.as_nanos()).unwrap_or(u64::MAX),
            "username": args.username,
            "password": password,
        },
        "clusters": args.cluster,
    })
}

/// What is said here comes before what `d7y login` kept, whose token goes to its own manager only.
fn api(args: &Args) -> Result<Api> {
    let said = match &args.token_file {
        Some(path) => {
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?
        }
        None => std::env::var(TOKEN).unwrap_or_default(),
    };
    let said = said.trim();
    let named = args.manager.as_deref().map(host_and_port);
    let kept = match said.is_empty() || named.is_none() {
        true => Login::load()?,
        false => None,
    };
    let manager = named.or(kept.as_ref().map(|kept| kept.manager.as_str())).unwrap_or(manager::DEFAULT);
    let kept = kept.as_ref().filter(|kept| kept.manager == manager).map(|kept| kept.token.as_str());
    match (said.is_empty(), kept) {
        (false, _) => Ok(Api::with_token(manager, said)),
        (true, Some(kept)) => Ok(Api::with_token(manager, kept)),
        (true, None) => {
            bail!("a personal access token is needed: d7y login {manager}, or --token-file, or {TOKEN}")
        }
    }
}

fn login(args: &Args) -> Result<Option<String>> {
    if !args.password_stdin {
        return Ok(None);
    }
    let mut password = String::new();
    std::io::stdin().read_to_string(&mut password).context("cannot read the password")?;
    let password = password.trim_end_matches(['\r', '\n']).to_owned();
    if password.is_empty() {
        bail!("the password on standard input is empty");
    }
    Ok(Some(password))
}
