mod prices;

use super::*;
use crate::config::Config;
use crate::discovery::{Member, Roster};
use crate::fleet::{
    DemandLevel, Fleet, Instance, InstanceId, Model, ModelId, OnlinePrices, Placing, Pool, PoolId, Presence,
};
use crate::latency::{self, Basis, Forecast, Speed, Work};
use crate::learning::beliefs::{self, Beliefs};
use crate::learning::lengths::{self, Lengths};
use crate::learning::speed::{self, SpeedTallies, Speeds};
use crate::prices::{LivePrices, Observation, Steering};
use crate::reckoning::{Counters, Glimpse, InstanceCounters, InstanceReport, LoadNow, Reports};
use crate::telemetry::Load;
use std::sync::Arc;
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

const SECOND: Duration = Duration::from_secs(1);

/// A fleet of one pool with these addresses.
fn fleet(addresses: &[&str]) -> Fleet {
    let instances = addresses.iter().map(|address| Instance::new((*address).to_owned(), PoolId::new(0))).collect();
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

fn index(addresses: &[&str]) -> Index {
    Index::from_fleet(&fleet(addresses))
}

/// The counters of these instances that a record has for this owner.
fn read_counters(bytes: &[u8], owner: u64, index: &Index) -> Option<Counters> {
    let mut sum = Counters::new(index.len());
    add_counters(bytes, owner, index, &mut sum).then_some(sum)
}

#[test]
fn records_come_back_as_they_were() {
    let index = index(&[A, B]);
    let own = Counters(vec![InstanceCounters::default(), counters(1)]);
    assert_eq!(read_counters(&encode_counters(&own, 7, &index), 7, &index), Some(own));
    let reports = Reports(vec![InstanceReport::default(), report(4)]);
    let sources = Sources { identity: 5, period: SECOND };
    let bytes = encode_reports(&reports, &sources, &index);
    assert_eq!(decode_reports(&bytes, 5, &index), Some((reports, sources)));
    assert_eq!(decode_reports(&bytes, 6, &index), None, "another configuration");
    let glimpse = Glimpse { at: SECOND, running: None, waiting: Some(2.0), kv_use: Some(0.5), own: counters(4) };
    let bytes = encode_glimpses([(InstanceId::new(1), &glimpse)], &index);
    assert_eq!(decode_glimpses(&bytes, &index, |_, _| true), [(InstanceId::new(1), glimpse)]);
    let member = |address: &str, presence| Member {
        address: address.to_owned(),
        pool: PoolId::new(3),
        presence,
        placing: Placing { priority: 2, weight: 90 },
        since: SECOND,
    };
    let presences = [Presence::Present, Presence::Unhealthy, Presence::Gone, Presence::Degraded];
    let addresses = [A, B, C, "10.0.0.4:8000"];
    let members = addresses.into_iter().zip(presences).map(|(a, p)| member(a, p)).collect();
    let roster = Roster { members, known: [PoolId::new(1)].into() };
    let pool = crate::config::Config::parse(include_bytes!("../../../envoy/routebalance.json")).unwrap().fleet.pools[0]
        .clone();
    let pools = [pool.clone(), pool];
    assert_eq!(decode_roster(&encode_roster(&roster, &pools, 9), 9), Some(roster));
    let mut responses = Responses::default();
    responses.insert("resp_1", 3);
    responses.insert("resp_2", 4);
    responses.insert("resp_1", 5);
    let back = Responses::decode(&responses.encode());
    assert_eq!((back.holder("resp_1"), back.holder("resp_2"), back.holder("x")), (Some(5), Some(4), None));
    let shown = encode_shown(4, ["a", "", "no\0name", "b.c"].into_iter());
    assert_eq!((decode_shown(&shown, 4), decode_shown(&shown, 5)), (vec!["a".to_owned(), "b.c".to_owned()], vec![]));
}

#[test]
fn rows_are_found_by_their_instance_whatever_fleet_their_writer_has() {
    let before = index(&[A, B, C]);
    let all = Counters(vec![counters(7), counters(8), counters(9)]);
    let reports = Reports(vec![report(7), report(8), report(9)]);
    let glimpse = Glimpse { at: SECOND, waiting: Some(2.0), ..Glimpse::default() };
    // Who has the ids now, and whose rows they get.
    for (now, rows) in [
        (&[A, B, C][..], &[Some(0), Some(1), Some(2)][..]),
        (&[A], &[Some(0)]),
        (&[C, A], &[Some(2), Some(0)]),
        (&["10.0.0.9:1", C, B], &[None, Some(2), Some(1)]),
        (&[], &[]),
    ] {
        let now = index(now);
        let own: Vec<_> = rows.iter().map(|row| row.map_or(InstanceCounters::default(), |i| all.0[i])).collect();
        assert_eq!(read_counters(&encode_counters(&all, 1, &before), 1, &now), Some(Counters(own.clone())));
        let mut memory = MemoryBoard::default();
        assert!(memory.write_counters(3, 1, &all, &before));
        let mut sum = Counters::new(now.len());
        assert!(memory.add_counters(3, 1, &now, &mut sum) && !memory.add_counters(2, 1, &now, &mut sum));
        assert!(!memory.add_counters(3, 2, &now, &mut sum), "another owner");
        assert_eq!(sum, Counters(own), "both boards say the same");
        let reported: Vec<_> = rows.iter().map(|row| row.map_or(InstanceReport::default(), |i| reports.0[i])).collect();
        let sources = Sources { identity: 5, period: SECOND };
        let bytes = encode_reports(&reports, &sources, &before);
        assert_eq!(decode_reports(&bytes, 5, &now), Some((Reports(reported.clone()), sources.clone())));
        assert!(memory.write_reports(0, &reports, &sources, &before));
        assert_eq!(
            memory.reports(0, 5, &now),
            Some((Arc::new(Reports(reported)), sources)),
            "both boards say the same"
        );
        let bytes = encode_glimpses((0..3).map(|i| (InstanceId::new(i), &glimpse)), &before);
        let mut found: Vec<usize> = decode_glimpses(&bytes, &now, |_, _| true).iter().map(|(i, _)| i.index()).collect();
        found.sort_unstable();
        assert_eq!(found, (0..rows.len()).filter(|i| rows[*i].is_some()).collect::<Vec<_>>());
    }
}

#[test]
fn an_address_that_has_moved_to_another_pool_means_the_instance_that_is_there() {
    let mut moved = fleet(&[A, B, A]);
    moved.instances[0].presence = Presence::Gone;
    let index = Index::from_fleet(&moved);
    let found = |row| index.find(moved.instances[0].key, row).map(InstanceId::index);
    assert_eq!((found(9), found(0)), (Some(2), Some(0)), "a writer with the same fleet means what it says");
}

#[test]
fn broken_records_and_those_of_another_version_or_owner_are_absent() {
    let fleet = fleet(&[A, B]);
    let index = Index::from_fleet(&fleet);
    let bytes = encode_counters(&Counters(vec![counters(1), counters(1)]), 7, &index);
    let mut other_version = bytes.clone();
    other_version[0] ^= 1;
    assert_eq!(read_counters(&other_version, 7, &index), None, "another version");
    assert_eq!(read_counters(&bytes, 8, &index), None, "another owner");
    assert_eq!(read_counters(&[], 7, &index), None, "empty");
    for cut in 1..bytes.len() {
        let decoded = read_counters(&bytes[..cut], 7, &index);
        assert!(decoded.is_none_or(|c| c.0.len() == 2 && c.0[1] == InstanceCounters::default()), "cut at {cut}");
    }
    let roster = Roster::from_fleet(&fleet);
    let bytes = encode_roster(&roster, &[], 9);
    assert_eq!(decode_roster(&bytes, 8), None, "another configuration");
    for cut in 1..bytes.len() {
        assert!(decode_roster(&bytes[..cut], 9).is_none_or(|r| r.members.len() < 2), "cut at {cut}");
    }
    let members = vec![roster.members[0].clone(); crate::discovery::INSTANCES_MAX + 1];
    let many = Roster { members, ..Roster::default() };
    assert_eq!(decode_roster(&encode_roster(&many, &[], 9), 9), None, "longer than any");
    assert_eq!(Slots::decode(b"garbage"), Slots::default());
    assert_eq!(Responses::decode(b"garbage"), Responses::default());
    assert!(decode_glimpses(b"garbage", &index, |_, _| true).is_empty());
}

#[test]
fn every_vm_gets_a_slot_of_its_own_and_a_dead_ones_is_taken_over() {
    let mut slots = Slots::default();
    let at = |s: u32| SECOND * s;
    assert_eq!(slots.keep(11, 70, at(1)), Some(0));
    assert_eq!(slots.keep(12, 70, at(1)), Some(1));
    assert_eq!(slots.keep(11, 70, at(4)), Some(0), "a heartbeat keeps the slot");
    assert_eq!(Slots::decode(&slots.encode()), slots);
    assert_eq!(slots.orphans(at(8)), [1]);
    assert_eq!(slots.keep(13, 70, at(8)), Some(1), "the dead one's slot");
    assert_eq!(slots.keep(12, 70, at(8)), Some(2), "it was only slow: a new slot");
    assert_eq!(slots.owners().collect::<Vec<_>>(), [(0, 11), (1, 13), (2, 12)]);
    slots.leave(13, 70);
    assert_eq!(slots.keep(14, 70, at(8)), Some(1), "one that has left frees its slot at once");
    let mut full = Slots::default();
    for owner in 1..=MAX_SLOTS as u64 {
        assert!(full.keep(owner, 70, at(1)).is_some());
    }
    assert_eq!(full.keep(9_999, 70, at(1)), None);
}

#[test]
fn every_configuration_has_a_place_as_long_as_a_vm_has_it() {
    let at = |s: u32| SECOND * s;
    let mut slots = Slots::default();
    assert_eq!(slots.settle(70, (at(1), Duration::ZERO), at(1)), Some(0));
    assert_eq!(slots.settle(71, (at(2), Duration::ZERO), at(2)), Some(1));
    assert_eq!(slots.settle(70, (at(1), Duration::ZERO), at(3)), Some(0));
    assert!(slots.places()[1].is_newer_than(&slots.places()[0]));
    assert_eq!(slots.settle(70, (at(4), Duration::ZERO), at(4)), Some(0), "rolled back to");
    assert!(slots.places()[0].is_newer_than(&slots.places()[1]));
    // When each began, when it last got a new connection, and which of the two speaks.
    for (one, other, speaks) in [
        ((9, 0), (8, 0), true),
        ((1, 7), (2, 0), false),
        ((1, 8), (2, 0), true),
        ((1, 8), (2, 3), false),
        ((1, 20), (2, 14), true),
        ((1, 20), (2, 19), false),
    ] {
        let place = |(started, served): (u32, u32), identity| {
            let mut slots = Slots::default();
            slots.settle(identity, (at(started), at(served)), at(30));
            slots.places()[0]
        };
        let (one, other) = (place(one, 70), place(other, 71));
        assert_eq!((one.speaks_before(&other), other.speaks_before(&one)), (speaks, !speaks), "{one:?} {other:?}");
    }
    assert_eq!(Slots::decode(&slots.encode()), slots);
    assert_eq!((slots.gone(at(7)), slots.gone(at(8))), (vec![], vec![(1, 71)]));
    assert_eq!(slots.settle(72, (at(8), Duration::ZERO), at(8)), Some(1), "the place of one that has gone");
    for identity in 100..100 + MAX_PLACES as u64 - 2 {
        assert!(slots.settle(identity, (at(8), Duration::ZERO), at(8)).is_some());
    }
    assert_eq!(slots.settle(9_999, (at(3), Duration::ZERO), at(8)), None, "older than all that are there");
    assert_eq!(slots.settle(9_998, (at(8), Duration::ZERO), at(8)), Some(0), "70 is the oldest");
    assert_eq!(slots.settle(70, (at(4), Duration::ZERO), at(8)), None);
}

#[test]
fn one_vm_of_a_configuration_leads_and_another_takes_over_when_it_falls_silent() {
    let mut slots = Slots::default();
    let (one, other) = (
        slots.settle(70, (SECOND, Duration::ZERO), SECOND).unwrap(),
        slots.settle(71, (SECOND, Duration::ZERO), SECOND).unwrap(),
    );
    assert!(slots.lead(11, one, SECOND, SECOND));
    assert!(!slots.lead(12, one, SECOND, SECOND));
    assert!(slots.lead(12, other, SECOND, SECOND), "another configuration has its own leader");
    assert!(slots.lead(11, one, 2 * SECOND, SECOND), "renewed");
    assert!(!slots.lead(12, one, 3 * SECOND, SECOND));
    assert_eq!(Slots::decode(&slots.encode()), slots);
    assert!(slots.lead(12, one, 4 * SECOND, SECOND), "silent for longer than the lease");
    assert!(!slots.lead(11, one, 4 * SECOND, SECOND));
    assert!(!slots.lead(11, MAX_PLACES, SECOND, SECOND), "no such place");
}

/// With the lease that is derived from the period, whenever the leader dies and however late the others' ticks are.
#[test]
fn a_dead_leader_is_replaced_within_two_periods() {
    let tick = Duration::from_millis(50);
    let mut json: serde_json::Value = serde_json::from_str(include_str!("../../../envoy/routebalance.json")).unwrap();
    for period_ms in [250, 500, 1_000, 5_000] {
        json["telemetry"] = serde_json::json!({"scrape_period_ms": period_ms});
        let telemetry = crate::config::Config::parse(json.to_string().as_bytes()).unwrap().telemetry;
        for phase in 0..50 {
            let mut slots = Slots::default();
            let died_at = SECOND;
            slots.settle(70, (died_at, Duration::ZERO), died_at);
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
                serde_json::from_str(include_str!("../../../envoy/routebalance.json")).unwrap();
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
        lengths.learn(&lengths::LengthLesson { model: ModelId::new(model), residual, censored: false });
    }
    lengths
}

fn beliefs() -> Beliefs {
    let mut beliefs = Beliefs::default();
    for (model, prototype) in [(0, None), (0, Some(0)), (4, Some(255)), (4, Some(255))] {
        let model = ModelId::new(model);
        beliefs.learn(&beliefs::QualityLesson { model, prototype, score: 1.0, quality: 0.4, quality_sd: 0.1 });
    }
    beliefs
}

/// Models m0 to m4, and pools p0 and p1.
fn taught() -> Fleet {
    let reference = Config::parse(include_bytes!("../../../envoy/routebalance.json")).unwrap().fleet;
    let model = |i: usize| Model { name: format!("m{i}"), ..reference.models[0].clone() };
    let pool = |i: usize| Pool { name: format!("p{i}"), ..reference.pools[0].clone() };
    Fleet { models: (0..5).map(model).collect(), pools: (0..2).map(pool).collect(), ..Fleet::default() }
}

#[test]
fn what_was_learnt_comes_back_and_teaches_the_same() {
    let (subjects, about_quality) = (Subjects::lengths(&taught(), 9), Subjects::beliefs(&taught(), 9));
    let mut heir = Lengths::default();
    heir.adopt(decode_lengths(&encode_lengths(&lengths(), &Foreign::new(), &subjects), &subjects).0);
    for (a, b) in heir.factors(5).into_iter().zip(lengths().factors(5)) {
        assert!((a - b).abs() < 1e-6, "{a} {b}");
    }
    let mut heir = Beliefs::default();
    let bytes = encode_beliefs(&beliefs(), &Foreign::new(), &about_quality);
    heir.adopt(decode_beliefs(&bytes, &about_quality).0);
    for (model, prototype) in [(0, None), (0, Some(0)), (4, Some(255)), (4, Some(3)), (1, None)] {
        let of = |beliefs: &Beliefs| beliefs.offsets().revised(ModelId::new(model), prototype, 0.5, 0.1);
        let (a, b) = (of(&heir), of(&beliefs()));
        assert!((a.0 - b.0).abs() < 1e-6 && (a.1 - b.1).abs() < 1e-6, "{a:?} {b:?}");
    }
}

/// A fleet with models and pools before, behind and instead of those that lessons are about.
fn changed() -> Fleet {
    let mut fleet = taught();
    fleet.models.swap_remove(0);
    fleet.models[1].name = "new".to_owned();
    fleet.pools.reverse();
    fleet
}

#[test]
fn what_was_learnt_of_a_model_or_a_pool_stays_with_it_through_a_change_of_the_fleet() {
    let (before, after) = (Subjects::lengths(&taught(), 9), Subjects::lengths(&changed(), 9));
    let bytes = encode_lengths(&lengths(), &Foreign::new(), &before);
    let (own, foreign) = decode_lengths(&bytes, &after);
    // m3 is there still, at its old index; m0 has gone.
    assert_eq!((own.keys().collect::<Vec<_>>(), foreign.len()), (vec![3], 1));
    let mut heir = Lengths::default();
    heir.adopt(own);
    heir.learn(&lengths::LengthLesson { model: ModelId::new(0), residual: 0.1, censored: false });
    let (back, foreign) = decode_lengths(&encode_lengths(&heir, &foreign, &after), &before);
    let (was, _) = decode_lengths(&bytes, &before);
    assert_eq!((back.get(0), back.get(3)), (was.get(0), was.get(3)), "rolled back, nothing is lost");
    assert!(back.get(4).is_some() && foreign.is_empty(), "m4 stood at index 0: {back:?}");

    let (before, after) = (Subjects::beliefs(&taught(), 9), Subjects::beliefs(&changed(), 9));
    let (own, foreign) = decode_beliefs(&encode_beliefs(&beliefs(), &Foreign::new(), &before), &after);
    assert_eq!((own.keys().collect::<Vec<_>>(), foreign.len()), (vec![256], 2), "m4 is model 0, prototype 255");

    let (before, after) = (Subjects::speeds(&taught(), Basis::Both), Subjects::speeds(&changed(), Basis::Both));
    let (own, foreign) = decode_speeds(&encode_speeds(&speeds().own(), &ForeignSpeeds::default(), &before), &after);
    assert_eq!(foreign, ForeignSpeeds::default());
    assert_eq!((own.factors.keys().collect::<Vec<_>>(), own.traffic.keys().collect::<Vec<_>>()), (vec![0, 1], vec![0]));
}

#[test]
fn what_others_learnt_of_other_models_or_wrongly_is_absent() {
    let none = Foreign::new;
    let (subjects, about_quality) = (Subjects::lengths(&taught(), 9), Subjects::beliefs(&taught(), 9));
    let good = encode_lengths(&lengths(), &none(), &subjects);
    let other_predictor = Subjects::lengths(&taught(), 8);
    assert!(decode_lengths(&good, &other_predictor).0.is_empty() && decode_lengths(&[], &subjects).0.is_empty());
    for cut in 0..good.len() {
        assert!(decode_lengths(&good[..cut], &subjects).0.len() < 2, "cut at {cut}");
    }
    let beliefs = encode_beliefs(&beliefs(), &Foreign::new(), &about_quality);
    assert!(decode_beliefs(&beliefs, &Subjects::beliefs(&taught(), 8)).0.is_empty());
    // Whatever byte is broken, what is read stays possible: the factors and offsets are bounded.
    for (at, value) in (0..good.len()).flat_map(|at| [0x00, 0x7f, 0x80, 0xff].map(|value| (at, value))) {
        let mut broken = good.clone();
        broken[at] = value;
        let mut reader = Lengths::default();
        reader.read(&[decode_lengths(&broken, &subjects).0]);
        let factor = reader.factor(ModelId::new(0));
        assert!((1.0 / lengths::FACTOR_MAX..=lengths::FACTOR_MAX).contains(&factor), "{at} {value}: {factor}");
    }
    for at in 9..beliefs.len() {
        let mut broken = beliefs.clone();
        broken[at] = 0x7f;
        let mut reader = Beliefs::default();
        reader.read(&[decode_beliefs(&broken, &about_quality).0]);
        let (quality, sd) = reader.offsets().revised(ModelId::new(4), Some(255), 0.5, 0.1);
        assert!((0.0..=1.0).contains(&quality) && (0.0..=0.1).contains(&sd), "{at}: {quality} {sd}");
    }
}

#[test]
fn a_record_keeps_so_many_foreign_rows_and_no_more() {
    let mut lengths = Lengths::default();
    let models = |n: usize| Fleet {
        models: (0..n).map(|i| Model { name: format!("x{i}"), ..taught().models[0].clone() }).collect(),
        ..Fleet::default()
    };
    let lesson = |model| lengths::LengthLesson { model, residual: 0.1, censored: false };
    (0..1_000).map(ModelId::new).for_each(|model| lengths.learn(&lesson(model)));
    let bytes = encode_lengths(&lengths, &Foreign::new(), &Subjects::lengths(&models(1_000), 9));
    let (own, foreign) = decode_lengths(&bytes, &Subjects::lengths(&models(3), 9));
    assert_eq!((own.len(), foreign.len()), (3, 256));
}

fn speeds() -> Speeds {
    let mut speeds = Speeds::default();
    let forecast = Forecast {
        ttft_seconds: 0.2,
        tpot_seconds: 0.02,
        uncorrected_ttft_seconds: 0.2,
        uncorrected_tpot_seconds: 0.02,
        ..Forecast::default()
    };
    for i in 0..80_u32 {
        let expectation = speed::SpeedExpectation {
            pool: PoolId::new(1),
            forecast: Forecast { batch: f64::from(i % 9), prefill_tokens: f64::from(i % 5) * 100.0, ..forecast },
            prompt_tokens: 300.0,
        };
        speeds.learn(&expectation.lesson(&speed::AnswerTiming {
            ttft_seconds: Some(0.3),
            e2e_seconds: 1.3,
            output_tokens: 41,
        }));
    }
    speeds
}

#[test]
fn what_was_learnt_of_speed_comes_back_as_it_was() {
    let subjects = Subjects::speeds(&taught(), Basis::Both);
    let bytes = encode_speeds(&speeds().own(), &ForeignSpeeds::default(), &subjects);
    assert!(bytes.len() <= 9 + 16 + 440, "{} bytes", bytes.len());
    let mut heir = Speeds::default();
    heir.adopt(decode_speeds(&bytes, &subjects).0);
    for basis in [Basis::Prior, Basis::Learned, Basis::Both] {
        let (back, was) = (heir.speed(PoolId::new(1), basis), speeds().speed(PoolId::new(1), basis));
        assert!((back.ttft_factor / was.ttft_factor - 1.0).abs() < 1e-6 && back.ttft_factor >= 1.0, "{basis:?}");
        assert!((back.tpot_factor / was.tpot_factor - 1.0).abs() < 1e-6, "{basis:?}");
        assert!((back.traffic.unwrap().prompt_tokens - 300.0).abs() < 1e-3, "{basis:?}");
        assert_eq!(back.pace.is_some(), basis == Basis::Learned);
        let p = |speed: &Speed| speed.probability_ttft_within(0.2, 0.25);
        assert!((p(&back) - p(&was)).abs() < 1e-6, "{basis:?}");
    }
    let others = Subjects::speeds(&taught(), Basis::Prior);
    assert_eq!(decode_speeds(&bytes, &others).0, SpeedTallies::default(), "other forecasts");
    for cut in 0..bytes.len() {
        assert_eq!(decode_speeds(&bytes[..cut], &subjects).0, SpeedTallies::default(), "cut at {cut}");
    }
}

/// Whatever bytes another worker leaves, forecasts stay numbers.
#[test]
fn broken_records_of_speed_break_no_forecast() {
    let subjects = Subjects::speeds(&taught(), Basis::Both);
    let good = encode_speeds(&speeds().own(), &ForeignSpeeds::default(), &subjects);
    let fleet = Config::parse(include_bytes!("../../../envoy/routebalance.json")).unwrap().fleet;
    let pool = &fleet.pools[1];
    let work = Work { prompt_tokens: 200.0, cached_tokens: 0.0, output_tokens: 100.0 };
    let load = LoadNow { running: 5.0, ..LoadNow::default() };
    for (at, value) in (9..good.len()).flat_map(|at| [0x00, 0x7f, 0x80, 0xff].map(|value| (at, value))) {
        let mut broken = good.clone();
        broken[at] = value;
        let mut reader = Speeds::default();
        reader.read([decode_speeds(&broken, &subjects).0].iter(), &[PoolId::new(1)]);
        for basis in [Basis::Learned, Basis::Both] {
            let speed = reader.speed(PoolId::new(1), basis);
            let forecast = latency::forecast(&pool.profile, &pool.limits, &load, &work, &speed);
            let times = [
                forecast.ttft_seconds,
                forecast.tpot_seconds,
                forecast.e2e_seconds,
                speed.probability_ttft_within(0.2, 0.3),
            ];
            assert!(times.iter().all(|time| time.is_finite() && *time >= 0.0), "{at} {value} {basis:?}: {times:?}");
        }
    }
}

#[test]
fn recent_decisions_are_found_scored_and_in_the_end_forgotten() {
    let decision = |model: usize| RecentDecision {
        model: ModelId::new(model),
        prototype: model.checked_sub(2),
        quality: 0.5,
        quality_sd: 0.25,
        propensity: 1.0,
        scored: false,
    };
    let subjects = Subjects::beliefs(&taught(), 9);
    let mut recent = Recent::decode(Vec::new());
    recent.insert("a", &decision(1), &subjects);
    recent.insert("b", &decision(2), &subjects);
    recent.insert("b", &decision(3), &subjects);
    let mut back = Recent::decode(recent.bytes().to_vec());
    assert_eq!(back, recent);
    assert_eq!(back.score("a", &subjects), Some(decision(1)));
    assert_eq!(back.score("b", &subjects), Some(decision(3)), "the latest");
    let mut again = Recent::decode(back.bytes().to_vec());
    assert_eq!(again.score("b", &subjects), Some(RecentDecision { scored: true, ..decision(3) }));
    assert_eq!(again.score("c", &subjects), None);
    let whole = recent.bytes();
    for bytes in [&whole[..20], &whole[..whole.len() - 1], b"garbage", &[&whole[..9], &[0; 33 * 32][..]].concat()] {
        assert_eq!(Recent::decode(bytes.to_vec()), Recent::decode(Vec::new()), "{bytes:?}");
    }
    let later = Subjects::beliefs(&changed(), 9);
    let models = |id| Recent::decode(whole.to_vec()).score(id, &later).map(|decision| decision.model);
    assert_eq!((models("a"), models("b")), (None, Some(ModelId::new(3))), "m1 has gone, m3 is where it was");
    let mut broken = whole.to_vec();
    broken[9 + 20..9 + 24].copy_from_slice(&f32::NAN.to_le_bytes());
    assert_eq!(Recent::decode(broken).score("a", &subjects), None, "no number");
    // Of 4,096 decisions spread by their ids, most are still there, and all of the last 2,000.
    let mut ring = vec![Recent::decode(Vec::new()); RECENT_SEGMENTS];
    let id = |i: usize| format!("8f14e45f-{i:08x}-4c3b");
    (0..10_000).for_each(|i| ring[Recent::segment(&id(i))].insert(&id(i), &decision(1), &subjects));
    let kept: Vec<usize> =
        (0..10_000).filter(|i| ring[Recent::segment(&id(*i))].score(&id(*i), &subjects).is_some()).collect();
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
