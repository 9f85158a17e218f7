//! `cargo xtask chaos`: kill -9 of each process in turn while containers read and preheats run.
//!
//! On each of two nodes a [`walk::Walker`] starts one container after the other, which reads an image of which most is
//! missing there, and [`reads::Reader`]s read the same files beside it; one more container stays from the beginning to
//! the end, and is read past the page cache. A [`preheat::Preheater`] asks the manager for one preheat after the other.
//! The peers' stores hold a part of the images, so that the next one is always missing. The main thread kills, starts
//! again, and looks whether all is well by itself: a fresh container on each node, and a preheat from its order to its
//! end.

pub mod dice;
mod log;
mod preheat;
mod reads;
mod report;
mod site;
mod stock;
mod walk;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::bench::Results;
use crate::demo::step;
use crate::rig::client::{Api, Client, Started};
use crate::rig::lab::{Lab, random_bytes};
use crate::rig::places::Places;
use dice::Dice;
use log::{FaultKind, Log};
use preheat::{Jobs, Preheater};
use reads::Reader;
use report::{Kill, Report};
pub use site::Process;
use site::{Site, Victim};
pub use stock::Sizes;
use stock::Stock;
use walk::Walker;

/// The longest time from a converged cluster to the next kill.
const BEFORE: Duration = Duration::from_secs(2);

/// Between two reads of the container that stays.
const REST: Duration = Duration::from_millis(10);

/// The end of walks, reads and jobs that are under way; a read that hangs ends at its own deadline before that.
const ENDED: Duration = Duration::from_secs(150);

/// Kill each process at random moments while containers read and preheats run
#[derive(clap::Args, Debug)]
pub struct Options {
    /// Kills of each process
    #[arg(long, default_value_t = 20)]
    kills: u32,
    /// Repeats the order and the times of an earlier run's kills
    #[arg(long)]
    seed: Option<u64>,
    /// Kill these alone
    #[arg(long, value_enum)]
    process: Vec<Process>,
}

/// What is killed, how often, and what is expected.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Of each process.
    pub kills: u32,
    pub processes: Vec<Process>,
    pub seed: u64,
    /// The longest time until a killed process is started again: systemd's RestartSec for what serves reads is 100 ms.
    pub down: Duration,
    /// How soon all has to be well after that.
    pub converge: Duration,
    pub sizes: Sizes,
}

/// Runs it, and prints what it came to.
///
/// # Errors
/// A read failed or was wrong, something did not converge, or a process does not come up.
pub fn run(options: &Options) -> Result<()> {
    let lab = Lab::open(Places::find()?)?;
    let processes = if options.process.is_empty() { Process::ALL.to_vec() } else { options.process.clone() };
    let seed = match options.seed {
        Some(seed) => seed,
        None => u64::from(u32::from_le_bytes(random_bytes()?)),
    };
    println!("--seed {seed} repeats the order and the times of these kills.");
    let plan = Plan {
        kills: options.kills,
        processes,
        seed,
        down: Duration::from_millis(500),
        converge: Duration::from_secs(30),
        sizes: Sizes { walks: 8, preheats: 8, probes: 8, files: 64 },
    };
    let results = Results::new("chaos", &lab.places)?;
    let report = lab.keep_logs(play(&lab, &plan))?;
    results.save(&report.rows)?;
    println!("\n{report}\nKept in {}", results.path().display());
    if !report.is_sound() {
        return lab.keep_logs(Err(anyhow::anyhow!("what must not happen has happened")));
    }
    Ok(())
}

/// Sets everything up, kills by the plan, and waits for the end of all that runs.
///
/// # Errors
/// Something does not come up; what goes wrong after that is in the report.
pub fn play(lab: &Lab, plan: &Plan) -> Result<Report> {
    let site = step("registry, manager, scheduler, seed, two nodes", || Site::set(lab, plan.sizes))?;
    let stock = step("images", || Stock::push(lab, &site.cluster.registry, plan.sizes))?;
    let jobs = Jobs::of(site.manager()?);
    let mut chaos = Chaos { lab, site, stock, jobs, log: Arc::default(), dice: Dice::new(plan.seed) };
    let residents = step("a container on each node that stays", || chaos.residents())?;
    let before = chaos.received()?;
    let workers = chaos.begin(&residents);
    let kills = chaos.kill_all(plan);
    chaos.log.stop();
    join(&chaos.log, workers);
    let kills = kills?;
    let received = chaos.received()?.iter().zip(before).map(|(after, before)| after - before).collect();
    let (faults, more_faults) = chaos.log.faults();
    let rows = Report::rows(&chaos.with_pauses(kills), &faults);
    Ok(Report { rows, counts: chaos.log.counts(), faults, more_faults, received })
}

struct Chaos<'a> {
    lab: &'a Lab,
    site: Site,
    stock: Stock,
    jobs: Jobs,
    log: Arc<Log>,
    dice: Dice,
}

impl Chaos<'_> {
    fn residents(&self) -> Result<Vec<Started>> {
        let start = |node: &crate::rig::cluster::D7yNode| {
            let name = format!("{}-resident", node.node.host.name);
            let started = Api.start(&node.node, &self.stock.resident.wanted, &name)?;
            started.first_output(ENDED)?;
            anyhow::Ok(started)
        };
        self.site.nodes.iter().map(start).collect()
    }

    /// Everything that goes on while processes are killed, each on a thread of its own.
    fn begin(&mut self, residents: &[Started]) -> Vec<(String, JoinHandle<()>)> {
        let mut workers = Vec::new();
        let mut dice = || Dice::new(u64::from(self.dice.below(u32::MAX)));
        for (number, (node, resident)) in self.site.nodes.iter().zip(residents).enumerate() {
            let (images, log, name) = (self.stock.walks.clone(), self.log.clone(), &node.node.host.name);
            // The second node is half a turn ahead: neither finds at the other all that it needs.
            let first = number * images.len() / 2;
            let walker = Walker { node: node.node.clone(), images, log, dice: dice(), first };
            workers.push((format!("{name}'s containers"), std::thread::spawn(move || walker.run())));
            let (root, files) = (resident.rootfs.clone(), self.stock.resident.files);
            let reader = Reader { root, files, log: self.log.clone(), dice: dice(), rest: REST };
            workers.push((format!("{name}'s reader"), std::thread::spawn(move || reader.on_and_on())));
        }
        let (jobs, images, log) = (self.jobs.clone(), self.stock.preheats.clone(), self.log.clone());
        let preheater = Preheater { jobs, images, log, dice: dice() };
        workers.push(("preheats".to_owned(), std::thread::spawn(move || preheater.run())));
        workers
    }

    /// Each process once, in a random order; then again.
    fn kill_all(&mut self, plan: &Plan) -> Result<Vec<Kill>> {
        let (mut kills, mut number) = (Vec::new(), 0);
        for round in 1..=plan.kills {
            let mut order = plan.processes.clone();
            self.dice.shuffle(&mut order);
            for process in order {
                std::thread::sleep(self.dice.pause(BEFORE));
                let victim = Victim::choose(process, &mut self.dice);
                let kill = self.kill(plan, victim, number)?;
                number += 1;
                eprintln!(
                    "{round}/{}: {process:<16} down {:>3} ms, well after {:>5.2} s",
                    plan.kills,
                    kill.down.as_millis(),
                    kill.converged.as_secs_f64()
                );
                kills.push(kill);
            }
        }
        Ok(kills)
    }

    fn kill(&mut self, plan: &Plan, victim: Victim, number: usize) -> Result<Kill> {
        let at = Instant::now();
        self.site.kill(victim)?;
        std::thread::sleep(self.dice.pause(plan.down));
        let began = Instant::now();
        let down = began - at;
        self.site.revive(self.lab, victim)?;
        if let Err(error) = self.converge(began + plan.converge, number) {
            let limit = plan.converge;
            self.log
                .fault(FaultKind::Late, format!("after a kill of {}, {limit:?}: {error:#}", victim.process));
        }
        let pause = Duration::ZERO;
        Ok(Kill { process: victim.process, at, down, converged: began.elapsed(), pause })
    }

    /// Waits until a fresh container has started on each node, and a preheat has ended.
    fn converge(&self, deadline: Instant, number: usize) -> Result<()> {
        let (probes, preheats) = (&self.stock.probes, &self.stock.preheats);
        let image = &probes[number % probes.len()];
        // Half a turn away from the one that is under way.
        let preheat = &preheats[(number + preheats.len() / 2) % preheats.len()];
        let name = format!("probe-{number}");
        let log = &self.log;
        std::thread::scope(|scope| {
            let probes = self.site.nodes.each_ref().map(|node| {
                let (node, name) = (&node.node, &name);
                scope.spawn(move || walk::probe(node, image, name, deadline, log))
            });
            let preheated = self.jobs.preheat(preheat, deadline);
            for probe in probes {
                probe.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            preheated
        })?;
        self.site.wait_parked(deadline)?;
        if Instant::now() > deadline {
            bail!("all is well, and too late");
        }
        Ok(())
    }

    fn received(&self) -> Result<Vec<u64>> {
        self.site.nodes.iter().map(|node| node.node.host.received_bytes()).collect()
    }

    /// Once all reads have ended.
    fn with_pauses(&self, mut kills: Vec<Kill>) -> Vec<Kill> {
        for kill in &mut kills {
            kill.pause = self.log.longest_read(kill.at, kill.until());
        }
        kills
    }
}

fn join(log: &Log, workers: Vec<(String, JoinHandle<()>)>) {
    let deadline = Instant::now() + ENDED;
    for (name, worker) in workers {
        while !worker.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        match worker.is_finished() {
            true if worker.join().is_ok() => {}
            true => log.fault(FaultKind::Late, format!("{name}: a thread panicked")),
            // It is left behind: with the lab its files go.
            false => log.fault(FaultKind::Late, format!("{name} do not end")),
        }
    }
}
