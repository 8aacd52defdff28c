//! How far the forecast of a request's times is from what happens, by utilisation.

use std::time::Duration;

use anyhow::{Context, Result};
use comfy_table::Table;
use serde_json::{Value, json};

use super::EvaluateArgs;
use super::cells::measured;
use crate::statistics::percentile;
use routebalance_core::config::Config;
use routebalance_core::latency::Basis;
use routebalance_core::router::Router;
use routebalance_sim::simulation::{Options, Simulation};
use routebalance_sim::workload::{Arrivals, ChatMix, Workload, sustainable_rates};

const UTILISATIONS: [f64; 10] = [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2];
/// The default first: its errors are the cell's own.
const BASES: [(Basis, &str); 3] = [(Basis::Both, "both"), (Basis::Prior, "prior"), (Basis::Learned, "learned")];
/// Median errors of the default are to be at most this ...
const AIM: f64 = 0.15;
/// ... up to this utilisation.
const AIM_UP_TO: f64 = 0.9;
/// Time that a fleet needs to fill up; requests of that time do not count.
const WARM_UP: Duration = Duration::from_secs(90);
/// Requests go on coming for so long after the last one that counts: else that one would see a fleet that empties.
const AFTERWARDS: Duration = Duration::from_secs(90);

struct Job {
    basis: Basis,
    utilisation: f64,
    seed: u64,
}

/// `|predicted / actual - 1|` of requests.
#[derive(Default)]
struct Errors {
    ttft: Vec<f64>,
    /// Of the time to the last token, given how many tokens there were.
    e2e_true_length: Vec<f64>,
    e2e: Vec<f64>,
}

impl Errors {
    fn add(&mut self, other: &Errors) {
        self.ttft.extend(&other.ttft);
        self.e2e_true_length.extend(&other.e2e_true_length);
        self.e2e.extend(&other.e2e);
    }
}

pub(super) fn run(config: &Config, args: &EvaluateArgs) -> Result<(Value, bool)> {
    let routers = BASES.map(|(basis, _)| {
        let mut config = config.clone();
        config.latency_estimate = basis;
        (basis, Router::new(config, None))
    });
    let seeds = args.seeds.unwrap_or(if args.quick { 1 } else { 4 });
    let end = WARM_UP + Duration::from_secs(if args.quick { 60 } else { 120 });
    let mut jobs = Vec::new();
    for seed in 0..seeds {
        for utilisation in UTILISATIONS {
            jobs.extend(BASES.map(|(basis, _)| Job { basis, utilisation, seed }));
        }
    }
    let errors = measured(&jobs, |job| {
        let router = routers.iter().find(|(basis, _)| *basis == job.basis);
        router.map_or_else(Errors::default, |(_, router)| simulate(router, job, end))
    });
    let mut table = Table::new();
    table.set_header(["utilisation", "estimate", "requests", "TTFT", "E2E, true length", "E2E, predicted length"]);
    let mut cells = Vec::new();
    let mut missed = Vec::new();
    for utilisation in UTILISATIONS {
        let mut cell = json!({ "utilisation": utilisation, "seeds": seeds, "estimate": BASES[0].1 });
        for (i, (basis, name)) in BASES.into_iter().enumerate() {
            let mut all = Errors::default();
            let of_cell = |job: &Job| job.basis == basis && job.utilisation == utilisation;
            jobs.iter().zip(&errors).filter(|(job, _)| of_cell(job)).for_each(|(_, errors)| all.add(errors));
            let requests = all.ttft.len();
            let [ttft, true_length, e2e] =
                [&mut all.ttft, &mut all.e2e_true_length, &mut all.e2e].map(|errors| MedianAndP90::from_values(errors));
            if i == 0 && utilisation <= AIM_UP_TO && ttft.median.max(true_length.median) > AIM {
                missed.push(utilisation.to_string());
            }
            let texts = [ttft, true_length, e2e].map(|q| format!("{:.1} / {:.1} %", q.median * 1e2, q.p90 * 1e2));
            table.add_row([&[utilisation.to_string(), name.to_owned(), requests.to_string()], &texts[..]].concat());
            let fields = json!({
                "requests": requests, "ttft_error": ttft.json(), "e2e_error_true_length": true_length.json(),
                "e2e_error": e2e.json(),
            });
            if i == 0 {
                if let (Some(cell), Some(fields)) = (cell.as_object_mut(), fields.as_object()) {
                    cell.extend(fields.clone());
                }
            } else {
                cell["by_estimate"][name] = fields;
            }
        }
        cells.push(cell);
    }
    let policy = config.policy(config.default_policy).context("there is no default policy")?;
    println!("policy {}: median / 90th percentile of |predicted / actual - 1|\n{table}", policy.name);
    let aim = format!("medians of at most {AIM} for TTFT and for E2E of true length up to {AIM_UP_TO}");
    match missed.as_slice() {
        [] => println!("{aim}: met"),
        at => println!("{aim}: missed at {}", at.join(", ")),
    }
    Ok((
        json!({
            "preset": "latency-error", "policy": policy.name, "objective": policy.objective, "aim_missed_at": missed,
            "cells": cells,
        }),
        true,
    ))
}

fn simulate(router: &Router, job: &Job, end: Duration) -> Errors {
    let config = router.config();
    let templates = ChatMix::default().templates(&config.fleet, job.seed);
    let rate = job.utilisation * sustainable_rates(&config.fleet, &templates).iter().sum::<f64>();
    let times = Arrivals::Poisson { rate }.times(end + AFTERWARDS, job.seed);
    let workload = Workload::drawn(templates, &times, config.default_policy.index(), job.seed);
    let mut simulation = Simulation::new(router, &workload, &[], Options { seed: job.seed, ..Options::default() });
    simulation.finish(Duration::from_secs(3_600));
    let mut errors = Errors::default();
    for outcome in simulation.into_outcomes().iter().filter(|o| o.at >= WARM_UP && o.at < end && o.is_answered()) {
        let (Some(decision), Some(ttft), Some(e2e)) = (&outcome.decision, outcome.ttft, outcome.e2e) else { continue };
        let error = |predicted: f64, actual: Duration| (predicted / actual.as_secs_f64() - 1.0).abs();
        let forecast = &decision.expected.forecast;
        errors.ttft.push(error(forecast.ttft_seconds, ttft));
        errors.e2e_true_length.push(error(forecast.e2e_of(f64::from(outcome.output_tokens)), e2e));
        errors.e2e.push(error(forecast.e2e_seconds, e2e));
    }
    errors
}

#[derive(Clone, Copy)]
struct MedianAndP90 {
    median: f64,
    p90: f64,
}

impl MedianAndP90 {
    /// Nearest-rank; zeros if there are no values.
    fn from_values(values: &mut [f64]) -> MedianAndP90 {
        values.sort_by(f64::total_cmp);
        MedianAndP90 { median: percentile(values, 50), p90: percentile(values, 90) }
    }

    fn json(self) -> Value {
        json!({ "median": self.median, "p90": self.p90 })
    }
}
