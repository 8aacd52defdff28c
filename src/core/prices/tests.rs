use super::*;
use crate::config::Config;
use crate::random::Random;
use crate::reckoning::InstanceCounters;
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

const SECOND: Duration = Duration::from_secs(1);
const ONLINE: OnlinePrices =
    OnlinePrices { ttft: Duration::from_millis(500), max_correction: 0.3, time_constant: Duration::from_secs(10) };

fn level(rate: f64, prices: [f64; 3], fractions: [f64; 3]) -> DemandLevel {
    DemandLevel { rate, prices: prices.to_vec(), fractions: fractions.to_vec() }
}

fn levels() -> Vec<DemandLevel> {
    vec![level(10.0, [0.0, 0.1, 0.2], [0.2, 0.3, 0.5]), level(20.0, [0.0, 0.2, 0.4], [0.5, 0.25, 0.25])]
}

/// Three models that got so many requests, with these TTFT.
fn seen(sent: [u64; 3], ttft: [f64; 3]) -> Observation {
    let model = |m: usize| ModelNow { generates: true, sent: sent[m], ttft_seconds: Some(ttft[m]), there: 1.0 };
    Observation { models: (0..3).map(model).collect(), in_flight: 8.0, own_in_flight: 8.0 }
}

/// A steering after this many seconds of so many requests per second to each model.
fn steered(rates: [u64; 3], ttft: [f64; 3], seconds: u64) -> Steering {
    let mut steering = Steering::new(&levels());
    for t in 0..=seconds {
        steering.step(&levels(), Some(&ONLINE), &seen(rates.map(|rate| rate * t), ttft), SECOND);
    }
    steering
}

fn close(a: &[f64], b: &[f64]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-3)
}

#[test]
fn the_plan_is_interpolated_and_carried_on() {
    let rows = [
        ("below the lowest", 1.0, [0.0, 0.1, 0.2], [0.2, 0.3, 0.5]),
        ("the lowest", 10.0, [0.0, 0.1, 0.2], [0.2, 0.3, 0.5]),
        ("between", 15.0, [0.0, 0.15, 0.3], [0.35, 0.275, 0.375]),
        ("the highest", 20.0, [0.0, 0.2, 0.4], [0.5, 0.25, 0.25]),
        // From 2, 3 and 5 to 10, 5 and 5 requests per second: 8 of 10 further ones for the first, 2 for the second.
        ("beyond", 40.0, [0.0, 0.2, 0.4], [(10.0 + 16.0) / 40.0, (5.0 + 4.0) / 40.0, 5.0 / 40.0]),
    ];
    for (name, rate, prices, fractions) in rows {
        let aim = Aim::for_rate(&levels(), rate);
        assert!(close(&aim.prices, &prices) && close(&aim.fractions, &fractions), "{name}: {aim:?}");
    }
    let alone = Aim::for_rate(&levels()[1..], 40.0);
    assert!(close(&alone.fractions, &[0.75, 0.125, 0.125]), "further requests go to the cheapest: {alone:?}");
    let none = Aim::for_rate(&levels(), f64::INFINITY).fractions;
    assert!(close(&none, &levels()[1].fractions), "{none:?}");
}

#[test]
fn prices_are_bounded_whatever_is_seen() {
    let mut random = Random::new(11);
    let wild = |random: &mut Random| match random.below(8) {
        0 => f64::NAN,
        1 => f64::INFINITY,
        2 => f64::NEG_INFINITY,
        3 => -1.0,
        4 => 0.0,
        5 => 1e300,
        _ => random.uniform(),
    };
    for case in 0..60 {
        let levels = if case % 3 == 0 { levels()[..1].to_vec() } else { levels() };
        let settings = Some(ONLINE).filter(|_| case % 5 > 0);
        let mut steering = Steering::new(&levels);
        for step in 0..200 {
            let model = |random: &mut Random| ModelNow {
                generates: random.below(9) > 0,
                sent: if random.below(9) == 0 { u64::MAX } else { random.below(1_000_000) as u64 },
                ttft_seconds: Some(wild(random)).filter(|_| random.below(5) > 0),
                there: wild(random),
            };
            let models =
                (0..if random.below(20) == 0 { random.below(5) } else { 3 }).map(|_| model(&mut random)).collect();
            let seen = Observation { models, in_flight: wild(&mut random), own_in_flight: wild(&mut random) };
            let elapsed = [Duration::ZERO, PERIOD, SECOND, Duration::MAX][random.below(4)];
            steering.step(&levels, settings.as_ref(), &seen, elapsed);
            let Steering { prices, corrections, relief, surcharge, rates, .. } = &steering;
            let sound = prices.iter().all(|p| (0.0..=1.0 + 2.0 * ONLINE.max_correction).contains(p))
                && corrections.iter().all(|c| c.abs() <= ONLINE.max_correction)
                && relief.iter().all(|r| (0.0..=RELIEF_MAX).contains(r))
                && (0.0..=SURCHARGE_MAX).contains(surcharge)
                && rates.iter().all(|r| r.is_finite() && *r >= 0.0);
            assert!(sound && prices.len() == 3, "case {case}, step {step}: {seen:?} {steering:?}");
            assert!(prices.contains(&0.0), "the least is 0: {steering:?}");
            let back = steering.clone().sound(3, settings.as_ref());
            assert_eq!(back.as_ref(), Some(&steering), "what a step leaves is sound");
        }
    }
    let mut without = Steering::new(&[]);
    without.step(&[], Some(&ONLINE), &seen([1; 3], [0.1; 3]), SECOND);
    assert_eq!(without, Steering::default(), "without levels there is nothing to do");
}

/// Prompts of another kind than the plan's: its prices alone would give other fractions.
#[test]
fn requests_go_where_the_plan_wants_them() {
    for seed in 0..6 {
        let mut random = Random::new(seed);
        let levels = levels();
        let mut steering = Steering::new(&levels);
        let mut sent = [0_u64; 3];
        let mut late = [0.0; 3];
        for step in 0..2_000 {
            for _ in 0..5 {
                let gain = |m: usize, q: f64| q - steering.prices[m];
                let row = [0.3 + 0.2 * random.normal(), 0.55 + 0.2 * random.normal(), 0.8 + 0.2 * random.normal()];
                let best = (0..3).max_by(|a, b| gain(*a, row[*a]).total_cmp(&gain(*b, row[*b]))).unwrap();
                sent[best] += 1;
                late[best] += f64::from(u8::from(step >= 1_000)) / 5_000.0;
            }
            steering.step(&levels, Some(&ONLINE), &seen(sent, [0.1; 3]), PERIOD);
        }
        assert!((steering.rate() / 20.0 - 1.0).abs() < 0.02, "{steering:?}");
        for (got, planned) in late.iter().zip(&levels[1].fractions) {
            assert!((got - planned).abs() < 0.03, "seed {seed}: {late:?}, {steering:?}");
        }
    }
}

#[test]
fn what_is_slow_or_gone_gets_less() {
    let fractions = |steering: &Steering, there: [f64; 3]| {
        let mut seen = seen([0; 3], [0.1; 3]);
        seen.models.iter_mut().zip(there).for_each(|(m, there)| m.there = there);
        steering.fractions(&Aim::for_rate(&levels(), steering.demand(&levels())).fractions, &seen)
    };
    // At the lower level, as planned.
    let [calm, slow, slower] = [0.1, 0.9, 5.0].map(|ttft| steered([2, 3, 5], [0.1, 0.1, ttft], 120));
    let of = |steering: &Steering| fractions(steering, [1.0; 3]);
    assert!(close(&of(&calm), &levels()[0].fractions), "{calm:?}");
    assert_eq!((calm.surcharge, calm.relief.clone()), (0.0, vec![0.0; 3]));
    assert!(of(&slow)[2] < of(&calm)[2] && of(&slower)[2] < of(&slow)[2], "{slow:?} {slower:?}");
    assert!(slower.relief[2] > 0.0 && slower.relief[0] == 0.0, "{slower:?}");
    let half = fractions(&calm, [1.0, 1.0, 0.5]);
    assert!(close(&half, &[0.2 / 0.75, 0.3 / 0.75, 0.25 / 0.75]), "{half:?}");
    assert!(close(&fractions(&calm, [0.0; 3]), &levels()[0].fractions), "nobody is there: as planned");
    // The model that takes over is the slow one: the way along the demand axis is not taken, and it is relieved.
    let cheap = steered([2, 3, 5], [5.0, 0.1, 0.1], 120);
    assert!(cheap.surcharge == 0.0 && cheap.relief[0] > 0.0, "{cheap:?}");
    // And back, once all is well again.
    let mut after = slower.clone();
    for t in 0..120 {
        after.step(&levels(), Some(&ONLINE), &seen([240 + 2 * t, 360 + 3 * t, 600 + 5 * t], [0.1; 3]), SECOND);
    }
    assert_eq!((after.surcharge, after.relief), (0.0, vec![0.0; 3]));
}

#[test]
fn more_than_its_fraction_makes_a_model_dearer() {
    let price = |sent: [u64; 3]| {
        let steering = steered(sent, [0.1; 3], 30);
        steering.prices[2] - steering.prices[0]
    };
    let rows = [[5, 3, 2], [4, 3, 3], [2, 3, 5], [1, 3, 6], [0, 2, 8]];
    let prices = rows.map(price);
    assert!(prices.is_sorted_by(|a, b| a < b), "{prices:?}");
}

#[test]
fn prices_follow_the_rate_alone_without_settings_of_their_own() {
    let mut steering = Steering::new(&levels());
    assert_eq!(steering.prices, levels()[1].prices, "the careful guess");
    for t in 0..100 {
        steering.step(&levels(), None, &seen([15 * t, 0, 0], [9.0; 3]), SECOND);
    }
    assert!(close(&steering.prices, &[0.0, 0.15, 0.3]), "{steering:?}");
    // Another gateway sends as much.
    for t in 100..300 {
        let seen = Observation { in_flight: 16.0, ..seen([10 * t + 500, 0, 0], [9.0; 3]) };
        steering.step(&levels(), None, &seen, SECOND);
    }
    assert!((steering.rate() - 20.0).abs() < 0.01, "{steering:?}");
}

#[test]
fn a_fleet_is_seen_model_by_model() {
    let mut config = Config::parse(include_bytes!("../../../envoy/routebalance.json")).unwrap();
    let instances = config.fleet.instances.len();
    let mut counters = Counters::new(instances);
    // 3 instances of the first model, 5 of the second.
    counters.0[0] = InstanceCounters { dispatched_requests: 7, finished_requests: 5, ..InstanceCounters::default() };
    counters.0[2] = InstanceCounters { dispatched_requests: 3, finished_requests: 3, ..InstanceCounters::default() };
    counters.0[3] = InstanceCounters { dispatched_requests: 9, finished_requests: 8, ..InstanceCounters::default() };
    let mut loads = vec![LoadNow::default(); instances];
    loads[0].running = 4.0;
    (loads[1].standing, loads[3].unreachable) = (Standing::Ejected, true);
    config.fleet.instances[4].presence = Presence::Gone;
    config.fleet.instances[5].presence = Presence::Unhealthy;
    let seen = Observation::from_fleet(&config.fleet, &counters, &loads, &[]);
    let rows: Vec<_> = seen.models.iter().map(|m| (m.generates, m.sent, m.there)).collect();
    assert_eq!(rows, [(true, 10, 2.0 / 3.0), (true, 9, 0.5), (true, 0, 1.0), (true, 0, 1.0), (false, 0, 0.0)]);
    assert_eq!((seen.in_flight, seen.own_in_flight), (4.0, 3.0));
    // An idle instance: overhead, 200 prompt tokens, one step.
    let ttft = seen.models[0].ttft_seconds.unwrap();
    assert!((ttft - (0.020 + 200.0 / 15_700.0 + 0.0102)).abs() < 1e-6, "{ttft}");
    assert_eq!(seen.models[4].ttft_seconds, None);
    config.fleet.instances.iter_mut().for_each(|instance| instance.presence = Presence::Gone);
    let empty = Observation::from_fleet(&config.fleet, &counters, &[], &[]);
    assert!(empty.models.iter().all(|m| m.ttft_seconds.is_none() && m.there == 0.0));
}

#[test]
fn only_policies_with_levels_have_live_prices() {
    let mut policies = Config::parse(include_bytes!("../../../envoy/routebalance.json")).unwrap().policies;
    assert!(!LivePrices::are_wanted(&policies));
    policies[1].demand_levels = levels();
    assert!(LivePrices::are_wanted(&policies));
    let mut live = LivePrices::default();
    assert_eq!(live.of_policy(PolicyId::new(1)), None);
    live.step(&policies, &seen([0; 3], [0.1; 3]), SECOND);
    assert_eq!(
        (live.of_policy(PolicyId::new(0)), live.of_policy(PolicyId::new(1)), live.of_policy(PolicyId::new(99))),
        (None, Some(&levels()[1].prices[..]), None)
    );
}
