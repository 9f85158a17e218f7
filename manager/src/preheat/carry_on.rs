//! The reconciler of jobs: takes the lease on what is pending and drives it until it has ended.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use d7y_chassis::spans::About;
use d7y_chassis::{OnEnd, Tasks};
use d7y_manager_db::entity::{job, member};
use d7y_manager_db::{DbError, JobState, Kind, Lease, Placement, PlacementState, Timestamp};
use d7y_types::Sha256Digest;
use parking_lot::Mutex;

use super::access::Access;
use super::place::{Answer, Schedulers, Seen, Wanted};
use super::request::PreheatArgs;
use super::resolve::chain;
use super::spread::Crowd;
use crate::manager::Manager;
use crate::metrics::{ByKind, ByState};

/// How long a manager that was killed keeps others from its jobs.
const LEASE: Duration = Duration::from_secs(6);
/// How often leases are renewed and new jobs looked for.
const CLAIM_EVERY: Duration = Duration::from_secs(2);
/// How often ended jobs are looked through for old ones.
const PRUNE_EVERY: Duration = Duration::from_secs(10);
/// Jobs driven at once by one manager; the rest wait.
const MAX_JOBS: u64 = 64;
/// Between two looks at a job that is under way.
const STEP_EVERY: Duration = Duration::from_millis(300);
/// How long a job is tried although something that it needs is not there at all.
const PATIENCE: Duration = Duration::from_secs(20);
/// How the note of a job begins that had only too little time.
pub(crate) const OUT_OF_TIME: &str = "not done within its time";
/// What a step may take when the job's time is over: it may find that all is done.
const LAST_STEP: Duration = Duration::from_secs(2);

/// Drives jobs; one per manager.
#[derive(Debug)]
pub(crate) struct CarryOn {
    manager: Arc<Manager>,
    tasks: Tasks,
    lease: Lease,
    schedulers: Schedulers,
    /// Jobs with a task of their own here.
    driven: Mutex<HashSet<i64>>,
    /// Jobs whose lease was ours when it was last looked at.
    held: Mutex<HashSet<i64>>,
}

/// What a driver remembers between steps; a new one does without.
#[derive(Default)]
struct Driver {
    /// By cluster and scheduler.
    seen: HashMap<(i64, i64), Seen>,
    access: Access,
    /// Since when something is missing without which nothing can begin.
    stuck_since: Option<Instant>,
    note: String,
}

/// How a step left a job.
enum Step {
    Ended,
    UnderWay,
    /// Something is missing; this says what.
    Waits(String),
    Fails(String),
}

impl CarryOn {
    pub fn new(manager: Arc<Manager>, tasks: Tasks) -> Arc<Self> {
        let holder = hex::encode(rand::random::<[u8; 8]>());
        Arc::new(Self {
            manager,
            tasks,
            lease: Lease { holder, duration: LEASE },
            schedulers: Schedulers::default(),
            driven: Mutex::default(),
            held: Mutex::default(),
        })
    }

    pub async fn run(self: Arc<Self>) {
        let mut pruned: Option<Instant> = None;
        loop {
            if pruned.is_none_or(|at| at.elapsed() >= PRUNE_EVERY) {
                self.prune().await;
                pruned = Some(Instant::now());
            }
            match self.manager.db.claim(&self.lease, MAX_JOBS, Timestamp::now()).await {
                Ok(jobs) => self.drive_all(jobs),
                Err(error) => tracing::error!("cannot look for jobs: {}", chain(&error)),
            }
            self.show().await;
            let _ = tokio::time::timeout(CLAIM_EVERY, self.manager.new_job.notified()).await;
        }
    }

    /// Old jobs go, so that the database is bounded.
    async fn prune(&self) {
        let settings = self.manager.settings;
        let horizon = Timestamp::now().minus(settings.keep_for);
        match self.manager.db.prune_jobs(horizon, settings.keep_most).await {
            Ok(0) => {}
            Ok(jobs) => tracing::info!(jobs, "old jobs were removed"),
            Err(error) => tracing::error!("cannot remove old jobs: {}", chain(&error)),
        }
    }

    /// Keeps the metrics true; what cannot be counted now is counted next time.
    async fn show(&self) {
        let Manager { db, metrics, .. } = &*self.manager;
        for (state, count) in db.count_jobs().await.unwrap_or_default() {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            metrics.jobs.get_or_create(&ByState { state }).set(count);
        }
        for (kind, of) in [("scheduler", Kind::Scheduler), ("seed", Kind::Seed)] {
            if let Ok(alive) = self.manager.alive(of).await {
                let count = i64::try_from(alive.len()).unwrap_or(i64::MAX);
                metrics.members.get_or_create(&ByKind { kind }).set(count);
            }
        }
    }

    fn drive_all(self: &Arc<Self>, jobs: Vec<job::Model>) {
        *self.held.lock() = jobs.iter().map(|job| job.id).collect();
        for job in jobs {
            if !self.driven.lock().insert(job.id) {
                continue;
            }
            let (this, stopping) = (self.clone(), self.tasks.shutdown().stopping());
            self.tasks.spawn("job", OnEnd::Expected, async move {
                stopping.run_until_cancelled(this.drive(job.id)).await;
                this.driven.lock().remove(&job.id);
                Ok::<_, std::convert::Infallible>(())
            });
        }
    }

    async fn drive(&self, id: i64) {
        tracing::info!(job = id, "carrying on");
        let mut driver = Driver::default();
        while self.held.lock().contains(&id) {
            let stepped = match self.manager.db.job(id).await {
                Ok(Some(job)) if job.state == JobState::Pending => self.advance(&job, &mut driver).await,
                Ok(_) => return,
                Err(error) => Err(error),
            };
            match stepped {
                Ok(Step::Ended) => return,
                Ok(_) => {}
                Err(error) => tracing::error!(job = id, "a step failed: {}", chain(&error)),
            }
            tokio::time::sleep(STEP_EVERY).await;
        }
    }

    /// One step, and its outcome in the row.
    async fn advance(&self, job: &job::Model, driver: &mut Driver) -> Result<Step, DbError> {
        let step = self.step_in_time(job, driver).await?;
        let now = Timestamp::now();
        let step = match step {
            Step::UnderWay => {
                driver.stuck_since = None;
                step
            }
            Step::Waits(ref why) => {
                let since = *driver.stuck_since.get_or_insert_with(Instant::now);
                // Peers that were chosen may take all the time there is to come back; a job that cannot even begin
                // is answered soon.
                let begun = !self.manager.db.placements(job.id).await?.is_empty();
                match !begun && since.elapsed() > PATIENCE {
                    true => Step::Fails(why.clone()),
                    false => step,
                }
            }
            other => other,
        };
        let overdue = now.0 >= job.deadline_at;
        match step {
            Step::Ended => self.end(job, JobState::Success, "").await?,
            Step::Fails(why) => {
                self.end(job, JobState::Failure, &why).await?;
                return Ok(Step::Ended);
            }
            Step::UnderWay | Step::Waits(_) if overdue => {
                let waits = match &step {
                    Step::Waits(why) => why.clone(),
                    _ => self.unfinished(job.id).await?,
                };
                self.end(job, JobState::Failure, &format!("{OUT_OF_TIME}: {waits}")).await?;
                return Ok(Step::Ended);
            }
            Step::UnderWay => self.note(job.id, driver, "").await?,
            Step::Waits(ref why) => self.note(job.id, driver, why).await?,
        }
        Ok(step)
    }

    /// A registry that is silent must not hold a job up beyond its time.
    async fn step_in_time(&self, job: &job::Model, driver: &mut Driver) -> Result<Step, DbError> {
        let left_ms = u64::try_from(job.deadline_at - Timestamp::now().0).unwrap_or(0);
        let left = Duration::from_millis(left_ms).max(LAST_STEP);
        match tokio::time::timeout(left, self.step(job, driver)).await {
            Ok(step) => step,
            Err(_) if job.manifest.is_none() => {
                Ok(Step::Waits("the registry has not answered yet".to_owned()))
            }
            Err(_) => Ok(Step::UnderWay),
        }
    }

    async fn step(&self, job: &job::Model, driver: &mut Driver) -> Result<Step, DbError> {
        let broken = || Step::Fails("the job's row is malformed; preheat again".to_owned());
        let args: Option<PreheatArgs> = serde_json::from_str(&job.args).ok();
        let clusters: Option<Vec<i64>> = serde_json::from_str(&job.clusters).ok();
        let (Some(args), Some(clusters)) = (args, clusters) else { return Ok(broken()) };
        let (Some(image), Some(platform), Some(scope)) = (args.image(), args.platform(), args.scope()) else {
            return Ok(broken());
        };
        let Some(manifest) = &job.manifest else {
            return match self.manager.resolve(job.id, &image, &platform).await {
                Ok(found) => {
                    let manifest = found.manifest.to_string();
                    self.manager.db.keep_layers(job.id, &manifest, &found.layers, Timestamp::now()).await?;
                    Ok(Step::UnderWay)
                }
                Err(error) if error.is_transient() => Ok(Step::Waits(error.sentence())),
                Err(error) => Ok(Step::Fails(error.sentence())),
            };
        };
        let Ok(manifest) = manifest.parse::<Sha256Digest>() else { return Ok(broken()) };
        if let Err(error) = driver.access.keep(&self.manager, job.id, (&image, manifest)).await {
            match error.is_transient() {
                // Peers may have the layers from each other, or from before.
                true if !self.manager.db.placements(job.id).await?.is_empty() => {}
                true => return Ok(Step::Waits(error.sentence())),
                false => return Ok(Step::Fails(error.sentence())),
            }
        }
        let layers = self.manager.db.layers(job.id).await?;
        let grant = driver.access.grant(&image);
        let mut waits = None;
        for cluster in &clusters {
            let (job, created_at, cluster) = (job.id, job.created_at, *cluster);
            let grant = grant.clone();
            let wanted = Wanted { job, created_at, cluster, image: manifest, layers: &layers, scope, grant };
            if let Some(why) = self.place(&wanted, driver).await? {
                waits.get_or_insert(why);
            }
        }
        if let Some(why) = waits {
            return Ok(Step::Waits(why));
        }
        let outcome = self.outcome(job.id).await?;
        Ok(match (outcome, driver.access.remark(&image)) {
            (Step::Fails(why), Some(remark)) => Step::Fails(format!("{why}; {remark}")),
            (outcome, _) => outcome,
        })
    }

    /// Asks the cluster's schedulers and keeps what they say. Returns what is missing, if something is.
    async fn place(&self, wanted: &Wanted<'_>, driver: &mut Driver) -> Result<Option<String>, DbError> {
        let name = self.manager.db.cluster(wanted.cluster).await?.map(|cluster| cluster.name);
        let name = name.unwrap_or_else(|| wanted.cluster.to_string());
        let schedulers = self.schedulers(wanted.cluster).await?;
        let mut rows = self.manager.db.placements(wanted.job).await?;
        rows.retain(|row| row.cluster_id == wanted.cluster);
        let missing = |gathering| format!("in cluster {name} {}{gathering}", wanted.scope.missing());
        let nobody = match schedulers.as_slice() {
            [] => {
                let why = "has no scheduler; start d7y-scheduler with manager.address set to this manager";
                return Ok(Some(format!("cluster {name} {why}")));
            }
            [only] => self.ask(only, wanted, (&rows, driver)).await.map(|answer| {
                let gathering = if answer.settling { " (its scheduler has just started)" } else { "" };
                answer.nobody.then_some(gathering)
            }),
            many => self.spread(many, wanted, (rows, driver)).await?.map(|nobody| nobody.then_some("")),
        };
        Ok(match nobody {
            Ok(Some(gathering)) if !wanted.layers.is_empty() => Some(missing(gathering)),
            Ok(_) => None,
            Err(why) => Some(format!("the scheduler of cluster {name} does not answer: {why}")),
        })
    }

    /// The same where there are several schedulers: whom the job is placed on is decided here, over the peers of all.
    /// Says whether that is nobody, or who does not answer.
    async fn spread(
        &self,
        schedulers: &[member::Model],
        wanted: &Wanted<'_>,
        (mut rows, driver): (Vec<Placement>, &mut Driver),
    ) -> Result<Result<bool, String>, DbError> {
        let crowd = Crowd::of(self.manager.peers().await?, wanted.cluster);
        if rows.is_empty() {
            let now = Timestamp::now().0;
            let chosen = crowd.choose(wanted.scope, &wanted.image);
            let layers = || (0..).take(wanted.layers.len());
            rows = chosen
                .iter()
                .flat_map(|peer| layers().map(|layer| wanted.waiting(peer, layer, now)))
                .collect();
            self.manager.db.keep_placements(rows.clone()).await?;
        }
        let chosen: BTreeSet<&str> = rows.iter().map(|row| row.peer.as_str()).collect();
        let mut silent = None;
        for scheduler in schedulers {
            let reached = crowd.reached_by(scheduler.id, &chosen);
            let theirs: Vec<_> = rows.iter().filter(|row| reached.contains(&row.peer)).cloned().collect();
            if theirs.is_empty() {
                continue;
            }
            if let Err(why) = self.ask(scheduler, wanted, (&theirs, driver)).await {
                silent.get_or_insert(why);
            }
        }
        Ok(silent.map_or(Ok(rows.is_empty()), Err))
    }

    /// Says to one scheduler what is wanted of its peers, and keeps what it answers.
    async fn ask(
        &self,
        scheduler: &member::Model,
        wanted: &Wanted<'_>,
        (rows, driver): (&[Placement], &mut Driver),
    ) -> Result<Answer, String> {
        let place = (wanted.cluster, scheduler.id);
        let seen = driver.seen.get(&place).cloned().unwrap_or_default();
        let mut answer = self.schedulers.place(&scheduler.address, wanted, (rows, seen)).await?;
        self.count(rows, &answer.changed);
        let kept = self.manager.db.keep_placements(std::mem::take(&mut answer.changed)).await;
        kept.map_err(|error| chain(&error))?;
        driver.seen.insert(place, answer.seen.clone());
        Ok(answer)
    }

    async fn schedulers(&self, cluster: i64) -> Result<Vec<member::Model>, DbError> {
        let mut alive = self.manager.alive(Kind::Scheduler).await?;
        alive.retain(|row| row.cluster_id == cluster);
        Ok(alive)
    }

    fn count(&self, before: &[Placement], changed: &[Placement]) {
        let sum = |rows: &mut dyn Iterator<Item = &Placement>| rows.map(|row| row.bytes_done).sum::<i64>();
        let is_changed = |row: &Placement| changed.iter().any(|c| c.peer == row.peer && c.layer == row.layer);
        let more = sum(&mut changed.iter()) - sum(&mut before.iter().filter(|row| is_changed(row)));
        self.manager.metrics.placed_bytes.inc_by(u64::try_from(more).unwrap_or(0));
    }

    /// Done when every placement is; failed when nothing is left to wait for and one has failed.
    async fn outcome(&self, job: i64) -> Result<Step, DbError> {
        let rows = self.manager.db.placements(job).await?;
        let of = |state| rows.iter().filter(move |row| row.state == state);
        if of(PlacementState::Done).count() == rows.len() {
            return Ok(Step::Ended);
        }
        if of(PlacementState::Done).count() + of(PlacementState::Failed).count() < rows.len() {
            return Ok(Step::UnderWay);
        }
        let failed: HashSet<&str> = of(PlacementState::Failed).map(|row| row.peer.as_str()).collect();
        let peers: HashSet<&str> = rows.iter().map(|row| row.peer.as_str()).collect();
        let first = of(PlacementState::Failed).next();
        let why = first.map(|row| format!("{}: {}", row.peer, row.error)).unwrap_or_default();
        Ok(Step::Fails(format!("{} of {} peers failed; {why}", failed.len(), peers.len())))
    }

    /// Who keeps a job from its end.
    async fn unfinished(&self, job: i64) -> Result<String, DbError> {
        let rows = self.manager.db.placements(job).await?;
        let row = rows.iter().find(|row| row.state != PlacementState::Done);
        Ok(row.map_or_else(
            || "nothing is placed yet".to_owned(),
            |row| match row.error.is_empty() {
                true => format!("peer {} is still fetching, or away", row.peer),
                false => format!("peer {}: {}", row.peer, row.error),
            },
        ))
    }

    async fn end(&self, job: &job::Model, state: JobState, note: &str) -> Result<(), DbError> {
        tracing::info!(job = job.id, ?state, note, "a job has ended");
        let now = Timestamp::now();
        self.manager.db.end_job(job.id, state, note, now).await?;
        self.trace(job, state, (now, note));
        let clusters: Vec<i64> = serde_json::from_str(&job.clusters).unwrap_or_default();
        for cluster in clusters {
            for scheduler in self.schedulers(cluster).await? {
                let image = Sha256Digest([0; 32]);
                let (job, created_at, scope) = (job.id, job.created_at, super::Scope::SingleSeed);
                let wanted = Wanted { job, created_at, cluster, image, layers: &[], scope, grant: None };
                self.schedulers.end(&scheduler.address, &wanted).await;
            }
        }
        Ok(())
    }

    /// The job as one span, from its row to its end, whoever has driven it meanwhile.
    fn trace(&self, job: &job::Model, state: JobState, (now, note): (Timestamp, &str)) {
        let took = Duration::from_millis(u64::try_from(now.0 - job.created_at).unwrap_or(0));
        let began = Instant::now().checked_sub(took);
        let (Some(span), Some(began)) = (self.manager.spans.own_root(), began) else { return };
        self.manager.spans.write(span.at(began), took, || {
            let manifest = job.manifest.clone().unwrap_or_default();
            let about = About::new("preheat").text("d7y.job", job.id).text("d7y.manifest", manifest);
            about.error((state != JobState::Success).then_some(note))
        });
    }

    async fn note(&self, job: i64, driver: &mut Driver, note: &str) -> Result<(), DbError> {
        if driver.note != note {
            note.clone_into(&mut driver.note);
            self.manager.db.note(job, note, Timestamp::now()).await?;
        }
        Ok(())
    }
}
