//! Whether containerd is there, new enough, told about d7y, and has listened.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use containerd_client::Client;
use containerd_client::services::v1::PluginsRequest;
use containerd_client::services::v1::introspection_client::IntrospectionClient;
use d7y_snapshotter::Config;

use super::Args;
use super::check::Check;
use crate::containerd::{Document, NAME as PLUGIN, Stanza, Version};

const CONFIG: &str = "containerd.config";
const RUNNING: &str = "containerd.running";
const INSTALL: &str = "d7y containerd config --write && systemctl restart containerd";

pub async fn check(args: &Args, config: &Config) -> Vec<Check> {
    let mut checks = Vec::new();
    match Version::of(&args.containerd)
        .and_then(|version| Ok((version, Stanza::new(version, &config.socket, &config.root_directory)?)))
    {
        Ok((version, stanza)) => {
            checks.push(Check::ok(
                "containerd.version",
                format!("{} says {version}", args.containerd.display()),
            ));
            checks.push(configured(args, &stanza).unwrap_or_else(|error| {
                Check::failed(
                    CONFIG,
                    format!("{error:#}"),
                    format!("edit {}", args.containerd_config.display()),
                )
            }));
        }
        Err(error) => checks.push(Check::failed(
            "containerd.version",
            format!("{error:#}"),
            "apt-get install containerd",
        )),
    }
    match &config.containerd.socket {
        Some(socket) => checks.push(running(socket).await),
        None => checks.push(Check::warning(
            RUNNING,
            "the snapshotter is not told where containerd is: only images of clients that send cri.* labels are lazy",
            "set containerd.socket in the snapshotter's configuration",
        )),
    }
    checks
}

/// What holds after defaults and imports must have nothing to add.
fn configured(args: &Args, stanza: &Stanza) -> Result<Check> {
    let path = args.containerd_config.display();
    let mut effective = dump(args)?;
    stanza.apply(&mut effective)?;
    if let [first, rest @ ..] = effective.changes() {
        let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
        return Ok(Check::failed(
            CONFIG,
            format!("{path} should say {} = {}{more}", first.key, first.new),
            INSTALL,
        ));
    }
    if stanza.disables_cri(&effective) {
        let detail = format!("{path} disables the CRI plugin: Kubernetes cannot use this node");
        return Ok(Check::warning(CONFIG, detail, format!("remove cri from disabled_plugins in {path}")));
    }
    if let Some(directory) = stanza.image_fs_directory(&effective).filter(|directory| !directory.is_dir()) {
        let detail = format!("{} is missing: the kubelet sees no room for images", directory.display());
        return Ok(Check::warning(CONFIG, detail, format!("mkdir -p {}", directory.display())));
    }
    Ok(Check::ok(CONFIG, format!("{path} leads to d7y")))
}

fn dump(args: &Args) -> Result<Document> {
    let shown = args.containerd.display();
    let mut command = Command::new(&args.containerd);
    let output = command
        .arg("--config")
        .arg(&args.containerd_config)
        .args(["config", "dump"])
        .output()
        .with_context(|| format!("cannot run {shown}"))?;
    if !output.status.success() {
        bail!("{shown} config dump failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Document::parse(&String::from_utf8_lossy(&output.stdout))
        .context("containerd config dump printed no TOML")
}

/// The configuration is read at the start: a running containerd may know nothing of it yet.
async fn running(socket: &Path) -> Check {
    let shown = socket.display();
    match plugin_state(socket).await {
        Ok(PluginState::Loaded) => {
            Check::ok(RUNNING, format!("containerd at {shown} has loaded the plugin {PLUGIN}"))
        }
        Ok(PluginState::Broken(why)) => Check::failed(
            RUNNING,
            format!("containerd's plugin {PLUGIN} failed: {why}"),
            "systemctl restart containerd",
        ),
        Ok(PluginState::Missing) => Check::failed(
            RUNNING,
            format!("containerd at {shown} runs without the plugin {PLUGIN}"),
            "systemctl restart containerd",
        ),
        Err(error) => Check::failed(
            RUNNING,
            format!("no containerd answers at {shown}: {error:#}"),
            "systemctl start containerd",
        ),
    }
}

enum PluginState {
    Loaded,
    Missing,
    Broken(String),
}

async fn plugin_state(socket: &Path) -> Result<PluginState> {
    let asked = async {
        let client = Client::from_path(socket).await?;
        let filters = vec![format!("id=={PLUGIN}")];
        let answer = IntrospectionClient::new(client.channel()).plugins(PluginsRequest { filters }).await?;
        anyhow::Ok(answer.into_inner().plugins)
    };
    let plugins = tokio::time::timeout(super::network::PATIENCE, asked).await.context("no answer")??;
    let found = plugins.into_iter().find(|plugin| plugin.id == PLUGIN);
    Ok(match found {
        None => PluginState::Missing,
        Some(plugin) => match plugin.init_err {
            Some(error) => PluginState::Broken(error.message),
            None => PluginState::Loaded,
        },
    })
}
