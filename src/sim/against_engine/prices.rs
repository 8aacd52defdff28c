//! Prices that follow demand against the engine: a fleet whose largest pool saturates, at more and less demand than forecast.

use std::time::Duration;

use serde_json::json;

use crate::fault::{Fault, Scheduled};
use crate::outcome::Outcome;
use crate::simulation::{Options, Simulation};
use crate::workload::{Arrivals, ChatMix, Template, Workload, sustainable_rates};
use routebalance_core::config::Config;
use routebalance_core::fleet::{DemandLevel, InstanceId, Objective, OnlinePrices, Policy, PolicyId};
use routebalance_core::random::Random;
use routebalance_core::router::Router;
use routebalance_plan::prices::prices;
use routebalance_plan::scores::Scores;
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

const MODELS: usize = 3;
/// What the plan lets pools be used, and what all of them are at the forecast.
const PLANNED_USE: f64 = 0.8;
const FORECAST_USE: f64 = 0.6;
const SLO: Duration = Duration::from_millis(500);

/// Models of 3B, 7B and 32B parameters on 1, 2 and 2 instances that hold 16 sequences each.
fn config() -> Config {
    let mut json: serde_json::Value = serde_json::from_str(include_str!("../../../envoy/routebalance.json")).unwrap();
    json["models"].as_array_mut().unwrap().truncate(MODELS);
    json["pools"].as_array_mut().unwrap().truncate(MODELS);
    for (pool, instances) in [1, 2, 2].into_iter().enumerate() {
        json["pools"][pool]["instances"].as_array_mut().unwrap().truncate(instances);
        json["pools"][pool]["limits"]["max_running"] = json!(16);
    }
    json["predictor"]["enabled"] = json!(false);
    Config::parse(json.to_string().as_bytes()).unwrap()
}

/// Requests of which some gain much from larger models and some nothing; `lift` is what the largest gains more than in the sample.
fn templates(config: &Config, lift: f64, seed: u64) -> Vec<Template> {
    let mix = ChatMix { templates: 400, ..ChatMix::default() };
    let mut templates = mix.templates(&config.fleet, seed);
    let mut random = Random::for_use(seed, 7);
    for template in &mut templates {
        let estimates = &mut template.outlook.as_mut().unwrap().estimates;
        for (m, (estimate, _)) in estimates.iter_mut().enumerate() {
            let more = if m == MODELS - 1 { lift } else { 0.0 };
            let prior = config.fleet.models[m].quality_prior;
            estimate.quality = (prior + more + 0.15 * random.normal()).clamp(0.0, 1.0);
        }
    }
    templates
}

fn scores(templates: &[Template]) -> Scores {
    let qualities =
        |t: &Template| t.outlook.as_ref().unwrap().estimates.iter().map(|(e, _)| e.quality).collect::<Vec<f64>>();
    Scores::new(MODELS, templates.iter().flat_map(qualities).collect()).unwrap()
}

/// The plan at a rate: prices at which no pool is used more than planned, and where requests go with them.
fn planned(config: &Config, sample: &[Template], rate: f64) -> DemandLevel {
    let room: Vec<f64> = sustainable_rates(&config.fleet, sample).iter().map(|s| PLANNED_USE * s / rate).collect();
    let scores = scores(sample);
    let prices = prices(&scores, &room);
    let mut fractions = vec![0.0; MODELS];
    for row in scores.rows() {
        let gain = |m: &usize| row[*m] - prices[*m];
        let best = (0..MODELS).max_by(|a, b| gain(a).total_cmp(&gain(b))).unwrap();
        fractions[best] += 1.0 / scores.prompts() as f64;
    }
    DemandLevel { rate, prices, fractions }
}

#[derive(Debug)]
struct Seen {
    ttft_seconds: f64,
    score: f64,
    fractions: Vec<f64>,
}

fn seen(outcomes: &[Outcome], after: Duration) -> Seen {
    let counted: Vec<&Outcome> = outcomes.iter().filter(|o| o.at >= after).collect();
    let n = counted.len() as f64;
    let ttfts: Vec<f64> = counted.iter().filter_map(|o| o.ttft).map(|ttft| ttft.as_secs_f64()).collect();
    // Whoever is served late counts, and nearly everybody is served.
    assert!(ttfts.len() as f64 >= 0.99 * n, "{} of {n}", ttfts.len());
    let mut fractions = vec![0.0; MODELS];
    counted.iter().filter_map(|o| o.model).for_each(|m| fractions[m.index()] += 1.0 / n);
    Seen {
        ttft_seconds: ttfts.iter().sum::<f64>() / ttfts.len() as f64,
        score: counted.iter().filter_map(|o| o.decision.as_ref()).map(|d| d.quality.mean).sum::<f64>() / n,
        fractions,
    }
}

fn policy(config: &Config, levels: Vec<DemandLevel>, online: Option<OnlinePrices>, forecast: &DemandLevel) -> Policy {
    Policy {
        objective: Objective::Prices,
        prices: forecast.prices.clone(),
        demand_levels: levels,
        online_prices: online,
        ..config.policies[0].clone()
    }
}

/// What becomes of so much of the forecast under a policy, without the first half minute.
fn run(policy: Policy, templates: &[Template], rate: f64, faults: &[Scheduled], options: Options) -> Seen {
    let config = Config { policies: vec![policy], default_policy: PolicyId::new(0), routes: Vec::new(), ..config() };
    let router = Router::new(config, None);
    let times = Arrivals::Poisson { rate }.times(Duration::from_secs(150), 5);
    let workload = Workload::drawn(templates.to_vec(), &times, 0, 6);
    let mut simulation = Simulation::new(&router, &workload, faults, options);
    simulation.finish(Duration::from_secs(3_600));
    seen(simulation.outcomes(), Duration::from_secs(30))
}

#[test]
fn the_slo_is_kept_where_the_forecast_is_wrong() {
    let config = config();
    let sample = templates(&config, 0.0, 1);
    let forecast = FORECAST_USE * sustainable_rates(&config.fleet, &sample).iter().sum::<f64>();
    let level = |share: f64| planned(&config, &sample, share * forecast);
    let levels = [0.25, 0.5, 0.75, 1.0, 1.2, 1.5].map(level).to_vec();
    let online = OnlinePrices { ttft: SLO, max_correction: 0.3, time_constant: Duration::from_secs(10) };
    let ways = [
        ("static", Vec::new(), None),
        ("levels", levels.clone(), None),
        ("one level, online", vec![level(1.0)], Some(online)),
        ("levels, online", levels, Some(online)),
    ];
    let killed = [Scheduled { at: Duration::from_secs(60), fault: Fault::Kill { instance: InstanceId::new(4) } }];
    for (case, lift, faults) in [
        ("as forecast", 0.0, &[][..]),
        ("more gain from the largest", 0.15, &[]),
        ("half the largest dies", 0.0, &killed),
    ] {
        let real = templates(&config, lift, 2);
        for demand in [0.5, 0.8, 1.0, 1.2] {
            let seen = ways.each_ref().map(|(way, levels, online)| {
                let policy = policy(&config, levels.clone(), *online, &level(1.0));
                let seen = run(policy, &real, demand * forecast, faults, Options::default());
                let Seen { ttft_seconds, score, fractions } = &seen;
                println!(
                    "{case}, demand {demand}, {way}: TTFT {:.0} ms, score {score:.3}, {fractions:.2?}",
                    ttft_seconds * 1e3
                );
                seen
            });
            let [fixed, by_rate, one, all] = &seen;
            let slo = SLO.as_secs_f64();
            for (way, online, capable) in
                [("one level", one, faults.is_empty()), ("levels", all, faults.is_empty() || demand <= 1.0)]
            {
                let kept = online.ttft_seconds <= slo || (!capable && online.ttft_seconds < 0.2 * fixed.ttft_seconds);
                assert!(kept, "{case}, {demand}, {way}: {online:?}, {fixed:?}");
            }
            let is_wrong = case != "as forecast" && demand >= 1.0;
            assert!(
                !is_wrong || fixed.ttft_seconds > slo,
                "static prices know nothing of it: {case}, {demand}, {fixed:?}"
            );
            let is_right = case == "as forecast";
            assert!(!is_right || all.score > by_rate.score - 0.02, "what it costs at {demand}: {all:?}, {by_rate:?}");
        }
    }
}

/// Each of two gateways counts half of the requests, and reports tell of the other half.
#[test]
fn two_gateways_see_all_demand() {
    let config = config();
    let sample = templates(&config, 0.0, 1);
    let forecast = FORECAST_USE * sustainable_rates(&config.fleet, &sample).iter().sum::<f64>();
    let levels = [0.25, 0.5, 0.75, 1.0, 1.2, 1.5].map(|share| planned(&config, &sample, share * forecast)).to_vec();
    let online = OnlinePrices { ttft: SLO, max_correction: 0.3, time_constant: Duration::from_secs(10) };
    for demand in [0.5, 1.2] {
        let [one, two] = [1, 2].map(|gateways| {
            let policy = policy(&config, levels.clone(), Some(online), &levels[3]);
            let seen = run(policy, &sample, demand * forecast, &[], Options { gateways, ..Options::default() });
            println!(
                "demand {demand}, {gateways} gateways: TTFT {:.0} ms, score {:.3}",
                seen.ttft_seconds * 1e3,
                seen.score
            );
            seen
        });
        assert!(two.ttft_seconds <= SLO.as_secs_f64(), "{demand}: {two:?}");
        assert!((two.score - one.score).abs() < 0.02, "{demand}: {one:?}, {two:?}");
    }
}
