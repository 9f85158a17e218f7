//! `d7y why`: the last starts of containers on this node as timelines, with the reads that waited longest.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use bytesize::ByteSize;
use d7y_snapshotter::why::{StartView, StepView, WaitView};

use crate::http;
use crate::image_name::Known;
use crate::output::Output;

/// Of the ids that nerdctl and the kubelet's containerd make.
const ID_DIGITS: usize = 64;
/// Fewer digits are more likely a part of a name.
const MIN_ID_DIGITS: usize = 4;

/// Why the last starts took as long as they did
///
/// Times are counted from containerd's first question about the image. The snapshotter remembers the last 64 starts
/// since it was started itself.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// A container id (or its beginning) or name, or an image's name, a part of it, or its digest (or its beginning);
    /// without one the last start is shown
    name: Option<String>,
    /// Every start that fits, not just the last
    #[arg(long)]
    all: bool,
    /// Text for people, or JSON
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// Where this node's snapshotter serves its metrics (its key `metrics.listen`)
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:4004")]
    snapshotter: SocketAddr,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(http::get(args.snapshotter, "/starts")).with_context(|| {
        format!(
            "cannot ask d7y-snapshotter at {}: is it running? --snapshotter names another place",
            args.snapshotter
        )
    })?;
    if answer.status != 200 {
        bail!("d7y-snapshotter at {} answered {}: {}", args.snapshotter, answer.status, answer.body.trim());
    }
    let starts: Vec<StartView> = serde_json::from_str(&answer.body)
        .context("d7y-snapshotter's answer is not understood; is it of the same version as d7y?")?;
    let wanted = select(starts, args)?;
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&wanted)?),
        Output::Text => wanted.iter().for_each(|start| print!("{}", timeline(start, SystemTime::now()))),
    }
    Ok(ExitCode::SUCCESS)
}

/// The last start first.
fn select(starts: Vec<StartView>, args: &Args) -> Result<Vec<StartView>> {
    if starts.is_empty() {
        bail!("no container has been started from a lazy image since the snapshotter began");
    }
    let known: Vec<_> = starts.iter().map(|start| format!("{} ({})", start.container, start.image)).collect();
    let name = args.name.as_deref();
    let mut wanted: Vec<_> =
        starts.into_iter().filter(|start| name.is_none_or(|name| is_meant(start, name))).collect();
    if wanted.is_empty() {
        bail!(
            "no start of {:?} is remembered; these are:\n  {}",
            name.unwrap_or_default(),
            known.join("\n  ")
        );
    }
    if !args.all {
        wanted.truncate(1);
    }
    Ok(wanted)
}

fn is_meant(start: &StartView, name: &str) -> bool {
    let own = start.container.rsplit('/').next().unwrap_or_default();
    let image = Known { reference: &start.image, manifest: &start.manifest };
    start.container == name || own == name || begins_id(own, name) || image.is_meant_by(name)
}

/// Whether `name` is the beginning of a container id, such as the 12 digits that `nerdctl ps` prints.
fn begins_id(own: &str, name: &str) -> bool {
    own.len() == ID_DIGITS && name.len() >= MIN_ID_DIGITS && own.starts_with(name) && is_hex(own)
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn timeline(start: &StartView, now: SystemTime) -> String {
    let began = UNIX_EPOCH + Duration::from_millis(start.unix_ms);
    let ago = now.duration_since(began).unwrap_or_default().as_secs();
    let mut lines = vec![format!("{}  {}  {ago} s ago", start.container, start.image)];
    lines.extend(start.steps.iter().map(step));
    let reads = &start.reads;
    lines.push(match (reads.first_at_ms, reads.last_at_ms) {
        (Some(first), Some(last)) => format!(
            "{} reads found data missing, from {first} ms to {last} ms; they waited {} ms together (many at a time), {} failed",
            reads.missed, reads.waited_ms, reads.failed
        ),
        _ => "no read had to wait".into(),
    });
    for by in &reads.by_source {
        let bytes = ByteSize(by.bytes).display().si();
        lines.push(format!("  {:<7} {:>6} reads {bytes:>10} {:>10.1} ms", by.source, by.reads, by.waited_ms));
    }
    if !reads.slowest.is_empty() {
        lines.push("the longest waits:".into());
        lines.extend(reads.slowest.iter().map(wait));
    }
    lines.join("\n") + "\n"
}

fn step(step: &StepView) -> String {
    let layer = step.layer.as_deref().map(short).unwrap_or_default();
    let line =
        format!("{:>10.1} {:>9.1} ms  {:<9}{layer:<14}{}", step.at_ms, step.took_ms, step.what, step.detail);
    line.trim_end().to_owned()
}

fn wait(wait: &WaitView) -> String {
    let file = match &wait.path {
        Some(path) => path.clone(),
        None => format!("{} at {}", short(&wait.layer), wait.device_offset),
    };
    let ended = if wait.failed { "failed" } else { "from" };
    let giver = format!("{} {}", wait.source, wait.parent);
    let line = format!(
        "{:>10.1} {:>9.1} ms  {file} ({} bytes) {ended} {}  {}",
        wait.at_ms,
        wait.took_ms,
        wait.bytes,
        giver.trim_end(),
        wait.request_id
    );
    line.trim_end().to_owned()
}

/// As containerd's tools show digests.
fn short(digest: &str) -> String {
    digest.trim_start_matches("sha256:").chars().take(12).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn starts() -> Vec<StartView> {
        let start = |container: &str, image: &str| {
            serde_json::json!({
                "container": container, "image": image, "manifest": "sha256:00", "unixMs": 1_000,
                "steps": [
                    {"what": "resolve", "atMs": 0.0, "tookMs": 12.1},
                    {"what": "index", "layer": "sha256:0123456789abcdef", "atMs": 12.2, "tookMs": 800.0},
                ],
                "reads": {
                    "missed": 3, "failed": 0, "waitedMs": 90.5, "firstAtMs": 900.0, "lastAtMs": 990.0,
                    "bySource": [{"source": "seed", "reads": 3, "bytes": 12_288, "waitedMs": 90.5}],
                    "slowest": [{
                        "layer": "sha256:0123456789abcdef", "path": "/usr/bin/python3", "deviceOffset": 4096,
                        "bytes": 4096, "atMs": 900.0, "tookMs": 60.0, "source": "seed", "parent": "10.0.0.1:4000",
                        "requestId": "00000000000000ab", "failed": false
                    }],
                },
            })
        };
        let all = [
            start("default/9/web", "registry.example/app:2"),
            start("default/6/web-old", "registry.example/app:1"),
        ];
        serde_json::from_value(serde_json::Value::Array(all.into())).unwrap()
    }

    fn args(name: Option<&str>, all: bool) -> Args {
        let snapshotter = ([127, 0, 0, 1], 1).into();
        Args { name: name.map(Into::into), all, output: Output::Text, snapshotter }
    }

    #[test]
    fn containers_are_meant_by_name_and_images_by_any_part() {
        let table = [
            (None, false, vec!["default/9/web"]),
            (None, true, vec!["default/9/web", "default/6/web-old"]),
            (Some("web"), true, vec!["default/9/web"]),
            (Some("default/6/web-old"), true, vec!["default/6/web-old"]),
            (Some("app:1"), false, vec!["default/6/web-old"]),
            (Some("app"), false, vec!["default/9/web"]),
        ];
        for (name, all, expected) in table {
            let found = select(starts(), &args(name, all)).unwrap();
            let found: Vec<_> = found.iter().map(|start| start.container.as_str()).collect();
            assert_eq!(found, expected, "{name:?}");
        }
        let id = "5f3c".repeat(16);
        let with_id = || {
            let mut all = starts();
            all[1].container = format!("default/6/{id}");
            all
        };
        for (name, found) in
            [(&id[..12], true), (&id, true), ("5f3d5f3c5f3c", false), ("f3c5f3c5f3c5", false)]
        {
            let found_one = select(with_id(), &args(Some(name), true)).is_ok();
            assert_eq!(found_one, found, "{name:?}");
        }
        let unknown = select(starts(), &args(Some("db"), false)).unwrap_err().to_string();
        assert!(unknown.contains("default/9/web (registry.example/app:2)"), "{unknown}");
    }

    #[test]
    fn a_timeline_names_steps_sources_and_files() {
        let text = timeline(&starts()[0], UNIX_EPOCH + Duration::from_secs(11));
        for part in [
            "default/9/web  registry.example/app:2  10 s ago",
            "12.2     800.0 ms  index    0123456789ab",
            "3 reads found data missing, from 900 ms to 990 ms",
            "seed         3 reads",
            "60.0 ms  /usr/bin/python3 (4096 bytes) from seed 10.0.0.1:4000  00000000000000ab",
        ] {
            assert!(text.contains(part), "{text}\nlacks {part:?}");
        }
    }
}
