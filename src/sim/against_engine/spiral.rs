//! The router with a memory of placements in front of engines that cache prefixes: what affinity gains, and that it cannot herd.

#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

use crate::engine::{Detail, Engine, EventKind, Job, blocks_of};
use std::time::Duration;

use routebalance_core::affinity::*;
use routebalance_core::config::Config;
use routebalance_core::learning::Learned;
use routebalance_core::openai::{Api, Prompt, RequestScan};
use routebalance_core::random::Random;
use routebalance_core::reckoning::LoadNow;
use routebalance_core::router::{Ask, Router, Verdict};

const MODEL: &str = "Qwen2.5-7B-Instruct";
const CHARS_PER_TOKEN: usize = 4;
const OUTPUT_TOKENS: u32 = 100;

/// What is asked, and of whom.
#[derive(Clone, Copy)]
struct Case {
    affinity: bool,
    /// Different long beginnings.
    prefixes: usize,
    prefix_chars: usize,
    requests: usize,
    /// Requests per second.
    rate: f64,
    /// How many times as slow as the others the first instance is, unknown to the router.
    slow: f64,
}

/// What came of it.
struct Outcome {
    mean_ttft: f64,
    /// Share of the requests that went to each instance.
    shares: Vec<f64>,
    hit_rate: f64,
}

fn prompt(text: &str) -> Result<Prompt, String> {
    let mut scan = RequestScan::new(Api::ChatCompletions);
    let body = serde_json::json!({"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": OUTPUT_TOKENS});
    scan.push(body.to_string().as_bytes());
    scan.finish().map_err(|e| e.to_string())
}

fn words(random: &mut Random, chars: usize) -> String {
    let mut text = String::new();
    while text.len() < chars {
        text.push_str(&format!("word{} ", (random.uniform() * 1e6) as u32));
    }
    text
}

#[derive(Clone, Copy)]
struct Flight {
    instance: usize,
    sent: Duration,
    prefill_tokens: f64,
    began: bool,
}

fn run(case: Case, seed: u64) -> Result<Outcome, String> {
    let mut config = Config::parse(include_bytes!("../../../envoy/routebalance.json")).map_err(|e| e.to_string())?;
    config.affinity.prefix = case.affinity;
    config.policies.iter_mut().for_each(|p| p.objective = routebalance_core::fleet::Objective::Absolute);
    let router = Router::new(config, None);
    let fleet = &router.config().fleet;
    let pool = fleet.pools.iter().find(|p| fleet.models[p.model.index()].name == MODEL).ok_or("no pool")?;
    let mut engines: Vec<Engine> = (0..pool.instances.len())
        .map(|i| {
            let mut profile = pool.profile;
            if i == 0 {
                profile.tpot_ms *= case.slow;
                profile.prefill_tokens_per_second /= case.slow;
            }
            Engine::new(profile, pool.limits, Detail::Milestones)
        })
        .collect();
    let first = pool.instances.first().ok_or("no instance")?.index();
    let mut random = Random::new(seed);
    let prefixes: Vec<String> = (0..case.prefixes).map(|_| words(&mut random, case.prefix_chars)).collect();
    let mut memory = Memory::new(fleet);
    let mut flights: Vec<Option<Flight>> = Vec::new();
    let (mut sent, mut ttft, mut now) = (vec![0.0; engines.len()], 0.0, Duration::ZERO);
    let mut settle = |engines: &mut Vec<Engine>, flights: &mut Vec<Option<Flight>>, now: Duration| {
        for event in engines.iter_mut().flat_map(|e| e.advance(now)) {
            let flight = &mut flights[event.id as usize];
            match event.kind {
                EventKind::FirstToken => {
                    if let Some(flight) = flight {
                        flight.began = true;
                        ttft += (event.at - flight.sent).as_secs_f64();
                    }
                }
                EventKind::Finished(_) => *flight = None,
                _ => {}
            }
        }
    };
    for id in 0..case.requests {
        now += Duration::from_secs_f64(-(1.0 - random.uniform()).ln() / case.rate);
        settle(&mut engines, &mut flights, now);
        let prefix = &prefixes[(random.uniform() * case.prefixes as f64) as usize];
        let text = format!("{prefix}{}", words(&mut random, 300));
        let prompt = prompt(&text)?;
        let keys = router.keys(Api::ChatCompletions, &prompt, None);
        let recall = router.recall(&memory, &keys, &prompt, now);
        let mut loads = vec![LoadNow { trust: 1.0, ..LoadNow::default() }; fleet.instances.len()];
        for (i, engine) in engines.iter().enumerate() {
            let load = &mut loads[first + i];
            let held = || flights.iter().flatten().filter(|f| f.instance == i);
            (load.running, load.waiting) = (engine.running() as f64, (engine.len() - engine.running()) as f64);
            load.pending_output_tokens = held().count() as f64 * f64::from(OUTPUT_TOKENS);
            load.pending_prompt_tokens = held().filter(|f| !f.began).map(|f| f.prefill_tokens).sum();
        }
        let policy = router.config().default_policy;
        let ask = Ask { held: recall.held(), ..Ask::new(Api::ChatCompletions, &prompt, policy) };
        let Verdict::Decided(decision) = router.route(&ask, Some(&loads), &Learned::default()) else {
            return Err("not decided".to_owned());
        };
        memory.place(&decision.placement(&keys, now).ok_or("nothing is generated")?);
        let instance = decision.to.instance.index() - first;
        sent[instance] += 1.0;
        let prefill_tokens = decision.prefill_tokens() as f64;
        flights.push(Some(Flight { instance, sent: now, prefill_tokens, began: false }));
        let prompt_tokens = text.len().div_ceil(CHARS_PER_TOKEN) as u32;
        let job = Job { id: id as u64, prompt_tokens, output_tokens: OUTPUT_TOKENS, max_tokens: OUTPUT_TOKENS };
        engines[instance].submit_blocks(now, job, blocks_of(&text, CHARS_PER_TOKEN, 0)).map_err(|_| "too long")?;
    }
    settle(&mut engines, &mut flights, now + Duration::from_secs(3_600));
    assert!(flights.iter().all(Option::is_none), "everything ends");
    let sum = |of: fn(&crate::engine::Counters) -> u64| engines.iter().map(|e| of(e.counters())).sum::<u64>() as f64;
    Ok(Outcome {
        mean_ttft: ttft / case.requests as f64,
        shares: sent.iter().map(|n| n / case.requests as f64).collect(),
        hit_rate: sum(|c| c.prefix_hits) / sum(|c| c.prefix_queries),
    })
}

/// Forty long beginnings, of which one instance cannot keep all: affinity divides them among the instances.
#[test]
fn affinity_saves_prefill() -> Result<(), String> {
    let case = Case { affinity: true, prefixes: 40, prefix_chars: 20_000, requests: 300, rate: 4.0, slow: 1.0 };
    for seed in 0..3 {
        let (on, off) = (run(case, seed)?, run(Case { affinity: false, ..case }, seed)?);
        println!(
            "seed {seed}: mean TTFT {:.0} ms with, {:.0} ms without; hits {:.2} and {:.2}",
            on.mean_ttft * 1e3,
            off.mean_ttft * 1e3,
            on.hit_rate,
            off.hit_rate
        );
        assert!(on.mean_ttft < 0.8 * off.mean_ttft, "seed {seed}: {} s against {} s", on.mean_ttft, off.mean_ttft);
        assert!(on.hit_rate > off.hit_rate + 0.1, "seed {seed}: {} against {}", on.hit_rate, off.hit_rate);
    }
    Ok(())
}

/// All requests begin alike. The instance that has the prefix is not chosen for ever: load spreads as soon as its queue costs more
/// than the prefill, and nobody waits longer for it than without affinity.
#[test]
fn one_prefix_for_all_does_not_herd() -> Result<(), String> {
    for (rate, seed) in [(1.0, 1), (5.0, 2), (20.0, 3), (40.0, 4)] {
        let case = Case { affinity: true, prefixes: 1, prefix_chars: 20_000, requests: 300, rate, slow: 1.0 };
        let (on, off) = (run(case, seed)?, run(Case { affinity: false, ..case }, seed)?);
        let most = on.shares.iter().copied().fold(0.0, f64::max);
        println!(
            "rate {rate}: shares {:?}, mean TTFT {:.0} ms with, {:.0} ms without",
            on.shares,
            on.mean_ttft * 1e3,
            off.mean_ttft * 1e3
        );
        assert!(on.mean_ttft < 1.1 * off.mean_ttft, "rate {rate}: {} s against {} s", on.mean_ttft, off.mean_ttft);
        assert!(rate < 20.0 || most < 0.3, "rate {rate}: {:?}", on.shares);
    }
    Ok(())
}

/// The instance that got the prefix first is four times as slow as the others, and the router does not know: its queue tells.
#[test]
fn a_slow_holder_does_not_keep_winning() -> Result<(), String> {
    let case = Case { affinity: true, prefixes: 1, prefix_chars: 20_000, requests: 300, rate: 20.0, slow: 4.0 };
    for seed in 0..3 {
        let on = run(case, seed)?;
        println!("seed {seed}: shares {:?}", on.shares);
        assert!(on.shares[0] < 0.2, "seed {seed}: more than its fair share: {:?}", on.shares);
        assert!(on.shares.iter().all(|share| *share > 0.02), "seed {seed}: starved: {:?}", on.shares);
    }
    Ok(())
}
