#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

use std::collections::BTreeMap;

use super::*;

const PROFILE: LatencyProfile = LatencyProfile {
    tpot_ms: 10.0,
    tpot_growth_per_running: 0.015,
    tpot_growth_per_thousand_context_tokens: 0.0,
    prefill_tokens_per_second: 10_000.0,
    overhead_ms: 7.0,
};
const LIMITS: Limits = Limits { max_running: 4, kv_tokens: 1000, max_model_len: 600 };

fn ms(value: f64) -> Duration {
    Duration::from_nanos(step::nanoseconds(value * 1e6))
}

fn job(id: u64, prompt_tokens: u32, output_tokens: u32, max_tokens: u32) -> Job {
    Job { id, prompt_tokens, output_tokens, max_tokens }
}

/// Runs to the end from event to event.
fn drain(engine: &mut Engine) -> Vec<Event> {
    let mut events = Vec::new();
    while let Some(next) = engine.next_event() {
        engine.advance_into(next, &mut events);
    }
    events
}

#[test]
fn a_lone_request_takes_overhead_prefill_and_its_tokens() {
    use FinishReason::{Length, Stop};
    for (prompt, output, max, kv_tokens, tokens, reason) in [
        (100, 5, 100, 1000, 5_u32, Stop),
        (100, 5, 5, 1000, 5, Stop),
        (100, u32::MAX, 5, 1000, 5, Length),
        (599, 50, 100, 1000, 1, Length),
        (100, 50, 100, 120, 12, Length),
        (100, 0, 0, 1000, 0, Stop),
        (1, 1, 1, 1000, 1, Stop),
    ] {
        for detail in [Detail::EveryToken, Detail::Milestones] {
            let mut engine = Engine::new(PROFILE, Limits { kv_tokens, ..LIMITS }, detail);
            engine.submit(ms(1000.0), job(1, prompt, output, max)).unwrap();
            let events = drain(&mut engine);
            let end = ms(1000.0 + 7.0 + f64::from(prompt) / 10.0 + 10.0 * f64::from(tokens));
            assert_eq!(events.last(), Some(&Event { at: end, id: 1, kind: EventKind::Finished(reason) }));
            assert_eq!(events.first(), Some(&Event { at: ms(1007.0), id: 1, kind: EventKind::Started }));
            if tokens > 0 {
                let first = ms(1000.0 + 7.0 + f64::from(prompt) / 10.0 + 10.0);
                assert!(events.contains(&Event { at: first, id: 1, kind: EventKind::FirstToken }));
            }
            assert_eq!(engine.counters().generated_tokens, u64::from(tokens));
        }
    }
}

#[test]
fn a_prompt_longer_than_a_step_is_prefilled_in_pieces_without_loss() {
    let limits = Limits { max_running: 4, kv_tokens: 100_000, max_model_len: 50_000 };
    let mut engine = Engine::new(PROFILE, limits, Detail::EveryToken);
    engine.submit(Duration::ZERO, job(1, 10_001, 3, 100)).unwrap();
    assert_eq!(drain(&mut engine).last().unwrap().at, ms(7.0 + 1000.1 + 30.0));
    assert_eq!(engine.counters().steps, 5 + 2);
}

#[test]
fn what_cannot_fit_is_refused() {
    let mut engine = Engine::new(PROFILE, LIMITS, Detail::EveryToken);
    for (prompt, output, ok) in [(600, 1, false), (599, 1, true), (600, 0, true), (601, 0, false), (u32::MAX, 1, false)]
    {
        assert_eq!(engine.submit(Duration::ZERO, job(1, prompt, output, 10)).is_ok(), ok, "{prompt} {output}");
    }
}

#[test]
fn steps_grow_with_the_batch() {
    let mut engine = Engine::new(PROFILE, LIMITS, Detail::EveryToken);
    engine.submit(Duration::ZERO, job(1, 100, 9, 9)).unwrap();
    engine.submit(Duration::ZERO, job(2, 100, 9, 9)).unwrap();
    // One step prefills both prompts (20 ms), then nine tokens each at 10.15 ms.
    assert_eq!(drain(&mut engine).last().unwrap().at, ms(7.0 + 20.0 + 9.0 * 10.15));
}

#[test]
fn steps_grow_with_the_context() {
    let profile = LatencyProfile { tpot_growth_per_thousand_context_tokens: 0.1, ..PROFILE };
    for detail in [Detail::EveryToken, Detail::Milestones] {
        let mut engine = Engine::new(profile, Limits { kv_tokens: 10_000, ..LIMITS }, detail);
        engine.submit(Duration::ZERO, job(1, 400, 100, 100)).unwrap();
        engine.submit(Duration::ZERO, job(2, 200, 100, 100)).unwrap();
        let events = drain(&mut engine);
        // Both prompts are prefilled in 60 ms; a step of 10.15 ms and a microsecond more for each of 602, 604, ... 800 tokens.
        let end = 7.0 + 60.0 + 100.0 * 10.15 + 0.001 * (602.0 + 800.0) / 2.0 * 100.0;
        assert_eq!(events.last().unwrap().at, ms(end));
    }
}

#[test]
fn the_youngest_is_preempted_and_finishes_later() {
    // Four blocks.
    let limits = Limits { max_running: 4, kv_tokens: 70, max_model_len: 60 };
    let mut engine = Engine::new(PROFILE, limits, Detail::EveryToken);
    engine.submit(Duration::ZERO, job(1, 20, 25, 25)).unwrap();
    engine.submit(Duration::ZERO, job(2, 20, 25, 25)).unwrap();
    let events = drain(&mut engine);
    let ids_of = |kind: EventKind| events.iter().filter(|e| e.kind == kind).map(|e| e.id).collect::<Vec<_>>();
    assert_eq!(ids_of(EventKind::Preempted), [2]);
    assert_eq!(ids_of(EventKind::Started), [1, 2]);
    assert_eq!(ids_of(EventKind::Finished(FinishReason::Stop)), [1, 2]);
    assert_eq!(ids_of(EventKind::FirstToken).len() + ids_of(EventKind::Token).len(), 50);
    // 12 tokens each fill their two blocks; the second request prefills 20 + 12 again.
    assert_eq!(engine.counters().prompt_tokens, 20 + 20 + 32);
}

#[test]
fn a_cancelled_request_frees_its_place() {
    let mut engine = Engine::new(PROFILE, Limits { max_running: 1, ..LIMITS }, Detail::Milestones);
    for id in 1..=3 {
        engine.submit(Duration::ZERO, job(id, 100, 400, 400)).unwrap();
    }
    engine.advance(ms(100.0));
    assert_eq!((engine.running(), engine.waiting()), (1, 2));
    assert!(engine.cancel(1) && engine.cancel(2) && !engine.cancel(1));
    assert_eq!((engine.running(), engine.waiting(), engine.kv_used_tokens()), (0, 1, 0));
    let events = drain(&mut engine);
    // The step of the first request (27 + n * 10 ms) ends before the third one starts.
    assert_eq!(events.first(), Some(&Event { at: ms(107.0), id: 3, kind: EventKind::Started }));
    assert_eq!(events.last().unwrap().at, ms(107.0 + 10.0 + 4000.0));
    assert!(engine.is_empty() && engine.next_event().is_none());
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

struct Run {
    events: Vec<Event>,
    cancelled: Vec<u64>,
    jobs: Vec<Job>,
    engine: Engine,
}

/// Whole blocks of what every running sequence holds, counted one by one.
fn held_by_hand(engine: &Engine) -> u64 {
    let tokens_of = |s: &Sequence| s.held(engine.number()) + u32::from(s.decoding.is_some());
    engine.running.iter().map(|s| u64::from(tokens_of(s).next_multiple_of(BLOCK_TOKENS))).sum()
}

/// A random workload; checks the limits at every event. `late` makes the clock overshoot events.
fn run(seed: u64, detail: Detail, late: bool, [cancels, slows]: [bool; 2]) -> Run {
    let mut chance = Chance(seed);
    let limits = Limits {
        max_running: 1 + chance.below(8) as u32,
        kv_tokens: 200 + chance.below(2000),
        max_model_len: 100 + chance.below(400) as u32,
    };
    let growth = [0.0, 0.03, 0.7][chance.below(3) as usize];
    let profile = LatencyProfile { tpot_growth_per_thousand_context_tokens: growth, ..PROFILE };
    let mut engine = Engine::new(profile, limits, detail);
    let (mut events, mut cancelled, mut jobs) = (Vec::new(), Vec::new(), Vec::new());
    let mut now = Duration::ZERO;
    let check = |engine: &Engine| {
        assert!(engine.running() <= limits.max_running as usize);
        assert!(engine.kv_used_tokens() <= limits.kv_tokens, "seed {seed}");
        assert_eq!(engine.kv_used_tokens(), held_by_hand(engine), "seed {seed}");
    };
    for id in 0..60 {
        now += Duration::from_micros(chance.below(60_000));
        while let Some(next) = engine.next_event().filter(|next| *next <= now) {
            engine.advance_into(if late { now } else { next }, &mut events);
            check(&engine);
        }
        engine.advance_into(now, &mut events);
        if slows {
            engine.set_slow_down([1.0, 1.37, 2.5][chance.below(3) as usize]);
        }
        if cancels && chance.below(5) == 0 {
            let victim = chance.below(id + 1);
            if engine.cancel(victim) {
                cancelled.push(victim);
            }
            check(&engine);
        }
        let job = job(id, 1 + chance.below(300) as u32, 1 + chance.below(200) as u32, 1 + chance.below(200) as u32);
        if engine.submit(now, job).is_ok() {
            jobs.push(Job { max_tokens: job.max_tokens.min(limits.max_model_len - job.prompt_tokens), ..job });
        }
    }
    while let Some(next) = engine.next_event() {
        engine.advance_into(next, &mut events);
        check(&engine);
    }
    Run { events, cancelled, jobs, engine }
}

#[test]
fn tokens_are_conserved_and_order_kept_whatever_comes() {
    for seed in 0..200 {
        let Run { events, cancelled, jobs, engine } =
            run(seed, Detail::EveryToken, seed % 2 == 0, [seed % 3 == 0, seed % 5 == 0]);
        assert!(events.is_sorted_by_key(|e| e.at), "seed {seed}");
        let mut tokens = BTreeMap::<u64, u32>::new();
        let mut started = Vec::new();
        let mut finished = BTreeMap::new();
        for event in &events {
            match event.kind {
                EventKind::Started => started.push(event.id),
                EventKind::FirstToken => assert_eq!(tokens.insert(event.id, 1), None),
                EventKind::Token => *tokens.get_mut(&event.id).unwrap() += 1,
                EventKind::Preempted => {}
                EventKind::CacheHit(_) => panic!("nothing is cached"),
                EventKind::Finished(reason) => assert_eq!(finished.insert(event.id, reason), None),
            }
        }
        assert!(started.is_sorted(), "FIFO, seed {seed}");
        for job in jobs.iter().filter(|j| !cancelled.contains(&j.id)) {
            let wanted = job.output_tokens.min(job.max_tokens);
            // The KV cache may be smaller than the context.
            let got = tokens.get(&job.id).copied().unwrap_or(0);
            assert!(
                got == wanted || (got < wanted && finished[&job.id] == FinishReason::Length),
                "seed {seed} {job:?} {got}"
            );
            assert_eq!(finished[&job.id] == FinishReason::Stop, got == job.output_tokens, "seed {seed}");
        }
        assert_eq!(engine.counters().generated_tokens, tokens.values().map(|t| u64::from(*t)).sum::<u64>());
        assert!(engine.is_empty());
        assert_eq!((engine.running(), engine.waiting(), engine.kv_used_tokens()), (0, 0, 0), "seed {seed}");
    }
}

#[test]
fn taking_equal_steps_at_once_changes_nothing() {
    let mut preemptions = 0;
    for seed in 0..200 {
        let happens = [seed % 3 == 0, seed % 4 == 0];
        let slow = run(seed, Detail::EveryToken, false, happens);
        let fast = run(seed, Detail::Milestones, seed % 2 == 0, happens);
        let milestones: Vec<_> = slow.events.into_iter().filter(|e| e.kind != EventKind::Token).collect();
        assert_eq!(milestones, fast.events, "seed {seed}");
        assert_eq!(slow.engine.counters(), fast.engine.counters(), "seed {seed}");
        preemptions += fast.engine.counters().preemptions;
    }
    assert!(preemptions > 0, "no seed reaches preemption");
}

/// A step under way keeps its length; those after it are as much longer as their engine is slowed down then.
#[test]
fn slowed_steps_are_longer() {
    for detail in [Detail::EveryToken, Detail::Milestones] {
        let mut engine = Engine::new(PROFILE, LIMITS, detail);
        engine.submit(Duration::ZERO, job(1, 100, 10, 100)).unwrap();
        let mut events = Vec::new();
        // Overhead 7, prefill and first token 20: the second step is under way.
        engine.advance_into(ms(30.0), &mut events);
        engine.set_slow_down(1.5);
        engine.advance_into(ms(70.0), &mut events);
        engine.set_slow_down(f64::NAN);
        events.extend(drain(&mut engine));
        // Steps end at 27, 37, three of 15 at 82, five of 10 at 132.
        assert_eq!(events.last().unwrap().at, ms(132.0), "{detail:?}");
        assert_eq!(engine.worked(), ms(125.0), "{detail:?}");
        assert!(!engine.is_at_work());
    }
}

#[test]
fn a_cached_prefix_is_not_prefilled_again() {
    let limits = Limits { max_running: 4, kv_tokens: 4_000, max_model_len: 3_000 };
    let mut engine = Engine::new(PROFILE, limits, Detail::EveryToken);
    let blocks =
        |system: u64, user: u64| -> Vec<u64> { (0..50).map(|b| if b < 40 { system + b } else { user + b }).collect() };
    let mut ids = 0;
    let mut ttft = |engine: &mut Engine, prompt: u32, blocks: Vec<u64>| {
        ids += 1;
        let began = Duration::from_nanos(engine.now_ns);
        engine.submit_blocks(began, job(ids, prompt, 2, 2), blocks).unwrap();
        let events = drain(engine);
        let hit = events.iter().find_map(|e| if let EventKind::CacheHit(n) = e.kind { Some(n) } else { None });
        let first = events.iter().find(|e| e.kind == EventKind::FirstToken).unwrap().at;
        (hit, (first - began).as_millis())
    };
    // 7 ms overhead, 10 ms for the token, a tenth of a millisecond per prompt token that is prefilled.
    let rows = [
        ("the first time", 1_000, 0, 1_000, (None, 117)),
        ("the same, but for its last 200 tokens that are in no whole block", 1_000, 0, 1_000, (Some(800), 37)),
        ("another question", 1_000, 0, 2_000, (Some(640), 53)),
        ("another system prompt", 1_000, 10_000, 1_000, (None, 117)),
        ("a prompt of whole blocks: the last token is computed", 800, 0, 1_000, (Some(784), 18)),
    ];
    for (name, prompt, system, user, expected) in rows {
        let blocks = blocks(system, user).into_iter().take(prompt as usize / 16).collect();
        assert_eq!(ttft(&mut engine, prompt, blocks), expected, "{name}");
    }
    let counters = *engine.counters();
    assert_eq!((counters.prefix_queries, counters.prefix_hits), (4_800, 800 + 640 + 784));
    assert_eq!(counters.prompt_tokens, 4_800 - counters.prefix_hits);
    // Others take the room of 250 blocks.
    for other in 1..=5 {
        ttft(&mut engine, 1_000, blocks(other * 1_000_000, other * 1_000_000));
    }
    assert_eq!(ttft(&mut engine, 1_000, blocks(0, 1_000)).0, None);
}
