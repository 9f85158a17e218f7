//! `GET /starts`: the last starts as timelines, for `d7y why`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use d7y_chassis::spans::About;
use d7y_types::Sha256Digest;
use serde::{Deserialize, Serialize};

use crate::error::SnapshotError;
use crate::layers::{Backing, Layers, Mounted};
use crate::meta::Snapshot;
use crate::prepare::is_container;
use crate::snapshotter::Snapshotter;
use crate::starts::{Pull, Reads, Start, Starts, Step, Wait, What, source_name};
use crate::status::chain as causes;

/// A container started this long after the last Prepare of its image was pulled for; time counts from the pull.
const SAME_RUN: Duration = Duration::from_secs(60);

/// Times are milliseconds since the first Prepare that belongs to the start.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StartView {
    /// containerd's key of the container's snapshot: `namespace/number/name`.
    pub container: String,
    pub image: String,
    pub manifest: String,
    pub unix_ms: u64,
    pub steps: Vec<StepView>,
    pub reads: ReadsView,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepView {
    pub what: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<String>,
    pub at_ms: f64,
    pub took_ms: f64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// Reads that had to wait for the peer; what was on the node is not counted.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReadsView {
    pub missed: u64,
    pub failed: u64,
    pub waited_ms: f64,
    pub first_at_ms: Option<f64>,
    pub last_at_ms: Option<f64>,
    pub by_source: Vec<BySourceView>,
    pub slowest: Vec<WaitView>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BySourceView {
    pub source: String,
    pub reads: u64,
    pub bytes: u64,
    pub waited_ms: f64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WaitView {
    pub layer: String,
    /// The file, as its layer names it; absent where the layer is mounted no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    pub device_offset: u64,
    pub bytes: u64,
    pub at_ms: f64,
    pub took_ms: f64,
    pub source: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub parent: String,
    /// As in the logs of whoever took part in the read; empty from an older snapshotter.
    #[serde(default)]
    pub request_id: String,
    pub failed: bool,
}

impl Snapshotter {
    /// Remembers what the mount of a container's layers, begun at `began`, waited for.
    pub(crate) fn note_start(
        &self,
        name: &str,
        chain: &[Arc<Snapshot>],
        began: Instant,
        mounting: &Result<Mounted, SnapshotError>,
    ) {
        let top = chain.first().and_then(|row| row.remote.as_ref());
        let Some(top) = top.filter(|_| is_container(name)) else { return };
        let took = began.elapsed();
        let steps = match mounting {
            Ok(mounted) => mounted.steps.clone(),
            Err(error) => vec![Step { what: What::Failed(causes(error)), layer: None, began, took }],
        };
        let layers = chain.iter().filter_map(|row| Some(row.remote.as_ref()?.layer.digest)).collect();
        let (manifest, reference) = (top.manifest, top.reference.clone());
        let (container, reads) = (name.to_owned(), Reads::default());
        let at = SystemTime::now() - took;
        self.write_start(name, &top.reference, began, mounting);
        self.starts.starting(Start { container, reference, manifest, layers, at, began, steps, reads });
    }

    /// A trace of its own: what the mount of a container's layers waited for.
    fn write_start(
        &self,
        name: &str,
        reference: &str,
        began: Instant,
        mounting: &Result<Mounted, SnapshotError>,
    ) {
        let Some(start) = self.spans.own_root() else { return };
        for step in mounting.iter().flat_map(|mounted| &mounted.steps) {
            let Some(span) = self.spans.child(Some(start.caller())) else { continue };
            self.spans.write(span.at(step.began), step.took, || {
                let (what, detail) = named(&step.what);
                let layer = step.layer.map(|layer| layer.to_string()).unwrap_or_default();
                About::new(what).text("d7y.layer", layer).text("d7y.detail", detail)
            });
        }
        self.spans.end(Some(start.at(began)), || {
            let error = mounting.as_ref().err().map(|error| causes(error));
            About::new("start").text("d7y.container", name).text("d7y.image", reference).error(error)
        });
    }
}

/// What is remembered, the last start first. Reads the bootstraps of layers whose files are to be named: blocks.
pub fn view(starts: &Starts, layers: &Layers) -> Vec<StartView> {
    starts.all().into_iter().map(|(start, pull)| start_view(start, pull, layers)).collect()
}

fn start_view(start: Start, pull: Option<Pull>, layers: &Layers) -> StartView {
    let pull = pull.filter(|pull| {
        let end = pull.steps.last().map_or(pull.began, |step| step.began + step.took);
        pull.began <= start.began && start.began < end + SAME_RUN
    });
    let zero = pull.as_ref().map_or(start.began, |pull| pull.began);
    let steps = pull.iter().flat_map(|pull| &pull.steps).chain(&start.steps);
    StartView {
        unix_ms: start.at.duration_since(UNIX_EPOCH).map_or(0, |at| at.as_millis() as u64),
        steps: steps.map(|step| step_view(step, zero)).collect(),
        reads: reads_view(&start.reads, zero, layers),
        container: start.container,
        image: start.reference,
        manifest: start.manifest.to_string(),
    }
}

fn named(what: &What) -> (&'static str, String) {
    match what {
        What::Resolve => ("resolve", String::new()),
        What::Announce { has_trace: true } => ("announce", "the cluster knows the access trace".into()),
        What::Announce { has_trace: false } => ("announce", "no access trace is known yet".into()),
        What::Index => ("index", String::new()),
        What::Mount { backing: Backing::Served } => ("mount", "served".into()),
        What::Mount { backing: Backing::Direct } => ("mount", "direct".into()),
        What::Failed(why) => ("failed", why.clone()),
    }
}

fn step_view(step: &Step, zero: Instant) -> StepView {
    let (what, detail) = named(&step.what);
    let layer = step.layer.map(|layer| layer.to_string());
    StepView { what: what.into(), layer, at_ms: since(zero, step.began), took_ms: ms(step.took), detail }
}

fn reads_view(reads: &Reads, zero: Instant, layers: &Layers) -> ReadsView {
    let mut offsets: HashMap<Sha256Digest, Vec<u64>> = HashMap::new();
    for wait in &reads.slowest {
        offsets.entry(wait.layer).or_default().push(wait.range.offset);
    }
    let names: HashMap<_, _> =
        offsets.into_iter().map(|(layer, offsets)| (layer, layers.files_at(layer, &offsets))).collect();
    let by_source = reads.by_source.iter().map(|by| BySourceView {
        source: source_name(by.source).into(),
        reads: by.reads,
        bytes: by.bytes,
        waited_ms: ms(by.waited),
    });
    let wait_view = |wait: &Wait| WaitView {
        layer: wait.layer.to_string(),
        path: names[&wait.layer].get(&wait.range.offset).cloned(),
        device_offset: wait.range.offset,
        bytes: wait.range.length,
        at_ms: since(zero, wait.began),
        took_ms: ms(wait.took),
        source: source_name(wait.source).into(),
        parent: wait.parent.clone(),
        request_id: wait.request.to_string(),
        failed: wait.failed,
    };
    ReadsView {
        missed: reads.missed,
        failed: reads.failed,
        waited_ms: ms(reads.waited),
        first_at_ms: reads.first.map(|at| since(zero, at)),
        last_at_ms: reads.last.map(|at| since(zero, at)),
        by_source: by_source.collect(),
        slowest: reads.slowest.iter().map(wait_view).collect(),
    }
}

fn since(zero: Instant, at: Instant) -> f64 {
    ms(at.saturating_duration_since(zero))
}

/// To a tenth.
fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}
