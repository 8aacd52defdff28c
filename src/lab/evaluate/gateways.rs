//! Latency behind many gateways: each sees its own dispatches at once and those of the others in reports only.

use std::time::Duration;

use anyhow::{Context, Result};
use comfy_table::Table;
use serde_json::{Value, json};

use super::EvaluateArgs;
use super::cells::{measured, spread};
use routebalance_core::config::Config;
use routebalance_core::fleet::{Fleet, Instance, InstanceId, ModelId, Pool, PoolId};
use routebalance_core::router::Router;
use routebalance_sim::outcome::Summary;
use routebalance_sim::simulation::{Options, Simulation};
use routebalance_sim::workload::{Arrivals, ChatMix, Workload, sustainable_rates};

const GATEWAYS: [usize; 4] = [1, 2, 8, 32];
const UTILISATIONS: [f64; 2] = [0.6, 0.8];
/// Mean and p99 behind many gateways may exceed those behind one by these factors.
const MEAN_RATIO_MAX: f64 = 1.1;
const P99_RATIO_MAX: f64 = 1.2;
/// Time that a fleet needs to fill up; requests of that time do not count.
const WARM_UP: Duration = Duration::from_secs(60);

/// Name of the fleet as it is.
const CONFIGURED: &str = "configured";
const MANY_INSTANCES: usize = 32;
const SMALL_BATCH: u32 = 8;
const SHORT_ANSWER_TOKENS: f64 = 20.0;

struct Case {
    name: String,
    router: Router,
    policy: usize,
}

struct Job {
    case: usize,
    gateways: usize,
    utilisation: f64,
    seed: u64,
}

pub(super) fn run(config: &Config, args: &EvaluateArgs) -> Result<(Value, bool)> {
    let cases = cases(config)?;
    let seeds = args.seeds.unwrap_or(if args.quick { 4 } else { 20 });
    let end = WARM_UP + Duration::from_secs(if args.quick { 60 } else { 120 });
    let mut jobs = Vec::new();
    for seed in 0..seeds {
        for case in 0..cases.len() {
            for utilisation in UTILISATIONS {
                jobs.extend(GATEWAYS.map(|gateways| Job { case, gateways, utilisation, seed }));
            }
        }
    }
    let summaries = measured(&jobs, |job| simulate(&cases[job.case], job, end));
    let mut cells = Vec::new();
    let mut table = Table::new();
    table.set_header(["fleet", "utilisation", "gateways", "mean s", "p99 s", "mean ratio", "p99 ratio", "ttft ratio"]);
    let mut passed = true;
    for (c, case) in cases.iter().enumerate() {
        for utilisation in UTILISATIONS {
            let summaries_behind = |gateways: usize| -> Vec<&Summary> {
                let is_of = |j: &Job| j.case == c && j.gateways == gateways && j.utilisation == utilisation;
                jobs.iter().zip(&summaries).filter(|(j, _)| is_of(j)).map(|(_, s)| s).collect()
            };
            let one = summaries_behind(1);
            for gateways in GATEWAYS {
                let many = summaries_behind(gateways);
                let values = |value: fn(&Summary) -> f64| many.iter().map(|s| value(s)).collect::<Vec<_>>();
                let ratios = |value: fn(&Summary) -> f64| -> Vec<f64> {
                    many.iter().zip(&one).map(|(many, one)| value(many) / value(one)).collect()
                };
                let (mean, mean_sd) = spread(&values(|s| s.e2e.mean));
                let (p99, p99_sd) = spread(&values(|s| s.e2e.p99));
                let (mean_ratio, mean_ratio_sd) = spread(&ratios(|s| s.e2e.mean));
                let (p99_ratio, p99_ratio_sd) = spread(&ratios(|s| s.e2e.p99));
                let (ttft_ratio, _) = spread(&ratios(|s| s.ttft.mean));
                let unanswered: usize = many.iter().map(|s| s.requests - s.answered).sum();
                passed &= mean_ratio <= MEAN_RATIO_MAX && p99_ratio <= P99_RATIO_MAX && unanswered == 0;
                table.add_row([
                    case.name.clone(),
                    format!("{utilisation}"),
                    gateways.to_string(),
                    format!("{mean:.3} ± {mean_sd:.3}"),
                    format!("{p99:.3} ± {p99_sd:.3}"),
                    format!("{mean_ratio:.3} ± {mean_ratio_sd:.3}"),
                    format!("{p99_ratio:.3} ± {p99_ratio_sd:.3}"),
                    format!("{ttft_ratio:.3}"),
                ]);
                cells.push(json!({
                    "fleet": case.name, "gateways": gateways, "utilisation": utilisation, "seeds": seeds,
                    "mean_ms": mean * 1e3, "mean_ms_sd": mean_sd * 1e3, "p99_ms": p99 * 1e3, "p99_ms_sd": p99_sd * 1e3,
                    "mean_ratio": mean_ratio, "mean_ratio_sd": mean_ratio_sd,
                    "p99_ratio": p99_ratio, "p99_ratio_sd": p99_ratio_sd, "ttft_mean_ratio": ttft_ratio,
                    "unanswered": unanswered,
                }));
            }
        }
    }
    println!("{table}");
    let (cells, other_fleets): (Vec<Value>, Vec<Value>) = cells.into_iter().partition(|c| c["fleet"] == CONFIGURED);
    Ok((json!({ "preset": "gateways", "cells": cells, "other_fleets": other_fleets }), passed))
}

/// The fleet of the configuration under its default policy; its largest pool alone; and as many instances of that pool as make
/// reports lag behind most: short batches, so that one request more or less on an instance matters, and many arrivals between two
/// reports.
fn cases(config: &Config) -> Result<Vec<Case>> {
    let largest = config.fleet.pools.iter().max_by_key(|p| p.instances.len()).context("the fleet has no pool")?;
    let case = |name: String, fleet: Fleet| Case {
        name,
        router: Router::new(Config { fleet, ..config.clone() }, None),
        policy: config.default_policy.index(),
    };
    let mut small = largest.clone();
    small.limits.max_running = SMALL_BATCH;
    let many = alone(&config.fleet, &small, MANY_INSTANCES);
    let mut short = many.clone();
    short.models[0].output_tokens_prior = SHORT_ANSWER_TOKENS;
    Ok(vec![
        case(CONFIGURED.to_owned(), config.fleet.clone()),
        case(largest.name.clone(), alone(&config.fleet, largest, largest.instances.len())),
        case(format!("{MANY_INSTANCES} of batch {SMALL_BATCH}"), many),
        case(format!("{MANY_INSTANCES} of batch {SMALL_BATCH}, short answers"), short),
    ])
}

/// A fleet of one pool with so many instances.
fn alone(fleet: &Fleet, pool: &Pool, instances: usize) -> Fleet {
    Fleet {
        models: vec![fleet.models[pool.model.index()].clone()],
        pools: vec![Pool {
            model: ModelId::new(0),
            instances: (0..instances).map(InstanceId::new).collect(),
            ..pool.clone()
        }],
        instances: (0..instances)
            // Each with a key of its own: workers tell them apart by it.
            .map(|i| Instance::new(format!("192.0.2.{}:8000", i + 1), PoolId::new(0)))
            .collect(),
    }
}

fn simulate(case: &Case, job: &Job, end: Duration) -> Summary {
    let fleet = &case.router.config().fleet;
    let templates = ChatMix::default().templates(fleet, job.seed);
    let rate = job.utilisation * sustainable_rates(fleet, &templates).iter().sum::<f64>();
    let times = Arrivals::Poisson { rate }.times(end, job.seed);
    let workload = Workload::drawn(templates, &times, case.policy, job.seed);
    let options = Options { gateways: job.gateways, seed: job.seed, ..Options::default() };
    let mut simulation = Simulation::new(&case.router, &workload, &[], options);
    simulation.finish(end * 10);
    Summary::from_outcomes(simulation.outcomes().iter().filter(|o| o.at >= WARM_UP))
}
