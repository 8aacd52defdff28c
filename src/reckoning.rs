//! Dead reckoning of load between reports: load now = last report + what was sent since - what has finished since.
//!
//! Every worker keeps monotonic counters per instance and is the only writer of its own. The sum over all workers of
//! `dispatched - finished` is what this gateway has outstanding; the change of that sum since a report was asked for is what the
//! report cannot know. Nothing is mutated by a read, so the load can be asked for at any time.

use std::time::Duration;

use crate::config::Telemetry;
use crate::fleet::Fleet;
use crate::health::Standing;
use crate::telemetry::Load;

/// What one worker has sent to one instance and seen finished. Every field but the last only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InstanceCounters {
    /// Requests sent.
    pub dispatched_requests: u64,
    /// Requests whose stream has ended, however.
    pub finished_requests: u64,
    /// Prompt tokens sent (estimated).
    pub dispatched_prompt_tokens: u64,
    /// Prompt tokens whose prefill is over: their request's first byte came, or it ended.
    pub finished_prompt_tokens: u64,
    /// Output tokens predicted for what was sent.
    pub dispatched_output_tokens: u64,
    /// Of those, the ones that were streamed or will never come.
    pub finished_output_tokens: u64,
    /// When the last request was sent; zero if none was.
    pub last_dispatch: Duration,
}

/// A request on its way, as much as the counters know of it. Whoever dispatches keeps it and gives it back once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dispatch {
    /// Index of the instance.
    pub instance: usize,
    /// Estimated prompt tokens that still wait for prefill.
    pub prompt_tokens: u64,
    /// Predicted output tokens that have not been streamed yet.
    pub output_tokens: u64,
}

/// One worker's counters, in the order of [`Fleet::instances`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters(pub Vec<InstanceCounters>);

impl Counters {
    /// Counters of a worker that has sent nothing.
    pub fn new(instances: usize) -> Counters {
        Counters(vec![InstanceCounters::default(); instances])
    }

    /// Records that a request was sent.
    pub fn dispatch(&mut self, dispatch: &Dispatch, now: Duration) {
        if let Some(c) = self.0.get_mut(dispatch.instance) {
            c.dispatched_requests = c.dispatched_requests.saturating_add(1);
            c.dispatched_prompt_tokens = c.dispatched_prompt_tokens.saturating_add(dispatch.prompt_tokens);
            c.dispatched_output_tokens = c.dispatched_output_tokens.saturating_add(dispatch.output_tokens);
            c.last_dispatch = now;
        }
    }

    /// Records that a request's prefill is over.
    pub fn prefilled(&mut self, dispatch: &mut Dispatch) {
        if let Some(c) = self.0.get_mut(dispatch.instance) {
            c.finished_prompt_tokens = c.finished_prompt_tokens.saturating_add(dispatch.prompt_tokens);
            dispatch.prompt_tokens = 0;
        }
    }

    /// Records that `tokens` more output tokens were streamed; tokens beyond the predicted ones were never counted.
    pub fn streamed(&mut self, dispatch: &mut Dispatch, tokens: u64) {
        if let Some(c) = self.0.get_mut(dispatch.instance) {
            let tokens = tokens.min(dispatch.output_tokens);
            c.finished_output_tokens = c.finished_output_tokens.saturating_add(tokens);
            dispatch.output_tokens = dispatch.output_tokens.saturating_sub(tokens);
        }
    }

    /// Records that a request has ended and returns what it still held. Taking the dispatch makes a second call impossible.
    pub fn finish(&mut self, mut dispatch: Dispatch) {
        self.prefilled(&mut dispatch);
        let rest = dispatch.output_tokens;
        self.streamed(&mut dispatch, rest);
        if let Some(c) = self.0.get_mut(dispatch.instance) {
            c.finished_requests = c.finished_requests.saturating_add(1);
        }
    }

    /// Moves a request to the instance that really serves it (Envoy has retried elsewhere).
    pub fn move_to(&mut self, dispatch: &mut Dispatch, instance: usize, now: Duration) {
        if dispatch.instance != instance && instance < self.0.len() {
            self.finish(*dispatch);
            dispatch.instance = instance;
            self.dispatch(dispatch, now);
        }
    }

    /// Forgets what a dead worker had outstanding: its streams have died with it.
    pub fn retire(&mut self) {
        for c in &mut self.0 {
            c.finished_requests = c.dispatched_requests;
            c.finished_prompt_tokens = c.dispatched_prompt_tokens;
            c.finished_output_tokens = c.dispatched_output_tokens;
        }
    }

    /// Adds another worker's counters; the last dispatch is the later one.
    pub fn add(&mut self, other: &Counters) {
        for (sum, c) in self.0.iter_mut().zip(&other.0) {
            sum.dispatched_requests = sum.dispatched_requests.saturating_add(c.dispatched_requests);
            sum.finished_requests = sum.finished_requests.saturating_add(c.finished_requests);
            sum.dispatched_prompt_tokens = sum.dispatched_prompt_tokens.saturating_add(c.dispatched_prompt_tokens);
            sum.finished_prompt_tokens = sum.finished_prompt_tokens.saturating_add(c.finished_prompt_tokens);
            sum.dispatched_output_tokens = sum.dispatched_output_tokens.saturating_add(c.dispatched_output_tokens);
            sum.finished_output_tokens = sum.finished_output_tokens.saturating_add(c.finished_output_tokens);
            sum.last_dispatch = sum.last_dispatch.max(c.last_dispatch);
        }
    }

    /// Requests sent to the whole fleet so far.
    pub fn dispatched_requests(&self) -> u64 {
        self.0.iter().fold(0, |sum, c| sum.saturating_add(c.dispatched_requests))
    }
}

impl InstanceCounters {
    /// Requests sent and not finished.
    pub fn outstanding_requests(&self) -> u64 {
        self.dispatched_requests.saturating_sub(self.finished_requests)
    }

    /// Prompt tokens that still wait for prefill.
    pub fn outstanding_prompt_tokens(&self) -> u64 {
        self.dispatched_prompt_tokens.saturating_sub(self.finished_prompt_tokens)
    }

    /// Predicted output tokens that have not come yet.
    pub fn outstanding_output_tokens(&self) -> u64 {
        self.dispatched_output_tokens.saturating_sub(self.finished_output_tokens)
    }
}

/// What is known of one instance from its last scrape.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct InstanceReport {
    /// When the report was asked for, since the epoch; `None` if there never was one.
    pub at: Option<Duration>,
    /// What it said.
    pub load: Load,
    /// Requests that all workers had outstanding on the instance when the report was asked for.
    pub outstanding_requests: u64,
    /// Scrapes in a row that got no answer at all. An answer without metrics is an answer.
    pub unreachable: u32,
}

impl InstanceReport {
    /// A scrape was answered, by a page with or without metrics. `outstanding_requests` are those of the moment when it was asked
    /// for: a later count would miss what is on its way.
    pub fn answered(&mut self, asked_at: Duration, load: Load, outstanding_requests: u64) {
        *self = InstanceReport { at: Some(asked_at), load, outstanding_requests, unreachable: 0 };
    }

    /// A scrape got no answer.
    pub fn missed(&mut self) {
        self.unreachable = self.unreachable.saturating_add(1);
    }
}

/// The last report of every instance, in the order of [`Fleet::instances`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reports(pub Vec<InstanceReport>);

/// The load of one instance at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LoadNow {
    /// Sequences that decode or prefill.
    pub running: f64,
    /// Requests in the instance's queue.
    pub waiting: f64,
    /// Output tokens still to be generated for what it holds.
    pub pending_output_tokens: f64,
    /// Prompt tokens still to be prefilled for what this gateway has sent.
    pub pending_prompt_tokens: f64,
    /// KV cache in use, 0 to 1, if reported.
    pub kv_use: Option<f64>,
    /// How far the report is trusted, 0 to 1; 0 is "own counters only".
    pub trust: f64,
    /// Whether scrapes in a row have found nobody there.
    pub unreachable: bool,
    /// When the last request was sent to it; zero if none was.
    pub last_dispatch: Duration,
    /// What its responses speak for.
    pub standing: Standing,
}

impl LoadNow {
    /// Requests that the instance holds.
    pub fn in_flight(&self) -> f64 {
        self.running + self.waiting
    }
}

/// Scrapes in a row without an answer after which an instance is a candidate only where there is no other.
const UNREACHABLE_SCRAPES: u32 = 2;

/// How far a report of this age is trusted: fully while fresh, then falling linearly, not at all from the maximal age on.
pub fn trust(age: Duration, telemetry: &Telemetry) -> f64 {
    if age <= telemetry.fresh {
        return 1.0;
    }
    if age >= telemetry.max_age {
        return 0.0;
    }
    let span = telemetry.max_age.saturating_sub(telemetry.fresh).as_secs_f64();
    let left = telemetry.max_age.saturating_sub(age).as_secs_f64();
    if span > 0.0 { (left / span).clamp(0.0, 1.0) } else { 0.0 }
}

/// The load of every instance at `now`, in the order of [`Fleet::instances`].
///
/// `counters` is the sum over all workers. Where a report is trusted in part, load is the mixture of what report and counters
/// say together and what the counters say alone.
pub fn load_now(
    fleet: &Fleet,
    counters: &Counters,
    reports: Option<&Reports>,
    now: Duration,
    telemetry: &Telemetry,
) -> Vec<LoadNow> {
    let none = InstanceReport::default();
    let idle = InstanceCounters::default();
    fleet
        .instances
        .iter()
        .enumerate()
        .map(|(i, instance)| {
            let own = counters.0.get(i).unwrap_or(&idle);
            let report = reports.and_then(|r| r.0.get(i)).unwrap_or(&none);
            let pool = fleet.pools.get(instance.pool);
            let max_running = pool.map_or(f64::INFINITY, |p| f64::from(p.limits.max_running));
            let tokens_prior = pool.and_then(|p| fleet.model_of(p)).map_or(1.0, |m| m.output_tokens_prior);
            reckon(own, report, now, telemetry, max_running, tokens_prior)
        })
        .collect()
}

fn reckon(
    own: &InstanceCounters,
    report: &InstanceReport,
    now: Duration,
    telemetry: &Telemetry,
    max_running: f64,
    tokens_prior: f64,
) -> LoadNow {
    let outstanding = own.outstanding_requests() as f64;
    let own_tokens = own.outstanding_output_tokens() as f64;
    let own_prompt = own.outstanding_prompt_tokens() as f64;
    let alone = split(outstanding, max_running);
    let trust = match (report.at, report.load.running) {
        (Some(at), Some(_)) => trust(now.saturating_sub(at), telemetry),
        _ => 0.0,
    };
    let reported_waiting = report.load.waiting.unwrap_or(0.0);
    let change = outstanding - report.outstanding_requests as f64;
    let with_report = advance(report.load.running.unwrap_or(0.0), reported_waiting, change, max_running);
    let running = trust * with_report.0 + (1.0 - trust) * alone.0;
    let waiting = trust * with_report.1 + (1.0 - trust) * alone.1;
    // What others have sent is half done on average.
    let foreign = (running + waiting - outstanding).max(0.0);
    LoadNow {
        running,
        waiting,
        pending_output_tokens: own_tokens + foreign * tokens_prior * 0.5,
        pending_prompt_tokens: own_prompt,
        kv_use: if trust > 0.0 { report.load.kv_use } else { None },
        trust,
        unreachable: report.unreachable >= UNREACHABLE_SCRAPES,
        last_dispatch: own.last_dispatch,
        standing: Standing::Healthy,
    }
}

/// Requests into running and waiting, as an instance with free slots would hold them.
fn split(requests: f64, max_running: f64) -> (f64, f64) {
    let running = requests.min(max_running);
    (running, requests - running)
}

/// Running and waiting after `change` more (or fewer) requests: a queue grows or drains first, then the batch.
fn advance(running: f64, waiting: f64, change: f64, max_running: f64) -> (f64, f64) {
    if waiting + change > 0.0 && waiting > 0.0 {
        return (running, waiting + change);
    }
    split((running + waiting + change).max(0.0), max_running.max(running))
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn telemetry() -> Telemetry {
        let config = crate::config::Config::parse(include_bytes!("../envoy/routebalance.json")).unwrap();
        config.telemetry
    }

    fn report(running: f64, waiting: f64, outstanding: u64) -> InstanceReport {
        InstanceReport {
            at: Some(Duration::from_secs(100)),
            load: Load { running: Some(running), waiting: Some(waiting), kv_use: Some(0.5), ..Load::default() },
            outstanding_requests: outstanding,
            unreachable: 0,
        }
    }

    fn counters(dispatched: u64, finished: u64) -> InstanceCounters {
        InstanceCounters {
            dispatched_requests: dispatched,
            finished_requests: finished,
            dispatched_output_tokens: dispatched * 100,
            finished_output_tokens: finished * 100,
            ..InstanceCounters::default()
        }
    }

    #[test]
    fn load_is_the_report_and_what_has_changed_since() {
        // (report running, waiting, outstanding then; dispatched, finished now; age ms) -> (running, waiting, pending tokens)
        let rows = [
            ("as reported", (3.0, 0.0, 3), (10, 7), 0, (3.0, 0.0, 300.0)),
            ("two more sent", (3.0, 0.0, 3), (12, 7), 0, (5.0, 0.0, 500.0)),
            ("two finished", (3.0, 0.0, 3), (10, 9), 0, (1.0, 0.0, 100.0)),
            ("batch full: more wait", (8.0, 0.0, 8), (13, 2), 0, (8.0, 3.0, 1100.0)),
            ("the queue grows first", (8.0, 2.0, 10), (13, 2), 0, (8.0, 3.0, 1100.0)),
            ("the queue drains first", (8.0, 2.0, 10), (12, 3), 0, (8.0, 1.0, 900.0)),
            ("queue gone, batch drains", (8.0, 2.0, 10), (12, 6), 0, (6.0, 0.0, 600.0)),
            ("never below zero", (1.0, 0.0, 5), (10, 10), 0, (0.0, 0.0, 0.0)),
            ("another gateway's work", (6.0, 0.0, 2), (10, 8), 0, (6.0, 0.0, 200.0 + 4.0 * 50.0)),
            ("too old: own counters only", (6.0, 3.0, 2), (10, 8), 5_000, (2.0, 0.0, 200.0)),
            ("half trusted", (6.0, 0.0, 2), (10, 8), 3_000, (4.0, 0.0, 200.0 + 2.0 * 50.0)),
        ];
        for (name, (r, w, o), (d, f), age_ms, expected) in rows {
            let now = Duration::from_secs(100) + Duration::from_millis(age_ms);
            let load = reckon(&counters(d, f), &report(r, w, o), now, &telemetry(), 8.0, 100.0);
            assert_eq!((load.running, load.waiting, load.pending_output_tokens), expected, "{name}");
        }
    }

    #[test]
    fn without_a_usable_report_own_counters_decide() {
        let now = Duration::from_secs(100);
        let silent = InstanceReport::default();
        let garbage = InstanceReport { load: Load::default(), ..report(0.0, 0.0, 0) };
        for report in [silent, garbage] {
            let load = reckon(&counters(12, 2), &report, now, &telemetry(), 8.0, 100.0);
            assert_eq!((load.running, load.waiting, load.trust), (8.0, 2.0, 0.0));
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
                        instance: random(3) as usize,
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
                        2 => workers[worker].move_to(&mut dispatch, random(4) as usize, now),
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
        worker.dispatch(&Dispatch { instance: 0, prompt_tokens: 10, output_tokens: 20 }, Duration::from_secs(1));
        worker.retire();
        let load = reckon(&worker.0[0], &report(1.0, 0.0, 1), Duration::from_secs(100), &telemetry(), 8.0, 100.0);
        assert_eq!((load.running, load.pending_output_tokens, load.pending_prompt_tokens), (0.0, 0.0, 0.0));
    }
}
