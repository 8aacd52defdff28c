use serde_json::json;

use super::*;
use crate::config::Config;
use crate::fleet::InstanceId;
use crate::telemetry::{Load, TelemetrySettings};
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

/// When every report was asked for.
const ASKED_AT: Duration = Duration::from_secs(100);

/// One pool of so many instances that run 8 sequences each; a model of 100 tokens.
fn config(instances: usize) -> Config {
    let mut json: serde_json::Value = serde_json::from_str(include_str!("../../../envoy/routebalance.json")).unwrap();
    json["models"] = json!([json["models"][1]]);
    json["models"][0]["output_tokens_prior"] = json!(100);
    json["pools"] = json!([json["pools"][1]]);
    json["pools"][0]["limits"] = json!({"max_running": 8, "kv_tokens": 10_000, "max_model_len": 8_192});
    json["pools"][0]["instances"] =
        (0..instances).map(|i| json!(format!("127.0.0.1:{}", 18_000 + i))).collect::<Vec<_>>().into();
    Config::parse(json.to_string().as_bytes()).unwrap()
}

fn telemetry() -> TelemetrySettings {
    config(1).telemetry
}

fn counters(dispatched: u64, finished: u64) -> InstanceCounters {
    InstanceCounters {
        dispatched_requests: dispatched,
        finished_requests: finished,
        dispatched_prompt_tokens: dispatched * 10,
        finished_prompt_tokens: dispatched * 10,
        dispatched_output_tokens: dispatched * 100,
        finished_output_tokens: finished * 100,
        last_dispatch: ASKED_AT,
    }
}

fn report(running: f64, waiting: f64, outstanding: u64) -> InstanceReport {
    InstanceReport {
        at: Some(ASKED_AT),
        load: Load { running: Some(running), waiting: Some(waiting), kv_use: Some(0.5), ..Load::default() },
        own: counters(outstanding, 0),
        ..InstanceReport::default()
    }
}

fn loads(own: &[InstanceCounters], reports: &[InstanceReport], age_ms: u64) -> Vec<LoadNow> {
    let config = config(own.len());
    let now = ASKED_AT + Duration::from_millis(age_ms);
    let reports = Reports(reports.to_vec());
    load_now(&config.fleet, &Counters(own.to_vec()), Some(&reports), now, &config.telemetry, 0.5)
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-6
}

#[test]
fn load_is_what_is_open_here_and_what_the_report_says_of_others() {
    // (report running, waiting, outstanding then; dispatched, finished now; age ms) -> (running, waiting, pending tokens)
    let rows = [
        ("as reported", (3.0, 0.0, 3), (10, 7), 0, (3.0, 0.0, 300.0)),
        ("two more sent", (3.0, 0.0, 3), (12, 7), 0, (5.0, 0.0, 500.0)),
        ("two finished", (3.0, 0.0, 3), (10, 9), 0, (1.0, 0.0, 100.0)),
        ("batch full: more wait", (8.0, 0.0, 8), (13, 2), 0, (8.0, 3.0, 1100.0)),
        ("the queue grows first", (8.0, 2.0, 10), (13, 2), 0, (8.0, 3.0, 1100.0)),
        ("the queue drains first", (8.0, 2.0, 10), (12, 3), 0, (8.0, 1.0, 900.0)),
        ("queue gone, batch drains", (8.0, 2.0, 10), (12, 6), 0, (6.0, 0.0, 600.0)),
        ("KV full: a smaller batch", (5.0, 2.0, 7), (9, 0), 0, (5.0, 4.0, 900.0)),
        ("never below zero", (1.0, 0.0, 5), (10, 10), 0, (0.0, 0.0, 0.0)),
        ("on its way when asked for", (2.0, 0.0, 4), (4, 0), 0, (4.0, 0.0, 400.0)),
        ("another gateway's work", (6.0, 0.0, 2), (10, 8), 0, (6.0, 0.0, 600.0)),
        ("nothing but another gateway's work", (6.0, 0.0, 0), (0, 0), 0, (6.0, 0.0, 300.0)),
        ("less than is known here", (0.0, 0.0, 6), (6, 0), 0, (6.0, 0.0, 600.0)),
        ("getting old, alone", (6.0, 0.0, 2), (10, 8), 3_000, (6.0, 0.0, 600.0)),
        ("too old", (6.0, 3.0, 2), (10, 8), 5_000, (2.0, 0.0, 200.0)),
    ];
    for (name, (r, w, o), (d, f), age_ms, (running, waiting, tokens)) in rows {
        let load = loads(&[counters(d, f)], &[report(r, w, o)], age_ms)[0];
        assert!(close(load.running, running) && close(load.waiting, waiting), "{name}: {load:?}");
        assert!(close(load.pending_output_tokens, tokens), "{name}: {load:?}");
    }
}

#[test]
fn kv_use_follows_what_was_sent_and_what_has_ended() {
    // Of 10,000 tokens; prompts have 10 each.
    let rows = [
        ("as reported", (4.0, 4), (4, 0), 0.5),
        ("two more prompts", (4.0, 4), (6, 0), 0.502),
        ("one of four ended", (4.0, 4), (4, 1), 0.375),
        ("all ended", (4.0, 4), (4, 4), 0.0),
        ("more ended than ran", (2.0, 4), (4, 4), 0.0),
    ];
    for (name, (running, outstanding), (d, f), expected) in rows {
        let kv = loads(&[counters(d, f)], &[report(running, 0.0, outstanding)], 0)[0].kv_use;
        assert!(kv.is_some_and(|kv| close(kv, expected)), "{name}: {kv:?}");
    }
}

/// Whoever cannot be believed is taken to be as busy with others' work as its peers.
#[test]
fn unbelievable_reports_count_for_what_peers_report() {
    let telemetry = telemetry();
    let busy = report(6.0, 0.0, 2);
    let mut frozen = report(0.0, 0.0, 1);
    for _ in 0..8 {
        frozen.answered(ASKED_AT, frozen.load, counters(1, 0));
    }
    let unheard = [
        ("no report", InstanceReport::default()),
        ("no metrics", InstanceReport { load: Load::default(), ..busy }),
        ("not a number", report(f64::NAN, 0.0, 0)),
        ("negative", report(-1.0, 0.0, 0)),
        ("absurd", report(5e5, 0.0, 0)),
        ("absurd queue", report(8.0, 5e5, 0)),
        ("less than is known here", report(0.0, 0.0, 9)),
        ("frozen", frozen),
        ("too old", InstanceReport { at: Some(ASKED_AT - telemetry.max_age), ..report(0.0, 0.0, 0) }),
    ];
    for (name, report) in unheard {
        let own = [counters(2, 0), counters(2, 0), counters(1, 0)];
        let load = loads(&own, &[busy, busy, report], 0)[2];
        assert!(
            (load.in_flight() - 5.0).abs() < 0.1,
            "{name}: one here and four of others, as its peers have: {load:?}"
        );
        assert_eq!(load.trust, 0.0, "{name}");
        let alone = loads(&own[2..], &[report], 0)[0];
        assert_eq!(alone.in_flight(), 1.0, "{name}: nobody to compare with");
    }
}

/// As reports get older, instances look more and more alike, and never idle beside fresh ones.
#[test]
fn trust_falls_smoothly_to_what_peers_report() {
    let stale = report(0.0, 0.0, 0);
    let mut last = 0.0;
    for age_ms in (0..=6_000).step_by(50) {
        let fresh = InstanceReport { at: Some(ASKED_AT + Duration::from_millis(age_ms)), ..report(6.0, 0.0, 2) };
        let own = [counters(2, 0), counters(2, 0), counters(0, 0)];
        let load = loads(&own, &[fresh, fresh, stale], age_ms)[2].in_flight();
        assert!(load >= last && load - last < 0.1, "{age_ms} ms: from {last} to {load}");
        last = load;
    }
    assert!((last - 4.0).abs() < 0.1, "{last}");
}

#[test]
fn an_instance_kept_empty_by_its_report_is_tried_now_and_then() {
    let peers = [counters(2, 0), counters(2, 0)];
    let liar = report(8.0, 20.0, 0);
    let rows = [
        ("just sent one", Duration::ZERO, 0, 28.0),
        ("sent long ago", Duration::from_secs(10), 0, 0.0),
        ("the trial is under way", Duration::from_secs(10), 1, 29.0),
    ];
    for (name, ago, open, expected) in rows {
        let own = InstanceCounters { last_dispatch: ASKED_AT - ago, ..counters(open, 0) };
        let load = loads(&[peers[0], peers[1], own], &[report(2.0, 0.0, 2), report(2.0, 0.0, 2), liar], 0)[2];
        assert_eq!(load.in_flight(), expected, "{name}");
    }
    let own = InstanceCounters { last_dispatch: Duration::ZERO, ..counters(0, 0) };
    let load =
        loads(&[peers[0], peers[1], own], &[report(5.0, 0.0, 2), report(5.0, 0.0, 2), report(9.0, 0.0, 0)], 0)[2];
    assert_eq!(load.in_flight(), 9.0, "a little busier than its peers is nothing to doubt");
}

/// What a batch expects of its own dispatches is what the next read says.
#[test]
fn one_more_request_is_what_the_next_read_says() {
    for open in 0..20u64 {
        let running = open.min(8);
        let report = report(running as f64, (open - running) as f64, open);
        let [before, after] = [open, open + 1].map(|open| loads(&[counters(open, 0)], &[report], 0)[0]);
        let dispatch = Dispatch { instance: InstanceId::new(0), prompt_tokens: 0, output_tokens: 100 };
        let got = LoadNow { kv_use: after.kv_use, ..before.after(&dispatch, 8.0, ASKED_AT) };
        assert_eq!(got, after, "{open} open");
    }
    let dispatch = Dispatch { instance: InstanceId::new(0), prompt_tokens: 7, output_tokens: 100 };
    let later = ASKED_AT + Duration::from_secs(1);
    let load = LoadNow { running: 7.5, ..LoadNow::default() }.after(&dispatch, 8.0, later);
    assert_eq!((load.running, load.waiting, load.pending_prompt_tokens, load.last_dispatch), (8.0, 0.5, 7.0, later));
}

struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// Whatever counters and reports say, load is made of numbers, none of them negative, and what is open here is part of it.
#[test]
fn load_is_never_negative_nor_less_than_what_is_open_here() {
    let mut dice = Dice(5);
    let odd = [f64::NAN, f64::INFINITY, -3.0, 1e300, 0.0, 5e5];
    for round in 0..500 {
        let mut number = |most: u64| match dice.below(8) {
            0 => None,
            1 => Some(odd[dice.below(6) as usize]),
            _ => Some(dice.below(most) as f64),
        };
        let reports: Vec<InstanceReport> = (0..4)
            .map(|i| InstanceReport {
                load: Load { running: number(12), waiting: number(30), kv_use: number(3), ..Load::default() },
                ..report(0.0, 0.0, i * 3)
            })
            .collect();
        let own: Vec<InstanceCounters> = (0..4).map(|_| counters(20, 10 + dice.below(12))).collect();
        for (load, own) in loads(&own, &reports, dice.below(6_000)).iter().zip(&own) {
            let numbers = [load.running, load.waiting, load.pending_output_tokens, load.trust];
            assert!(numbers.iter().all(|n| n.is_finite() && *n >= 0.0), "round {round}: {load:?}");
            assert!(load.kv_use.is_none_or(|kv| (0.0..=1.0).contains(&kv)), "round {round}: {load:?}");
            assert!(load.in_flight() + 1e-9 >= own.outstanding_requests() as f64, "round {round}: {load:?}");
        }
    }
}

/// Sends and finishes in any order over any number of workers give one load, and once all that was sent since the report has
/// ended it is the report again.
#[test]
fn load_returns_to_the_report_whoever_has_counted() {
    let config = config(2);
    for seed in 0..50 {
        let mut dice = Dice(seed);
        let told = [report(3.0, 0.0, 0), report(5.0, 0.0, 0)];
        let mut all: Vec<Vec<Counters>> = [1, 2, 5].map(|workers| vec![Counters::new(2); workers]).into();
        let mut open: Vec<(u64, Dispatch)> = Vec::new();
        let seen = |all: &[Vec<Counters>]| -> Vec<Vec<LoadNow>> {
            let load = |workers: &Vec<Counters>| {
                let mut sum = Counters::new(2);
                workers.iter().for_each(|w| sum.add(w));
                load_now(&config.fleet, &sum, Some(&Reports(told.to_vec())), ASKED_AT, &config.telemetry, 0.5)
            };
            all.iter().map(load).collect()
        };
        for step in 0..40 {
            if step < 20 || open.is_empty() {
                let dispatch =
                    Dispatch { instance: InstanceId::new(dice.below(2) as usize), prompt_tokens: 9, output_tokens: 50 };
                let worker = dice.below(30);
                all.iter_mut().for_each(|ws| {
                    let at = (worker % ws.len() as u64) as usize;
                    ws[at].dispatch(&dispatch, ASKED_AT);
                });
                open.push((worker, dispatch));
            } else {
                let (worker, dispatch) = open.swap_remove(dice.below(open.len() as u64) as usize);
                all.iter_mut().for_each(|ws| {
                    let at = (worker % ws.len() as u64) as usize;
                    ws[at].finish(dispatch);
                });
            }
            let loads = seen(&all);
            assert!(loads.iter().all(|l| *l == loads[0]), "seed {seed}, step {step}: {loads:?}");
        }
        for (worker, dispatch) in open.drain(..) {
            all.iter_mut().for_each(|ws| {
                let at = (worker % ws.len() as u64) as usize;
                ws[at].finish(dispatch);
            });
        }
        let requests: Vec<f64> = seen(&all)[0].iter().map(LoadNow::in_flight).collect();
        assert_eq!(requests, [3.0, 5.0], "seed {seed}");
    }
}

/// Whatever the order of events and however they are spread over workers, all dispatched work finished means no load.
#[test]
fn counters_return_to_zero_whatever_happens() {
    let mut seed = 7u64;
    let mut random = move |n: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % n
    };
    for _ in 0..200 {
        let mut workers = [Counters::new(3), Counters::new(3)];
        let mut open: Vec<(usize, Dispatch)> = Vec::new();
        for step in 0..100u64 {
            let now = Duration::from_millis(step);
            if random(2) == 0 || open.is_empty() {
                let dispatch = Dispatch {
                    instance: InstanceId::new(random(3) as usize),
                    prompt_tokens: random(1_000),
                    output_tokens: random(500),
                };
                let worker = random(2) as usize;
                workers[worker].dispatch(&dispatch, now);
                open.push((worker, dispatch));
            } else {
                let at = random(open.len() as u64) as usize;
                let (worker, mut dispatch) = open[at];
                match random(4) {
                    0 => workers[worker].prefilled(&mut dispatch),
                    1 => workers[worker].streamed(&mut dispatch, random(700)),
                    2 => workers[worker].move_to(&mut dispatch, InstanceId::new(random(4) as usize), now),
                    _ => {
                        open.swap_remove(at);
                        workers[worker].finish(dispatch);
                        continue;
                    }
                }
                open[at].1 = dispatch;
            }
        }
        for (worker, dispatch) in open.drain(..) {
            workers[worker].finish(dispatch);
        }
        let mut sum = Counters::new(3);
        workers.iter().for_each(|w| sum.add(w));
        for c in &sum.0 {
            assert_eq!(c.dispatched_requests, c.finished_requests);
            assert_eq!(c.dispatched_prompt_tokens, c.finished_prompt_tokens);
            assert_eq!(c.dispatched_output_tokens, c.finished_output_tokens);
        }
    }
}

#[test]
fn a_retired_worker_leaves_no_load() {
    let mut worker = Counters::new(1);
    worker.dispatch(
        &Dispatch { instance: InstanceId::new(0), prompt_tokens: 10, output_tokens: 20 },
        Duration::from_secs(1),
    );
    let told = InstanceReport { own: worker.0[0], ..report(1.0, 0.0, 0) };
    worker.retire();
    let load = loads(&worker.0, &[told], 0)[0];
    assert_eq!((load.running, load.pending_output_tokens, load.pending_prompt_tokens), (0.0, 0.0, 0.0));
}
