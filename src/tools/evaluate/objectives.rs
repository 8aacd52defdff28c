//! What the objectives make of the same requests: quality, time and money over their weights.

use std::time::Duration;

use anyhow::Result;
use comfy_table::Table;
use serde_json::{Value, json};

use super::EvaluateArgs;
use super::cells::measured;
use crate::config::Config;
use crate::fleet::{ModelKind, Objective, QualityNormalisation, Weights};
use crate::openai::{Api, RequestScan};
use crate::predictor::Predictor;
use crate::router::Router;
use crate::sim::outcome::{Outcome, Summary};
use crate::sim::simulation::{Options, Simulation};
use crate::sim::workload::{Arrivals, Template, Workload, sustainable_rates};
use crate::tools::prompts::PromptSet;

const UTILISATIONS: [f64; 3] = [0.4, 0.8, 1.1];
/// Time that a fleet needs to fill up; requests of that time do not count.
const WARM_UP: Duration = Duration::from_secs(30);
/// Weights that both scores are compared at: the paper's presets and its sweep of the quality weight.
const PAPER_WEIGHTS: [(f64, f64, f64); 8] = [
    (1.0, 1.0, 1.0),
    (0.8, 0.1, 0.1),
    (0.1, 0.8, 0.1),
    (0.1, 0.1, 0.8),
    (0.5, 0.25, 0.25),
    (0.7, 0.15, 0.15),
    (0.9, 0.05, 0.05),
    (0.6, 0.4, 0.0),
];
/// Latency and cost weights of the absolute score, beside a quality weight of 1.
const LATENCY_WEIGHTS: [f64; 9] = [0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.4, 1.0, 4.0];
const COST_WEIGHTS: [f64; 8] = [0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 4.0];
/// A cell matches another one if its quality is at most this much lower, and its cost at most this factor higher.
const QUALITY_SLACK: f64 = 0.003;
const COST_SLACK: f64 = 1.01;

struct Job {
    objective: Objective,
    normalisation: QualityNormalisation,
    weights: Weights,
    utilisation: f64,
    seed: u64,
}

#[derive(Clone, Copy, Default)]
struct Means {
    quality: f64,
    usd: f64,
    e2e: f64,
    p99: f64,
    answered: f64,
}

pub(super) fn run(config: &Config, args: &EvaluateArgs) -> Result<(Value, bool)> {
    let seeds = args.seeds.unwrap_or(if args.quick { 1 } else { 2 });
    let end = WARM_UP + Duration::from_secs(if args.quick { 30 } else { 90 });
    let templates = templates(config)?;
    let mut settings = Vec::new();
    for normalisation in [QualityNormalisation::MinMax, QualityNormalisation::Raw] {
        settings.extend(PAPER_WEIGHTS.map(|w| (Objective::Paper, normalisation, normalised(w))));
    }
    settings.extend(PAPER_WEIGHTS.map(|w| (Objective::Absolute, QualityNormalisation::Raw, normalised(w))));
    settings.extend(grid().into_iter().map(|w| (Objective::Absolute, QualityNormalisation::Raw, normalised(w))));
    let mut jobs = Vec::new();
    for utilisation in UTILISATIONS {
        for (objective, normalisation, weights) in &settings {
            jobs.extend((0..seeds).map(|seed| Job {
                objective: *objective,
                normalisation: *normalisation,
                weights: *weights,
                utilisation,
                seed,
            }));
        }
    }
    let results = measured(&jobs, |job| simulate(config, &templates, job, end));
    let cells: Vec<(&Job, Means)> = jobs
        .chunks(seeds.max(1) as usize)
        .zip(results.chunks(seeds.max(1) as usize))
        .filter_map(|(jobs, results)| Some((jobs.first()?, mean(results))))
        .collect();
    let mut table = Table::new();
    table.set_header([
        "utilisation",
        "objective",
        "w_q / w_l / w_c",
        "quality",
        "USD per 1,000",
        "E2E mean s",
        "E2E p99 s",
        "best absolute: mean, p99",
    ]);
    let mut rows = Vec::new();
    for (job, cell) in &cells {
        let best = cells
            .iter()
            .filter(|(other, c)| {
                job.objective == Objective::Paper
                    && other.objective == Objective::Absolute
                    && other.utilisation == job.utilisation
                    && c.quality >= cell.quality - QUALITY_SLACK
                    && c.usd <= cell.usd * COST_SLACK
            })
            .min_by(|(_, a), (_, b)| a.e2e.total_cmp(&b.e2e))
            .map(|(_, c)| (c.e2e / cell.e2e, c.p99 / cell.p99));
        let Weights { quality, latency, cost } = job.weights;
        let name = match (job.objective, job.normalisation) {
            (Objective::Paper, QualityNormalisation::MinMax) => "paper, min-max",
            (Objective::Paper, QualityNormalisation::Raw) => "paper, raw",
            _ => "absolute",
        };
        table.add_row([
            job.utilisation.to_string(),
            name.to_owned(),
            format!("{quality:.2} / {latency:.2} / {cost:.2}"),
            format!("{:.3}", cell.quality),
            format!("{:.4}", cell.usd * 1e3),
            format!("{:.2}", cell.e2e),
            format!("{:.2}", cell.p99),
            best.map_or(String::new(), |(mean, p99)| format!("x {mean:.2}, x {p99:.2}")),
        ]);
        rows.push(json!({
            "utilisation": job.utilisation, "objective": name, "weights": [quality, latency, cost], "seeds": seeds,
            "quality": cell.quality, "usd_per_1000": cell.usd * 1e3, "e2e_mean_ms": cell.e2e * 1e3, "e2e_p99_ms": cell.p99 * 1e3,
            "answered_share": cell.answered, "best_absolute_mean_ratio": best.map(|b| b.0), "best_absolute_p99_ratio": best.map(|b| b.1),
        }));
    }
    println!("{table}");
    Ok((json!({ "preset": "objectives", "cells": rows }), true))
}

fn normalised((quality, latency, cost): (f64, f64, f64)) -> Weights {
    let sum = quality + latency + cost;
    Weights { quality: quality / sum, latency: latency / sum, cost: cost / sum }
}

fn grid() -> Vec<(f64, f64, f64)> {
    LATENCY_WEIGHTS.iter().flat_map(|l| COST_WEIGHTS.map(|c| (1.0, *l, c))).collect()
}

/// The demo's prompts, which the predictor was not trained on, with what the real models answered.
fn templates(config: &Config) -> Result<Vec<Template>> {
    let router = Router::new(config.clone(), Predictor::load().ok());
    let set = PromptSet::from_jsonl(include_str!("../../../models/data/demo_prompts.jsonl"))?;
    let fleet = &config.fleet;
    let generating: Vec<usize> =
        (0..fleet.models.len()).filter(|m| fleet.models[*m].kind == ModelKind::Generate).collect();
    let rows = set.rows().iter().filter(|row| generating.iter().all(|m| row.q.contains_key(&fleet.models[*m].name)));
    let template = |row: &crate::tools::prompts::PromptRow| {
        let mut scan = RequestScan::new(Api::ChatCompletions);
        scan.push(json!({ "messages": [{ "role": "user", "content": row.prompt }] }).to_string().as_bytes());
        let prompt = scan.finish().map_err(|e| anyhow::anyhow!("{}: {e}", row.id))?;
        let of = |values: &std::collections::BTreeMap<String, f64>, m: usize| {
            values.get(&fleet.models[m].name).copied().unwrap_or(0.0)
        };
        Ok(Template {
            outlook: Some(router.outlook(&prompt, &generating)),
            prompt_tokens: prompt.text.estimated_tokens() as u32,
            output_tokens: (0..fleet.models.len()).map(|m| of(&row.len, m).round() as u32).collect(),
            quality: (0..fleet.models.len()).map(|m| of(&row.q, m)).collect(),
            blocks: std::sync::Arc::default(),
            prompt,
        })
    };
    rows.map(template).collect()
}

fn simulate(config: &Config, templates: &[Template], job: &Job, end: Duration) -> Means {
    let mut config = config.clone();
    let policy = config.default_policy;
    if let Some(policy) = config.policies.get_mut(policy) {
        (policy.weights, policy.objective, policy.quality_normalisation) =
            (job.weights, job.objective, job.normalisation);
    }
    let router = Router::new(config, None);
    let fleet = &router.config().fleet;
    let rate = job.utilisation * sustainable_rates(fleet, templates).iter().sum::<f64>();
    let times = Arrivals::Poisson { rate }.times(end, job.seed);
    let workload = Workload::drawn(templates.to_vec(), &times, policy, job.seed);
    let mut simulation = Simulation::new(&router, &workload, &[], Options { seed: job.seed, ..Options::default() });
    simulation.finish(end * 20);
    let counted: Vec<&Outcome> = simulation.outcomes().iter().filter(|o| o.at >= WARM_UP).collect();
    let summary = Summary::of(counted.iter().copied());
    let n = counted.len().max(1) as f64;
    let model = |o: &Outcome| o.decision.as_ref().map_or(0, |d| d.model);
    let quality = |o: &&Outcome| templates[o.template].quality[model(o)];
    let usd = |o: &&Outcome| {
        let tariff = fleet.models[model(o)].tariff;
        f64::from(templates[o.template].prompt_tokens) * tariff.usd_per_input_token
            + f64::from(templates[o.template].output_tokens[model(o)]) * tariff.usd_per_output_token
    };
    Means {
        quality: counted.iter().map(quality).sum::<f64>() / n,
        usd: counted.iter().map(usd).sum::<f64>() / n,
        e2e: summary.e2e.mean,
        p99: summary.e2e.p99,
        answered: summary.answered as f64 / n,
    }
}

fn mean(results: &[Means]) -> Means {
    let n = results.len().max(1) as f64;
    let of = |value: fn(&Means) -> f64| results.iter().map(value).sum::<f64>() / n;
    Means {
        quality: of(|m| m.quality),
        usd: of(|m| m.usd),
        e2e: of(|m| m.e2e),
        p99: of(|m| m.p99),
        answered: of(|m| m.answered),
    }
}
