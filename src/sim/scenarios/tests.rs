use routebalance_core::fleet::{InstanceId, PoolId};

use super::*;
use crate::workload::Template;
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

fn config() -> Config {
    Config::parse(include_bytes!("../../../envoy/routebalance.json")).unwrap()
}

/// `evaluate --preset scenarios` runs a thousand.
#[test]
fn whatever_goes_wrong_nothing_leaks_and_nobody_starves() {
    let config = config();
    let results: Vec<Result> = (0..30).map(|seed| run(&config, seed, &Options::default())).collect();
    for (seed, result) in results.iter().enumerate() {
        assert!(result.violations.is_empty(), "seed {seed}: {:?}", result.violations);
    }
    let sum = |count: fn(&Result) -> usize| results.iter().map(count).sum::<usize>();
    // The scenarios are no idle exercise: everything that may happen does.
    for (what, count) in [
        ("answered", sum(|r| r.answered)),
        ("cut", sum(|r| r.cut)),
        ("died", sum(|r| r.died)),
        ("left", sum(|r| r.left)),
    ] {
        assert!(count > 0, "nothing {what}");
    }
}

#[test]
fn nor_with_all_senses() {
    let config = config();
    let envoy = Options { health: true, affinity: true, header_loads: true, ..Options::default() };
    for seed in 0..10 {
        let result = run(&config, seed, &envoy);
        assert!(result.violations.is_empty(), "seed {seed}: {:?}", result.violations);
    }
}

/// The checks do find something: without retries, requests fail although a peer is healthy.
#[test]
fn an_envoy_that_does_not_retry_is_found_out() {
    let config = config();
    let envoy = Options { retries: Some(0), ..Options::default() };
    assert!((0..20).any(|seed| run(&config, seed, &envoy).violations.iter().any(|v| v.contains("healthy_peer: true"))));
}

/// One pool of five instances, some of which report like this: the share of each instance, 1 for an even split.
fn shares(gateways: usize, utilisation: f64, lies: &[(Option<usize>, Reporting)], seed: u64) -> Vec<f64> {
    let mut config = config();
    config.fleet.pools.rotate_left(1);
    config.fleet.instances.iter_mut().for_each(|i| i.pool = PoolId::new((i.pool.index() + 4) % 5));
    let router = Router::new(small(&config, 1, 5), None);
    let fleet = &router.config().fleet;
    let templates: Vec<Template> = ChatMix::default().templates(fleet, seed);
    let rate = utilisation * sustainable_rates(fleet, &templates)[0];
    let times = Arrivals::Poisson { rate }.times(LENGTH + Duration::from_secs(30), seed);
    let workload = Workload::drawn(templates, &times, 0, seed);
    let faults: Vec<Scheduled> = lies
        .iter()
        .map(|(instance, as_)| Scheduled {
            at: Duration::from_secs(20),
            fault: Fault::Reporting { instance: instance.map(InstanceId::new), as_: *as_ },
        })
        .collect();
    let options = Options { gateways, seed, ..Options::default() };
    let mut simulation = Simulation::new(&router, &workload, &faults, options);
    simulation.finish(LIMIT);
    let late: Vec<Outcome> =
        simulation.into_outcomes().into_iter().filter(|o| o.at > Duration::from_secs(30)).collect();
    let counts = decided(fleet, &late);
    counts.iter().map(|c| *c as f64 * counts.len() as f64 / late.len() as f64).collect()
}

/// No report, true or false, old or new, makes traffic herd on an instance or keeps it from one.
#[test]
fn no_report_herds_or_starves() {
    let load =
        |requests: f64| Load { running: Some(requests), waiting: Some(0.0), kv_use: Some(0.1), ..Load::default() };
    let lies = [
        Reporting::Honest,
        Reporting::Frozen,
        Reporting::Empty,
        Reporting::Silent,
        Reporting::Constant(load(0.0)),
        Reporting::Constant(load(3.0)),
        Reporting::Constant(load(8.0)),
        Reporting::Constant(load(f64::NAN)),
        Reporting::Constant(load(1e5)),
        Reporting::Constant(Load { running: Some(8.0), waiting: Some(300.0), kv_use: Some(1.0), ..Load::default() }),
    ];
    let mut findings = Vec::new();
    for lie in lies {
        for who in [vec![(Some(2), lie)], vec![(Some(0), lie), (Some(3), lie)], vec![(None, lie)]] {
            let alike = who == [(None, lie)];
            for gateways in [1, 4].into_iter().skip(usize::from(alike)) {
                let shares = shares(gateways, 0.7, &who, 1);
                if !shares.iter().all(|s| (0.5..=2.0).contains(s)) {
                    findings.push(format!("{gateways} gateways, {who:?}: {shares:.2?}"));
                }
            }
        }
    }
    assert!(findings.is_empty(), "{}", findings.join("\n"));
}

/// `evaluate --preset scenarios` runs a thousand of these, too.
#[test]
fn who_misbehaves_is_nobody_elses_trouble() {
    let config = config();
    for (seed, kind) in (0..).zip(misbehaviour::Kind::ALL) {
        let result = misbehaviour::run(&config, kind, seed, &misbehaviour::seeing());
        assert!(result.violations.is_empty(), "{} {seed}: {:?}", kind.name(), result.violations);
        assert!(2 * result.answered > result.requests && result.requests > 20, "{}: {result:?}", kind.name());
    }
}

/// Each mechanism is what keeps its scenario well: without it, this is found.
#[test]
fn a_gateway_that_lacks_a_mechanism_is_found_out() {
    use misbehaviour::Kind;
    let config = config();
    let seeing = misbehaviour::seeing();
    let rows = [
        (
            "two failures are enough",
            Kind::Poison,
            0..4,
            Options { sees_attempts: false, ..seeing.clone() },
            "too often",
        ),
        (
            "black holes are avoided",
            Kind::BlackHole,
            1..2,
            Options { health: false, ..seeing.clone() },
            "black hole refuses",
        ),
        (
            "stuck requests move",
            Kind::LongAnswersHung,
            1..2,
            Options { reruns: false, ..seeing.clone() },
            "must not end so",
        ),
    ];
    for (name, kind, seeds, envoy, finding) in rows {
        let is_found = |seed: u64| {
            let violations = misbehaviour::run(&config, kind, seed, &envoy).violations;
            violations.iter().any(|violation| violation.contains(finding))
        };
        assert!(seeds.clone().any(is_found), "{name}");
    }
}
