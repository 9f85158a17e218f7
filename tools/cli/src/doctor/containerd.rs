//! Whether containerd is there, new enough, told about d7y, and has listened.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::Args;
use super::check::{Check, Mend};
use super::machine::{Machine, PluginState};
use super::settings::Settings;
use crate::containerd::{self, Document, NAME as PLUGIN, Stanza, Version};

const VERSION: &str = "containerd.version";
const CONFIG: &str = "containerd.config";
const RUNNING: &str = "containerd.running";

pub async fn check(args: &Args, settings: &Settings, machine: &impl Machine) -> Vec<Check> {
    let mut checks = versioned(args, settings);
    match &settings.snapshotter.containerd.socket {
        Some(socket) => checks.push(running(socket, machine.plugin(socket).await)),
        None => checks.push(Check::warning(
            RUNNING,
            "the snapshotter is not told where containerd is: only images of clients that send cri.* labels are lazy",
            settings.set_snapshotter("containerd.socket: /run/containerd/containerd.sock"),
        )),
    }
    checks
}

/// The program, and what it makes of its configuration.
fn versioned(args: &Args, settings: &Settings) -> Vec<Check> {
    let version = match Version::of(&args.containerd) {
        Ok(version) => version,
        Err(error) => {
            let mend = Mend::run("apt-get install containerd");
            return vec![Check::failed(VERSION, format!("{error:#}"), mend)];
        }
    };
    let config = &settings.snapshotter;
    let stanza = match Stanza::new(version, &config.socket, &config.root_directory) {
        Ok(stanza) => stanza,
        Err(error) => {
            let mend = Mend::run("apt-get install --only-upgrade containerd && systemctl restart containerd");
            return vec![Check::failed(VERSION, format!("{error:#}"), mend)];
        }
    };
    let found = Check::ok(VERSION, format!("{} says {version}", args.containerd.display()));
    let configured = configured(args, settings, &stanza).unwrap_or_else(|error| {
        let (path, program) = (args.containerd_config.display(), args.containerd.display());
        let mend = Mend::run(format!("sudoedit {path} && {program} --config {path} config dump"));
        Check::failed(CONFIG, format!("{error:#}"), mend)
    });
    vec![found, configured]
}

/// What holds after defaults and imports must have nothing to add.
fn configured(args: &Args, settings: &Settings, stanza: &Stanza) -> Result<Check> {
    let path = args.containerd_config.display();
    let mut effective = dump(args)?;
    stanza.apply(&mut effective)?;
    if let [first, rest @ ..] = effective.changes() {
        let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
        let detail = format!("{path} should say {} = {}{more}", first.key, first.new);
        return Ok(Check::failed(CONFIG, detail, install(args, settings)));
    }
    let names = stanza.without_cri(&effective);
    if let Some(others) = names {
        let detail = format!("{path} disables the CRI plugin: Kubernetes cannot use this node");
        let line = format!("disabled_plugins = {others:?}");
        let mend = Mend::set(line, &args.containerd_config, "systemctl restart containerd");
        return Ok(Check::warning(CONFIG, detail, mend));
    }
    if let Some(directory) = stanza.image_fs_directory(&effective).filter(|directory| !directory.is_dir()) {
        let detail = format!("{} is missing: the kubelet sees no room for images", directory.display());
        return Ok(Check::warning(CONFIG, detail, Mend::run(format!("mkdir -p {}", directory.display()))));
    }
    Ok(Check::ok(CONFIG, format!("{path} leads to d7y")))
}

/// Says whatever is not as `d7y containerd config` has it by default: the stanza must name this snapshotter.
fn install(args: &Args, settings: &Settings) -> Mend {
    let config = &settings.snapshotter;
    let flags = [
        ("--config", args.containerd_config.as_path(), containerd::DEFAULT_CONFIG),
        ("--containerd", &args.containerd, containerd::DEFAULT_PROGRAM),
        ("--socket", &config.socket, containerd::DEFAULT_SOCKET),
        ("--root", &config.root_directory, containerd::DEFAULT_ROOT),
    ];
    let mut command = "d7y containerd config --write".to_owned();
    for (flag, value, _) in flags.into_iter().filter(|(_, value, default)| *value != Path::new(default)) {
        command.push_str(&format!(" {flag} {}", value.display()));
    }
    Mend::run(command + " && systemctl restart containerd")
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
fn running(socket: &Path, plugin: Result<PluginState>) -> Check {
    let shown = socket.display();
    match plugin {
        Ok(PluginState::Loaded) => {
            Check::ok(RUNNING, format!("containerd at {shown} has loaded the plugin {PLUGIN}"))
        }
        Ok(PluginState::Broken(why)) => Check::failed(
            RUNNING,
            format!("containerd's plugin {PLUGIN} failed: {why}"),
            Mend::run("systemctl restart d7y-snapshotter containerd"),
        ),
        Ok(PluginState::Missing) => Check::failed(
            RUNNING,
            format!("containerd at {shown} runs without the plugin {PLUGIN}"),
            Mend::run("systemctl restart containerd"),
        ),
        Err(error) => Check::failed(
            RUNNING,
            format!("no containerd answers at {shown}: {error:#}"),
            Mend::run("systemctl start containerd || journalctl -u containerd -n 20"),
        ),
    }
}
