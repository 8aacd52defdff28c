use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::contender::{Deciding, Dispatcher};
use crate::fault::Fault;
use crate::outcome::Summary;
use crate::sharing::{Part, Sharing};
use crate::workload::Template;
use crate::workload::{Arrivals, ChatMix, sustainable_rates};
use routebalance_core::config::Config;
use routebalance_core::fleet::{BatchSizing, Batching, InstanceId, ModelId};
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
fn requests_wait_for_their_batch_as_in_the_filter() {
    let batching = |size: usize| {
        let sizing = BatchSizing::Fixed { size, window: Duration::from_millis(40) };
        Some(Batching { sizing, max_wait: SECOND })
    };
    // Times of arrival, size of a batch, and how long each waits: until the window is over at a look, or the batch is full.
    let rows: [(&[u64], usize, &[u64]); 4] =
        [(&[100], 8, &[40]), (&[100, 103], 8, &[40, 37]), (&[100, 103], 2, &[3, 0]), (&[102, 300], 8, &[43, 40])];
    for (at, size, waited) in rows {
        let mut router = pool_of(2);
        router = Router::new(with_batching(router.config().clone(), batching(size)), None);
        for (batches, expected) in [(true, waited.to_vec()), (false, vec![0; at.len()])] {
            let workload = alone(at);
            let options = Options { workers: 1, batches, ..Options::default() };
            let mut simulation = Simulation::new(&router, &workload, &[], options);
            simulation.finish(60 * SECOND);
            let decided = |o: &Outcome| o.decided.unwrap().as_millis() as u64;
            assert_eq!(simulation.outcomes().iter().map(decided).collect::<Vec<_>>(), expected, "{at:?} of {size}");
            assert!(simulation.outcomes().iter().all(Outcome::is_answered));
        }
    }
}

fn with_batching(mut config: Config, batching: Option<Batching>) -> Config {
    config.policies.iter_mut().for_each(|policy| policy.batching = batching);
    config
}

#[test]
fn an_instance_that_the_cluster_has_no_more_gets_nothing_and_ends_what_it_has() {
    let mut config: serde_json::Value = serde_json::from_str(include_str!("../../../envoy/routebalance.json")).unwrap();
    config["models"] = json!([config["models"][1]]);
    config["pools"] = json!([config["pools"][1]]);
    config["predictor"] = json!({"enabled": false});
    config["discovery"] = json!({"period_ms": 500});
    let router = Router::new(Config::parse(config.to_string().as_bytes()).unwrap(), None);
    let times: Vec<u64> = (0..600).map(|i| 100 * i).collect();
    let workload = alone(&times);
    let listing = |second: u32, is_listed| Scheduled {
        at: second * SECOND,
        fault: Fault::Listing { instance: InstanceId::new(0), is_listed },
    };
    let faults = [listing(20, false), listing(40, true)];
    let mut simulation = Simulation::new(&router, &workload, &faults, Options::default());
    simulation.finish(120 * SECOND);
    let outcomes = simulation.outcomes();
    assert!(outcomes.iter().all(|o| o.is_answered() && o.attempts == 1), "nobody notices");
    let chosen = |from: u32, to: u32| {
        let within = outcomes.iter().filter(|o| (from * SECOND..to * SECOND).contains(&o.at));
        within.filter(|o| o.decision.as_ref().unwrap().to.instance == InstanceId::new(0)).count()
    };
    // Half a second until the filter asks, and a tick until every worker knows.
    assert!(chosen(0, 20) > 10 && chosen(42, 60) > 10, "{} before and {} after", chosen(0, 20), chosen(42, 60));
    assert_eq!(chosen(21, 40), 0);
}

#[test]
fn scores_of_clients_move_the_choice_of_every_worker() {
    let mut config: serde_json::Value = serde_json::from_str(include_str!("../../../envoy/routebalance.json")).unwrap();
    config["models"] = json!([config["models"][0], config["models"][1]]);
    config["pools"] = json!([config["pools"][0], config["pools"][1]]);
    config["predictor"] = json!({"enabled": false});
    config["learning"] = json!({"feedback": {"secret": "a-secret-of-this-test"}});
    config["policies"] = json!([{"name": "balanced", "weights": {"quality": 0.9, "latency": 0.05, "cost": 0.05}}]);
    config["routes"] = json!([]);
    let router = Router::new(Config::parse(config.to_string().as_bytes()).unwrap(), None);
    // The second model is held for the better one, and is the worse.
    let template = Template::of_counts(100, vec![50, 50], vec![0.9, 0.1]);
    let times: Vec<Duration> = (0..400).map(|i| i * SECOND / 2).collect();
    let workload = Workload::drawn(vec![template], &times, 0, 1);
    let late_to_the_first = |feedback| {
        let options = Options { feedback, ..Options::default() };
        let mut simulation = Simulation::new(&router, &workload, &[], options);
        simulation.finish(400 * SECOND);
        let late = simulation.outcomes().iter().skip(200);
        late.filter(|outcome| outcome.model == Some(ModelId::new(0))).count()
    };
    assert_eq!(late_to_the_first(false), 0);
    assert!(late_to_the_first(true) > 190, "{}", late_to_the_first(true));
}

#[test]
fn whoever_waits_may_leave_and_may_lose_its_gateway() {
    let sizing = BatchSizing::Fixed { size: 8, window: SECOND };
    let batching = Some(Batching { sizing, max_wait: 2 * SECOND });
    let router = Router::new(with_batching(pool_of(2).config().clone(), batching), None);
    let mut workload = alone(&[100, 110, 120]);
    workload.arrivals[0].patience = Some(Duration::from_millis(200));
    let at = Duration::from_millis(500);
    for (fault, ends) in [
        (Fault::KillWorker { gateway: 0, worker: 0 }, [End::Left, End::GatewayDied, End::GatewayDied]),
        (Fault::RestartGateway { gateway: 0 }, [End::Left, End::GatewayDied, End::GatewayDied]),
        (Fault::Kill { instance: InstanceId::new(0) }, [End::Left, End::Answered, End::Answered]),
    ] {
        let faults = [Scheduled { at, fault }];
        let options = Options { workers: 1, batches: true, ..Options::default() };
        let mut simulation = Simulation::new(&router, &workload, &faults, options);
        simulation.finish(60 * SECOND);
        let seen: Vec<End> = simulation.outcomes().iter().map(|outcome| outcome.end).collect();
        assert_eq!(seen, ends, "{fault:?}");
    }
}

#[test]
fn a_reset_before_the_first_byte_is_tried_elsewhere() {
    let router = pool_of(2);
    let workload = alone(&[100]);
    for (at_ms, expected, attempts) in [(1, End::Answered, 2), (150, End::Answered, 2), (1_000, End::Cut, 1)] {
        let faults =
            [Scheduled { at: Duration::from_millis(at_ms), fault: Fault::Kill { instance: InstanceId::new(0) } }];
        let mut simulation = Simulation::new(&router, &workload, &faults, Options::default());
        simulation.finish(60 * SECOND);
        let outcome = &simulation.outcomes()[0];
        assert_eq!((outcome.end, outcome.attempts), (expected, attempts), "killed at {at_ms} ms");
    }
    let all = [0, 1]
        .map(|instance| Scheduled { at: Duration::ZERO, fault: Fault::Kill { instance: InstanceId::new(instance) } });
    let mut simulation = Simulation::new(&router, &workload, &all, Options::default());
    simulation.finish(60 * SECOND);
    assert_eq!(simulation.outcomes()[0].end, End::Unserved { healthy_peer: false });
}

#[test]
fn an_instance_that_hangs_costs_the_idle_timeout() {
    let router = pool_of(2);
    let workload = alone(&[100]);
    let faults = [Scheduled { at: Duration::from_millis(110), fault: Fault::Hang { instance: InstanceId::new(0) } }];
    let mut simulation = Simulation::new(&router, &workload, &faults, Options::default());
    simulation.finish(600 * SECOND);
    let outcome = &simulation.outcomes()[0];
    assert_eq!((outcome.end, outcome.attempts), (End::Answered, 2));
    let limit = routebalance_core::config::PER_TRY_IDLE_TIMEOUT;
    assert!(outcome.ttft.unwrap() > limit && outcome.ttft.unwrap() < limit + SECOND);
}

/// Whoever looks sends nothing more to an instance that is dead, before any report says so.
#[test]
fn with_health_the_dead_are_avoided() {
    let router = pool_of(2);
    let workload = alone(&(0..20).map(|i| 1_000 + i * 3_000).collect::<Vec<u64>>());
    let faults = [Scheduled { at: SECOND / 2, fault: Fault::Kill { instance: InstanceId::new(0) } }];
    let attempts = |health| {
        let options = Options { health, scrape_loss: 1.0, ..Options::default() };
        let mut simulation = Simulation::new(&router, &workload, &faults, options);
        simulation.finish(600 * SECOND);
        assert!(simulation.outcomes().iter().all(Outcome::is_answered));
        simulation.outcomes().iter().map(|outcome| outcome.attempts).sum::<usize>()
    };
    let (blind, seeing) = (attempts(false), attempts(true));
    assert!(seeing + 3 < blind, "{seeing} attempts with health, {blind} without");
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
    let summary = Summary::from_outcomes(outcomes.iter());
    assert_eq!((summary.requests, summary.answered), (times.len(), times.len()));
    assert!(summary.ttft.p50 > 0.02 && summary.e2e.mean > summary.ttft.mean);
}

/// What a gateway reckons is wrong by no more than what its reports cannot know: what was on its way while the report was asked
/// for or is on its way now, and what the other gateways have done since.
#[test]
fn the_error_is_what_was_on_its_way_and_what_others_did() {
    let router = pool_of(3);
    let fleet = &router.config().fleet;
    let templates = ChatMix::default().templates(fleet, 2);
    let network = Duration::from_millis(20);
    for seed in 0..20 {
        let rate = 0.9 * sustainable_rates(fleet, &templates)[0];
        let times = Arrivals::Gamma { rate, shape: 0.5 }.times(40 * SECOND, seed);
        let workload = Workload::drawn(templates.clone(), &times, 0, seed);
        let options = Options { gateways: 1 + seed as usize % 3, network, seed, ..Options::default() };
        let gateways = options.gateways;
        let mut simulation = Simulation::new(&router, &workload, &[], options.clone());
        // Times of all sends and ends, from a first run: (instance, gateway, when).
        simulation.finish(600 * SECOND);
        let moves: Vec<(usize, usize, Duration)> = simulation
            .outcomes()
            .iter()
            .flat_map(|o| [o.at, o.at + o.e2e.unwrap()].map(|at| (o.instance.unwrap().index(), o.gateway, at)))
            .collect();
        let mut simulation = Simulation::new(&router, &workload, &[], options);
        for step in 1..40 {
            let now = SECOND * step;
            simulation.run_until(now);
            for gateway in 0..gateways {
                let loads = simulation.loads(gateway);
                for (i, server) in simulation.servers().iter().enumerate() {
                    let Some(asked_at) = simulation.gateways()[gateway].reports().0.get(i).and_then(|report| report.at)
                    else {
                        continue;
                    };
                    let slack = moves.iter().filter(|(instance, by, at)| {
                        let under_way = *at + network >= now && *at <= now + network;
                        let meanwhile = *at + 2 * network >= asked_at && *at <= asked_at + 2 * network;
                        let unseen = *by != gateway && *at + network >= asked_at && *at <= now;
                        *instance == i && (under_way || meanwhile || unseen)
                    });
                    let error = (loads[i].in_flight() - server.holds() as f64).abs();
                    // With others, which of them have ended is drawn by lot, among those that reports show.
                    let lot = if gateways > 1 { 3.0 } else { 0.0 };
                    let bound = slack.count() as f64 + lot;
                    assert!(error <= bound, "seed {seed}, {now:?}: {:?} is {error} off, not {bound}", loads[i]);
                }
            }
        }
    }
}

/// What deciding takes is part of a request's times; batches are full or their window is over.
#[test]
fn deciding_takes_its_time() {
    let router = pool_of(2);
    let ms = Duration::from_millis;
    let fixed = |size, window| Deciding::InBatches {
        time: ms(30),
        batching: Batching { sizing: BatchSizing::Fixed { size, window: ms(window) }, max_wait: SECOND },
    };
    let arrivals = [100, 110, 120, 400];
    for (name, deciding, expected) in [
        ("at once", Deciding::default(), [0, 0, 0, 0]),
        ("side by side", Deciding::Concurrently(ms(50)), [50, 50, 50, 50]),
        ("one after the other", Deciding::Serially(ms(50)), [50, 90, 130, 50]),
        ("full, then over", fixed(2, 100), [40, 30, 150, 130]),
        ("full at once", fixed(1, 100), [30, 50, 70, 30]),
        ("the published first batch is not full", Deciding::published(ms(30)), [130, 120, 110, 80]),
    ] {
        for contender in [Contender::Ours, Contender::dispatch(Dispatcher::ShortestQueue)] {
            let workload = alone(&arrivals);
            let options = Options { deciding, ..Options::default() };
            let mut simulation = Simulation::deciding_by(contender, &router, &workload, &[], options);
            simulation.finish(60 * SECOND);
            let decided: Vec<u128> = simulation.outcomes().iter().map(|o| o.decided.unwrap().as_millis()).collect();
            assert_eq!(decided, expected, "{name}");
            assert!(simulation.outcomes().iter().all(Outcome::is_answered), "{name}");
            assert_eq!(simulation.outcomes()[0].instance, Some(InstanceId::new(0)), "{name}");
        }
    }
}

#[test]
fn who_leaves_before_the_decision_is_not_decided() {
    let router = pool_of(2);
    let mut workload = alone(&[100, 110]);
    workload.arrivals[1].patience = Some(Duration::from_millis(20));
    let options = Options { deciding: Deciding::Serially(Duration::from_millis(50)), ..Options::default() };
    let mut simulation = Simulation::new(&router, &workload, &[], options);
    simulation.finish(60 * SECOND);
    let [first, second] = simulation.outcomes() else { panic!() };
    assert_eq!((first.end, second.end, second.decided), (End::Answered, End::Left, None));
}

/// An instance keeps the blocks of a prompt: the next request that begins with them is answered sooner.
#[test]
fn blocks_that_prompts_share_are_prefilled_once() {
    let router = pool_of(1);
    let ttft = |blocks: Vec<u64>| {
        let template = Template { blocks: blocks.into(), ..Template::of_counts(765, vec![2], vec![1.0]) };
        let times = [100, 5_000].map(Duration::from_millis);
        let workload = Workload::drawn(vec![template], &times, 0, 1);
        let mut simulation = Simulation::new(&router, &workload, &[], Options::default());
        simulation.finish(60 * SECOND);
        [0, 1].map(|i| simulation.outcomes()[i].ttft.unwrap().as_millis())
    };
    assert_eq!(ttft(Vec::new()), [140, 140]);
    // 640 of 765 tokens at 7,650 a second.
    assert_eq!(ttft((0..40).collect()), [140, 140 - 84]);
}

/// Two instances with half a GPU each: both slow down while the other one works, and only then.
#[test]
fn instances_that_share_a_gpu_slow_each_other_down() {
    let router = pool_of(2);
    let halves = vec![Part { gpus: vec![0], cap: 0.5 }; 2];
    let shared = Some(Arc::new(Sharing::new(halves, 0.4)));
    let apart = (0..2).map(|gpu| Part { gpus: vec![gpu], cap: 1.0 }).collect();
    let apart = Some(Arc::new(Sharing::new(apart, 0.4)));
    let run = |workload: &Workload, sharing: &Option<Arc<Sharing>>| {
        let options = Options { sharing: sharing.clone(), ..Options::default() };
        let mut simulation = Simulation::new(&router, workload, &[], options);
        simulation.finish(600 * SECOND);
        simulation.into_outcomes()
    };
    let ms = |o: &Outcome| o.e2e.unwrap().as_secs_f64() * 1e3;
    // 20 ms overhead, 100 ms prefill, 101 tokens of 19.6 ms; 1 ms network.
    let alone_ms = 21.0 + 2_079.6;
    let one = alone(&[100]);
    assert_eq!(run(&one, &shared), run(&one, &None), "nobody else is there");
    let two = alone(&[100, 100]);
    assert_eq!(run(&two, &apart), run(&two, &None), "each has its own GPU");
    for outcome in run(&two, &shared) {
        // The second one to begin slows the first one's second step.
        let slowed = 21.0 + 2_079.6 * 1.2;
        assert!((ms(&outcome) - slowed).abs() < 0.2 * 119.6 + 0.1, "{} ms, not {slowed}", ms(&outcome));
    }
    // The second half of the first answer is slowed, and the first half of the second one.
    let late = run(&alone(&[100, 1_140]), &shared);
    let overlap_ms = ms(&late[0]) - 1_040.0 - 20.0;
    for outcome in &late {
        let slowed = alone_ms + overlap_ms * (1.0 - 1.0 / 1.2);
        assert!((ms(outcome) - slowed).abs() < 25.0, "{} ms, not {slowed}", ms(outcome));
    }
    let random: Vec<u64> = (0..200).map(|i| i * 137 % 20_000).collect();
    let mut sorted = random;
    sorted.sort_unstable();
    let busy = alone(&sorted);
    assert_eq!(run(&busy, &shared), run(&busy, &shared), "it repeats itself");
}

/// What instances say instead of an answer, how that ends, and how often it is tried.
#[test]
fn replies_that_are_no_answers() {
    let router = pool_of(4);
    let failed = |status| End::Failed { status };
    let rows = [
        ("an error that is tried again", Reply::error(500), true, failed(500), 2),
        ("as long as there are endpoints", Reply::error(502), false, failed(502), 4),
        ("a broken connection", Reply::Reset, true, failed(502), 2),
        ("nobody tells the gateway", Reply::Reset, false, End::Unserved { healthy_peer: true }, 4),
        ("a busy instance", Reply::error(503), true, failed(503), 1),
        ("a refusal", Reply::error(400), true, failed(400), 1),
        ("nothing", Reply::Empty, true, failed(200), 1),
        ("an error in a stream", Reply::ErrorEvent, true, failed(200), 1),
    ];
    for (name, reply, sees_attempts, end, attempts) in rows {
        for by_client in [true, false] {
            let mut workload = alone(&[100]);
            workload.arrivals[0].manner.poison = Some(reply).filter(|_| by_client);
            let as_ = crate::fault::Answering::Replying(reply);
            let faults = [Scheduled { at: Duration::ZERO, fault: Fault::Answering { instance: None, as_ } }];
            let faults = if by_client { &faults[..0] } else { &faults };
            let options = Options { health: true, sees_attempts, ..Options::default() };
            let mut simulation = Simulation::new(&router, &workload, faults, options);
            simulation.finish(60 * SECOND);
            let outcome = &simulation.outcomes()[0];
            assert_eq!((outcome.end, outcome.attempts), (end, attempts), "{name}");
        }
    }
}

/// A whole answer may be silent for longer than a stream. Where its instance hangs, another one is asked; where nobody can tell, it has the
/// limit of its time, once.
#[test]
fn whole_answers_have_their_own_time() {
    let router = pool_of(2);
    let mut workload = alone(&[100]);
    workload.arrivals[0].manner.whole = true;
    let hang = |ms| Scheduled { at: Duration::from_millis(ms), fault: Fault::Hang { instance: InstanceId::new(0) } };
    let no_reports = Fault::Reporting { instance: None, as_: crate::fault::Reporting::Empty };
    let no_reports = Scheduled { at: Duration::ZERO, fault: no_reports };
    let limit = router.config().health.answer_limit;
    let rows = [
        ("its instance works", vec![], End::Answered, 0, SECOND),
        ("its instance hangs", vec![hang(500)], End::Answered, 1, 20 * SECOND),
        ("nobody can tell that it does", vec![no_reports, hang(90)], End::Failed { status: 504 }, 0, limit),
    ];
    for (name, faults, end, reruns, most) in rows {
        let per_try_idle = Some(SECOND / 2);
        let options = Options { health: true, sees_attempts: true, reruns: true, per_try_idle, ..Options::default() };
        let mut simulation = Simulation::new(&router, &workload, &faults, options);
        simulation.finish(3_600 * SECOND);
        let outcome = &simulation.outcomes()[0];
        assert_eq!((outcome.end, outcome.attempts, outcome.reruns), (end, 1, reruns), "{name}");
        assert!(outcome.e2e.unwrap() <= most + 2 * SECOND && outcome.ttft.is_none(), "{name}: {outcome:?}");
        simulation.run_until(simulation.now() + 10 * SECOND);
        assert!(simulation.servers().iter().all(|server| server.holds() == 0), "{name}");
    }
}
