//! Latency behind many gateways: each sees its own dispatches at once and those of the others in reports only.

use std::time::Duration;

use anyhow::{Context, Result};
use comfy_table::Table;
use serde_json::{Value, json};

use super::EvaluateArgs;
use super::cells::{measured, spread};
use crate::config::Config;
use crate::router::Router;
use crate::sim::outcome::Summary;
use crate::sim::simulation::{Options, Simulation};
use crate::sim::workload::{Arrivals, ChatMix, Workload, sustainable_rates};

const GATEWAYS: [usize; 4] = [1, 2, 8, 32];
const UTILISATIONS: [f64; 2] = [0.6, 0.8];
/// Mean and p99 behind many gateways may exceed those behind one by these factors.
const MEAN_RATIO_MAX: f64 = 1.1;
const P99_RATIO_MAX: f64 = 1.2;
/// Time that a fleet needs to fill up; requests of that time do not count.
const WARM_UP: Duration = Duration::from_secs(60);

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
    table.set_header(["fleet", "utilisation", "gateways", "mean s", "p99 s", "mean ratio", "p99 ratio"]);
    let mut passed = true;
    for (c, case) in cases.iter().enumerate() {
        for utilisation in UTILISATIONS {
            let of = |gateways: usize| -> Vec<&Summary> {
                let is_of = |j: &Job| j.case == c && j.gateways == gateways && j.utilisation == utilisation;
                jobs.iter().zip(&summaries).filter(|(j, _)| is_of(j)).map(|(_, s)| s).collect()
            };
            let one = of(1);
            for gateways in GATEWAYS {
                let many = of(gateways);
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
    Ok((json!({ "preset": "gateways", "cells": cells }), passed))
}

/// The fleet of the configuration under its default policy, and its largest pool alone.
fn cases(config: &Config) -> Result<Vec<Case>> {
    let mut single = config.clone();
    let largest = config.fleet.pools.iter().max_by_key(|p| p.instances.len()).context("the fleet has no pool")?;
    let name = largest.name.clone();
    single.fleet = alone(config, &name);
    let case = |name: &str, config: &Config| Case {
        name: name.to_owned(),
        router: Router::new(config.clone(), None),
        policy: config.default_policy,
    };
    Ok(vec![case("fleet", config), case(&name, &single)])
}

fn alone(config: &Config, name: &str) -> crate::fleet::Fleet {
    let fleet = &config.fleet;
    let mut pool = fleet.pools.iter().find(|p| p.name == name).cloned().unwrap_or_else(|| fleet.pools[0].clone());
    let mut instances: Vec<_> = pool.instances.iter().filter_map(|i| fleet.instances.get(*i).cloned()).collect();
    let model = fleet.models[pool.model].clone();
    instances.iter_mut().for_each(|i| i.pool = 0);
    pool.instances = (0..instances.len()).collect();
    pool.model = 0;
    crate::fleet::Fleet { models: vec![model], pools: vec![pool], instances }
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
    Summary::of(simulation.outcomes().iter().filter(|o| o.at >= WARM_UP))
}
