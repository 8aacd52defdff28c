//! Latency profiles, measured: one copy of a model on its share of GPUs, alone in virtual time, at rates from idle to where it can
//! hardly keep up.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::sample::Sample;
use crate::evaluate::cells;
use crate::statistics::{mean_or_zero, percentile};
use routebalance_core::fleet::{LatencyProfile, Limits};
use routebalance_core::random::Random;
use routebalance_plan::device::{Device, ModelSize, kv_gb_alone, limits};
use routebalance_plan::problem::{PlannedModel, ShardMemory};
use routebalance_plan::profile::{Point, Profile, QUANTILES, Times};
use routebalance_plan::setup::{Choice, Setup};
use routebalance_sim::engine::{Detail, Engine, Event, EventKind, Job};
use routebalance_sim::simulation::Options;

/// Rates at which a copy is measured, of what it serves when more wait.
const FRACTIONS: [f64; 14] = [0.02, 0.1, 0.2, 0.35, 0.5, 0.6, 0.7, 0.78, 0.85, 0.9, 0.94, 0.96, 0.975, 0.985];
/// The mean time to the first token is known to within this part of itself, with 95 % confidence ...
const PRECISION: f64 = 0.015;
/// ... unless that takes more requests than this ...
const REQUESTS_MAX: usize = 160_000;
/// ... of which it must be known to within this part. Where it is not, the mean depends on how long one looks: the copy cannot keep
/// up, and its profile ends before.
const PRECISION_LEAST: f64 = 0.05;
/// Requests of the first attempt.
const REQUESTS_FIRST: usize = 10_000;
/// Batches of running sequences that show how many requests a copy serves when more wait: so many that the last one, which is not
/// filled up again, counts little.
const FULL_BATCHES: usize = 40;
/// How much faster than a copy can serve they come.
const FASTER: f64 = 1.3;
/// Of the requests those before are warming up, and those after see the load fall.
const MEASURED: [f64; 2] = [0.1, 0.97];
/// Parts of a run whose means are taken as independent, and Student's 97.5 % quantile for so many.
const BATCHES: usize = 20;
const STUDENT: f64 = 2.093;

/// A model to be measured.
#[derive(Clone, Debug, PartialEq)]
pub struct MeasuredModel {
    /// Its name and weights; the name is one of the sample's.
    pub model: PlannedModel,
    /// What its speed depends on.
    pub size: ModelSize,
}

/// What to measure.
#[derive(Clone, Debug, PartialEq)]
pub struct Measuring {
    /// The models.
    pub models: Vec<MeasuredModel>,
    /// The kinds of GPUs.
    pub devices: Vec<Device>,
    /// Memory that shards need: what does not fit is not measured.
    pub memory: ShardMemory,
    /// Shards of a copy.
    pub tensor_parallel: Vec<u32>,
    /// Compute of each shard, percent.
    pub shares_percent: Vec<u32>,
    /// Tokens after which clients want answers cut; `None` if they want all.
    pub max_tokens: Option<u32>,
    /// Seed of arrivals and of the prompts' order.
    pub seed: u64,
}

/// A copy: indices of its model and kind, and its shape.
#[derive(Clone, Copy, Debug)]
struct Copy {
    model: usize,
    device: usize,
    tensor_parallel: u32,
    share_percent: u32,
}

/// Measures all copies that fit, on both cores, with a progress bar. Models and kinds of the profiles are indices into those of
/// `measuring`. Times are those at the gateway: the network's are in them.
///
/// # Errors
/// A model is not one of the sample's, or nothing fits.
pub fn run(measuring: &Measuring, sample: &Sample) -> Result<Vec<Profile>> {
    let mut lengths = Vec::new();
    for measured in &measuring.models {
        let name = &measured.model.name;
        let place = sample.models.iter().position(|model| model == name);
        let Some(place) = place else { anyhow::bail!("{name}: the prompts know of {}", sample.models.join(", ")) };
        let tokens_of = |p: &super::sample::SamplePrompt| (p.prompt_tokens, p.output_tokens[place]);
        lengths.push(sample.prompts.iter().map(tokens_of).collect::<Vec<_>>());
    }
    let mut copies = Vec::new();
    for (device, kind) in measuring.devices.iter().enumerate() {
        for (model, measured) in measuring.models.iter().enumerate() {
            for &tensor_parallel in &measuring.tensor_parallel {
                let fits = measuring.memory.shard_gb(&measured.model, tensor_parallel) <= kind.memory_gb;
                let shares = measuring.shares_percent.iter().filter(|_| fits);
                copies.extend(shares.map(|&share_percent| Copy { model, device, tensor_parallel, share_percent }));
            }
        }
    }
    ensure!(!copies.is_empty(), "no model fits on any GPU, however it is split: more memory or more shards are needed");
    let profiles = cells::measured(&copies, |copy| profile(measuring, copy, &lengths[copy.model]));
    if let Some(none) = profiles.iter().find(|profile| profile.points.len() < 2) {
        anyhow::bail!(
            "{}: with {} shards of {} % it serves too few of the prompts to be measured: max_model_len or its memory is too small",
            measuring.models[none.model].model.name,
            none.tensor_parallel,
            none.share_percent
        );
    }
    Ok(profiles)
}

/// Measures the copies of a setup again, each with the prompts that these prices send to its model: those of a small model may be
/// shorter than all prompts are. One price for each model, in the order of the sample's models, which are the setup's. A model that
/// gets none keeps no profile.
///
/// # Errors
/// As [`run`].
pub fn refine(measuring: &Measuring, sample: &Sample, setup: &Setup, prices: &[f64]) -> Result<Vec<Profile>> {
    ensure!(
        measuring.models.iter().map(|m| &m.model.name).eq(&sample.models),
        "the prompts are of {}, not of the plan's models",
        sample.models.join(", ")
    );
    let mut lengths = vec![Vec::new(); sample.models.len()];
    for prompt in &sample.prompts {
        let gain = |m: usize| prompt.expected[m].quality - prices.get(m).copied().unwrap_or_default();
        let deployed = (0..sample.models.len()).filter(|m| setup.0.get(*m).is_some_and(|c| c.replicas > 0));
        // Of equals the first, as the router has it.
        let best = deployed.reduce(|best, m| if gain(m) > gain(best) { m } else { best });
        if let Some(model) = best {
            lengths[model].push((prompt.prompt_tokens, prompt.output_tokens[model]));
        }
    }
    let of_setup = |(model, choice): (usize, &Choice)| Copy {
        model,
        device: choice.kind,
        tensor_parallel: choice.tensor_parallel,
        share_percent: choice.share_percent,
    };
    let used = setup.0.iter().enumerate().filter(|(model, _)| !lengths[*model].is_empty());
    let copies: Vec<Copy> = used.map(of_setup).collect();
    ensure!(
        copies.iter().all(|copy| copy.device < measuring.devices.len()),
        "the setup is on a kind of GPUs that is not measured"
    );
    Ok(cells::measured(&copies, |copy| profile(measuring, copy, &lengths[copy.model])))
}

/// How a copy works when it is alone, and what it holds.
fn engine_of(measuring: &Measuring, copy: &Copy) -> (LatencyProfile, Limits) {
    let (measured, device) = (&measuring.models[copy.model], &measuring.devices[copy.device]);
    let shard_gb = measuring.memory.shard_gb(&measured.model, copy.tensor_parallel);
    let kv_gb = kv_gb_alone(&measuring.memory, device.memory_gb, shard_gb, copy.share_percent);
    (
        device.profile(&measured.size, copy.tensor_parallel, copy.share_percent),
        limits(&measured.size, copy.tensor_parallel, kv_gb),
    )
}

fn profile(measuring: &Measuring, copy: &Copy, lengths: &[(u32, u32)]) -> Profile {
    let (profile, limits) = engine_of(measuring, copy);
    let max_tokens = measuring.max_tokens.unwrap_or(u32::MAX);
    let bench = Bench { profile, limits, lengths, max_tokens, seed: measuring.seed };
    let most = bench.most();
    let mut points: Vec<Point> = FRACTIONS.iter().map_while(|fraction| bench.point(fraction * most)).collect();
    make_monotone(&mut points);
    Profile {
        model: copy.model,
        kind: copy.device,
        tensor_parallel: copy.tensor_parallel,
        share_percent: copy.share_percent,
        fixed_ms: profile.overhead_ms + network_ms(),
        points,
    }
}

/// One engine and the requests it gets.
struct Bench<'a> {
    profile: LatencyProfile,
    limits: Limits,
    /// Tokens of prompts and answers; each request is one of them, drawn at random.
    lengths: &'a [(u32, u32)],
    max_tokens: u32,
    seed: u64,
}

/// What became of the requests of a run, in the order of arrival; milliseconds.
struct Run {
    arrived_ms: Vec<f64>,
    ttft_ms: Vec<f64>,
    e2e_ms: Vec<f64>,
    tokens: Vec<u32>,
    busy: f64,
}

impl Bench<'_> {
    /// Requests per second while more wait than it can take. All at once they would run, and end, in step with each other, which
    /// requests that come one by one do not: so they come a little faster than that.
    fn most(&self) -> f64 {
        let requests = (FULL_BATCHES * self.limits.max_running as usize).max(REQUESTS_FIRST);
        let served = |rate: f64| {
            let run = self.run(rate, requests);
            let ends = run.e2e_ms.iter().zip(&run.arrived_ms).map(|(ms, arrived)| ms + arrived);
            let last_ms = ends.filter(|ms| ms.is_finite()).fold(0.0, f64::max);
            requests as f64 / (last_ms / 1e3).max(1e-9)
        };
        served(FASTER * served(f64::INFINITY))
    }

    /// What happens at a rate, measured until the mean time to the first token is known well enough; `None` if it never is.
    fn point(&self, rate: f64) -> Option<Point> {
        let mut requests = REQUESTS_FIRST;
        loop {
            let run = self.run(rate, requests);
            let [from, to] = MEASURED.map(|part| (part * requests as f64) as usize);
            if run.ttft_ms[from..to].iter().all(|ms| ms.is_nan()) {
                return None;
            }
            let error = relative_error(&run.ttft_ms[from..to]);
            // The error falls with the root of the number.
            let error_at_most = error * (requests as f64 / REQUESTS_MAX as f64).sqrt();
            if error_at_most > 2.0 * PRECISION_LEAST || (requests >= REQUESTS_MAX && error > PRECISION_LEAST) {
                return None;
            }
            if requests >= REQUESTS_MAX || error <= PRECISION {
                let first = &run.ttft_ms[from..to];
                let end = &run.e2e_ms[from..to];
                let between = first.iter().zip(end).zip(&run.tokens[from..to]);
                let per_token = between.filter(|(_, tokens)| **tokens > 1);
                let tpot = per_token.map(|((first, end), tokens)| (end - first) / f64::from(tokens - 1)).collect();
                return Some(Point {
                    rate,
                    busy: run.busy,
                    ttft: times(first.to_vec()),
                    tpot: times(tpot),
                    e2e: times(end.to_vec()),
                });
            }
            requests *= 2;
        }
    }

    /// Requests at a rate, independent of each other; all at once if it is infinite.
    fn run(&self, rate: f64, requests: usize) -> Run {
        let mut random = Random::for_use(self.seed, 40);
        let mut engine = Engine::new(self.profile, self.limits, Detail::Milestones);
        let mut run = Run {
            arrived_ms: Vec::with_capacity(requests),
            ttft_ms: vec![0.0; requests],
            e2e_ms: vec![0.0; requests],
            tokens: Vec::with_capacity(requests),
            busy: 0.0,
        };
        let network_ms = network_ms();
        let mut events: Vec<Event> = Vec::new();
        let note = |run: &mut Run, events: &mut Vec<Event>| {
            for event in events.drain(..) {
                let i = event.id as usize;
                let after_ms = event.at.as_secs_f64() * 1e3 - run.arrived_ms[i] + network_ms;
                match event.kind {
                    EventKind::FirstToken => run.ttft_ms[i] = after_ms,
                    EventKind::Finished(_) => run.e2e_ms[i] = after_ms,
                    _ => {}
                }
            }
        };
        let (mut seconds, mut worked, mut warm_seconds) = (0.0, Duration::ZERO, 0.0);
        for id in 0..requests {
            seconds += if rate.is_finite() { random.exponential(1.0 / rate) } else { 0.0 };
            let (prompt_tokens, output_tokens) = self.lengths[random.below(self.lengths.len())];
            let now = Duration::from_secs_f64(seconds);
            engine.advance_into(now, &mut events);
            note(&mut run, &mut events);
            if id == (MEASURED[0] * requests as f64) as usize {
                (worked, warm_seconds) = (engine.worked(), seconds);
            }
            run.arrived_ms.push(seconds * 1e3);
            run.tokens.push(output_tokens.min(self.max_tokens));
            let job = Job { id: id as u64, prompt_tokens, output_tokens, max_tokens: self.max_tokens };
            if engine.submit(now, job).is_err() {
                // Longer than its context: no instance takes it, so that it is no load and has no time.
                run.tokens[id] = 0;
                (run.ttft_ms[id], run.e2e_ms[id]) = (f64::NAN, f64::NAN);
            }
        }
        run.busy = ((engine.worked() - worked).as_secs_f64() / (seconds - warm_seconds).max(1e-9)).min(1.0);
        while let Some(next) = engine.next_event() {
            engine.advance_into(next, &mut events);
        }
        note(&mut run, &mut events);
        run
    }
}

/// There and back.
fn network_ms() -> f64 {
    Options::default().network.as_secs_f64() * 2e3
}

/// Of those that are known.
fn known_mean(values: &[f64]) -> f64 {
    mean_or_zero(values.iter().filter(|value| value.is_finite()))
}

/// Half the width of the mean's 95 % interval over the mean, by means of consecutive batches.
fn relative_error(values: &[f64]) -> f64 {
    let means: Vec<f64> = values.chunks((values.len() / BATCHES).max(1)).take(BATCHES).map(known_mean).collect();
    let all = known_mean(&means);
    let variance = means.iter().map(|m| (m - all).powi(2)).sum::<f64>() / (means.len() - 1).max(1) as f64;
    STUDENT * (variance / means.len() as f64).sqrt() / all.max(1e-9)
}

fn times(mut values: Vec<f64>) -> Times {
    values.retain(|v| v.is_finite());
    values.sort_by(f64::total_cmp);
    let quantile = |q: f64| percentile(&values, (q * 100.0).round() as usize);
    Times { mean_ms: mean_or_zero(&values), quantiles_ms: Some(QUANTILES.map(quantile)) }
}

/// Makes every statistic the nearest one that does not fall with the rate (isotonic regression): what falls is chance, or the first
/// of a few requests that share a step.
fn make_monotone(points: &mut [Point]) {
    let statistics: [fn(&mut Point) -> &mut Times; 3] = [|p| &mut p.ttft, |p| &mut p.tpot, |p| &mut p.e2e];
    for of in statistics {
        let means: Vec<f64> = points.iter_mut().map(|p| of(p).mean_ms).collect();
        points.iter_mut().zip(isotonic(&means)).for_each(|(p, mean)| of(p).mean_ms = mean);
        for q in 0..QUANTILES.len() {
            let values: Vec<f64> = points.iter_mut().filter_map(|p| Some(of(p).quantiles_ms?[q])).collect();
            for (point, value) in points.iter_mut().zip(isotonic(&values)) {
                if let Some(quantiles) = &mut of(point).quantiles_ms {
                    quantiles[q] = value;
                }
            }
        }
    }
    let busy: Vec<f64> = points.iter().map(|p| p.busy).collect();
    points.iter_mut().zip(isotonic(&busy)).for_each(|(p, busy)| p.busy = busy);
}

/// The values that do not fall and are nearest to these, by squares: neighbours that fall are replaced by their mean (pool adjacent
/// violators, Barlow et al. 1972).
fn isotonic(values: &[f64]) -> Vec<f64> {
    let mut pools: Vec<(f64, usize)> = Vec::new();
    for value in values {
        let mut pool = (*value, 1);
        while let Some(last) = pools.last().filter(|last| last.0 > pool.0) {
            let n = last.1 + pool.1;
            pool = ((last.0 * last.1 as f64 + pool.0 * pool.1 as f64) / n as f64, n);
            pools.pop();
        }
        pools.push(pool);
    }
    pools.into_iter().flat_map(|(value, n)| std::iter::repeat_n(value, n)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn isotonic_regression_pools_what_falls() {
        let rows: [(&[f64], &[f64]); 5] = [
            (&[1.0, 2.0, 3.0], &[1.0, 2.0, 3.0]),
            (&[1.0, 3.0, 2.0, 4.0], &[1.0, 2.5, 2.5, 4.0]),
            (&[3.0, 2.0, 1.0], &[2.0, 2.0, 2.0]),
            (&[1.0, 5.0, 4.0, 3.0], &[1.0, 4.0, 4.0, 4.0]),
            (&[], &[]),
        ];
        for (values, expected) in rows {
            assert_eq!(isotonic(values), expected);
        }
    }

    /// With answers of one token and one sequence at a time, a copy is a queue with one server and equal service times: the mean
    /// wait is `rho s / (2 (1 - rho))` (Pollaczek and Khinchine).
    #[test]
    fn a_copy_that_serves_one_at_a_time_is_the_queue_of_the_textbook() {
        let profile = LatencyProfile {
            tpot_ms: 10.0,
            tpot_growth_per_running: 0.0,
            tpot_growth_per_thousand_context_tokens: 0.0,
            prefill_tokens_per_second: 10_000.0,
            overhead_ms: 5.0,
        };
        let limits = Limits { max_running: 1, kv_tokens: 10_000, max_model_len: 1_000 };
        let bench = Bench { profile, limits, lengths: &[(100, 7)], max_tokens: 1, seed: 3 };
        assert!((bench.most() - 50.0).abs() < 0.5, "{}", bench.most());
        for rho in [0.1, 0.5, 0.8] {
            let point = bench.point(rho * 50.0).unwrap();
            let expected = 1.0 + 5.0 + 20.0 + rho * 20.0 / (2.0 * (1.0 - rho));
            // One seed; near capacity the waits of consecutive batches depend on each other, so the error is more than the run thinks.
            assert!((point.ttft.mean_ms / expected - 1.0).abs() < 0.04, "{rho}: {} ms", point.ttft.mean_ms);
            assert!((point.busy / rho - 1.0).abs() < 0.05, "{rho}: busy {}", point.busy);
            assert_eq!(point.tpot.mean_ms, 0.0, "one token has no time between tokens");
        }
        assert_eq!(bench.point(60.0), None, "it cannot keep up");
    }

    #[test]
    fn a_request_that_nobody_takes_does_not_count() {
        let profile = Device::named("A100-80GB").unwrap().profile(
            &ModelSize { weights_gb: 15.2, layers: 28.0, kv_bytes_per_token: 57_344.0, max_model_len: 500 },
            1,
            100,
        );
        let limits = Limits { max_running: 256, kv_tokens: 100_000, max_model_len: 500 };
        let bench = Bench { profile, limits, lengths: &[(100, 20), (600, 20)], max_tokens: 64, seed: 3 };
        let point = bench.point(2.0).unwrap();
        assert!((30.0..60.0).contains(&point.ttft.mean_ms), "{} ms", point.ttft.mean_ms);
        assert!((point.ttft.quantiles_ms.unwrap()[4]) < 100.0);
        assert_eq!(Bench { lengths: &[(600, 20)], ..bench }.point(2.0), None, "there is nothing to measure");
    }
}
