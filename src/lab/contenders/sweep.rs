//! What the published predictor of times is trained on: one instance of each pool, asked ever faster (RouteBalance;
//! PUBLISHED.md, section 4.2).

use std::sync::Arc;
use std::time::Duration;

use comfy_table::Table;
use rayon::iter::{IntoParallelIterator, ParallelIterator};

use super::boosting::{self, Rows};
use routebalance_core::config::Config;
use routebalance_core::fleet::{Fleet, InstanceId, ModelId, ModelKind, PoolId};
use routebalance_core::latency::{BINS, Residuals};
use routebalance_core::random::Random;
use routebalance_core::reckoning::LoadNow;
use routebalance_core::router::Router;
use routebalance_sim::contender::{Contender, Dispatcher, Fitted, Forest, Inputs, PoolTimes, inputs};
use routebalance_sim::simulation::{Options, Simulation};
use routebalance_sim::workload::{Arrival, Template, Workload, sustainable_rate};

/// Published rates, requests per second of one instance.
const RATES: [f64; 10] = [1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 14.0, 18.0, 24.0, 30.0];
/// The highest of them is so many times what the instance sustains: enough that it queues, on slow and fast pools alike.
const HIGHEST_UTILISATION: f64 = 1.2;
/// Published requests of each rate.
pub const REQUESTS: usize = 2_000;
/// Published share of rows for validation.
const VALIDATION: f64 = 0.2;
/// Published seed.
const SEED: u64 = 42;

/// How far a pool's predictions are off, on the rows that its trees were not grown on.
#[derive(Clone, Debug, PartialEq)]
pub struct Accuracy {
    /// Name of the pool.
    pub pool: String,
    /// Rows of the sweep.
    pub rows: usize,
    /// Of the time per output token.
    pub tpot: Errors,
    /// Of the time to the first token.
    pub ttft: Errors,
}

/// How far predictions are off.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Errors {
    /// Trees.
    pub trees: usize,
    /// Mean absolute error, milliseconds.
    pub mae_ms: f64,
    /// Mean absolute error as a share of the truth.
    pub mape: f64,
}

/// Runs the sweep and grows the trees of every pool.
pub fn fitted(config: &Config, templates: &Arc<[Template]>, requests: usize) -> (Fitted, Vec<Accuracy>) {
    let pools = config.fleet.pools.len();
    let fits: Vec<Option<(PoolTimes, Accuracy)>> =
        (0..pools).into_par_iter().map(|pool| fit(config, templates, pool, requests)).collect();
    let (times, accuracies): (Vec<_>, Vec<_>) = fits.into_iter().map(Option::unzip).unzip();
    (Fitted { pools: times }, accuracies.into_iter().flatten().collect())
}

/// As in the published sweep.
pub fn published(config: &Config, templates: &Arc<[Template]>) -> (Fitted, Vec<Accuracy>) {
    fitted(config, templates, REQUESTS)
}

/// For people.
pub fn table(accuracies: &[Accuracy]) -> Table {
    let mut table = Table::new();
    table.set_header(["pool", "rows", "TPOT trees", "MAE ms", "MAPE", "TTFT trees", "MAE ms", "MAPE"]);
    for Accuracy { pool, rows, tpot, ttft } in accuracies {
        let errors = |e: &Errors| [e.trees.to_string(), format!("{:.2}", e.mae_ms), format!("{:.1} %", e.mape * 100.0)];
        let cells = [pool.clone(), rows.to_string()].into_iter().chain(errors(tpot)).chain(errors(ttft));
        table.add_row(cells.collect::<Vec<_>>());
    }
    table
}

fn fit(config: &Config, templates: &Arc<[Template]>, pool: usize, requests: usize) -> Option<(PoolTimes, Accuracy)> {
    let (alone, model) = alone(config, pool)?;
    let router = Router::new(alone, None);
    let [mut tpot, mut ttft] = [(); 2].map(|()| Rows::default());
    for (i, rate) in RATES.iter().enumerate() {
        let seen = sweep(&router, templates, model, rate / RATES[RATES.len() - 1] * HIGHEST_UTILISATION, i, requests);
        for (inputs, ttft_ms, tpot_ms) in seen {
            ttft.inputs.push(inputs);
            ttft.targets.push(ttft_ms);
            tpot.inputs.push(inputs);
            tpot.targets.push(tpot_ms);
        }
    }
    let rows = tpot.targets.len();
    let (tpot_ms, tpot_errors, tpot_residuals, tpot_sd) = head(tpot, &boosting::TPOT);
    let (ttft_ms, ttft_errors, ttft_residuals, ttft_sd) = head(ttft, &boosting::TTFT);
    let times = PoolTimes { tpot_ms, ttft_ms, residuals: (ttft_residuals, tpot_residuals), sd: (ttft_sd, tpot_sd) };
    let name = config.fleet.pools[pool].name.clone();
    Some((times, Accuracy { pool: name, rows, tpot: tpot_errors, ttft: ttft_errors }))
}

/// The same fleet with the first instance of one pool and no other; and the pool's model, if it generates.
fn alone(config: &Config, pool: usize) -> Option<(Config, ModelId)> {
    let mut pool = config.fleet.pools.get(pool)?.clone();
    let model = config.fleet.model_of(&pool).filter(|m| m.kind == ModelKind::Generate).map(|_| pool.model)?;
    let mut instance = config.fleet.instance(*pool.instances.first()?)?.clone();
    instance.pool = PoolId::new(0);
    pool.instances = vec![InstanceId::new(0)];
    let fleet = Fleet { models: config.fleet.models.clone(), pools: vec![pool], instances: vec![instance] };
    Some((Config { fleet, ..config.clone() }, model))
}

/// What the instance was like when each request was sent to it, and the request's milliseconds to the first and per further token.
/// Requests come evenly spaced, as the published generator has it.
fn sweep(
    router: &Router,
    templates: &Arc<[Template]>,
    model: ModelId,
    utilisation: f64,
    which: usize,
    requests: usize,
) -> Vec<(Inputs, f64, f64)> {
    let pool = &router.config().fleet.pools[0];
    let rate = utilisation * sustainable_rate(&pool.profile, &pool.limits, templates, model);
    let gap = Duration::try_from_secs_f64(1.0 / rate).unwrap_or(Duration::from_secs(1));
    let times: Vec<Duration> = (1..=requests as u32).map(|i| gap * i).collect();
    let workload = Workload::drawn(templates.clone(), &times, 0, SEED.wrapping_add(which as u64));
    let contender = Contender::dispatch(Dispatcher::RoundRobin);
    let options = Options { keep_decisions: false, seed: SEED, ..Options::default() };
    let mut simulation = Simulation::deciding_by(contender, router, &workload, &[], options);
    let before = |arrival: &Arrival| arrival.at.saturating_sub(Duration::from_nanos(1));
    let states: Vec<LoadNow> = workload
        .arrivals
        .iter()
        .map(|arrival| {
            simulation.run_until(before(arrival));
            simulation.loads(0).first().copied().unwrap_or_default()
        })
        .collect();
    simulation.finish(gap * requests as u32 * 20 + Duration::from_secs(3_600));
    let seen = |(outcome, load): (&routebalance_sim::outcome::Outcome, &LoadNow)| {
        let prompt_tokens = f64::from(templates[outcome.template].prompt_tokens);
        let state = inputs(pool, load, prompt_tokens, f64::from(outcome.output_tokens));
        let milliseconds = |d: Duration| d.as_secs_f64() * 1e3;
        Some((state, milliseconds(outcome.ttft?), milliseconds(outcome.tpot()?)))
    };
    simulation.outcomes().iter().zip(&states).filter_map(seen).collect()
}

fn head(rows: Rows, settings: &boosting::Settings) -> (Forest, Errors, Residuals, f64) {
    let mut random = Random::new(SEED);
    let [mut train, mut validation] = [(); 2].map(|()| Rows::default());
    for (inputs, target) in rows.inputs.into_iter().zip(rows.targets) {
        let side = if random.uniform() < VALIDATION { &mut validation } else { &mut train };
        side.inputs.push(inputs);
        side.targets.push(target);
    }
    let forest = boosting::grow(&train, &validation, settings);
    let n = validation.targets.len().max(1) as f64;
    let mut errors = Errors { trees: forest.trees.len(), ..Errors::default() };
    let mut shares = [0.0; BINS];
    let mut squares = 0.0;
    for (inputs, target) in validation.inputs.iter().zip(&validation.targets) {
        let said = forest.prediction(inputs).max(1.0);
        errors.mae_ms += (said - target).abs() / n;
        errors.mape += (said / target - 1.0).abs() / n;
        squares += (said - target).powi(2) / n;
        if let Some(bin) = Residuals::bin(target / said) {
            shares[bin] += 1.0 / n;
        }
    }
    (forest, errors, Residuals::from_shares(n, &shares), squares.sqrt() / 1e3)
}
