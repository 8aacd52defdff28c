mod blame;
mod judge;

use super::*;
use crate::config::Config;
use crate::random::Random;
use crate::reckoning::{InstanceCounters, InstanceReport};
use crate::telemetry::Load;
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

fn config() -> Config {
    Config::parse(include_bytes!("../../../envoy/routebalance.json")).unwrap()
}

fn settings() -> HealthSettings {
    config().health
}

fn ms(ms: u64) -> Duration {
    Duration::from_secs(1_000) + Duration::from_millis(ms)
}

const A: u32 = 1;
const DOWN: Event = Event::Failed(Failure::Unanswered);

/// Applies events, each (event, sent ms, seen ms), and returns the records.
fn after(events: &[(Event, u64, u64)]) -> Records {
    let mut records = Records::default();
    for (event, sent, seen) in events {
        records.apply(A, *event, (ms(*sent), ms(*seen)), |_| false, &settings());
    }
    records
}

#[test]
fn failures_in_a_row_cost_weight_and_then_eject() {
    let busy = Event::Busy(None);
    let hung = Event::Failed(Failure::Stalled);
    // (what, events, at ms, expected weight, is ejected, is half-open)
    type Row<'a> = (&'a str, &'a [(Event, u64, u64)], u64, f64, bool, bool);
    let rows: &[Row<'_>] = &[
        ("nothing", &[], 0, 1.0, false, false),
        ("one failure", &[(DOWN, 0, 1)], 1, 0.5, false, false),
        ("two failures", &[(DOWN, 0, 1), (DOWN, 0, 1)], 1, 1.0 / 3.0, false, false),
        ("half forgotten", &[(DOWN, 0, 0)], 15_000, 1.0 / 1.5, false, false),
        ("forgotten", &[(DOWN, 0, 0)], 30_000, 1.0, false, false),
        ("three failures", &[(DOWN, 0, 1); 3], 1, 0.0, true, false),
        ("the back-off is over", &[(DOWN, 0, 0); 3], 1_000, 1.0, false, true),
        (
            "a success between them",
            &[(DOWN, 0, 1), (DOWN, 0, 1), (Event::Succeeded, 2, 3), (DOWN, 4, 5)],
            5,
            0.5,
            false,
            false,
        ),
        (
            "an older success says nothing",
            &[(DOWN, 0, 1), (DOWN, 0, 1), (Event::Succeeded, 1, 3), (DOWN, 4, 5)],
            5,
            0.0,
            true,
            false,
        ),
        ("an answer that begins is not yet whole", &[(DOWN, 0, 1), (Event::Began, 2, 3)], 3, 0.5, false, false),
        ("long ago", &[(DOWN, 0, 0), (DOWN, 0, 0), (DOWN, 300_000, 300_000)], 300_000, 0.5, false, false),
        ("far apart", &[(DOWN, 0, 0), (DOWN, 40_000, 40_000), (DOWN, 80_000, 80_000)], 80_000, 0.0, true, false),
        ("hanging ejects at once", &[(hung, 0, 0)], 0, 0.0, true, false),
        ("what hung goes on", &[(hung, 0, 0), (Event::Resumed, 1, 1)], 1, 1.0 / 3.0, false, false),
        (
            "only what hung goes on",
            &[(DOWN, 0, 0), (DOWN, 0, 0), (DOWN, 0, 0), (Event::Resumed, 1, 1)],
            1,
            0.0,
            true,
            false,
        ),
        ("busy once", &[(busy, 0, 0)], 0, 0.5, false, false),
        ("busy once is soon over", &[(busy, 0, 0)], 1_000, 1.0, false, false),
        ("busy is avoided, not ill", &[(busy, 0, 0); 9], 0, 0.0, false, false),
        ("busy is soon over", &[(busy, 0, 0); 9], 1_000, 1.0, false, false),
        ("busy again and nothing in between", &[(busy, 0, 0), (busy, 1_500, 1_500)], 1_500, 0.0, false, false),
        (
            "busy again, but it has taken a request in between",
            &[(busy, 0, 0), (Event::Began, 500, 600), (busy, 1_500, 1_500)],
            1_500,
            0.5,
            false,
            false,
        ),
        (
            "what it took before says nothing",
            &[(busy, 100, 100), (Event::Began, 50, 600), (busy, 1_500, 1_500)],
            1_500,
            0.0,
            false,
            false,
        ),
        ("unjudged", &[(Event::Unjudged, 0, 0); 9], 0, 1.0, false, false),
        // 10 streams that die together are one reason.
        ("a burst", &[(DOWN, 0, 0); 10], 999, 0.0, true, false),
        ("a burst is not an hour", &[(DOWN, 0, 0); 10], 1_000, 1.0, false, true),
        ("the probe fails", &[(DOWN, 0, 0), (DOWN, 0, 0), (DOWN, 0, 0), (DOWN, 1_000, 1_500)], 3_499, 0.0, true, false),
        (
            "the second back-off",
            &[(DOWN, 0, 0), (DOWN, 0, 0), (DOWN, 0, 0), (DOWN, 1_000, 1_500)],
            3_500,
            1.0,
            false,
            true,
        ),
        (
            "the probe begins",
            &[(DOWN, 0, 0), (DOWN, 0, 0), (DOWN, 0, 0), (Event::Began, 1_000, 1_500)],
            1_500,
            0.0,
            false,
            false,
        ),
        (
            "the probe succeeds",
            &[(DOWN, 0, 0), (DOWN, 0, 0), (DOWN, 0, 0), (Event::Succeeded, 1_000, 1_500)],
            1_500,
            1.0,
            false,
            false,
        ),
        (
            "a server that drains: old streams end well, new requests fail",
            &[
                (DOWN, 1, 1),
                (Event::Succeeded, 0, 2),
                (DOWN, 3, 3),
                (Event::Succeeded, 0, 4),
                (DOWN, 5, 5),
                (Event::Succeeded, 0, 6),
            ],
            6,
            0.0,
            true,
            false,
        ),
        (
            "the probe finds it busy",
            &[(DOWN, 0, 0), (DOWN, 0, 0), (DOWN, 0, 0), (busy, 1_000, 1_100)],
            2_099,
            0.0,
            true,
            false,
        ),
        (
            "and may come again",
            &[(DOWN, 0, 0), (DOWN, 0, 0), (DOWN, 0, 0), (busy, 1_000, 1_100)],
            2_100,
            1.0,
            false,
            true,
        ),
    ];
    for (what, events, at, weight, is_ejected, is_half_open) in rows {
        let standing = after(events).standing(A, ms(*at), &settings());
        let seen = (standing == Standing::Ejected, standing == Standing::HalfOpen);
        assert_eq!(seen, (*is_ejected, *is_half_open), "{what}: {standing:?}");
        if *what == "the probe begins" {
            assert!(matches!(standing, Standing::Degraded(w) if w < 0.5), "{what}: {standing:?}");
        } else {
            assert!((standing.weight() - weight).abs() < 0.01, "{what}: {standing:?}");
        }
    }
}

#[test]
fn one_probe_at_a_time_and_back_offs_that_double_up_to_a_limit() {
    let mut records = after(&[(DOWN, 0, 0); 3]);
    let settings = settings();
    assert!(!records.claim(A, ms(999), &settings), "not yet");
    assert!(records.claim(A, ms(1_000), &settings));
    assert!(!records.claim(A, ms(1_001), &settings), "another worker is too late");
    assert_eq!(records.standing(A, ms(1_001), &settings), Standing::Ejected);
    assert!(records.apply(A, Event::Unjudged, (ms(1_000), ms(1_500)), |_| false, &settings), "its client left");
    assert!(records.claim(A, ms(1_500), &settings), "so another one may probe");
    let (mut now, mut back_offs) = (1_500, Vec::new());
    for _ in 0..7 {
        records.apply(A, DOWN, (ms(now), ms(now)), |_| false, &settings);
        let until = (now..).find(|t| records.standing(A, ms(*t), &settings) == Standing::HalfOpen).unwrap();
        back_offs.push(until - now);
        now = until;
    }
    assert_eq!(back_offs, [2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000]);
    assert!(!Records::default().claim(A, ms(0), &settings), "nobody is half-open");
    // A probe whose worker has died is not waited for.
    assert!(records.claim(A, ms(now), &settings));
    assert_eq!(records.standing(A, ms(now + 30_000), &settings), Standing::HalfOpen);
}

/// An instance that fails for a while, seen by workers that race: whatever the order of their events, it is back within the
/// longest back-off and a probe after the fault has ended, and it was out soon after the fault began.
#[test]
fn an_instance_comes_back_within_a_bounded_time() {
    let settings = settings();
    for seed in 0..200 {
        let mut random = Random::new(seed);
        let mut records = Records::default();
        let fault = 1_000 + random.below(60_000) as u64;
        let (mut now, mut failures, mut served_at) = (0, 0, None);
        while now < fault + 120_000 {
            now += 1 + random.below(400) as u64;
            let standing = records.standing(A, ms(now), &settings);
            if standing == Standing::Ejected
                || (standing == Standing::HalfOpen && !records.claim(A, ms(now), &settings))
            {
                continue;
            }
            let took = random.below(300) as u64;
            if now < fault {
                failures += 1;
                records.apply(A, DOWN, (ms(now), ms(now + took)), |_| false, &settings);
            } else {
                served_at = served_at.or(Some(now));
                records.apply(A, Event::Succeeded, (ms(now), ms(now + took)), |_| false, &settings);
            }
        }
        let waited = served_at.unwrap() - fault;
        assert!(waited <= 31_000, "seed {seed}: {waited} ms after the fault");
        // 3, and one probe per back-off: 1, 2, 4, 8, 16, 30, 30 s.
        assert!(failures <= 3 + 7, "seed {seed}: {failures} requests failed");
        assert_eq!(records.standing(A, ms(now), &settings), Standing::Healthy, "seed {seed}");
        assert!(records.0.is_empty(), "seed {seed}: nothing is left");
    }
}

#[test]
fn records_stay_bounded() {
    let settings = settings();
    let mut records = Records::default();
    for instance in 0..10_000 {
        let at = ms(u64::from(instance));
        records.apply(instance, DOWN, (at, at), |_| false, &settings);
    }
    assert_eq!(records.0.len(), RECORDS_MAX);
    records.apply(20_000, DOWN, (ms(400_000), ms(400_000)), |_| false, &settings);
    assert_eq!(records.0.len(), 1, "old ones make room");
}

#[test]
fn an_instance_hangs_if_nothing_moves_though_it_should() {
    let telemetry = config().telemetry;
    let counters = |dispatched, finished, tokens| InstanceCounters {
        dispatched_requests: dispatched,
        finished_requests: finished,
        finished_output_tokens: tokens,
        ..InstanceCounters::default()
    };
    let report = |at, progress_tokens| InstanceReport {
        at: Some(ms(at)),
        load: Load { running: Some(2.0), progress_tokens: Some(progress_tokens), ..Load::default() },
        ..InstanceReport::default()
    };
    let silent = InstanceReport::default();
    let stalled = |first| Some(Sight::Stalled { first });
    let allowed = Duration::from_secs(3);
    // Looks at (ms, counters, report) in turn, and what the last of them shows.
    type Look = (u64, InstanceCounters, InstanceReport);
    let rows: Vec<(&str, Vec<Look>, Option<Sight>)> = vec![
        ("idle", vec![(0, counters(1, 1, 0), report(0, 5.0)), (9_000, counters(1, 1, 0), report(8_900, 5.0))], None),
        (
            "too early",
            vec![(0, counters(1, 0, 0), report(0, 5.0)), (2_999, counters(1, 0, 0), report(2_900, 5.0))],
            None,
        ),
        (
            "hangs",
            vec![(0, counters(1, 0, 0), report(0, 5.0)), (3_000, counters(1, 0, 0), report(2_900, 5.0))],
            stalled(true),
        ),
        (
            "more work does not hide it",
            vec![
                (0, counters(1, 0, 0), report(0, 5.0)),
                (2_000, counters(2, 0, 0), report(1_900, 5.0)),
                (3_000, counters(3, 0, 0), report(2_900, 5.0)),
                (3_200, counters(3, 0, 0), report(3_100, 5.0)),
            ],
            stalled(false),
        ),
        (
            "others' tokens come",
            vec![(0, counters(1, 0, 0), report(0, 5.0)), (3_000, counters(1, 0, 0), report(2_900, 6.0))],
            None,
        ),
        (
            "its own tokens come, and its gauges lie",
            vec![(0, counters(1, 0, 0), report(0, 5.0)), (3_000, counters(1, 0, 7), report(2_900, 5.0))],
            None,
        ),
        ("no report, no verdict", vec![(0, counters(1, 0, 0), silent), (90_000, counters(1, 0, 0), silent)], None),
        (
            "an old report, no verdict",
            vec![(0, counters(1, 0, 0), report(0, 5.0)), (90_000, counters(1, 0, 0), report(1_000, 5.0))],
            None,
        ),
        (
            "what is given up is no progress",
            vec![
                (0, counters(2, 0, 0), report(0, 5.0)),
                (3_000, counters(2, 0, 0), report(2_900, 5.0)),
                (3_200, counters(2, 1, 0), report(3_100, 5.0)),
            ],
            None,
        ),
        (
            "goes on",
            vec![
                (0, counters(1, 0, 0), report(0, 5.0)),
                (3_000, counters(1, 0, 0), report(2_900, 5.0)),
                (3_200, counters(1, 0, 0), report(3_100, 6.0)),
            ],
            Some(Sight::Resumed),
        ),
    ];
    for (what, looks, expected) in rows {
        let mut watch = Watch::default();
        let seen =
            looks.iter().map(|(at, counters, report)| watch.look(counters, report, allowed, &telemetry, ms(*at)));
        assert_eq!(seen.last().flatten(), expected, "{what}");
    }
    let pool = &config().fleet.pools[0];
    let prompts = InstanceCounters { dispatched_prompt_tokens: 1_000_000, ..InstanceCounters::default() };
    let longest = 2.0 * f64::from(pool.limits.max_model_len) / pool.profile.prefill_tokens_per_second;
    let allowed = quiet_allowed(pool, &prompts, &settings()).as_secs_f64();
    assert!((allowed - 3.0 - longest).abs() < 1e-6, "{allowed}");
}
