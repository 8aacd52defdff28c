use serde_json::json;

use super::*;
use crate::config::Config;
use crate::sim::outcome::Summary;
use crate::sim::workload::{Arrivals, ChatMix, sustainable_rates};
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

const SECOND: Duration = Duration::from_secs(1);

/// A fleet of one pool with so many instances that hold 8 sequences each.
pub(crate) fn pool_of(instances: usize) -> Router {
    let mut json: serde_json::Value = serde_json::from_str(include_str!("../../../envoy/routebalance.json")).unwrap();
    json["models"] = json!([json["models"][1]]);
    json["pools"] = json!([json["pools"][1]]);
    json["pools"][0]["limits"]["max_running"] = json!(8);
    json["pools"][0]["instances"] =
        (0..instances).map(|i| json!(format!("127.0.0.1:{}", 18_000 + i))).collect::<Vec<_>>().into();
    json["predictor"]["enabled"] = json!(false);
    Router::new(Config::parse(json.to_string().as_bytes()).unwrap(), None)
}

fn alone(at: &[u64]) -> Workload {
    let template = Template::of_counts(765, vec![101], vec![1.0]);
    let times: Vec<Duration> = at.iter().map(|ms| Duration::from_millis(*ms)).collect();
    Workload::drawn(vec![template], &times, 0, 1)
}

#[test]
fn a_request_that_is_alone_takes_what_the_profile_says() {
    let router = pool_of(2);
    let workload = alone(&[100]);
    let mut simulation = Simulation::new(&router, &workload, &[], Options::default());
    simulation.finish(60 * SECOND);
    let outcome = &simulation.outcomes()[0];
    // There and back 1 ms, overhead 20 ms, prefill 100 ms, then 19.6 ms a token.
    let ms = |d: Option<Duration>| (d.unwrap().as_secs_f64() * 1e4).round() / 10.0;
    assert_eq!(outcome.end, End::Answered);
    assert_eq!(ms(outcome.ttft), 1.0 + 20.0 + 100.0 + 19.6);
    assert_eq!(ms(outcome.tpot()), 19.6);
    assert_eq!(ms(outcome.e2e), 2_100.6, "101 tokens");
}

#[test]
fn a_reset_before_the_first_byte_is_tried_elsewhere() {
    let router = pool_of(2);
    let workload = alone(&[100]);
    for (at_ms, expected, attempts) in [(1, End::Answered, 2), (150, End::Answered, 2), (1_000, End::Cut, 1)] {
        let faults = [Scheduled { at: Duration::from_millis(at_ms), fault: Fault::Kill { instance: 0 } }];
        let mut simulation = Simulation::new(&router, &workload, &faults, Options::default());
        simulation.finish(60 * SECOND);
        let outcome = &simulation.outcomes()[0];
        assert_eq!((outcome.end, outcome.attempts), (expected, attempts), "killed at {at_ms} ms");
    }
    let all = [0, 1].map(|instance| Scheduled { at: Duration::ZERO, fault: Fault::Kill { instance } });
    let mut simulation = Simulation::new(&router, &workload, &all, Options::default());
    simulation.finish(60 * SECOND);
    assert_eq!(simulation.outcomes()[0].end, End::Unserved { healthy_peer: false });
}

#[test]
fn an_instance_that_hangs_costs_the_idle_timeout() {
    let router = pool_of(2);
    let workload = alone(&[100]);
    let faults = [Scheduled { at: Duration::from_millis(110), fault: Fault::Hang { instance: 0 } }];
    let mut simulation = Simulation::new(&router, &workload, &faults, Options::default());
    simulation.finish(600 * SECOND);
    let outcome = &simulation.outcomes()[0];
    assert_eq!((outcome.end, outcome.attempts), (End::Answered, 2));
    assert!(outcome.ttft.unwrap() > 120 * SECOND && outcome.ttft.unwrap() < 121 * SECOND);
}

/// The same arguments give the same simulation, and all requests are answered at a rate that the fleet sustains.
#[test]
fn a_simulation_repeats_itself() {
    let router = pool_of(3);
    let templates = ChatMix::default().templates(&router.config().fleet, 1);
    let rate = 0.7 * sustainable_rates(&router.config().fleet, &templates)[0];
    let times = Arrivals::Poisson { rate }.times(120 * SECOND, 3);
    let workload = Workload::drawn(templates, &times, 0, 3);
    let run = || {
        let mut simulation = Simulation::new(&router, &workload, &[], Options { gateways: 3, ..Options::default() });
        simulation.finish(600 * SECOND);
        simulation.into_outcomes()
    };
    let outcomes = run();
    assert_eq!(outcomes, run());
    let summary = Summary::of(outcomes.iter());
    assert_eq!((summary.requests, summary.answered), (times.len(), times.len()));
    assert!(summary.ttft.p50 > 0.02 && summary.e2e.mean > summary.ttft.mean);
}
