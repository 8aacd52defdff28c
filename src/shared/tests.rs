use super::*;
use crate::config::Config;
use crate::discovery::{Member, Roster};
use crate::fleet::{DemandLevel, Instance, OnlinePrices, Presence};
use crate::latency::{self, Basis, Forecast, Speed, Work};
use crate::learning::beliefs::{self, Beliefs};
use crate::learning::lengths::{self, Lengths};
use crate::learning::speed::{self, SpeedTallies, Speeds};
use crate::prices::{LivePrices, Observation, Steering};
use crate::reckoning::{Counters, Glimpse, InstanceCounters, InstanceReport, LoadNow, Reports};
use crate::telemetry::Load;
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

const SECOND: Duration = Duration::from_secs(1);

/// A fleet of one pool with these addresses.
fn fleet(addresses: &[&str]) -> Fleet {
    let instances = addresses.iter().map(|address| Instance::new((*address).to_owned(), 0)).collect();
    Fleet { instances, ..Fleet::default() }
}

const A: &str = "10.0.0.1:8000";
const B: &str = "10.0.0.2:8000";
const C: &str = "[fd00::3]:8000";

fn counters(first: u64) -> InstanceCounters {
    InstanceCounters {
        dispatched_requests: first,
        finished_requests: 2,
        dispatched_prompt_tokens: 3,
        finished_prompt_tokens: 4,
        dispatched_output_tokens: 5,
        finished_output_tokens: 6,
        last_dispatch: Duration::from_nanos(7),
    }
}

fn report(dispatched: u64) -> InstanceReport {
    let load = Load { running: Some(3.0), waiting: Some(0.0), awake: Some(false), ..Load::default() };
    InstanceReport { at: Some(SECOND), load, own: counters(dispatched), repeats: 4, unreachable: 1 }
}

#[test]
fn records_come_back_as_they_were() {
    let fleet = fleet(&[A, B]);
    let own = Counters(vec![InstanceCounters::default(), counters(1)]);
    assert_eq!(decode_counters(&encode_counters(&own, &fleet), &fleet), Some(own));
    let reports = Reports(vec![InstanceReport::default(), report(4)]);
    let bytes = encode_reports(&reports, SECOND, &fleet);
    assert_eq!(decode_reports(&bytes, &fleet), Some((reports, SECOND)));
    let glimpse = Glimpse { at: SECOND, running: None, waiting: Some(2.0), kv_use: Some(0.5), own: counters(4) };
    let bytes = encode_glimpses([(1, &glimpse)], &fleet);
    assert_eq!(decode_glimpses(&bytes, &fleet), [(1, glimpse)]);
    let member = |address: &str, presence| Member { address: address.to_owned(), pool: 3, presence, since: SECOND };
    let presences = [Presence::Present, Presence::Unhealthy, Presence::Gone];
    let roster = Roster([A, B, C].into_iter().zip(presences).map(|(a, p)| member(a, p)).collect());
    assert_eq!(decode_roster(&encode_roster(&roster, 9), 9), Some(roster));
    let mut responses = Responses::default();
    responses.insert("resp_1", 3);
    responses.insert("resp_2", 4);
    responses.insert("resp_1", 5);
    let back = Responses::decode(&responses.encode());
    assert_eq!((back.holder("resp_1"), back.holder("resp_2"), back.holder("x")), (Some(5), Some(4), None));
}

#[test]
fn rows_of_other_instances_are_ignored_and_the_rest_is_kept() {
    let before = fleet(&[A, B, C]);
    let all = Counters(vec![counters(7), counters(8), counters(9)]);
    let reports = Reports(vec![report(7), report(8), report(9)]);
    let glimpse = Glimpse { at: SECOND, waiting: Some(2.0), ..Glimpse::default() };
    let (none, silent) = (InstanceCounters::default(), InstanceReport::default());
    // Who has the indices now, and whose rows are still right.
    for (now, right) in [
        (&[A, B, C][..], &[true, true, true][..]),
        (&[A], &[true]),
        (&[A, C, B], &[true, false, false]),
        (&[B, B, C, A], &[false, true, true, false]),
        (&[], &[]),
    ] {
        let now = fleet(now);
        let rows = |i: usize| if right[i] { (all.0[i], reports.0[i]) } else { (none, silent) };
        let (own, reported): (Vec<_>, Vec<_>) = (0..right.len()).map(rows).unzip();
        assert_eq!(decode_counters(&encode_counters(&all, &before), &now), Some(Counters(own)));
        let bytes = encode_reports(&reports, SECOND, &before);
        assert_eq!(decode_reports(&bytes, &now), Some((Reports(reported), SECOND)));
        let seen = decode_glimpses(&encode_glimpses((0..3).map(|i| (i, &glimpse)), &before), &now);
        let expected: Vec<usize> = (0..right.len()).filter(|i| right[*i]).collect();
        assert_eq!(seen.into_iter().map(|(i, _)| i).collect::<Vec<_>>(), expected);
    }
}

#[test]
fn broken_records_and_those_of_another_version_are_absent() {
    let fleet = fleet(&[A, B]);
    let bytes = encode_counters(&Counters(vec![counters(1), counters(1)]), &fleet);
    let mut other_version = bytes.clone();
    other_version[0] ^= 1;
    assert_eq!(decode_counters(&other_version, &fleet), None, "another version");
    assert_eq!(decode_counters(&[], &fleet), None, "empty");
    for cut in 1..bytes.len() {
        let decoded = decode_counters(&bytes[..cut], &fleet);
        assert!(decoded.is_none_or(|c| c.0.len() == 2 && c.0[1] == InstanceCounters::default()), "cut at {cut}");
    }
    let roster = Roster::of(&fleet, SECOND);
    let bytes = encode_roster(&roster, 9);
    assert_eq!(decode_roster(&bytes, 8), None, "another configuration");
    for cut in 1..bytes.len() {
        assert!(decode_roster(&bytes[..cut], 9).is_none_or(|r| r.0.len() < 2), "cut at {cut}");
    }
    let many = Roster(vec![roster.0[0].clone(); crate::discovery::INSTANCES_MAX + 1]);
    assert_eq!(decode_roster(&encode_roster(&many, 9), 9), None, "longer than any");
    assert_eq!(Slots::decode(b"garbage"), Slots::default());
    assert_eq!(Responses::decode(b"garbage"), Responses::default());
    assert!(decode_glimpses(b"garbage", &fleet).is_empty());
}

#[test]
fn configurations_are_told_apart_by_pools_and_listed_instances() {
    let config = |json: &serde_json::Value| crate::config::Config::parse(json.to_string().as_bytes()).unwrap().fleet;
    let mut json: serde_json::Value = serde_json::from_str(include_str!("../../envoy/routebalance.json")).unwrap();
    let mut listed = config(&json);
    let reference = fingerprint(&listed);
    json["pools"][1]["instances"] = "discover".into();
    let mut discovered = config(&json);
    assert_ne!(fingerprint(&discovered), reference);
    let before = fingerprint(&discovered);
    discovered.instances.push(Instance::new("10.0.0.1:8000".to_owned(), 1));
    assert_eq!(fingerprint(&discovered), before, "hosts come and go");
    listed.instances[3].address = "10.0.0.1:8000".to_owned();
    assert_ne!(fingerprint(&listed), reference);
    assert!(group(before) < GROUPS && group(u64::MAX) < GROUPS);
}

#[test]
fn every_vm_gets_a_slot_of_its_own_and_a_dead_ones_is_taken_over() {
    let mut slots = Slots::default();
    let at = |s: u32| SECOND * s;
    assert_eq!(slots.keep(11, at(1)), Some(0));
    assert_eq!(slots.keep(12, at(1)), Some(1));
    assert_eq!(slots.keep(11, at(4)), Some(0), "a heartbeat keeps the slot");
    assert_eq!(Slots::decode(&slots.encode()), slots);
    assert_eq!(slots.orphans(at(8)), [1]);
    assert_eq!(slots.keep(13, at(8)), Some(1), "the dead one's slot");
    assert_eq!(slots.keep(12, at(8)), Some(2), "it was only slow: a new slot");
    assert_eq!(slots.in_use(), 3);
    let mut full = Slots::default();
    for owner in 1..=MAX_SLOTS as u64 {
        assert!(full.keep(owner, at(1)).is_some());
    }
    assert_eq!(full.keep(9_999, at(1)), None);
}

#[test]
fn one_vm_of_a_group_leads_and_another_takes_over_when_it_falls_silent() {
    let mut slots = Slots::default();
    assert!(slots.lead(11, 0, SECOND, SECOND));
    assert!(!slots.lead(12, 0, SECOND, SECOND));
    assert!(slots.lead(12, 1, SECOND, SECOND), "another configuration has its own leader");
    assert!(slots.lead(11, 0, 2 * SECOND, SECOND), "renewed");
    assert!(!slots.lead(12, 0, 3 * SECOND, SECOND));
    assert_eq!(Slots::decode(&slots.encode()), slots);
    assert!(slots.lead(12, 0, 4 * SECOND, SECOND), "silent for longer than the lease");
    assert!(!slots.lead(11, 0, 4 * SECOND, SECOND));
    assert!(!slots.lead(11, GROUPS, SECOND, SECOND), "no such group");
}

/// With the lease that is derived from the period, whenever the leader dies and however late the others' ticks are.
#[test]
fn a_dead_leader_is_replaced_within_two_periods() {
    let tick = Duration::from_millis(50);
    let mut json: serde_json::Value = serde_json::from_str(include_str!("../../envoy/routebalance.json")).unwrap();
    for period_ms in [250, 500, 1_000, 5_000] {
        json["telemetry"] = serde_json::json!({"scrape_period_ms": period_ms});
        let telemetry = crate::config::Config::parse(json.to_string().as_bytes()).unwrap().telemetry;
        for phase in 0..50 {
            let mut slots = Slots::default();
            let died_at = SECOND;
            assert!(slots.lead(11, 0, died_at, telemetry.lease));
            // The successor's ticks are out of phase with the leader's, and each heartbeat waits for one.
            let (mut now, mut heartbeat_at) = (died_at + Duration::from_millis(phase), died_at);
            while !(now >= heartbeat_at && slots.lead(12, 0, now, telemetry.lease)) {
                if now >= heartbeat_at {
                    heartbeat_at = now + heartbeat(telemetry.lease);
                }
                now += tick;
            }
            let after = now - died_at;
            assert!(after <= 2 * telemetry.scrape_period, "{period_ms} ms: taken over after {after:?}");
        }
    }
}

/// Whatever the settings, a VM renews what it holds before anybody may take it for dead, also if a heartbeat comes late.
#[test]
fn heartbeats_are_shorter_than_every_expiry() {
    for period in [20, 250, 1_000, 4_000, 12_000, 15_000, 60_000, 600_000] {
        for lease in [None, Some(100), Some(5_000), Some(15_000), Some(60_000)] {
            let mut json: serde_json::Value =
                serde_json::from_str(include_str!("../../envoy/routebalance.json")).unwrap();
            json["telemetry"] = serde_json::json!({"scrape_period_ms": period});
            if let Some(lease) = lease {
                json["telemetry"]["lease_ms"] = lease.into();
            }
            let telemetry = Config::parse(json.to_string().as_bytes()).unwrap().telemetry;
            let late = heartbeat(telemetry.lease) * 2;
            assert!(late < telemetry.lease && late < SLOT_TTL, "{period} {lease:?}: {late:?}");
        }
    }
}

#[test]
fn the_ring_of_responses_is_bounded() {
    let mut responses = Responses::default();
    for i in 0..RESPONSES_KEPT + 10 {
        responses.insert(&format!("resp_{i}"), i as u32 % 7);
    }
    assert_eq!(responses.encode().len(), Responses::default().encode().len() + 12 * RESPONSES_KEPT);
    assert_eq!(responses.holder("resp_0"), None);
    assert!(responses.holder(&format!("resp_{}", RESPONSES_KEPT + 9)).is_some());
}

fn lengths() -> Lengths {
    let mut lengths = Lengths::default();
    for (model, residual) in [(0, 0.7), (3, -0.2), (0, 0.4)] {
        lengths.learn(&lengths::Lesson { model, residual, censored: false });
    }
    lengths
}

fn beliefs() -> Beliefs {
    let mut beliefs = Beliefs::default();
    for (model, prototype) in [(0, None), (0, Some(0)), (4, Some(255)), (4, Some(255))] {
        beliefs.learn(&beliefs::Lesson { model, prototype, score: 1.0, quality: 0.4, quality_sd: 0.1 });
    }
    beliefs
}

#[test]
fn what_was_learnt_comes_back_and_teaches_the_same() {
    let mut heir = Lengths::default();
    heir.adopt(decode_lengths(&encode_lengths(&lengths(), 9), 9));
    for (a, b) in heir.factors(5).into_iter().zip(lengths().factors(5)) {
        assert!((a - b).abs() < 1e-6, "{a} {b}");
    }
    let mut heir = Beliefs::default();
    heir.adopt(decode_beliefs(&encode_beliefs(&beliefs(), 9), 9));
    for (model, prototype) in [(0, None), (0, Some(0)), (4, Some(255)), (4, Some(3)), (1, None)] {
        let of = |beliefs: &Beliefs| beliefs.offsets().revised(model, prototype, 0.5, 0.1);
        let (a, b) = (of(&heir), of(&beliefs()));
        assert!((a.0 - b.0).abs() < 1e-6 && (a.1 - b.1).abs() < 1e-6, "{a:?} {b:?}");
    }
}

#[test]
fn what_others_learnt_of_other_models_or_wrongly_is_absent() {
    let good = encode_lengths(&lengths(), 9);
    assert!(decode_lengths(&good, 8).is_empty() && decode_lengths(&[], 9).is_empty());
    for cut in 0..good.len() {
        assert!(decode_lengths(&good[..cut], 9).len() < 2, "cut at {cut}");
    }
    let beliefs = encode_beliefs(&beliefs(), 9);
    assert!(decode_beliefs(&beliefs, 8).is_empty());
    // Whatever byte is broken, what is read stays possible: the factors and offsets are bounded.
    for (at, value) in (0..good.len()).flat_map(|at| [0x00, 0x7f, 0x80, 0xff].map(|value| (at, value))) {
        let mut broken = good.clone();
        broken[at] = value;
        let mut reader = Lengths::default();
        reader.read(&[decode_lengths(&broken, 9)]);
        let factor = reader.factor(0);
        assert!((1.0 / lengths::FACTOR_MAX..=lengths::FACTOR_MAX).contains(&factor), "{at} {value}: {factor}");
    }
    for at in 9..beliefs.len() {
        let mut broken = beliefs.clone();
        broken[at] = 0x7f;
        let mut reader = Beliefs::default();
        reader.read(&[decode_beliefs(&broken, 9)]);
        let (quality, sd) = reader.offsets().revised(4, Some(255), 0.5, 0.1);
        assert!((0.0..=1.0).contains(&quality) && (0.0..=0.1).contains(&sd), "{at}: {quality} {sd}");
    }
}

fn speeds() -> Speeds {
    let mut speeds = Speeds::default();
    let forecast =
        Forecast { ttft: 0.2, tpot: 0.02, uncorrected_ttft: 0.2, uncorrected_tpot: 0.02, ..Forecast::default() };
    for i in 0..80_u32 {
        let expectation = speed::Expectation {
            pool: 1,
            forecast: Forecast { batch: f64::from(i % 9), prefill_tokens: f64::from(i % 5) * 100.0, ..forecast },
            prompt_tokens: 300.0,
        };
        speeds.learn(&expectation.lesson(&speed::Timing { ttft: Some(0.3), e2e: 1.3, output_tokens: 41 }));
    }
    speeds
}

#[test]
fn what_was_learnt_of_speed_comes_back_as_it_was() {
    let bytes = encode_speeds(&speeds(), 9);
    assert!(bytes.len() <= 9 + 16 + 380, "{} bytes", bytes.len());
    let mut heir = Speeds::default();
    heir.adopt(decode_speeds(&bytes, 9));
    for basis in [Basis::Prior, Basis::Learned, Basis::Both] {
        let (back, was) = (heir.speed(1, basis), speeds().speed(1, basis));
        assert!((back.ttft_factor / was.ttft_factor - 1.0).abs() < 1e-6 && back.ttft_factor >= 1.0, "{basis:?}");
        assert!((back.tpot_factor / was.tpot_factor - 1.0).abs() < 1e-6, "{basis:?}");
        assert!((back.traffic.unwrap().prompt_tokens - 300.0).abs() < 1e-3, "{basis:?}");
        assert_eq!(back.pace.is_some(), basis == Basis::Learned);
        let p = |speed: &Speed| speed.probability_ttft_within(0.2, 0.25);
        assert!((p(&back) - p(&was)).abs() < 1e-6, "{basis:?}");
    }
    assert_eq!(decode_speeds(&bytes, 8), SpeedTallies::default(), "other pools");
    for cut in 0..bytes.len() {
        assert_eq!(decode_speeds(&bytes[..cut], 9), SpeedTallies::default(), "cut at {cut}");
    }
}

/// Whatever bytes another worker leaves, forecasts stay numbers.
#[test]
fn broken_records_of_speed_break_no_forecast() {
    let good = encode_speeds(&speeds(), 9);
    let fleet = Config::parse(include_bytes!("../../envoy/routebalance.json")).unwrap().fleet;
    let pool = &fleet.pools[1];
    let work = Work { prompt_tokens: 200.0, cached_tokens: 0.0, output_tokens: 100.0 };
    let load = LoadNow { running: 5.0, ..LoadNow::default() };
    for (at, value) in (9..good.len()).flat_map(|at| [0x00, 0x7f, 0x80, 0xff].map(|value| (at, value))) {
        let mut broken = good.clone();
        broken[at] = value;
        let mut reader = Speeds::default();
        reader.read(vec![decode_speeds(&broken, 9)]);
        for basis in [Basis::Learned, Basis::Both] {
            let speed = reader.speed(1, basis);
            let forecast = latency::forecast(&pool.profile, &pool.limits, &load, &work, &speed);
            let times = [forecast.ttft, forecast.tpot, forecast.e2e, speed.probability_ttft_within(0.2, 0.3)];
            assert!(times.iter().all(|time| time.is_finite() && *time >= 0.0), "{at} {value} {basis:?}: {times:?}");
        }
    }
}

#[test]
fn recent_decisions_are_found_scored_and_in_the_end_forgotten() {
    let decision = |model| RecentDecision {
        model,
        prototype: model.checked_sub(2),
        quality: 0.5,
        quality_sd: 0.25,
        propensity: 1.0,
        scored: false,
    };
    let mut recent = Recent::decode(Vec::new(), 9);
    recent.insert("a", &decision(1));
    recent.insert("b", &decision(2));
    recent.insert("b", &decision(3));
    let mut back = Recent::decode(recent.bytes().to_vec(), 9);
    assert_eq!(back, recent);
    assert_eq!(back.score("a"), Some(decision(1)));
    assert_eq!(back.score("b"), Some(decision(3)), "the latest");
    let mut again = Recent::decode(back.bytes().to_vec(), 9);
    assert_eq!(again.score("b"), Some(RecentDecision { scored: true, ..decision(3) }));
    assert_eq!(again.score("c"), None);
    let whole = recent.bytes();
    for bytes in [&whole[..20], &whole[..whole.len() - 1], b"garbage", &[&whole[..9], &[0; 33 * 32][..]].concat()] {
        assert_eq!(Recent::decode(bytes.to_vec(), 9), Recent::decode(Vec::new(), 9), "{bytes:?}");
    }
    assert_eq!(Recent::decode(whole.to_vec(), 8), Recent::decode(Vec::new(), 8), "other models");
    let mut broken = whole.to_vec();
    broken[9 + 20..9 + 24].copy_from_slice(&f32::NAN.to_le_bytes());
    assert_eq!(Recent::decode(broken, 9).score("a"), None, "no number");
    // Of 4,096 decisions spread by their ids, most are still there, and all of the last 2,000.
    let mut ring = vec![Recent::decode(Vec::new(), 9); RECENT_SEGMENTS];
    let id = |i: usize| format!("8f14e45f-{i:08x}-4c3b");
    (0..10_000).for_each(|i| ring[Recent::segment(&id(i))].insert(&id(i), &decision(1)));
    let kept: Vec<usize> = (0..10_000).filter(|i| ring[Recent::segment(&id(*i))].score(&id(*i)).is_some()).collect();
    assert!(kept.len() == 4_096 && (8_000..10_000).all(|i| kept.contains(&i)), "{} kept", kept.len());
    assert!(ring.iter().all(|segment| segment.bytes().len() <= 1_100));
}

#[test]
fn health_survives_the_way_through_bytes() {
    let case = |n: u64| crate::health::Case {
        count: 5,
        common: 4,
        since: Duration::from_millis(n),
        last: Duration::from_millis(n + 1),
        good_at_peers: 1,
        same_at_peers: 2,
        good_elsewhere: 3,
        same_elsewhere: 255,
    };
    let record = crate::health::Record {
        failures: 3,
        last_failure: Duration::from_millis(1_001),
        stalled: true,
        last_busy: Duration::from_millis(1_002),
        busy_answers: 6,
        good_answers: 7,
        busy_since: Duration::from_millis(1_005),
        busy_until: Duration::from_millis(1_006),
        ejections: 2,
        ejected_until: Duration::from_millis(1_003),
        probe_until: Duration::from_millis(1_004),
        suspicions: case(2_000),
        refusals: case(3_000),
    };
    let records = crate::health::Records([(7, record), (9, Default::default())].into_iter().collect());
    let bytes = encode_health(&records);
    assert_eq!(decode_health(&bytes), records);
    assert_eq!(decode_health(&bytes[..bytes.len() - 1]), Default::default(), "broken ones are none");
}

#[test]
fn prices_go_on_with_whoever_reads_them() {
    let Config { fleet, mut policies, .. } = Config::parse(include_bytes!("../../envoy/routebalance.json")).unwrap();
    let values = |all: [f64; 4]| all.into_iter().chain([0.0]).collect::<Vec<f64>>();
    let (prices, fractions) = (values([0.0, 0.1, 0.3, 0.4]), values([0.4, 0.3, 0.2, 0.1]));
    policies[2].demand_levels = vec![DemandLevel { rate: 20.0, prices, fractions }];
    policies[2].online_prices =
        Some(OnlinePrices { ttft: SECOND, max_correction: 0.3, time_constant: Duration::from_secs(9) });
    let fingerprint = prices_fingerprint(&fleet, &policies);
    let mut live = LivePrices::default();
    let counters = |n: u64| Counters(vec![counters(n); fleet.instances.len()]);
    for n in 0..20 {
        let seen = Observation::of(&fleet, &counters(3 * n), &[], &[]);
        live.step(&policies, &seen, SECOND * u32::try_from(n).unwrap());
    }
    let bytes = encode_prices(&live, fingerprint);
    let decode = |bytes: &[u8]| decode_prices(bytes, &fleet, &policies, fingerprint);
    let back = decode(&bytes).unwrap();
    let (was, is) = (live.policies[2].as_ref().unwrap(), back.policies[2].as_ref().unwrap());
    assert_eq!((back.at, &is.sent, back.policies.len()), (live.at, &was.sent, policies.len()));
    let all =
        |s: &Steering| [&s.rates[..], &s.relief, &s.corrections, &s.prices, &s.in_flight, &[s.surcharge]].concat();
    assert!(all(was).iter().zip(all(is)).all(|(a, b)| (a - b).abs() <= 1e-6 * a.abs()), "{was:?} {is:?}");
    assert!(was.corrections.iter().any(|c| c.abs() > 0.01), "{was:?}");
    for cut in 18..bytes.len() {
        assert_eq!(decode(&bytes[..cut]), None, "cut at {cut}");
    }
    for (at, value) in (9..bytes.len()).flat_map(|at| [0x00, 0x7f, 0x80, 0xff].map(|value| (at, value))) {
        let mut broken = bytes.clone();
        broken[at] = value;
        let steering = decode(&broken).and_then(|prices| prices.policies.into_iter().flatten().next());
        assert!(steering.is_none_or(|s| s.prices.iter().all(|p| (0.0..=1.6).contains(p))), "{at} {value}");
    }
    let mut others = policies.clone();
    others[2].demand_levels[0].rate = 21.0;
    assert_eq!(decode_prices(&bytes, &fleet, &others, prices_fingerprint(&fleet, &others)), None, "another plan");
}
