//! Nobody's fault is charged to somebody else: rows, and properties over seeds.

use super::*;
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

const SUSPECT: Event = Event::Suspected(Failure::Status);
const REFUSED: Event = Event::Refused { common: false };
const COMMON: Event = Event::Refused { common: true };

/// Read once: these tests look thousands of times.
static SETTINGS: std::sync::LazyLock<HealthSettings> = std::sync::LazyLock::new(settings);

/// A pool of instances 1 to 3, and another with 11 and 12.
fn is_peer_of(instance: u32) -> impl Fn(u32) -> bool {
    move |other| (other < 10) == (instance < 10)
}

fn apply(records: &mut Records, instance: u32, event: Event, sent: u64, now: u64) {
    records.apply(instance, event, (ms(sent), ms(now)), is_peer_of(instance), &SETTINGS);
}

fn standing(records: &Records, instance: u32, now: u64) -> Standing {
    records.standing(instance, ms(now), &SETTINGS)
}

#[test]
fn who_is_ejected() {
    use Event::Succeeded;
    type Row<'a> = (&'a str, &'a [(u32, Event, u64)], &'a [u32]);
    let rows: &[Row<'_>] = &[
        ("one request fails everywhere", &[(1, SUSPECT, 0), (2, SUSPECT, 1), (3, SUSPECT, 2)], &[]),
        (
            "a client's requests fail everywhere, and nobody else asks",
            &[(1, SUSPECT, 0), (2, SUSPECT, 0), (1, SUSPECT, 10), (2, SUSPECT, 20), (1, SUSPECT, 30), (2, SUSPECT, 40)],
            &[],
        ),
        (
            "each of a client's requests fails at an instance of either pool, where others have waited for long",
            &[
                (11, SUSPECT, 0),
                (1, SUSPECT, 1),
                (2, Succeeded, 100),
                (3, Succeeded, 200),
                (11, SUSPECT, 1_000),
                (1, SUSPECT, 1_001),
                (1, SUSPECT, 2_000),
                (11, SUSPECT, 2_001),
            ],
            &[],
        ),
        (
            "a client's requests fail at an instance that serves others",
            &[
                (1, SUSPECT, 0),
                (1, SUSPECT, 900),
                (1, Succeeded, 950),
                (2, Succeeded, 960),
                (2, Succeeded, 970),
                (1, SUSPECT, 1_900),
                (1, SUSPECT, 1_950),
            ],
            &[],
        ),
        (
            "an instance fails what its peers serve",
            &[(1, SUSPECT, 0), (2, Succeeded, 100), (1, SUSPECT, 200), (3, Succeeded, 500), (1, SUSPECT, 1_100)],
            &[1],
        ),
        (
            "there is time for a good answer",
            &[(1, SUSPECT, 0), (2, Succeeded, 100), (1, SUSPECT, 200), (3, Succeeded, 500), (1, SUSPECT, 600)],
            &[],
        ),
        (
            "failures for long without one good answer",
            &[(1, SUSPECT, 0), (1, SUSPECT, 15_000), (1, SUSPECT, 30_000)],
            &[1],
        ),
        ("failures far apart", &[(1, SUSPECT, 0), (1, SUSPECT, 40_000), (1, SUSPECT, 80_000)], &[]),
        (
            "a black hole",
            &[(1, REFUSED, 0), (1, REFUSED, 1), (2, Succeeded, 2), (3, Succeeded, 3), (1, REFUSED, 4)],
            &[1],
        ),
        (
            "a client is refused by all",
            &[
                (1, REFUSED, 0),
                (2, REFUSED, 1),
                (3, REFUSED, 2),
                (2, Succeeded, 3),
                (3, Succeeded, 4),
                (1, REFUSED, 5),
                (2, REFUSED, 6),
                (1, REFUSED, 7),
                (3, REFUSED, 8),
            ],
            &[],
        ),
        (
            "an instance refuses a client and serves others",
            &[
                (1, REFUSED, 0),
                (1, REFUSED, 1),
                (2, Succeeded, 2),
                (3, Succeeded, 3),
                (1, Succeeded, 4),
                (1, REFUSED, 5),
                (1, REFUSED, 6),
            ],
            &[],
        ),
        ("nobody else serves", &[(1, REFUSED, 0), (1, REFUSED, 1), (1, REFUSED, 2)], &[]),
        (
            "a pool refuses what other pools serve",
            &[
                (1, COMMON, 0),
                (2, COMMON, 0),
                (1, COMMON, 1),
                (2, COMMON, 1),
                (11, Succeeded, 2),
                (12, Succeeded, 3),
                (1, COMMON, 4),
                (2, COMMON, 4),
            ],
            &[1, 2],
        ),
        (
            "a pool refuses what names its model",
            &[(1, REFUSED, 0), (1, REFUSED, 1), (11, Succeeded, 2), (12, Succeeded, 3), (1, REFUSED, 4)],
            &[],
        ),
    ];
    for (what, events, expected) in rows {
        let mut records = Records::default();
        for (instance, event, at) in *events {
            apply(&mut records, *instance, *event, *at, *at);
        }
        let now = events.last().map_or(0, |event| event.2);
        let ejected: Vec<u32> =
            [1, 2, 3, 11, 12].into_iter().filter(|i| standing(&records, *i, now) == Standing::Ejected).collect();
        assert_eq!(ejected, *expected, "{what}");
    }
}

#[test]
fn who_is_avoided_as_busy() {
    let later = Event::Busy(Some(Duration::from_secs(20)));
    type Row<'a> = (&'a str, &'a [(Event, u64)], u64, bool);
    let rows: &[Row<'_>] = &[
        ("said to one request", &[(later, 0)], 0, false),
        ("said to most", &[(later, 0), (later, 100)], 200, true),
        ("for as long as it asks", &[(later, 0), (later, 100)], 20_099, true),
        ("and no longer", &[(later, 0), (later, 100)], 20_100, false),
        ("one of many", &[(later, 0), (Event::Succeeded, 10), (Event::Succeeded, 20), (later, 30)], 31, false),
        ("another second", &[(later, 0), (Event::Succeeded, 10), (later, 2_000)], 2_001, false),
        ("seconds without a good answer are one", &[(later, 0), (later, 5_000)], 5_001, true),
        ("without a time: a back-off", &[(Event::Busy(None), 0), (Event::Busy(None), 1)], 1_000, true),
        ("and then no more", &[(Event::Busy(None), 0), (Event::Busy(None), 1)], 1_001, false),
        (
            "a good answer to a later request ends it",
            &[(later, 0), (later, 1), (Event::Succeeded, 3_000)],
            3_001,
            false,
        ),
        (
            "an absurd time",
            &[(Event::Busy(Some(Duration::MAX)), 0), (Event::Busy(Some(Duration::MAX)), 1)],
            600_001,
            false,
        ),
    ];
    for (what, events, at, expected) in rows {
        let mut records = Records::default();
        for (event, at) in *events {
            apply(&mut records, A, *event, *at, *at);
        }
        assert_eq!(standing(&records, A, *at) == Standing::Busy, *expected, "{what}");
    }
}

/// Instances that are well, whatever clients send: one client's requests fail or are refused wherever they are sent, in any rhythm,
/// while others are served within a second and a half. Nobody is ejected.
#[test]
fn no_request_ejects_an_instance_that_serves_others() {
    for seed in 0..1_000 {
        let mut random = Random::new(seed);
        let mut records = Records::default();
        let poison = [SUSPECT, REFUSED, COMMON, Event::Suspected(Failure::ErrorEvent)][random.below(4)];
        let (mut now, mut served, mut round) = (0, [0; 3], Vec::new());
        while now < 40_000 {
            now += 1 + random.below(60) as u64;
            for (i, at) in served.iter_mut().enumerate() {
                if now >= *at {
                    apply(&mut records, i as u32 + 1, Event::Succeeded, at.saturating_sub(500), now);
                    *at = now + 100 + random.below(700) as u64;
                }
            }
            // Whoever spreads load sends it to all of them in turn, in any order.
            if round.is_empty() {
                round = vec![1, 2, 3];
            }
            apply(&mut records, round.swap_remove(random.below(round.len())), poison, now - 1, now);
            for instance in 1..=3 {
                let standing = standing(&records, instance, now);
                assert!(standing != Standing::Ejected, "seed {seed}: {poison:?} at {now} ejects {instance}");
            }
        }
    }
}

/// An instance that answers nothing well while its peers do is out within a few requests, and a few more with each back-off.
/// Before peers have shown anything, whoever refuses time and again lets them go first, for a moment.
#[test]
fn whoever_refuses_in_a_row_is_doubted_for_a_moment() {
    for event in [REFUSED, COMMON, SUSPECT] {
        let mut records = Records::default();
        let standing = |records: &Records, now| records.standing(1, ms(now), &SETTINGS);
        for i in 0..3 {
            assert_eq!(standing(&records, 1_000 + i), Standing::Healthy, "{event:?}");
            apply(&mut records, 1, event, 1_000, 1_000 + i);
        }
        assert_eq!(standing(&records, 1_003), Standing::Doubted, "{event:?}");
        assert_eq!(standing(&records, 2_001), Standing::Doubted, "{event:?}");
        assert_eq!(standing(&records, 2_002), Standing::Healthy, "{event:?}: it may try again");
        apply(&mut records, 1, event, 2_010, 2_020);
        assert_eq!(standing(&records, 2_021), Standing::Doubted, "{event:?}");
        apply(&mut records, 1, Event::Succeeded, 1_500, 2_030);
        assert_eq!(standing(&records, 2_031), Standing::Healthy, "{event:?}: it serves");
    }
}

#[test]
fn a_black_hole_loses_its_traffic() {
    for seed in 0..1_000 {
        let mut random = Random::new(seed);
        let mut records = Records::default();
        let refusal = [REFUSED, COMMON][random.below(2)];
        let (mut now, mut met) = (0, 0);
        while now < 20_000 {
            now += 1 + random.below(200) as u64;
            let stands = standing(&records, 1, now);
            let is_open = match stands {
                Standing::Ejected | Standing::Busy | Standing::Doubted => false,
                Standing::HalfOpen => records.claim(1, ms(now), &SETTINGS),
                Standing::Healthy | Standing::Degraded(_) => true,
            };
            if is_open {
                met += 1;
                apply(&mut records, 1, refusal, now, now);
            }
            apply(&mut records, 2 + random.below(2) as u32, Event::Succeeded, now, now);
        }
        // 3, and a probe for each of the back-offs of 1, 2, 4, 8 and 16 s.
        assert!(met <= 3 + 5, "seed {seed}: {met} requests");
    }
}

/// A pool at capacity, whatever it serves meanwhile, is busy and never ejected.
#[test]
fn a_pool_at_capacity_is_not_ill() {
    for seed in 0..1_000 {
        let mut random = Random::new(seed);
        let mut records = Records::default();
        let (mut now, mut avoided) = (0, 0_u64);
        while now < 10_000 {
            now += 1 + random.below(20) as u64;
            let instance = 1 + random.below(3) as u32;
            let event = if random.below(3) == 0 { Event::Succeeded } else { Event::Busy(None) };
            apply(&mut records, instance, event, now.saturating_sub(300), now);
            for instance in 1..=3 {
                let standing = standing(&records, instance, now);
                assert!(!matches!(standing, Standing::Ejected | Standing::HalfOpen), "seed {seed}: {standing:?}");
                avoided += u64::from(standing == Standing::Busy);
            }
        }
        assert!(avoided > 0, "seed {seed}: it says busy and is asked all the same");
    }
}
