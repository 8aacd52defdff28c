//! Cells of a study on two threads: resumable, and the same whoever comes first.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::cell::Cell;
use super::entrant::Entrant;
use super::ground::{Asked, Ground};
use super::measure::{Plan, measure};
use super::resume::Partial;
use super::summary::{SUSTAINED_SERVED_MIN, SUSTAINED_TTFT_P99_MAX_MS};
use crate::evaluate::cells::each_measured;

/// Whether the time that deciding takes is charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overhead {
    /// It takes none.
    Zero,
    /// The published time for published contenders, ours as measured.
    Charged,
}

impl Overhead {
    /// Its name in cells.
    pub fn name(self) -> &'static str {
        match self {
            Overhead::Zero => "zero",
            Overhead::Charged => "charged",
        }
    }
}

/// What is done with a cell's requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Task {
    /// They are served.
    Serve,
    /// The highest rate at which they are still served is looked for, up to this one; the cell is the one at that rate.
    Sustain {
        /// Requests per second.
        up_to: f64,
    },
}

/// One cell to be.
#[derive(Clone, Debug)]
pub struct Job {
    /// Index of its fleet and prompts.
    pub ground: usize,
    /// Who decides.
    pub entrant: Arc<Entrant>,
    /// What is asked.
    pub asked: Asked,
    /// What is done with it.
    pub task: Task,
    /// What deciding takes.
    pub overhead: Overhead,
    /// Gateways.
    pub gateways: usize,
    /// Further variation of the experiment.
    pub variant: String,
}

impl Job {
    /// Everything that tells it from the other jobs of the same inputs.
    pub fn identity(&self) -> String {
        let Job { ground, entrant, asked, task, overhead, gateways, variant } = self;
        let Entrant { policy, setting, weights, .. } = &**entrant;
        format!("{ground}|{policy}|{setting}|{weights:?}|{asked:?}|{task:?}|{}|{gateways}|{variant}", overhead.name())
    }

    fn measured(&self, grounds: &[Ground]) -> Result<Option<Cell>> {
        let ground = grounds.get(self.ground).context("a job has no ground")?;
        match self.task {
            Task::Serve => self.cell(ground, &self.asked).map(Some),
            Task::Sustain { up_to } => self.sustained(ground, up_to),
        }
    }

    fn cell(&self, ground: &Ground, asked: &Asked) -> Result<Cell> {
        let entrant = &*self.entrant;
        let (feed, workload) = ground.workload(asked, entrant.estimates)?;
        let router = ground.router(entrant);
        let last = workload.arrivals.last().map_or(0.0, |a| a.at.as_secs_f64());
        let plan = Plan {
            policy: entrant.policy.to_owned(),
            setting: entrant.setting.clone(),
            weights: entrant.weights,
            contender: ground.contender(entrant, &feed),
            deciding: if self.overhead == Overhead::Charged { entrant.charged } else { entrant.uncharged },
            workload: asked.arrivals.map_or_else(|| ground.source.name(), |kind| kind.to_string()),
            rate: asked.rate.unwrap_or(workload.arrivals.len() as f64 / last.max(1e-9)),
            seed: asked.seed,
            gateways: self.gateways,
            overhead: self.overhead.name().to_owned(),
            variant: self.variant.clone(),
            demand: asked.demand,
        };
        rounded(&measure(&plan, &router, &workload))
    }

    /// Looks for the highest rate by halving: whether a fleet keeps up hardly depends on the draw, so that one seed is one answer.
    fn sustained(&self, ground: &Ground, up_to: f64) -> Result<Option<Cell>> {
        let sustained_at = |steps: u32| -> Result<Option<Cell>> {
            let rate = Some(f64::from(steps) * RATE_STEP);
            let cell = self.cell(ground, &Asked { rate, ..self.asked.clone() })?;
            Ok(Some(cell).filter(is_sustained))
        };
        let (mut least, mut most) = (0, (up_to / RATE_STEP).ceil() as u32 + 1);
        let mut best = None;
        while most - least > 1 {
            let middle = least.midpoint(most);
            match sustained_at(middle)? {
                Some(cell) => (least, best) = (middle, Some(cell)),
                None => most = middle,
            }
        }
        Ok(best)
    }
}

/// Digits of every number of a cell: with so many, what is read from a file is what was written.
const DIGITS: usize = 12;

/// A cell with fewer digits. Readers of JSON are exact for at most 15; an interrupted run must come out as one in one go does.
fn rounded(cell: &Cell) -> Result<Cell> {
    let mut value = serde_json::to_value(cell)?;
    round(&mut value);
    Ok(serde_json::from_value(value)?)
}

fn round(value: &mut Value) {
    match value {
        Value::Number(number) if number.is_f64() => {
            let digits = DIGITS - 1;
            if let Some(fewer) = number.as_f64().and_then(|n| format!("{n:.digits$e}").parse::<f64>().ok()) {
                *value = Value::from(fewer);
            }
        }
        Value::Array(values) => values.iter_mut().for_each(round),
        Value::Object(fields) => fields.values_mut().for_each(round),
        _ => {}
    }
}

/// Rates are told apart so finely, requests per second.
const RATE_STEP: f64 = 0.1;
/// Whether requests are answered as fast as they come, and begin to be answered soon enough.
fn is_sustained(cell: &Cell) -> bool {
    cell.served.is_some_and(|served| served >= SUSTAINED_SERVED_MIN) && cell.ttft_ms.p99 <= SUSTAINED_TTFT_P99_MAX_MS
}

/// The cells of all jobs, in the order of the jobs. Finished ones are kept in `partial`, and not measured again.
///
/// # Errors
/// Two jobs that cannot be told apart, a workload that cannot be had, or a file that cannot be written.
pub fn run(jobs: &[Job], grounds: &[Ground], mut partial: Option<&mut Partial>) -> Result<Vec<Cell>> {
    let mut identities = BTreeMap::new();
    for (i, job) in jobs.iter().enumerate() {
        let identity = job.identity();
        ensure!(identities.insert(identity.clone(), i).is_none(), "two cells are the same: {identity}");
    }
    let mut cells: Vec<Option<Cell>> = vec![None; jobs.len()];
    let mut open: Vec<(usize, Option<String>)> = Vec::new();
    for (i, job) in jobs.iter().enumerate() {
        let key = partial.as_ref().map(|partial| partial.key(&job.identity()));
        match partial.as_ref().zip(key.as_ref()).and_then(|(partial, key)| partial.found(key)) {
            Some(cell) => cells[i].clone_from(cell),
            None => open.push((i, key)),
        }
    }
    // Slow cells stand together in the list: spread, they make the time to the end predictable.
    open.sort_by_key(|(i, _)| routebalance_core::random::Random::for_use(*i as u64, 7).bits());
    let mut failed = None;
    each_measured(
        &open,
        |(i, _)| jobs[*i].measured(grounds),
        |(i, key), cell| {
            let kept = cell.and_then(|cell| {
                if let (Some(partial), Some(key)) = (partial.as_mut(), key) {
                    partial.keep(key.clone(), cell.clone())?;
                }
                cells[*i] = cell;
                Ok(())
            });
            failed = failed.take().or(kept.err());
            failed.is_none()
        },
    );
    match failed {
        Some(problem) => Err(problem),
        None => Ok(cells.into_iter().flatten().collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presets::{self, Wishes};
    use crate::source::{ArrivalKind, Source};
    use routebalance_core::config::Config;

    fn grounds() -> Vec<Ground> {
        let config = Config::parse(include_bytes!("../../envoy/routebalance.json")).unwrap();
        let source = Source::built_in(&config, ArrivalKind::Poisson, Some(presets::OUTPUT_CAP)).unwrap();
        vec![Ground::new(config, source)]
    }

    fn wishes(policies: &[&str]) -> Wishes {
        Wishes {
            policies: Some(policies.iter().map(|name| (*name).to_owned()).collect()),
            rates: Some(vec![6.0]),
            requests: Some(80),
            ..Wishes::default()
        }
    }

    #[test]
    fn a_run_comes_out_the_same_and_goes_on_where_it_was_stopped() {
        let grounds = grounds();
        let jobs = presets::custom(&grounds, &wishes(&["routebalance", "shortest-queue", "avengers-pro"])).unwrap();
        let whole = run(&jobs, &grounds, None).unwrap();
        assert_eq!(whole.len(), jobs.len());
        assert!(whole.iter().all(|cell| cell.requests == 80 && cell.failed == 0 && cell.quality > 0.2));
        let dir = tempfile::tempdir().unwrap();
        let result = dir.path().join("r.json");
        let mut partial = Partial::open(&result, &[]).unwrap();
        assert!(run(&jobs[..3], &grounds, Some(&mut partial)).unwrap() == whole[..3]);
        drop(partial);
        let mut partial = Partial::open(&result, &[]).unwrap();
        assert!(partial.found(&partial.key(&jobs[2].identity())).is_some());
        assert!(partial.found(&partial.key(&jobs[3].identity())).is_none());
        assert!(run(&jobs, &grounds, Some(&mut partial)).unwrap() == whole, "half read, half measured");
    }

    #[test]
    fn cells_that_cannot_be_told_apart_are_refused() {
        let grounds = grounds();
        let jobs = presets::custom(&grounds, &wishes(&["random"])).unwrap();
        let twice: Vec<Job> = jobs.iter().chain(&jobs).cloned().collect();
        let problem = run(&twice, &grounds, None).unwrap_err().to_string();
        assert!(problem.starts_with("two cells are the same: 0|random"), "{problem}");
    }

    #[test]
    fn the_highest_rate_is_sustained_and_the_next_one_is_not() {
        let grounds = grounds();
        let jobs = presets::custom(&grounds, &wishes(&["cost-only"])).unwrap();
        let job = Job { task: Task::Sustain { up_to: 60.0 }, ..jobs[0].clone() };
        let asked = Asked { requests: Some(400), ..job.asked.clone() };
        let job = Job { asked, ..job };
        let best = job.measured(&grounds).unwrap().unwrap();
        assert!(is_sustained(&best), "{best:?}");
        let above = Asked { rate: Some(best.rate + RATE_STEP), ..job.asked.clone() };
        assert!(!is_sustained(&job.cell(&grounds[0], &above).unwrap()), "{}", best.rate);
    }
}
