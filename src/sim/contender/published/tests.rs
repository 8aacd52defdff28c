use super::*;
use crate::contender::{Inputs, PoolTimes, Tree};
use routebalance_core::config::Config;
use routebalance_core::fleet::{Budget, InstanceId, Slo};
use routebalance_core::router::Outlook;
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

fn fleet() -> Fleet {
    Config::parse(include_bytes!("../../../../envoy/routebalance.json")).unwrap().fleet
}

/// A request of which these qualities and lengths are expected, by model from small to large.
fn template(quality: [f64; 4], tokens: [f64; 4]) -> Template {
    let estimates = quality.iter().zip(tokens).map(|(quality, output_tokens)| {
        let (output_tokens_p80, output_tokens_p90) = (output_tokens, output_tokens);
        let estimate =
            Estimate { quality: *quality, quality_sd: 0.1, output_tokens, output_tokens_p80, output_tokens_p90 };
        (estimate, true)
    });
    let outlook = Outlook { estimates: estimates.collect(), familiarity: Some(1.0), prototype: None };
    Template { outlook: Some(outlook), ..Template::of_counts(100, vec![100; 5], vec![0.5; 5]) }
}

fn weights(quality: f64, latency: f64, cost: f64) -> Weights {
    Weights { quality, latency, cost }
}

/// Every pool takes this many milliseconds per token, and half a second to the first one.
fn fitted(tpot_ms: [f32; 4]) -> Tpot {
    let constant = |base: f32| Forest { base, trees: vec![Tree::default()] };
    let times = |ms: &f32| PoolTimes {
        tpot_ms: constant(*ms),
        ttft_ms: constant(500.0),
        residuals: Default::default(),
        sd: (0.0, 0.0),
    };
    Tpot::Fitted(Arc::new(Fitted { pools: tpot_ms.iter().map(|ms| Some(times(ms))).chain([None]).collect() }))
}

fn idle() -> Vec<LoadNow> {
    vec![LoadNow::default(); 14]
}

/// PUBLISHED.md, section 6: `tau L` with a free slot, else `tau (D / b + L)`; arm 4 knows no load.
#[test]
fn the_published_time() {
    let fleet = fleet();
    let load = |running: f64, waiting: f64, pending_output_tokens: f64| LoadNow {
        running,
        waiting,
        pending_output_tokens,
        ..LoadNow::default()
    };
    let pool = &fleet.pools[0];
    let truth = |running: f64| latency::tpot_seconds(&pool.profile, running);
    let new = |tpot: Tpot| Published { tpot, ..Published::new(weights(0.0, 1.0, 0.0)) };
    for (name, published, load, expected) in [
        ("true, free", new(Tpot::True), load(4.0, 0.0, 800.0), 200.0 * truth(4.0)),
        ("true, behind a queue", new(Tpot::True), load(4.0, 1.0, 800.0), (800.0 / 4.0 + 200.0) * truth(4.0)),
        ("true, no slot", new(Tpot::True), load(256.0, 0.0, 25_600.0), (100.0 + 200.0) * truth(256.0)),
        ("static", new(Tpot::Static), load(4.0, 9.0, 800.0), 200.0 * 0.0102),
        ("fitted, free", new(fitted([30.0, 1.0, 1.0, 1.0])), load(4.0, 0.0, 800.0), 200.0 * 0.03),
        ("fitted, behind a queue", new(fitted([30.0, 1.0, 1.0, 1.0])), load(4.0, 1.0, 800.0), 400.0 * 0.03),
        ("at least 1 ms", new(fitted([0.2, 1.0, 1.0, 1.0])), load(0.0, 0.0, 0.0), 200.0 * 0.001),
    ] {
        let template = template([0.5; 4], [200.4; 4]);
        let mut loads = idle();
        loads[0] = load;
        let times = published.times(&fleet, &template, 200.4, &loads);
        let candidate = published.candidate(&fleet, &template, InstanceId::new(0), &loads[0], times[0]).unwrap();
        assert!((candidate.seconds - expected).abs() < 1e-6, "{name}: {} {expected}", candidate.seconds);
    }
}

/// The order of the published inputs, and what stands for what reports do not have.
#[test]
fn the_published_inputs() {
    let load = LoadNow {
        running: 7.0,
        waiting: 2.0,
        pending_prompt_tokens: 300.0,
        pending_output_tokens: 900.0,
        kv_use: Some(0.25),
        ..LoadNow::default()
    };
    let fleet = fleet();
    let all = inputs(&fleet.pools[0], &load, 100.0, 51.0);
    let blocks = 0.75 * 366_000.0 / 16.0;
    let state = [7.0, 7.0, 2.0, 300.0, 900.0, 2_048.0, 2_048.0, 256.0, 0.25, blocks, 0.0];
    let request = [100.0, 51.0, 125.0, 150.0, 1_200.0, 100.0, 51.0, 150.0];
    let mut expected = Inputs::default();
    for (slot, value) in expected[6..].iter_mut().zip(state.into_iter().chain(request)) {
        *slot = value;
    }
    assert_eq!(all, expected);
}

#[test]
fn score_and_ties() {
    let fleet = fleet();
    let even = template([0.5; 4], [100.0; 4]);
    let best_is_third = template([0.1, 0.2, 0.9, 0.8], [100.0; 4]);
    let chosen = |published: &Published, template: &Template, loads: &[LoadNow]| {
        published.choose(&fleet, template, 100.0, None, loads).unwrap()
    };
    let quality = Published::new(weights(1.0, 0.0, 0.0));
    let running = |n: f64| LoadNow { running: n, ..LoadNow::default() };
    let mut loads = idle();
    (loads[8], loads[9], loads[10]) = (running(3.0), running(1.0), running(2.0));
    assert_eq!(chosen(&quality, &best_is_third, &loads), InstanceId::new(9), "of equals the shortest queue");
    let by_time = Published { tie: Tie::Time, ..quality.clone() };
    assert_eq!(chosen(&by_time, &best_is_third, &loads), InstanceId::new(9), "and the shortest time is the same one's");
    let cost = Published::new(weights(0.0, 0.0, 1.0));
    assert_eq!(chosen(&cost, &even, &idle()), InstanceId::new(0), "the cheapest");
    let latency = Published { tpot: fitted([30.0, 20.0, 10.0, 40.0]), ..Published::new(weights(0.0, 1.0, 0.0)) };
    assert_eq!(chosen(&latency, &even, &idle()), InstanceId::new(8), "the fastest by the trees");
    // 1 - .1 is the difference of raw qualities, 1 that of rescaled ones: against a cost of .84 of the largest.
    let narrow = template([0.5, 0.5, 0.5, 0.6], [100.0; 4]);
    let half = Published::new(weights(0.6, 0.0, 0.4));
    assert_eq!(chosen(&half, &narrow, &idle()), InstanceId::new(11), "rescaled");
    let raw = Published { quality: QualityNormalisation::Raw, ..half };
    assert_eq!(chosen(&raw, &narrow, &idle()), InstanceId::new(0), "raw");
}

/// PUBLISHED.md, section 5: within a batch, the longest first, each sees a queue where the one before went.
#[test]
fn a_batch_reckons_with_itself() {
    let fleet = fleet();
    let published = Published::new(weights(0.0, 0.0, 1.0));
    let (short, long) = (template([0.5; 4], [50.0; 4]), template([0.5; 4], [400.0, 400.0, 400.0, 700.9]));
    let mut loads = idle();
    let batch = [(&short, None), (&long, None), (&short, None)];
    let assigned = published.assign(&fleet, &batch, &mut loads, Duration::from_secs(1));
    let order: Vec<usize> = assigned.iter().map(|(request, _)| *request).collect();
    let instances: Vec<usize> = assigned.iter().map(|(_, choice)| choice.as_ref().unwrap().instance.index()).collect();
    assert_eq!((order, instances), (vec![1, 0, 2], vec![0, 1, 2]));
    assert_eq!((loads[0].waiting, loads[0].pending_prompt_tokens, loads[0].pending_output_tokens), (1.0, 100.0, 700.0));
    let in_order = Published { longest_first: false, ..published };
    let order: Vec<usize> =
        in_order.assign(&fleet, &batch, &mut idle(), Duration::ZERO).into_iter().map(|(request, _)| request).collect();
    assert_eq!(order, [0, 1, 2]);
}

/// What a request does not say is what the published code takes for it.
#[test]
fn defaults_of_a_demand() {
    let template = template([0.5; 4], [100.0; 4]);
    let tokens_of =
        |budget: Budget| demand(&template, Some(&Constraints { budget, ..Constraints::default() })).budget_tokens;
    assert_eq!(tokens_of(Budget::default()), Some(256.0));
    assert_eq!(tokens_of(Budget { usd: Some(1.0), tokens: None }), None);
    assert_eq!(tokens_of(Budget { usd: Some(1.0), tokens: Some(7) }), Some(7.0));
    let long = Constraints { slo: Slo { ttft: Some(Duration::MAX), tpot: None }, ..Constraints::default() };
    let demand = demand(&template, Some(&long));
    assert_eq!((demand.ttft_seconds, demand.tpot_seconds, demand.max_tokens), (10.0, 0.2, 1_024.0));
}

#[test]
fn filters_and_budgets() {
    let fleet = fleet();
    let template = template([0.1, 0.2, 0.3, 0.9], [100.0; 4]);
    let quality = |filter, calibrated| Published {
        filter,
        calibrated,
        tpot: fitted([10.0, 20.0, 30.0, 40.0]),
        ..Published::new(weights(1.0, 0.0, 0.0))
    };
    let ms = Duration::from_millis;
    let limits = |ttft: u64, tpot: u64, usd: Option<f64>| Constraints {
        slo: Slo { ttft: Some(ms(ttft)), tpot: Some(ms(tpot)) },
        budget: Budget { usd, tokens: None },
        ..Constraints::default()
    };
    for (name, filter, calibrated, constraints, model) in [
        ("no filter", Filter::Off, false, limits(1, 1, None), 3),
        ("time per token", Filter::SlosServe, false, limits(1_000, 35, None), 2),
        ("tiered", Filter::Tiered, false, limits(1_000, 25, None), 1),
        ("a constant to the first token: 50 ms", Filter::Tiered, false, limits(60, 25, None), 1),
        ("nobody: all", Filter::Tiered, false, limits(40, 25, None), 3),
        ("calibrated: 500 ms are too many, so all", Filter::SlosServe, true, limits(60, 25, None), 3),
        (
            "inline: 100 tokens are within the default of 256",
            Filter::Inline(routebalance_core::fleet::Mode::Strict),
            false,
            limits(1_000, 35, None),
            2,
        ),
        // 100 prompt tokens and 100 of the answer: 4e-5 USD on the third, 7.8e-5 on the fourth.
        ("budget", Filter::Tiered, false, limits(9_000, 190, Some(5e-5)), 2),
        ("nobody within the budget: the cheapest", Filter::Tiered, false, limits(9_000, 190, Some(1e-6)), 0),
    ] {
        let published = quality(filter, calibrated);
        let assigned = published.assign(&fleet, &[(&template, Some(constraints))], &mut idle(), Duration::ZERO);
        let choice = assigned[0].1.as_ref().unwrap();
        assert_eq!(fleet.pool_of(choice.instance).unwrap().1.model.index(), model, "{name}");
        let tariff = fleet.models[model].tariff;
        let left =
            constraints.budget.usd.map(|usd| (usd - 100.0 * tariff.usd_per_input_token) / tariff.usd_per_output_token);
        let expected = left.map(|tokens| tokens.floor().max(1.0) as u32);
        assert_eq!(choice.max_tokens, expected, "{name}");
    }
}
