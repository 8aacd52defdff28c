//! Prices that follow demand against the engine: a fleet whose largest pool saturates, at more and less demand than forecast.

use serde_json::json;

use super::*;
use crate::config::Config;
use crate::fleet::Policy;
use crate::plan::prices::prices;
use crate::random::Random;
use crate::router::Router;
use crate::sim::fault::{Fault, Scheduled};
use crate::sim::outcome::Outcome;
use crate::sim::simulation::{Options, Simulation};
use crate::sim::workload::{Arrivals, ChatMix, Template, Workload, sustainable_rates};
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

const MODELS: usize = 3;
/// What the plan lets pools be used.
const PLANNED_USE: f64 = 0.8;
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

fn qualities(templates: &[Template]) -> Vec<Vec<f64>> {
    let of = |t: &Template| t.outlook.as_ref().unwrap().estimates.iter().map(|(e, _)| e.quality).collect();
    templates.iter().map(of).collect()
}

/// The plan at a rate: prices at which no pool is used more than planned, and where requests go with them.
fn planned(config: &Config, sample: &[Template], rate: f64) -> DemandLevel {
    let room: Vec<f64> = sustainable_rates(&config.fleet, sample).iter().map(|s| PLANNED_USE * s / rate).collect();
    let quality = qualities(sample);
    let prices = prices(&quality, &room);
    let mut fractions = vec![0.0; MODELS];
    for row in &quality {
        let gain = |m: &usize| row[*m] - prices[*m];
        let best = (0..MODELS).max_by(|a, b| gain(a).total_cmp(&gain(b))).unwrap();
        fractions[best] += 1.0 / quality.len() as f64;
    }
    DemandLevel { rate, prices, fractions }
}

#[derive(Debug)]
struct Seen {
    ttft: f64,
    score: f64,
    fractions: Vec<f64>,
}

fn seen(outcomes: &[Outcome], after: Duration) -> Seen {
    let counted: Vec<&Outcome> = outcomes.iter().filter(|o| o.at >= after).collect();
    let n = counted.len() as f64;
    let mut fractions = vec![0.0; MODELS];
    counted.iter().filter_map(|o| o.model).for_each(|m| fractions[m] += 1.0 / n);
    Seen {
        ttft: counted.iter().filter_map(|o| o.ttft).map(|t| t.as_secs_f64()).sum::<f64>() / n,
        score: counted.iter().filter_map(|o| o.decision.as_ref()).map(|d| d.quality).sum::<f64>() / n,
        fractions,
    }
}

fn policy(config: &Config, levels: Vec<DemandLevel>, online: Option<OnlinePrices>, forecast: &DemandLevel) -> Policy {
    Policy {
        objective: crate::fleet::Objective::Prices,
        prices: forecast.prices.clone(),
        demand_levels: levels,
        online_prices: online,
        ..config.policies[0].clone()
    }
}

fn run(policy: Policy, templates: &[Template], rate: f64, seconds: u64, faults: &[Scheduled]) -> Seen {
    let mut config = config();
    config.policies = vec![policy];
    config.default_policy = 0;
    config.routes = Vec::new();
    let router = Router::new(config, None);
    let end = Duration::from_secs(seconds);
    let times = Arrivals::Poisson { rate }.times(end, 5);
    let workload = Workload::drawn(templates.to_vec(), &times, 0, 6);
    let mut simulation = Simulation::new(&router, &workload, faults, Options::default());
    if std::env::var("TRACE").is_ok() {
        for t in (0..seconds).step_by(10) {
            simulation.run_until(Duration::from_secs(t));
            let g = &simulation.gateways()[0];
            if let Some(s) = g.prices.policies.first().and_then(|p| p.as_ref()) {
                let f = |v: &[f64]| v.iter().map(|x| format!("{x:.2}")).collect::<Vec<_>>().join(" ");
                let c = router.config();
                let loads = simulation.loads(0);
                let obs = Observation::of(&c.fleet, g.counters(0).unwrap(), &loads, &g.learned.speeds);
                let t_: Vec<f64> = obs.models.iter().map(|m| m.ttft_seconds.unwrap_or(-1.0)).collect();
                println!(
                    "t {t} rate {:.1} rates {} sur {:.2} relief {} delta {} prices {} ttft {} inflight {:.1} {:.1}",
                    s.rate(), f(&s.rates), s.surcharge, f(&s.relief), f(&s.corrections), f(&s.prices), f(&t_), s.in_flight[0], s.in_flight[1]
                );
            }
        }
    }
    simulation.finish(Duration::from_secs(seconds + 3_600));
    seen(simulation.outcomes(), Duration::from_secs(30))
}

#[test]
fn experiment() {
    let config = config();
    let sample = templates(&config, 0.0, 1);
    let sustained = sustainable_rates(&config.fleet, &sample);
    let forecast = 0.6 * sustained.iter().sum::<f64>();
    println!("sustained {sustained:?} forecast {forecast}");
    let level = |share: f64| planned(&config, &sample, share * forecast);
    let online = OnlinePrices { ttft: SLO, max_correction: 0.3, time_constant: Duration::from_secs(10) };
    for share in [0.5, 0.8, 1.0, 1.2, 1.4] {
        println!("{share}: {:?}", level(share));
    }
    let wide = || [0.25, 0.5, 0.75, 1.0, 1.2, 1.5].map(level).to_vec();
    let seconds = std::env::var("SECONDS_").map_or(300, |s| s.parse().unwrap());
    let dead = [Scheduled { at: Duration::from_secs(60), fault: Fault::Kill { instance: 4 } }];
    for (name, lift, heavy, faults) in [("as the sample", 0.0, 1.0, &[][..]), ("lifted", 0.15, 1.0, &[]), ("longer answers", 0.0, 1.2, &[]), ("dead", 0.0, 1.0, &dead)] {
        for share in [0.5, 0.8, 1.0, 1.2] {
            let mut real = templates(&config, lift, 2);
            for t in &mut real { t.output_tokens.iter_mut().for_each(|o| *o = (*o as f64 * heavy) as u32); }
            for (who, levels, online_) in [
                ("static", vec![], None),
                ("one level, online", vec![level(1.0)], Some(online)),
                ("levels", wide(), None),
                ("levels, online", wide(), Some(online)),
            ] {
                let s = run(policy(&config, levels, online_, &level(1.0)), &real, share * forecast, seconds, faults);
                println!("{name:15} {share:3} {who:18} ttft {:7.0} ms score {:.4} {:.2?}", s.ttft * 1e3, s.score, s.fractions);
            }
        }
    }
}
